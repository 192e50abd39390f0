"""Weights in float16, for a GPU: half the size, and several times faster than float32.

float16 is 8 times as precise as bfloat16 and reaches to 65504 only: in some trained ViTs, an activation becomes
infinite. The gate then refuses the model, and bfloat16 is the recipe to take.

It has not been run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.recipe import Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write a folder of Transformers with weights in float16."""
    from vitconv.optimization.recipes.weights import save

    save(model.half(), folder)
    return Written("model.safetensors")


RECIPE = Recipe(
    "float16",
    "Transformers with weights in float16, for a GPU: half the size. Not tried on a GPU yet.",
    "transformers",
    write,
    device="cuda",
)
