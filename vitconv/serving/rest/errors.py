"""What a client is told when something is wrong: vitconv's two sentences, as JSON, with a status that fits."""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse

from vitconv.errors import InputError, VitconvError
from vitconv.serving.workers import BusyError

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException


class RequestError(VitconvError):
    """A request that is not as it has to be.

    Attributes:
        status: of the answer: 4xx.
        headers: of the answer.
    """

    def __init__(self, status: int, problem: str, remedy: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        super().__init__(problem, remedy)


def status_of(error: VitconvError) -> tuple[int, dict[str, str]]:
    """The status that tells a client whose fault an error is, and the headers that go with it."""
    if isinstance(error, RequestError):
        return error.status, error.headers
    if isinstance(error, BusyError):
        return 503, {"Retry-After": str(error.retry_after)}
    return 400 if isinstance(error, InputError) else 500, {}


def answer(request: Request, error: VitconvError) -> JSONResponse:
    """The answer that says what is wrong, in the form that the request's protocol has for that."""
    status, headers = status_of(error)
    request.state.problem = error.problem  # for the log
    content: Any = {"problem": error.problem, "remedy": error.remedy, "request_id": request.state.id}
    if request.url.path.startswith("/v2"):
        content = f"{error.problem} {error.remedy}"  # the Open Inference Protocol has a text
    return JSONResponse({"error": content}, status, headers)


def of_starlette(error: HTTPException) -> RequestError:
    """What Starlette raises: no such path, no such method."""
    phrase = http.HTTPStatus(error.status_code).phrase
    return RequestError(error.status_code, f"{phrase}.", "See /docs for what there is.", dict(error.headers or {}))


def without_memory() -> BusyError:
    """What is said where the machine's memory, or the GPU's, is used up."""
    return BusyError("There is not enough memory for this image now.", 1)


UNKNOWN = VitconvError("Something went wrong.", "Look for the request's id in the server's log.")
