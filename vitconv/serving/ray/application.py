"""What Ray Serve runs: in each copy, the application that `vitconv serve` runs in its one process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from vitconv.inference.machine import cores
from vitconv.serving import open_classifier
from vitconv.serving.ray.settings import NAME
from vitconv.serving.rest import Settings, create_app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vitconv.models.processors import ProcessorName


class Replica:
    """One copy of the model, in a process of its own.

    Args:
        model: the folder.
        device: where to compute.
        processor: what makes the pixels.
        workers: how many images it computes at once, each on a core.
        timeout: seconds within which an image must be answered.
    """

    def __init__(self, model: str, device: str, processor: ProcessorName, workers: int, timeout: float) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as open_classifier does: torch reads it on import
        import torch

        # Ray lets a process use one thread; `vitconv predict`, whose bits count, uses all cores. create_app tries
        # whether that makes a difference.
        torch.set_num_threads(cores())
        key = os.environ.get("VITCONV_API_KEY")
        settings = Settings(workers=workers, cores=workers, timeout=timeout, api_key=key)
        self._app = create_app(open_classifier(model, device, processor, batched=True), settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What answers. Ray Serve asks for it once."""
        return _without_request_id(self._app)

    async def check_health(self) -> None:
        """Raise an error unless an image can be answered. A copy that fails three times in a row is replaced."""
        await self._app.state.service.check_ready()


def build(arguments: dict[str, Any]) -> Application:
    """The application, as Ray Serve builds it from a file, which also has the options of the deployment.

    Args:
        arguments: those of :class:`Replica`, by name.
    """
    return deployment().bind(**arguments)


def deployment(**options: Any) -> serve.Deployment:
    """The deployment.

    Args:
        options: by Ray Serve's names.
    """
    return serve.deployment(serve.ingress()(Replica), name=NAME, **options)


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """An application whose answers lack the header X-Request-ID: the proxy adds the same one."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [header for header in message["headers"] if header[0] != b"x-request-id"]
            await send(message)

        await app(scope, receive, send_on)

    return call
