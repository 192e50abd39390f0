"""Time evaluations of many images with many classes: the numbers in docs/evaluation.md.

    python benchmarks/evaluate.py [--rounds 3]    (five minutes on a core, and 3 GB of disk)

Predictions, labels and expected answers with logits are random. The benchmark times an evaluation with the default
metrics and their intervals, and each plot, after everything is imported. Times are medians over the rounds.

Findings:

* Computing the metrics themselves on each resample was too slow: 500 images of 2000 classes took 7 minutes, two thirds
  of it for top-3 and top-5, which sorted all the probabilities for each of a thousand resamples. Now it takes 1.4 s.
* 50 000 images of 1000 classes take 37 s. Half of it is reading: the expected logits are 0.5 GB of CSV.
* Reading also takes the most memory, 3.7 GiB. 0.9 GiB stay in use, and the metrics and intervals add 0.4 GiB.
* No plot takes more than 2 s.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from pyarrow import csv

from vitconv.evaluation import plots
from vitconv.evaluation.evaluation import Evaluation, evaluate
from vitconv.inference.predictions import Parts, Run, make_rows

SIZES = ((500, 7), (500, 2000), (50_000, 7), (50_000, 1000))
DRAWN = ("logits", "confusion", "reliability", "classes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time evaluations.")
    parser.add_argument("--rounds", type=int, default=3, help="the number of rounds")
    rounds = parser.parse_args().rounds
    print(f"| images | classes | evaluate | {' | '.join(DRAWN)} | memory so far |")
    print(f"|--:|--:|--:|{'--:|' * len(DRAWN)}--:|")
    with tempfile.TemporaryDirectory() as folder:
        run(write(50, 7, Path(folder) / "first"))  # imports
        for images, classes in SIZES:
            arguments = write(images, classes, Path(folder) / f"{images}-{classes}")
            taken = median(lambda arguments=arguments: run(arguments), rounds)
            result = run(arguments)
            drawing = [median(lambda name=name, result=result: draw(name, result), rounds) for name in DRAWN]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            cells = " | ".join(f"{seconds:.1f} s" for seconds in (taken, *drawing))
            print(f"| {images:,} | {classes:,} | {cells} | {memory:.1f} GiB |", flush=True)


def write(images: int, classes: int, folder: Path) -> tuple[Path, Path, Path]:
    """Write predictions, a list with labels, and expected answers with logits, most of which agree."""
    rng = np.random.default_rng(0)
    names = [f"class {i:04}" for i in range(classes)]
    paths = [f"images/{i}.jpg" for i in range(images)]
    labels = rng.integers(0, classes, images)
    logits = rng.standard_normal((images, classes), np.float32)
    logits[np.arange(images), labels] += 4
    starts = range(0, images, 256)
    parts = Parts(folder / "predictions", Run({}, tuple(names)), len(starts), overwrite=False)
    for part, start in enumerate(starts):
        some = slice(start, start + 256)
        parts.write(part, make_rows(start, paths[some], logits[some], [None] * len(paths[some]), names), "key")
    logits += 1e-3 * rng.standard_normal(logits.shape, np.float32)
    best = logits.argmax(axis=1)
    csv.write_csv(pa.table({"path": paths, "label": [names[i] for i in labels]}), folder / "list.csv")
    answers = {"path": paths, "class": [names[i] for i in best]} | {name: logits[:, i] for i, name in enumerate(names)}
    csv.write_csv(pa.table(answers), folder / "expected.csv")
    return folder / "predictions", folder / "list.csv", folder / "expected.csv"


def run(arguments: tuple[Path, Path, Path]) -> Evaluation:
    predictions, images, expected = arguments
    return evaluate(predictions, images, expected=expected)


def draw(name: str, result: Evaluation) -> None:
    figure = getattr(plots, f"draw_{name}")(result)
    with tempfile.TemporaryFile() as file:
        figure.savefig(file, dpi=100)
    plt.close(figure)


def median(work: Callable[[], object], rounds: int) -> float:
    """The median time of a function, in seconds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
