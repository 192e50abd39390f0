"""Real connections to a server in this process: slow, broken, and many."""

import http.client
import json
import logging
import select
import socket
import threading
import time

import pytest

from vitconv.errors import InputError
from vitconv.serving.classifier import Classifier
from vitconv.serving.rest import Settings, bind, create_app, server


@pytest.fixture
def start(classifier, monkeypatch):
    """Start a server with these settings; its address. `start.connections()` are those of the last one."""
    ends = []

    def start(**settings):
        settings = Settings(**{"workers": 1, **settings})
        listener = bind("127.0.0.1", 0)
        made = []
        serve = server.uvicorn.Server

        class Kept(serve):
            def __init__(self, config):
                super().__init__(config)
                made.append(self)

        monkeypatch.setattr(server.uvicorn, "Server", Kept)
        thread = threading.Thread(target=server.serve, args=(create_app(classifier, settings), settings, listener))
        thread.start()
        while not (made and made[0].started):
            assert thread.is_alive()
            time.sleep(0.01)
        ends.append((made[0], thread, listener))
        return listener.getsockname()

    start.connections = lambda: list(ends[-1][0].server_state.connections)
    yield start
    for running, thread, listener in ends:
        running.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def closed(connection, seconds=10):
    """What the server sends until it closes the connection."""
    connection.settimeout(seconds)
    received = b""
    while chunk := connection.recv(2**16):
        received += chunk
    return received


def post(address, content, **headers):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("POST", "/v1/predict", content, {"Content-Type": "image/jpeg", **headers})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def drip(connection, first, then):
    """Send a little now and then, until the server has closed the connection."""
    for i in range(30):
        try:
            connection.sendall(then if i else first)
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("It is still listened to.")


def test_addresses():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.1", port))  # it listens only when it can answer
        listener.listen()
        with pytest.raises(InputError, match=rf"cannot have port {port} of 127\.0\.0\.1: Address already in use"):
            bind("127.0.0.1", port)
    for host in ("203.0.113.1", "no such host", "a" * 300, ""):
        with pytest.raises(InputError, match="cannot have port") as refused:
            bind(host or "x.invalid", 0)
        assert refused.value.remedy == "Choose another with --port or --host."


def test_a_client_that_says_nothing_is_left(start):
    address = start(header_seconds=0.3)
    with socket.create_connection(address) as connection:
        assert closed(connection) == b""


def test_a_client_that_does_not_end_its_head_is_left(start, photo):
    address = start(header_seconds=0.5)
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        drip(connection, b"GET /he", b"a")
    assert post(address, photo)[0] == 200


def test_a_client_that_sends_slowly_is_told(start, photo):
    address = start(body_seconds=0.5)
    with socket.create_connection(address) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nab"
        )
        said = closed(connection)
    assert said.startswith(b"HTTP/1.1 408") and b"within 0.5 s" in said
    assert post(address, photo)[0] == 200


def test_a_client_that_leaves_in_its_body(start, photo):
    address = start()
    for _ in range(20):
        with socket.create_connection(address) as connection:
            connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nab")
    assert post(address, photo)[0] == 200


def test_what_is_not_http(start, photo):
    address = start()
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\0\0\0"):
        with socket.create_connection(address) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            assert closed(connection)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404")
    assert post(address, photo)[0] == 200


def test_an_answer_to_a_body_that_is_too_large_arrives(start, photo):
    address = start(body_bytes=2**20)
    for size in (2**20 + 1, 2**21, 2**22):
        try:
            status, headers, content = post(address, bytes(size))
        except OSError:  # the client was still sending, long after it was told
            assert size == 2**22
            continue
        assert status == 413 and headers["Connection"] == "close" and b"1 MiB" in content
    assert post(address, photo)[0] == 200


@pytest.mark.parametrize("split", [0, 1, 40, 5000])
def test_an_offer_of_another_protocol_is_left_alone(start, classifier, photo, split):
    """As `curl --http2` and Java's client make it: whether the body comes with the head or later, it is the body."""
    head = (
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    )
    head += b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n" % len(photo)
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    asked = head + photo + head + photo + last
    place = len(head) + split if split else len(asked)
    with socket.create_connection(start(), timeout=10) as connection:
        connection.sendall(asked[:place])
        time.sleep(0.1)
        connection.sendall(asked[place:])
        received = closed(connection)
    answers = [json.loads(one.partition(b"\r\n\r\n")[2]) for one in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [one.get("logits") for one in answers] == [classifier(photo).logits.tolist()] * 2 + [None]


@pytest.mark.parametrize(
    ("version", "connection"), [("1.0", "Upgrade"), ("1.1", "close, Upgrade"), ("1.0", "keep-alive, Upgrade")]
)
def test_an_offer_of_another_protocol_on_a_connection_that_closes_is_answered(
    start, classifier, photo, version, connection
):
    """As nginx passes it on, which speaks HTTP/1.0 unless it is told otherwise."""
    head = f"POST /v1/predict HTTP/{version}\r\nHost: x\r\nContent-Type: image/jpeg\r\nConnection: {connection}\r\n"
    head += f"Upgrade: websocket\r\nContent-Length: {len(photo)}\r\n\r\n"
    with socket.create_connection(start(), timeout=10) as client:
        client.sendall(head.encode() + photo)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        content = answer.read()
    assert answer.status == 200 and json.loads(content)["logits"] == classifier(photo).logits.tolist()
    assert answer.will_close  # uvicorn keeps none of HTTP/1.0 open


def test_an_answer_is_the_classifier_s(start, classifier, photo):
    status, headers, content = post(start(), photo)
    assert status == 200 and json.loads(content)["logits"] == classifier(photo).logits.tolist()
    assert "server" not in headers


def test_what_is_logged_is_json(start, photo, capsys):
    address = start()
    post(address, photo)
    post(address, b"x")
    printed, end = "", time.monotonic() + 10
    while printed.count('"request"') < 2 and time.monotonic() < end:  # a line is written after its answer was sent
        printed += capsys.readouterr().err
        time.sleep(0.01)
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["status"] for line in lines if line["message"] == "request"] == [200, 400]


