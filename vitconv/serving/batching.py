"""Calls of a model that come at the same time, computed as one: for GPUs, which one image leaves mostly idle."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitconv.inference.runtime import ModelInfo, Runtime

#: The most calls that are computed as one.
BATCH = 8


class Batched:
    """A Runtime that threads share, which computes in one batch what came while it was busy.

    Nothing waits for others to come: the thread that finds the device free takes along what waits by then. In a batch,
    the last bits of an image's logits depend on the other images, as for `vitconv predict --batch-size 8`.

    Args:
        runtime: what computes.
        most: how many calls are computed as one.

    Attributes:
        info: that of the runtime.
    """

    info: ModelInfo

    def __init__(self, runtime: Runtime, most: int = BATCH) -> None:
        self.info = runtime.info
        self._runtime, self._most = runtime, most
        self._device = threading.Lock()
        self._waiting: deque[tuple[NDArray[np.float32], Future[NDArray[np.float32]]]] = deque()

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch: see :class:`~vitconv.inference.runtime.Runtime`."""
        mine: Future[NDArray[np.float32]] = Future()
        self._waiting.append((pixels, mine))
        with self._device:
            while not mine.done():  # another thread may have taken it along; more than a batch may wait before it
                self._compute([self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))])
        return mine.result()

    def _compute(self, batch: list[tuple[NDArray[np.float32], Future[NDArray[np.float32]]]]) -> None:
        parts, futures = zip(*batch, strict=True)
        try:
            logits = self._runtime(np.concatenate(parts))
        except BaseException as error:
            for future in futures:
                future.set_exception(error)
            return
        ends = np.cumsum([len(part) for part in parts])[:-1]
        for future, rows in zip(futures, np.split(logits, ends), strict=True):
            future.set_result(rows)
