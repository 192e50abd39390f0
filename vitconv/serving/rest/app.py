"""The FastAPI application, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Route

from vitconv import __version__
from vitconv.errors import VitconvError, count_classes
from vitconv.serving.probe import sample_file
from vitconv.serving.rest import v1, v2
from vitconv.serving.rest.errors import UNKNOWN, answer, of_starlette
from vitconv.serving.rest.service import Service
from vitconv.serving.rest.settings import Settings
from vitconv.serving.rest.watch import LOGGER, Watch
from vitconv.serving.workers import Workers, torch_threads

if TYPE_CHECKING:
    from vitconv.serving.classifier import Classifier


def create_app(classifier: Classifier, settings: Settings | None = None) -> FastAPI:
    """The application that answers with a model. Any ASGI server runs it.

    Its workers begin with it. When the server ends it, they compute what they have, and end.

    Args:
        classifier: the model: see :func:`vitconv.serving.open_classifier`.
        settings: what is allowed.

    Raises:
        InputError: packages are missing.
    """
    settings = settings or Settings()
    threads = torch_threads(classifier, settings.workers, settings.cores, sample_file())
    service = Service(classifier, Workers(settings.workers, settings.queue, threads), settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.workers.drain()

    info = classifier.info
    app = FastAPIOffline(
        redoc_url=None,  # one page is enough
        title=f"{info.folder.name}, served by vitconv",
        version=__version__,
        description=f"Images in, answers of {count_classes(len(info.classes))} out.",
        lifespan=lifespan,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    app.state.service = service
    key = [Depends(HTTPBearer(auto_error=False, description="VITCONV_API_KEY"))] if settings.api_key else []
    for router, dependencies in ((v1.router, key), (v2.router, key), (v1.health, []), (v2.health, [])):
        app.include_router(router, dependencies=dependencies)
    routes = (*v1.router.routes, *v2.router.routes)
    computing = [route for route in routes if isinstance(route, Route) and "POST" in (route.methods or ())]
    app.add_middleware(Watch, service=service, computing=computing)
    app.add_exception_handler(VitconvError, _say)
    app.add_exception_handler(HTTPException, _say)
    app.add_exception_handler(Exception, _say)
    return app


async def _say(request: Request, error: Any) -> Response:
    if isinstance(error, HTTPException):
        error = of_starlette(error)
    elif not isinstance(error, VitconvError):
        LOGGER.error("failed", exc_info=error, extra={"fields": {"request_id": request.state.id}})
        error = UNKNOWN
    return answer(request, error)
