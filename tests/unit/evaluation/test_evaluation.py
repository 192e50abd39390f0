import csv
import json
import os
import sys
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest

from vitconv.errors import InputError
from vitconv.evaluation import evaluate, plots
from vitconv.inference.predictions import Parts, Run, make_rows

CLASSES = ("ash", "beech", "oak")
LOGITS = np.array([[4, 1, 0], [0, 3, 1], [1, 0, 2], [2, 0, 1], [0, 1, 5], [3, 2, 1]], np.float32)
PATHS = [f"images/{i}.jpg" for i in range(6)]
LABELS = ["ash", "beech", "oak", "oak", "oak", "ash"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 50)


@pytest.fixture
def files(tmp_path):
    """Return a function that writes predictions, their list and expected answers."""

    def write(logits=LOGITS, errors=None, labels=LABELS, expected=None, notes=None, splits=None):
        errors = errors or [None] * 6
        table = make_rows(0, PATHS, logits, errors, CLASSES, notes)
        Parts(tmp_path / "predictions", Run({}, CLASSES), 1, overwrite=True).write(0, table, "key")
        with (tmp_path / "list.csv").open("w") as file:
            csv.writer(file).writerows(
                [
                    ["path", *(["label"] if labels else []), *(["split"] if splits else [])],
                    *(
                        [path, *([labels[i]] if labels else []), *([splits[i]] if splits else [])]
                        for i, path in enumerate(PATHS)
                    ),
                ]
            )
        if expected is not None:
            with (tmp_path / "expected.csv").open("w") as file:
                csv.writer(file).writerows(expected)
        return (
            tmp_path / "predictions",
            tmp_path / "list.csv",
            *([tmp_path / "expected.csv"] if expected is not None else []),
        )

    return write


def answers(logits=LOGITS, paths=PATHS, order=CLASSES):
    """Expected answers with logits, their columns in any order."""
    columns = [CLASSES.index(name) for name in order]
    return [
        ["path", "class", *order],
        *([path, CLASSES[row.argmax()], *map(float, row[columns])] for path, row in zip(paths, logits, strict=True)),
    ]


def test_metrics_against_labels(files):
    predictions, images = files()
    result = evaluate(predictions, images)
    assert result.metrics["images"] == result.metrics["labelled"] == 6
    assert result.metrics["accuracy"] == 5 / 6
    assert "agreement" not in result.metrics
    assert result.intervals["accuracy"] == pytest.approx((0.3588, 0.9958), abs=1e-4)  # Clopper and Pearson's
    oak = result.per_class.to_pylist()[2]
    assert (oak["class"], oak["images"], oak["precision"], oak["recall"]) == ("oak", 3, 1, 2 / 3)


def test_metrics_against_expected_answers(files):
    changed = LOGITS.copy()
    changed[3] = [1, 0, 2.5]
    predictions, images, expected = files(labels=None, expected=answers(changed))
    result = evaluate(predictions, images, expected=expected)
    assert result.metrics["compared"] == 6
    assert result.metrics["agreement"] == 5 / 6
    assert result.metrics["max_logit_difference"] == 1.5
    assert "accuracy" not in result.metrics
    (one,) = result.disagreements()
    assert (one["path"], one["expected"], one["predicted"], one["label"]) == ("images/3.jpg", "oak", "ash", None)
    rows = result.per_class.to_pylist()
    assert [row["agreeing"] for row in rows] == [2, 1, 2]
    assert [row["compared"] for row in rows] == [2, 1, 3]
    assert [row["max_logit_difference"] for row in rows] == [1, 0, 1.5]
    assert result.intervals == {"agreement": pytest.approx((0.3588, 0.9958), abs=1e-4)}


def test_expected_answers_in_any_order_of_rows_and_columns(files):
    order = [3, 1, 5, 0, 2]
    predictions, images, expected = files(
        expected=answers(LOGITS[order], [PATHS[i] for i in order], ("oak", "ash", "beech"))
    )
    result = evaluate(predictions, images, expected=expected)
    assert (result.metrics["compared"], result.metrics["agreement"], result.metrics["max_logit_difference"]) == (
        5,
        1,
        0,
    )
    assert np.isnan(result.outcomes.expected_logits[4]).all()


