"""The card of an optimised folder, README.md: what it is, how near it is to float32, and how to run it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.inference.optimized import OPTIMIZATION_FILE, Artefact
from vitconv.markdown import code, escape, table

if TYPE_CHECKING:
    from vitconv.optimization.gate import Figures
    from vitconv.optimization.optimization import Optimization

_LOADING = {
    "transformers": """from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained({folder})""",
    "onnxruntime": """import onnxruntime

session = onnxruntime.InferenceSession({file})
logits = session.run(["{output}"], {{"pixel_values": pixels}})[0]  # float32, (batch, channels, height, width)""",
    "openvino": """import openvino

# Without the hint, OpenVINO chooses a precision by itself.
model = openvino.compile_model({file}, "CPU", {{"INFERENCE_PRECISION_HINT": "{precision}"}})
logits = model({{"pixel_values": pixels}})["{output}"]  # float32, (batch, channels, height, width)""",
    "torchscript": """import torch

model = torch.jit.load({file})  # a program: load only what you trust
logits = model(pixels)  # float32 tensors: (batch, channels, height, width) to (batch, classes)""",
    "aotinductor": """import torch

model = torch._inductor.aoti_load_package({file})  # a program: load only what you trust
logits = model(pixel_values=pixels)  # float32 tensors: (batch, channels, height, width) to (batch, classes)""",
    "tensorrt": """import onnxruntime
import tensorrt  # before the session, which needs its libraries

onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession({file}, providers=["TensorrtExecutionProvider"])
logits = session.run(["{output}"], {{"pixel_values": pixels}})[0]  # float32, (batch, channels, height, width)""",
}


def write_card(folder: Path, result: Optimization, model: str, name: str, artefact: Artefact) -> None:
    """Write README.md.

    Args:
        folder: where.
        result: what was made.
        model: the name of the folder that it was made from.
        name: the name that the new folder will have.
        artefact: how it is run.
    """
    # In a block of code nothing is escaped, and a line end or a fence in the name would end the block.
    place = name if name.isprintable() else "path/to/this/folder"
    example = _LOADING.get(artefact.runtime, "").format(
        folder=json.dumps(place, ensure_ascii=False),
        file=json.dumps(f"{place}/{artefact.file}", ensure_ascii=False),
        output=artefact.output,
        precision=artefact.settings.get("precision", ""),
    )
    parts = [
        f"# {escape(name)}",
        f"{escape(model)}, made faster with vitconv's recipe {code(artefact.recipe)}: {escape(result.recipe.summary)}",
        escape(result.sentence()),
        table(["", "float32", artefact.recipe], _rows(result.figures, result)),
        f"How it was made and judged, and with which limits, is in {code(OPTIMIZATION_FILE)}.",
        "## Use",
        f"```bash\nvitconv predict {shlex.quote(place)} IMAGES\n```",
        f"```python\n{example}\n```" if example else "",
        *result.notes,
    ]
    text = "\n\n".join(part for part in parts if part)
    (folder / "README.md").write_text(f"{text}\n", encoding="utf-8")


def _rows(found: Figures, result: Optimization) -> list[list[str]]:
    rows = [
        ["size in MB", f"{result.nbytes_before / 1e6:,.1f}", f"{result.nbytes / 1e6:,.1f}"],
        ["images that keep their answer", "", f"{found.images - found.changed:,} of {found.images:,}"],
        ["largest difference of a logit", "", f"{found.largest_difference:.2g}"],
        ["median of the images' largest", "", f"{found.median_difference:.2g}"],
        ["smallest cosine of the logits", "", f"{found.smallest_cosine:.5f}"],
    ]
    if found.accuracy_before is not None and found.accuracy_after is not None:
        rows.append([f"accuracy on {found.labelled:,}", f"{found.accuracy_before:.2%}", f"{found.accuracy_after:.2%}"])
    if found.calibration_before is not None and found.calibration_after is not None:
        rows.append(["calibration error", f"{found.calibration_before:.3f}", f"{found.calibration_after:.3f}"])
    return rows
