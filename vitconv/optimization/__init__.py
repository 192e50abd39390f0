"""A converted folder becomes a faster one, with the proof of how much its answers changed; and a benchmark of both.

>>> from vitconv.optimization import benchmark_models, optimize
>>> optimize("roofs", "fast", recipe="openvino-int8", images="held-out", calibration="more")  # doctest: +SKIP
>>> benchmark_models(["roofs", "fast"], "held-out").conclusion  # doctest: +SKIP
'fast is 5.2 × as fast as roofs at batch 1 (2.1 × from the file on), 7.3 × at batch 8, and a quarter of its size.'

Each recipe says which packages it needs when it is used. The benchmark needs the extra ``benchmark``.
"""

from typing import TYPE_CHECKING, Any

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.optimization.benchmark import benchmark_models
    from vitconv.optimization.gate import Limits
    from vitconv.optimization.optimization import GateError, Optimization, optimize
    from vitconv.optimization.recipes import RECIPES

__all__ = ["RECIPES", "GateError", "Limits", "Optimization", "benchmark_models", "optimize"]

_NEEDS = ["pyarrow", "sklearn", "torchmetrics"]
_MODULES = {"Limits": "gate", "RECIPES": "recipes"}


def __getattr__(name: str) -> Any:
    if name == "benchmark_models":
        return load("vitconv.optimization.benchmark", name, ["psutil", "pyarrow"], "benchmark")
    if name in __all__:
        return load(f"vitconv.optimization.{_MODULES.get(name, 'optimization')}", name, _NEEDS)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
