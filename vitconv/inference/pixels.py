"""From an image, as a file or as bytes, to the pixels that a model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitconv.errors import CheckpointError, InputError, VitconvError, shown
from vitconv.models.data_config import DataConfig
from vitconv.models.huggingface import first_line
from vitconv.models.images import load_image, sample_image
from vitconv.models.pixels import always_shifted, known_difference, process, resize_first, timm_pixels
from vitconv.models.processors import PROCESSOR_FILE, PROCESSORS, ProcessorName, load_processor, timm_data_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor
    from transformers.image_processing_utils import BaseImageProcessor

    from vitconv.inference.runtime import ModelInfo


class Prepared(NamedTuple):
    """An image that is ready for the model.

    Attributes:
        values: float32, (channels, height, width).
        note: how timm is known to prepare this image differently, in a sentence; ``None`` if it does not.
    """

    values: NDArray[np.float32]
    note: str | None


@dataclass(frozen=True)
class Preprocessor:
    """Turns one image into pixels.

    Attributes:
        compute: the pixels of an image: float32, (channels, height, width).
        shape: (channels, height, width) of the model's input.
        name: which image processor it is: that of Transformers, or timm's.
        reference: how timm prepares images, if this is not timm's own processor, and it is known.
    """

    compute: Callable[[Image], Tensor]
    shape: tuple[int, int, int]
    name: ProcessorName = "transformers"
    reference: DataConfig | None = None

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
        return self.prepare(image).values

    def prepare(self, image: str | Path | bytes) -> Prepared:
        """The same, with a note if timm is known to prepare this image differently.

        Raises:
            InputError: as when it is called.
        """
        loaded = load_image(image)
        pixels = self.pixels(loaded, "The image" if isinstance(image, bytes) else f"'{image}'")
        return Prepared(pixels.numpy(), known_difference(loaded, self.reference) if self.reference else None)

    def pixels(self, image: Image, name: str) -> Tensor:
        """The pixels of an image that is read: float32, (channels, height, width).

        Args:
            image: of Pillow.
            name: what errors call it.

        Raises:
            InputError: it is too large, or its pixels have another shape than the model takes.
        """
        try:
            pixels = self.compute(image)
        except ValueError as error:  # such as of a grey image, where Transformers is told to convert no colours
            raise InputError(f"{name} cannot be prepared: {first_line(error)}", _CHECK) from error
        if pixels.shape != self.shape:  # numpy would broadcast one channel to three
            raise InputError(
                f"{name} becomes pixels of shape {tuple(pixels.shape)}, the model takes {self.shape}.",
                _CHECK,
            )
        return pixels


_CHECK = "Check the image processor's configuration in the model's folder."


def open_preprocessor(info: ModelInfo, name: ProcessorName = "transformers") -> Preprocessor:
    """The preprocessor of a model's folder.

    Args:
        info: the model: see :func:`vitconv.inference.open_model`.
        name: ``"transformers"`` for ``preprocessor_config.json``, ``"timm"`` for ``timm_processor.json``.

    Raises:
        InputError: the folder does not have it, or timm is not installed.
        CheckpointError: it cannot prepare a plain image.
    """
    processor = load_processor(info.folder, name)
    compute = partial(_first_pixels, processor=processor, num_channels=info.input_shape[0])
    reference = timm_data_config(info.folder) if name == "transformers" else None
    preprocessor = Preprocessor(compute, info.input_shape, name, reference)
    _try(preprocessor, info.folder)
    return preprocessor


def _try(preprocessor: Preprocessor, folder: Path) -> None:
    """Raise :class:`CheckpointError` if the preprocessor fails at a plain image, for which no other is to blame."""
    try:
        pixels = preprocessor.pixels(sample_image((64, 48)), "It")
        if not pixels.isfinite().all():  # such as by a standard deviation of 0
            raise InputError("It becomes pixels that are not finite.", _CHECK)
    except MemoryError:
        raise
    except Exception as error:  # of any kind: its settings may be anything
        why = error.problem if isinstance(error, VitconvError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"The image processor in '{folder}' cannot prepare a plain image: {shown(why.rstrip('.'))}.",
            f"Restore {PROCESSORS[preprocessor.name]}, or convert the source again.",
        ) from error


def why_timm_pixels(folder: Path) -> str:
    """Why a comparison with timm needs timm's pixels for every image of this model, in a sentence; empty if not."""
    if not (folder / PROCESSOR_FILE).exists():
        return "The model has no image processor of Transformers."
    config = timm_data_config(folder)
    return (
        "Transformers begins the crop of every image one pixel earlier." if config and always_shifted(config) else ""
    )


def _first_pixels(image: Image, processor: BaseImageProcessor, num_channels: int) -> Tensor:
    return process(resize_first(image, processor, num_channels), processor, num_channels)[0]


def timm_preprocessor(config: DataConfig) -> Preprocessor:
    """timm's own transform with this data configuration."""
    shape = (config.num_channels, *config.image_size)
    return Preprocessor(partial(timm_pixels, config=config), shape, "timm")
