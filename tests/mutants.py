"""Right conversions with one mistake each: what converters get wrong, and what disks, scripts and hands do later.

A mutant edits the files of a converted folder. It *lives in* the stage where it must be found: a stage of the
computation, or, for what no computation on timm's pixels can show, ``"bytes"``, ``"pixels"`` or ``"labels"``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from models import perturbed
from safetensors.torch import load_file, save_file
from torch import nn

from vitconv.architecture import Architecture
from vitconv.convert import convert_checkpoint
from vitconv.errors import ParityError
from vitconv.models.data_config import DataConfig, data_config, tag_config
from vitconv.models.images import sample_image
from vitconv.models.pixels import huggingface_pixels, timm_pixels
from vitconv.models.timm import from_timm
from vitconv.parity import compare
from vitconv.parity.verification import same_everywhere, verify_folder

Tensors = dict[str, torch.Tensor]

BLOCKS, WIDTH, HEADS = 3, 64, 4
LABELS = ("tulip", "rose", "daisy", "lily", "poppy")
DATA = {"crop_pct": 0.875, "mean": [0.48, 0.45, 0.41], "std": [0.22, 0.23, 0.26]}

#: What the mutants are made of: the plain model, and one for each rewrite that can go wrong.
BASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 1e-3},
    "no class position": {"no_embed_class": True},
    "headless": {"num_classes": 0},
}


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: the mistake, in words.
        stage: where it lives.
        edit: does it, to a folder.
        base: the key in :data:`BASES`.
    """

    name: str
    stage: str
    edit: Callable[[Path], None]
    base: str = "plain"


@dataclass(frozen=True)
class Base:
    """A right conversion, and what is needed to verify it."""

    folder: Path
    model: nn.Module
    architecture: Architecture
    data: DataConfig
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Outcome:
    """What each check says of a mutant.

    Attributes:
        verdict: the stage of the error that the command ends with; ``None`` if it passes.
        numbers: the first stage where the two models diverge in float64 (float32 where LayerScale was folded) on timm's
            pixels, with the tokens that the command takes; ``None`` if nowhere, or if Transformers cannot load all of the folder.
        allclose: what ``torch.allclose(logits, atol=1e-3)`` says on one image.
    """

    verdict: str | None
    numbers: str | None
    allclose: bool

    def caught(self, mutant: Mutant) -> bool:
        """Caught by the command, and by the stage it lives in."""
        return self.verdict is not None and mutant.stage in (self.verdict, self.numbers)


def make_base(name: str, folder: Path) -> Base:
    """Convert the right model into ``folder``."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": BLOCKS, "num_heads": HEADS}
    model = perturbed(timm.create_model("vit_tiny_patch16_224", **{**arguments, "num_classes": 5, **BASES[name]}))
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "timm.pth")
    labels = LABELS if model.num_classes else None
    convert_checkpoint(folder / "timm.pth", folder / "hf", architecture=model, labels=labels, data=DATA)
    architecture = from_timm(model)
    return Base(
        folder / "hf", model, architecture, data_config(tag_config(model.pretrained_cfg), architecture, DATA), labels
    )


#: Of the 17 tokens of an image, how many a conversion's own proof is given in float64 here.
FEW = 6


def run_checks(base: Base, folder: Path, *, converting: bool = False) -> Outcome:
    """Ask every check about ``folder``, a mutant of ``base``: as ``vitconv verify`` does, or as ``vitconv convert``."""
    image = sample_image()
    state_dict = base.model.state_dict()
    verdict = None
    try:
        verify_folder(
            folder,
            state_dict,
            base.model,
            base.architecture,
            base.data,
            [image],
            labels=base.labels,
            probes=not converting,
            tokens=FEW if converting else None,
        )
    except ParityError as error:
        verdict = error.stage
    # Without vitconv's own checks, which would refuse folders that Transformers loads.
    cls = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, report = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return Outcome(verdict, None, False)  # Transformers fills what is missing at random, and only warns
    pixels = timm_pixels(image, base.data)[None]
    # Folding LayerScale rounds the right conversion, too, to float32.
    dtype = "float32" if base.architecture.layer_scale else "float64"
    # A conversion gives float64 fewer tokens only where float32 sees no difference.
    few = converting and dtype == "float64" and same_everywhere(compare(base.model, model, pixels, dtypes=["float32"]))
    stage = compare(base.model, model, pixels, dtypes=[dtype], tokens=FEW if few else None)[dtype].diverges_at
    with torch.no_grad():
        expected = base.model(pixels)
        output = model(huggingface_pixels(image, folder, base.data))
    actual = output.logits if "logits" in output else output.pooler_output
    return Outcome(verdict, stage.name if stage else None, torch.allclose(actual, expected, atol=1e-3))


# ---- how to edit a folder -----------------------------------------------------------------------------------


def tensors(change: Callable[[Tensors], Tensors | None]) -> Callable[[Path], None]:
    """Edit the weights: ``change`` works in place or returns others."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = {name: tensor.clone() for name, tensor in load_file(path).items()}
        content = change(content) or content
        save_file({n: t.contiguous().clone() for n, t in content.items()}, path, metadata={"format": "pt"})

    return edit


