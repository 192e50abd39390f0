"""Plots of an evaluation, drawn with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from vitconv.evaluation.evaluation import Evaluation
from vitconv.evaluation.metrics import BINS
from vitconv.evaluation.outcomes import require
from vitconv.files import new_file
from vitconv.models.images import load_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#4878a8", "#d1683c", "#9a9a9a"
_MOST_CLASSES = 30  # the most classes that are named beside a confusion matrix or get bars
_MOST_MATRIX = 200  # the most classes in a confusion matrix: one of 21,843 classes would take gigabytes
_MOST_POINTS = 20_000


def plain(name: str | None, limit: int = 24) -> str:
    """A name for use in a plot: on one line, cut off at the limit, without unprintable characters.

    matplotlib also needs ``parse_math=False``: otherwise it draws text between dollar signs as a formula.
    """
    text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join((name or "").split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def draw_logits(evaluation: Evaluation) -> Figure:
    """Plot every logit against the expected one; equal logits lie on the diagonal."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    outcomes = evaluation.outcomes
    known = np.isfinite(outcomes.differences) if outcomes.differences is not None else np.array(False)
    if not known.any():
        return _nothing(figure, axes, "There are no expected logits")
    x, y = require(outcomes.expected_logits)[known], outcomes.logits[known]
    if len(x) > _MOST_POINTS:
        some = np.random.default_rng(0).choice(len(x), _MOST_POINTS, replace=False)
        x, y = x[some], y[some]
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=0)
    axes.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
    largest = evaluation.metrics["max_logit_difference"]
    axes.set(
        xlabel="expected logit", ylabel="logit", aspect="equal", title=f"Largest difference of a logit: {largest:.2g}"
    )
    return figure


