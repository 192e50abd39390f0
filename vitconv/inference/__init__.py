"""A folder runs: images become pixels, a runtime turns pixels into logits, an engine does that for a whole list.

>>> from vitconv.inference import open_model, open_preprocessor
>>> model = open_model("converted")  # doctest: +SKIP
>>> pixels = open_preprocessor(model.info)(jpeg)  # doctest: +SKIP
>>> model(pixels[None])  # doctest: +SKIP

Only :func:`predict`, which reads and writes tables, needs a package that may be missing: pyarrow.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.inference.batch_prediction import predict
    from vitconv.inference.pixels import Preprocessor, open_preprocessor
    from vitconv.inference.runtime import RUNTIMES, ModelInfo, Runtime, RuntimeKind, open_model, read_info

EngineName = Literal["local", "ray"]

#: Where a list can be predicted: on this machine, or as a Ray Data pipeline on many.
ENGINES: tuple[str, ...] = get_args(EngineName)

__all__ = [
    "ENGINES",
    "EngineName",
    "RUNTIMES",
    "ModelInfo",
    "Preprocessor",
    "Runtime",
    "RuntimeKind",
    "open_model",
    "open_preprocessor",
    "predict",
    "read_info",
]


def __getattr__(name: str) -> Any:
    if name == "predict":
        return load("vitconv.inference.batch_prediction", name, ["pyarrow"])
    if name in ("Preprocessor", "open_preprocessor"):
        return load("vitconv.inference.pixels", name, [])
    if name in __all__:
        return load("vitconv.inference.runtime", name, [])
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
