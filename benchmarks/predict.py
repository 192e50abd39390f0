"""Measure how fast both engines predict images, and what limits them: the tables of docs/scale.md.

    make evaluate; python benchmarks/predict.py [--rounds 3]    (a quarter of an hour on two cores)

The images are the demo's 42, repeated, in the page cache. The models are the converted demo model and a
``vit_tiny_patch16_224``. First the parts are timed separately: preparing images on one core, the model on all cores,
writing rows. Then the engines are timed from the list to the last file, in turn within each round. Times are medians
over the rounds. An engine's start (loading the model, starting a cluster) is measured by a separate run of one batch,
and is subtracted.

Findings, on two cores:

* The model limits both engines, even for the smallest ViT: it takes 45 ms of a core for an image, preparing 5 ms.
  The local engine reaches 95 % of what both together allow, Ray 87 %.
* Ray takes 20 s more to start.
* Passing pixels between processes through a pipe copies them twice, and leaves processes behind if the main process is
  killed. torch's shared memory does neither.
* With 1000 logits in a row, Parquet's dictionary encoding takes more time than everything else: 11 000 rows/s with it,
  28 000 without, at two thirds of the size. Writing lists of arrays instead of one array and offsets gave 8500 rows/s.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from models import full_model

from vitconv.convert import convert_checkpoint
from vitconv.inference import predict
from vitconv.inference.images import Batches, read_images
from vitconv.inference.pixels import open_preprocessor
from vitconv.inference.predictions import Parts, Run, make_rows
from vitconv.inference.runtime import open_model

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("local", "ray")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time predictions and their parts.")
    parser.add_argument("--rounds", type=int, default=3, help="the number of rounds")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
        folder = Path(temporary)
        torch.save(full_model("vit_tiny_patch16_224", num_classes=7).state_dict(), folder / "tiny.pth")
        convert_checkpoint(
            folder / "tiny.pth",
            folder / "tiny",
            architecture="vit_tiny_patch16_224",
            labels=ROOT / "artifacts/labels.txt",
            verify=False,
        )
        print(f"{os.cpu_count()} cores, {platform.machine()}; torch {torch.__version__}, ray {version('ray')}\n")
        print("| model | batch | prepare, one core | model alone | local | ray | start: local | ray |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        for name, model, batch_size, batches in (
            ("ViT-Ti/16, 224", folder / "tiny", 32, 60),
            ("ViT-B/16, 384", ROOT / "converted" / "vit-7class", 8, 3),
        ):
            prepare, alone = parts(model, batch_size, folder)
            rates, starts = engines(model, batch_size, batches, folder, rounds)
            figures = [prepare, alone, *(rates[engine] for engine in ENGINES)]
            cells = [*(f"{rate:.3g} images/s" for rate in figures), *(f"{starts[engine]:.0f} s" for engine in ENGINES)]
            print(f"| {name} | {batch_size} | {' | '.join(cells)} |")
    print(f"\nWriting: {writing(7):,.0f} rows/s with 7 classes, {writing(1000):,.0f} rows/s with 1000.")


def image_list(count: int, folder: Path) -> Path:
    """Write a list that repeats the demo's images up to this number."""
    names = (ROOT / "artifacts" / "inputs.csv").read_text().splitlines()[1:]
    paths = [str(ROOT / "artifacts" / line.partition(",")[0]) for line in names]
    path = folder / f"{count}.csv"
    path.write_text("\n".join(["path", *(paths[i % len(paths)] for i in range(count))]) + "\n")
    return path


def seconds(work: Callable[[], object]) -> float:
    """The time that a function takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parts(folder: Path, batch_size: int, temporary: Path) -> tuple[float, float]:
    """Measure images per second: preparing on one core, and the model on all cores."""
    runtime = open_model(folder, "cpu")
    images = read_images(image_list(4 * batch_size, temporary))
    batches = Batches(images, batch_size, open_preprocessor(runtime.info))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    prepared = statistics.median(seconds(lambda number=number: batches[number]) for number in range(4))
    torch.set_num_threads(threads)
    pixels = batches[0].values
    runtime(pixels)
    computed = statistics.median(seconds(lambda: runtime(pixels)) for _ in range(4))
    return batch_size / prepared, batch_size / computed


def engines(
    model: Path, batch_size: int, batches: int, folder: Path, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure images per second without the start, and the start in seconds, for each engine."""
    lists = [image_list(batch_size, folder), image_list(batches * batch_size, folder)]
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    starts: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for engine in ENGINES:
            start, whole = (run(model, images, engine, batch_size, folder) for images in lists)
            starts[engine].append(start)
            rates[engine].append((batches - 1) * batch_size / (whole - start))
    median = {engine: statistics.median(values) for engine, values in rates.items()}
    return median, {engine: statistics.median(values) for engine, values in starts.items()}


def run(model: Path, images: Path, engine: str, batch_size: int, folder: Path) -> float:
    """The time of a run with its own cluster, in seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as destination:
        took = seconds(lambda: predict(model, images, destination, engine=engine, batch_size=batch_size))
    import ray  # not earlier: the engine must set Ray's token first

    ray.shutdown()
    return took


def writing(classes: int) -> float:
    """Measure how many rows per second are written from logits to Parquet."""
    logits = np.random.default_rng(0).standard_normal((256, classes), np.float32)
    names = [f"class {i}" for i in range(classes)]
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        parts = Parts(folder, Run({}, tuple(names)), 20, overwrite=False)

        def write() -> None:
            for part in range(20):
                rows = make_rows(part * 256, [f"images/{i:08}.jpg" for i in range(256)], logits, [None] * 256, names)
                parts.write(part, rows, "key")

        write()
        return 20 * 256 / seconds(write)


if __name__ == "__main__":
    main()
