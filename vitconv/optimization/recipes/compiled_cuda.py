"""Compiled ahead of time by torch's AOTInductor, in float16, for the GPU that is there.

It runs on GPUs of the same compute capability only. It has not been run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.recipe import Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``model.pt2``, code for the GPU and weights."""
    return compile_for_gpu(model.half().to("cuda"), folder)


def compile_for_gpu(model: PreTrainedModel, folder: Path) -> Written:
    """Compile a model that is on a GPU."""
    from vitconv.inference.aotinductor import capability
    from vitconv.optimization.recipes.logits import compile_ahead

    compile_ahead(model, folder / "model.pt2")
    return Written("model.pt2", {"capability": capability("cuda")})


RECIPE = Recipe(
    "compiled-cuda",
    "Machine code in float16, for this GPU. Not tried on a GPU yet.",
    "aotinductor",
    write,
    device="cuda",
    bound=True,
    code=True,
)
