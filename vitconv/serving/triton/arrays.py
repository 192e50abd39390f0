"""Triton's tensors as numpy arrays, and back: what its Python models share. It runs inside of Triton.

All goes by DLPack. Triton's own ``as_numpy`` and ``Tensor(name, array)`` read numpy 2's arrays wrongly in server 2.51:
outputs arrive empty, with the status 200, or the process ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as triton

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read(request: Any, name: str) -> NDArray[Any]:
    """An input of a request. Its memory is Triton's, and is gone when the request has been answered."""
    import torch

    return torch.from_dlpack(triton.get_input_tensor_by_name(request, name).to_dlpack()).numpy()


def response(**outputs: NDArray[Any]) -> Any:
    """The answer to a request: its outputs by name."""
    import torch

    return triton.InferenceResponse(
        [triton.Tensor.from_dlpack(name, torch.from_numpy(values)) for name, values in outputs.items()]
    )


def refusal(error: Exception, *, of_the_client: bool) -> Any:
    """The answer to a request that failed: status 400 if the client is to blame, else 500."""
    code = triton.TritonError.INVALID_ARG if of_the_client else triton.TritonError.INTERNAL
    return triton.InferenceResponse(error=triton.TritonError(str(error), code))
