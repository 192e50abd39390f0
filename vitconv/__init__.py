"""Turn timm Vision Transformer checkpoints into native Transformers models that compute the same numbers.

>>> import vitconv
>>> vitconv.convert_checkpoint("model.pth", "model", architecture="vit_base_patch16_384")  # doctest: +SKIP

Each function is imported when it is first used: importing this package imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitconv.convert import (
        convert_checkpoint,
        convert_state_dict,
        inspect_checkpoint,
        revert_checkpoint,
        to_huggingface,
        to_timm,
        verify_checkpoint,
    )
    from vitconv.evaluation import evaluate
    from vitconv.inference import predict
    from vitconv.parity.comparison import compare

    __version__: str

__all__ = [
    "compare",
    "convert_checkpoint",
    "convert_state_dict",
    "evaluate",
    "inspect_checkpoint",
    "predict",
    "revert_checkpoint",
    "to_huggingface",
    "to_timm",
    "verify_checkpoint",
]

#: The module that each name is in, if it is not in ``vitconv.convert``.
_MODULES = {
    "compare": "vitconv.parity.comparison",
    "evaluate": "vitconv.evaluation",
    "predict": "vitconv.inference",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'vitconv' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES.get(name, "vitconv.convert")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """The installed version, which comes from git's tags; imported when it is asked for, because that takes 20 ms."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vitconv")
    except PackageNotFoundError:  # a copy of the files that was not installed
        return "0+unknown"
