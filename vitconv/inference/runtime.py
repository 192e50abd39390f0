"""The converted model: what it takes and gives, and how to run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.errors import InputError, ParityError
from vitconv.checkpoints.labels import check_labels
from vitconv.models.huggingface import first_line, load_config, load_folder
from vitconv.parity.comparison import check_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Classifier:
    """What a folder's configuration says of its model.

    Attributes:
        folder: where it is.
        classes: the names of its classes.
        shape: (channels, height, width) of its input.
    """

    folder: Path
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


def read_classifier(folder: str | Path) -> Classifier:
    """Read a folder's configuration.

    Raises:
        CheckpointError: the folder is none that vitconv writes.
        InputError: its model has no classes, or two of the same name.
    """
    folder = Path(folder).resolve()
    config = load_config(folder)
    name, count = config.architectures[0], len(config.id2label)
    # CLIP's last projection gives the logits, where it was made from a timm model with a head.
    is_classifier = "ForImageClassification" in name or getattr(config, "projection_dim", None) == count
    if not is_classifier:
        raise InputError(
            f"The model in '{folder}' has no classes: it is a {name}, converted without a classification head.",
            "Convert a checkpoint that has a head; how to get this model's features, its README.md shows.",
        )
    # A prediction names its class, in UTF-8.
    classes = check_labels((config.id2label[i] for i in range(count)), f"`id2label` in config.json in '{folder}'")
    # SigLIP's configuration holds that of its vision model.
    vision = config.vision_config if "vision_config" in type(config).sub_configs else config
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return Classifier(folder, classes, (vision.num_channels, height, width))


class Predictor:
    """A folder's model on a device.

    Args:
        folder: as vitconv writes it.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``…

    Raises:
        ParityError: the folder lacks weights.
        InputError: there is no such device here.
    """

    def __init__(self, folder: Path, device: str) -> None:
        import torch

        check_device(device)
        torch.backends.cudnn.allow_tf32 = False  # the embedding's convolution would move logits by 1e-3
        self._device, self._folder = device, folder
        self._model = load_folder(folder).to(device)

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

        # A copy: kernels may take other paths for memory that is not aligned as torch aligns it.
        values = torch.tensor(pixels).to(self._device, self._model.dtype)
        # Not inference_mode: Transformers caches constants, which no one in this process could train with any more.
        try:
            with torch.no_grad():
                output = self._model(pixel_values=values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a configuration edited by hand may make a model fail in any way
            raise ParityError(
                f"The model in '{self._folder}' cannot be run: {type(error).__name__}: {first_line(error)}",
                "Check its config.json, or convert the source again.",
                stage="loading",
            ) from error
        logits = output["logits"] if "logits" in output else output["image_embeds"]
        return logits.float().cpu().numpy()


def choose_device(name: str, gpus: float) -> str:
    """The device for ``"auto"``: a GPU where there is one. Other names stay."""
    return name if name != "auto" else "cuda" if gpus else "cpu"
