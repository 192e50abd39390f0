"""The runtime of folders with an ONNX model, run by ONNX Runtime on the processor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vitconv.inference.machine import cores
from vitconv.inference.optimized import check_logits, check_machine, loading, read_artefact, running

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.runtime import ModelInfo


class OnnxRuntime:
    """An ONNX model: see :class:`vitconv.inference.runtime.Runtime`.

    Args:
        info: what its folder says of it.
        device: ``"cpu"``.

    Raises:
        InputError, CheckpointError: what :func:`vitconv.inference.optimized.check_machine` raises.
        CheckpointError: ONNX Runtime cannot load the file.
    """

    def __init__(self, info: ModelInfo, device: str) -> None:
        artefact = read_artefact(info.folder)
        check_machine(info.folder, artefact, device)
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        # Threads that spin while they wait take the cores from torch's in the same process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.info, self._output = info, artefact.output
        file = info.folder / artefact.file
        with loading("ONNX Runtime", file):
            self._session = self._open(os.fspath(file), options, device)

    def _open(self, file: str, options: Any, device: str) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch: float32, (batch, classes).

        Args:
            pixels: float32, (batch, channels, height, width).

        Raises:
            ParityError: the model cannot be run.
        """
        with running("ONNX Runtime", self.info):
            logits = self._session.run([self._output], {"pixel_values": pixels})[0]
        return check_logits(logits, pixels, self.info)
