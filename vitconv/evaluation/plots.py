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
from vitconv.evaluation.outcomes import Outcomes, require
from vitconv.evaluation.words import exact, image_count, number
from vitconv.files import new_file
from vitconv.models.images import load_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

#: Okabe and Ito's colours, the first two of the style, which colour-blind people tell apart; and a red for mistakes.
BLUE, ORANGE, GREY, RED = "#0072B2", "#D55E00", "#767676", "#B3261E"
_MOST_CLASSES = 30  # the most classes that are named beside a confusion matrix or get bars
_MOST_MATRIX = 200  # the most classes in a confusion matrix: one of 21,843 classes would take gigabytes
_MOST_POINTS = 20_000
_MOST_IMAGES, _COLUMNS = 12, 3
_WIDTH = 5.2  # inches: on a phone, a letter of 9 points is then 9 pixels high

#: The style of all pictures: vitconv/figures.mplstyle.
_styled = plt.style.context("vitconv.figures")


def plain(name: str | None, limit: int = 24) -> str:
    """A name for use in a plot: on one line, cut off at the limit, without unprintable characters.

    matplotlib also needs ``parse_math=False``: otherwise it draws text between dollar signs as a formula.
    """
    text = _printable(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _file_name(path: str, limit: int = 24) -> str:
    """The file's name for use in a plot. Of a long one the end is kept, where files of one folder differ."""
    text = _printable(path.rstrip("/").rpartition("/")[2])
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


def _printable(name: str | None) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join((name or "").split()))


@_styled
def draw_logits(evaluation: Evaluation) -> Figure:
    """Plot how far each logit of the compared images is from the expected one, with the limit of the threshold.

    A picture of the logits themselves would show a diagonal whether they differ by 0 or by 0.01.
    """
    outcomes = evaluation.outcomes
    if outcomes.differences is None:
        return _nothing("There are no expected logits.")
    chosen = np.isfinite(outcomes.differences) & outcomes.compared[:, None]
    if not chosen.any():
        return _nothing("No image with expected logits was compared.")
    at = require(outcomes.largest_difference(outcomes.compared))
    largest = float(outcomes.differences[at])
    places = np.flatnonzero(chosen)
    total = len(places)
    if total > _MOST_POINTS:  # without a copy of all logits
        some = np.random.default_rng(0).choice(total, _MOST_POINTS, replace=False)
        some[0] = np.searchsorted(places, np.ravel_multi_index(at, chosen.shape))  # the largest one is always shown
        places = places[some]
    x = require(outcomes.expected_logits).flat[places]
    y = outcomes.logits.flat[places] - x
    figure, axes = plt.subplots(figsize=(_WIDTH, 3.4))
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
    limit = next(
        (one.limit for one in evaluation.thresholds if (one.name, one.bound) == ("max_logit_difference", "max")), 0
    )
    if limit > 0:
        axes.axhspan(-limit, limit, color=BLUE, alpha=0.08, linewidth=0)
        for side in (-limit, limit):
            axes.axhline(side, color=ORANGE, linestyle="--", linewidth=1)
        axes.annotate(
            f"limit {exact(limit)}",
            (1, limit),
            (0, 3),
            axes.get_yaxis_transform(),
            "offset points",
            ha="right",
            color=ORANGE,
        )
    reach = max(largest, limit) * 1.25 or 1
    axes.set(xlabel="expected logit", ylabel="our logit − the expected one", ylim=(-reach, reach))
    if 0 < 10 * limit < largest:  # else the limit would be a line through zero
        axes.set_yscale("symlog", linthresh=limit)
        axes.set_yticks([-largest, -limit, 0, limit, largest], minor=False)
        axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:.2g}".replace("e-0", "e-"))
    axes.set_title(
        f"All {total:,} logits are equal: difference 0"
        if not largest
        else f"{total:,} logits; the largest difference is {number(largest)}"
    )
    return figure


