"""What surrounds each request: its id, the API key, the count, the line in the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import Request

from vitconv.serving.rest.errors import RequestError, answer
from vitconv.serving.rest.settings import SPACE
from vitconv.serving.workers import BusyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vitconv.errors import VitconvError
    from vitconv.serving.rest.service import Service

LOGGER = logging.getLogger("vitconv.serving.requests")
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
#: These need no key: probes have none, and the pages tell nothing of the model.
_OPEN = ("/health/", "/v2/health/", "/docs", "/openapi.json", "/static-offline-docs/")


class Watch:
    """ASGI middleware.

    What finds no room is refused here, before FastAPI: a server that is asked for more than it can do has the time for
    that only at the cost of answers (benchmarks/serve.py).

    Args:
        app: what answers.
        service: what it answers with; requests are counted in its metrics.
        computing: the routes whose requests wait for a worker.
    """

    def __init__(self, app: ASGIApp, service: Service, computing: Sequence[Route]) -> None:
        self._app, self._service, self._computing = app, service, computing
        self._metrics = service.metrics
        self._unlogged, self._logged = 0, float("-inf")  # requests for which there was no room
        self._patience = service.settings.body_seconds
        key = service.settings.api_key
        self._key = key.strip(SPACE).encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request.state.id = name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status, size, error = 500, 0, None

        async def send_with_id(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            size += len(message.get("body", b""))
            async with asyncio.timeout(self._patience):  # a client that does not read would keep the answer here
                await send(message)

        self._metrics.in_flight.inc()
        try:
            if error := self._refusal(request):
                await answer(request, error)(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - begun
            path = getattr(scope.get("route"), "path", None) or "other"
            self._metrics.observe(path, status, seconds)
            quiet = status < 400 and path in ("/health/live", "/health/ready", "/metrics")
            fields = {
                "request_id": name,
                "method": request.method,
                "path": request.url.path[:200],
                "status": status,
                "ms": round(1000 * seconds, 1),
                "client": request.client.host if request.client else None,
                "answer_bytes": size,
            }
            if problem := getattr(request.state, "problem", None):
                fields["problem"] = problem
            if not isinstance(error, BusyError) or self._is_due(fields):
                LOGGER.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})

    def _is_due(self, fields: dict[str, Any]) -> bool:
        """Whether one that found no room is logged: of those of a second, the first is, with how many there were
        since the last one that was. A line for each would be most of the log, and cost answers.
        """
        self._unlogged += 1
        if (now := time.monotonic()) - self._logged < 1:
            return False
        fields["requests"] = self._unlogged
        self._unlogged, self._logged = 0, now
        return True

    def _refusal(self, request: Request) -> VitconvError | None:
        """Why a request gets no further; ``None`` if it may."""
        if not self._may(request):
            return RequestError(
                401,
                "The API key is missing or wrong.",
                "Send the header `Authorization: Bearer KEY`.",
                {"WWW-Authenticate": "Bearer"},
            )
        if request.method != "POST":
            return None
        path = request.url.path
        if route := next((one for one in self._computing if one.path_regex.match(path)), None):
            try:
                self._service.workers.check_room(self._service.settings.timeout)
            except BusyError as error:
                request.scope["route"] = route  # for the count
                return error
        return None

    def _may(self, request: Request) -> bool:
        if self._key is None or request.url.path.startswith(_OPEN):
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip(SPACE).encode("latin-1"), self._key) and scheme.lower() == "bearer"


class JsonLines(logging.Formatter):
    """A line of JSON for each record, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