@pytest.mark.parametrize(
    "head",
    [b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 200_000, b"GET / HTTP/1.1\r\na: " + b"b" * 10**6],
    ids=["many short", "one long"],
)
def test_a_head_is_bounded(start, photo, head):
    address = start(header_seconds=60)
    with socket.create_connection(address) as connection:
        try:
            connection.sendall(head)
            said = closed(connection)
        except ConnectionError:  # not that the server still waits for the rest
            said = b""
    assert said == b""
    assert post(address, photo)[0] == 200


def test_what_follows_a_body_is_bounded(start, photo):
    address = start()
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"a: b\r\n" * 1000)
                time.sleep(0.001)
    assert post(address, photo)[0] == 200


@pytest.mark.parametrize(
    ("asked", "dripped"),
    [
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n", b"a"),
        (b"POST /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ],
    ids=["lines", "a body", "chunks"],
)
def test_a_client_that_was_answered_does_not_stay_by_a_byte_now_and_then(start, photo, asked, dripped):
    address = start(header_seconds=0.5)
    with socket.create_connection(address) as connection:
        connection.sendall(asked)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 ")
        drip(connection, dripped, dripped)
    assert post(address, photo)[0] == 200


def slow_down(monkeypatch, seconds):
    """Have each answer take so much longer."""
    answer = Classifier.__call__

    def slowly(classifier, image):
        time.sleep(seconds)
        return answer(classifier, image)

    monkeypatch.setattr(Classifier, "__call__", slowly)


def three_requests(photo):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    return (head % len(photo) + photo) * 3


def test_a_request_that_waits_behind_another_is_not_cut_off(start, photo, monkeypatch):
    """One connection, several requests at once: the second is computed when the time for a head is over."""
    address, asked = start(header_seconds=0.3), three_requests(photo)
    slow_down(monkeypatch, 0.6)
    with socket.create_connection(address) as connection:
        connection.sendall(asked)
        connection.settimeout(30)
        received = b""
        while received.count(b"HTTP/1.1 200") < 3:
            assert (more := connection.recv(2**16)), received
            received += more


@pytest.mark.parametrize("path", ["/none", "/v1/predict"], ids=["refused", "read"])
def test_requests_that_wait_behind_another_are_bounded(start, path):
    """What has not come into memory waits at the client: all are answered, and few are kept."""
    address, size, count, received, kept = start(), 20_000, 300, b"", 0
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    asked = (head % (path.encode(), size) + bytes(size)) * count
    with socket.create_connection(address) as connection:
        connection.settimeout(60)
        sender = threading.Thread(target=connection.sendall, args=(asked,))
        sender.start()
        while received.count(b"HTTP/1.1 4") < count:
            assert (more := connection.recv(2**16)), received
            received += more
            kept = max(kept, *(len(one.pipeline) for one in start.connections()))
        sender.join()
    assert kept * size < 2 * 2**18  # as much as is read at once is never more than 256 KiB


def test_a_head_that_is_not_read_yet_is_not_waited_for(start, photo, monkeypatch):
    """Where what was read at once ends within a head, the rest comes when the requests before it are answered."""
    address, asked = start(header_seconds=0.3), three_requests(photo)
    slow_down(monkeypatch, 0.4)
    with socket.create_connection(address) as connection:
        connection.sendall(asked + b"GET /health/live HTTP/1.1\r\nHo")
        time.sleep(0.1)
        connection.sendall(b"st: x\r\nConnection: close\r\n\r\n")
        assert closed(connection, 30).count(b"HTTP/1.1 200") == 4


def test_connections_are_bounded(start, photo, monkeypatch):
    monkeypatch.setattr(server, "_most_connections", lambda: 3)
    address = start()
    connections = [socket.create_connection(address) for _ in range(6)]
    refused, end = [], time.monotonic() + 30
    while len(refused) < 3 and time.monotonic() < end:
        refused += select.select([one for one in connections if one not in refused], [], [], 0.1)[0]
    assert len(refused) == 3
    assert select.select([one for one in connections if one not in refused], [], [], 0.5)[0] == []
    for connection in connections:
        connection.close()
    while time.monotonic() < end:
        try:  # until it has seen that they are closed
            assert post(address, photo)[0] == 200
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("It takes no more connections.")


def test_what_asyncio_repeats_is_logged_once_a_second(capsys):
    server.log_as_json("asyncio")
    try:
        for _ in range(100):
            logging.getLogger("asyncio").error("socket.accept() out of system resource")
    finally:
        logging.getLogger("asyncio").handlers, logging.getLogger("asyncio").propagate = [], True
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "socket.accept() out of system resource"
