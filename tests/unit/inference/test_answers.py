import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitconv.errors import ParityError
from vitconv.inference.answers import NOT_CALIBRATED, answer
from vitconv.inference.certainty import LEVELS, Certainty, Oddness
from vitconv.inference.predictions import make_rows

CLASSES = ("ash", "beech", "cedar")


ODDNESS = Oddness("mahalanobis-logits", 9.0, np.eye(3) * 5 @ (np.eye(3) + 0.25), np.eye(3) + 0.25, LEVELS * 9)
CERTAINTY = Certainty(0.5, 0.9, 0.2, ODDNESS)


def judged(logits):
    return CERTAINTY.judge(logits, np.empty((len(logits), 0)))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), st.sampled_from([None, judged]))
def test_an_answer_is_what_a_list_of_predictions_says(values, judge):
    logits = np.array(values, np.float32)
    (row,) = make_rows(0, ["a.png"], logits[None], [None], CLASSES, ["known"], judge).to_pylist()
    found = answer(logits, CLASSES, "known", judge and judge(logits[None])).to_dict()
    assert found == {name: row[name] for name in found}
    assert set(row) - set(found) == {"row", "path", "error"}


def test_what_is_said_of_a_model_that_is_not_calibrated():
    found = answer(np.array([1, 2, 3], np.float32), CLASSES)
    assert (found.calibrated_probability, found.prediction_set, found.reliable) == (None, None, None)
    assert found.why_not == NOT_CALIBRATED


def test_a_calibrated_answer():
    sure, undecided = np.array([[5, 0.5, 0], [5, 5, 0]], np.float32)
    known, plain = answer(sure, CLASSES, judgement=judged(sure[None])), answer(sure, CLASSES)
    assert known.reliable is True and known.why_not is None and known.prediction_set == ("ash",)
    assert known.calibrated_probability > known.probability == plain.probability  # the temperature is below 1
    two = answer(undecided, CLASSES, judgement=judged(undecided[None]))
    assert two.reliable is False and two.prediction_set == ("ash", "beech")
    assert two.why_not.endswith("2 classes are likely: ash, beech.")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_answer(value):
    with pytest.raises(ParityError, match="logits of the image are not finite"):
        answer(np.array([0, value, 1], np.float32), CLASSES)
