"""The runtime of folders that torch's AOTInductor has compiled, for a processor or for a GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vitconv.errors import InputError
from vitconv.inference.optimized import check_logits, check_machine, loading, read_artefact, running
from vitconv.inference.trusted import check_trusted
from vitconv.parity.comparison import check_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.runtime import ModelInfo


class AOTInductorRuntime:
    """A compiled model: see :class:`vitconv.inference.runtime.Runtime`.

    Args:
        info: what its folder says of it.
        device: ``"cpu"``; for a folder made for a GPU ``"cuda"``, ``"cuda:1"``…

    Raises:
        InputError, CheckpointError: what :func:`vitconv.inference.optimized.check_machine` raises.
        CheckpointError: the file is a program that is not trusted: see :mod:`vitconv.inference.trusted`.
        InputError: there is no such device, or it is not of the kind that the model was compiled for.
        CheckpointError: torch cannot load the file.
    """

    def __init__(self, info: ModelInfo, device: str) -> None:
        artefact = read_artefact(info.folder)
        check_machine(info.folder, artefact, device)
        check_device(device)
        import torch

        self.info, self._device = info, torch.device(device)
        wanted = artefact.settings.get("capability", "")
        if self._device.type == "cuda" and capability(device) != wanted:
            raise InputError(
                f"The model in '{info.folder}' was compiled for GPUs of compute capability {wanted}, and '{device}' "
                f"has {capability(device)}.",
                "Run `vitconv optimize` on this machine.",
            )
        index = self._device.index if self._device.index is not None else -1
        file = info.folder / artefact.file
        check_trusted(file)  # whatever the folder says of itself
        with loading("torch", file):
            self._model = torch._inductor.aoti_load_package(os.fspath(file), device_index=index)

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch: float32, (batch, classes).

        Args:
            pixels: float32, (batch, channels, height, width).

        Raises:
            ParityError: the model cannot be run.
            torch.OutOfMemoryError: the device has too little memory.
        """
        import torch

        with running("torch", self.info), torch.no_grad():
            logits = self._model(pixel_values=torch.tensor(pixels).to(self._device)).cpu().numpy()
        return check_logits(logits, pixels, self.info)


def capability(device: str) -> str:
    """The compute capability of a GPU, such as ``"9.0"``: code for one does not run on another."""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability(device)))