def entry(file: str, **changes: Any) -> Callable[[Path], None]:
    """Edit the values of a JSON file."""

    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def permute(*names: str) -> Callable[[Path], None]:
    """Each of these tensors gets the next one's values, the last the first's."""
    return tensors(lambda t: t.update({name: t[names[(i + 1) % len(names)]] for i, name in enumerate(names)}))


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Edit one tensor."""
    return tensors(lambda t: t.update({name: change(t[name])}))


def layer(i: int, rest: str) -> str:
    return f"vit.encoder.layer.{i}.{rest}"


def attention(i: int, which: str, kind: str = "weight") -> str:
    return layer(i, f"attention.attention.{which}.{kind}")


def nudge(index: tuple[int, ...], by: float | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """One element moved ``by`` so much, or by one unit in the last place."""

    def change(values: torch.Tensor) -> torch.Tensor:
        values[index] = torch.nextafter(values[index], torch.tensor(99.0)) if by is None else values[index] + by
        return values

    return change


def roll_one_head(values: torch.Tensor) -> torch.Tensor:
    size = WIDTH // HEADS
    values[size : 2 * size] = values[size : 2 * size].roll(1, 0)
    return values


def dealt_by_head(t: Tensors) -> None:
    """Read the fused rows as (head, q/k/v, channel) instead of (q/k/v, head, channel)."""
    names = [attention(1, which) for which in ("query", "key", "value")]
    fused = torch.cat([t[name] for name in names]).reshape(HEADS, 3, WIDTH // HEADS, WIDTH)
    for part, name in enumerate(names):
        t[name] = fused[:, part].reshape(WIDTH, WIDTH)


def shifted_blocks(t: Tensors) -> Tensors:
    """Counting from 1 what is counted from 0: every block gets the next one's tensors, the last the first's."""
    old = {i: {n.split(".", 4)[4]: v for n, v in t.items() if n.startswith(layer(i, ""))} for i in range(BLOCKS)}
    return t | {layer(i, rest): v for i in range(BLOCKS) for rest, v in old[(i + 1) % BLOCKS].items()}


def positions(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Edit the grid of patch positions, shape (4, 4, width)."""

    def edit(values: torch.Tensor) -> torch.Tensor:
        grid = change(values[0, 1:].reshape(4, 4, -1))
        return torch.cat([values[:, :1], grid.reshape(1, 16, -1)], dim=1)

    return tensor("vit.embeddings.position_embeddings", edit)


