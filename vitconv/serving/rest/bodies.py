"""The bodies of requests: read within limits, and taken apart in memory.

Nothing is written to a disk, which could be full.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import python_multipart.multipart as multipart
from fastapi import Request

from vitconv.serving.rest.errors import RequestError
from vitconv.serving.rest.settings import MIB, Settings
from vitconv.serving.workers import BusyError

MULTIPART = "multipart/form-data"
#: Of a form. Each takes 40 µs.
_MOST_PARTS = 1000
_HOW = "Send the file as the field `image` of a form (multipart/form-data), or as the body, with the type image/jpeg."


class Body(NamedTuple):
    """What a client has sent.

    Attributes:
        content: all of it.
        kind: the header Content-Type.
    """

    content: bytes
    kind: str


class Upload(NamedTuple):
    """A file in a form.

    Attributes:
        name: which the client gives it.
        content: of the file.
    """

    name: str
    content: bytes


class Bodies:
    """Reads the bodies of requests, and counts what all of them hold.

    Attributes:
        held: bytes, of all requests that are not answered yet.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """The body of a request, which counts as held until the context ends.

        Raises:
            RequestError: it is empty, compressed, too large, cut off, or does not arrive in time.
            BusyError: the bodies of all requests are too large together.
        """
        codings = (("content-encoding", "identity"), ("transfer-encoding", "chunked"))
        if any(one.lower() != usual for name, usual in codings for one in request.headers.getlist(name)):
            raise RequestError(415, "The body is compressed.", "Send it without Content-Encoding.")
        chunks: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self._settings.body_seconds):
                    await self._receive(request, chunks)
            except TimeoutError as error:
                text = f"The body has not arrived within {self._settings.body_seconds:g} s."
                raise RequestError(408, text, "Send it faster.", {"Connection": "close"}) from error
            if not any(chunks):
                raise RequestError(400, "The request has no body.", _HOW)
            yield Body(b"".join(chunks), request.headers.get("content-type", ""))
        finally:
            self.held -= sum(map(len, chunks))

    async def _receive(self, request: Request, chunks: list[bytes]) -> None:
        """Append what arrives.

        Of a body that is too large nothing is kept, but some more of it is taken: many clients look for an answer
        only when they have sent all.
        """
        limit = self._settings.body_bytes
        declared = request.headers.get("content-length", "")
        too_large = declared.isdecimal() and int(declared) > limit
        count, more = 0, True
        while more and count <= 2 * limit:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "The connection was closed before the body's end.", "Send it again.")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            count += len(chunk)
            if too_large or count > limit:
                too_large = True
                self.held -= sum(map(len, chunks))
                chunks.clear()
                continue
            chunks.append(chunk)
            self.held += len(chunk)
            if self.held > self._settings.all_bytes:
                raise BusyError("The server has too many large requests at once.", 1)
        if too_large:
            text = f"The body is larger than {limit / MIB:g} MiB."
            raise RequestError(413, text, "Make the image smaller.", {"Connection": "close"})


def one_image(body: Body) -> bytes:
    """The image in a body: the field `image` of a form, or the body itself.

    Raises:
        RequestError: it is neither, or there are several.
    """
    kind = _kind(body)
    if kind != MULTIPART:
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise _unknown(kind, _HOW)
        return body.content
    uploads = form(body, "image")
    if len(uploads) != 1:
        raise RequestError(
            400,
            f"The form has {len(uploads)} files in the field `image`.",
            "Send one, or several in the field `images` to /v1/predict/batch.",
        )
    return uploads[0].content


def several_images(body: Body, most: int) -> list[Upload]:
    """The images in a body: each a field `images` of a form.

    Raises:
        RequestError: it is no form, has no images, or more than ``most``.
    """
    how = "Send a form (multipart/form-data) in which each file is a field `images`."
    kind = _kind(body)
    if kind != MULTIPART:
        raise _unknown(kind, how)
    uploads = form(body, "images", most + 1)
    if not uploads:
        raise RequestError(400, "The form has no file in the field `images`.", how)
    if len(uploads) > most:
        raise RequestError(413, f"The form has more than {most} images.", "Send them in several requests.")
    return uploads


def _unknown(kind: str, how: str) -> RequestError:
    return RequestError(415, f"The content type is {json.dumps(kind)}." if kind else "There is no content type.", how)


def _kind(body: Body) -> str:
    return body.kind.partition(";")[0].strip().lower()


def form(body: Body, field: str, most: int = 2) -> list[Upload]:
    """The files in one field of a form, at most so many of them; the rest of the form does not matter.

    Raises:
        RequestError: it is no form, or it is cut off.
    """
    _, options = multipart.parse_options_header(body.kind)
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(400, "The form's content type names no boundary.", _HOW)
    reader = _Form(field, most)
    try:
        multipart.MultipartParser(boundary, reader.callbacks()).write(body.content)
    except multipart.FormParserError as error:
        raise RequestError(400, "The form cannot be read.", _HOW) from error
    if not reader.ended:
        raise RequestError(400, "The form ends before its last boundary.", "Send it again, as a whole.")
    return reader.uploads


class _Form:
    """Collects the files of one field while python-multipart reads a form."""

    def __init__(self, field: str, most: int) -> None:
        self.uploads: list[Upload] = []
        self.ended = False
        self._parts = 0
        self._field, self._most = field, most
        self._header = self._value = self._disposition = b""
        self._name: str | None = None  # of the file that is being read
        self._content = bytearray()

    def callbacks(self) -> multipart.MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise RequestError(400, f"The form has more than {_MOST_PARTS} parts.", _HOW)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = multipart.parse_options_header(self._disposition)
        wanted = options.get(b"name") == self._field.encode() and b"filename" in options
        if wanted and len(self.uploads) < self._most:
            self._name = options[b"filename"].decode(errors="replace")
        self._disposition = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._content += data[start:end]

    def _on_part_end(self) -> None:
        if self._name is not None:
            self.uploads.append(Upload(self._name, bytes(self._content)))
        self._name = None
        self._content.clear()

    def _on_end(self) -> None:
        self.ended = True
