"""Requests of the protocol, as they may be written, and as they may not."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from vitconv.errors import InputError, VitconvError
from vitconv.serving.rest.errors import RequestError, status_of
from vitconv.serving.rest.protocol import run
from vitconv.serving.tensors import models


@pytest.fixture
def ask(classifier):
    def ask(model, content, tail=b"", stated=""):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        stated = str(len(body)) if stated == "" and tail else stated or None
        answer, length, _ = run(
            classifier,
            models(classifier.info, calibrated=classifier.certainty is not None)[model],
            body + tail,
            stated,
        )
        head = json.loads(answer[:length])
        outputs, rest = {}, answer[len(answer) if length is None else length :]
        for output in head["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            outputs[output["name"]] = output["data"] if size is None else rest[:size]
            rest = rest[size or 0 :]
        assert not rest
        return head, outputs

    return ask


def image(photo, **more):
    return {"name": "image", "datatype": "UINT8", "shape": [len(photo)], **more}


@pytest.fixture
def pixels(classifier, photo):
    return classifier.prepare(photo).values


def test_every_way_to_send_an_image(ask, classifier, photo):
    expected = classifier(photo).logits.tolist()
    numbers, size = list(photo), {"parameters": {"binary_data_size": len(photo)}}
    with_length = struct.pack("<I", len(photo)) + photo
    in_bytes = image(photo, datatype="BYTES", shape=[1], parameters={"binary_data_size": len(with_length)})
    for given, tail in (
        (image(photo, data=numbers), b""),
        (image(photo, **size), photo),
        (in_bytes, with_length),
    ):
        assert ask("vit", {"inputs": [given]}, tail)[1]["logits"] == expected


def test_an_image_that_is_a_text(ask):
    netpbm = "P3 1 1 255 9 9 9\n"  # decoded in Python, and so refused; but it arrives
    with pytest.raises(InputError, match="takes too long to read"):
        ask("vit", {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [netpbm]}]})


def test_every_way_to_send_pixels(ask, classifier, photo, pixels):
    expected = classifier(photo).logits.tobytes()
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, *pixels.shape]}
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    for data in (pixels[None].tolist(), pixels.ravel().tolist()):
        assert ask("model", {"inputs": [{**tensor, "data": data}], "outputs": outputs})[1] == {"logits": expected}
    given = {**tensor, "parameters": {"binary_data_size": pixels.nbytes}}
    assert ask("model", {"inputs": [given], "outputs": outputs}, pixels.tobytes())[1] == {"logits": expected}


def test_the_outputs_that_are_asked_for(ask, classifier, photo):
    answer, inputs = classifier(photo), [image(photo, data=list(photo))]
    binary = {"binary_data_output": True}
    head, all_of_them = ask("vit", {"inputs": inputs, "parameters": binary})
    assert all_of_them["logits"] == answer.logits.tobytes() and len(all_of_them["probabilities"]) == 40
    _, one = ask("vit", {"inputs": inputs, "outputs": [{"name": "probabilities"}]})
    assert list(one) == ["probabilities"] and max(one["probabilities"]) == answer.probability
    both = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "logits"}]
    head, values = ask("vit", {"inputs": inputs, "outputs": both})
    assert [one["name"] for one in head["outputs"]] == ["probabilities", "logits"]
    assert values["logits"] == answer.logits.tolist() and isinstance(values["probabilities"], bytes)
    assert list(ask("vit", {"inputs": inputs, "outputs": []})[1]) == ["logits", "probabilities"]


@pytest.mark.parametrize(("model", "shape"), [("vit", [2]), ("model", [1, 2])])
def test_the_largest_values_with_their_classes(ask, classifier, photo, pixels, model, shape):
    answer = classifier(photo)
    order = np.argsort(-answer.logits)
    expected = [f"{answer.logits[i]:f}:{i}:{classifier.info.classes[i]}" for i in order[:2]]
    inputs = {
        "vit": [image(photo, data=list(photo))],
        "model": [
            {"name": "pixels", "datatype": "FP32", "shape": [1, *pixels.shape], "data": pixels.ravel().tolist()}
        ],
    }[model]
    asked = [{"name": "logits", "parameters": {"classification": 2}}]
    head, values = ask(model, {"inputs": inputs, "outputs": asked})
    assert values["logits"] == expected and expected[0].endswith(answer.name)
    assert (head["outputs"][0]["datatype"], head["outputs"][0]["shape"]) == ("BYTES", shape)
    asked[0]["parameters"] = {"classification": 99, "binary_data": True}
    head, values = ask(model, {"inputs": inputs, "outputs": asked})
    size = len(expected[0])
    assert (
        struct.unpack_from("<I", values["logits"])[0] == size and values["logits"][4:][:size].decode() == expected[0]
    )
    assert head["outputs"][0]["shape"][-1] == 5


PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 32, 32]}
REFUSED = {
    "no JSON": ("vit", b"{", "no JSON"),
    "not UTF-8": ("vit", b"\xff", "no JSON"),
    "deep": ("vit", b"[" * 100_000, "no JSON"),
    "long number": ("vit", b'{"inputs": ' + b"9" * 5000 + b"}", "no JSON"),
    "a list": ("vit", [], "no JSON object"),
    "no inputs": ("vit", {}, "`inputs` is no list"),
    "inputs that are none": ("vit", {"inputs": 3}, "`inputs` is no list"),
    "empty": ("vit", {"inputs": []}, "one input, not 0"),
    "two inputs": ("vit", {"inputs": [{}, {}]}, "one input, not 2"),
    "no object": ("vit", {"inputs": [1]}, "An input is no JSON object"),
    "no name": ("vit", {"inputs": [{}]}, "has no input None"),
    "another input": ("vit", {"inputs": [PIXELS]}, "has no input 'pixels'"),
    "another type": ("vit", {"inputs": [image(b"x", datatype="FP32", data=[1])]}, "datatype of `image` is 'FP32'"),
    "pixels as texts": ("model", {"inputs": [{**PIXELS, "datatype": "BYTES", "data": ["x"]}]}, "is 'BYTES'"),
    "another shape": ("vit", {"inputs": [image(b"x", shape=[2], data=[1])]}, r"shape of `image` is \[2\]"),
    "a shape of booleans": ("vit", {"inputs": [image(b"x", shape=[True], data=[1])]}, r"shape of `image` is \[True\]"),
    "no shape": ("vit", {"inputs": [image(b"x", shape=None, data=[1])]}, "shape of `image` is None"),
    "no data": ("vit", {"inputs": [image(b"x")]}, "data of `image` are not UINT8"),
    "no bytes": ("vit", {"inputs": [image(b"x", data=[256])]}, "data of `image` are not UINT8"),
    "negative": ("vit", {"inputs": [image(b"x", data=[-1])]}, "data of `image` are not UINT8"),
    "fractions": ("vit", {"inputs": [image(b"x", data=[0.5])]}, "data of `image` are not UINT8"),
    "truths": ("vit", {"inputs": [image(b"x", data=[True])]}, "data of `image` are not UINT8"),
    "texts": ("vit", {"inputs": [image(b"x", data=["a"])]}, "data of `image` are not UINT8"),
    "ragged": ("vit", {"inputs": [image(b"x", data=[[1], [1, 2]])]}, "data of `image` are not UINT8"),
    "objects": ("vit", {"inputs": [image(b"x", data=[{}])]}, "data of `image` are not UINT8"),
    "huge": ("vit", {"inputs": [image(b"x", data=[10**300])]}, "data of `image` are not UINT8"),
    "nested": ("vit", {"inputs": [image(b"x", data=[[1]])]}, "data of `image` are not UINT8"),
    "one long text of many": ("vit", {"inputs": [image(b"x", data=["a" * 10**6, *[""] * 500])]}, "are not UINT8"),
    "channels last": ("model", {"inputs": [{**PIXELS, "data": [[[0.0] * 3] * 32] * 32}]}, "are not FP32"),
    "true pixels": ("model", {"inputs": [{**PIXELS, "data": [True] * 3072}]}, "data of `pixels` are not FP32"),
    "texts as pixels": ("model", {"inputs": [{**PIXELS, "data": ["a" * 10**6] * 3072}]}, "JSON is larger than"),
    "huge pixels": (
        "model",
        {"inputs": [{**PIXELS, "data": [10**400, *[0] * 3071]}]},
        "data of `pixels` are not FP32",
    ),
    "much JSON": ("vit", b"[" + b"{}," * 2**22 + b"{}]", "JSON is larger than 8 MiB"),
    "a truth of classes": (
        "vit",
        {"inputs": [image(b"x", data=[1])], "outputs": [{"name": "logits", "parameters": {"classification": True}}]},
        "`classification` is True",
    ),
    "empty data": ("vit", {"inputs": [image(b"", data=[])]}, "data of `image` are not UINT8"),
    "two texts": ("vit", {"inputs": [image(b"", datatype="BYTES", data=["a", "b"])]}, "not BYTES"),
    "few pixels": ("model", {"inputs": [{**PIXELS, "data": [0.0]}]}, "data of `pixels` are not FP32"),
    "no numbers": ("model", {"inputs": [{**PIXELS, "data": [float("nan")] * 3072}]}, "Pixels are not finite"),
    "infinite": ("model", {"inputs": [{**PIXELS, "data": [1e39] * 3072}]}, "Pixels are not finite"),
    "size of no bytes": ("vit", {"inputs": [image(b"x", parameters={"binary_data_size": 1})]}, "0 bytes follow"),
    "size that is none": ("vit", {"inputs": [image(b"x", parameters={"binary_data_size": "x"})]}, "not 'x'"),
    "data of two": (
        "vit",
        {"inputs": [image(b"x", data=[1], parameters={"binary_data_size": 0})]},
        "has `data` and a `binary_data_size`",
    ),
    "parameters": ("vit", {"inputs": [image(b"x", parameters=3)]}, "`parameters` is no JSON object"),
    "another output": ("vit", {"inputs": [image(b"x", data=[1])], "outputs": [{"name": "x"}]}, "no output 'x'"),
    "an odd output": ("vit", {"inputs": [image(b"x", data=[1])], "outputs": [{"name": []}]}, r"no output \[\]"),
    "outputs": ("vit", {"inputs": [image(b"x", data=[1])], "outputs": 1}, "`outputs` is no list"),
    "classes of pixels": (
        "preprocess",
        {"inputs": [image(b"x", data=[1])], "outputs": [{"name": "pixels", "parameters": {"classification": 1}}]},
        "`classification` is 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_is_none(ask, name):
    model, content, problem = REFUSED[name]
    with pytest.raises(VitconvError, match=problem) as refused:
        ask(model, content)
    assert status_of(refused.value)[0] == (413 if "larger" in problem else 400) and refused.value.remedy


def test_texts_take_no_memory_of_their_longest(ask):
    """numpy would have made room for the longest text in the place of each."""
    tracemalloc.start()
    try:
        with pytest.raises(VitconvError, match="are not UINT8"):
            ask("vit", {"inputs": [image(b"x", data=["a" * 10**6, *[""] * 500])]})
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("nested", [lambda p: p, lambda p: p[0], np.ravel])
def test_pixels_nested_as_they_are_or_flat(ask, classifier, photo, nested):
    pixels = classifier.prepare(photo).values[None]
    _, values = ask("model", {"inputs": [{**PIXELS, "data": nested(pixels).tolist()}]})
    assert values["logits"] == classifier(photo).logits.tolist()


@pytest.mark.parametrize("stated", ["-1", "x", "1e3", "99999", "9" * 40, "²", " 1"])
def test_a_length_that_is_none(ask, stated):
    with pytest.raises(RequestError, match="is not the length of the JSON"):
        ask("vit", b"{}", stated=stated)


@pytest.mark.parametrize("content", [b"", bytes(8), struct.pack("<I", 9) + b"x"])
def test_bytes_that_do_not_fit_the_pixels(ask, content):
    with pytest.raises(RequestError, match=f"`pixels` has {len(content)} bytes"):
        ask("model", content, stated="0")
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(content)}}
    with pytest.raises(RequestError, match="is not one element|0 bytes follow|not an image") as refused:
        ask("vit", {"inputs": [given]}, content)
    assert status_of(refused.value)[0] == 400


def test_bytes_that_nobody_has_named(ask, photo):
    with pytest.raises(RequestError, match="no input is said to be in them"):
        ask("vit", {"inputs": [image(photo, data=list(photo))]}, b"x")


def test_pixels_that_the_model_cannot_add_up(ask):
    with pytest.raises(InputError, match="logits of these pixels are not finite"):
        ask("model", {"inputs": [{**PIXELS, "data": [3e38] * 3072}]})
