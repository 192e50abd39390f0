"""The runtime of folders with an ONNX model of which TensorRT makes an engine: through ONNX Runtime, on a GPU.

It has not been run on a GPU yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitconv.errors import InputError
from vitconv.inference.onnxruntime import OnnxRuntime
from vitconv.parity.comparison import check_device

if TYPE_CHECKING:
    from vitconv.inference.runtime import ModelInfo

_PROVIDER = "TensorrtExecutionProvider"


class TensorRTRuntime(OnnxRuntime):
    """An ONNX model run by TensorRT: see :class:`vitconv.inference.runtime.Runtime`.

    The engine is made at the first batch, and again at a batch larger or smaller than all before.

    Args:
        info: what its folder says of it.
        device: ``"cuda"``, ``"cuda:1"``…

    Raises:
        InputError, CheckpointError: as for :class:`OnnxRuntime`.
        InputError: there is no such device, or the installed ONNX Runtime cannot use TensorRT.
    """

    def __init__(self, info: ModelInfo, device: str) -> None:
        if device.startswith("cuda"):
            check_device(device)
        super().__init__(info, device)

    def _open(self, file: str, options: Any, device: str) -> Any:
        import onnxruntime
        import tensorrt  # noqa: F401 - it loads its libraries, which ONNX Runtime then finds

        onnxruntime.preload_dlls()  # CUDA's, as torch's packages have them
        number = device.partition(":")[2] or "0"
        session = None
        if _PROVIDER in onnxruntime.get_available_providers():
            # Without the options for a precision, the network is strongly typed: each operation in the file's own.
            providers = [(_PROVIDER, {"device_id": number}), ("CUDAExecutionProvider", {"device_id": number})]
            session = onnxruntime.InferenceSession(file, options, providers=providers)
        # Where TensorRT cannot be loaded, ONNX Runtime takes the next provider, or the processor, and only warns.
        if session is None or session.get_providers()[0] != _PROVIDER:
            raise InputError(
                "The installed ONNX Runtime cannot use TensorRT.",
                "Install onnxruntime-gpu in the place of onnxruntime, and the TensorRT that its documentation names.",
            )
        return session
