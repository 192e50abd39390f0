"""OpenVINO in float32: the same numbers, somewhat faster on Intel's processors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.optimization.recipes.quiet import without_noise
from vitconv.optimization.recipes.recipe import BFLOAT16, Calibration, Recipe, Written, any_batch, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "openvino/openvino_model.xml"
WEIGHTS = "openvino/openvino_model.bin"


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``openvino/openvino_model.xml`` and its weights."""
    return export(model, folder, "f32")


def export(model: PreTrainedModel, folder: Path, precision: str, quantize: Any = None) -> Written:
    """Export a model with Transformers' exporter.

    Args:
        model: in float32.
        folder: the folder that gets ``openvino``.
        precision: in which the runtime computes: ``"f32"`` or ``"bf16"``. OpenVINO would choose by itself.
        quantize: makes of an ``openvino.Model`` another one.
    """
    from transformers.exporters import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    from vitconv.inference.openvino import only_core

    config = OpenVINOConfig(dynamic_shapes=any_batch(), stateful=False)
    with without_noise(), only_core(precision):
        program = OpenVINOExporter().export(model, sample(model), config=config).program
        program = quantize(program) if quantize else program
        (folder / FILE).parent.mkdir()
        OpenVINOExporter.save_program(program, folder / FILE)
    return Written(FILE, {"precision": precision}, (WEIGHTS,), BFLOAT16 if precision == "bf16" else ())


RECIPE = Recipe(
    "openvino",
    "OpenVINO in float32: the same numbers, somewhat faster.",
    "openvino",
    write,
    packages=("openvino",),
    extra="openvino",
    exact=True,
)
