"""The runtime of folders with a TorchScript file, run by torch on the processor."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from vitconv.inference.optimized import check_logits, check_machine, loading, read_artefact, running
from vitconv.inference.trusted import check_trusted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.runtime import ModelInfo


class TorchScriptRuntime:
    """A TorchScript model: see :class:`vitconv.inference.runtime.Runtime`.

    Args:
        info: what its folder says of it.
        device: ``"cpu"``.

    Raises:
        InputError, CheckpointError: what :func:`vitconv.inference.optimized.check_machine` raises.
        CheckpointError: the file is a program that is not trusted: see :mod:`vitconv.inference.trusted`.
        CheckpointError: torch cannot load the file.
    """

    def __init__(self, info: ModelInfo, device: str) -> None:
        artefact = read_artefact(info.folder)
        check_machine(info.folder, artefact, device)
        file = info.folder / artefact.file
        check_trusted(file)  # whatever the folder says of itself
        import torch

        self.info = info
        with loading("torch", file), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
            self._model = torch.jit.load(os.fspath(file), map_location=device).eval()

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch: float32, (batch, classes).

        Args:
            pixels: float32, (batch, channels, height, width).

        Raises:
            ParityError: the model cannot be run.
        """
        import torch

        with running("torch", self.info), torch.no_grad():
            logits = self._model(torch.tensor(pixels)).numpy()
        return check_logits(logits, pixels, self.info)
