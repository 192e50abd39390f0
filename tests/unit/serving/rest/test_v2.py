"""The Open Inference Protocol over HTTP. That NVIDIA's own client speaks it is tested with a process: system/."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vitconv.inference import read_info
from vitconv.inference.certainty import judge, read_certainty
from vitconv.serving.tensors import answers

LENGTH = "Inference-Header-Content-Length"


def infer(client, model, content, length=None, **headers):
    headers |= {LENGTH: str(length)} if length is not None else {}
    return client.post(f"/v2/models/{model}/infer", content=content, headers=headers)


def test_the_server_and_its_models(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "classification"]
    for path in ("live", "ready"):
        assert client.get(f"/v2/health/{path}").status_code == 200
    for name, given, gives in (
        ("vit", ["image"], ["logits", "probabilities"]),
        ("preprocess", ["image"], ["pixels"]),
        ("model", ["pixels"], ["logits", "probabilities"]),
    ):
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/1"):
            found = client.get(path).json()
            assert [one["name"] for one in found["inputs"]] == given and found["versions"] == ["1"]
            assert [one["name"] for one in found["outputs"]] == gives
            assert found["platform"] == "vitconv_transformers"
            assert client.get(f"{path}/ready").status_code == 200
    assert client.get("/v2/models/model").json()["inputs"] == [
        {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 32, 32]}
    ]


@pytest.mark.parametrize(
    "path",
    ["/v2/models/other", "/v2/models/vit/versions/2", "/v2/models/vit/versions/2/ready", "/v2/models/%2e%2e/ready"],
)
def test_a_model_that_is_not_there(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and isinstance(answer.json()["error"], str)
    assert client.post("/v2/models/vit/versions/2/infer", content=b"{}").status_code == 404


def test_bytes_of_an_image_become_an_answer(client, classifier, photo):
    expected = classifier(photo)
    head = {"id": "7", "inputs": [
        {"name": "image", "datatype": "UINT8", "shape": [len(photo)], "parameters": {"binary_data_size": len(photo)}}
    ]}  # fmt: skip
    content = json.dumps(head).encode()
    for path in ("vit", "vit/versions/1"):
        answer = infer(client, path, content + photo, len(content))
        assert answer.headers["content-type"] == "application/json" and answer.json()["id"] == "7"
        logits, probabilities = answer.json()["outputs"]
        assert np.array(logits["data"], np.float32).tobytes() == expected.logits.tobytes()
        assert max(probabilities["data"]) == expected.probability and probabilities["shape"] == [1, 5]


def test_a_raw_request_is_answered_with_bytes(client, classifier, photo):
    answer = infer(client, "vit", photo, 0)
    length = int(answer.headers[LENGTH])
    head, tail = json.loads(answer.content[:length]), answer.content[length:]
    assert [one["parameters"] for one in head["outputs"]] == [{"binary_data_size": 20}, {"binary_data_size": 40}]
    assert tail[:20] == classifier(photo).logits.tobytes() and len(tail) == 60


def test_the_two_halves_make_the_whole(client, classifier, photo):
    answer = infer(client, "preprocess", photo, 0)
    pixels = answer.content[int(answer.headers[LENGTH]) :]
    assert pixels == classifier.prepare(photo).values.tobytes()
    answer = infer(client, "model", pixels, 0)
    assert answer.content[int(answer.headers[LENGTH]) :][:20] == classifier(photo).logits.tobytes()


def test_a_bad_image_is_the_client_s_fault(client):
    answer = infer(client, "vit", b"no image", 0)
    assert answer.status_code == 400 and answer.json()["error"].startswith("The image is not an image")


@pytest.fixture
def sure(start, classifier, certain):
    """A calibrated model behind the application, and it itself."""
    model = replace(classifier, certainty=read_certainty(read_info(certain)))
    return start(model), model


ALL = ["logits", "probabilities", "calibrated_probabilities", "prediction_set", "reliable", "unlike"]


def test_a_calibrated_model_lists_and_gives_how_certain_it_is(sure, photo):
    client, model = sure
    logits = model(photo).logits[None]
    expected = answers(logits, judge(model.certainty, logits, model.prepare(photo).values[None]))
    for name in ("vit", "model"):
        listed = client.get(f"/v2/models/{name}").json()["outputs"]
        assert [one["name"] for one in listed] == ALL
        content = photo if name == "vit" else model.prepare(photo).values.tobytes()
        answer = infer(client, name, content, 0)
        length = int(answer.headers[LENGTH])
        head, tail = json.loads(answer.content[:length]), answer.content[length:]
        assert [{key: one[key] for key in ("name", "datatype", "shape")} for one in head["outputs"]] == listed
        assert tail == b"".join(expected[name].tobytes() for name in ALL)


def test_as_json_with_the_names_of_the_set(sure, photo):
    client, model = sure
    asked = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(photo) + 4}}],
        "outputs": [
            {"name": "prediction_set", "parameters": {"classification": 2}},
            {"name": "reliable"},
            {"name": "unlike"},
        ],
    }  # fmt: skip
    head = json.dumps(asked).encode()
    found = infer(client, "vit", head + len(photo).to_bytes(4, "little") + photo, len(head)).json()["outputs"]
    expected = model(photo)
    names = [text.split(":")[2] for text in found[0]["data"] if text.startswith("1.0")]
    assert set(names) == set(expected.prediction_set[:2])
    assert found[1]["data"] == [int(expected.reliable)] and found[1]["datatype"] == "UINT8"
    for name in ("reliable", "unlike"):  # they have no classes
        asked["outputs"] = [{"name": name, "parameters": {"classification": 1}}]
        head = json.dumps(asked).encode()
        answer = infer(client, "vit", head + len(photo).to_bytes(4, "little") + photo, len(head))
        assert answer.status_code == 400 and "`classification`" in answer.json()["error"]
