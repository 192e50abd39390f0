"""The runtime of converted folders: the Transformers model in them, run by torch."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.checkpoints.checkpoint import read_state_dict
from vitconv.checkpoints.digests import fingerprint
from vitconv.checkpoints.labels import check_labels
from vitconv.errors import InputError, ParityError
from vitconv.inference.optimized import check_files, check_machine, is_optimized, read_artefact
from vitconv.mapping import LOADED_CLASSES, WRAPPER
from vitconv.models.huggingface import first_line, load_config, load_folder
from vitconv.parity.comparison import check_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.runtime import ModelInfo


def read_info(folder: Path) -> ModelInfo:
    """Read the configuration of a converted folder.

    Raises:
        CheckpointError: it is not a folder that vitconv writes, or a file cannot be read.
        InputError: its model has no classes, or two with the same name.
    """
    from vitconv.inference.runtime import ModelInfo

    classes, shape = read_classes_and_shape(folder)
    device = ""
    if is_optimized(folder):
        artefact = read_artefact(folder)
        check_files(folder, artefact)
        device = artefact.device
    read_state_dict(folder)  # checks that its files are whole
    wraps_timm = LOADED_CLASSES[load_config(folder).architectures[0]] is WRAPPER
    packages = ("torch", "transformers", *(["timm"] if wraps_timm else []))
    versions = {name: version(name) for name in packages}
    return ModelInfo("transformers", folder, classes, shape, fingerprint(folder), versions, device=device)


def read_classes_and_shape(folder: Path) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """The names of a model's classes, in the order of the logits, and (channels, height, width) of its input.

    Raises:
        CheckpointError, InputError: as :func:`read_info`.
    """
    config = load_config(folder)
    name, count = config.architectures[0], len(config.id2label)
    family = LOADED_CLASSES[name]
    if not 0 < count == family.num_labels(name, config):
        raise InputError(
            f"The model in '{folder}' has no classes: it is a {name}, converted without a classification head.",
            "Convert a checkpoint that has a head; its README.md shows how to get this model's features.",
        )
    # A prediction names its class, in UTF-8.
    classes = check_labels((config.id2label[i] for i in range(count)), f"`id2label` in config.json in '{folder}'")
    vision = family.vision_config(config)
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return classes, (vision.num_channels, height, width)


class TransformersRuntime:
    """The model of a converted folder on a device: see :class:`vitconv.inference.runtime.Runtime`.

    Args:
        info: what :func:`read_info` read.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``…

    Raises:
        ParityError: weights are missing.
        InputError: there is no such device here, or an optimised folder is for another one.
    """

    def __init__(self, info: ModelInfo, device: str) -> None:
        import torch

        if is_optimized(info.folder):
            check_machine(info.folder, read_artefact(info.folder), device)
        check_device(device)
        torch.backends.cudnn.allow_tf32 = False  # the embedding's convolution would move logits by 1e-3
        self.info, self._device = info, device
        self._model = load_folder(info.folder)
        self._model.to(device)
        self._logits = LOADED_CLASSES[type(self._model).__name__].logits

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch.

        Args:
            pixels: float32, (batch, channels, height, width).

        Returns:
            float32, (batch, classes).

        Raises:
            ParityError: the model cannot be run.
            torch.OutOfMemoryError: the device has too little memory.
        """
        import torch

        # A copy: kernels may take other paths for memory that torch did not align.
        values = torch.tensor(pixels).to(self._device, self._model.dtype)
        # Not inference_mode: Transformers caches constants, and training in this process could not use them any more.
        try:
            with torch.no_grad():
                output = self._model(pixel_values=values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a configuration edited by hand may make a model fail in any way
            raise ParityError(
                f"The model in '{self.info.folder}' cannot be run: {type(error).__name__}: {first_line(error)}",
                "Check its config.json, or convert the source again.",
                stage="loading",
            ) from error
        return output[self._logits].float().cpu().numpy()
