"""The request's id, the API key, the log."""

import json
import logging
import sys
import time
from types import SimpleNamespace

import pytest

from vitconv.errors import InputError
from vitconv.serving.rest import Settings
from vitconv.serving.rest.watch import JsonLines
from vitconv.serving.workers import BusyError


def test_a_request_has_an_id(client):
    given = client.get("/health/live", headers={"x-request-id": "a-1.b:c_D"})
    assert given.headers["x-request-id"] == "a-1.b:c_D"
    made = {client.get("/health/live").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3 and all(len(one) == 32 for one in made)


@pytest.mark.parametrize("odd", ["", "a b", "x" * 65, '"}', "é"])
def test_an_id_that_is_odd_is_replaced(client, odd):
    assert client.get("/health/live", headers={"x-request-id": odd.encode()}).headers["x-request-id"] != odd


KEY = "sesame-é"


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        *((f"Bearer {KEY}", True), (f"bearer {KEY}", True), (f"Bearer  {KEY} ", True)),
        *((None, False), ("", False), (KEY, False), ("Bearer", False), ("Bearer ", False), (f"Basic {KEY}", False)),
        *((f"Bearer {KEY}x", False), (f"Bearer {KEY[:-1]}", False)),
    ],
)
def test_the_key(start, photo, authorization, allowed):
    client = start(api_key=KEY)
    headers = {"content-type": "image/jpeg"} | (
        {"authorization": authorization.encode()} if authorization is not None else {}
    )
    answer = client.post("/v1/predict", content=photo, headers=headers)
    assert answer.status_code == (200 if allowed else 401)
    if not allowed:
        assert answer.headers["www-authenticate"] == "Bearer" and KEY not in answer.text
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    for path in ("/metrics", "/v2", "/v2/models/vit"):
        assert client.get(path, headers=headers).status_code == (200 if allowed else 401)
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("key", ["ends in à", "ends in a space ", " begins with one"])
def test_any_key_can_be_sent(start, photo, key):
    headers = {"content-type": "image/jpeg", "authorization": b"Bearer " + key.encode()}
    assert start(api_key=key).post("/v1/predict", content=photo, headers=headers).status_code == 200


@pytest.mark.parametrize("key", [" ", " \t", "\n"])
def test_a_blank_key_is_no_key(key):
    """A request with an empty key would have it."""
    with pytest.raises(InputError, match=r"The API key (is blank|has a line end)"):
        Settings(api_key=key)


@pytest.mark.parametrize("key", ["sesame\n", "se\0same", "\x7f", "\udcff"])
def test_a_key_that_no_header_can_have_is_refused(key):
    """A file that ends in a line end, or bytes that are not UTF-8, as Python reads them from the environment."""
    with pytest.raises(InputError, match="character that no header can have"):
        Settings(api_key=key)


def test_where_there_is_no_key_none_is_asked_for(client):
    assert client.get("/metrics").status_code == 200
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_each_request_is_a_line_in_the_log(client, photo, caplog):
    with caplog.at_level(logging.INFO, "vitconv.serving.requests"):
        client.post("/v1/predict", content=photo, headers={"content-type": "image/jpeg", "x-request-id": "one"})
        client.post("/v1/predict", content=b"x", headers={"content-type": "image/jpeg", "x-request-id": "two\n"})
        client.get("/health/live")
    good, bad = (record.fields for record in caplog.records if record.getMessage() == "request")
    assert (good["request_id"], good["status"], good["path"], good["method"]) == ("one", 200, "/v1/predict", "POST")
    assert good["ms"] > 0 and good["answer_bytes"] > 100 and "problem" not in good
    assert bad["status"] == 400 and bad["problem"] == "The image is not an image that can be read."
    assert bad["request_id"] != "two\n"


def test_a_line_of_the_log_is_json():
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it is\n%s", ("so",), sys.exc_info())
    record.fields = {"request_id": "é\n"}
    line = JsonLines().format(record)
    assert "\n" not in line
    content = json.loads(line)
    assert (content["message"], content["level"], content["request_id"]) == ("it is\nso", "error", "é\n")
    assert "ValueError: a\nb" in content["traceback"] and content["time"].endswith("Z")


PATHS = ("/v1/predict", "/v1/predict/batch", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")


def test_what_finds_no_room_gets_no_further(start, photo, monkeypatch):
    """Not even to FastAPI's routes; but with its id, a count, and behind the key."""
    client = start(api_key="sesame")
    service = client.app.state.service
    monkeypatch.setattr(service, "admitted", None)
    monkeypatch.setattr(service.workers, "check_room", lambda seconds: pytest.fail("It has asked for room."))
    key = {"authorization": "Bearer sesame"}
    assert client.get("/v1/predict", headers=key).status_code == 405  # asks for no room

    def full(seconds):
        assert seconds == service.settings.timeout
        raise BusyError("The server is busy.", 3)

    monkeypatch.setattr(service.workers, "check_room", full)
    for path in PATHS:
        named = path.format(name="vit", version="1")
        assert client.post(named, content=photo).status_code == 401
        answer = client.post(named, content=photo, headers=key | {"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
        assert answer.headers["x-request-id"] == "mine"
        error = answer.json()["error"]
        assert "The server is busy." in (error if path.startswith("/v2") else error["problem"])
        count = f'vitconv_requests_total{{path="{path}",status="503"}} 1.0'
        assert count in client.get("/metrics", headers=key).text


def test_of_what_finds_no_room_a_line_a_second_is_logged(start, photo, monkeypatch, caplog):
    client = start()

    def full(seconds):
        raise BusyError("The server is busy.", 1)

    monkeypatch.setattr(client.app.state.service.workers, "check_room", full)
    clock = iter([0, 0.5, 0.9, 1.0, 1.5, 7])
    monkeypatch.setattr(
        "vitconv.serving.rest.watch.time", SimpleNamespace(monotonic=clock.__next__, perf_counter=time.perf_counter)
    )
    with caplog.at_level(logging.INFO, "vitconv.serving.requests"):
        for _ in range(6):
            assert client.post("/v1/predict", content=photo).status_code == 503
    assert [record.fields["requests"] for record in caplog.records] == [1, 3, 2]
    assert {record.fields["problem"] for record in caplog.records} == {"The server is busy."}
