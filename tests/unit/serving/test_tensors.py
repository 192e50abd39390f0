import numpy as np
import pytest

from vitconv.errors import ParityError
from vitconv.inference.answers import softmax
from vitconv.inference.appearance import describe
from vitconv.inference.certainty import LEVELS, Certainty, Oddness, judge
from vitconv.inference.runtime import read_info
from vitconv.serving.tensors import Model, Tensor, answers, models

CERTAINTY = Certainty(0.5, 0.9, 0.2, Oddness("max-logit", -0.5, np.empty((0, 0)), np.empty((0, 0)), -9 + 9 * LEVELS))
LOGITS = np.array([[1, 3, 2.9, 0, 0], [0, 9, 0, 0, 0], [0, 0.1, 0, 0, 0]], np.float32)

PIXELS = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_models_of_a_folder(folder, calibrated):
    image, pixels = Tensor("image", "UINT8", (-1,)), Tensor("pixels", "FP32", (1, 3, 32, 32))
    answer = (Tensor("logits", "FP32", (1, 5)), Tensor("probabilities", "FP64", (1, 5)))
    if calibrated:
        answer += (Tensor("calibrated_probabilities", "FP64", (1, 5)), Tensor("prediction_set", "UINT8", (1, 5)))
        answer += (Tensor("reliable", "UINT8", (1, 1)), Tensor("unlike", "UINT8", (1, 1)))
    assert models(read_info(folder), calibrated=calibrated) == {
        "vit": Model("vit", (image,), answer),
        "preprocess": Model("preprocess", (image,), (pixels,)),
        "model": Model("model", (pixels,), answer),
    }


@pytest.mark.parametrize("certainty", [None, CERTAINTY])
def test_the_values_have_the_shapes_and_types_that_are_listed(folder, certainty):
    listed = models(read_info(folder), calibrated=certainty is not None)["vit"].outputs
    types = {"FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}
    for logits in LOGITS[:, None]:
        found = answers(logits, judge(certainty, logits, PIXELS[:1]))
        assert list(found) == [one.name for one in listed]
        assert all(
            found[one.name].shape == one.shape and found[one.name].dtype == types[one.datatype] for one in listed
        )
        assert found["logits"] is logits and np.array_equal(found["probabilities"], softmax(logits))


def test_how_certain_answers_are():
    found = answers(LOGITS, judge(CERTAINTY, LOGITS, PIXELS))
    judged = CERTAINTY.judge(LOGITS, describe(PIXELS))
    assert np.array_equal(found["prediction_set"], judged.sets)
    assert found["reliable"].tolist() == [[0], [1], [0]] and found["unlike"].tolist() == [[0], [0], [1]]
    assert np.array_equal(found["calibrated_probabilities"], judged.probabilities)


def test_logits_that_are_not_finite_are_no_answer():
    with pytest.raises(ParityError, match="not finite"):
        answers(np.array([[1, np.nan]], np.float32), None)
