"""OpenVINO with weights and activations in int8, by NNCF, which knows what in a transformer must stay in float.

The ranges of the activations are set by images. What stays in float is computed in bfloat16 if the processor has
instructions for it, and in float32 if not: on a Xeon with VNNI and without them, where OpenVINO 2026.4 emulates
bfloat16, a ViT-B/16-384 took 1.9 s for an image instead of 0.29. Where the result is too inexact, the operations that
cost the most accuracy go back to float, one after another, until the calibration images keep their answers.

Without VNNI, OpenVINO adds pairs of products in 16 bits, which overflow: half of a sum was missing (AVX2, OpenVINO
2026.4). NNCF's `overflow_fix` would take 7 bits for the weights. On a busy AVX2 processor that was no faster than
float32; on a quiet one it was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.inference.machine import instructions
from vitconv.mapping import LOADED_CLASSES
from vitconv.optimization.recipes.openvino import export
from vitconv.optimization.recipes.recipe import BFLOAT16, OVERFLOW, VNNI, Calibration, Recipe, Written, first

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write ``openvino/openvino_model.xml`` and its weights, quantised."""
    assert calibration is not None
    output = LOADED_CLASSES[type(model).__name__].logits
    return export(model, folder, _precision(), partial(_quantize, calibration=calibration, output=output))


def write_carefully(model: PreTrainedModel, folder: Path, calibration: Calibration | None) -> Written:
    """Write it with the operations in float that int8 would cost the most accuracy."""
    assert calibration is not None
    output = LOADED_CLASSES[type(model).__name__].logits
    return export(model, folder, _precision(), partial(_quantize_carefully, calibration=calibration, output=output))


def _precision() -> str:
    """In which to compute what stays in float, on this processor."""
    return "bf16" if first(BFLOAT16, instructions()) else "f32"


def _quantize(program: Any, calibration: Calibration, output: str) -> Any:
    import nncf

    return nncf.quantize(
        program,
        nncf.Dataset(calibration),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=_head(program, output)),
    )


def _head(program: Any, output: str) -> list[str]:
    """The names of the products of matrices that the logits come from: one, or two in a model with two heads.

    They take no time, and stay in float. In int8 they cost much of the exactness; and where a mean over the tokens is
    before them, OpenVINO 2026.4 computes wrong numbers on processors with AVX-512: its kernel for means is joined with
    the factors that NNCF has put behind it and the rounding to int8, and leaves the factors out.
    """
    found, todo = [], [program.output(output).get_node().input_value(0).get_node()]
    while todo:
        node = todo.pop()
        if node.get_type_name() == "MatMul":
            found.append(node.get_friendly_name())
        elif node.get_type_name() in ("Add", "Multiply", "Divide"):
            todo += [value.get_node() for value in node.input_values()]
    return found


def _quantize_carefully(program: Any, calibration: Calibration, output: str) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters

    from vitconv.inference.openvino import core

    exact = core().compile_model(program, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    step = -(-len(calibration) // _MOST_COMPARED)
    # Each with its own logits: NNCF validates on some of them, too, to find out which operations cost the most.
    pairs = [(sample, exact(sample)[output]) for sample in islice(calibration, 0, None, step)]
    return nncf.quantize_with_accuracy_control(
        _smoothed(program, calibration),
        calibration_dataset=nncf.Dataset(calibration),
        validation_dataset=nncf.Dataset(pairs, itemgetter(0)),
        validation_fn=partial(_nearness, output=output),
        max_drop=_MOST_DROP,
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=_head(program, output)),
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1)
        ),
    )


def _smoothed(program: Any, calibration: Calibration) -> Any:
    """The same function in float, with outlier channels of activations moved into weights (SmoothQuant).

    NNCF smooths as it quantises. But what it then takes back to float gets its first weights, from before, and
    computes something else (NNCF 3.4). So this comes first, and the smoothed model is what is taken back to.
    """
    import nncf

    return nncf.quantize(
        program,
        nncf.Dataset(calibration),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(patterns=[".*"]),  # nothing is quantised, and all is smoothed
    )


#: How many calibration images a model is compared with float32 on, once for each operation or more.
_MOST_COMPARED = 64
#: How far the smallest cosine may be from 1: less than the gate allows, as these images have set the ranges, too.
_MOST_DROP = 0.002


def _nearness(model: Any, pairs: Iterable[tuple[Any, Any]], output: str) -> tuple[float, list[float]]:
    """How near a model is to float32: the smallest cosine of an image's logits with float32's, and each of them."""
    import numpy as np

    found = []
    for sample, expected in pairs:
        logits = model(sample)[output]
        found.append(float((logits * expected).sum() / (np.linalg.norm(logits) * np.linalg.norm(expected) + 1e-30)))
    return min(found), found


RECIPE = Recipe(
    "openvino-int8",
    "OpenVINO in int8, and what is not in bfloat16 or float32: the fastest, a quarter of the size.",
    "openvino",
    write,
    packages=("openvino", "nncf"),
    extra="openvino",
    calibrates=True,
    careful=write_carefully,
    instructions=VNNI,
    without=OVERFLOW,
)
