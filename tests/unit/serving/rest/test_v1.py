"""An image in, an answer out: the same as in Python; and whatever is sent instead."""

import io
import re
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from photos import image_file
from PIL import Image

from vitconv.errors import ParityError
from vitconv.inference import read_info
from vitconv.inference.certainty import read_certainty


def raw(client, content, kind="application/octet-stream", **headers):
    return client.post("/v1/predict", content=content, headers={"content-type": kind, **headers})


def bomb():
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 30_000
    pixels = zlib.compress(bytes((size + 1) * 100), 9)
    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


READABLE = {
    "JPEG": image_file("JPEG"),
    "progressive JPEG": image_file("JPEG", progressive=True),
    "CMYK": image_file("JPEG", "CMYK"),
    "grey": image_file("JPEG", "L"),
    "PNG": image_file(),
    "alpha": image_file("PNG", "RGBA"),
    "grey with alpha": image_file("PNG", "LA"),
    "16 bits": image_file("PNG", "I;16"),
    "palette": image_file("PNG", "P"),
    "palette with transparency": image_file("PNG", "P", transparency=3),
    "bilevel": image_file("PNG", "1"),
    "WebP": image_file("WEBP"),
    "TIFF": image_file("TIFF"),
    "GIF": image_file("GIF", "P"),
    "EXIF": image_file("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "one pixel": image_file(size=(1, 1)),
    "wide": image_file(size=(2000, 3)),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_answer_is_that_of_the_classifier(client, classifier, name):
    answers = [raw(client, READABLE[name]), client.post("/v1/predict", files={"image": ("é.jpg", READABLE[name])})]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        about = {"fingerprint": classifier.info.fingerprint, "request_id": answer.headers["x-request-id"]}
        assert answer.json() == {**classifier(READABLE[name]).to_dict(), **about}
    logits = np.array(answers[0].json()["logits"], np.float32)
    assert logits.tobytes() == classifier(READABLE[name]).logits.tobytes()


@pytest.mark.parametrize("calibrated", [False, True])
def test_an_answer_says_how_certain_it_is_or_that_this_is_not_known(start, classifier, certain, photo, calibrated):
    model = replace(classifier, certainty=read_certainty(read_info(certain)) if calibrated else None)
    client = start(model)
    answer = raw(client, photo).json()
    again = client.post("/v1/predict/batch", files=[("images", ("a.jpg", photo))]).json()["answers"][0]
    expected = model(photo)
    for found in (answer, again):
        assert found["logits"] == classifier(photo).logits.tolist()
        assert found["reliable"] is expected.reliable and found["why_not"] == expected.why_not
        assert found["calibrated_probability"] == expected.calibrated_probability
    assert (answer["reliable"] is None) == (answer["prediction_set"] is None) == (not calibrated)
    assert calibrated or answer["why_not"] == "The model is not calibrated: run `vitconv calibrate`."


UNREADABLE = {
    "nothing": (b"", "has no body"),
    "a text": (b"no image", "not an image"),
    "a cut JPEG": (image_file("JPEG")[:300], "not an image"),
    "a cut PNG": (image_file()[:2000], "not an image"),
    "a bomb": (bomb(), "900,000,000 pixels|30000x30000"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "an address": (b"https://example.org/a.jpg", "not an image"),
    "a path": (b"/etc/passwd", "not an image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_image_is_refused(client, name):
    content, problem = UNREADABLE[name]
    answer = raw(client, content)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"problem", "remedy", "request_id"} and error["request_id"] == answer.headers["x-request-id"]
    assert re.search(problem, error["problem"]), error


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *(("image/jpeg", 200), ("image/anything; q=1", 200), ("IMAGE/PNG", 200), ("application/octet-stream", 200)),
        *(("text/plain", 415), ("application/json", 415), ("application/x-www-form-urlencoded", 415), ("", 415)),
        *(("multipart/form-data", 400), ("multipart/form-data; boundary=", 400), ("multipart/mixed; boundary=x", 415)),
        ("multipart/form-data; boundary=" + "x" * 300, 400),
    ],
)
def test_the_content_type_says_what_the_body_is(client, photo, kind, status):
    assert raw(client, photo, kind).status_code == status


@pytest.mark.parametrize(
    "files",
    [
        [],
        [("file", ("a.jpg", b"x"))],
        [("image", ("a.jpg", b"x")), ("image", ("b.jpg", b"x"))],
        [("image", (None, b"x"))],
    ],
)
def test_a_form_without_one_image_is_refused(client, files):
    answer = client.post("/v1/predict", files=files or [("other", (None, b"x"))])
    assert answer.status_code == 400 and "in the field `image`" in answer.json()["error"]["problem"]


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")],
        [("Transfer-Encoding", "gzip, chunked")],
    ],
)
def test_a_coding_among_others_is_refused(client, photo, headers):
    headers = [("Content-Type", "image/jpeg"), *headers]
    assert client.post("/v1/predict", content=photo, headers=headers).status_code == 415


