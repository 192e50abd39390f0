"""The Open Inference Protocol, which KServe, Triton and their clients speak, with tensors as JSON or as bytes.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vitconv import __version__
from vitconv.serving import tensors
from vitconv.serving.rest import schemas
from vitconv.serving.rest.errors import RequestError
from vitconv.serving.rest.protocol import JSON_LENGTH, VERSION, Done, run
from vitconv.serving.rest.v1 import HEADERS

if TYPE_CHECKING:
    from vitconv.serving.rest.service import Service

_FAILURES = schemas.errors(schemas.ProtocolError, 400, 401, 404, 408, 413, 415, 500, 503)

router = APIRouter(tags=["Open Inference Protocol"])
health = APIRouter(tags=["Open Inference Protocol"])


@router.get(
    "/v2", summary="The server", response_model=schemas.Server, responses=schemas.errors(schemas.ProtocolError, 401)
)
async def server() -> Response:
    """Its name, version and extensions."""
    return JSONResponse(
        {"name": "vitconv", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    )


@health.get("/v2/health/live", summary="Whether the process answers", response_model=schemas.Live)
async def live() -> Response:
    """As /health/live."""
    return JSONResponse({"status": "live"})


@health.get(
    "/v2/health/ready",
    summary="Whether an image can be answered",
    response_model=schemas.Live,
    responses=schemas.errors(schemas.ProtocolError, 500, 503),
)
async def ready(request: Request) -> Response:
    """As /health/ready."""
    await request.app.state.service.check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/v2/models/{name}", summary="A model", response_model=schemas.Model, responses=_FAILURES)
@router.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
async def model(request: Request, name: str) -> Response:
    """What it takes and what it gives."""
    found = _find(request, name)
    return JSONResponse({
        "name": found.name,
        "versions": [VERSION],
        "platform": f"vitconv_{request.app.state.service.classifier.info.runtime}",
        "inputs": [_described(one) for one in found.inputs],
        "outputs": [_described(one) for one in found.outputs],
    })  # fmt: skip


@router.get(
    "/v2/models/{name}/ready", summary="Whether a model is ready", response_model=schemas.Live, responses=_FAILURES
)
@router.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, name: str) -> Response:
    """As /health/ready."""
    _find(request, name)
    await request.app.state.service.check_ready()
    return JSONResponse({"status": "ready"})


@router.post(
    "/v2/models/{name}/infer",
    summary="Run a model",
    response_model=schemas.Inference,
    response_model_exclude_none=True,
    responses=_FAILURES,
    openapi_extra={
        "parameters": HEADERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schemas.INFER}}},
    },
)
@router.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, name: str) -> Response:
    """`vit` takes the bytes of an image and gives logits and probabilities; `preprocess` gives the pixels of an image,
    `model` the logits and probabilities of pixels. A calibrated model also gives how certain it is. One image a
    request."""
    found = _find(request, name)
    service: Service = request.app.state.service
    stated = request.headers.get(JSON_LENGTH)
    async with service.admitted(request) as (body, seconds):

        def work() -> Done:
            return run(service.classifier, found, body.content, stated)

        if found.name == tensors.PREPROCESS:  # not counted: its pixels may come to be answered, and would count twice
            done = await service.run(work, seconds, answers=False)
        else:
            with service.counting() as count:
                done = await service.run(work, seconds)
                if done.answer is not None:
                    count(done.answer)
    if done.length is None:
        return Response(done.content, media_type="application/json")
    return Response(done.content, media_type="application/octet-stream", headers={JSON_LENGTH: str(done.length)})


def _find(request: Request, name: str) -> tensors.Model:
    classifier = request.app.state.service.classifier
    models = tensors.models(classifier.info, calibrated=classifier.certainty is not None)
    if name not in models or request.path_params.get("version", VERSION) != VERSION:
        raise RequestError(404, "There is no such model.", f"There are {', '.join(models)}, in version {VERSION}.")
    return models[name]


def _described(tensor: tensors.Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
