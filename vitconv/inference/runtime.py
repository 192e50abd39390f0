"""What an engine, a server or an evaluation knows of a model: a Runtime, and how to open the one of a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vitconv.errors import CheckpointError, brief, count_classes, shown
from vitconv.files import real_path
from vitconv.inference import aotinductor, onnxruntime, openvino, optimized, tensorrt, torchscript, transformers
from vitconv.inference.watch import unchanged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, repr=False)
class ModelInfo:
    """What a folder says of its model, without loading it.

    Attributes:
        runtime: the name of the runtime that runs it.
        folder: where it is, absolute.
        classes: the names of its classes, in the order of the logits.
        input_shape: (channels, height, width) of an image's pixels.
        fingerprint: the SHA-256 of what decides the numbers: the weight files and the configurations.
        versions: of the packages that the logits depend on, by name.
        settings: what else the logits depend on, such as the precision that an optimised folder computes in.
        device: the only kind of device that runs it, such as ``"cpu"``; empty for any.
    """

    runtime: str
    folder: Path
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    fingerprint: str
    versions: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return f"ModelInfo({brief(str(self.folder))}, {self.runtime}, {count_classes(len(self.classes))}, {shape})"


class Runtime(Protocol):
    """A model on a device, ready to run.

    Attributes:
        info: what its folder says of it.
    """

    info: ModelInfo

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch.

        Args:
            pixels: float32, (batch, channels, height, width).

        Returns:
            float32, (batch, classes).
        """


@dataclass(frozen=True)
class RuntimeKind:
    """How to run the folders of one kind.

    Its functions must be importable by name, because other processes open runtimes, too.

    Attributes:
        recognises: whether a folder is of this kind. It only looks at the folder's files.
        read_info: reads what the folder says of its model.
        open: loads the model onto a device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``…
    """

    recognises: Callable[[Path], bool]
    read_info: Callable[[Path], ModelInfo]
    open: Callable[[ModelInfo, str], Runtime]


def _wants(runtime: str, folder: Path) -> bool:
    return optimized.runtime_of(folder) == runtime


def _optimized(name: str, open: Callable[[ModelInfo, str], Runtime], *packages: str) -> RuntimeKind:
    return RuntimeKind(partial(_wants, name), partial(optimized.read_info, packages=packages), open)


_TRANSFORMERS = RuntimeKind(Path.is_dir, transformers.read_info, transformers.TransformersRuntime)
#: The kinds that :func:`open_model` knows besides a folder that Transformers loads, by the runtime's name.
RUNTIMES: dict[str, RuntimeKind] = {
    "onnxruntime": _optimized("onnxruntime", onnxruntime.OnnxRuntime, "onnxruntime"),
    "openvino": _optimized("openvino", openvino.OpenVINORuntime, "openvino"),
    "torchscript": _optimized("torchscript", torchscript.TorchScriptRuntime, "torch"),
    "aotinductor": _optimized("aotinductor", aotinductor.AOTInductorRuntime, "torch"),
    "tensorrt": _optimized("tensorrt", tensorrt.TensorRTRuntime, "onnxruntime", "tensorrt"),
}


def find_kind(folder: Path) -> RuntimeKind:
    """How to run a folder: the kind that recognises it, else as a folder of Transformers.

    Raises:
        CheckpointError: it was optimised for a runtime that this vitconv does not know.
    """
    for kind in RUNTIMES.values():
        if kind.recognises(folder):
            return kind
    wanted = optimized.runtime_of(folder) or "transformers"
    if wanted != "transformers":
        raise CheckpointError(
            f"The model in '{folder}' is run by {shown(wanted)}, which this vitconv does not know.",
            "Install the vitconv that wrote it.",
        )
    return _TRANSFORMERS


def read_info(folder: str | Path) -> ModelInfo:
    """What a folder says of its model, without loading it.

    Raises:
        CheckpointError: it is not a folder that vitconv writes, a file cannot be read, or one changes meanwhile.
        InputError: its model has no classes, or two with the same name.
    """
    folder = real_path(folder)
    with unchanged(folder, "they were read"):
        return find_kind(folder).read_info(folder)


def opener(info: ModelInfo) -> Callable[[str], Runtime]:
    """What opens this model on a device. It can be pickled, so that another process can open the same runtime."""
    return partial(_open, find_kind(info.folder), info)


def _open(kind: RuntimeKind, info: ModelInfo, device: str) -> Runtime:
    """Open a model, and raise :class:`CheckpointError` if it is not the one that ``info`` was read from."""
    with unchanged(info.folder, "the model was loaded"):
        runtime = kind.open(info, device)
        if kind.read_info(info.folder).fingerprint != info.fingerprint:
            raise CheckpointError(
                f"The files in '{info.folder}' have changed while the model was loaded.",
                "Run it again when nothing else writes to the folder.",
            )
    return runtime


def open_model(folder: str | Path, device: str = "auto") -> Runtime:
    """Load the model in a folder.

    Args:
        folder: as vitconv writes it.
        device: ``"auto"`` for a GPU if there is one, else ``"cpu"``, ``"cuda"``, ``"cuda:1"``…

    Raises:
        CheckpointError, ParityError: it is not a folder that vitconv writes, or weights are missing.
        InputError: its model has no classes, or there is no such device.

    >>> model = open_model("converted")  # doctest: +SKIP
    >>> model.info.input_shape  # doctest: +SKIP
    (3, 384, 384)
    >>> model(pixels).shape  # doctest: +SKIP
    (8, 7)
    """
    import torch

    folder = real_path(folder)
    with unchanged(folder, "the model was loaded"):
        info = read_info(folder)
        return opener(info)(choose_device(wanted_device(info, device), torch.cuda.device_count()))


def wanted_device(info: ModelInfo, name: str) -> str:
    """The device for a model: for ``"auto"``, the only kind that runs it, if there is only one."""
    return info.device if name == "auto" and info.device else name


def choose_device(name: str, gpus: float) -> str:
    """The device for ``"auto"``: a GPU if there is one. Other names stay."""
    return name if name != "auto" else "cuda" if gpus else "cpu"
