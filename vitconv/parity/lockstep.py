"""Run several forward passes in step: each stops at every stage until all have reached it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: A computation that calls its argument with (name, value) at each stage and returns the last value.
Staged = Callable[[Callable[[str, Any], None]], Any]


def in_step(computations: Sequence[Staged]) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield the names and values that the computations have at their first stage, their second, … and their end.

    One computes at a time, and no more than one stage of each is held. The name of the end is ``"output"``. An
    exception in one is raised here, and all others are stopped.
    """
    walkers = [_Walker(computation) for computation in computations]
    try:
        while True:
            names, values = zip(*[walker.advance() for walker in walkers], strict=True)
            yield list(names), list(values)
            del values
            if "output" in names:
                return
    finally:
        for walker in walkers:
            walker.stop()


class _Stopped(BaseException):
    """Unwinds a computation that nobody waits for any more."""


class _Walker(threading.Thread):
    """A computation in a thread of its own, because an ordinary ``forward`` cannot be left and entered again."""

    def __init__(self, computation: Staged) -> None:
        super().__init__(daemon=True)
        self._computation = computation
        self._permits = threading.Semaphore(0)
        self._reached: queue.SimpleQueue[tuple[str | None, Any]] = queue.SimpleQueue()
        self._stopping = False
        self.start()

    def run(self) -> None:
        try:
            self._wait()
            self._reached.put(("output", self._computation(self._arrive)))
        except _Stopped:
            pass
        except BaseException as error:
            self._reached.put((None, error))

    def _arrive(self, name: str, value: Any) -> None:
        self._reached.put((name, value))
        del value
        self._wait()

    def _wait(self) -> None:
        self._permits.acquire()
        if self._stopping:
            raise _Stopped

    def advance(self) -> tuple[str, Any]:
        """Compute up to the next stage."""
        self._permits.release()
        name, value = self._reached.get()
        if name is None:
            raise value
        return name, value

    def stop(self) -> None:
        """End the thread wherever it is."""
        self._stopping = True
        self._permits.release()
        self.join()
