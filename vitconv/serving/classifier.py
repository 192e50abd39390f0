"""What every server does with an image: its bytes become pixels, pixels become logits, logits become an answer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.files import real_path
from vitconv.inference.answers import Answer, answer
from vitconv.inference.certainty import Certainty, judge, read_certainty
from vitconv.inference.pixels import Prepared, Preprocessor, open_preprocessor
from vitconv.inference.runtime import ModelInfo, Runtime, choose_device, opener, read_info, wanted_device
from vitconv.inference.watch import unchanged
from vitconv.models.images import pixel_count
from vitconv.models.processors import ProcessorName
from vitconv.serving.batching import Batched
from vitconv.serving.room import Room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Classifier:
    """A model with its preprocessor. Threads may share it.

    Attributes:
        runtime: runs the model.
        preprocessor: makes the pixels.
        certainty: how far its answers may be believed; ``None`` if it is not calibrated.
        room: for the images that are prepared at the same time.
    """

    runtime: Runtime
    preprocessor: Preprocessor
    certainty: Certainty | None = None
    room: Room = field(default_factory=Room)

    @property
    def info(self) -> ModelInfo:
        """What the folder says of the model: classes, input shape, fingerprint."""
        return self.runtime.info

    def prepare(self, image: bytes) -> Prepared:
        """The pixels of an image: float32, (channels, height, width).

        Args:
            image: the content of a file: JPEG, PNG, WebP…

        Raises:
            InputError: it cannot be read, or it is too large.
        """
        with self.room.taken(pixel_count(image)):
            return self.preprocessor.prepare(image)

    def logits(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of one image.

        On a processor it is computed by itself: in a batch, the last bits would depend on the other images.

        Args:
            pixels: float32, (channels, height, width).

        Returns:
            float32, (classes,).
        """
        return self.runtime(pixels[None])[0]

    def __call__(self, image: bytes) -> Answer:
        """The answer on an image.

        Args:
            image: the content of a file.

        Raises:
            InputError: it cannot be read, or it is too large.
            ParityError: the model's logits are not finite.
        """
        prepared = self.prepare(image)
        logits = self.logits(prepared.values)
        judgement = judge(self.certainty, logits[None], prepared.values[None])
        return answer(logits, self.info.classes, prepared.note, judgement)


def open_classifier(
    folder: str | Path, device: str = "auto", processor: ProcessorName = "transformers", *, batched: bool = False
) -> Classifier:
    """Load a model to serve it.

    Args:
        folder: with a classification head, as vitconv writes it, converted or optimised.
        device: ``"auto"`` for a GPU if there is one, ``"cpu"``, ``"cuda"``…
        processor: what makes the pixels: see :func:`vitconv.inference.open_preprocessor`.
        batched: on a GPU, compute in one batch what several threads ask for at the same time. That is faster, and the
            last bits of an image's logits then depend on the others. On a processor it changes nothing.

    Raises:
        CheckpointError, ParityError: it is not a folder that vitconv writes, weights are missing, or its calibration
            is damaged or of another model.
        InputError: its model has no classes, it lacks the processor, or there is no such device.
    """
    # Threads that spin while they wait take the core that another request needs. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    folder = real_path(folder)
    with unchanged(folder, "the model was loaded"):
        info = read_info(folder)
        preprocessor, certainty = open_preprocessor(info, processor), read_certainty(info, processor)
        found = choose_device(wanted_device(info, device), torch.cuda.device_count())
        runtime = opener(info)(found)
    if batched and not found.startswith("cpu"):
        runtime = Batched(runtime)
    return Classifier(runtime, preprocessor, certainty)