def test_compressed_bodies_are_refused(client, photo):
    answer = raw(client, zlib.compress(photo), **{"content-encoding": "deflate"})
    assert answer.status_code == 415 and "compressed" in answer.json()["error"]["problem"]
    assert raw(client, photo, **{"content-encoding": "identity"}).status_code == 200


def test_a_model_that_fails_is_the_server_s_fault(start, classifier, photo):
    class Broken:
        info = classifier.info

        def __call__(self, pixels):
            return np.full((1, 5), np.nan, np.float32)

    answer = raw(start(replace(classifier, runtime=Broken())), photo)
    assert answer.status_code == 500 and "not finite" in answer.json()["error"]["problem"]


@pytest.mark.parametrize("error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")])
def test_without_memory_the_client_is_to_come_again(start, classifier, photo, error):
    failing = []

    class Full:
        info = classifier.info

        def __call__(self, pixels):
            if failing:
                raise error
            return classifier.runtime(pixels)

    client = start(replace(classifier, runtime=Full()))
    failing.append(1)
    answer = raw(client, photo)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert "memory" in answer.json()["error"]["problem"]


def test_an_error_that_nobody_expected_tells_nothing(start, classifier, photo, caplog):
    class Odd:
        info = classifier.info

        def __call__(self, pixels):
            if failing:
                raise ValueError("/secret/path")
            return classifier.runtime(pixels)

    failing = []
    client = start(replace(classifier, runtime=Odd()))
    failing.append(1)
    answer = raw(client, photo, **{"x-request-id": "abc"})
    assert answer.status_code == 500
    assert answer.json()["error"]["problem"] == "Something went wrong." and "secret" not in answer.text
    assert answer.json()["error"]["request_id"] == "abc"
    (logged,) = [record for record in caplog.records if record.getMessage() == "failed"]
    assert logged.fields == {"request_id": "abc"} and "/secret/path" in str(logged.exc_info[1])


def test_several_images_get_an_answer_or_an_error_each(client, classifier):
    contents = [READABLE["CMYK"], b"no image", READABLE["PNG"], b"", READABLE["16 bits"]]
    files = [("images", (f"{i}.jpg", content)) for i, content in enumerate(contents)]
    answer = client.post("/v1/predict/batch", files=[*files, ("other", (None, b"ignored"))])
    assert answer.status_code == 200
    answers = answer.json()["answers"]
    assert [one["name"] for one in answers] == [f"{i}.jpg" for i in range(5)]
    for i in (0, 2, 4):
        assert answers[i] == {"name": f"{i}.jpg", **classifier(contents[i]).to_dict()}
    for i in (1, 3):
        assert set(answers[i]) == {"name", "error"} and set(answers[i]["error"]) == {"problem", "remedy", "status"}
        assert answers[i]["error"]["status"] == 400
    assert answer.json()["fingerprint"] == classifier.info.fingerprint


def test_several_images_go_through_the_model_one_by_one(start, gate, photo):
    seen = []
    made, model = gate
    classifier = replace(model, runtime=type("Seen", (), {
        "info": made.info, "__call__": lambda self, pixels: seen.append(pixels.shape) or made(pixels)
    })())  # fmt: skip
    client = start(classifier)
    seen.clear()
    assert client.post("/v1/predict/batch", files=[("images", ("a.jpg", photo))] * 5).status_code == 200
    assert seen == [(1, 3, 32, 32)] * 5


def test_too_many_images_are_refused(start, photo):
    client = start(batch_images=3)
    for count, status in ((3, 200), (4, 413)):
        assert client.post("/v1/predict/batch", files=[("images", ("a.jpg", photo))] * count).status_code == status
    assert client.post("/v1/predict/batch", files={"image": photo}).status_code == 400
    assert client.post("/v1/predict/batch", content=photo).status_code == 415


