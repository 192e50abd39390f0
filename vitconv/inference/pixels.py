"""From an image, as a file or as bytes, to the pixels that a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.errors import InputError
from vitconv.models.images import load_image
from vitconv.models.pixels import process
from vitconv.models.processors import ProcessorName, load_processor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers.image_processing_utils import BaseImageProcessor

    from vitconv.inference.runtime import ModelInfo


@dataclass(frozen=True)
class Preprocessor:
    """Turns one image into pixels.

    Attributes:
        processor: the folder's image processor: see :func:`vitconv.models.processors.load_processor`.
        shape: (channels, height, width) of the model's input.
        name: which of the folder's image processors it is.
    """

    processor: BaseImageProcessor
    shape: tuple[int, int, int]
    name: ProcessorName = "transformers"

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that the pixels depend on."""
        packages = ["torch", "transformers", "pillow", "numpy"]
        packages += ["timm", "torchvision"] if self.name == "timm" else []
        return {name: version(name) for name in packages}

    def __call__(self, image: str | Path | bytes) -> NDArray[np.float32]:
        """The pixels of an image: float32, (channels, height, width).

        Args:
            image: a file's path, or the content of a file, such as a JPEG.

        Raises:
            InputError: it cannot be read, is too large, or its pixels have another shape than the model takes.
        """
        pixels = process(load_image(image), self.processor, self.shape[0])[0]
        if pixels.shape != self.shape:  # numpy would broadcast one channel to three
            name = "The image" if isinstance(image, bytes) else f"'{image}'"
            raise InputError(
                f"{name} becomes pixels of shape {tuple(pixels.shape)}, the model takes {self.shape}.",
                "Check the image processor's configuration in the model's folder.",
            )
        return pixels.numpy()


def open_preprocessor(info: ModelInfo, name: ProcessorName = "transformers") -> Preprocessor:
    """The preprocessor of a model's folder.

    Args:
        info: the model: see :func:`vitconv.inference.open_model`.
        name: ``"transformers"`` for ``preprocessor_config.json``, ``"timm"`` for ``timm_processor.json``.

    Raises:
        InputError: the folder does not have it, or timm is not installed.
    """
    return Preprocessor(load_processor(info.folder, name), info.input_shape, name)
