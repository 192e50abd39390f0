"""A second runtime, for tests: a program of ``torch.export`` in a folder of its own."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from vitconv.files import sha256
from vitconv.inference.runtime import ModelInfo, RuntimeKind, open_model

FILE = "program.pt2"


def export(folder: Path, destination: Path, batch_size: int) -> Path:
    """Export the model of a converted folder, for batches of this size."""
    model = open_model(folder, "cpu")
    pixels = torch.zeros(batch_size, *model.info.input_shape)
    destination.mkdir()
    torch.export.save(torch.export.export(model._model, (pixels,), strict=False), destination / FILE)
    shutil.copyfile(folder / "preprocessor_config.json", destination / "preprocessor_config.json")
    described = {"classes": model.info.classes, "input_shape": model.info.input_shape}
    (destination / "model.json").write_text(json.dumps(described))
    return destination


def recognises(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_info(folder: Path) -> ModelInfo:
    described = json.loads((folder / "model.json").read_text())
    classes, shape = tuple(described["classes"]), tuple(described["input_shape"])
    return ModelInfo("exported", folder, classes, shape, sha256(folder / FILE), {"torch": version("torch")})


class ExportedRuntime:
    def __init__(self, info: ModelInfo, device: str) -> None:
        import transformers.modeling_outputs  # noqa: F401 - a program names the class of its output

        self.info = info
        self._program = torch.export.load(info.folder / FILE).module()

    def __call__(self, pixels):
        with torch.no_grad():
            return self._program(torch.tensor(pixels)).logits.numpy()


KIND = RuntimeKind(recognises, read_info, ExportedRuntime)
