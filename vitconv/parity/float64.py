"""Let a model compute in float64 throughout, also where its code asks for float32.

Some layers compute in float32 whatever the model's dtype: Transformers' RMS norms, its eager softmax and rotary
angles, timm's rotary periods. In float64 their rounding would hide everything below 1e-7. Here the models' own code
runs, with every explicit ``torch.float32`` read as ``torch.float64``: the same formulas, without that rounding. What
the layers really do in float32 is compared in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _NoFloat32(TorchFunctionMode):
    """Reads float32 as float64 in every call of torch."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(_wide(value) for value in args)
        return function(*args, **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def float64_throughout(model: nn.Module) -> Iterator[None]:
    """Run ``model``, which is in float64, without float32 in this thread; its constants are computed again, too."""
    names = {type(module).__module__ for module in model.modules()}
    code = [sys.modules[name] for name in names if not name.startswith("torch.")]
    cached = [(module, name, value) for module in code for name, value in vars(module).items() if _is_cached(value)]
    with _NoFloat32():
        try:
            # Cached float32 results must not be used here, and float64 results must not be cached for later.
            for module, name, value in cached:
                setattr(module, name, value.__wrapped__)
            _make_angles(model)
            yield
        finally:
            for module, name, value in cached:
                setattr(module, name, value)


def _is_cached(value: Any) -> bool:
    """Whether it is a function that remembers its results."""
    cells = getattr(value, "__closure__", None) or ()
    return hasattr(value, "__wrapped__") and any(hasattr(cell.cell_contents, "cache_info") for cell in cells)


@contextmanager
def _default_float64() -> Iterator[None]:
    """Where no dtype is named, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _make_angles(model: Any) -> None:
    """Recompute the frequencies and positions of rotary embeddings, by the models' own code."""
    for module in model.modules():
        positions = module._buffers.get("position_ids")
        if positions is not None and positions.is_floating_point():  # scaled, so that they are no whole numbers
            module.position_ids = torch.zeros_like(positions, dtype=torch.float64)
            with _default_float64():
                model._init_weights(module)
        if "inv_freq" in module._buffers:  # Transformers'
            module.inv_freq = torch.zeros_like(module.inv_freq, dtype=torch.float64)
            model._init_weights(module)
        for name in {"periods", "bands"} & module._buffers.keys():  # timm's
            setattr(module, name, torch.zeros_like(getattr(module, name), dtype=torch.float64))
            module.init_non_persistent_buffers()
