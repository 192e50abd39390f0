"""The plain endpoints: an image in, an answer out; health and metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vitconv.errors import VitconvError
from vitconv.serving.rest.bodies import Upload, one_image, several_images
from vitconv.serving.rest.errors import status_of
from vitconv.serving.rest.schemas import Batch, Error, Live, Prediction, Ready, errors
from vitconv.serving.rest.service import TIMEOUT

if TYPE_CHECKING:
    from vitconv.serving.rest.service import Service

_FILE = {"type": "string", "format": "binary"}
_TIMEOUT = {
    "name": TIMEOUT,
    "in": "header",
    "description": "Milliseconds within which each image must be answered, if fewer than the server's own limit.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "Up to 64 letters and digits.",
    "schema": {"type": "string"},
}


def _form(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": [name], "properties": {name: schema}}}


HEADERS = [_TIMEOUT, _ID]
_ONE = {
    "parameters": HEADERS,
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _form(_FILE, "image"),
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
        },
    },
}
_SEVERAL = {
    "parameters": HEADERS,
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _form({"type": "array", "items": _FILE, "minItems": 1}, "images")},
    },
}
_FAILURES = errors(Error, 400, 401, 408, 413, 415, 500, 503)

router = APIRouter()
health = APIRouter()


@router.post(
    "/v1/predict",
    summary="Answer one image",
    response_model=Prediction,
    responses=_FAILURES,
    openapi_extra=_ONE,
    tags=["predict"],
)
async def predict(request: Request) -> Response:
    """The image is the field `image` of a form, or the body itself: JPEG, PNG, WebP…, of any shape and colours."""
    service: Service = request.app.state.service
    async with service.admitted(request) as (body, seconds):
        with service.counting() as count:
            answer = await service.run(lambda: service.classifier(one_image(body)), seconds)
            count(answer)
    return JSONResponse({**answer.to_dict(), **_about(service, request)})


@router.post(
    "/v1/predict/batch",
    summary="Answer several images",
    response_model=Batch,
    responses=_FAILURES,
    openapi_extra=_SEVERAL,
    tags=["predict"],
)
async def predict_batch(request: Request) -> Response:
    """Each image is a field `images` of a form, and gets an answer or an error.

    They go through the model one by one: each answer is the one that the image gets when it is sent by itself.
    """
    service: Service = request.app.state.service
    async with service.admitted(request) as (body, seconds):
        most = service.settings.batch_images
        uploads = await service.run(lambda: several_images(body, most), seconds, answers=False)
        turns = asyncio.Semaphore(service.workers.count)
        answers = await asyncio.gather(*(_answer(service, upload, seconds, turns) for upload in uploads))
    return JSONResponse({"answers": answers, **_about(service, request)})


async def _answer(service: Service, upload: Upload, seconds: float, turns: asyncio.Semaphore) -> dict[str, Any]:
    async with turns:
        try:
            with service.counting() as count:
                answer = await service.run(lambda: service.classifier(upload.content), seconds, let_in=True)
                count(answer)
        except VitconvError as error:
            fault = {"problem": error.problem, "remedy": error.remedy, "status": status_of(error)[0]}
            return {"name": upload.name, "error": fault}
    return {"name": upload.name, **answer.to_dict()}


def _about(service: Service, request: Request) -> dict[str, str]:
    return {"fingerprint": service.classifier.info.fingerprint, "request_id": request.state.id}


@health.get("/health/live", summary="Whether the process answers", response_model=Live, tags=["operate"])
async def live() -> Response:
    """Restart the server if this fails."""
    return JSONResponse({"status": "live"})


@health.get(
    "/health/ready",
    summary="Whether an image can be answered",
    response_model=Ready,
    responses=errors(Error, 500, 503),
    tags=["operate"],
)
async def ready(request: Request) -> Response:
    """Send no requests while this fails. It computes a built-in image, unless another was answered just now."""
    service: Service = request.app.state.service
    await service.check_ready()
    info = service.classifier.info
    return JSONResponse({"status": "ready", "model": info.folder.name, "fingerprint": info.fingerprint})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(Error, 401)},
    tags=["operate"],
)
async def metrics(request: Request) -> Response:
    """Requests by path and status, a histogram of their time, the queue, what the model answers, the process."""
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
