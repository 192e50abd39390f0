"""The engine for many machines: a Ray Data pipeline, tasks that prepare images and actors that run the model."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitconv.errors import InputError, VitconvError, how_to_install, in_traceback
from vitconv.inference.images import Batches, BatchOutput
from vitconv.inference.runtime import Runtime, choose_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How long something that listens may take to answer.
_SECONDS = 10
#: An empty frame of settings: its length (three bytes), its kind, no flags, and no stream.
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class RayEngine:
    """Runs a model over batches: see :class:`vitconv.inference.batch_prediction.Engine`.

    It uses the cluster that this process or ``RAY_ADDRESS`` names, or else starts one on this machine, for itself
    alone. The machines of a cluster must see the images and the model's folder under the same paths.
    """

    def __init__(self, device: str) -> None:
        join_cluster("data")
        import ray

        logger = logging.getLogger("ray.data")
        logger.setLevel("ERROR")
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):  # stderr, where it prints tracebacks; the log file has them
                handler.setLevel(logging.CRITICAL + 1)
        try:
            self._gpus = int(ray.cluster_resources().get("GPU", 0))
        except Exception as error:
            raise _failed(error) from error
        self.device = choose_device(device, self._gpus)
        if self.device.startswith("cuda") and not self._gpus:
            raise InputError("The Ray cluster has no GPU.", "Choose the device auto or cpu.")

    def run(
        self, open_runtime: Callable[[str], Runtime], batches: Batches, todo: Sequence[int]
    ) -> Iterator[BatchOutput]:
        """The outputs of the batches with these numbers, in this order."""
        # Ray lets through more than its own errors, such as ConnectionResetError when a process is killed at the wrong
        # moment. What is raised here is of the pipeline, whatever its class: what takes the outputs is outside.
        try:
            for row in self._rows(open_runtime, batches, todo):
                errors, notes = list(row["errors"]), list(row["notes"])
                yield BatchOutput(row["batch"], row["logits"], errors, notes, row.get("appearance"))
        except Exception as error:
            raise _failed(error) from error

    def _rows(
        self, open_runtime: Callable[[str], Runtime], batches: Batches, todo: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        """The pipeline's rows, one a batch: ``batch``, its number, ``errors`` and ``logits``."""
        import ray
        import torch

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        # One model a GPU; without GPUs one a machine, which computes beside the tasks that prepare images.
        kind = self.device.partition(":")[0]
        models = self._gpus if kind == "cuda" else sum(node["Alive"] for node in ray.nodes())
        outputs = (
            ray.data.range(len(todo), override_num_blocks=len(todo))
            .map(_Prepare(batches, todo), num_cpus=1)
            .map(
                _Predict,
                fn_constructor_args=(open_runtime, kind, torch.get_num_threads()),
                compute=ray.data.ActorPoolStrategy(size=models),
                num_cpus=0,
                num_gpus=1 if kind == "cuda" else 0,
            )
        )
        yield from outputs.iter_rows()


def join_cluster(part: str, extra: str = "ray") -> None:
    """Use the cluster that this process or ``RAY_ADDRESS`` names, or else start one on this machine, for it alone.

    Args:
        part: what of Ray is needed, as its package is called: ``"data"``, ``"serve"``.
        extra: the extra of pyproject.toml that installs it.

    Raises:
        InputError: that part of Ray is not installed, or the cluster cannot be reached, or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of how Ray Data itself starts actors
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and "ray" not in sys.modules:  # which reads these when it is imported
        # No other machine has anything to do here: with this, named after where it is the default, every port of
        # Ray's is one of 127.0.0.1. A token keeps out other users of this machine.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray

        import_module(f"ray.{part}")
    except ImportError as error:
        raise InputError(
            f"The engine 'ray' needs Ray {part.capitalize()}, which is not installed.",
            f"Install it with {how_to_install(extra)}, or choose the engine 'local'.",
        ) from error
    if ray.is_initialized():
        return
    alone = {"include_dashboard": False} if address == "local" else {}
    try:
        _check_listens(address)
        with _same_handler():
            ray.init(address, log_to_driver=False, logging_level="error", **alone)
    except Exception as error:  # Ray has no class of its own for this: a time-out is a bare Exception
        raise InputError(
            f"The Ray cluster at '{address}' cannot be reached, or started: {str(error).strip()[:200]}",
            "Check RAY_ADDRESS and Ray's logs, in /tmp/ray/session_latest/logs.",
        ) from error


@contextmanager
def _same_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's own ends it with another exit code, and without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # In another thread, Ray sets none. Python cannot set again what a program in C has set: it is None.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_listens(address: str) -> None:
    """Raise OSError if nothing listens at ``host:port``, or not Ray: Ray itself would wait for three minutes.

    Ray asks this machine's own address where the host is a loopback one, so that is tried, too. A head node speaks
    gRPC, which is HTTP/2, and so answers a client's greeting with its settings.
    """
    import ray

    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return
    hosts = [host.strip("[]")]
    if hosts[0] in ("localhost", "127.0.0.1", "::1"):
        hosts.append(ray.util.get_node_ip_address())
    for host in hosts:
        try:
            with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
                if os.environ.get("RAY_USE_TLS", "0") != "1":  # else it waits for another greeting
                    _check_speaks_http2(connection)
            return
        except OSError as error:
            last = error
    raise last


def _check_speaks_http2(connection: socket.socket) -> None:
    """Raise OSError if what listens does not begin with a frame of settings: RFC 9113, sections 3.4 and 4.1."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
    with connection.makefile("rb") as stream:
        answer = stream.read(len(_SETTINGS))
    if answer[3:4] != _SETTINGS[3:4]:
        raise OSError("something listens there that does not answer as Ray does.")


def _failed(error: Exception) -> VitconvError:
    """What to tell of an error in the pipeline: vitconv's own as it is, of others the last line, which says most."""
    import ray

    ours = in_traceback(str(error))
    if ours:
        return ours
    reason = str(error).strip().rpartition("\n")[2]
    if not isinstance(error, ray.exceptions.RayError):
        reason = f"{type(error).__name__}: {reason}"
    return VitconvError(
        f"The Ray pipeline failed: {reason}",
        "Ray's logs, in /tmp/ray/session_latest/logs, say more. Run it again: it goes on where it stopped.",
    )


class _Prepare:
    """A task's work: the number of a place in ``todo`` → its batch of pixels."""

    def __init__(self, batches: Batches, todo: Sequence[int]) -> None:
        self._batches, self._todo = batches, todo

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        fields = self._batches[self._todo[row["id"]]]._asdict()
        return {name: value for name, value in fields.items() if value is not None}  # Arrow has no type for None


class _Predict:
    """An actor's work: a batch of pixels → its logits."""

    def __init__(self, open_runtime: Callable[[str], Runtime], device: str, threads: int) -> None:
        import torch

        # Ray gives an actor one thread. As many as the driver's: sums may depend on how they are cut up.
        torch.set_num_threads(threads)
        self._runtime = open_runtime(device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        logits: NDArray[np.float32] = self._runtime(row.pop("values"))
        return row | {"logits": logits}