def test_a_full_queue_answers_503(start, gate, photo):
    made, model = gate
    client = start(model, workers=1, queue=1)
    assert raw(client, photo).status_code == 200
    made.close()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(raw, client, photo)
        assert made.begun.acquire(timeout=30)
        second = threads.submit(raw, client, photo)
        service = client.app.state.service
        while not service.workers.waiting:
            pass
        calls = made.calls
        refused = raw(client, photo)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "busy" in refused.json()["error"]["problem"] and made.calls == calls
        assert client.get("/health/live").status_code == 200
        made.open.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_what_waits_longer_than_its_client_is_not_computed(start, gate, photo):
    made, model = gate
    client = start(model, workers=1)
    made.close()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(raw, client, photo)
        assert made.begun.acquire(timeout=30)
        second = threads.submit(raw, client, photo, **{"x-request-timeout-ms": "50"})
        service = client.app.state.service
        while not service.workers.waiting and not second.done():
            pass
        time.sleep(0.1)
        calls = made.calls
        made.open.set()
        assert (first.result().status_code, second.result().status_code) == (200, 503)
    assert made.calls == calls and "retry-after" in second.result().headers


@pytest.mark.parametrize("value", ["-1", "0", "000", "soon", "1.5", "", "9" * 30, "١"])
def test_a_time_that_is_none(client, photo, value):
    answer = raw(client, photo, **{"x-request-timeout-ms": value.encode()})
    assert answer.status_code == 400 and "whole number" in answer.json()["error"]["problem"]


def test_bodies_are_bounded(start, photo):
    client = start(body_bytes=len(photo))
    assert raw(client, photo).status_code == 200
    for content in (photo + b"x", bytes(100 * len(photo)), (photo for _ in range(2))):
        answer = raw(client, content)
        assert answer.status_code == 413 and "MiB" in answer.json()["error"]["problem"]
    assert client.app.state.service.bodies.held == 0


def test_all_bodies_together_are_bounded(start, photo):
    client = start(all_bytes=len(photo))
    assert raw(client, photo).status_code == 200
    answer = raw(client, photo + b"x")
    assert answer.status_code == 503 and "large" in answer.json()["error"]["problem"]
    assert raw(client, photo).status_code == 200


def test_health(client, classifier):
    assert client.get("/health/live").json() == {"status": "live"}
    fingerprint = classifier.info.fingerprint
    assert client.get("/health/ready").json() == {"status": "ready", "model": "trees", "fingerprint": fingerprint}


def test_ready_is_an_inference(start, classifier):
    failing = []

    class Broken:
        info = classifier.info

        def __call__(self, pixels):
            if failing:
                raise ParityError("It fails.", "Mend it.", "logits")
            return classifier.runtime(pixels)

    client = start(replace(classifier, runtime=Broken()))
    failing.append(1)
    assert client.get("/health/ready").status_code == 500
    assert client.get("/health/live").status_code == 200
    failing.clear()
    assert client.get("/health/ready").status_code == 200


def test_forms_without_an_image_do_not_make_a_server_ready(start, classifier):
    class Broken:
        info = classifier.info

        def __call__(self, pixels):
            if failing:
                raise ParityError("It fails.", "Mend it.", "logits")
            return classifier.runtime(pixels)

    failing = []
    client = start(replace(classifier, runtime=Broken()))
    failing.append(1)
    assert client.post("/v1/predict/batch", files=[("images", ("x", b"no image"))]).status_code == 200
    assert client.get("/health/ready").status_code == 500


def test_what_is_not_there(client):
    assert client.get("/v1/predict").status_code == 405
    answer = client.get("/nothing")
    assert answer.status_code == 404 and "/docs" in answer.json()["error"]["remedy"]


def test_images_are_not_turned_by_exif(client):
    """As `vitconv predict`, timm and Transformers, which do not look at it either."""
    plain = Image.open(io.BytesIO(READABLE["EXIF"]))
    assert plain.getexif()[0x112] == 6
    assert raw(client, READABLE["EXIF"]).json()["logits"] == raw(client, READABLE["JPEG"]).json()["logits"]
