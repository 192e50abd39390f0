"""What a calibration is worth, on images that had no part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitconv.calibration.fitting import auroc
from vitconv.evaluation.metrics import compute, interval, intervals, proportion
from vitconv.evaluation.words import percent
from vitconv.inference.answers import softmax

if TYPE_CHECKING:
    from vitconv.inference.certainty import Certainty

#: 95 % confidence; ``None`` where there is none, such as of a calibration error without five wrong answers.
Interval = tuple[float, float] | None
#: Below, odd images are not told well enough to say so without a warning.
GOOD_AUROC = 0.95


@dataclass(frozen=True)
class Share:
    """A share of images, with its exact 95 % confidence interval (Clopper and Pearson 1934).

    Attributes:
        hits, count: how many of how many.
        interval: of the share; ``None`` of no images.
    """

    hits: int
    count: int
    interval: Interval

    @classmethod
    def of(cls, which: NDArray[np.bool_]) -> Share:
        """The share of the images that are true here."""
        hits, count = int(which.sum()), len(which)
        return cls(hits, count, proportion(hits, count) if count else None)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.hits:,} of {self.count:,}"
        return f"{self.hits:,} of {self.count:,} ({_range(self.interval)})"


@dataclass(frozen=True)
class Figures:
    """What was found on the images that judge.

    Attributes:
        images: their number.
        accuracy: the answers that are right.
        calibration_before, calibration_after: the expected calibration error of the probabilities, and of the
            calibrated ones (:func:`vitconv.evaluation.metrics.calibration_error`).
        calibration_before_interval, calibration_after_interval: of these.
        log_loss_before, log_loss_after: the log losses.
        covered: the images whose prediction set has the true class.
        set_size: the mean number of classes in a set.
        flagged: the known images that are said to be unlike those of the calibration.
        reliable: the answers that are said to be reliable.
        reliable_right: of these, the right ones.
        odd_flagged: the odd images that are said to be unlike.
        odd_auroc: the share of pairs of a known and an odd image in which the odd one has the larger score.
        odd_auroc_interval: of this.
        scores: that share, for each score that was tried, on the images that chose one.
    """

    images: int
    accuracy: Share
    calibration_before: float
    calibration_before_interval: Interval
    calibration_after: float
    calibration_after_interval: Interval
    log_loss_before: float
    log_loss_after: float
    covered: Share
    set_size: float
    flagged: Share
    reliable: Share
    reliable_right: Share
    odd_flagged: Share
    odd_auroc: float
    odd_auroc_interval: Interval
    scores: Mapping[str, float]

    def sentences(self, coverage: float) -> list[str]:
        """The figures in sentences for people.

        Args:
            coverage: the share that was promised.
        """
        before = _error(self.calibration_before, self.calibration_before_interval)
        after = _error(self.calibration_after, self.calibration_after_interval)
        return [
            f"Calibration error: {before} before, {after} after.",
            f"Prediction sets have the true class of {self.covered} images, {percent(coverage)} was asked for; they "
            f"have {self.set_size:.2f} classes on average.",
            f"Unlike the calibration's: {self.flagged} known images, {self.odd_flagged} odd ones; AUROC "
            f"{_error(self.odd_auroc, self.odd_auroc_interval)}.",
            f"Reliable: {self.reliable} answers, and of these {self.reliable_right} are right.",
        ]

    def warnings(self, coverage: float) -> list[str]:
        """What to know before the answers are believed, a sentence each."""
        found = []
        if self.calibration_after > self.calibration_before:
            found.append("The calibration error grew: the probabilities were as good or better before.")
        if self.covered.interval and self.covered.interval[1] < coverage:
            found.append(
                f"The prediction sets hold the true class less often than in {percent(coverage)} of cases: the images "
                "that judge are harder than those that set the limit."
            )
        if self.odd_auroc < GOOD_AUROC:
            found.append(
                f"Odd images are told from known ones with an AUROC of {self.odd_auroc:.3f} only, below "
                f"{GOOD_AUROC:g}: many that are unlike the calibration's will not be flagged."
            )
        return found


class Seen(NamedTuple):
    """What is known of images.

    Attributes:
        logits: float32, (images, classes).
        appearance: of :func:`vitconv.inference.appearance.describe`, (images, numbers).
    """

    logits: NDArray[np.float32]
    appearance: NDArray[np.float64]

    def where(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Seen:
        """Of some of the images."""
        return Seen(self.logits[which], self.appearance[which])


def measure(
    certainty: Certainty,
    known: Seen,
    labels: NDArray[np.int64],
    odd: Seen,
    classes: Sequence[str],
    scores: Mapping[str, float],
) -> Figures:
    """Judge a calibration.

    Args:
        certainty: what was found out.
        known: known images that had no part in it.
        labels: their true classes, (images,).
        odd: odd images that had no part in it.
        classes: the names of the classes.
        scores: see :attr:`Figures.scores`.
    """
    judged, strange, logits = certainty.judge(*known), certainty.judge(*odd), known.logits
    right = logits.argmax(axis=1) == labels
    plain = softmax(logits)
    known_scores, odd_values = certainty.oddness.scores(*known), certainty.oddness.scores(*odd)
    before, after = (
        compute("calibration_error", labels, each, classes)["calibration_error"]
        for each in (plain, judged.probabilities)
    )
    before_interval, after_interval = (
        intervals(["calibration_error"], labels, each, classes).get("calibration_error")
        for each in (plain, judged.probabilities)
    )
    return Figures(
        images=len(logits),
        accuracy=Share.of(right),
        calibration_before=before,
        calibration_before_interval=before_interval,
        calibration_after=after,
        calibration_after_interval=after_interval,
        log_loss_before=compute("log_loss", labels, plain, classes)["log_loss"],
        log_loss_after=compute("log_loss", labels, judged.probabilities, classes)["log_loss"],
        covered=Share.of(judged.sets[np.arange(len(labels)), labels]),
        set_size=float(judged.sets.sum(axis=1).mean()),
        flagged=Share.of(judged.unlike),
        reliable=Share.of(judged.reliable),
        reliable_right=Share.of(right[judged.reliable]),
        odd_flagged=Share.of(strange.unlike),
        odd_auroc=auroc(known_scores, odd_values),
        odd_auroc_interval=_auroc_interval(known_scores, odd_values),
        scores=dict(scores),
    )


def _auroc_interval(known: NDArray[np.float64], odd: NDArray[np.float64]) -> Interval:
    """The interval of an AUROC by the bootstrap over all images; ``None`` where all resamples give the same."""
    values, is_odd = np.concatenate([known, odd]), np.arange(len(known) + len(odd)) >= len(known)

    def statistic(chosen: NDArray[np.int64]) -> float:
        which = is_odd[chosen]
        return auroc(values[chosen][~which], values[chosen][which]) if 0 < which.sum() < len(which) else np.nan

    (low,), (high,) = interval(statistic, len(values))
    return (low, high) if np.isfinite([low, high]).all() else None


def _error(value: float, ends: Interval) -> str:
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def _range(ends: tuple[float, float]) -> str:
    return " to ".join(percent(round(end, 3)) for end in ends)
