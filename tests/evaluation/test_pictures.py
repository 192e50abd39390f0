import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vitconv.evaluation import pictures
from vitconv.evaluation.answers import Answers
from vitconv.evaluation.evaluate import Evaluation

DRAWERS = [pictures.draw_logits, pictures.draw_confusion, pictures.draw_reliability, pictures.draw_classes]


def make(count=40, classes=7, labels=True, expected=True, unreadable=()):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((count, classes)).astype(np.float32)
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    for i in unreadable:
        predicted[i], probabilities[i], logits[i] = -1, np.nan, np.nan
    truth = rng.integers(-1, classes, count)
    answers = Answers(
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
        for i, name in enumerate(answers.classes)
    ]
    figures = {"max_logit_difference": 1.5, "agreement": 0.5}
    return Evaluation(answers, figures, {}, (), pa.Table.from_pylist(rows))


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
def test_every_picture_of_whatever_there_is(draw, arguments):
    figure = draw(make(**arguments))
    assert figure.axes
    figure.savefig("/dev/null", format="png")


def test_the_confusion_matrix_counts_what_was_answered():
    evaluation = make()
    (axes,) = pictures.draw_confusion(evaluation).axes
    answers = evaluation.answers
    shown = {(text.get_position()[1], text.get_position()[0]): int(text.get_text()) for text in axes.texts}
    for (truth, answer), count in shown.items():
        assert count == ((answers.labels == truth) & (answers.predicted == answer)).sum()
    assert sum(shown.values()) == (answers.labels >= 0).sum()


def test_the_worst_classes_come_first():
    (axes,) = pictures.draw_classes(make(classes=100)).axes
    assert axes.get_title() == "The 30 worst classes"
    first = [label.get_text() for label in axes.get_yticklabels()][0]
    assert first.startswith("class 1")  # the first of those that have images


@pytest.mark.parametrize("wrong", [0, 3, 20])
def test_the_images_that_disagree_are_shown_or_the_least_certain(tmp_path, wrong):
    evaluation = make(unreadable=(2,))
    answers = evaluation.answers
    for i in range(len(answers.paths)):
        if i != 1:  # which is missing
            Image.new("L", (8, 8)).save(tmp_path / answers.paths[i])
    expected = answers.predicted.copy()
    expected[:wrong] = (expected[:wrong] + 1) % 7
    evaluation = dataclasses.replace(evaluation, answers=dataclasses.replace(answers, expected=expected))
    figure = pictures.draw_images(evaluation, tmp_path)
    titles = [axes.get_title() for axes in figure.axes]
    if wrong:
        assert figure.get_suptitle() == f"{wrong} images disagree"
        assert sum("expected:" in title for title in titles) == min(wrong, 12)
    else:
        assert figure.get_suptitle() == "No image disagrees; the least certain are"
        assert not any("expected:" in title for title in titles)
        least = np.nanmin(answers.probabilities.max(axis=1))
        assert f"{least:.0%}" in titles[0]
