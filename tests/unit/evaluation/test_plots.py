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
        tuple(f"{i}.png" for i in range(count)),
        tuple((f"{i}.png", "broken") for i in unreadable),
        predicted,
        probabilities,
        logits,
        truth if labels else None,
        truth if expected else None,
        rng.standard_normal((count, classes)) if expected else None,
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
    figures = {"max_logit_difference": 1.5, "agreement": 0.5}
    return Evaluation(outcomes, figures, {}, (), pa.Table.from_pylist(rows))


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", DRAWERS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"labels": False}, {"expected": False}, {"classes": 100}, {"unreadable": (0, 5)}, {"count": 5000}],
    ids=str,
)
def test_every_plot_with_and_without_labels_and_expected_answers(draw, arguments):
    figure = draw(make(**arguments))
    assert figure.axes
    figure.savefig("/dev/null", format="png")


#: Of each, a formula that is none, several lines, what no font has, and no letter at all.
NAMES = (
    "$x^{$", "$a$", r"\$5 \frac{", "$" * 3, "a\nb\tc", "\x00\x07\x1b[31m", "name" * 5000, "one two " * 5000, "屋根 🏠 ‮abc", "", " ",
    "_hidden", "__", "%s %(x)s", "{0}", "<b>&amp;</b>", "a\ud800",
)  # fmt: skip


@pytest.mark.parametrize("draw", [*DRAWERS, lambda it: plots.draw_images(it, Path("/nowhere"))])
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
        files = plots.save_pictures(
            dataclasses.replace(evaluation, outcomes=outcomes), tmp_path / "list.csv", tmp_path
        )
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
    assert axes.get_title() == "The 30 worst classes"
    first = [label.get_text() for label in axes.get_yticklabels()][0]
    assert first.startswith("class 1")  # the first of those that have images


@pytest.mark.parametrize("wrong", [0, 3, 20])
def test_images_that_disagree_or_have_the_lowest_confidence_are_shown(tmp_path, wrong):
    evaluation = make(unreadable=(2,))
    outcomes = evaluation.outcomes
    for i in range(len(outcomes.paths)):
        if i != 1:  # which is missing
            Image.new("L", (8, 8)).save(tmp_path / outcomes.paths[i])
    expected = outcomes.predicted.copy()
    expected[:wrong] = (expected[:wrong] + 1) % 7
    evaluation = dataclasses.replace(evaluation, outcomes=dataclasses.replace(outcomes, expected=expected))
    figure = plots.draw_images(evaluation, tmp_path)
    titles = [axes.get_title() for axes in figure.axes]
    if wrong:
        assert figure.get_suptitle() == f"Images that disagree: {wrong}"
        assert sum("expected:" in title for title in titles) == min(wrong, 12)
    else:
        assert figure.get_suptitle() == "No image disagrees. Images with the lowest confidence:"
        assert not any("expected:" in title for title in titles)
        least = np.nanmin(outcomes.probabilities.max(axis=1))
        assert f"{least:.0%}" in titles[0]


def test_a_confusion_matrix_of_very_many_classes_shows_the_most_confused():
    """A matrix of all classes of ImageNet-21k would take 8 GiB."""
    evaluation = make(classes=21_843)
    outcomes = evaluation.outcomes
    figure = plots.draw_confusion(evaluation)
    (axes,) = figure.axes
    assert axes.images[0].get_array().shape == (200, 200)
    right, known = (outcomes.predicted == outcomes.labels).sum(), (outcomes.labels >= 0).sum()
    assert axes.get_title() == (f"{right} of {known} on the diagonal\nThe 200 most often confused of 21,843 classes")


def test_the_most_confused_classes_have_the_most_mistakes():
    truth, predicted = np.arange(300), np.arange(300)
    predicted[250:260] = 299
    shown = plots._most_confused(truth, predicted, 300)
    assert {*range(250, 260), 299} <= set(shown) and len(shown) == 200
