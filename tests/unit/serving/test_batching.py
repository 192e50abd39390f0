import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from vitconv.inference import open_model
from vitconv.serving import classifier as module
from vitconv.serving import open_classifier
from vitconv.serving.batching import BATCH, Batched


class Slow:
    """A Runtime that gives the pixels' sums, once it may; and says what it was called with."""

    info = SimpleNamespace(classes=("a",))

    def __init__(self):
        self.sizes, self.may, self.entered = [], threading.Event(), threading.Event()

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        self.entered.set()
        assert self.may.wait(10)
        if (pixels < 0).any():
            raise ValueError("negative")
        return pixels.reshape(len(pixels), -1).sum(1, keepdims=True)


def image(value, count=1):
    return np.full((count, 3, 2, 2), value, np.float32)


def together(slow, batched, first, *others):
    """Ask for one, and while it is computed, for the others; what each got."""

    def ask(pixels):
        try:
            return batched(pixels)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(1 + len(others)) as threads:
        futures = [threads.submit(ask, first)]
        assert slow.entered.wait(10)
        futures += [threads.submit(ask, other) for other in others]
        while len(batched._waiting) < len(others):
            pass
        slow.may.set()
        return [future.result(10) for future in futures]


def test_what_waits_is_computed_in_batches_and_everybody_gets_their_own():
    slow = Slow()
    batched = Batched(slow)
    assert batched.info is slow.info
    answers = together(slow, batched, *(image(value) for value in range(12)))
    assert slow.sizes == [1, BATCH, 3]
    assert [answer.tolist() for answer in answers] == [[[12.0 * value]] for value in range(12)]


def test_calls_of_several_images():
    slow = Slow()
    answers = together(slow, Batched(slow), image(1), image(2, 3), image(3), image(4, 2))
    assert slow.sizes == [1, 6]
    assert [answer.ravel().tolist() for answer in answers] == [[12], [24] * 3, [36], [48] * 2]


def test_who_finds_the_device_free_computes_until_its_own_is_done():
    slow, others = Slow(), [Future() for _ in range(BATCH + 1)]
    slow.may.set()
    batched = Batched(slow)
    batched._waiting.extend((image(value), future) for value, future in enumerate(others))
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(batched, image(20)).result(10).item() == 240
    assert slow.sizes == [BATCH, 2]
    assert [other.result(0).item() for other in others] == [12 * value for value in range(BATCH + 1)]


def test_nobody_waits_for_company():
    slow = Slow()
    slow.may.set()
    batched = Batched(slow)
    for value in range(3):
        assert batched(image(value)).item() == 12 * value
    assert slow.sizes == [1, 1, 1]


def test_an_error_is_that_of_all_in_the_batch_and_of_nobody_else():
    slow = Slow()
    batched = Batched(slow)
    first, *others = together(slow, batched, image(1), image(2), image(-1), image(3))
    assert first.item() == 12
    assert [str(other) for other in others] == ["negative"] * 3
    assert batched(image(5)).item() == 60


def test_the_rows_of_a_real_model(folder):
    """Within rounding of those of one image; which bits they are depends on the others in the batch."""
    runtime = open_model(folder, "cpu")
    batched = Batched(runtime)
    images = np.random.default_rng(0).normal(size=(32, 1, *runtime.info.input_shape)).astype(np.float32)
    with ThreadPoolExecutor(16) as threads:
        found = np.concatenate(list(threads.map(batched, images)))
    alone = np.concatenate([runtime(one) for one in images])
    assert np.abs(found - alone).max() <= 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize(
    ("device", "batched", "batches"), [("cpu", True, False), ("cuda:0", True, True), ("cuda:0", False, False)]
)
def test_only_a_gpu_computes_in_batches_and_only_if_asked(folder, monkeypatch, device, batched, batches):
    opened = open_model(folder, "cpu")
    monkeypatch.setattr(module, "opener", lambda info: lambda given: opened)
    assert isinstance(open_classifier(folder, device, batched=batched).runtime, Batched) == batches
