"""Measure what serving costs over the model itself, and what a server does under three times its load.

    make convert; python benchmarks/serve.py [--model FOLDER] [--server NAME] [--rounds 5] [--seconds 60]

On a quiet machine, 3 minutes a server. Set ``OMP_NUM_THREADS=1``: then all of them, and the bare Runtime, use one
thread for each image. It serves the demo's images with a ``vit_tiny_patch16_224``, or with FOLDER.

**Cost.** The processor time, in user and system mode, of a server's processes for each request, over that of the bare
Runtime with pixels: the same threads that share one Classifier, in a process without a server. The two take turns; the
ratio is the median of the rounds'. Time that passes would depend on the clients, which run on the same cores.

**Overload.** What clients get that send three times as many requests a second as the server answered when each waited
for its answer. They do not wait. They take some of the server's cores, so the throughput is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers import Answer, Server, at_a_rate, in_turn, infer_request, request

from vitconv.inference.machine import cores
from vitconv.serving import open_classifier
from vitconv.serving.probe import sample_file
from vitconv.serving.triton import run_server, write_store
from vitconv.serving.workers import default_count, torch_threads

ROOT = Path(__file__).resolve().parents[1]
#: Seconds within which an answer is wanted under overload.
TIMEOUT = 2


@dataclass(frozen=True)
class Target:
    """A server that runs.

    Attributes:
        host: where it listens.
        port: where it listens.
        pid: its process; those that it has started count, too.
        request: makes the HTTP request that asks for the answer on an image.
    """

    host: str
    port: int
    pid: int
    request: Callable[[bytes], bytes] = request

    def processes(self) -> list[psutil.Process]:
        """Its processes."""
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """What they have computed until now."""
        return sum(times.user + times.system for times in (one.cpu_times() for one in self.processes()))

    def memory(self) -> int:
        """What they hold, in bytes."""
        return sum(one.memory_info().rss for one in self.processes())


@contextmanager
def rest(model: Path, place: Path) -> Iterator[Target]:
    """`vitconv serve`."""
    with Server(model, place / "rest.log", "--timeout", str(TIMEOUT)) as server:
        yield Target(server.host, server.port, server.process.pid)
        server.end()


@contextmanager
def triton(model: Path, place: Path) -> Iterator[Target]:
    """The ensemble of `vitconv triton`: the bytes of an image to Triton's own HTTP server."""
    store = write_store(model, place / "store")
    with run_server(store.folder, scratch=place) as server:
        host, _, port = server.http.partition(":")
        yield Target(host, int(port), server.pid, infer_request)


@contextmanager
def ray(model: Path, place: Path) -> Iterator[Target]:
    """`vitconv serve --engine ray`, with a copy of the model for each worker of the others. Ray's processes count."""
    options = ("--engine", "ray", "--replicas", str(default_count()), "--timeout", str(TIMEOUT))
    with Server(model, place / "ray.log", *options) as server:
        yield Target(server.host, server.port, server.process.pid)
        server.end()


@contextmanager
def watched(target: Target) -> Iterator[dict[str, Any]]:
    """What a server's processes compute and hold meanwhile: ``cpu_seconds`` and ``memory_mib``, once it is over."""
    found: dict[str, Any] = {}
    memory, done = [target.memory()], threading.Event()

    def watch() -> None:
        while not done.wait(1):
            memory.append(target.memory())

    watching, before = threading.Thread(target=watch), target.cpu_seconds()
    watching.start()
    try:
        yield found
    finally:
        found["cpu_seconds"] = target.cpu_seconds() - before
        done.set()
        watching.join()
        found["memory_mib"] = {"before": memory[0] >> 20, "most": max(memory) >> 20, "after": memory[-1] >> 20}


#: The servers that can be measured, by name.
SERVERS: dict[str, Callable[[Path, Path], Any]] = {"rest": rest, "triton": triton, "ray": ray}


def bare(model: Path, images: list[bytes], pipe: Any) -> None:
    """The Runtime with pixels: whenever a number comes through the pipe, compute so many images, and send the time."""
    classifier, workers = open_classifier(model, "cpu"), default_count()
    threads = torch_threads(classifier, workers, cores(), sample_file())

    def begin() -> None:
        import torch

        torch.set_num_threads(threads)

    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        while count := pipe.recv():
            begun = time.process_time()
            for _ in pool.map(lambda i: classifier(images[i % len(images)]), range(count)):
                pass
            pipe.send(time.process_time() - begun)


