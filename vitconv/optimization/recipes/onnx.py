"""ONNX in float32: a file that ONNX Runtime, browsers and many other runtimes read.

It computes the same numbers and is hardly faster. It is the start of `onnx-int8`, and what transformers.js reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.optimization.recipes.quiet import without_noise
from vitconv.optimization.recipes.recipe import Calibration, Recipe, Written, any_batch, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The most bytes of a model in one file: protobuf allows 2 GiB.
_MOST_BYTES = 1_900_000_000


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``onnx/model.onnx``."""
    return export(model, folder, "model.onnx")


def export(model: PreTrainedModel, folder: Path, name: str, quantizer: Any = None) -> Written:
    """Export a model with Transformers' exporter, into ``onnx/NAME``. The file takes and gives float32.

    Args:
        model: in float32 or float16, which the file then computes in.
        folder: the folder that gets ``onnx``.
        name: the file's name.
        quantizer: one of ``transformers.exporters``.
    """
    import onnx_ir
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    config = OnnxConfig(dynamic_shapes=any_batch(), quantizer=quantizer)
    pixels = {name: values.to(model.dtype) for name, values in sample(model).items()}
    with without_noise():
        model.set_attn_implementation("eager")  # makes the plainer graph
        program = OnnxExporter().export(model, pixels, config=config).program
    _take_and_give_float32(program.graph)
    file = folder / "onnx" / name
    file.parent.mkdir()
    large = sum(value.const_value.nbytes for value in program.graph.initializers.values()) > _MOST_BYTES
    onnx_ir.save(program, file, external_data=f"{name}.data" if large else None)
    return Written(f"onnx/{name}", others=(f"onnx/{name}.data",) if large else ())


def _take_and_give_float32(graph: Any) -> None:
    """Put a cast after each input and before each output of an ``onnx_ir.Graph`` that is in another type."""
    import onnx_ir
    from onnx_ir import DataType, convenience

    for value in graph.inputs:
        if value.dtype != DataType.FLOAT:
            inner = onnx_ir.Value(name=f"{value.name}_inner", shape=value.shape, type=value.type)
            convenience.replace_all_uses_with(value, inner)
            graph.insert_before(graph[0], onnx_ir.node("Cast", [value], {"to": value.dtype}, outputs=[inner]))
            value.type = onnx_ir.TensorType(DataType.FLOAT)
    for index, value in enumerate(graph.outputs):
        if value.dtype != DataType.FLOAT:
            name, value.name = value.name, f"{value.name}_inner"
            outer = onnx_ir.Value(name=name, shape=value.shape, type=onnx_ir.TensorType(DataType.FLOAT))
            graph.append(onnx_ir.node("Cast", [value], {"to": DataType.FLOAT}, outputs=[outer]))
            graph.outputs[index] = outer


RECIPE = Recipe(
    "onnx",
    "ONNX in float32: for ONNX Runtime, browsers and other runtimes.",
    "onnxruntime",
    write,
    packages=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    exact=True,
)