def test_expected_classes_without_logits(files):
    rows = [["class", "path"], *zip(["ash", "beech", "oak", "oak", "oak", "ash"], PATHS, strict=True)]
    predictions, images, expected = files(expected=rows)
    result = evaluate(predictions, images, expected=expected)
    assert result.metrics["agreement"] == 5 / 6
    assert "max_logit_difference" not in result.metrics


def test_expected_answers_may_be_other_predictions(files, tmp_path):
    predictions, images = files()
    order = [2, 0, 1]
    classes = tuple(CLASSES[i] for i in order)
    table = make_rows(0, PATHS, LOGITS[:, order] + np.float32(0.5), [None] * 6, classes)
    Parts(tmp_path / "other", Run({}, classes), 1, overwrite=False).write(0, table, "key")
    result = evaluate(predictions, images, expected=tmp_path / "other")
    assert (result.metrics["agreement"], result.metrics["max_logit_difference"]) == (1, 0.5)


def test_an_unreadable_image_counts_as_a_disagreement_and_not_in_other_metrics(files):
    predictions, images, expected = files(errors=["broken", None, None, None, None, None], expected=answers())
    result = evaluate(predictions, images, expected=expected)
    assert (result.metrics["errors"], result.metrics["labelled"], result.metrics["compared"]) == (1, 5, 6)
    assert result.metrics["agreement"] == 5 / 6
    assert result.metrics["accuracy"] == 4 / 5
    assert result.outcomes.errors == (("images/0.jpg", "broken"),)
    assert result.disagreements()[0]["predicted"] is None


def test_metrics_may_be_a_single_name_or_empty(files):
    predictions, images = files()
    assert "accuracy" in evaluate(predictions, images, metrics="accuracy").metrics
    assert set(evaluate(predictions, images, metrics=None).metrics) == {
        "images",
        "errors",
        "labelled",
        "thresholds_missed",
    }


@pytest.mark.parametrize(
    "metrics", [[{"my.module": "cost"}], [None], 5, 0, False, {}, {"accuracy": 1}, [["accuracy"]], [5]]
)
def test_metrics_that_are_not_names_are_refused(files, metrics):
    predictions, images = files()
    with pytest.raises(InputError, match="The name of a metric must be|The metrics must be"):
        evaluate(predictions, images, metrics=metrics)


def test_the_interval_of_a_single_image_is_wide(files):
    predictions, images, expected = files(labels=["ash", *[""] * 5], expected=answers(LOGITS[:1], PATHS[:1]))
    result = evaluate(predictions, images, expected=expected)
    assert (result.metrics["compared"], result.metrics["agreement"], result.metrics["accuracy"]) == (1, 1, 1)
    nothing = pytest.approx((0.025, 1))  # Clopper-Pearson for one of one: 0.025 ** (1 / 1)
    assert result.intervals == {"agreement": nothing, "accuracy": nothing}


def test_images_without_an_expected_answer_are_counted(files):
    predictions, images, expected = files(labels=None, expected=answers(LOGITS[:4], PATHS[:4]))
    limits = {"agreement": {"min": 1}, "not_compared": {"max": 0}}
    result = evaluate(predictions, images, expected=expected, thresholds=limits)
    assert [str(threshold) for threshold in result.thresholds] == [
        "Images that get the expected answer (agreement): 1, at least 1.",
        "Images without an expected answer (not_compared): 2, above 0.",
    ]


