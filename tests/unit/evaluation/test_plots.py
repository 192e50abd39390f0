import dataclasses
import types
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vitconv.evaluation import plots
from vitconv.evaluation.evaluation import Evaluation
from vitconv.evaluation.outcomes import Outcomes
from vitconv.evaluation.thresholds import Threshold

DRAWERS = [plots.draw_logits, plots.draw_confusion, plots.draw_reliability, plots.draw_classes]


def make(count=40, classes=7, labels=True, expected=True, unreadable=()):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((count, classes)).astype(np.float32)
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    for i in unreadable:
        predicted[i], probabilities[i], logits[i] = -1, np.nan, np.nan
    truth = rng.integers(-1, classes, count)
    outcomes = Outcomes(
        tuple(f"class {i}" * (1 + i % 9) for i in range(classes)),
        Path("/nowhere"),
        tuple(f"{i}.png" for i in range(count)),
        tuple((f"{i}.png", "broken") for i in unreadable),
        predicted,
        probabilities,
        logits,
        truth if labels else None,
        truth if expected else None,
        rng.standard_normal((count, classes)) if expected else None,
        (None,) * count,
    )
    rows = [
        {
            "class": name,
            "images": i % 3,
            "precision": 0.5,
            "recall": None if i == 1 else 0.25,
            "f1": i / classes,
            "compared": i % 3,
            "agreeing": 0,
        }
        for i, name in enumerate(outcomes.classes)
    ]
    found = {"max_logit_difference": 1.5, "agreement": 0.5}
    found["compared"], found["labelled"] = int(outcomes.compared.sum()), int((truth >= 0).sum()) if labels else 0
    return Evaluation(outcomes, found, {}, (), (), pa.Table.from_pylist(rows), {})


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", [*DRAWERS, plots.draw_images], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"labels": False}, {"expected": False}, {"classes": 100}, {"unreadable": (0, 5)}, {"count": 5000}],
    ids=str,
)
def test_every_plot_fits_a_page_with_and_without_labels_and_expected_answers(draw, arguments):
    figure = draw(make(**arguments))
    width, height = figure.get_size_inches()
    assert 5 <= width <= 13 and height <= 14
    figure.savefig("/dev/null", format="png")


