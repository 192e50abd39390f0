"""Property tests: any request gets an answer of the OpenAPI description, never a 5xx, and the server stays as it was.

``make fuzz`` runs the same properties on many more cases.
"""

import json
import os
import struct

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photos import image_file
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from starlette.testclient import TestClient

from vitconv.serving.rest import Settings, create_app

CASES = int(os.environ.get("VITCONV_FUZZ_CASES", "200"))
often = settings(max_examples=CASES, deadline=20_000, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def app(classifier):
    return create_app(classifier, Settings(workers=2, body_bytes=2**20, batch_images=4))


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
        assert client.app.state.service.bodies.held == 0
        workers = client.app.state.service.workers
        assert (workers.waiting, workers.computing) == (0, 0)


@pytest.fixture(scope="module")
def description(app, client):
    async def running(scope, receive, send):
        """The application, which schemathesis would start and end for each request."""
        if scope["type"] != "lifespan":
            return await app(scope, receive, send)
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    return schemathesis.openapi.from_asgi("/openapi.json", running)


#: What the description allows is not always an image, and what it doesn't (another field beside the image) may be.
UNKNOWABLE = [positive_data_acceptance, negative_data_rejection]


def test_any_request_of_the_description(description):
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) == 11

    @often
    @given(st.sampled_from(operations).flatmap(lambda operation: operation.as_strategy()))
    def check(case):
        case.headers.pop("X-Request-Timeout-Ms", None)  # a request of few milliseconds gets a 503
        case.call_and_validate(excluded_checks=UNKNOWABLE)

    check()


PHOTOS = [image_file(kind, mode) for kind, mode in (("PNG", "RGB"), ("JPEG", "CMYK"), ("PNG", "I;16"), ("GIF", "P"))]
BOUNDARY = b"--X\r\n"
PIECES = (
    *(BOUNDARY, b"--X--\r\n", b"\r\n", b"\r\n--X", b"--", b"\0", b'Content-Disposition: form-data; name="image"'),
    *(b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n', b"Content-Type: image/png\r\n"),
    *(b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n', b"filename*=UTF-8''x", b"; name="),
)


@st.composite
def damaged(draw):
    """The content of an image file with some bytes changed, left out or added."""
    content = bytearray(draw(st.sampled_from(PHOTOS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        content[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(content[: draw(st.integers(0, len(content))) or None])


bodies = st.one_of(
    st.binary(max_size=200),
    damaged(),
    st.lists(st.sampled_from(PIECES) | damaged() | st.binary(max_size=5), max_size=9).map(b"".join),
    damaged().map(lambda photo: BOUNDARY + PIECES[9] + photo + b"\r\n--X--\r\n"),
    st.lists(damaged(), max_size=6).map(
        lambda photos: b"".join(BOUNDARY + PIECES[7] + photo + b"\r\n" for photo in photos) + b"--X--\r\n"
    ),
)
kinds = st.sampled_from(
    ["multipart/form-data; boundary=X", "image/png", "application/octet-stream", "multipart/form-data", "text/plain"]
) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


def check(answer, *, text=False):
    """An answer, or a 4xx with both sentences."""
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert isinstance(error, str) if text else error["problem"] and error["remedy"]


@often
@given(st.sampled_from(["/v1/predict", "/v1/predict/batch"]), bodies, kinds)
def test_any_body(client, path, body, kind):
    check(client.post(path, content=body, headers={"content-type": kind.encode()}))


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=4) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["image", "pixels", "logits", "probabilities", "vit"]) | _json
_parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification"]), _json, max_size=3
)


def maybe(**fields):
    """An object with some of these fields."""
    return st.fixed_dictionaries({}, optional={name: values | _json for name, values in fields.items()})


_inputs = maybe(
    name=_names,
    datatype=st.sampled_from(["UINT8", "FP32", "BYTES", "INT64"]),
    shape=st.lists(st.integers(-1, 40), max_size=4) | st.just([1, 3, 32, 32]),
    parameters=_parameters,
    data=st.lists(st.integers(0, 255), max_size=30) | st.just([0.5] * 3072),
)
_requests = maybe(
    id=st.text(max_size=4),
    inputs=st.lists(_inputs, max_size=2),
    outputs=st.lists(maybe(name=_names, parameters=_parameters), max_size=3),
    parameters=_parameters,
)


@often
@given(
    st.sampled_from(["vit", "preprocess", "model"]),
    _requests.map(lambda content: json.dumps(content).encode()) | st.binary(max_size=40),
    st.binary(max_size=20) | damaged() | damaged().map(lambda photo: struct.pack("<I", len(photo)) + photo),
    st.sampled_from(["right", "none", "0", "-1", "99999"]),
)
def test_any_request_of_the_protocol(client, model, head, tail, stated):
    headers = {"right": {"Inference-Header-Content-Length": str(len(head))}, "none": {}}
    check(
        client.post(
            f"/v2/models/{model}/infer",
            content=head + tail,
            headers=headers.get(stated, {"Inference-Header-Content-Length": stated}),
        ),
        text=True,
    )


@often
@given(st.dictionaries(
    st.sampled_from([
        "x-request-id", "x-request-timeout-ms", "content-encoding", "authorization", "inference-header-content-length",
    ]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20),
))  # fmt: skip
def test_any_header(client, headers):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = client.post("/v1/predict", content=PHOTOS[0], headers={"content-type": "image/png", **headers})
    assert answer.status_code != 500
    if answer.status_code != 503:  # its time was over
        check(answer)
