"""Compare metrics with their thresholds, and name the class that is wrong most often if one is missed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitconv.checkpoints.checkpoint import OPTIMIZATION_FILE, is_optimized
from vitconv.errors import CheckpointError, InputError, first_few, shown
from vitconv.evaluation.metrics import BUILT_IN
from vitconv.evaluation.outcomes import Outcomes, require
from vitconv.evaluation.words import in_words
from vitconv.inference.optimized import read_record


@dataclass(frozen=True)
class Threshold:
    """A limit for a metric, and whether the metric meets it.

    Attributes:
        name: the name of the metric.
        bound: ``"min"`` or ``"max"``.
        limit: the smallest or the largest value that passes.
        value: the value of the metric.
        detail: if the threshold is missed, a sentence on which classes or images are wrong; else empty.
    """

    name: str
    bound: str
    limit: float
    value: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the metric meets the limit."""
        return self.value >= self.limit if self.bound == "min" else self.value <= self.limit

    def __str__(self) -> str:
        word = {("min", True): "at least", ("min", False): "below", ("max", True): "at most", ("max", False): "above"}
        words = in_words(self.name)
        name = words if self.name in words.lower() else f"{words} ({self.name})"
        text = f"{name}: {self.value:.6g}, {word[self.bound, self.passed]} {self.limit:.6g}"
        return f"{text}: {self.detail}" if self.detail else f"{text}."


def all_passed(thresholds: Iterable[Threshold], metrics: Mapping[str, float]) -> bool | None:
    """Whether every threshold is met; ``None`` if nothing was judged.

    Where no image was compared, that none lacks an expected answer (``not_compared``) is no verdict on a model.
    """
    thresholds = tuple(thresholds)
    if not all(one.passed for one in thresholds):
        return False
    no_verdict = set() if metrics.get("compared") else {"not_compared"}
    return True if {one.name for one in thresholds} - no_verdict else None


#: What is judged where no thresholds are given. A right conversion differs by rounding: 1e-5 and less was measured on
#: the same machine.
DEFAULT_THRESHOLDS: Mapping[str, Mapping[str, float]] = {
    "agreement": {"min": 1.0},
    "not_compared": {"max": 0},
    "max_logit_difference": {"max": 1e-4},
}


def default_thresholds(model: str | Path) -> Mapping[str, Mapping[str, float]]:
    """What is judged of a model where no thresholds are given; of an optimised folder, by the limits that it passed.

    Raises:
        CheckpointError: its ``optimization.json`` does not state them, or cannot be read.
    """
    folder = Path(model)
    if not is_optimized(folder):
        return DEFAULT_THRESHOLDS
    record = read_record(folder)[1]
    try:
        exact, limits, scale = record["exact"], record["limits"], float(record["figures"]["scale"])
        disagreement, difference = float(limits["disagreement"]), float(limits["difference"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"'{folder / OPTIMIZATION_FILE}' does not state the limits that the model was judged by.",
            "Run `vitconv optimize` again, or give thresholds.",
        ) from error
    if exact:
        largest = max(DEFAULT_THRESHOLDS["max_logit_difference"]["max"], difference * scale)
        return {**DEFAULT_THRESHOLDS, "max_logit_difference": {"max": largest}}
    return {"agreement": {"min": 1 - disagreement}, "not_compared": DEFAULT_THRESHOLDS["not_compared"]}


_FORM = "Write {min: NUMBER}, {max: NUMBER} or both."


def check_thresholds(
    thresholds: Mapping[str, Mapping[str, float]],
    found: Mapping[str, float],
    outcomes: Outcomes,
) -> tuple[Threshold, ...]:
    """Compare metrics with their thresholds.

    Args:
        thresholds: for a metric's name, ``"min"``, ``"max"`` or both.
        found: the metrics.
        outcomes: what the metrics were computed from, to name the images that are wrong.

    Raises:
        InputError: the thresholds are not a mapping, a metric is unknown, or a limit is not a finite number.
    """
    if not isinstance(thresholds, Mapping):
        raise InputError(
            f"The thresholds must be a mapping, got {shown(thresholds)}.",
            f"Write NAME: LIMIT for each metric. {_FORM}",
        )
    checked = []
    for name, bounds in thresholds.items():
        if name not in found:
            raise InputError(
                f"There is a threshold for '{name}', but this metric was not computed.",
                f"Add what it needs (labels, expected answers or the metric), or choose from {', '.join(found)}.",
            )
        if not isinstance(bounds, Mapping) or not bounds or set(bounds) - {"min", "max"}:
            raise InputError(f"The threshold of '{name}' is {shown(bounds)}.", _FORM)
        limits = {bound: _limit(name, limit) for bound, limit in bounds.items()}
        if len(limits) == 2 and limits["min"] > limits["max"]:
            raise InputError(f"No number passes the threshold of '{name}': its min is above its max.", _FORM)
        for bound, limit in limits.items():
            threshold = Threshold(name, bound, limit, found[name])
            if not threshold.passed:
                threshold = replace(threshold, detail=_most_wrong(name, outcomes))
            checked.append(threshold)
    return tuple(checked)


def _limit(name: str, limit: object) -> float:
    try:
        number = float(limit) if isinstance(limit, (int, float)) and not isinstance(limit, bool) else math.nan
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if math.isnan(number):
        # YAML reads 1e-4 as a string.
        raise InputError(
            f"The threshold of '{name}' is {shown(limit)}, not a number.", f"{_FORM} (Write small numbers as 1.0e-4.)"
        )
    if math.isinf(number):
        raise InputError(f"The threshold of '{name}' is {shown(limit)}, which no metric reaches.", "Remove it.")
    return number


def _most_wrong(name: str, outcomes: Outcomes) -> str:
    """A sentence on the class that is wrong most often and its images; empty if that is unknown."""
    if name == "max_logit_difference":
        image, number = require(outcomes.largest_difference(outcomes.compared))
        ours, theirs = outcomes.logits[image, number], require(outcomes.expected_logits)[image, number]
        return f"'{outcomes.classes[number]}' of {outcomes.paths[image]}, {ours:.6g} instead of {theirs:.6g}."
    if name == "errors":
        return f"{first_few(path for path, reason in outcomes.errors)}."
    truth = outcomes.expected if name == "agreement" else outcomes.labels if name in BUILT_IN else None
    if truth is None:
        return ""
    # An image that could not be read counts as a disagreement; the metrics leave it out.
    judged = outcomes.compared if name == "agreement" else (truth >= 0) & (outcomes.predicted >= 0)
    wrong = judged & (outcomes.predicted != truth)
    counts = np.bincount(truth[wrong], minlength=len(outcomes.classes))
    if not counts.any():
        return ""
    worst = counts.argmax()
    images = [outcomes.paths[i] for i in np.flatnonzero(wrong & (truth == worst))]
    name = first_few([outcomes.classes[worst]])  # shortened if it is long
    return (
        f"most often '{name}', {counts[worst]} of {(judged & (truth == worst)).sum()} images wrong "
        f"({first_few(images, 2)})."
    )
