"""Plots of how far answers may be believed, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from vitconv.evaluation.metrics import BINS, proportion
from vitconv.evaluation.plots import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_styled = plt.style.context("vitconv.figures")


@_styled
def draw_reliability(right: NDArray[np.bool_], before: NDArray[np.float64], after: NDArray[np.float64]) -> Figure:
    """Plot how often answers are right against what was said of them, before and after the calibration.

    The bars are exact 95 % intervals: where few images are, little is known.

    Args:
        right: which answers are right, (images,).
        before: their probabilities.
        after: their calibrated probabilities.
    """
    figure, both = plt.subplots(2, 1, figsize=(5.2, 5.6), sharex=True)
    for axes, said, title, colour in ((both[0], before, "before", ORANGE), (both[1], after, "calibrated", BLUE)):
        axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--")
        places = np.clip((said * BINS).astype(int), 0, BINS - 1)
        for place in np.unique(places):
            own = right[places == place]
            low, high = proportion(int(own.sum()), len(own))
            middle = said[places == place].mean()
            axes.plot([middle, middle], [low, high], color=colour, linewidth=1.5, alpha=0.6)
            axes.plot(middle, own.mean(), "o", color=colour, markersize=4 + 10 * len(own) / len(right), clip_on=False)
        axes.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share that is right", title=title)
    both[1].set_xlabel("probability of the answer; larger dots are more images")
    return figure


@_styled
def draw_risk(wrong: NDArray[np.bool_], doubts: dict[str, NDArray[np.float64]]) -> Figure:
    """Plot how many of the answers that are kept are wrong, if the most doubtful ones are left to people.

    Args:
        wrong: which answers are wrong, (images,); an answer on an odd image is.
        doubts: for each way to doubt, how doubtful each answer is, by the name of the way.
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    kept = np.arange(1, len(wrong) + 1)
    for name, values in doubts.items():
        axes.plot(kept / len(wrong), np.cumsum(wrong[np.argsort(values, kind="stable")]) / kept, label=name)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="share of the answers that are kept", ylabel="share of them wrong")
    axes.legend(loc="upper left")
    return figure
