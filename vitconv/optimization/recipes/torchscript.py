"""TorchScript in float32: one file that runs without Transformers, in Python and in C++.

It computes the same numbers in about the same time. Triton's PyTorch backend serves it, as `model.pt`. torch calls
TorchScript deprecated, and still writes and reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.quiet import without_noise
from vitconv.optimization.recipes.recipe import Calibration, Recipe, Written, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``model.pt``, the recorded computation."""
    import torch

    from vitconv.optimization.recipes.logits import Logits

    with without_noise(), torch.no_grad():
        # It would compare with a second run, and report differences in a warning; the gate compares with float32.
        traced = torch.jit.trace(Logits(model), sample(model)["pixel_values"], check_trace=False)
        with (folder / "model.pt").open("wb") as file:  # by a path, torch ends the process where the disk is full
            torch.jit.save(traced, file)
    return Written("model.pt")


RECIPE = Recipe(
    "torchscript",
    "TorchScript in float32: one file for Triton and C++, without Transformers.",
    "torchscript",
    write,
    exact=True,
    code=True,
)
