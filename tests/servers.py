"""`vitconv serve` as a process, and clients that ask it at a rate of their own, whatever it answers."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Answer(NamedTuple):
    """What a client got.

    Attributes:
        status: 0 where the connection ended without one.
        headers: by their names in lower case.
        content: the body.
        seconds: that it took.
        ended: when it was there, by ``time.perf_counter()``.
    """

    status: int
    headers: dict[str, str]
    content: bytes
    seconds: float
    ended: float

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.content)


def _answer(status: int, headers: dict[str, str], content: bytes, begun: float) -> Answer:
    ended = time.perf_counter()
    return Answer(status, headers, content, ended - begun, ended)


class Server:
    """A process of `vitconv serve`, for a ``with`` statement.

    Args:
        model: the folder to serve.
        log: the file for what it says.
        options: of the command.
        environment: variables besides those of this process.
    """

    def __init__(self, model: Path, log: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self._log = log
        command = [sys.executable, "-m", "vitconv", "serve", str(model), "--port", "0", "--device", "cpu", *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, env={**os.environ, **(environment or {})})
        self.host, self.port = self._address()

    def _address(self) -> tuple[str, int]:
        for _ in range(1200):
            if found := re.search(r"http://([0-9.]+):(\d+) until", self._log.read_text()):
                return found[1], int(found[2])
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        raise TimeoutError(self._log.read_text())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Have it end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged in JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def said(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    def memory(self) -> int:
        """Its memory, in bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def cpu_seconds(self) -> float:
        """The time that it has computed for, in user and system mode."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def ask(self, path: str, content: bytes | None = None, **headers: str) -> Answer:
        """GET, or POST if there is a content."""
        begun = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            method = "GET" if content is None else "POST"
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, content, {"Content-Type": "application/octet-stream", **headers})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.headers.items()}
            return _answer(answer.status, found, answer.read(), begun)
        finally:
            connection.close()


def request(
    content: bytes, path: str = "/v1/predict", kind: str = "application/octet-stream", **headers: object
) -> bytes:
    """An HTTP request, complete."""
    given = {"Host": "localhost", "Content-Type": kind, "Content-Length": len(content), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


def infer_request(content: bytes) -> bytes:
    """One of the Open Inference Protocol: the file's bytes are all of the body, and the answer is JSON."""
    return request(content, "/v2/models/vit/infer", Inference_Header_Content_Length=0)


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """What follows the head. Ray Serve's own refusals come in chunks."""
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    return body


async def _send(host: str, port: int, content: bytes) -> Answer:
    begun = time.perf_counter()
    status, headers, body = 0, {}, b""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return _answer(0, {}, b"", begun)
    try:
        writer.write(content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await _body(reader, headers)
        status = int(head[0].split()[1])
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
    return _answer(status, headers, body, begun)


def at_a_rate(host: str, port: int, contents: Sequence[bytes], rate: float, seconds: float) -> list[Answer]:
    """Send requests so many times a second, one after the other, without waiting for answers.

    A client that waited would slow down with the server, and hide how long others had to wait.
    """

    async def run() -> list[Answer]:
        begun, tasks = time.perf_counter(), []
        for i in range(round(rate * seconds)):
            await asyncio.sleep(begun + i / rate - time.perf_counter())
            tasks.append(asyncio.create_task(_send(host, port, contents[i % len(contents)])))
        return await asyncio.gather(*tasks)

    return asyncio.run(run())


def in_turn(host: str, port: int, contents: Sequence[bytes], clients: int, seconds: float) -> list[Answer]:
    """Send requests for some time, by so many clients that each wait for their answer: what a server is capable of."""

    async def one(client: int) -> list[Answer]:
        end, answers = time.perf_counter() + seconds, []
        while time.perf_counter() < end:
            answers.append(await _send(host, port, contents[(client + clients * len(answers)) % len(contents)]))
        return answers

    async def run() -> list[Answer]:
        return sum(await asyncio.gather(*(one(client) for client in range(clients))), [])

    return asyncio.run(run())
