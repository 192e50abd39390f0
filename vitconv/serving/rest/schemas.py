"""What the endpoints answer, for the OpenAPI description; the answers themselves are built without it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """What is wrong, and what to do."""

    problem: str
    remedy: str
    request_id: str


class Error(BaseModel):
    """The answer to a request that failed."""

    error: Problem


class Answer(BaseModel):
    """What the model says of an image."""

    class_: str = Field(alias="class", description="The class of the largest logit.")
    probability: float = Field(description="Its softmax.")
    calibrated_probability: float | None = Field(
        description="How often such an answer is right; null if the model is not calibrated."
    )
    prediction_set: list[str] | None = Field(
        description="The classes that may be right, the most probable one first; null if the model is not calibrated."
    )
    reliable: bool | None = Field(
        description="Whether the image is like those of the calibration, and only one class is likely; null if the "
        "model is not calibrated."
    )
    why_not: str | None = Field(description="Why it is not reliable, or why that is not known.")
    logits: list[float] = Field(description="float32, in the order of the model's classes.")
    note: str | None = Field(description="How timm is known to prepare this image differently.")


class Prediction(Answer):
    """The answer on one image."""

    fingerprint: str = Field(description="The SHA-256 of what decides the model's numbers.")
    request_id: str


class Fault(BaseModel):
    """Why an image has no answer."""

    problem: str
    remedy: str
    status: int = Field(description="Which the answer would have had, if the image had been sent by itself.")


class Answered(Answer):
    """The answer on one image of several."""

    name: str = Field(description="Of the file, as it was sent.")


class Failed(BaseModel):
    """One image of several that has no answer."""

    name: str
    error: Fault


class Batch(BaseModel):
    """The answers on several images, in their order."""

    answers: list[Answered | Failed]
    fingerprint: str
    request_id: str


class Ready(BaseModel):
    """An image was answered just now."""

    status: str
    model: str
    fingerprint: str


class Live(BaseModel):
    """The process answers."""

    status: str


class ProtocolError(BaseModel):
    """The answer to a request of the Open Inference Protocol that failed."""

    error: str


class Server(BaseModel):
    """The server, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class Tensor(BaseModel):
    """A tensor that a model takes or gives."""

    name: str
    datatype: str
    shape: list[int]


class Model(BaseModel):
    """A model, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Output(Tensor):
    """A tensor with its values, which follow the JSON as bytes if ``parameters`` says so."""

    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class Inference(BaseModel):
    """What a model gives."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


_TEXT = {"type": "string"}
_INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": _TEXT,
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": _TEXT,
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
#: A request to infer: bytes may follow the JSON, so FastAPI does not read it.
INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _TEXT,
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _INPUT, "minItems": 1, "maxItems": 1},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}},
        },
    },
}


def errors(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that an endpoint may give instead of its own."""
    return {status: {"model": model, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "The image or the request cannot be read.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many images.",
    415: "The content type or encoding is not one of those that are read.",
    500: "The model failed.",
    503: "The server is busy, or not ready: `Retry-After` says when to ask again.",
}