def cost(target: Target, model: Path, images: list[bytes], rounds: int) -> dict[str, Any]:
    """The processor time of a request, and of the bare Runtime, in ms."""
    requests = [target.request(image) for image in images]
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=bare, args=(model, images, there))
    process.start()

    def alone(count: int) -> float:
        here.send(count)
        return here.recv()

    seconds = 10.0
    in_turn(target.host, target.port, requests, default_count(), seconds)  # both are warm
    alone(len(images))
    pairs = []
    for _ in range(rounds):
        before = target.cpu_seconds()
        answers = in_turn(target.host, target.port, requests, default_count(), seconds)
        served = (target.cpu_seconds() - before) / len(answers)
        assert {answer.status for answer in answers} == {200}
        pairs.append((1000 * served, 1000 * alone(len(answers)) / len(answers)))
    here.send(0)
    process.join()
    ratios = [one / other for one, other in pairs]
    return {
        "served_ms": statistics.median(one for one, _ in pairs),
        "bare_ms": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def overload(target: Target, images: list[bytes], seconds: float) -> dict[str, Any]:
    """What clients get that ask for three times what the server is capable of, as measured before and after."""
    requests, clients = [target.request(image) for image in images], default_count()

    def calm(seconds: float) -> float:
        begun = time.perf_counter()
        return _rate(in_turn(target.host, target.port, requests, clients, seconds), begun, seconds)

    # More clients than threads, so that none is idle; but where an image takes long, those that wait would be refused.
    clients *= 2 if clients / calm(15) < TIMEOUT / 4 else 1
    before = calm(30)
    with watched(target) as used:
        begun, computed = time.perf_counter(), time.process_time()
        answers = at_a_rate(target.host, target.port, requests, 3 * before, seconds)
        sending = time.process_time() - computed
    times = np.array([answer.seconds for answer in answers if answer.status == 200])
    shed = np.array([answer.seconds for answer in answers if answer.status != 200])
    late = float((times > TIMEOUT).mean())
    capacity, throughput = statistics.mean((before, calm(30))), _rate(answers, begun, seconds)
    return {
        "capacity": capacity,
        "asked_for": 3 * before,
        "sent": len(answers),
        "statuses": _counted(answers),
        "throughput": throughput,
        "share_of_capacity": throughput / capacity,
        "answered_seconds": dict(zip(("p50", "p99", "max"), np.quantile(times, (0.5, 0.99, 1)).tolist(), strict=True)),
        "later_than_limit": late,
        "shed_seconds": dict(zip(("p50", "p99", "max"), np.quantile(shed, (0.5, 0.99, 1)).tolist(), strict=True)),
        "memory_mib": used["memory_mib"],
        "clients_cores": sending / seconds,
    }


def _rate(answers: list[Answer], begun: float, seconds: float) -> float:
    """How many were answered a second, without the first, in which the first answers are computed, and what came later
    than the last second.
    """
    first = begun + max(answer.seconds for answer in answers if answer.status == 200)
    found = [answer for answer in answers if answer.status == 200 and first < answer.ended <= begun + seconds]
    return len(found) / (begun + seconds - first)


def _counted(answers: list[Answer]) -> dict[str, int]:
    statuses = [answer.status for answer in answers]
    return {str(status): statuses.count(status) for status in sorted(set(statuses))}


def tiny(place: Path) -> Path:
    """A model of the demo's kind that takes milliseconds."""
    script, checkpoint, folder = ROOT / "demo" / "small_model.py", place / "tiny.pth", place / "tiny"
    subprocess.run([sys.executable, script, checkpoint], check=True, capture_output=True)
    labels = ROOT / "artifacts" / "labels.txt"
    command = [
        "convert",
        checkpoint,
        folder,
        "--arch",
        "vit_tiny_patch16_224",
        "--labels",
        labels,
        "--no-verify",
        "-q",
    ]
    subprocess.run([sys.executable, "-m", "vitconv", *command], check=True, capture_output=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what serving costs, and what servers do under load.")
    parser.add_argument("--model", type=Path, help="a folder to serve; by default a small one is made")
    parser.add_argument("--server", choices=SERVERS, action="append", help="which to measure; by default all")
    parser.add_argument("--rounds", type=int, default=5, help="in which the server and the bare Runtime take turns")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--json", type=Path, help="where to write the figures, too")
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted((ROOT / "artifacts" / "images").iterdir())]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = options.model or tiny(place)
        print(f"{platform.processor() or platform.machine()}, {cores()} cores, load {os.getloadavg()[0]:.1f}")
        for name in options.server or SERVERS:
            with SERVERS[name](model, place) as target:
                found[name] = {"cost": cost(target, model, images, options.rounds)}
                print(f"\n{name}\n{json.dumps(found[name], indent=2)}", flush=True)
                found[name]["overload"] = overload(target, images, options.seconds)
                print(json.dumps(found[name]["overload"], indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
