"""Products of matrices in float8, by torchao, compiled by AOTInductor; everything else is in bfloat16.

It needs a GPU that multiplies in float8: compute capability 8.9 or more. Weights are rounded once, and activations as
they come, each row by its own largest value: https://docs.pytorch.org/ao/stable/workflows/inference.html

It has not been run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.compiled_cuda import compile_for_gpu
from vitconv.optimization.recipes.recipe import Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``model.pt2``, code for the GPU and weights."""
    import torch

    model = model.to("cuda", torch.bfloat16)
    quantize(model)
    return compile_for_gpu(model, folder)


def quantize(model: PreTrainedModel) -> None:
    """Quantise the linear layers but the head, whose few products cost nothing and decide the answer."""
    from torch import nn
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    from torchao.quantization.quantize_.common import KernelPreference

    # torch's own kernels: those of other packages are not in a compiled file.
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), kernel_preference=KernelPreference.TORCH, set_inductor_config=False
    )
    quantize_(model, config, lambda module, name: isinstance(module, nn.Linear) and "." in name)


RECIPE = Recipe(
    "torchao-float8",
    "Products in float8 by torchao, for this GPU. Not tried on a GPU yet.",
    "aotinductor",
    write,
    packages=("torchao",),
    device="cuda",
    bound=True,
    code=True,
)
