"""ONNX with weights in int8, and activations rounded to 8 bits as they come: a quarter of the size.

Only the products of matrices are quantised. onnxruntime's static quantisation also takes normalisations, the softmax,
GELU and the residual stream by default, which ruins a ViT: notebooks/optimize.ipynb shows it.

The products are of unsigned by signed numbers. Processors without VNNI add pairs of them in 16 bits, which can
overflow: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.onnx import export
from vitconv.optimization.recipes.recipe import OVERFLOW, VNNI, Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``onnx/model_quantized.onnx``, as transformers.js names it."""
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    config = OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    return export(model, folder, "model_quantized.onnx", OnnxRuntimeQuantizer(config))


RECIPE = Recipe(
    "onnx-int8",
    "ONNX with weights in int8: a quarter of the size, no calibration.",
    "onnxruntime",
    write,
    packages=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    instructions=VNNI,
    without=OVERFLOW,
)