@_styled
def draw_confusion(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix against the true classes, or without labels against the expected classes.

    If there are more than 200 classes, it shows the 200 that are confused most often, and says so.
    """
    outcomes = evaluation.outcomes
    labelled = outcomes.labels is not None
    truth, what = (outcomes.labels, "true class") if labelled else (outcomes.expected, "expected class")
    if truth is None:
        return _nothing("There are no labels and no expected answers.")
    chosen = (truth >= 0) & (outcomes.predicted >= 0)
    if not labelled:
        chosen &= outcomes.compared
    if not chosen.any():
        return _nothing(f"No image with {'a' if labelled else 'an'} {what} could be read.")
    truth, predicted = truth[chosen], outcomes.predicted[chosen]
    shown = _most_confused(truth, predicted, len(outcomes.classes))
    count = len(shown)
    place = np.full(len(outcomes.classes), -1)
    place[shown] = np.arange(count)
    rows, columns = place[truth], place[predicted]
    inside = (rows >= 0) & (columns >= 0)
    matrix = np.bincount(rows[inside] * count + columns[inside], minlength=count**2).reshape(count, count)
    few = count <= _MOST_CLASSES
    side = max(_WIDTH, 2 + 0.36 * count) if few else 8
    figure, axes = plt.subplots(figsize=(side, side * 0.95))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.spines[:].set_visible(True)
    title = f"{(truth == predicted).sum():,} of {len(truth):,} images get their {'label' if labelled else what}"
    if count < len(outcomes.classes):
        title += f"\nThe {count} most often confused of {len(outcomes.classes):,} classes"
    axes.set(xlabel="predicted class", ylabel=what, title=title)
    if few:
        names = [plain(outcomes.classes[number]) for number in shown]
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            right, text = row == column, str(matrix[row, column])
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, weight="normal" if right else "bold")
            if not right:
                frame = {"fill": False, "edgecolor": RED, "linewidth": 2}
                axes.add_patch(plt.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **frame))
    return figure


def _most_confused(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The indices of the classes in the matrix: all, or those that are wrong most often, then the most frequent."""
    if classes <= _MOST_MATRIX:
        return np.arange(classes)
    wrong = truth != predicted
    mistakes = np.bincount(truth[wrong], minlength=classes) + np.bincount(predicted[wrong], minlength=classes)
    order = np.lexsort((-np.bincount(truth, minlength=classes), -mistakes))
    return np.sort(order[:_MOST_MATRIX])


@_styled
def draw_reliability(evaluation: Evaluation) -> Figure:
    """Plot accuracy against confidence; a calibrated model lies on the diagonal."""
    from sklearn.calibration import calibration_curve

    outcomes = evaluation.outcomes
    labels = outcomes.labels if outcomes.labels is not None else np.full(len(outcomes.paths), -1)
    chosen = (labels >= 0) & (outcomes.predicted >= 0)
    if not chosen.any():
        return _nothing("There are no labels, so there is no calibration.")
    figure, (axes, below) = plt.subplots(2, 1, figsize=(_WIDTH, 4.6), height_ratios=(3, 1), sharex=True)
    confidence = outcomes.probabilities[chosen].max(axis=1)
    right = outcomes.predicted[chosen] == labels[chosen]
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--", label="calibrated")
    axes.plot(mean_confidence, accuracy, "o", color=BLUE, markersize=7, clip_on=False, label="this model")
    error = evaluation.metrics.get("calibration_error")
    title = "Reliability" if error is None else f"Expected calibration error {number(error)}"
    axes.set(ylabel="accuracy", ylim=(-0.03, 1.03), xlim=(0, 1), title=title)
    axes.legend(loc="upper left")
    below.hist(confidence, bins=BINS, range=(0, 1), color=BLUE, rwidth=0.9)
    below.yaxis.get_major_locator().set_params(integer=True)
    below.set(xlabel="confidence: the probability of the predicted class", ylabel="images")
    return figure


@_styled
def draw_classes(evaluation: Evaluation) -> Figure:
    """Plot precision and recall of each class, the worst first; without labels, the share that agrees."""
    rows = evaluation.per_class.to_pylist()
    outcomes = evaluation.outcomes
    if outcomes.labels is not None:
        columns, key = {"precision": BLUE, "recall": ORANGE}, "f1"
        rows = [row for row in rows if row["images"]]
    elif outcomes.expected is not None:
        columns, key = {"agreement": BLUE}, "agreement"
        rows = [row | {"agreement": row["agreeing"] / row["compared"]} for row in rows if row["compared"]]
    else:
        rows = []
    if not rows:
        return _nothing("No class has an image with a label or an expected answer.")
    shown = sorted(rows, key=lambda row: row[key] or 0)[:_MOST_CLASSES]
    figure, axes = plt.subplots(figsize=(_WIDTH, 1.2 + 0.4 * len(shown)))
    height = 0.8 / len(columns)
    for place, (column, colour) in enumerate(columns.items()):
        values = [row[column] or 0 for row in shown]
        bars = axes.barh(np.arange(len(shown)) + place * height, values, height * 0.9, color=colour, label=column)
        axes.bar_label(bars, fmt=lambda value: number(round(value, 12)), padding=3, fontsize=9)
    names = [plain(row["class"]) for row in shown]
    axes.set_yticks(np.arange(len(shown)) + 0.4 - height / 2, names, parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    title = "Classes, the worst first" if len(shown) == len(rows) else f"The {len(shown)} worst classes"
    axes.set(xlim=(0, 1.12), title=title if len(columns) > 1 else f"{title}: agreement")
    if len(columns) > 1:
        figure.legend(loc="outside lower center", ncols=len(columns))
    return figure


@_styled
def draw_images(evaluation: Evaluation) -> Figure:
    """Show up to 12 images: those that disagree, then those that do not get their label, then the least certain.

    The first two are framed in red. Each has its path, the predicted class with its probability, the true class and,
    where it differs, the expected class.
    """
    outcomes = evaluation.outcomes
    mislabelled = _mislabelled(outcomes)
    mistakes = dict.fromkeys([*outcomes.disagreeing.tolist(), *mislabelled.tolist()])
    readable = np.flatnonzero(outcomes.predicted >= 0)
    order = np.argsort(outcomes.probabilities[readable].max(axis=1, initial=0), kind="stable")
    chosen = [*dict.fromkeys([*mistakes, *readable[order[: _MOST_IMAGES * 2 + len(mistakes)]].tolist()])][
        :_MOST_IMAGES
    ]
    if not chosen:
        return _nothing("No image could be read.")
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(_WIDTH, 0.7 + 2.1 * rows), squeeze=False)
    heading = _heading(evaluation, len(mislabelled), len(mistakes), len(chosen), len(readable))
    figure.suptitle(heading, x=0.01, ha="left")
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, chosen, strict=False):
        try:
            picture = load_image(outcomes.folder / outcomes.paths[i])
            picture.thumbnail((400, 400))  # twelve large photos would take too much memory
            axes.imshow(_on_white(picture))
        except Exception:  # Pillow has no common base class: see vitconv.inference.images
            axes.text(0.5, 0.5, "not readable", ha="center", va="center", transform=axes.transAxes)
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        wrong = i in mistakes
        axes.spines[:].set(visible=wrong, color=RED, linewidth=3)
        lines = [_file_name(outcomes.paths[i]), "no answer"]
        if outcomes.predicted[i] >= 0:
            sure = _percent(outcomes.probabilities[i].max())
            lines[1] = f"{plain(outcomes.name(outcomes.predicted[i]), 19)} {sure}"
        if wrong:
            lines[1] = f"✗ {lines[1]}"
        if outcomes.labels is not None and outcomes.labels[i] >= 0:
            lines.append(f"true: {plain(outcomes.name(outcomes.labels[i]), 20)}")
        if outcomes.expected is not None and outcomes.expected[i] not in (-1, outcomes.predicted[i]):
            lines.append(f"expected: {plain(outcomes.name(outcomes.expected[i]), 16)}")
        if outcomes.known[i]:
            lines.append("not compared")
        axes.set_title(
            "\n".join(lines), fontsize=8.5, loc="center", parse_math=False, color=RED if wrong else "#222222"
        )
    return figure


