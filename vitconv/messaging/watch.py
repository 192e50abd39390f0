"""What a worker shows: a line in the log for each message, and over HTTP the paths of `vitconv serve` for health."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vitconv import __version__
from vitconv.messaging.metrics import Metrics
from vitconv.serving.rest.server import log_as_json

if TYPE_CHECKING:
    import socket

    from starlette.requests import Request

    from vitconv.inference.answers import Answer
    from vitconv.inference.runtime import ModelInfo
    from vitconv.messaging.broker import Message
    from vitconv.messaging.worker import State, Worker

LOGGER = logging.getLogger("vitconv.messaging")
#: Seconds without a sign of life after which a worker is taken for stuck: Kafka gives its messages to others then.
STUCK = 300.0


def health_app(state: State, info: ModelInfo, metrics: Metrics) -> Starlette:
    """The application with ``/health/live``, ``/health/ready`` and ``/metrics``.

    Args:
        state: what the worker is doing.
        info: the model.
        metrics: its figures.
    """

    def live(request: Request) -> Response:
        idle = time.monotonic() - state.seen
        if idle > STUCK:
            return _error(f"The worker has done nothing for {idle:.0f} s.", "Start it again.")
        return JSONResponse({"status": "live"})

    def ready(request: Request) -> Response:
        if state.problem is not None:
            return _error(state.problem.problem, state.problem.remedy)
        return JSONResponse({"status": "ready", "model": info.folder.name, "fingerprint": info.fingerprint})

    def figures(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", figures)],
    )


def _error(problem: str, remedy: str) -> JSONResponse:
    return JSONResponse({"error": {"problem": problem, "remedy": remedy}}, 503)


@contextmanager
def watched(worker: Worker, listener: socket.socket | None = None) -> Iterator[None]:
    """Log to stderr what a worker does, a line of JSON each, and count it, for as long as the block runs.

    Args:
        worker: that is about to run.
        listener: a bound socket, at which health and metrics are shown; ``None`` for nowhere.
    """
    info = worker.classifier.info
    metrics = Metrics(worker.state, worker.classifier, __version__)
    log_as_json("uvicorn", LOGGER.name)

    def record(message: Message, outcome: str, problem: str, seconds: float, answer: Answer | None) -> None:
        metrics.observe(outcome, seconds, answer)
        fields = {
            "id": message.id[:200],
            "outcome": outcome,
            "attempt": message.attempt,
            "ms": round(1000 * seconds, 1),
            "image_bytes": len(message.content),
        }
        if problem:
            fields["problem"] = problem
        LOGGER.info("message", extra={"fields": fields})

    worker.on_done = record
    if listener is None:
        yield
        return
    config = uvicorn.Config(
        health_app(worker.state, info, metrics),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
