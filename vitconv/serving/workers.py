"""Threads that share one model, the queue in front of them, and the rule for what enters it.

What cannot be answered in time is refused at once, so that the client may ask elsewhere or later; what waited too long
is dropped before it is computed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vitconv.errors import InputError, VitconvError, shown
from vitconv.inference.machine import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.serving.classifier import Classifier

T = TypeVar("T")
#: The most threads by default. Each holds the largest image that is allowed, and the model's intermediate values.
MOST_THREADS = 8
#: The most threads and the longest time that may be asked for.
MOST_WORKERS, LONGEST = 1_000, 86_400.0
#: So much of the time that a client waits is planned: what a computation takes is an estimate, and the way to the
#: client and back takes time, too.
_PLANNED = 0.7


class BusyError(VitconvError):
    """There is no room, or the time is over. The same request may succeed later.

    Attributes:
        retry_after: in how many whole seconds, at least 1.
    """

    def __init__(self, problem: str, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(problem, f"Send it again in {self.retry_after} s.")


def default_count() -> int:
    """How many images are computed at once, by default: one on each core, and 8 at most."""
    return min(cores(), MOST_THREADS)


def check_limits(workers: int, timeout: float = LONGEST) -> None:
    """Raise :class:`InputError` unless there can be so many threads, and something may take so many seconds."""
    if type(workers) is not int or not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"The number of workers is {shown(workers)}.", f"Choose one from 1 to {MOST_WORKERS:,}.")
    if type(timeout) not in (int, float) or not 0 < timeout <= LONGEST:
        raise InputError(f"The timeout is {shown(timeout)}.", f"Choose seconds above 0, and {LONGEST:,.0f} at most.")


class Workers:
    """Threads that compute, and a bounded queue.

    Args:
        count: of the threads.
        queue: how many may wait.
        torch_threads: how many threads torch uses in each of them; ``None`` to leave that alone: see
            :func:`torch_threads`.
    """

    def __init__(self, count: int, queue: int, torch_threads: int | None = None) -> None:
        self.count, self.queue = count, queue
        self.waiting = 0
        self._begun: dict[int, float] = {}  # when each thread that computes has begun
        self._mean = self._deviation = 0.0  # seconds that a computation takes, as measured until now
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(count, "worker", _set_threads, (torch_threads,))

    @property
    def computing(self) -> int:
        """How many are computed now."""
        return len(self._begun)

    def check_room(self, seconds: float) -> None:
        """Raise :class:`BusyError` if something new would not be computed within so many seconds.

        What a free worker can begin at once is never refused: the measured times might be wrong.
        """
        with self._lock:
            if self.waiting + self.computing < self.count:
                return
            wait = self._wait()
            if self.waiting >= self.queue or wait + self._longest > _PLANNED * seconds:
                raise BusyError("The server is busy.", wait)

    def submit(self, work: Callable[[], T], seconds: float) -> Future[T]:
        """Compute something in a thread.

        Args:
            work: what to compute.
            seconds: within which it is to be done. The future fails with :class:`BusyError`, before it is computed, if
                it waits for so long that it would not.

        Raises:
            BusyError: see :meth:`check_room`.
        """
        self.check_room(seconds)
        return self.enqueue(work, seconds)

    def enqueue(self, work: Callable[[], T], seconds: float) -> Future[T]:
        """The same without the check, for the later images of a request that was let in."""
        with self._lock:
            self.waiting += 1
        try:
            future = self._threads.submit(self._run, work, time.monotonic(), seconds)
        except RuntimeError as error:
            with self._lock:
                self.waiting -= 1
            raise BusyError("The server is about to end.", 1) from error
        future.add_done_callback(self._forget_cancelled)
        return future

    def drain(self) -> None:
        """Compute what is in the queue, take nothing more, and end the threads."""
        self._threads.shutdown()

    def _wait(self) -> float:
        """In how many seconds something new would begin, where no thread is free.

        A slow model may have no time for a whole computation before another one, but has it for the rest of one that
        is nearly done: its threads would stand idle until the next request.
        """
        now = time.monotonic()
        rests = [max(0.0, begun + self._mean - now) for begun in self._begun.values()]
        rests += [0.0] * (self.count - len(rests))  # threads that are about to begin
        rounds, turn = divmod(self.waiting, self.count)
        return rounds * self._mean + sorted(rests)[turn]

    @property
    def _longest(self) -> float:
        """How long a computation may take, as TCP estimates when a packet is overdue (RFC 6298)."""
        return self._mean + 4 * self._deviation

    def _run(self, work: Callable[[], T], since: float, seconds: float) -> T:
        begun = time.monotonic()
        waited = begun - since
        with self._lock:
            self.waiting -= 1
            # A little is always waited. What began at once is never dropped for what the times say.
            needed = self._mean + 2 * self._deviation
            late = waited > seconds or (waited > seconds / 10 and waited + needed > seconds)
            if not late:
                self._begun[threading.get_ident()] = begun
        if late:
            raise BusyError(f"It would not have been answered within {seconds:g} s.", self._mean)
        try:
            done = work()
        except BaseException:
            with self._lock:
                del self._begun[threading.get_ident()]
            raise
        took = time.monotonic() - begun
        with self._lock:
            del self._begun[threading.get_ident()]
            if not self._mean:
                self._mean = took
            self._deviation += (abs(took - self._mean) - self._deviation) / 4
            self._mean += (took - self._mean) / 8
        return done

    def _forget_cancelled(self, future: Future[T]) -> None:
        if future.cancelled():
            with self._lock:
                self.waiting -= 1


def _set_threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)


def torch_threads(classifier: Classifier, workers: int, cores: int, image: bytes) -> int:
    """How many threads torch is to use in each worker: so many that each thread of all workers has a core.

    `vitconv predict` uses one thread on each core. The number may decide in which order a sum is added up, so it is
    tried on an image whether the logits stay the same bits; if they do not, it is as for `vitconv predict`.

    Args:
        classifier: what the workers share.
        workers: how many there are.
        cores: which they share.
        image: the content of an image file.
    """
    import torch

    usual, share = torch.get_num_threads(), max(1, cores // workers)
    pixels = classifier.prepare(image).values

    def logits(threads: int) -> NDArray[np.float32]:
        with ThreadPoolExecutor(1, initializer=_set_threads, initargs=(threads,)) as thread:
            return thread.submit(classifier.logits, pixels).result()

    try:
        same = logits(usual).tobytes() == logits(share).tobytes()
    finally:
        torch.set_num_threads(usual)
    return share if same else usual
