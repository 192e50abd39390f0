"""The pictures of an evaluation, drawn by matplotlib: they need no network to be looked at."""

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
_MOST_CLASSES = 30  # with names beside a matrix; and bars beside one another
_MOST_MATRIX = 200  # classes in a confusion matrix: one of 21,843 would take gigabytes
_MOST_POINTS = 20_000


def plain(name: str | None, limit: int = 24) -> str:
    """A name as a picture can show it: on one line, cut off where it is longer, without what no font draws.

    Where matplotlib draws it, it also needs ``parse_math=False``: else it takes what is between dollars for a formula.
    """
    text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join((name or "").split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def draw_logits(evaluation: Evaluation) -> Figure:
    """Every logit against the expected one: on the diagonal where they agree."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    outcomes = evaluation.outcomes
    known = np.isfinite(outcomes.differences) if outcomes.differences is not None else np.array(False)
    if not known.any():
        return _nothing(figure, axes, "No logits to compare with")
    x, y = require(outcomes.expected_logits)[known], outcomes.logits[known]
    if len(x) > _MOST_POINTS:
        some = np.random.default_rng(0).choice(len(x), _MOST_POINTS, replace=False)
        x, y = x[some], y[some]
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=0)
    axes.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
    largest = evaluation.metrics["max_logit_difference"]
    axes.set(xlabel="expected logit", ylabel="logit", aspect="equal", title=f"Largest difference {largest:.2g}")
    return figure


def draw_confusion(evaluation: Evaluation) -> Figure:
    """How often each class was answered for each true class; without labels, for each expected answer.

    Of more than 200 classes, it shows the 200 that are confused most often, and says so.
    """
    outcomes = evaluation.outcomes
    labelled = outcomes.labels is not None
    truth, what = require(outcomes.labels if labelled else outcomes.expected), "expected answer"
    if labelled:
        what = "true class"
    chosen = (truth >= 0) & (outcomes.predicted >= 0)
    if not chosen.any():
        figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
        return _nothing(figure, axes, f"No image with a {what} could be read")
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
    axes.set(xlabel="answer", ylabel=what, title=title)
    if few:
        names = [plain(outcomes.classes[number]) for number in shown]
        axes.set_xticks(range(count), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    return figure


def _most_confused(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The numbers of the classes in the matrix: all, or those that are wrong most often; then the most frequent."""
    if classes <= _MOST_MATRIX:
        return np.arange(classes)
    wrong = truth != predicted
    mistakes = np.bincount(truth[wrong], minlength=classes) + np.bincount(predicted[wrong], minlength=classes)
    order = np.lexsort((-np.bincount(truth, minlength=classes), -mistakes))
    return np.sort(order[:_MOST_MATRIX])


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Accuracy against confidence: on the diagonal, a model that is right as often as it says."""
    from sklearn.calibration import calibration_curve

    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(5, 5.6), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    outcomes = evaluation.outcomes
    labels = outcomes.labels if outcomes.labels is not None else np.full(len(outcomes.paths), -1)
    chosen = (labels >= 0) & (outcomes.predicted >= 0)
    if not chosen.any():
        below.axis("off")
        return _nothing(figure, axes, "No labels to compare with")
    confidence = outcomes.probabilities[chosen].max(axis=1)
    right = outcomes.predicted[chosen] == labels[chosen]
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1)
    axes.plot(mean_confidence, accuracy, "o-", color=BLUE)
    error = evaluation.metrics.get("calibration_error")
    title = "Reliability" if error is None else f"Expected calibration error {error:.3f}"
    axes.set(ylabel="share that is right", ylim=(-0.03, 1.03), xlim=(0, 1), title=title)
    below.hist(confidence, bins=BINS, range=(0, 1), color=BLUE, rwidth=0.9)
    below.set(xlabel="confidence", ylabel="images")
    return figure


def draw_classes(evaluation: Evaluation) -> Figure:
    """Precision and recall of each class, the worst first; without labels, the share that agrees."""
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
    axes.set(xlim=(0, 1.12), title="Classes" if len(shown) == len(rows) else f"The {len(shown)} worst classes")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(columns), frameon=False)
    return figure


def draw_images(evaluation: Evaluation, folder: Path) -> Figure:
    """The images that disagree, up to 12; where none does, those of which the model is least sure.

    Args:
        evaluation: the result.
        folder: where the paths in the list start from.
    """
    outcomes = evaluation.outcomes
    chosen = outcomes.disagreeing[:12]
    title = f"{len(outcomes.disagreeing)} images disagree"
    if not len(chosen):
        readable = np.flatnonzero(outcomes.predicted >= 0)
        sure = outcomes.probabilities[readable].max(axis=1)
        chosen = readable[np.argsort(sure, kind="stable")[:12]]
        title = "No image disagrees; the least certain are" if outcomes.expected is not None else "The least certain"
    rows = 2 if len(chosen) > 6 else 1
    figure, grid = plt.subplots(rows, 6, figsize=(12, 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, chosen, strict=False):
        try:
            picture = load_image(folder / outcomes.paths[i]).convert("RGB")
            picture.thumbnail((400, 400))  # as it is drawn: large photos would be held twelve at a time
            axes.imshow(picture)
        except Exception:  # Pillow has no common one: see vitconv.inference.images
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


def save_pictures(evaluation: Evaluation, images: str | Path, folder: str | Path) -> list[Path]:
    """Draw them all into PNG files.

    Args:
        evaluation: the result.
        images: the list of images, from whose folder its paths start.
        folder: where to write; it is made.

    Returns:
        the files.
    """
    root = Path(images).resolve().parent
    drawers: dict[str, Callable[[], Figure]] = {
        "logits": lambda: draw_logits(evaluation),
        "classes": lambda: draw_classes(evaluation),
        "confusion": lambda: draw_confusion(evaluation),
        "reliability": lambda: draw_reliability(evaluation),
        "images": lambda: draw_images(evaluation, root),
    }
    files = []
    for name, draw in drawers.items():
        figure = draw()
        files.append(Path(folder) / f"{name}.png")
        with new_file(files[-1]) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the name is drawn as boxes
            figure.savefig(file, dpi=100)
        plt.close(figure)
    return files


def _nothing(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
    return figure