def scale_layer(change: Callable[[Tensors, Tensors, int], None]) -> Callable[[Path], None]:
    """Edit the folded weights, given the LayerScale factors of the source."""

    def edit(folder: Path) -> None:
        source = torch.load(folder.parent / "timm.pth")

        def all_blocks(t: Tensors) -> None:
            for i in range(BLOCKS):
                change(t, source, i)

        tensors(all_blocks)(folder)

    return edit


def unfold(which: str, into: str, kinds: tuple[str, ...] = ("weight", "bias")) -> Callable[[Path], None]:
    def change(t: Tensors, source: Tensors, i: int) -> None:
        for kind in kinds:
            name = layer(i, f"{into}.dense.{kind}")
            gamma = source[f"blocks.{i}.{which}.gamma"]
            t[name] = t[name] / (gamma[:, None] if kind == "weight" else gamma)

    return scale_layer(change)


def fold_twice(t: Tensors, source: Tensors, i: int) -> None:
    t[layer(i, "output.dense.weight")] *= source[f"blocks.{i}.ls2.gamma"][:, None]


def fold_along_columns(t: Tensors, source: Tensors, i: int) -> None:
    t[layer(i, "attention.output.dense.weight")] = (
        source[f"blocks.{i}.attn.proj.weight"] * source[f"blocks.{i}.ls1.gamma"][None]
    )


def stale_weights(folder: Path) -> None:
    """The file of another run: same names, same shapes, other training."""

    def other(t: Tensors) -> None:
        generator = torch.Generator().manual_seed(9)
        t.update({name: v + 0.01 * torch.randn(v.shape, generator=generator) for name, v in t.items()})

    tensors(other)(folder)


