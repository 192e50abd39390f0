"""How fast a server answers under load, by NVIDIA's own load generator: perf_analyzer."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitconv.errors import InputError
from vitconv.serving.tensors import IMAGE, VIT
from vitconv.serving.triton.server import INSTALLATION

#: The libraries that perf_analyzer looks for, and how those begin that the server's package has under other names.
_LIBRARIES = {"libb64.so.0d": "libb64-*", "libcudart.so.12": "libcudart-*"}


@dataclass(frozen=True)
class Load:
    """What was measured at one load.

    Attributes:
        clients: how many, each of which sends its next request when it has the answer to the last.
        images_per_second: that were answered.
        p50_ms: the time from request to answer, in milliseconds, that half of the requests took at most.
        p95_ms: that 95 % took at most.
        p99_ms: that 99 % took at most.
    """

    clients: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def measure_load(
    address: str,
    image: bytes,
    clients: Iterable[int],
    *,
    requests: int = 50,
    protocol: Literal["http", "grpc"] = "http",
    installation: Path = INSTALLATION,
) -> list[Load]:
    """Send an image again and again, from more and more clients at once.

    Args:
        address: host and port of the server, for the protocol.
        image: the content of a file.
        clients: how many at once; one measurement for each number.
        requests: how many requests are measured at each.
        protocol: which one.
        installation: where `make triton` installs perf_analyzer.

    Raises:
        InputError: perf_analyzer is not installed, or it fails.
    """
    binary = installation / "bin" / "perf_analyzer"
    if not binary.exists():
        raise InputError(
            f"perf_analyzer is not installed in '{installation}'.", "Run `make triton` in vitconv's clone."
        )
    with tempfile.TemporaryDirectory(prefix="vitconv-load-") as folder:
        place = Path(folder)
        for name, pattern in _LIBRARIES.items():
            (place / name).symlink_to(next((installation / "nvidia_pytriton.libs").glob(pattern)))
        content = {"b64": base64.b64encode(image).decode(), "shape": [len(image)]}
        (place / "data.json").write_text(json.dumps({"data": [{IMAGE: content}]}), encoding="utf-8")
        return [_measure(binary, place, address, count, requests, protocol) for count in clients]


def _measure(binary: Path, place: Path, address: str, clients: int, requests: int, protocol: str) -> Load:
    arguments = [
        *(str(binary), "-m", VIT, "-u", address, "-i", protocol, "-f", "report.csv", "--input-data", "data.json"),
        *("--concurrency-range", f"{clients}:{clients}", "--request-count", str(requests)),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(place)}
    done = subprocess.run(arguments, cwd=place, env=environment, capture_output=True, text=True, errors="replace")
    report = place / "report.csv"
    if done.returncode or not report.exists():
        lines = (done.stderr + done.stdout).strip().splitlines() or ["it has said nothing"]
        raise InputError(f"perf_analyzer has failed: {lines[-1]}", f"Check that a server answers at {address}.")
    with report.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    report.unlink()
    times = (float(row[f"p{percent} latency"]) / 1000 for percent in (50, 95, 99))
    return Load(clients, float(row["Inferences/Second"]), *times)
