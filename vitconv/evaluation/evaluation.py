"""Evaluate predictions: against timm's answers, against the true labels, and against thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from vitconv.errors import InputError, first_few, shown
from vitconv.evaluation import LabelsFrom
from vitconv.evaluation.metrics import BUILT_IN, compute, intervals, proportion
from vitconv.evaluation.outcomes import Outcomes, read_outcomes, require
from vitconv.evaluation.thresholds import DEFAULT_THRESHOLDS, Threshold, all_passed, check_thresholds
from vitconv.evaluation.words import at_most, image_count, in_a_sentence, value_of, why_skipped
from vitconv.files import new_file, write_json
from vitconv.markdown import escape
from vitconv.markdown import table as markdown_table

_DISAGREEMENTS = pa.schema(
    [(name, pa.string()) for name in ("path", "expected", "predicted", "label")] + [("probability", pa.float64())]
)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        outcomes: what the metrics are computed from.
        metrics: by name: the counts (``images``; ``errors``, those that could not be read; ``compared`` and
            ``not_compared``, those with and without an expected answer; ``labelled``, the readable ones with a known
            label), ``agreement`` and ``max_logit_difference`` against the expected answers, the metrics asked for, and
            ``thresholds_missed``.
        intervals: the 95 % confidence intervals of the metrics that have one.
        thresholds: in the order given.
        skipped: the names of the default thresholds for which there is nothing to judge.
        per_class: a row for each class, with its metrics.
        about: what was evaluated, by name, for people.
        warnings: what to know before the result is believed, a sentence each.
    """

    outcomes: Outcomes
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    thresholds: tuple[Threshold, ...]
    skipped: tuple[str, ...]
    per_class: pa.Table
    about: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether every threshold is met; ``None`` if there was nothing to judge."""
        return all_passed(self.thresholds, self.metrics)

    def disagreements(self) -> list[dict[str, Any]]:
        """The images whose answer is not the expected one: path, expected, predicted, label, probability."""
        a = self.outcomes
        return [
            {
                "path": a.paths[i],
                "expected": a.name(require(a.expected)[i]),
                "predicted": a.name(a.predicted[i]),
                "label": None if a.labels is None else a.name(a.labels[i]),
                "probability": None if a.predicted[i] < 0 else float(a.probabilities[i].max()),
            }
            for i in a.disagreeing
        ]

    def known_differences(self) -> list[dict[str, Any]]:
        """The images that were not compared for a known reason: path, reason, expected, predicted and difference.

        The difference is the largest of the logits; ``None`` if one of the two has no logits.
        """
        a = self.outcomes
        return [
            {
                "path": a.paths[i],
                "reason": a.notes[i],
                "expected": a.name(require(a.expected)[i]),
                "predicted": a.name(a.predicted[i]),
                "max_logit_difference": None if a.differences is None else _finite(np.fmax.reduce(a.differences[i])),
            }
            for i in np.flatnonzero(a.known)
        ]

    def by_split(self) -> list[dict[str, Any]]:
        """How many images of each split are right: split, labelled, right. Empty where the list has no splits."""
        a = self.outcomes
        if a.splits is None or a.labels is None:
            return []
        judged = (a.labels >= 0) & (a.predicted >= 0)
        splits, right = np.array(a.splits), judged & (a.predicted == a.labels)
        return [
            {"split": name, "labelled": int(judged[splits == name].sum()), "right": int(right[splits == name].sum())}
            for name in dict.fromkeys(a.splits)
        ]

    def sentences(self) -> list[str]:
        """What was found, in sentences for people; the first is the verdict."""
        found, outcomes, sentences = self.metrics, self.outcomes, []
        if found.get("compared"):
            text = f"{value_of('agreement', found)} images get the expected answer"
            largest = found.get("max_logit_difference")
            if largest is not None:
                text += f"; the logits {f'differ by at most {at_most(largest)}' if largest else 'are equal'}"
            sentences.append(f"{text}.")
        if found.get("labelled"):
            right = int(((outcomes.labels == outcomes.predicted) & (require(outcomes.labels) >= 0)).sum())
            parts = [f"{one['split']}: {one['right']:,} of {one['labelled']:,}" for one in self.by_split()]
            by_split = f" ({', '.join(parts)})" if len(parts) > 1 else ""
            sentences.append(f"{right:,} of {found['labelled']:,} images get their label{by_split}{self._others()}.")
        if not sentences:
            sentences.append(_nothing_compared(outcomes))
        if known := self.known_differences():
            names = first_few([one["path"] for one in known], 2)
            were, them = ("was", "it") if len(known) == 1 else ("were", "them")
            sentences.append(
                f"{image_count(len(known))} {were} not compared, because Transformers is known to prepare {them} "
                f"differently: {names}. With --processor timm, every image gets timm's pixels."
            )
        if found.get("not_compared"):
            have = "has" if found["not_compared"] == 1 else "have"
            sentences.append(f"{image_count(int(found['not_compared']))} {have} no expected answer.")
        if found["errors"]:
            sentences.append(f"{found['errors']:,} of {image_count(int(found['images']))} could not be read.")
        if self.skipped:
            sentences.append(f"Not judged: {', '.join(map(in_a_sentence, self.skipped))}. {why_skipped(found)}")
        return [*sentences, *self.warnings]

    def _others(self) -> str:
        """How many of the same images would get their label by the expected answers, if it is another number."""
        a = self.outcomes
        if a.labels is None or a.expected is None:
            return ""
        both = (a.labels >= 0) & (a.expected >= 0) & (a.predicted >= 0)
        one, other = (int((answers[both] == a.labels[both]).sum()) for answers in (a.predicted, a.expected))
        return "" if one == other or not both.all() else f"; by the expected answers, {other:,} would"

    def summary(self) -> dict[str, Any]:
        """The result as plain data for JSON, with the first 20 images that disagree or cannot be read."""
        return {
            "schema": 2,
            "about": dict(self.about),
            "passed": self.passed,
            "sentences": self.sentences(),
            "skipped": list(self.skipped),
            "known_differences": self.known_differences()[:20],
            "splits": self.by_split(),
            "thresholds": [asdict(one) | {"passed": one.passed, "text": str(one)} for one in self.thresholds],
            "metrics": self.metrics,
            "intervals": self.intervals,
            "per_class": self.per_class.to_pylist(),
            "disagreements": self.disagreements()[:20],
            "errors": [{"path": path, "error": error} for path, error in self.outcomes.errors[:20]],
        }

    def save(self, folder: str | Path, metrics: str | Path) -> None:
        """Write the result into files.

        Args:
            folder: where to write ``evaluation.json`` (:meth:`summary`), ``classes.csv`` (:attr:`per_class`) and
                ``disagreements.csv``; it is created.
            metrics: a JSON file for ``dvc metrics``, with the :attr:`metrics` alone.
        """
        folder = Path(folder)
        for path, content in ((folder / "evaluation.json", self.summary()), (Path(metrics), self.metrics)):
            with new_file(path) as file:
                write_json(content, file)
        disagreements = pa.Table.from_pylist(self.disagreements(), _DISAGREEMENTS)
        for name, table in (("classes.csv", self.per_class), ("disagreements.csv", disagreements)):
            with new_file(folder / name) as file:
                csv.write_csv(table, file)

    def __repr__(self) -> str:
        missed = sum(not threshold.passed for threshold in self.thresholds)
        return f"Evaluation({len(self.outcomes.paths):,} images, {missed} of {len(self.thresholds)} thresholds missed)"

    def _repr_markdown_(self) -> str:
        """The metrics with their intervals, and the thresholds, for notebooks."""
        rows = []
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            rows.append((escape(name), f"{value:.6g}", "" if low is None else f"{low:.4g} to {high:.4g}"))
        marks = [f"- {'✓' if one.passed else '✗'} {escape(one)}" for one in self.thresholds]
        parts = [markdown_table(("metric", "value", "95 % interval"), rows), "\n".join(marks)]
        return "\n\n".join(part for part in parts if part)


def evaluate(
    predictions: str | Path,
    images: str | Path,
    *,
    expected: str | Path | None = None,
    metrics: Sequence[str] = tuple(BUILT_IN),
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    defaults: Mapping[str, Mapping[str, float]] = DEFAULT_THRESHOLDS,
    labels_from: LabelsFrom | None = None,
    about: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> Evaluation:
    """Compare predictions with expected answers and with true labels.

    Args:
        predictions: the folder that :func:`vitconv.inference.predict` wrote.
        images: the images that were predicted; the column ``label`` of a CSV file, or the subfolders' names of a
            folder, are the true classes, where they are known.
        expected: the answers to compare with: a CSV file with the columns ``path`` and ``class`` and, where they are
            known, the logits in a column for each class; or another folder of predictions.
        metrics: what to compute if labels are known: see :mod:`vitconv.evaluation.metrics`.
        thresholds: for the name of a metric, the smallest (``"min"``) and the largest (``"max"``) value that passes;
            ``None`` for ``defaults``, as far as they can be judged.
        defaults: the thresholds if none are given: see :func:`vitconv.evaluation.thresholds.default_thresholds`.
        labels_from: ``"folders"`` if the names of the subfolders must be classes, ``"nothing"`` to take no labels; by
            default they are labels if all of them are classes.
        about: what the report tells of the model, by name: see :func:`vitconv.evaluation.about.describe`.
        warnings: what else the report tells of how the answers were made, a sentence each.

    Returns:
        the metrics. An image with an expected answer that could not be read counts as a disagreement; the other
        metrics are computed on the images that could be read. An image that Transformers is known to prepare in
        another way than timm (:func:`vitconv.models.pixels.known_difference`) is not compared.

    Raises:
        InputError: a file is invalid, the predictions belong to another list, or a class or metric is unknown.
    """
    outcomes = read_outcomes(predictions, images, expected, labels_from)
    found: dict[str, float] = {"images": len(outcomes.paths), "errors": len(outcomes.errors)}
    ranges: dict[str, tuple[float, float]] = {}
    if outcomes.expected is not None:
        _compare(outcomes, found, ranges)
    if outcomes.labels is not None:
        names = [metrics] if isinstance(metrics, str) else () if metrics is None else metrics
        if not isinstance(names, Sequence):
            raise InputError(f"The metrics must be a list of names, got {shown(metrics)}.", "Write a list of names.")
        _measure(outcomes, names, found, ranges)
    skipped: tuple[str, ...] = ()
    if thresholds is None:
        skipped = tuple(name for name in defaults if name not in found)
        thresholds = {name: limits for name, limits in defaults.items() if name in found}
    checked = check_thresholds(thresholds, found, outcomes)
    warnings = (*outcomes.warnings, *warnings)
    found["thresholds_missed"] = sum(not threshold.passed for threshold in checked)
    return Evaluation(outcomes, found, ranges, checked, skipped, _per_class(outcomes), about or {}, warnings)


def _nothing_compared(outcomes: Outcomes) -> str:
    if outcomes.expected is not None:
        return "No image was compared with its expected answer."
    if outcomes.labels is not None:
        return "There was nothing to compare with: no image with a label could be read."
    return "There was nothing to compare with: no expected answers, and no labels."


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _compare(outcomes: Outcomes, found: dict[str, float], ranges: dict[str, tuple[float, float]]) -> None:
    """Add the metrics of the comparison with the expected answers."""
    from sklearn.metrics import accuracy_score

    everything, compared = require(outcomes.expected), outcomes.compared
    expected, predicted = everything[compared], outcomes.predicted[compared]
    found["compared"], found["known_differences"] = len(expected), int(outcomes.known.sum())
    # Of an image that neither model could read, `errors` tells.
    found["not_compared"] = int(((everything < 0) & (outcomes.predicted >= 0)).sum())
    if len(expected):
        found["agreement"] = accuracy_score(expected, predicted)
        ranges["agreement"] = proportion(int((expected == predicted).sum()), len(expected))
    largest = outcomes.largest_difference(compared)
    if largest is not None:
        found["max_logit_difference"] = float(require(outcomes.differences)[largest])


def _measure(
    outcomes: Outcomes, metrics: Sequence[str], found: dict[str, float], ranges: dict[str, tuple[float, float]]
) -> None:
    """Add the metrics, computed on the images that could be read and have a label."""
    truth = require(outcomes.labels)
    chosen = (outcomes.predicted >= 0) & (truth >= 0)
    found["labelled"] = int(chosen.sum())
    if not chosen.any():
        return
    # A view if all images are chosen: a copy for 50 000 images of 1000 classes would take 400 MB.
    which = slice(None) if chosen.all() else chosen
    labels, probabilities = truth[which], outcomes.probabilities[which]
    for name in metrics:
        new = compute(name, labels, probabilities, outcomes.classes)
        clash = sorted(new.keys() & found.keys())
        if clash:
            raise InputError(
                f"The metric '{name}' returns '{clash[0]}', a name that is already in use.", "Give it another name."
            )
        found |= new
    ranges |= intervals(metrics, labels, probabilities, outcomes.classes)


def _per_class(outcomes: Outcomes) -> pa.Table:
    """A row for each class: ``class`` and the metrics that can be computed; null if the class does not occur."""
    columns: dict[str, Any] = {"class": list(outcomes.classes)}
    everyone = np.arange(len(outcomes.classes))
    if outcomes.labels is not None:
        from sklearn.metrics import precision_recall_fscore_support

        chosen = (outcomes.labels >= 0) & (outcomes.predicted >= 0)
        names = ("precision", "recall", "f1", "images")
        if chosen.any():
            values = precision_recall_fscore_support(
                outcomes.labels[chosen], outcomes.predicted[chosen], labels=everyone, zero_division=np.nan
            )
        else:
            values = [*np.full((3, len(everyone)), np.nan), np.zeros(len(everyone), int)]
        columns |= dict(zip(names, values, strict=True))
    if outcomes.expected is not None:
        compared = outcomes.compared
        agreeing = compared & (outcomes.predicted == outcomes.expected)
        columns["compared"] = np.bincount(outcomes.expected[compared], minlength=len(everyone))
        columns["agreeing"] = np.bincount(outcomes.expected[agreeing], minlength=len(everyone))
    if outcomes.differences is not None:
        columns["max_logit_difference"] = np.fmax.reduce(outcomes.differences, axis=0)
    return pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})