def draw_confusion(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix against the true classes, or without labels against the expected classes.

    If there are more than 200 classes, it shows the 200 that are confused most often, and says so.
    """
    outcomes = evaluation.outcomes
    labelled = outcomes.labels is not None
    truth, what = require(outcomes.labels if labelled else outcomes.expected), "expected class"
    if labelled:
        what = "true class"
    chosen = (truth >= 0) & (outcomes.predicted >= 0)
    if not chosen.any():
        figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
        return _nothing(figure, axes, f"No image with {'a' if labelled else 'an'} {what} could be read")
    truth, predicted = truth[chosen], outcomes.predicted[chosen]
    shown = _most_confused(truth, predicted, len(outcomes.classes))
    count = len(shown)
    place = np.full(len(outcomes.classes), -1)
    place[shown] = np.arange(count)
    rows, columns = place[truth], place[predicted]
    inside = (rows >= 0) & (columns >= 0)
    matrix = np.bincount(rows[inside] * count + columns[inside], minlength=count**2).reshape(count, count)
    few = count <= _MOST_CLASSES
    side = 2.5 + 0.5 * count if few else 8
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    title = f"{(truth == predicted).sum()} of {len(truth)} on the diagonal"
    if count < len(outcomes.classes):
        title += f"\nThe {count} most often confused of {len(outcomes.classes):,} classes"
    axes.set(xlabel="predicted class", ylabel=what, title=title)
    if few:
        names = [plain(outcomes.classes[number]) for number in shown]
        axes.set_xticks(range(count), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    return figure


def _most_confused(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The indices of the classes in the matrix: all, or those that are wrong most often, then the most frequent."""
    if classes <= _MOST_MATRIX:
        return np.arange(classes)
    wrong = truth != predicted
    mistakes = np.bincount(truth[wrong], minlength=classes) + np.bincount(predicted[wrong], minlength=classes)
    order = np.lexsort((-np.bincount(truth, minlength=classes), -mistakes))
    return np.sort(order[:_MOST_MATRIX])


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Plot accuracy against confidence; a calibrated model lies on the diagonal."""
    from sklearn.calibration import calibration_curve

    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(5, 5.6), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    outcomes = evaluation.outcomes
    labels = outcomes.labels if outcomes.labels is not None else np.full(len(outcomes.paths), -1)
    chosen = (labels >= 0) & (outcomes.predicted >= 0)
    if not chosen.any():
        below.axis("off")
        return _nothing(figure, axes, "There are no labels")
    confidence = outcomes.probabilities[chosen].max(axis=1)
    right = outcomes.predicted[chosen] == labels[chosen]
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1)
    axes.plot(mean_confidence, accuracy, "o-", color=BLUE)
    error = evaluation.metrics.get("calibration_error")
    title = "Reliability" if error is None else f"Expected calibration error {error:.3f}"
    axes.set(ylabel="accuracy", ylim=(-0.03, 1.03), xlim=(0, 1), title=title)
    below.hist(confidence, bins=BINS, range=(0, 1), color=BLUE, rwidth=0.9)
    below.set(xlabel="confidence", ylabel="images")
    return figure


def draw_classes(evaluation: Evaluation) -> Figure:
    """Plot precision and recall of each class, the worst first; without labels, the share that agrees."""
    rows = evaluation.per_class.to_pylist()
    if evaluation.outcomes.labels is not None:
        columns, key = {"precision": BLUE, "recall": ORANGE}, "f1"
        rows = [row for row in rows if row["images"]]
    else:
        columns, key = {"agreement": BLUE}, "agreement"
        rows = [row | {"agreement": row["agreeing"] / row["compared"]} for row in rows if row["compared"]]
    shown = sorted(rows, key=lambda row: row[key] or 0)[:_MOST_CLASSES]
    figure, axes = plt.subplots(figsize=(6, 1.4 + 0.4 * len(shown)), layout="constrained")
    height = 0.8 / len(columns)
    for place, (column, colour) in enumerate(columns.items()):
        values = [row[column] or 0 for row in shown]
        bars = axes.barh(np.arange(len(shown)) + place * height, values, height * 0.9, color=colour, label=column)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    names = [plain(row["class"]) for row in shown]
    axes.set_yticks(np.arange(len(shown)) + 0.4 - height / 2, names, parse_math=False)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1.12),
        title=" and ".join(columns).capitalize() if len(shown) == len(rows) else f"The {len(shown)} worst classes",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(columns), frameon=False)
    return figure


def draw_images(evaluation: Evaluation) -> Figure:
    """Show up to 12 images that disagree; if none does, those with the lowest confidence.

    Args:
        evaluation: the result.
        folder: the folder that the paths in the list are relative to.
    """
    outcomes = evaluation.outcomes
    chosen = outcomes.disagreeing[:12]
    title = f"Images that disagree: {len(outcomes.disagreeing)}"
    if not len(chosen):
        readable = np.flatnonzero(outcomes.predicted >= 0)
        sure = outcomes.probabilities[readable].max(axis=1)
        chosen = readable[np.argsort(sure, kind="stable")[:12]]
        title = "Images with the lowest confidence"
        if outcomes.expected is not None:
            title = f"No image disagrees. {title}:"
    rows = 2 if len(chosen) > 6 else 1
    figure, grid = plt.subplots(rows, 6, figsize=(12, 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, chosen, strict=False):
        try:
            picture = load_image(outcomes.folder / outcomes.paths[i]).convert("RGB")
            picture.thumbnail((400, 400))  # twelve large photos would take too much memory
            axes.imshow(picture)
        except Exception:  # Pillow has no common base class: see vitconv.inference.images
            axes.text(0.5, 0.5, "not readable", ha="center", transform=axes.transAxes)
        lines = ["no answer"]
        if outcomes.predicted[i] >= 0:
            lines = [f"{plain(outcomes.name(outcomes.predicted[i]), 22)} {outcomes.probabilities[i].max():.0%}"]
        if outcomes.expected is not None and outcomes.expected[i] not in (-1, outcomes.predicted[i]):
            lines.append(f"expected: {plain(outcomes.name(outcomes.expected[i]), 22)}")
        if outcomes.labels is not None and outcomes.labels[i] >= 0:
            lines.append(f"true: {plain(outcomes.name(outcomes.labels[i]), 22)}")
        axes.set_title("\n".join(lines), fontsize=8, parse_math=False)
    return figure


def save_pictures(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Draw all plots into PNG files.

    Args:
        evaluation: the result.
        images: the list of images; its paths are relative to its folder.
        folder: where to write; it is created.

    Returns:
        the files.
    """
    drawers: dict[str, Callable[[], Figure]] = {
        "logits": lambda: draw_logits(evaluation),
        "classes": lambda: draw_classes(evaluation),
        "confusion": lambda: draw_confusion(evaluation),
        "reliability": lambda: draw_reliability(evaluation),
        "images": lambda: draw_images(evaluation),
    }
    files = []
    for name, draw in drawers.items():
        figure = draw()
        files.append(Path(folder) / f"{name}.png")
        with new_file(files[-1]) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # missing characters are drawn as boxes
            figure.savefig(file, dpi=100)
        plt.close(figure)
    return files


def _nothing(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
    return figure