def _on_white(picture: Image) -> Image:
    """What people see of a picture with transparency."""
    import PIL.Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _mislabelled(outcomes: Outcomes) -> NDArray[np.int64]:
    """The indices of the images whose answer is not their label."""
    if outcomes.labels is None:
        return np.array([], np.int64)
    return np.flatnonzero((outcomes.labels >= 0) & (outcomes.predicted >= 0) & (outcomes.predicted != outcomes.labels))


def _heading(evaluation: Evaluation, mislabelled: int, mistakes: int, shown: int, readable: int) -> str:
    """What the images are: how many mistakes there are, and which images are shown."""
    parts = []
    for total, wrong, what in (
        ("compared", len(evaluation.outcomes.disagreeing), "the expected answer"),
        ("labelled", mislabelled, "their label"),
    ):
        images = int(evaluation.metrics.get(total, 0))
        if images:
            parts.append(f"{images - wrong:,} of {image_count(images)} get {what}")
    if mistakes >= shown:
        last = f"Shown: {'the mistakes' if mistakes == shown else f'the first {shown} of {mistakes} mistakes'}"
    elif shown < readable:
        last = f"Shown: {'the mistakes, then ' if mistakes else ''}the images with the lowest probability"
    else:
        last = f"Shown: {'the mistakes, then the rest' if mistakes else 'all'}"
    return "\n".join([*parts, last])


def _percent(probability: float) -> str:
    """A probability in percent; no rounding makes it certain."""
    return f"{probability:.0%}" if probability < 0.995 or probability == 1 else ">99%"


def save_pictures(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Draw all plots into PNG files.

    Args:
        evaluation: the result.
        folder: where to write; it is created.

    Returns:
        the files.
    """
    drawers: dict[str, Callable[[Evaluation], Figure]] = {
        "logits": draw_logits,
        "classes": draw_classes,
        "confusion": draw_confusion,
        "reliability": draw_reliability,
        "images": draw_images,
    }
    files = []
    for name, draw in drawers.items():
        figure = draw(evaluation)
        files.append(Path(folder) / f"{name}.png")
        with new_file(files[-1]) as file, plt.style.context("vitconv.figures"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # missing characters are drawn as boxes
            figure.savefig(file)
        plt.close(figure)
    return files


def _nothing(text: str) -> Figure:
    """A small picture that says why there is nothing to draw."""
    figure, axes = plt.subplots(figsize=(_WIDTH, 0.6))
    axes.axis("off")
    axes.text(0, 0.5, text, va="center", transform=axes.transAxes, color=GREY)
    return figure
