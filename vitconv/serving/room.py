"""How much is decoded at once: threads wait for room where images are large."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vitconv.architecture import MOST_PIXELS


class Room:
    """Room for as many pixels as the largest image has.

    Reading and preparing an image takes up to 31 bytes a pixel. Without a limit for all of them together, each worker
    could hold an image of the largest kind.

    Args:
        most: pixels of all images that are prepared at the same time.
    """

    def __init__(self, most: int = MOST_PIXELS) -> None:
        self._most, self._taken = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, and hold it."""
        pixels = min(pixels, self._most)  # what is larger is refused when it is read
        with self._changed:
            self._changed.wait_for(lambda: self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()