def said(figure):
    """All text in a figure."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize(
    "draw, words",
    [
        (plots.draw_logits, "There are no expected logits."),
        (plots.draw_confusion, "There are no labels and no expected answers."),
        (plots.draw_classes, "No class has an image with a label or an expected answer."),
        (plots.draw_reliability, "There are no labels, so there is no calibration."),
    ],
)
def test_a_picture_without_anything_to_draw_says_why(draw, words):
    figure = draw(make(labels=False, expected=False))
    assert said(figure) == [words]
    assert figure.get_size_inches()[1] < 1


def with_expected(evaluation, expected_logits, limit=None, **changes):
    """The evaluation against these logits, with a threshold."""
    expected = np.nan_to_num(expected_logits).argmax(axis=1)
    outcomes = dataclasses.replace(evaluation.outcomes, expected=expected, expected_logits=expected_logits, **changes)
    thresholds = () if limit is None else (Threshold("max_logit_difference", "max", limit, 0.0),)
    return dataclasses.replace(evaluation, outcomes=outcomes, thresholds=thresholds)


def residuals(axes):
    """The points of the plot of logits, whose lines also are zero and the limits."""
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    return points.get_ydata()


def test_equal_logits_lie_on_zero_and_are_said_to_be_equal():
    evaluation = make()
    figure = plots.draw_logits(with_expected(evaluation, evaluation.outcomes.logits.astype(float), 1e-4))
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "All 280 logits are equal: difference 0"
    assert not residuals(axes).any()
    assert "limit 0.0001" in said(figure)


def test_the_residual_of_a_logit_is_ours_minus_the_expected_one_and_the_limit_is_drawn():
    evaluation = make()
    expected = evaluation.outcomes.logits.astype(float)
    expected[3, 2] += 0.25  # ours is lower
    notes = ("known", *[None] * 39)
    expected[0, 0] -= 9  # of an image that is not compared
    (axes,) = plots.draw_logits(with_expected(evaluation, expected, 0.5, notes=notes)).axes
    assert axes.get_title(loc="left") == "273 logits; the largest difference is 0.25"
    assert residuals(axes).min() == pytest.approx(-0.25) and residuals(axes).max() == 0
    limits = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    assert limits == {-0.5, 0.5} and axes.get_ylim()[1] > 0.5 and axes.get_yscale() == "linear"


def test_the_limit_is_told_from_zero_beside_a_large_difference():
    evaluation = make(count=5000)
    expected = evaluation.outcomes.logits.astype(float)
    expected[3, 2] += 7
    (axes,) = plots.draw_logits(with_expected(evaluation, expected, 1e-4)).axes
    assert len(residuals(axes)) == 20_000
    assert residuals(axes).min() == pytest.approx(-7)  # the largest one is among the points that are drawn
    low, limit, high = axes.transData.transform([(0, 0), (0, 1e-4), (0, 7)])[:, 1]
    assert (limit - low) / (high - low) > 0.1


#: Of each, a formula that is none, several lines, what no font has, and no letter at all.
NAMES = (
    "$x^{$", "$a$", r"\$5 \frac{", "$" * 3, "a\nb\tc", "\x00\x07\x1b[31m", "name" * 5000, "one two " * 5000, "屋根 🏠 ‮abc", "", " ",
    "_hidden", "__", "%s %(x)s", "{0}", "<b>&amp;</b>", "a\ud800",
)  # fmt: skip


@pytest.mark.parametrize("draw", [*DRAWERS, plots.draw_images])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_drawn_as_they_are(draw, labels):
    evaluation = make(classes=len(NAMES), labels=labels)
    outcomes = dataclasses.replace(evaluation.outcomes, classes=NAMES)
    rows = [
        row | {"class": name, "images": 1, "compared": 1}
        for row, name in zip(evaluation.per_class.to_pylist(), NAMES, strict=True)
    ]
    table = types.SimpleNamespace(to_pylist=lambda: rows)  # pyarrow has no lone surrogates
    figure = draw(dataclasses.replace(evaluation, outcomes=outcomes, per_class=table))
    figure.savefig("/dev/null", format="png")
    texts = [text for text in figure.findobj(matplotlib.text.Text) if "$" in text.get_text()]
    assert not any(text.get_parse_math() for text in texts)
    width, height = figure.get_size_inches()
    assert width < 20 and height < 20


def test_names_are_shortened_and_printable_in_plots():
    assert [plots.plain(name) for name in NAMES[:9]] == [
        "$x^{$", "$a$", r"\$5 \frac{", "$$$", "a b c", "\ufffd\ufffd\ufffd[31m", "namenamenamenamenamenam…", "one two one two one two…", "屋根 🏠 \ufffdabc",
    ]  # fmt: skip


def test_missing_glyphs_and_invalid_paths_are_not_errors(tmp_path):
    """Also if Python turns warnings into errors, and if a path in the list is not a valid path."""
    evaluation = make()
    outcomes = dataclasses.replace(
        evaluation.outcomes, classes=("屋根",) * 7, paths=("a\0b", "a" * 5000, "", *["~"] * 37)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = plots.save_pictures(dataclasses.replace(evaluation, outcomes=outcomes), tmp_path)
    assert len(files) == 5


def test_the_confusion_matrix_counts_predictions():
    evaluation = make()
    (axes,) = plots.draw_confusion(evaluation).axes
    outcomes = evaluation.outcomes
    shown = {(text.get_position()[1], text.get_position()[0]): int(text.get_text()) for text in axes.texts}
    for (truth, answer), count in shown.items():
        assert count == ((outcomes.labels == truth) & (outcomes.predicted == answer)).sum()
    assert sum(shown.values()) == (outcomes.labels >= 0).sum()


def test_the_worst_classes_come_first():
    (axes,) = plots.draw_classes(make(classes=100)).axes
    assert axes.get_title(loc="left") == "The 30 worst classes"
    first = [label.get_text() for label in axes.get_yticklabels()][0]
    assert first.startswith("class 1")  # the first of those that have images


@pytest.mark.parametrize("wrong", [0, 3, 20])
def test_images_that_disagree_come_first_then_the_least_certain(tmp_path, wrong):
    evaluation = make(unreadable=(2,), labels=False)
    outcomes = dataclasses.replace(evaluation.outcomes, folder=tmp_path)
    for i in range(len(outcomes.paths)):
        if i != 1:  # which is missing
            Image.new("L", (8, 8)).save(tmp_path / outcomes.paths[i])
    expected = outcomes.predicted.copy()
    expected[2] = -1
    changed = [i for i in range(wrong + 1) if i != 2][:wrong]
    expected[changed] = (expected[changed] + 1) % 7
    outcomes = dataclasses.replace(outcomes, expected=expected)
    found = evaluation.metrics | {"compared": 39}
    figure = plots.draw_images(dataclasses.replace(evaluation, outcomes=outcomes, metrics=found))
    titles = [axes.get_title() for axes in figure.axes]
    heading = figure.get_suptitle().splitlines()
    assert heading[0] == f"{39 - wrong} of 39 images get the expected answer"
    assert sum("expected:" in title and "✗" in title for title in titles) == min(wrong, 12)
    assert [axes.spines["left"].get_visible() for axes in figure.axes] == [i < wrong for i in range(12)]
    if wrong:
        assert [title.splitlines()[0] for title in titles][: min(wrong, 2)] == ["0.png", "1.png"]
        assert "not readable" in said(figure)  # the missing one
    least = np.nanmin(outcomes.probabilities.max(axis=1))
    if wrong < 12:
        assert f"{least:.0%}" in titles[wrong]
    assert (
        heading[1]
        == {
            0: "Shown: the images with the lowest probability",
            3: "Shown: the mistakes, then the images with the lowest probability",
            20: "Shown: the first 12 of 20 mistakes",
        }[wrong]
    )


def test_images_with_another_label_are_framed_and_counted(tmp_path):
    evaluation = make(count=5, expected=False)
    truth = evaluation.outcomes.predicted.copy()
    truth[4] = (truth[4] + 1) % 7
    paths = tuple(f"a/long/way/to/{'x' * 30}-{i}.png" for i in range(5))
    outcomes = dataclasses.replace(evaluation.outcomes, labels=truth, paths=paths)
    found = evaluation.metrics | {"labelled": 5}
    figure = plots.draw_images(dataclasses.replace(evaluation, outcomes=outcomes, metrics=found))
    assert figure.get_suptitle().startswith("4 of 5 images get their label\n")
    first, *others = [axes for axes in figure.axes if axes.get_title()]
    name, answer, true = first.get_title().splitlines()
    assert name == f"…{'x' * 17}-4.png" and answer.startswith("✗ ")
    assert true == f"true: {plots.plain(outcomes.name(truth[4]), 20)}"
    assert first.spines["top"].get_visible() and first.spines["top"].get_edgecolor()[:3] == matplotlib.colors.to_rgb(
        plots.RED
    )
    assert not any(axes.spines["top"].get_visible() for axes in others) and len(others) == 4


def test_images_that_were_not_compared_are_in_no_matrix_and_say_so(tmp_path):
    evaluation = make(count=9, labels=False)
    notes = (*[None] * 8, "Transformers blends transparency with white, timm drops it.")
    outcomes = dataclasses.replace(evaluation.outcomes, notes=notes, folder=tmp_path)
    evaluation = dataclasses.replace(evaluation, outcomes=outcomes)
    (axes,) = plots.draw_confusion(evaluation).axes
    assert " of 8 images get their expected class" in axes.get_title(loc="left")
    figure = plots.draw_images(evaluation)
    assert [axes.get_title().splitlines()[-1] for axes in figure.axes].count("not compared") == 1
    assert figure.get_suptitle().endswith("Shown: the mistakes, then the rest")


def test_transparency_is_seen_on_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    white, red = plots._on_white(picture).get_flattened_data()
    assert (white, red) == ((255, 255, 255), (255, 0, 0))
    assert plots._on_white(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_no_probability_is_rounded_to_certainty():
    assert [plots._percent(one) for one in (0.5, 0.994, 0.9951, 0.99999, 1.0)] == [
        "50%",
        "99%",
        ">99%",
        ">99%",
        "100%",
    ]


def test_mistakes_are_framed_in_the_confusion_matrix():
    evaluation = make(expected=False)
    (axes,) = plots.draw_confusion(evaluation).axes
    outcomes = evaluation.outcomes
    wrong = {
        (truth, answer)
        for truth, answer in zip(outcomes.labels, outcomes.predicted, strict=True)
        if truth >= 0 and truth != answer
    }
    framed = {(round(patch.get_y() + 0.46), round(patch.get_x() + 0.46)) for patch in axes.patches}
    assert framed == wrong and wrong


def test_pictures_have_one_style_that_does_not_leak(tmp_path):
    before = matplotlib.rcParams["axes.spines.right"], matplotlib.rcParams["savefig.dpi"]
    files = plots.save_pictures(make(), tmp_path)
    assert (matplotlib.rcParams["axes.spines.right"], matplotlib.rcParams["savefig.dpi"]) == before
    widths = {Image.open(file).width for file in files}
    assert widths == {832}  # 5.2 inches of 160 dots: as wide as a page's column, and sharp on a phone


def test_a_confusion_matrix_of_very_many_classes_shows_the_most_confused():
    """A matrix of all classes of ImageNet-21k would take 8 GiB."""
    evaluation = make(classes=21_843)
    outcomes = evaluation.outcomes
    figure = plots.draw_confusion(evaluation)
    (axes,) = figure.axes
    assert axes.images[0].get_array().shape == (200, 200)
    right, known = (outcomes.predicted == outcomes.labels).sum(), (outcomes.labels >= 0).sum()
    assert axes.get_title(loc="left") == (
        f"{right} of {known} images get their label\nThe 200 most often confused of 21,843 classes"
    )


def test_the_most_confused_classes_have_the_most_mistakes():
    truth, predicted = np.arange(300), np.arange(300)
    predicted[250:260] = 299
    shown = plots._most_confused(truth, predicted, 300)
    assert {*range(250, 260), 299} <= set(shown) and len(shown) == 200
