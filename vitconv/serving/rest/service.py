"""What the REST endpoints share: the model, the workers, the limits, and how a request gets through them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request

from vitconv import __version__
from vitconv.errors import InputError, VitconvError
from vitconv.serving.metrics import FAILED, UNREADABLE
from vitconv.serving.probe import sample_file
from vitconv.serving.rest.bodies import Bodies, Body
from vitconv.serving.rest.errors import RequestError, without_memory
from vitconv.serving.rest.metrics import Metrics
from vitconv.serving.workers import BusyError, Workers

if TYPE_CHECKING:
    from vitconv.inference.answers import Answer
    from vitconv.serving.classifier import Classifier
    from vitconv.serving.rest.settings import Settings

T = TypeVar("T")
TIMEOUT = "X-Request-Timeout-Ms"
#: For so many seconds, an image that was answered shows that the server is ready.
_FRESH = 5.0


class Service:
    """A model behind its workers.

    Attributes:
        classifier: the model.
        workers: what runs it.
        settings: what is allowed.
        bodies: reads requests.
        metrics: what is counted.
    """

    def __init__(self, classifier: Classifier, workers: Workers, settings: Settings) -> None:
        self.classifier, self.workers, self.settings = classifier, workers, settings
        self.bodies = Bodies(settings)
        self.metrics = Metrics(self, __version__)
        self._sample = sample_file()
        self._answered = float("-inf")
        self._probing: asyncio.Future[Answer] | None = None

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[tuple[Body, float]]:
        """The body of a request that has room, and the seconds within which it wants its answer.

        Raises:
            RequestError, BusyError: see :meth:`Bodies.read` and :meth:`Workers.check_room`.
        """
        seconds = self._seconds(request)
        self.workers.check_room(seconds)  # before its body takes time
        async with self.bodies.read(request) as body:
            yield body, seconds

    @contextmanager
    def counting(self) -> Iterator[Callable[[Answer], None]]:
        """Count an image: in the block it becomes an answer, for which the block calls what it is given, or an error.

        A request that is none has no image. What the server refuses before it reads the body is not counted, either:
        nobody knows how many images it would have been.
        """
        try:
            yield self.metrics.count_answer
        except RequestError:
            raise
        except Exception as error:
            self.metrics.count_failure(UNREADABLE if isinstance(error, InputError) else FAILED)
            raise

    async def run(self, work: Callable[[], T], seconds: float, *, let_in: bool = False, answers: bool = True) -> T:
        """Compute something in a worker.

        Args:
            work: what to compute.
            seconds: within which it must be done.
            let_in: it belongs to a request of which something was computed already.
            answers: it runs the model, so that its success shows that the server is ready.

        Raises:
            BusyError: it would not be done in time, or there is no memory for it.
        """
        submit = self.workers.enqueue if let_in else self.workers.submit
        try:
            done = await asyncio.wrap_future(submit(work, seconds))
        except VitconvError:
            raise
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
                raise without_memory() from error
            raise
        if answers:
            self._answered = time.monotonic()
        return done

    async def check_ready(self) -> None:
        """Raise an error unless an image can be answered.

        Under load the requests themselves show that. Else the sample image is: whoever asks meanwhile waits for it,
        too, so that asking for this often costs nothing.
        """
        if time.monotonic() - self._answered < _FRESH:
            return
        if self._probing is None or self._probing.done():
            work = self.run(lambda: self.classifier(self._sample), self.settings.timeout, let_in=True)
            self._probing = asyncio.ensure_future(work)
            # Whoever asked may have gone: an error that nobody takes would be logged with its traceback.
            self._probing.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self.settings.timeout):
                await asyncio.shield(self._probing)
        except TimeoutError as error:
            raise BusyError(f"No image was answered within {self.settings.timeout:g} s.", 1) from error

    def _seconds(self, request: Request) -> float:
        """How long the client waits for each image, if it says so and that is less than the server's own limit."""
        stated = request.headers.get(TIMEOUT)
        if stated is None:
            return self.settings.timeout
        if not (stated.isascii() and stated.isdecimal() and len(stated) < 10 and int(stated)):
            text = f"The header {TIMEOUT} is no whole number above 0."
            raise RequestError(400, text, "State milliseconds, such as 2000.")
        return min(int(stated) / 1000, self.settings.timeout)
