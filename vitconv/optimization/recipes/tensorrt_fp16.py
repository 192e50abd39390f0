"""ONNX in float16, of which TensorRT makes an engine for the GPU that is there when the model is opened.

The engine computes each operation in the type that the file states (TensorRT calls that strongly typed). Making it
takes a minute or more, and TensorRT chooses among kernels by timing them: two engines may differ by rounding.

It has not been run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.onnx import export
from vitconv.optimization.recipes.recipe import Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``onnx/model_fp16.onnx``, as transformers.js names it."""
    return export(model.half(), folder, "model_fp16.onnx")


RECIPE = Recipe(
    "tensorrt-fp16",
    "ONNX in float16, run by TensorRT on a GPU. Not tried on a GPU yet.",
    "tensorrt",
    write,
    packages=("onnx", "onnxscript", "onnxruntime", "tensorrt"),
    device="cuda",
)