def test_if_no_labelled_image_can_be_read_there_are_no_metrics(files, tmp_path):
    predictions, images, expected = files(
        errors=["x", *[None] * 5], labels=["ash", *[""] * 5], expected=answers(LOGITS[:1], PATHS[:1])
    )
    result = evaluate(predictions, images, expected=expected)
    assert (result.metrics["labelled"], result.metrics["agreement"]) == (0, 0)
    assert "accuracy" not in result.metrics
    assert "max_logit_difference" not in result.metrics
    assert result.per_class.to_pylist()[0]["precision"] is None
    assert result.per_class.to_pylist()[0]["max_logit_difference"] is None
    for draw in (plots.draw_logits, plots.draw_confusion, plots.draw_reliability, plots.draw_classes):
        plt.close(draw(result))


def test_a_missed_threshold_names_only_images_that_were_read(files):
    """Images that could not be read do not count against their class."""
    predictions, images = files(errors=["x", None, None, None, None, "x"])
    (threshold,) = evaluate(predictions, images, thresholds={"accuracy": {"min": 1}}).thresholds
    assert threshold.detail == "most often 'oak', 1 of 3 images wrong (images/3.jpg)."


def test_images_without_a_label_are_left_out(files):
    predictions, images = files(labels=["ash", "", "", "oak", "", ""])
    result = evaluate(predictions, images)
    assert (result.metrics["labelled"], result.metrics["accuracy"]) == (2, 0.5)


def test_a_missed_threshold_names_the_worst_class_and_its_images(files):
    changed = LOGITS.copy()
    changed[3] = [1, 0, 2.5]
    predictions, images, expected = files(expected=answers(changed))
    limits = {
        "agreement": {"min": 0.9},
        "accuracy": {"min": 0.5, "max": 0.9},
        "max_logit_difference": {"max": 0.1},
        "errors": {"max": 0},
    }
    result = evaluate(predictions, images, expected=expected, thresholds=limits)
    assert [threshold.passed for threshold in result.thresholds] == [False, True, True, False, True]
    assert not result.passed
    assert result.metrics["thresholds_missed"] == 2
    first, *_, fourth, _ = map(str, result.thresholds)
    assert (
        first
        == "Images that get the expected answer (agreement): 0.833333, below 0.9: most often 'oak', 1 of 3 images wrong (images/3.jpg)."
    )
    assert (
        fourth
        == "Largest difference of a logit (max_logit_difference): 1.5, above 0.1: 'oak' of images/3.jpg, 1 instead of 2.5."
    )
    assert evaluate(predictions, images, expected=expected, thresholds={"agreement": {"min": 0.8}}).passed


