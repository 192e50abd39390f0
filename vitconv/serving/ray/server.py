"""A cluster of Ray's on this machine that serves a model, until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

from vitconv.errors import InputError, VitconvError, in_traceback
from vitconv.inference.machine import cores
from vitconv.inference.ray import join_cluster
from vitconv.serving.ray.settings import NAME, RaySettings


def serve(settings: RaySettings, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Answer requests until a signal raises an exception. Then answer those that are there, and end the cluster.

    Ray's ports are ports of 127.0.0.1, except for one of each copy, where the proxies send it requests: that listens
    everywhere. All of them ask for a token that only this cluster has.

    Args:
        settings: what is served, and by how many.
        host: the server's address.
        port: the server's port.
        on_ready: called when all copies answer.

    Raises:
        InputError: Ray Serve is not installed, this machine has too few cores, or RAY_ADDRESS names another cluster.
        VitconvError: the cluster or the copies do not start.
    """
    import torch

    if os.environ.get("RAY_ADDRESS", "local") != "local":
        raise InputError(
            "RAY_ADDRESS names a cluster, and this would start one of its own, on this machine.",
            "Unset it; or write what that cluster needs with --write-config DIR, and use `serve deploy`.",
        )
    needed, here = settings.most * settings.workers, cores()
    if needed > here:
        raise InputError(
            f"{settings.most} replicas of {settings.workers} workers need {needed} cores; this machine has {here}.",
            "Ask for fewer, or use more machines: --write-config DIR.",
        )
    if settings.gpus * settings.most > (gpus := torch.cuda.device_count()):
        raise InputError(
            f"{settings.most} replicas need a GPU each; this machine has {gpus}.",
            "Ask for fewer, or for the device cpu.",
        )
    # Ray runs what it starts with the least priority but four: a server would wait for whatever else there is.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray kills a proxy that is not ready after three times 5 s, which importing it can take on a busy machine.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    handler = signal.getsignal(signal.SIGTERM)
    join_cluster("serve", "rayserve")
    import ray
    import ray.serve

    signal.signal(signal.SIGTERM, handler)  # Ray's own would kill the copies while they answer
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    try:
        _start(settings, host, port)
        try:
            on_ready()
            threading.Event().wait()
        finally:
            ray.serve.delete(NAME)  # waits for the copies, which answer what they have
    finally:
        ray.shutdown()


def _start(settings: RaySettings, host: str, port: int) -> None:
    """Return when all copies answer."""
    from ray import serve

    from vitconv.serving.ray.application import deployment

    try:
        serve.start(proxy_location="HeadOnly", http_options=settings.http(host, port))
        serve.run(deployment(**settings.options()).bind(**settings.arguments()), name=NAME)
    except Exception as error:  # Ray has no class of its own for this: RuntimeError, and others
        raise in_traceback(_messages()) or VitconvError(
            f"Ray Serve does not start: {str(error).strip()[:200]}",
            "Ray's logs, in /tmp/ray/session_latest/logs/serve, say more.",
        ) from error


def _messages() -> str:
    """What Ray Serve says of the copies: the tracebacks of those that did not start."""
    from ray import serve

    application = serve.status().applications.get(NAME)
    return "\n".join(one.message for one in application.deployments.values()) if application else ""
