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
    for module in mistaken.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12  # Transformers' default; timm has 1e-6

    picture = load_image(IMAGE).convert("RGB")
    pixels = timm_pixels(picture, inspect_checkpoint(CHECKPOINT, ARCHITECTURE).data)[None]
    with torch.no_grad():
        ours, theirs = model(pixels).logits[0], timm_model(pixels)[0]
    assert torch.equal(ours, theirs)
    right, wrong = (compare(timm_model, one, pixels, dtypes=["float32"])["float32"] for one in (model, mistaken))
    assert right.same_bits
    logits = wrong.stages[-1]
    assert wrong.diverges_at and logits.max_abs < LOOSE, "The loose check would notice the mistake."

    figure, (left, middle, last) = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1, 1.3, 1.6))
    left.imshow(picture)
    left.set_title("one picture")
    left.axis("off")
    _draw_answers(middle, theirs.softmax(-1), ours.softmax(-1))
    _draw_stages(last, right, wrong)
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


def _draw_stages(axes: Axes, right: Comparison, wrong: Comparison) -> None:
    bottom, top = EQUAL
    bottom, top = bottom * 1e9, top * 1e9  # absolute differences of float32
    names = [stage.name.removeprefix("blocks.") for stage in wrong.stages]
    axes.axhspan(bottom, top, color="C2", alpha=0.15, linewidth=0)
    axes.plot(names, [(bottom * top) ** 0.5] * len(names), "o-", color="C2", markersize=5)
    axes.plot(
        names, [stage.max_abs or (bottom * top) ** 0.5 for stage in wrong.stages], "s-", color="C1", markersize=5
    )
    axes.axhline(LOOSE, color="#444444", linestyle="--", linewidth=1)
    texts = [
        (0.6, LOOSE * 1.5, f"torch.allclose(logits, atol={LOOSE:g}) passes what ends below", "#444444"),
        (3.5, top * 2.5, "vitconv: Δ = 0 at every stage", "#00614a"),
    ]
    for x, y, text, colour in texts:
        axes.text(x, y, text, color=colour, fontsize=9)
    axes.annotate(
        f"wrong epsilon: logits off by {wrong.stages[-1].max_abs:.1e}".replace("e-0", "e-"),
        (len(names) - 1, wrong.stages[-1].max_abs), (-8, -28), textcoords="offset points", ha="right", color="C1", fontsize=9,
    )  # fmt: skip
    axes.set(yscale="log", ylim=(bottom, 1), xlabel="stage: embeddings, blocks, norm, logits", ylabel="largest |Δ|")
    axes.set_yticks([(bottom * top) ** 0.5, 1e-6, 1e-4, 1e-2, 1], ["0", "1e-6", "1e-4", "1e-2", "1"])
    axes.minorticks_off()
    axes.set_title("a mistake that a loose check lets through")
    axes.tick_params(axis="x", labelsize=8)


if __name__ == "__main__":
    with plt.style.context("vitconv.figures"):
        draw().savefig(ROOT / "docs" / "convert.png", dpi=140)