def test_a_missed_threshold_on_errors_names_the_images(files):
    predictions, images = files(errors=[None, "broken", None, None, None, "broken"])
    (threshold,) = evaluate(predictions, images, thresholds={"errors": {"max": 1}}).thresholds
    assert str(threshold) == "Images that could not be read (errors): 2, above 1: images/1.jpg, images/5.jpg."


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"agreement": {"min": 1}}, "There is a threshold for 'agreement', but this metric was not computed"),
        ({"accuracy": 0.9}, "The threshold of 'accuracy' is 0.9"),
        (0.9, "The thresholds must be a mapping, got 0.9"),
        ({"accuracy": {}}, "The threshold of 'accuracy' is {}"),
        ({"accuracy": {"least": 0.9}}, "The threshold of 'accuracy' is {'least': 0.9}"),
        ({"accuracy": {"min": "0.9"}}, "The threshold of 'accuracy' is '0.9', not a number"),
        ({"accuracy": {"min": float("nan")}}, "The threshold of 'accuracy' is nan, not a number"),
        ({"accuracy": {"min": True}}, "The threshold of 'accuracy' is True, not a number"),
        ({"accuracy": {"min": None}}, "The threshold of 'accuracy' is None, not a number"),
        ({"accuracy": {"min": [0.9]}}, "The threshold of 'accuracy' is [0.9], not a number"),
        ({"accuracy": {"min": "a" * 10**6}}, "aaaa…, not a number"),
        ({"accuracy": {"min": 10**400}}, "…, which no metric reaches"),
        ({"accuracy": {"max": 10**5000}}, "The threshold of 'accuracy' is a value of the type int"),
        ({"accuracy": {"max": float("inf")}}, "The threshold of 'accuracy' is inf, which no metric reaches"),
        ({"accuracy": {"min": 0.9, "max": 0.8}}, "No number passes the threshold of 'accuracy'"),
        ({"accuracy": [0.9]}, "The threshold of 'accuracy' is [0.9]"),
        ({"accuracy": None}, "The threshold of 'accuracy' is None"),
        ({1: {"min": 0}}, "There is a threshold for '1'"),
        ("accuracy", "The thresholds must be a mapping, got 'accuracy'"),
    ],
)
def test_wrong_thresholds_are_refused(files, limits, message):
    predictions, images = files()
    with pytest.raises(InputError) as caught:
        evaluate(predictions, images, thresholds=limits)
    assert message in caught.value.problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["ash", "beech", "oak", "oak", "elm", "ash"]}, "The labels in '.*list.csv' name a class that the model does not have: 'elm'"),
        ({"expected": [["path", "class"], ["images/0.jpg", "elm"]]}, "expected answers '.*' name a class that the model does not have: 'elm'"),
        ({"expected": [["path", "ash"], ["images/0.jpg", 1]]}, "have no column 'class'"),
        ({"expected": [["path", "class"], ["a", "ash"], ["a", "oak"]]}, "name an image more than once"),
        ({"expected": [["path", "class"], ["images/0.jpg", ""]]}, "No expected answer has the path of an image"),
        ({"expected": [["path", "class", "class"], ["images/0.jpg", "ash", "oak"]]}, "two columns of the same name"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "2026-01-01"]]}, "logits that are not numbers"),
        ({"expected": [["path", "class"], ["images/x.jpg", "ash"]]}, "No expected answer has the path of an image"),
        ({"expected": [["path", "class", "ash", "oak"], ["images/0.jpg", "ash", 1, 2]]}, "logits of other classes than the model: beech"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "x"]]}, "logits that are not numbers"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "nan"]]}, "logits that are not numbers: not all of them are finite in float32"),
        ({"expected": []}, "is not CSV that can be read"),
        ({"expected": [["path", "class"]]}, "have no row"),
        ({"expected": [["path", "class", "ash", "beech", "oak"]]}, "have no row"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "1" + "0" * 400]]}, "logits that are not numbers"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "-inf"]]}, "logits that are not numbers"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "1e39"]]}, "logits that are not numbers: not all of them are finite in float32"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, -1e308, 1e308]]}, "logits that are not numbers: not all of them are finite in float32"),
        ({"expected": [["path", "class", *map(str, range(10**6))], ["images/0.jpg", "ash", *[1] * 10**6]]}, "logits of other classes than the model: "),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, ""]]}, "logits that are not numbers"),
        ({"expected": [["path", "class", "ash", "beech", "oak"], ["images/0.jpg", "ash", 1, 2, "true"]]}, "logits that are not numbers"),
        ({"expected": [["path", "class", "ash", "beech", "oak", "elm"], ["images/0.jpg", "ash", 1, 2, 3, 4]]}, "logits of other classes than the model: elm"),
    ],
)  # fmt: skip
def test_files_that_do_not_match_are_refused(files, change, message):
    predictions, images, *expected = files(**change)
    with pytest.raises(InputError, match=message):
        evaluate(predictions, images, expected=expected[0] if expected else None)


@pytest.mark.parametrize(
    "change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n"), lambda text: text + "\n\n"]
)
def test_expected_answers_as_other_programs_write_them(files, change):
    """With a byte-order mark, Windows line endings, empty lines at the end."""
    predictions, images, expected = files(expected=answers())
    for path in (images, expected):
        path.write_bytes(change(path.read_text().replace("\r\n", "\n")).encode())
    assert evaluate(predictions, images, expected=expected).metrics["agreement"] == 1


def test_a_metric_that_is_named_twice_is_refused(files):
    predictions, images = files()
    with pytest.raises(InputError, match="returns 'accuracy', a name that is already in use"):
        evaluate(predictions, images, metrics=["accuracy", "accuracy"])


