"""The plot of a ladder, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from vitconv.optimization.ladder import Ladder, Rung
from vitconv.optimization.words import figure, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, as in the style, and a red for what was refused.
BLUE, ORANGE, GREY, RED = "#0072B2", "#D55E00", "#767676", "#B3261E"


@plt.style.context("vitconv.figures")
def draw_ladder(ladder: Ladder) -> Figure:
    """Plot the latency of each recipe and, in the same row, how many answers it changes.

    The recipes are in rows, the fastest first, because most change no answer: in one plot, they would lie on a line.
    The bars on the right reach up to the bound with 95 % confidence; the limit is drawn in.
    """
    rungs = [*ladder.passed, *(one for one in ladder.rungs if not one.speed and one.figures)]
    rows = len(rungs) + 1
    drawn, (left, right) = plt.subplots(
        1, 2, figsize=(5.2, 1.5 + 0.36 * rows), sharey=True, gridspec_kw={"width_ratios": [3, 2]}
    )
    _draw_latency(left, ladder, rungs)
    _draw_changes(right, ladder, rungs)
    left.set_yticks(range(rows), [*(one.name for one in rungs), "float32"], parse_math=False)
    left.set_ylim(rows - 0.4, -0.6)
    if ladder.best:
        left.get_yticklabels()[0].set_fontweight("bold")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    return drawn


def _draw_latency(axes: Axes, ladder: Ladder, rungs: list[Rung]) -> None:
    speeds = [*(one.speed for one in rungs), ladder.float32]
    best = ladder.best
    for row, speed in enumerate(speeds):
        if speed is None:
            axes.text(0, row, " refused", color=RED, va="center", fontsize=9)
            continue
        colour = GREY if row == len(rungs) else ORANGE if best and best.speed is speed else BLUE
        axes.barh(row, speed.p50_ms, 0.62, color=colour)
        ratio = "" if row == len(rungs) else f"  {times(ladder.float32.p50_ms / speed.p50_ms)} ×"
        axes.annotate(
            f"{figure(speed.p50_ms)}{ratio}",
            (speed.p50_ms, row),
            (3, 0),
            "data",
            "offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, 1.5 * max(speed.p50_ms for speed in speeds if speed))
    axes.set_title("Time for one image", pad=16)
    axes.set_xlabel("milliseconds\nlower is better")


def _draw_changes(axes: Axes, ladder: Ladder, rungs: list[Rung]) -> None:
    limit = ladder.limits.disagreement
    axes.axvline(limit, color=ORANGE, linestyle="--", linewidth=1)
    axes.annotate(
        f"limit {limit * 100:.3g} %", (limit, 1), (0, 2), ("data", "axes fraction"), "offset points",
        ha="center", color=ORANGE, fontsize=8,
    )  # fmt: skip
    reach = limit
    for row, one in enumerate(rungs):
        found = one.figures
        assert found is not None
        share, bound = found.changed / found.images, 0 if one.exact else found.bound
        colour = RED if one.refused else BLUE
        axes.plot([share, max(share, bound)], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(share, row, "o", color=colour, markersize=5, clip_on=False, zorder=3)
        if not one.exact:
            axes.plot(bound, row, "|", color=colour, markersize=8, markeredgewidth=2)
        reach = max(reach, share, bound)
    if reach > 4 * limit > 0:  # else the limit would be at the edge
        axes.set_xscale("symlog", linthresh=2 * limit)
    axes.set_xlim(0, 1.15 * reach or 1)
    ticks = [0, *(tick for tick in _TICKS if limit * 1.5 < tick < reach * 1.1)] if reach > 4 * limit else [0, limit]
    axes.set_xticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title("Changed answers", pad=16)
    axes.set_xlabel("● found\n| at most, 95 % sure")


_TICKS = (0.01, 0.1, 1.0)
