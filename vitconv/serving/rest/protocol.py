"""Requests and answers of the Open Inference Protocol, and the models behind them: what a worker does.

Tensors are JSON, or bytes behind the JSON:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

import json
import math
import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitconv.errors import InputError, shown
from vitconv.inference.answers import Answer, answer
from vitconv.inference.certainty import judge
from vitconv.serving import tensors
from vitconv.serving.rest.errors import RequestError
from vitconv.serving.rest.settings import MIB

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitconv.serving.classifier import Classifier

#: The header that says how many bytes of a body are JSON; the tensors follow. 0: all of it is the one input.
JSON_LENGTH = "Inference-Header-Content-Length"
#: The version of each model, of which there is one.
VERSION = "1"
_SEE = "See the model's inputs and outputs at /v2/models/NAME."
#: Python made 29 times as many bytes of JSON as it read: of 32 MiB of empty objects 920 MB. A number has at most 24
#: digits, and its comma.
_MOST_JSON, _OF_A_NUMBER = 8 * MIB, 26
_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}


class Wanted(NamedTuple):
    """An output that a request asks for.

    Attributes:
        tensor: which.
        binary: as bytes behind the JSON.
        largest: how many of its largest values, as ``value:index:class``, instead of all as numbers; 0 for those.
    """

    tensor: tensors.Tensor
    binary: bool
    largest: int = 0


class Asked(NamedTuple):
    """A request, read.

    Attributes:
        data: the input: the bytes of an image, or pixels (channels, height, width).
        outputs: which are wanted.
        id: which the client gave, to send back.
    """

    data: bytes | NDArray[np.float32]
    outputs: list[Wanted]
    id: dict[str, str]


class Done(NamedTuple):
    """A request, answered.

    Attributes:
        content: the answer's body.
        length: of the JSON in it if bytes follow; ``None`` if it is all JSON.
        answer: the same for people, and for those who count; ``None`` where there are pixels.
    """

    content: bytes
    length: int | None
    answer: Answer | None


def run(classifier: Classifier, model: tensors.Model, body: bytes, stated: str | None) -> Done:
    """Read a request, run the model, and write the answer.

    Args:
        classifier: behind the models.
        model: which of them.
        body: of the request.
        stated: the header :data:`JSON_LENGTH`.

    Raises:
        InputError, RequestError: the request is not one that the model takes.
    """
    asked = read(model, body, stated)
    values, found = _compute(classifier, model, asked.data)
    outputs, tail = [], b""
    for wanted in asked.outputs:
        value, shape = values[wanted.tensor.name], list(wanted.tensor.shape)
        output: dict[str, Any] = {"name": wanted.tensor.name, "datatype": wanted.tensor.datatype}
        if wanted.largest:
            texts = _largest(value[0], wanted.largest, classifier.info.classes)
            # As Triton does, whose `vit` has no dimension for a batch.
            shape = [len(texts)] if model.name == tensors.VIT else [1, len(texts)]
            output["datatype"], content = "BYTES", b"".join(map(_with_length, texts))
        else:
            texts, content = [], np.ascontiguousarray(value, _DTYPES[wanted.tensor.datatype]).tobytes()
        output["shape"] = shape
        if wanted.binary:
            output["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            output["data"] = texts or value.ravel().tolist()
        outputs.append(output)
    head = json.dumps({"model_name": model.name, "model_version": VERSION, **asked.id, "outputs": outputs}).encode()
    return Done(head + tail, len(head) if any(wanted.binary for wanted in asked.outputs) else None, found)


def _compute(classifier: Classifier, model: tensors.Model, data: Any) -> tuple[dict[str, NDArray[Any]], Answer | None]:
    if model.name == tensors.PREPROCESS:
        return {tensors.PIXELS: classifier.prepare(data).values[None]}, None
    pixels = data if model.name == tensors.MODEL else classifier.prepare(data).values
    logits = classifier.logits(pixels)
    if model.name == tensors.MODEL and not np.isfinite(logits).all():  # no fault of the model, which answers images
        raise InputError("The model's logits of these pixels are not finite.", "Check the pixels' range.")
    judgement = judge(classifier.certainty, logits[None], pixels[None])
    found = answer(logits, classifier.info.classes, judgement=judgement)
    return tensors.answers(logits[None], judgement), found


def _largest(values: NDArray[Any], count: int, classes: tuple[str, ...]) -> list[str]:
    best = np.argsort(-values.astype(np.float64), kind="stable")[:count]  # bytes have no values below 0
    return [f"{values[i]:f}:{i}:{classes[i]}" for i in best]


def _with_length(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<I", len(content)) + content


def read(model: tensors.Model, body: bytes, stated: str | None) -> Asked:
    """Read a request: see :func:`run`."""
    (tensor,) = model.inputs
    length = len(body)
    if stated is not None:
        if not (stated.isascii() and stated.isdecimal() and len(stated) < 12 and int(stated) <= length):
            raise RequestError(400, f"The header {JSON_LENGTH} is not the length of the JSON in the body.", _SEE)
        length = int(stated)
    if stated is not None and not length:  # Triton's raw request: the body is the one input
        return Asked(_of_bytes(tensor, tensor.datatype, body), [Wanted(one, True) for one in model.outputs], {})
    most = MIB + _OF_A_NUMBER * math.prod(tensor.shape) if tensor.name == tensors.PIXELS else _MOST_JSON
    if length > most:
        text = f"The JSON is larger than {most / MIB:.3g} MiB."
        raise RequestError(413, text, "Send the tensor as bytes behind the JSON.")
    try:
        content = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "The request is no JSON that can be read.", _SEE) from error
    inputs = _list(_object(content, "The request"), "inputs")
    if len(inputs) != 1:
        raise RequestError(400, f"`{model.name}` takes one input, not {len(inputs)}.", _SEE)
    given, id = _object(inputs[0], "An input"), content.get("id")
    if given.get("name") != tensor.name:
        text = f"`{model.name}` has no input {shown(given.get('name'))}."
        raise RequestError(400, text, f"It takes `{tensor.name}`.")
    return Asked(
        _input(tensor, given, body[length:]), _outputs(model, content), {"id": id} if isinstance(id, str) else {}
    )


def _outputs(model: tensors.Model, content: dict[str, Any]) -> list[Wanted]:
    known = {one.name: one for one in model.outputs}
    usual = _parameters(content).get("binary_data_output") is True
    wanted: dict[str, Wanted] = {}
    for item in _list(content, "outputs") if content.get("outputs") is not None else []:
        asked = _object(item, "An output")
        name, parameters = asked.get("name"), _parameters(asked)
        if not isinstance(name, str) or name not in known:
            text = f"`{model.name}` has no output {shown(name)}."
            raise RequestError(400, text, f"It gives {', '.join(known)}.")
        largest = parameters.get("classification", 0)
        nameless = model.name == tensors.PREPROCESS or name in tensors.OF_IMAGE
        if type(largest) is not int or largest < 0 or (largest and nameless):
            raise RequestError(400, f"`classification` is {shown(largest)}.", "It is how many classes to name.")
        wanted[name] = Wanted(known[name], parameters.get("binary_data", usual) is True, largest)
    return list(wanted.values()) or [Wanted(one, usual) for one in model.outputs]


def _input(wanted: tensors.Tensor, given: dict[str, Any], tail: bytes) -> bytes | NDArray[np.float32]:
    datatype, parameters = given.get("datatype"), _parameters(given)
    if datatype != wanted.datatype and (datatype != "BYTES" or wanted.name != tensors.IMAGE):
        raise RequestError(400, f"The datatype of `{wanted.name}` is {shown(datatype)}.", f"Send {wanted.datatype}.")
    size = parameters.get("binary_data_size")
    if size is not None:
        if size != len(tail) or isinstance(size, bool):
            raise RequestError(400, f"{len(tail)} bytes follow the JSON, not {shown(size)}.", _SEE)
        if given.get("data") is not None:
            raise RequestError(400, f"`{wanted.name}` has `data` and a `binary_data_size`.", "Send one of the two.")
        value = _of_bytes(wanted, datatype, tail)
    elif tail:
        raise RequestError(400, f"{len(tail)} bytes follow the JSON, but no input is said to be in them.", _SEE)
    else:
        value = _of_json(wanted, datatype, given.get("data"))
    shape = [1] if datatype == "BYTES" else [len(value)] if isinstance(value, bytes) else [1, *value.shape]
    told = given.get("shape")
    if told != shape or any(type(side) is not int for side in told):  # to Python, true and 1.0 equal 1
        raise RequestError(400, f"The shape of `{wanted.name}` is {shown(told)}.", f"It is {shape} here.")
    return value


def _of_bytes(wanted: tensors.Tensor, datatype: str, content: bytes) -> bytes | NDArray[np.float32]:
    """An input that came as bytes: little-endian, and BYTES with its length before it."""
    if datatype == "BYTES":
        if len(content) < 4 or struct.unpack_from("<I", content)[0] != len(content) - 4:
            raise RequestError(400, f"`{wanted.name}` is not one element of BYTES.", "Put its length before it.")
        return content[4:]
    if datatype == "UINT8":
        return content
    if len(content) != 4 * int(np.prod(wanted.shape)):
        raise RequestError(400, f"`{wanted.name}` has {len(content)} bytes.", f"Its shape is {list(wanted.shape)}.")
    return _pixels(wanted, np.frombuffer(content, _DTYPES["FP32"]))


def _of_json(wanted: tensors.Tensor, datatype: str, data: object) -> bytes | NDArray[np.float32]:
    """An input that came as numbers in JSON, flat or nested; BYTES as a text."""
    refused = RequestError(400, f"The data of `{wanted.name}` are not {datatype} that can be read.", _SEE)
    if not isinstance(data, list):
        raise refused
    if datatype == "BYTES":
        if len(data) != 1 or not isinstance(data[0], str):
            raise refused
        return data[0].encode(errors="surrogatepass")
    numbers, shape = _flattened(data, len(wanted.shape))
    kinds = set(map(type, numbers))
    try:
        if datatype == "UINT8":
            if kinds == {int} and len(shape) == 1:
                return bytes(numbers)
        elif kinds <= {int, float} and shape in ([math.prod(wanted.shape)], [*wanted.shape], [*wanted.shape[1:]]):
            with np.errstate(over="ignore"):
                return _pixels(wanted, np.array(numbers, np.float64).astype(np.float32))
    except (ValueError, OverflowError) as error:  # no byte; beyond all floats
        raise refused from error
    raise refused


def _flattened(data: list[Any], deepest: int) -> tuple[list[Any], list[int]]:
    """The numbers in a nested list, and its shape; if it has none, or is nested too deeply, what is left of it."""
    shape = [len(data)]
    while data and len(shape) < deepest:
        lengths = {len(one) if isinstance(one, list) else -1 for one in data}
        if len(lengths) > 1 or -1 in lengths:
            break
        shape.append(lengths.pop())
        data = list(chain.from_iterable(data))
    return data, shape


def _pixels(wanted: tensors.Tensor, values: NDArray[Any]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise RequestError(400, "Pixels are not finite.", "Take those that `preprocess` gives.")
    return np.array(values.reshape(wanted.shape[1:]), np.float32)  # a copy, aligned as numpy's own


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(400, f"{what} is no JSON object.", _SEE)
    return value


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    return _object(content.get("parameters", {}), "`parameters`")


def _list(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise RequestError(400, f"`{name}` is no list.", _SEE)
    return value