def test_a_limit_of_minus_zero_is_zero(files):
    predictions, images = files()
    assert evaluate(predictions, images, thresholds={"errors": {"min": -0.0, "max": -0.0}}).passed


def test_predictions_of_another_list_are_refused(files):
    predictions, images = files()
    images.write_text("path,label\nimages/0.jpg,ash\n")
    with pytest.raises(InputError, match=r"\(6 rows\) do not belong to the list .* \(1 rows\)"):
        evaluate(predictions, images)


def test_a_custom_metric_has_a_value_an_interval_and_a_threshold(files):
    mine = sys.modules["my_metrics"] = types.ModuleType("my_metrics")
    mine.share = lambda labels, probabilities, classes: {
        name: float((labels == i).mean()) for i, name in enumerate(classes)
    }
    mine.accuracy = lambda labels, probabilities, classes: 0.5
    mine.greedy = lambda labels, probabilities, classes: probabilities.sort() or 1.0
    predictions, images = files()
    result = evaluate(
        predictions, images, metrics=["accuracy", "my_metrics:share"], thresholds={"share_oak": {"min": 0.9}}
    )
    assert result.metrics["share_oak"] == 0.5
    assert "share_oak" in result.intervals
    assert str(result.thresholds[0]) == "share_oak: 0.5, below 0.9."
    with pytest.raises(InputError, match="'my_metrics:accuracy' returns 'accuracy', a name that is already in use"):
        evaluate(predictions, images, metrics=["accuracy", "my_metrics:accuracy"])
    with pytest.raises(InputError, match="'my_metrics:greedy' failed: ValueError: .*read-only"):
        evaluate(predictions, images, metrics=["my_metrics:greedy"])
    del sys.modules["my_metrics"]


def test_saving_keeps_the_other_files_of_the_folder(files, tmp_path):
    """It writes new files, because the old ones may be links to DVC's cache."""
    changed = LOGITS.copy()
    changed[3] = [1, 0, 2.5]
    predictions, images, expected = files(expected=answers(changed))
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "cache").write_text("old")
    os.link(tmp_path / "cache", out / "evaluation.json")
    result = evaluate(predictions, images, expected=expected, thresholds={"agreement": {"min": 1}})
    result.save(out, out / "metrics.json")
    assert (tmp_path / "cache").read_text() == "old"
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary["passed"] is False
    assert summary["thresholds"][0]["text"].startswith(
        "Images that get the expected answer (agreement): 0.833333, below 1: most often 'oak'"
    )
    assert json.loads((out / "metrics.json").read_text()) == summary["metrics"] == result.metrics
    assert [row["path"] for row in csv.DictReader((out / "disagreements.csv").open())] == ["images/3.jpg"]
    assert [row["class"] for row in csv.DictReader((out / "classes.csv").open())] == list(CLASSES)


def test_a_notebook_shows_the_metrics_and_the_thresholds(files):
    predictions, images = files()
    result = evaluate(predictions, images, thresholds={"errors": {"max": 1}, "accuracy": {"min": 2}})
    shown = result._repr_markdown_()
    assert shown.startswith("| metric | value | 95 % interval |\n|---|--:|--:|\n| images | 6 |  |\n")
    assert (
        "- ✓ Images that could not be read (errors): 0, at most 1." in shown
        and "- ✗ Images that get their label (accuracy): " in shown
    )
    assert repr(result) == "Evaluation(6 images, 1 of 2 thresholds missed)"


@pytest.mark.parametrize("name", ["recall", "top_3", "calibration_error", "agreement"])
def test_a_custom_metric_with_the_name_of_a_built_in_one_is_refused(files, monkeypatch, name):
    """Its value would appear at the top of the report."""
    module = types.ModuleType("named_metrics")
    setattr(module, name, lambda labels, probabilities, classes: 1.0)
    monkeypatch.setitem(sys.modules, "named_metrics", module)
    with pytest.raises(InputError, match=f"'named_metrics:{name}' returns '{name}', a name that is already in use"):
        evaluate(*files(), metrics=[f"named_metrics:{name}"])


