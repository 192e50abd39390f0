"""Measure what the queue costs: images a second through `vitconv worker`, beside `vitconv predict`.

    python benchmarks/worker.py MODEL IMAGES [--count 500] [--rounds 3]

On a quiet machine. The broker is tansu, in memory, on the same cores. The two take turns, over the same images and
with the same Runtime; `vitconv predict` with batches of one image, as the worker computes, and with its own default.
A rate is that between the first answer and the last: loading the model does not count.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from kafka_broker import KafkaServer

from vitconv.inference import predict
from vitconv.inference.images import read_images
from vitconv.inference.machine import cores
from vitconv.messaging import connect, image_message


def predicted(model: Path, listing: Path, place: Path, batch_size: int) -> float:
    """Images a second of `vitconv predict`."""
    times: list[tuple[int, float]] = []

    def note(done: int, errors: int, rows: int) -> None:
        times.append((done, time.perf_counter()))

    predict(model, listing, place, batch_size=batch_size, device="cpu", overwrite=True, on_progress=note)
    times = [one for one in times if one[0]]
    return (times[-1][0] - times[0][0]) / (times[-1][1] - times[0][1])


def answered(model: Path, contents: list[bytes], server: KafkaServer, name: str, log: Path) -> float:
    """Images a second of `vitconv worker`."""
    for end in ("images", "results", "dead"):
        server.make(f"{name}-{end}")
    url = f"kafka://{server.address}?topic={name}"
    with connect(f"{url}-images") as producer:
        for i, content in enumerate(contents):
            producer.publish([image_message(content, str(i))])
    command = [sys.executable, "-m", "vitconv", "worker", model, "--from", f"{url}-images&group={name}"]
    command += ["--to", f"{url}-results", "--dead-letter", f"{url}-dead", "--device", "cpu"]
    with connect(f"{url}-results&group=benchmark", most=1000) as reader, log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
        try:
            count, first = 0, (0, 0.0)
            while count < len(contents):
                pulled = reader.pull(1000, 0.05)
                count += len(pulled)
                if pulled and not first[0]:
                    first = (count, time.perf_counter())
                assert process.poll() is None, log.read_text()
            return (count - first[0]) / (time.perf_counter() - first[1])
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure images a second through the queue.")
    parser.add_argument("model", type=Path, help="a folder with a classification head")
    parser.add_argument("images", type=Path, help="a CSV file, or a folder")
    parser.add_argument("--count", type=int, default=500, help="how many images: those of the list again and again")
    parser.add_argument("--rounds", type=int, default=3, help="in which the ways take turns")
    options = parser.parse_args()
    listed = read_images(options.images)
    paths = [listed.folder / path for path in listed.paths.to_pylist()]
    paths = [paths[i % len(paths)] for i in range(options.count)]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, KafkaServer(Path(temporary)) as server:
        place = Path(temporary)
        with (place / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path"], *([path] for path in paths)])
        contents = [path.read_bytes() for path in paths]
        print(f"{platform.processor() or platform.machine()}, {cores()} cores, load {os.getloadavg()[0]:.1f}")
        for number in range(options.rounds):
            ways: dict[str, Callable[[], float]] = {
                "predict, batches of 1": lambda: predicted(options.model, place / "list.csv", place / "rows", 1),
                "predict, batches of 8": lambda: predicted(options.model, place / "list.csv", place / "rows", 8),
                "worker": lambda number=number: answered(  # type: ignore[misc]
                    options.model, contents, server, f"round{number}", place / "log"
                ),
            }
            for name, measure in ways.items():
                found.setdefault(name, []).append(measure())
    for name, rates in found.items():
        print(f"{name:24} {statistics.median(rates):8.1f} images/s  {[round(rate, 1) for rate in rates]}")
    for name in ("predict, batches of 1", "predict, batches of 8"):
        ratios = [one / other for one, other in zip(found["worker"], found[name], strict=True)]
        print(f"worker : {name:24} {statistics.median(ratios):5.2f}")


if __name__ == "__main__":
    main()
