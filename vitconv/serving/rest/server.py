"""The server of the application: uvicorn in this process, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vitconv.errors import InputError
from vitconv.serving.rest.watch import JsonLines

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vitconv.serving.rest.settings import Settings


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, at which nothing listens yet.

    Args:
        host: an address or a name of this computer; 0.0.0.0 for all of its IPv4 addresses, :: for all.
        port: 0 for any that is free.

    Raises:
        InputError: the address is not one of this computer, or the port is taken or reserved.
    """
    where = f"port {port} of {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The server cannot have {where}: {reason}.", "Choose another with --port or --host."
        ) from error
    return listener


def serve(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT. Then take no more, answer those that are there, and raise the signal.

    What happens is logged to stderr, a line of JSON each.

    Args:
        app: see :func:`vitconv.serving.rest.create_app`.
        settings: what is allowed.
        listener: a bound socket.
    """
    log_as_json("uvicorn", "vitconv.serving.requests", "asyncio")
    config = uvicorn.Config(
        app,
        loop="auto",  # uvloop where there is one: under overload more is answered
        http=_protocol(settings.header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=round(settings.drain_seconds),
    )
    # What was imported and loaded stays. Each search of it for garbage would stop all threads meanwhile.
    gc.collect()
    gc.freeze()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        gc.unfreeze()  # libraries written in C complain at the end of what was not collected


#: Bytes of a request's head, and of what follows a body's chunks.
_MOST_HEAD = 64 * 2**10
#: Connections that wait to be taken. Where no more can be opened, asyncio tries it for each.
_BACKLOG = 128
#: Files that the process needs beside connections.
_OTHER_FILES = 64


def _most_connections() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files - _OTHER_FILES, 8)


class _Parser(httptools.HttpRequestParser):
    """Reads a request that offers to go on in another protocol (`Upgrade: h2c`) as if it did not, as a server may do.

    httptools leaves its body unread, and takes what comes later for the next request.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._start()

    def _start(self) -> None:
        super().__init__(self._protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    def feed_data(self, data: Any) -> None:
        rest = memoryview(data)
        while True:
            try:
                super().feed_data(rest)
                return
            except httptools.HttpParserUpgrade as error:
                if not self._protocol.offers_another():
                    raise
                rest = rest[error.args[0] :]
            headers = [b"%b: %b\r\n" % one for one in self._protocol.headers if one[0] != b"upgrade"]
            line = b"%b %b HTTP/%b\r\n" % (self.get_method(), self._protocol.url, self.get_http_version().encode())
            self._start()  # after a request that closes the connection, it would skip all that follows
            super().feed_data(line + b"".join(headers) + b"\r\n")


class _Flow(FlowControl):
    """Reads nothing more while requests wait behind another one of their connection.

    uvicorn reads on at each answer, and keeps all that comes. The one that is answered needs no more: all of it has
    come when another begins.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Collection[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


def _protocol(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, with limits: it waits for the head of a request for ever, keeps a head of any size and any
    number of requests, and takes connections until no file can be opened any more.
    """
    most_connections = _most_connections()

    class Protocol(HttpToolsProtocol):
        _head: asyncio.TimerHandle | None = None
        _unread = 0  # bytes that came since the last head or piece of a body

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.parser = _Parser(self)

        def offers_another(self) -> bool:
            return self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.flow = _Flow(transport, self.pipeline)
            if len(self.connections) > most_connections:
                transport.abort()
            self._wait()

        def data_received(self, data: bytes) -> None:
            self._unread += len(data)
            super().data_received(data)
            if self._unread > _MOST_HEAD:
                self.transport.abort()

        def on_body(self, body: bytes) -> None:
            self._unread = 0
            super().on_body(body)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # no other request has come: the next one's head is waited for
                self._wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._wait()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            self._unread = 0
            if not self.offers_another():
                super().on_headers_complete()

        def on_message_complete(self) -> None:
            if not self.offers_another():
                super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop_waiting()
            self._head = self.loop.call_later(seconds, self._leave)

        def _leave(self) -> None:
            if self.flow.read_paused:  # the rest of the head may have come
                self._wait()
            else:
                self.transport.close()

        def _stop_waiting(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return Protocol


def log_as_json(*names: str) -> None:
    """Have these loggers write a line of JSON for each record; of those of asyncio itself, one a second."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(_Seldom("asyncio"))
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class _Seldom(logging.Filter):
    """Of this logger's records, lets one through a second: asyncio logs each connection that it cannot take."""

    def __init__(self, logger: str) -> None:
        super().__init__()
        self._logger, self._last = logger, float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != self._logger:
            return True
        now = time.monotonic()
        seldom = now - self._last >= 1
        if seldom:
            self._last = now
        return seldom
