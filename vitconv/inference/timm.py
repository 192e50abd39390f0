"""The timm model of a checkpoint, run with timm's own pixels: a conversion's answers are compared with its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.convert import load_timm
from vitconv.errors import InputError, count_classes
from vitconv.inference.pixels import Preprocessor, timm_preprocessor
from vitconv.inference.runtime import ModelInfo
from vitconv.models.data_config import makes_pixels
from vitconv.parity.comparison import check_device
from vitconv.source import Identified, SourceOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_timm_info(
    source: str | Path, found: Identified, classes: Sequence[str], digests: Sequence[str]
) -> tuple[ModelInfo, Preprocessor]:
    """What is known of a checkpoint's timm model, without loading it, and its preprocessor.

    Args:
        source: the checkpoint.
        found: what :func:`vitconv.source.identify` found in it.
        classes: the names of its classes, in the order of the logits.
        digests: the SHA-256 of each of its files.

    Raises:
        InputError: it has another number of classes, or no image file fits it.
    """
    architecture, data = found.inspection.architecture, found.inspection.data
    if architecture.num_labels != len(classes):
        raise InputError(
            f"The checkpoint '{source}' has {count_classes(architecture.num_labels)}, the converted model "
            f"{len(classes)}.",
            "Pass the checkpoint that the folder was converted from.",
        )
    if not makes_pixels(data):
        raise InputError(
            f"Image files have 1 or 3 channels, but the checkpoint '{source}' has {data.num_channels}.",
            "Compare it in your own code: vitconv.parity.compare.",
        )
    facts = [list(digests), asdict(architecture), asdict(data)]
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    shape = (data.num_channels, *data.image_size)
    versions = {name: version(name) for name in ("torch", "timm")}
    info = ModelInfo("timm", Path(found.source.files[0]).parent, tuple(classes), shape, fingerprint, versions)
    return info, timm_preprocessor(data)


class TimmRuntime:
    """A checkpoint's timm model on a device: see :class:`vitconv.inference.runtime.Runtime`.

    Args:
        info: of :func:`read_timm_info`.
        source: the checkpoint.
        options: what is given beside it.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``…

    Raises:
        VitconvError: what :func:`vitconv.convert.load_timm` raises.
        InputError: there is no such device here.
    """

    def __init__(self, info: ModelInfo, source: str | Path, options: SourceOptions, device: str) -> None:
        import torch

        check_device(device)
        torch.backends.cudnn.allow_tf32 = False  # as for the converted model
        self.info, self._device = info, device
        model = load_timm(
            source,
            options.architecture,
            target=options.target,
            image_size=options.image_size,
            ema=options.ema,
            ignore=options.ignore,
            headless=options.headless,
        )
        self._dtype = next(model.parameters()).dtype
        self._model = model.to(device)

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch: float32, (batch, classes).

        Args:
            pixels: float32, (batch, channels, height, width).
        """
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor(pixels).to(self._device, self._dtype))
        return logits.float().cpu().numpy()