def shifted_labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def _zeros(values: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(values)


POSITIONS, PATCH = "vit.embeddings.position_embeddings", "vit.embeddings.patch_embeddings.projection"
BEFORE, AFTER = "layernorm_before", "layernorm_after"


def _all() -> Iterator[Mutant]:
    q, k, v = "query", "key", "value"
    # attention
    yield Mutant("q and k weights swapped", "blocks.1", permute(attention(1, q), attention(1, k)))
    yield Mutant("q and v weights swapped", "blocks.0", permute(attention(0, q), attention(0, v)))
    yield Mutant("k and v weights swapped", "blocks.2", permute(attention(2, k), attention(2, v)))
    yield Mutant("q, k, v weights rotated", "blocks.1", permute(*(attention(1, x) for x in (q, k, v))))
    yield Mutant("q and k biases swapped", "blocks.1", permute(attention(1, q, "bias"), attention(1, k, "bias")))
    yield Mutant("k and v biases swapped", "blocks.2", permute(attention(2, k, "bias"), attention(2, v, "bias")))
    yield Mutant("q, k, v biases rotated", "blocks.0", permute(*(attention(0, x, "bias") for x in (q, k, v))))
    yield Mutant("qkv dealt head by head", "blocks.1", tensors(dealt_by_head))
    yield Mutant("one head's q rows rotated", "blocks.1", tensor(attention(1, q), roll_one_head))
    yield Mutant("one head's v rows rotated", "blocks.0", tensor(attention(0, v), roll_one_head))
    yield Mutant("k rows reversed", "blocks.2", tensor(attention(2, k), lambda t: t.flip(0)))
    yield Mutant("q heads permuted", "blocks.1", tensor(attention(1, q), lambda t: t.roll(WIDTH // HEADS, 0)))
    yield Mutant("q bias dropped", "blocks.1", tensor(attention(1, q, "bias"), _zeros))
    yield Mutant("k bias dropped", "bytes", tensor(attention(1, k, "bias"), _zeros))
    yield Mutant(
        "k bias noisy, σ = 5", "bytes", tensor(attention(0, k, "bias"), lambda t: t + 5 * torch.randn_like(t))
    )
    yield Mutant("k bias nudged by 1 ulp", "bytes", tensor(attention(2, k, "bias"), nudge((7,))))
    yield Mutant("v bias dropped", "blocks.2", tensor(attention(2, v, "bias"), _zeros))
    yield Mutant("attention scale √2 too large", "blocks.0", tensor(attention(0, q), lambda t: t * 2**0.5))
    yield Mutant("attention scale too large by 1e-6", "blocks.2", tensor(attention(2, q), lambda t: t * (1 + 1e-6)))
    yield Mutant(
        "output projection transposed", "blocks.1", tensor(layer(1, "attention.output.dense.weight"), lambda t: t.T)
    )
    yield Mutant("output projection bias dropped", "blocks.0", tensor(layer(0, "attention.output.dense.bias"), _zeros))
    # norms
    for kind in ("weight", "bias"):
        yield Mutant(
            f"norm1 and norm2 swapped, {kind}",
            "blocks.1",
            permute(layer(1, f"{BEFORE}.{kind}"), layer(1, f"{AFTER}.{kind}")),
        )
        yield Mutant(
            f"norm1 of two blocks swapped, {kind}",
            "blocks.0",
            permute(layer(0, f"{BEFORE}.{kind}"), layer(2, f"{BEFORE}.{kind}")),
        )
        yield Mutant(
            f"final norm {kind} is block 2's",
            "norm",
            tensors(lambda t, kind=kind: t.update({f"vit.layernorm.{kind}": t[layer(2, f"{AFTER}.{kind}")]})),
        )
    yield Mutant(
        "norm weight and bias swapped", "blocks.2", permute(layer(2, f"{BEFORE}.weight"), layer(2, f"{BEFORE}.bias"))
    )
    yield Mutant(
        "final norm left as initialised",
        "norm",
        tensors(
            lambda t: t.update({"vit.layernorm.weight": torch.ones(WIDTH), "vit.layernorm.bias": torch.zeros(WIDTH)})
        ),
    )
    # MLP and blocks
    yield Mutant("fc1 bias dropped", "blocks.1", tensor(layer(1, "intermediate.dense.bias"), _zeros))
    yield Mutant("fc2 bias dropped", "blocks.2", tensor(layer(2, "output.dense.bias"), _zeros))
    yield Mutant(
        "fc1 of two blocks swapped",
        "blocks.0",
        permute(layer(0, "intermediate.dense.weight"), layer(1, "intermediate.dense.weight")),
    )
    yield Mutant(
        "one fc1 row zeroed",
        "blocks.0",
        tensor(layer(0, "intermediate.dense.weight"), lambda t: t.index_fill(0, torch.tensor([11]), 0)),
    )
    yield Mutant("blocks off by one", "blocks.0", tensors(shifted_blocks))
    yield Mutant(
        "a block repeated",
        "blocks.2",
        tensors(
            lambda t: (
                t | {n.replace(layer(1, ""), layer(2, "")): x for n, x in t.items() if n.startswith(layer(1, ""))}
            )
        ),
    )
    # embeddings
    yield Mutant("class token dropped", "embeddings", tensor("vit.embeddings.cls_token", _zeros))
    yield Mutant("position grid transposed", "embeddings", positions(lambda g: g.transpose(0, 1)))
    yield Mutant("position grid mirrored", "embeddings", positions(lambda g: g.flip(1)))
    yield Mutant("positions off by one patch", "embeddings", positions(lambda g: g.reshape(16, -1).roll(1, 0)))
    yield Mutant("class position last instead of first", "embeddings", tensor(POSITIONS, lambda t: t.roll(-1, 1)))
    yield Mutant(
        "class position zeroed", "embeddings", tensor(POSITIONS, lambda t: t.index_fill(1, torch.tensor([0]), 0))
    )
    yield Mutant("patch kernel mirrored", "embeddings", tensor(f"{PATCH}.weight", lambda t: t.flip(3)))
    yield Mutant("patch kernel transposed", "embeddings", tensor(f"{PATCH}.weight", lambda t: t.transpose(2, 3)))
    yield Mutant("patch kernel BGR", "embeddings", tensor(f"{PATCH}.weight", lambda t: t.flip(1)))
    yield Mutant("patch bias dropped", "embeddings", tensor(f"{PATCH}.bias", _zeros))
    # head
    yield Mutant("two head rows swapped", "logits", tensor("classifier.weight", lambda t: t[[1, 0, 2, 3, 4]]))
    yield Mutant("head rows reversed", "logits", tensor("classifier.weight", lambda t: t.flip(0)))
    yield Mutant("head bias dropped", "logits", tensor("classifier.bias", _zeros))
    yield Mutant("head bias off by one", "logits", tensor("classifier.bias", lambda t: t.roll(1)))
    yield Mutant("head scaled by 1 + 1e-4", "logits", tensor("classifier.weight", lambda t: t * (1 + 1e-4)))
    # single elements and rounding
    yield Mutant("q element nudged by 1 ulp", "bytes", tensor(attention(1, q), nudge((3, 5))))
    yield Mutant("fc2 element nudged by 1 ulp", "blocks.2", tensor(layer(2, "output.dense.weight"), nudge((9, 100))))
    yield Mutant("head element nudged by 1 ulp", "logits", tensor("classifier.weight", nudge((2, 17))))
    yield Mutant("position nudged by 1 ulp", "embeddings", tensor(POSITIONS, nudge((0, 6, 6))))
    yield Mutant("norm weight nudged by 1 ulp", "norm", tensor("vit.layernorm.weight", nudge((40,))))
    yield Mutant("v bias element nudged by 1e-3", "blocks.0", tensor(attention(0, v, "bias"), nudge((30,), 1e-3)))
    yield Mutant("patch element nudged by 1e-3", "embeddings", tensor(f"{PATCH}.weight", nudge((8, 2, 1, 1), 1e-3)))
    yield Mutant(
        "one sign flipped",
        "blocks.1",
        tensor(layer(1, "output.dense.weight"), lambda t: t.index_put((torch.tensor(4), torch.tensor(4)), -t[4, 4])),
    )
    yield Mutant("one NaN", "blocks.1", tensor(layer(1, "intermediate.dense.weight"), nudge((4, 4), float("nan"))))
    yield Mutant("a weight through bfloat16", "blocks.0", tensor(attention(0, q), lambda t: t.bfloat16().float()))
    yield Mutant(
        "all weights through float16", "embeddings", tensors(lambda t: {n: x.half().float() for n, x in t.items()})
    )
    # rewrites
    yield Mutant("LayerScale forgotten after attention", "blocks.0", unfold("ls1", "attention.output"), "layer scale")
    yield Mutant("LayerScale forgotten after the MLP", "blocks.0", unfold("ls2", "output"), "layer scale")
    yield Mutant(
        "LayerScale not folded into the bias", "blocks.0", unfold("ls1", "attention.output", ("bias",)), "layer scale"
    )
    yield Mutant("LayerScale folded twice", "blocks.0", scale_layer(fold_twice), "layer scale")
    yield Mutant("LayerScale folded along columns", "blocks.0", scale_layer(fold_along_columns), "layer scale")
    yield Mutant(
        "zero class position at the wrong end",
        "embeddings",
        tensor(POSITIONS, lambda t: t.roll(-1, 1)),
        "no class position",
    )
    yield Mutant(
        "class token gets a patch's position",
        "embeddings",
        tensor(POSITIONS, lambda t: torch.cat([t[:, 1:2], t[:, 1:]], 1)),
        "no class position",
    )
    yield Mutant(
        "pooler left at random",
        "features",
        tensor("pooler.dense.weight", lambda t: 0.02 * torch.randn_like(t)),
        "headless",
    )
    yield Mutant("pooler through tanh", "features", entry("config.json", pooler_act="tanh"), "headless")
    # config.json
    yield Mutant("epsilon 1e-12", "blocks.0", entry("config.json", layer_norm_eps=1e-12))
    yield Mutant("epsilon 1e-5", "blocks.0", entry("config.json", layer_norm_eps=1e-5))
    yield Mutant("epsilon 2e-6", "blocks.0", entry("config.json", layer_norm_eps=2e-6))
    yield Mutant("epsilon larger by a thousandth", "blocks.0", entry("config.json", layer_norm_eps=1.001e-6))
    yield Mutant("epsilon larger by a millionth", "blocks.0", entry("config.json", layer_norm_eps=1.000001e-6))
    yield Mutant("tanh GELU", "blocks.0", entry("config.json", hidden_act="gelu_pytorch_tanh"))
    yield Mutant("GELU by a shorter formula", "blocks.0", entry("config.json", hidden_act="gelu_fast"))
    yield Mutant("quick GELU", "blocks.0", entry("config.json", hidden_act="quick_gelu"))
    yield Mutant("half the heads", "blocks.0", entry("config.json", num_attention_heads=HEADS // 2))
    yield Mutant("dropout in fine-tuning", "config", entry("config.json", hidden_dropout_prob=0.1))
    yield Mutant("biases of qkv not loaded", "config", entry("config.json", qkv_bias=False))
    # preprocessor_config.json
    processor = "preprocessor_config.json"
    yield Mutant("mean and std swapped", "pixels", entry(processor, image_mean=DATA["std"], image_std=DATA["mean"]))
    yield Mutant(
        "ImageNet's mean and std",
        "pixels",
        entry(processor, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    )
    yield Mutant(
        "mean and std BGR", "pixels", entry(processor, image_mean=DATA["mean"][::-1], image_std=DATA["std"][::-1])
    )
    yield Mutant("crop_pct ignored", "pixels", entry(processor, size={"shortest_edge": 32}))
    yield Mutant("squashed instead of cropped", "pixels", entry(processor, size={"height": 32, "width": 32}))
    yield Mutant("bilinear for bicubic", "pixels", entry(processor, resample=2))
    yield Mutant("no rescaling to 0…1", "pixels", entry(processor, do_rescale=False))
    yield Mutant("no normalisation", "pixels", entry(processor, do_normalize=False))
    # labels
    yield Mutant("labels off by one", "labels", entry("config.json", **shifted_labels((*LABELS[1:], LABELS[0]))))
    yield Mutant(
        "two labels swapped", "labels", entry("config.json", **shifted_labels((LABELS[1], LABELS[0], *LABELS[2:])))
    )
    yield Mutant(
        "labels in alphabetical order", "labels", entry("config.json", **shifted_labels(tuple(sorted(LABELS))))
    )
    yield Mutant(
        "labels forgotten", "labels", entry("config.json", **shifted_labels(tuple(f"LABEL_{i}" for i in range(5))))
    )
    yield Mutant(
        "label2id of other labels", "labels", entry("config.json", label2id={n: 4 - i for i, n in enumerate(LABELS)})
    )
    # files
    yield Mutant("weights of another run", "embeddings", stale_weights)
    yield Mutant(
        "a tensor missing", "bytes", tensors(lambda t: {n: x for n, x in t.items() if n != "vit.layernorm.bias"})
    )
    yield Mutant(
        "a tensor renamed",
        "bytes",
        tensors(lambda t: {n.replace("classifier.bias", "classifer.bias"): x for n, x in t.items()}),
    )
    yield Mutant("a tensor too many", "bytes", tensors(lambda t: t | {"vit.pooler.dense.bias": torch.zeros(WIDTH)}))
    yield Mutant(
        "weights stored in float16",
        "bytes",
        tensors(lambda t: {n: x.half() if "classifier" in n else x for n, x in t.items()}),
    )


MUTANTS = tuple(_all())
