"""Bodies as they arrive, and forms as they may be written."""

import asyncio
import time

import pytest
from fastapi import Request

from vitconv.serving.rest.bodies import Bodies, Body, Upload, form, one_image, several_images
from vitconv.serving.rest.errors import RequestError
from vitconv.serving.rest.settings import Settings
from vitconv.serving.workers import BusyError


def request(messages, headers=()):
    """A request whose body arrives so; a number is a pause in seconds."""
    left = list(messages)

    async def receive():
        while isinstance(left[0], (int, float)):
            await asyncio.sleep(left.pop(0))
        return left.pop(0)

    return Request({"type": "http", "headers": [(a.encode(), b.encode()) for a, b in headers]}, receive)


def part(content, more=True):
    return {"type": "http.request", "body": content, "more_body": more}


def read(bodies, messages, headers=()):
    async def inner():
        async with bodies.read(request(messages, headers)) as body:
            return body, bodies.held

    return asyncio.run(inner())


def test_a_body_in_pieces():
    bodies = Bodies(Settings())
    body, held = read(bodies, [part(b"ab"), part(b""), part(b"c", False)], [("content-type", "image/png")])
    assert (body, held, bodies.held) == (Body(b"abc", "image/png"), 3, 0)


@pytest.mark.parametrize(
    ("messages", "headers", "status", "problem"),
    [
        ([part(b"", False)], [], 400, "no body"),
        ([part(b"ab"), {"type": "http.disconnect"}], [], 400, "closed before"),
        ([part(b"ab"), 9, part(b"", False)], [], 408, "within 0.5 s"),
        ([part(b"abcd"), part(b"efg", False)], [], 413, "larger than"),
        ([part(b"a", False)], [("content-length", "99")], 413, "larger than"),
        ([part(b"abc", False)], [("content-encoding", "gzip")], 415, "compressed"),
    ],
)
def test_a_body_that_is_refused(messages, headers, status, problem):
    bodies = Bodies(Settings(body_bytes=6, body_seconds=0.5))
    with pytest.raises(RequestError, match=problem) as refused:
        read(bodies, messages, headers)
    assert refused.value.status == status and bodies.held == 0
    assert (refused.value.headers == {"Connection": "close"}) == (status in (408, 413))


def test_nothing_of_an_endless_body_is_kept():
    bodies, held = Bodies(Settings(body_bytes=1000)), []

    class Endless(list):
        def pop(self, index):
            held.append(bodies.held)
            return part(bytes(100))

    with pytest.raises(RequestError, match="larger"):
        asyncio.run(anext_of(bodies, Endless([part(b"")])))
    assert max(held) == 1000 and len(held) == 21  # as much again is taken, for clients that send all before they look


async def anext_of(bodies, messages):
    async def receive():
        return messages.pop(0)

    async with bodies.read(Request({"type": "http", "headers": []}, receive)):
        pass


def test_the_bodies_of_all_requests_are_bounded():
    async def inner():
        bodies = Bodies(Settings(all_bytes=5))
        async with bodies.read(request([part(b"abc", False)])):
            with pytest.raises(BusyError, match="too many large requests"):
                async with bodies.read(request([part(b"def", False)])):
                    pass
            assert bodies.held == 3
        async with bodies.read(request([part(b"defgh", False)])) as body:
            assert body.content == b"defgh"
        assert bodies.held == 0

    asyncio.run(inner())


def test_a_failure_within_is_not_taken_for_a_slow_body():
    async def inner():
        async with Bodies(Settings()).read(request([part(b"abc", False)])):
            raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="something else"):
        asyncio.run(inner())


def multipart(*parts, end=b"--X--\r\n", start=b""):
    """A form of these parts: (disposition, content)."""
    text = b"".join(
        b"--X\r\nContent-Disposition: form-data; %s\r\nContent-Type: image/png\r\n\r\n%s\r\n" % one for one in parts
    )
    return Body(start + text + end, "multipart/form-data; boundary=X")


FILE = b'name="image"; filename="a.png"'


def test_the_files_of_a_field():
    body = multipart(
        (FILE, b"1\r\n--Y\r"), (b'name="other"; filename="b"', b"2"), (b'name="image"', b"3"), (FILE, b"")
    )
    assert form(body, "image") == [Upload("a.png", b"1\r\n--Y\r"), Upload("a.png", b"")]
    assert form(body, "other") == [Upload("b", b"2")]
    assert form(body, "image", most=1) == [Upload("a.png", b"1\r\n--Y\r")]
    assert form(multipart((b'name="image"; filename="\xff\xc3\xa9"', b"1")), "image")[0].name == "\ufffdé"
    assert one_image(multipart((FILE, b"1"))) == b"1"
    assert one_image(Body(b"1", "IMAGE/x; y")) == b"1"
    assert several_images(multipart((b'name="images"; filename="b"', b"2")), 1) == [Upload("b", b"2")]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (multipart((FILE, b"1"), end=b""), "ends before"),
        (multipart((FILE, b"1"), end=b"--X"), "ends before"),
        (multipart(end=b"--X\r\nContent-Disp"), "ends before"),
        (multipart((FILE, b"1"), start=b"junk"), "cannot be read"),
        (Body(b"--X\r\n\xff\r\n", "multipart/form-data; boundary=X"), "cannot be read"),
        (Body(b"", "multipart/form-data"), "no boundary"),
        (Body(b"x", "multipart/form-data; boundary=" + "x" * 300), "cannot be read"),
        (multipart(*[(FILE, b"")] * 1001), "more than 1000 parts"),
    ],
)
def test_a_form_that_cannot_be_read(body, problem):
    with pytest.raises(RequestError, match=problem) as refused:
        form(body, "image")
    assert refused.value.status == 400


def test_a_form_of_many_parts_takes_no_time():
    body = multipart(*[(b'name="x"', b"")] * 300_000)
    begun = time.process_time()
    with pytest.raises(RequestError, match="parts"):
        form(body, "image")
    assert time.process_time() - begun < 5  # without the limit, half a minute
