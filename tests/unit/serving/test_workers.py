import threading
import time
from dataclasses import replace

import pytest
import torch

from vitconv.inference.machine import cores
from vitconv.serving import open_classifier
from vitconv.serving.probe import sample_file
from vitconv.serving.workers import BusyError, Workers, default_count, torch_threads


@pytest.fixture
def workers():
    made = Workers(1, queue=2)
    yield made
    made.drain()


class Held:
    """Work that goes on until it is let go."""

    def __init__(self):
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.end.wait(30)
        return "done"


@pytest.fixture
def held(workers):
    """The only worker is busy with this."""
    work = Held()
    future = workers.submit(work, 30)
    assert work.begun.wait(30)
    yield work
    work.end.set()
    future.result(30)


def test_work_is_done_in_turn(workers):
    done = []
    for future in [workers.enqueue(lambda n=n: done.append(n), 30) for n in range(20)]:
        future.result(30)
    assert done == list(range(20))
    assert (workers.waiting, workers.computing) == (0, 0)


def test_a_full_queue_refuses(workers, held):
    waiting = [workers.submit(lambda: 1, 30) for _ in range(2)]
    assert (workers.waiting, workers.computing) == (2, 1)
    with pytest.raises(BusyError, match=r"busy\.\nSend it again in 1 s") as refused:
        workers.submit(lambda: 1, 30)
    assert refused.value.retry_after == 1
    held.end.set()
    assert [future.result(30) for future in waiting] == [1, 1]
    assert workers.submit(lambda: 2, 30).result(30) == 2


def test_what_would_take_too_long_is_refused_at_once(workers):
    workers.submit(lambda: time.sleep(0.2), 30).result(30)  # so long does it take
    work = Held()
    first = workers.submit(work, 0.1)  # a free worker begins, whatever the times say
    assert work.begun.wait(30)
    with pytest.raises(BusyError):
        workers.submit(lambda: 1, 0.3)  # it would wait 0.2 s, and take 0.2 s
    later = workers.submit(lambda: 1, 30)
    work.end.set()
    assert (first.result(30), later.result(30)) == ("done", 1)


def test_what_is_nearly_done_makes_room_for_the_next(workers, held):
    workers._mean = 60
    with pytest.raises(BusyError):
        workers.submit(lambda: 1, 100)  # 60 s of waiting and 60 s of computing
    workers._begun = {thread: begun - 55 for thread, begun in workers._begun.items()}
    later = workers.submit(lambda: 1, 100)  # the rest of the first, and 60 s
    with pytest.raises(BusyError):
        workers.submit(lambda: 1, 100)  # it would wait for that one, too
    held.end.set()
    assert later.result(30) == 1


def test_some_of_the_time_is_left_for_what_the_estimate_does_not_know(workers, held):
    workers._mean = 20
    with pytest.raises(BusyError):
        workers.submit(lambda: 1, 48)  # 20 s of waiting and 20 s of computing are more than is planned of it
    later = workers.submit(lambda: 1, 70)
    held.end.set()
    assert later.result(30) == 1


def test_what_has_waited_too_long_is_dropped_before_it_is_computed(workers, held):
    computed = []
    late = workers.submit(lambda: computed.append("late"), 0.05)
    in_time = workers.submit(lambda: computed.append("in time"), 30)
    time.sleep(0.1)
    held.end.set()
    with pytest.raises(BusyError, match=r"within 0\.05 s"):
        late.result(30)
    in_time.result(30)
    assert computed == ["in time"]
    assert (workers.waiting, workers.computing) == (0, 0)


def test_what_is_cancelled_leaves_the_queue(workers, held):
    future = workers.submit(lambda: 1, 30)
    assert future.cancel()
    assert workers.waiting == 0


def test_work_that_fails_leaves_the_worker_free(workers):
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            workers.submit(lambda: 1 / 0, 30).result(30)
    assert (workers.waiting, workers.computing) == (0, 0)


def test_draining_computes_what_waits(workers, held):
    waiting = workers.submit(lambda: 1, 30)
    held.end.set()
    workers.drain()
    assert waiting.result(0) == 1
    with pytest.raises(BusyError, match="about to end"):
        workers.submit(lambda: 1, 30)
    assert workers.waiting == 0


def test_retry_after_is_in_whole_seconds():
    assert [BusyError("Busy.", seconds).retry_after for seconds in (0, 0.2, 1, 1.1)] == [1, 1, 1, 2]


def test_each_worker_has_its_share_of_the_cores(folder):
    classifier, usual = open_classifier(folder, "cpu"), torch.get_num_threads()
    for count in (1, 2, 64):
        assert torch_threads(classifier, count, 2, sample_file()) == max(1, 2 // count)
        assert torch.get_num_threads() == usual
    made = Workers(1, 1, torch_threads=3)
    assert made.submit(torch.get_num_threads, 30).result(30) == 3
    made.drain()
    torch.set_num_threads(usual)
    assert 1 <= default_count() <= min(8, cores())


def test_threads_that_change_the_bits_are_not_taken(folder):
    classifier, usual = open_classifier(folder, "cpu"), torch.get_num_threads()

    class Sensitive:
        info = classifier.info

        def __call__(self, pixels):
            return classifier.runtime(pixels) + (torch.get_num_threads() == 5) * 2e-7

    assert torch_threads(replace(classifier, runtime=Sensitive()), 1, 5, sample_file()) == usual
