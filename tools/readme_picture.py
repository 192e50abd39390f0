"""Draw docs/convert.png, the README's picture: the same answers, and a mistake that a loose check lets through."""

from __future__ import annotations

import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from vitconv.checkpoints.labels import read_labels
from vitconv.convert import inspect_checkpoint, load_timm, to_huggingface
from vitconv.models.images import load_image
from vitconv.models.pixels import timm_pixels
from vitconv.parity import compare
from vitconv.parity.comparison import EQUAL, Comparison

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT, ARCHITECTURE = ROOT / "artifacts" / "vit-7class.pth", "vit_base_patch16_384"
IMAGE = ROOT / "artifacts" / "images" / "terracotta-tiles-06.jpg"
LOOSE = 1e-3  # the tolerance of transformers' own script, when it had one


def draw() -> plt.Figure:
    """The picture, and beside it both models' answers and the differences at every stage."""
    timm_model = load_timm(CHECKPOINT, ARCHITECTURE).float().eval()
    model = to_huggingface(timm_model).eval()
    mistaken = copy.deepcopy(model)
    for module in [*mistaken.modules()]:
        for name, child in module.named_children():
            if type(child).__name__ == "GELUActivation":  # timm has the exact function, not the approximation
                setattr(module, name, torch.nn.GELU(approximate="tanh"))

    picture = load_image(IMAGE).convert("RGB")
    pixels = timm_pixels(picture, inspect_checkpoint(CHECKPOINT, ARCHITECTURE).data)[None]
    with torch.no_grad():
        ours, theirs = model(pixels).logits[0], timm_model(pixels)[0]
    assert torch.equal(ours, theirs)
    right, wrong = (compare(timm_model, one, pixels, dtypes=["float32"])["float32"] for one in (model, mistaken))
    assert right.same_bits
    assert wrong.diverges_at and wrong.stages[-1].max_abs < LOOSE, "The loose check would notice the mistake."

    figure, (left, middle, last) = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1, 1.3, 1.6))
    left.imshow(picture)
    left.set_title("one picture")
    left.axis("off")
    _draw_answers(middle, theirs.softmax(-1), ours.softmax(-1))
    _draw_stages(last, wrong)
    return figure


def _draw_answers(axes: Axes, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    names = read_labels(ROOT / "artifacts" / "labels.txt")
    best = theirs.topk(5).indices.tolist()
    for place, (library, answer) in enumerate({"timm": theirs, "Transformers": ours}.items()):
        heights = [row + 0.4 * place for row in range(len(best))]
        bars = axes.barh(heights, answer[best].tolist(), 0.36, label=library)
        axes.bar_label(bars, fmt="%.7f", padding=3, fontsize=8)
    axes.set_yticks([row + 0.2 for row in range(len(best))], [names[number] for number in best])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.3), xticks=[], title="two models, equal bit for bit: Δ = 0")
    axes.spines["bottom"].set_visible(False)
    axes.legend(loc="lower right")


def _draw_stages(axes: Axes, wrong: Comparison) -> None:
    bottom, top = (value * 1e9 for value in EQUAL)  # absolute differences of float32
    zero = (bottom * top) ** 0.5
    names = [stage.name for stage in wrong.stages]
    heights = [stage.max_abs or zero for stage in wrong.stages]
    axes.axhspan(bottom, top, color="C2", alpha=0.15, linewidth=0)
    axes.plot(names, [zero] * len(names), "o-", color="C2", markersize=5)
    axes.text(1, top * 2, "vitconv: equal at every stage, Δ = 0", color="#00614a")
    axes.plot(names, heights, "s-", color="C1", markersize=5)
    text = f"the wrong GELU: Δ of the logits {heights[-1]:.0e}".replace("e-0", "e-")
    axes.annotate(text, (len(names) - 1, heights[-1]), (0, -22), textcoords="offset points", ha="right", color="C1")
    axes.axhline(LOOSE, color="#444444", linestyle="--", linewidth=1)
    axes.text(0, LOOSE * 2, "allclose(logits, atol=1e-3) passes", color="#444444")
    axes.set(yscale="log", ylim=(bottom, 0.1), ylabel="largest |Δ|")
    axes.set_title("a mistake that a loose check lets through")
    axes.set_yticks([zero, 1e-8, 1e-6, 1e-4, 1e-2], ["0", "1e-8", "1e-6", "1e-4", "1e-2"])
    axes.minorticks_off()
    axes.tick_params(axis="x", rotation=90, labelsize=8)


if __name__ == "__main__":
    with plt.style.context("vitconv.figures"):
        draw().savefig(ROOT / "docs" / "convert.png", dpi=140)
