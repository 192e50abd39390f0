import json
from dataclasses import replace

import pytest
from photos import image_file
from scraped import samples

from vitconv.errors import ParityError
from vitconv.inference import read_info
from vitconv.inference.certainty import read_certainty
from vitconv.serving.rest.protocol import JSON_LENGTH


def test_requests_are_counted_by_path_and_status(client, photo, classifier):
    for content in (photo, photo, b"x"):
        client.post("/v1/predict", content=content, headers={"content-type": "image/jpeg"})
    for path in ("/v2/models/vit", "/v2/models/other", "/a", "/b"):
        client.get(path)
    found = samples(client)
    counted = {key[1:]: value for key, value in found.items() if key[0] == "vitconv_requests_total" and value}
    assert counted == {
        ("/v1/predict", "200"): 2, ("/v1/predict", "400"): 1,
        ("/v2/models/{name}", "200"): 1, ("/v2/models/{name}", "404"): 1, ("404", "other"): 2,
    }  # fmt: skip
    assert found["vitconv_request_seconds_count", "/v1/predict"] == 3
    assert found["vitconv_request_seconds_sum", "/v1/predict"] > 0
    assert found["vitconv_requests_in_flight",] == 1  # this one
    for name in ("queue_depth", "images_in_work", "body_bytes"):
        assert found[f"vitconv_{name}",] == 0
    assert found["vitconv_workers",] == 2 and found["process_resident_memory_bytes",] > 1e6
    (info,) = [key for key in found if key[0] == "vitconv_model_info"]
    assert {"trees", classifier.info.fingerprint, "transformers"} < set(info)


def test_what_waits_is_seen(start, gate, photo):
    made, model = gate
    client = start(model, workers=1)
    made.close()
    service = client.app.state.service
    futures = [service.workers.enqueue(lambda: service.classifier(photo), 30) for _ in range(3)]
    assert made.begun.acquire(timeout=30)
    found = samples(client)
    assert (found["vitconv_queue_depth",], found["vitconv_images_in_work",]) == (2, 1)
    made.open.set()
    for future in futures:
        future.result(30)


# What becomes of images


def outcomes(client):
    """How many images became what, and the number of answers in each of the other figures."""
    found = samples(client)
    counted = {key[1]: value for key, value in found.items() if key[0] == "vitconv_images_total" and value}
    answers = sum(value for key, value in found.items() if key[0] == "vitconv_answers_total")
    others = [answers, found["vitconv_answer_probability_count",], found.get(("vitconv_oddness_rank_count",), answers)]
    assert others == [counted.get("answer", 0)] * 3
    return counted


def send(client, content, kind="image/jpeg"):
    return client.post("/v1/predict", content=content, headers={"content-type": kind})


def send_all(client, contents):
    return client.post("/v1/predict/batch", files=[("images", ("a.jpg", content)) for content in contents])


def infer(client, model, content):
    return client.post(f"/v2/models/{model}/infer", content=content, headers={JSON_LENGTH: "0"})


@pytest.mark.parametrize("calibrated", [False, True])
def test_an_image_counts_once_whatever_way_it_comes(start, classifier, certain, photo, calibrated):
    model = replace(classifier, certainty=read_certainty(read_info(certain))) if calibrated else classifier
    client = start(model)
    assert outcomes(client) == {}  # the image that was tried when it began is none
    assert send(client, photo).status_code == 200
    assert client.post("/v1/predict", files={"image": photo}).status_code == 200
    assert outcomes(client) == {"answer": 2}
    assert send_all(client, [photo, b"no image", photo]).status_code == 200
    assert outcomes(client) == {"answer": 4, "unreadable": 1}
    assert infer(client, "vit", photo).status_code == 200
    assert outcomes(client) == {"answer": 5, "unreadable": 1}
    pixels = infer(client, "preprocess", photo)
    assert outcomes(client) == {"answer": 5, "unreadable": 1}
    assert infer(client, "model", pixels.content[int(pixels.headers[JSON_LENGTH]) :]).status_code == 200
    assert outcomes(client) == {"answer": 6, "unreadable": 1}
    found, expected = samples(client), model(photo)
    label = {None: "unknown", True: "true", False: "false"}[expected.reliable]
    assert found["vitconv_answers_total", *sorted((expected.name, label))] == 6
    probability = expected.calibrated_probability if calibrated else expected.probability
    assert found["vitconv_answer_probability_sum",] == pytest.approx(6 * probability)
    if calibrated:
        assert found["vitconv_oddness_rank_sum",] == pytest.approx(6 * expected.oddness_rank)


def test_what_no_client_sent_is_not_counted(client, classifier, photo):
    assert client.get("/health/ready").status_code == client.get("/v2/models/vit/ready").status_code == 200
    assert outcomes(client) == {}


def test_an_image_s_own_fault(client):
    for content in (b"no image", image_file("JPEG")[:300], image_file("PNG", "L", (20_000, 9_000))[:60]):
        assert send(client, content).status_code == infer(client, "vit", content).status_code == 400
    assert outcomes(client) == {"unreadable": 6}


def test_a_request_that_is_none_has_no_image(client, photo):
    assert send(client, photo, "text/plain").status_code == 415
    assert send(client, b"").status_code == 400
    assert client.post("/v1/predict", files={"other": photo}).status_code == 400
    assert client.post("/v2/models/vit/infer", content=json.dumps({"inputs": []})).status_code == 400
    assert send_all(client, [photo] * 33).status_code == 413
    assert outcomes(client) == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("x"), 500), (MemoryError(), 503), (ParityError("It fails.", "Look.", stage="loading"), 500)],
)
def test_the_server_s_fault(start, gate, photo, error, status):
    made, model = gate
    client = start(model)

    def fail(pixels):
        raise error

    made._runtime = fail
    assert send(client, photo).status_code == infer(client, "vit", photo).status_code == status
    assert outcomes(client) == {"failed": 2}


def test_what_waited_too_long_failed_and_what_was_never_read_is_nothing(start, gate, photo):
    made, model = gate
    client = start(model, workers=1, queue=1, timeout=1)
    service = client.app.state.service
    made.close()
    waiting = [service.workers.enqueue(lambda: service.classifier(photo), 30)]
    assert made.begun.acquire(timeout=30)
    waiting.append(service.workers.enqueue(lambda: service.classifier(photo), 30))
    assert send(client, photo).status_code == 503  # its body is not read
    assert outcomes(client) == {}
    made.open.set()
    for future in waiting:
        future.result(30)
    service.workers._mean = 60  # whatever has waited at all is too late
    many = send_all(client, [photo] * 8).json()["answers"]
    dropped = [one["error"]["status"] for one in many if "error" in one]
    assert set(dropped) <= {503}
    assert outcomes(client) == {
        name: count for name, count in (("answer", 8 - len(dropped)), ("failed", len(dropped))) if count
    }
