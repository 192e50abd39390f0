"""Small models whose answers have margins, pictures of their classes, and how to optimise and edit folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES
from models import small_model
from PIL import Image
from torch import nn

from vitconv.convert import convert_checkpoint
from vitconv.inference.optimized import OPTIMIZATION_FILE, write_record
from vitconv.models.timm import read
from vitconv.optimization import RECIPES, Limits, Optimization, optimization, optimize
from vitconv.optimization.recipes.recipe import first

#: Colours that no two classes share, and stripes of another width for each.
_COLOURS = ((200, 60, 60), (60, 190, 70), (60, 80, 200), (200, 190, 60), (150, 60, 190))


def picture(number: int, seed: int, size: int = 32) -> Image.Image:
    """An image of the class with this number: striped, in its colour, with noise of its own."""
    rng = np.random.default_rng([number, seed])
    stripes = (np.arange(size) // (number + 2)) % 2
    pixels = np.array(_COLOURS[number])[None, None] * (0.7 + 0.3 * stripes[None, :, None])
    noisy = pixels + rng.normal(0, 12, (size, size, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, count: int, first: int = 0, classes: Sequence[str] = CLASSES, size: int = 32) -> Path:
    """Write images into a subfolder for each class, whose name is their label, and return the folder."""
    for number in range(count):
        name = classes[number % len(classes)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture(number % len(classes), first + number, size).save(folder / name / f"{first + number:04}.png")
    return folder


def with_margins(model: nn.Module) -> nn.Module:
    """Fit the head of a timm model, by ridge regression, so that it tells the pictures' classes apart."""
    size, count = read(model).image_size[0], model.num_classes
    images = [picture(number % count, 10_000 + number, size) for number in range(20 * count)]
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        features = model.forward_head(model.forward_features(pixels), pre_logits=True).double()
        centre = features.mean(0)
        targets = 8 * torch.eye(count, dtype=torch.float64)[torch.arange(len(images)) % count] - 4
        spread = features - centre
        ridge = spread.T @ spread + 1e-2 * torch.eye(spread.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(ridge, spread.T @ (targets - targets.mean(0))).T
        for head in filter(None, (model.head, getattr(model, "head_dist", None))):
            head.weight.copy_(weight)
            head.bias.copy_(targets.mean(0) - weight @ centre)
        if hasattr(model, "head_dist"):  # the two heads of DeiT must not be the same
            model.head_dist.weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def with_outlier(model: nn.Module, factor: float = 1000) -> nn.Module:
    """Make one channel after each norm of the blocks larger, and what reads it smaller: in float32, nothing changes."""
    with torch.no_grad():
        for block in model.blocks:
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                norm.weight[3] *= factor
                norm.bias[3] *= factor
                linear.weight[:, 3] /= factor
    return model


def with_massive_channel(model: nn.Module, size: float = 16) -> nn.Module:
    """Make one channel of the residual stream large, which the norms leave out, as trained ViTs have them."""
    with torch.no_grad():
        model.pos_embed[..., 3] += size
        for norm in (model.norm, *(norm for block in model.blocks for norm in (block.norm1, block.norm2))):
            norm.weight *= size / 8
            norm.weight[3] = 0
    return model


def convert_with_margins(place: Path, model: nn.Module | None = None) -> Path:
    """A converted folder of five trees that tells the pictures' classes apart: ``trees`` in a new folder."""
    model = with_margins(small_model("plain")) if model is None else model
    place.mkdir(exist_ok=True)
    torch.save(model.state_dict(), place / "trees.pth")
    convert_checkpoint(place / "trees.pth", place / "trees", architecture=model, labels=CLASSES, verify=False)
    return place / "trees"


#: Wide enough for the 60 pictures without a change, which prove no more than 4.9 %.
LIMITS = Limits(disagreement=0.06)
#: So wide that only what is not finite, or in float32 not the same, is refused.
ANY = Limits(disagreement=1, margin=1, cosine=0, calibration_error=1, p_value=0)


def skip_without_instructions(recipe: str) -> None:
    """Skip the test if this processor would compute the recipe's result wrongly: vitconv refuses it, as a test shows."""
    wanted = RECIPES[recipe].instructions
    if wanted and not first(wanted, optimization.instructions()):
        pytest.skip(f"{recipe} needs a processor with {' or '.join(wanted)}")


@dataclass(frozen=True)
class Woods:
    """A converted folder that tells its pictures apart, with pictures to judge by and to calibrate with.

    Attributes:
        model: the folder.
        held: 60 pictures, in a subfolder for each class.
        calibration: 25 others.
        reference: where the float32 model's answers are kept.
    """

    model: Path
    held: Path
    calibration: Path
    reference: Path
    results: dict[str, Optimization] = field(default_factory=dict)

    @classmethod
    def make(cls, place: Path) -> Woods:
        held, calibration = write_pictures(place / "held", 60), write_pictures(place / "others", 25, first=1000)
        return cls(convert_with_margins(place / "model"), held, calibration, place / "reference")

    def made(self, recipe: str) -> Optimization:
        """What a recipe makes of the model; made once, and only to be read."""
        if recipe not in self.results:
            self.results[recipe] = self.optimize(self.model.parent.parent / recipe, recipe)
        return self.results[recipe]

    def copy(self, recipe: str, destination: Path) -> Path:
        """A copy of what a recipe makes of the model, to be edited."""
        return Path(shutil.copytree(self.made(recipe).folder, destination))

    def optimize(self, destination: Path, recipe: str, **options: Any) -> Optimization:
        """Make a folder by a recipe, by limits that the pictures can prove."""
        skip_without_instructions(recipe)
        if RECIPES[recipe].calibrates:
            options.setdefault("calibration", self.calibration)
        if options.setdefault("model", self.model) == self.model:
            options.setdefault("reference", self.reference)
        return optimize(
            options.pop("model"), destination, recipe=recipe, **{"images": self.held, "limits": LIMITS} | options
        )


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what ``optimization.json`` says, as somebody would who knows how its seal is made."""
    content = json.loads((folder / OPTIMIZATION_FILE).read_text())
    del content["seal"]
    change(content)
    write_record(content, folder)
