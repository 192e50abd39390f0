"""OpenVINO with weights in float32 that computes in bfloat16: several times faster where the processor has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.optimization.recipes.openvino import export
from vitconv.optimization.recipes.recipe import BFLOAT16, FAST_BFLOAT16, Calibration, Recipe, Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``openvino/openvino_model.xml`` and its weights."""
    return export(model, folder, "bf16")


RECIPE = Recipe(
    "openvino-bf16",
    "OpenVINO that computes in bfloat16: several times faster with AMX.",
    "openvino",
    write,
    packages=("openvino",),
    extra="openvino",
    instructions=BFLOAT16,
    without="OpenVINO would take many times as long as in float32, or compute in float32",
    fast_with=FAST_BFLOAT16,
)
