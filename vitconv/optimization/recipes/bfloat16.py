"""Weights in bfloat16: half the size, and fast on processors that compute in it.

bfloat16 has float32's range and 8 bits of precision: nothing overflows, and each number is rounded to 1 part in 256.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.recipe import FAST_BFLOAT16, Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write a folder of Transformers with weights in bfloat16."""
    import torch

    from vitconv.optimization.recipes.weights import save

    save(model.to(torch.bfloat16), folder)
    return Written("model.safetensors")


RECIPE = Recipe(
    "bfloat16",
    "Transformers with weights in bfloat16: half the size, loads as before.",
    "transformers",
    write,
    device="",
    fast_with=FAST_BFLOAT16,
)
