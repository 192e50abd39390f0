"""How often the 95 % confidence intervals of an evaluation cover the truth: the table of docs/evaluation.md.

    python benchmarks/coverage.py [--datasets 200]    (five minutes on a core)

The simulated model's features are normally distributed around a mean for each class. Its probabilities follow Bayes'
rule, with logits multiplied by 1.5, because trained models are overconfident, too. The true metrics are computed from
a million images (70,000 with 100 classes). For each setting, many small sets of images are drawn with fixed seeds, and
the intervals of each set are computed as an evaluation does.

Coverage counts only the sets that have an interval; if some have none, the share that has one is in brackets. With 200
sets, a coverage of 95 % has a margin of error of 3 %.

Findings:

* The percentile bootstrap, used before, covered an accuracy of 0.95 with 42 images in 91 of 100 cases, and one of 0.99
  in 34 (most such sets have no wrong image, so the interval has no width). It covered a macro recall of 0.95 in 87.
* The Clopper-Pearson interval covers a share in at least 95 % of cases, by construction. Wilson's interval is
  narrower, but falls to 93 % for 0.99 with 42 images.
* BCa covers precision, recall and F1 in 93 % of cases or more if each class has six images. With two or three images
  for each class it covers less, least for F1: with so few images, the metric itself is biased, and so is its interval.
* With about two wrong images (an accuracy of 0.95 with 42 images, or 0.99 with 200), BCa covered the logarithmic loss
  in 79 % of cases, with none or one in 42 %. Rare images that are not in the set dominate this loss. So there is no
  interval below five wrong images.
* The calibration error is a sum of absolute values, so chance alone increases it, and more so with fewer images.
  Resampling cannot remove this bias. An interval that misses the true value is mostly too high.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import softmax

from vitconv.evaluation.metrics import compute, intervals

NAMES = ("accuracy", "precision", "recall", "f1", "log_loss", "calibration_error")
SHARPENED = 1.5
EQUAL = np.full(7, 1 / 7)
TINY = np.array([0.6, 0.2, 0.1, 0.05, 0.03, 0.01, 0.01])
MANY = np.full(100, 1 / 100)
SETTINGS = [
    *(
        (f"7 classes, {images} images", EQUAL, accuracy, images)
        for accuracy in (0.8, 0.95, 0.99)
        for images in (42, 200, 1000)
    ),
    ("7 classes of 60 % to 1 %, 200 images", TINY, 0.95, 200),
    ("100 classes, 300 images", MANY, 0.8, 300),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the coverage of confidence intervals.")
    parser.add_argument("--datasets", type=int, default=200, help="the number of sets for each setting")
    datasets = parser.parse_args().datasets
    print(f"| | true accuracy | {' | '.join(NAMES)} |\n|---|--:|{'--:|' * len(NAMES)}")
    for title, shares, accuracy, images in SETTINGS:
        cells = coverage(shares, accuracy, images, datasets)
        print(f"| {title} | {accuracy:.2f} | {' | '.join(cells)} |", flush=True)


def coverage(shares: np.ndarray, accuracy: float, images: int, datasets: int) -> list[str]:
    """A cell for each of :data:`NAMES`: the percentage of intervals that cover the truth."""
    distance = separation(shares, accuracy)
    truth = of_all(*draw(7_000_000 // len(shares), shares, distance, np.random.default_rng(1)))
    rng = np.random.default_rng(2)
    there, covers = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    for _ in range(datasets):
        found = intervals(NAMES, *draw(images, shares, distance, rng), range(len(shares)))
        for name, (low, high) in found.items():
            there[name] += 1
            covers[name] += low <= truth[name] <= high
    return [_cell(covers[name], there[name], datasets) for name in NAMES]


def _cell(covers: int, there: int, datasets: int) -> str:
    if there < datasets / 10:
        return f"none ({there / datasets:.0%})"
    return f"{covers / there:.0%}" + (f" ({there / datasets:.0%})" if there < datasets else "")


def draw(images: int, shares: np.ndarray, distance: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the labels and probabilities of this number of images."""
    labels = rng.choice(len(shares), images, p=shares)
    features = rng.standard_normal((images, len(shares)))
    features[np.arange(images), labels] += distance
    return labels, softmax(SHARPENED * (distance * features + np.log(shares)), axis=1)


def of_all(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute the metrics on these images."""
    return {name: compute(name, labels, probabilities, range(probabilities.shape[1]))[name] for name in NAMES}


def separation(shares: np.ndarray, accuracy: float) -> float:
    """Find the distance of the classes' means that gives this accuracy."""
    near, far = 0.0, 12.0
    for _ in range(20):
        middle = (near + far) / 2
        labels, probabilities = draw(50_000, shares, middle, np.random.default_rng(0))
        near, far = (middle, far) if (probabilities.argmax(axis=1) == labels).mean() < accuracy else (near, middle)
    return middle


if __name__ == "__main__":
    main()
