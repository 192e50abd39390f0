"""Compiled ahead of time by torch's AOTInductor, in bfloat16: several times faster on processors with AMX.

The operations between the products of matrices are fused, and nothing is compiled when the model is loaded. bfloat16
is what makes it fast, and only with AMX: on a processor without, float32 is faster, compiled or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.recipe import FAST_BFLOAT16, Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``model.pt2``, machine code and weights."""
    import torch

    from vitconv.optimization.recipes.logits import compile_ahead

    compile_ahead(model.to(torch.bfloat16), folder / "model.pt2")
    return Written("model.pt2")


RECIPE = Recipe(
    "compiled",
    "Machine code in bfloat16, for this processor: several times faster with AMX.",
    "aotinductor",
    write,
    fast_with=FAST_BFLOAT16,
    bound=True,
    code=True,
)