def test_expected_answers_that_contradict_their_logits_are_refused(files):
    wrong = answers()
    wrong[3][1] = "ash"
    predictions, images, expected = files(expected=wrong)
    with pytest.raises(
        InputError, match="the class of 'images/2.jpg' is 'ash', but its largest logit is that of 'oak'"
    ):
        evaluate(predictions, images, expected=expected)


@pytest.mark.parametrize("column", [" class", "Class"])
def test_a_misspelled_column_class_is_named(files, column):
    predictions, images, expected = files(expected=[["path", column], ["images/0.jpg", "ash"]])
    with pytest.raises(InputError, match=f"has a column '{column}', which is not read"):
        evaluate(predictions, images, expected=expected)


def test_without_labels_and_expected_answers_nothing_is_judged_and_that_is_said(files):
    result = evaluate(*files(labels=None))
    assert result.passed is None and result.summary()["passed"] is None
    assert result.thresholds == () and "accuracy" not in result.metrics
    first, last = result.sentences()
    assert first == "There was nothing to compare with: no expected answers, and no labels."
    assert last.startswith("Not judged: images that get the expected answer, ")
    assert last.endswith("largest difference of a logit. There are no expected answers.")


def test_where_no_image_could_be_compared_nothing_is_judged(files):
    predictions, images, expected = files(labels=None, expected=answers(LOGITS[::-1]), notes=["Another crop."] * 6)
    result = evaluate(predictions, images, expected=expected)
    assert [one.name for one in result.thresholds] == ["not_compared"] and result.thresholds[0].passed
    assert result.metrics["compared"] == 0 and result.passed is None
    assert evaluate(predictions, images, expected=expected, thresholds={"errors": {"max": 0}}).passed is True
    assert (
        evaluate(predictions, images, expected=expected, thresholds={"known_differences": {"max": 0}}).passed is False
    )


def test_the_sentences_say_what_was_found_the_verdict_first(files):
    changed = LOGITS.copy()
    changed[3] = [1, 0, 2.5]
    predictions, images, expected = files(
        expected=answers(changed[:5], PATHS[:5]),
        errors=[None, "broken", None, None, None, None],
        notes=["it has another crop.", None, None, None, None, None],
        splits=["fit", "fit", "fit", "test", "test", "test"],
    )
    assert evaluate(predictions, images, expected=expected).sentences() == [
        "2 of 4 images get the expected answer; the logits differ by at most 1.5.",
        "4 of 5 images get their label (fit: 2 of 2, test: 2 of 3).",
        "1 image was not compared, because Transformers is known to prepare it differently: images/0.jpg. "
        "With --processor timm, every image gets timm's pixels.",
        "1 image has no expected answer.",
        "1 of 6 images could not be read.",
    ]


def test_equal_logits_are_said_to_be_equal(files):
    predictions, images, expected = files(labels=None, expected=answers())
    assert evaluate(predictions, images, expected=expected).sentences() == [
        "6 of 6 images get the expected answer; the logits are equal."
    ]


def test_expected_answers_without_logits_leave_one_default_threshold_out_for_that_reason(files):
    rows = [["path", "class"], *([path, CLASSES[row.argmax()]] for path, row in zip(PATHS, LOGITS, strict=True))]
    predictions, images, expected = files(expected=rows)
    result = evaluate(predictions, images, expected=expected)
    assert result.passed and [one.name for one in result.thresholds] == ["agreement", "not_compared"]
    assert result.sentences()[-1] == (
        "Not judged: largest difference of a logit. The expected answers have no logits."
    )


def test_an_image_without_a_split_has_a_summary_that_is_reported(files, tmp_path):
    result = evaluate(*files(splits=["fit", "", "fit", "test", "test", ""]))
    assert [one["split"] for one in result.summary()["splits"]] == ["fit", "", "test"]
