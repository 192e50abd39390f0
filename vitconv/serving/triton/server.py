"""A real Triton on this machine's processor, to try a store with: the server in PyPI's nvidia-pytriton.

It has only Triton's backend for Python. `make triton` installs it beside the environment; NVIDIA's container has all
backends and is for everything else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vitconv.errors import InputError
from vitconv.serving.tensors import MODEL, PREPROCESS, VIT
from vitconv.serving.triton.configuration import STUB_TIMEOUT

#: Where `make triton` installs the server: its packages want another numpy than vitconv, so it is not among them.
INSTALLATION = Path(sys.prefix) / "triton-2.51"
_SECONDS_TO_STOP = 20
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        http: host and port of its HTTP protocol, as tritonclient takes it: ``"127.0.0.1:…"``.
        grpc: of its gRPC protocol.
        metrics: of its metrics for Prometheus, at ``/metrics``.
        log: what it says.
        pid: its process, which has one for each copy of a model.
    """

    http: str
    grpc: str
    metrics: str
    log: Path
    pid: int


def is_installed(installation: Path = INSTALLATION) -> bool:
    """Whether the server is there to run."""
    return _binary(installation).exists()


def _binary(installation: Path) -> Path:
    return installation / "pytriton" / "tritonserver" / "bin" / "tritonserver"


@contextmanager
def run_server(
    store: str | Path, *, installation: Path = INSTALLATION, seconds: float = 300, scratch: Path | None = None
) -> Iterator[Server]:
    """Serve a store on free ports of 127.0.0.1, and stop when the block ends.

    Args:
        store: the folder, written for the backend ``"python"`` and a processor.
        installation: where the server is installed.
        seconds: how long it may take until it is ready.
        scratch: a folder for its log and its backend; a temporary one by default.

    Raises:
        InputError: the server is not installed, or cannot serve the store.
    """
    if not is_installed(installation):
        raise InputError(f"Triton is not installed in '{installation}'.", "Run `make triton` in vitconv's clone.")
    with tempfile.TemporaryDirectory(prefix="vitconv-triton-", dir=scratch) as folder:
        process, server = _start(Path(store).resolve(), installation, Path(folder))
        try:
            _wait_until_ready(process, server, time.monotonic() + seconds)
            yield server
        finally:
            _stop(process)
            for left in _SHARED_MEMORY.glob(f"{_prefix(server.http)}*"):  # by a model's process that has died
                left.unlink(missing_ok=True)


def _start(store: Path, installation: Path, scratch: Path) -> tuple[subprocess.Popen[bytes], Server]:
    bundle, backend = installation / "pytriton" / "tritonserver", scratch / "backends" / "python"
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copytree(bundle / "backends" / "python", backend)
    shutil.copy(bundle / "python_backend_stubs" / stub, backend)
    addresses = {
        name: f"127.0.0.1:{port}" for name, port in zip(("http", "grpc", "metrics"), _free_ports(3), strict=True)
    }
    log, prefix = scratch / "log.txt", _prefix(addresses["http"])
    arguments = [str(_binary(installation)), f"--model-repository={store}", f"--backend-directory={backend.parent}"]
    for name, address in addresses.items():
        host, _, port = address.partition(":")
        arguments += [f"--{name}-address={host}", f"--{name}-port={port}"]
    arguments += [
        *("--disable-auto-complete-config", "--model-control-mode=none", f"--exit-timeout-secs={_SECONDS_TO_STOP}"),
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        STUB_TIMEOUT,
    ]
    environment = {
        **os.environ,
        # A model's process takes the first Python there, with its packages; it ignores PYTHONPATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{installation / 'nvidia_pytriton.libs'}",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(  # with a group of its own, to find the processes of its models by
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    return process, Server(**addresses, log=log, pid=process.pid)


def _prefix(http: str) -> str:
    """How the names of the shared memory begin that the server at this address has."""
    return f"vitconv-triton-{http.rpartition(':')[2]}-"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. Somebody may take one before the server does: then it says so, and ends."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server, end: float) -> None:
    paths = ["health/ready", *(f"models/{name}/ready" for name in (PREPROCESS, MODEL, VIT))]
    while not all(_answers(f"http://{server.http}/v2/{path}") for path in paths):
        if process.poll() is not None:
            raise InputError(f"Triton cannot serve this store: {_last_error(server.log)}", "Write the store again.")
        if time.monotonic() > end:
            raise InputError(
                f"Triton is not ready after the time that it was given: {_last_error(server.log)}",
                "Give it more time, or look whether the machine is busy.",
            )
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    reasons = [line for line in lines if "failed to load '" in line]  # then more follows from it
    errors = [line for line in lines if re.match(r"(E\d{4} |error: )", line)]
    return next(iter((*reasons, *reversed(errors), *lines[-1:])), "it has said nothing")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, and the processes of its models, which outlive one that is killed."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_STOP + 10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
