"""NVIDIA Triton serves a folder: the model repository that it reads, generated, and a server to try it with.

>>> from vitconv.serving.triton import write_store
>>> write_store("converted", "store", archive=True)  # doctest: +SKIP

The store has three models, with the names of :mod:`vitconv.serving.tensors`. It carries the folder and vitconv's own
code, so that it runs in another place. ``docs/triton.md`` says how.
"""

from typing import TYPE_CHECKING, Any

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.serving.triton.perf_analyzer import Load, measure_load
    from vitconv.serving.triton.server import INSTALLATION, Server, is_installed, run_server
    from vitconv.serving.triton.store import Store, write_store

__all__ = [
    "INSTALLATION",
    "Load",
    "Server",
    "Store",
    "is_installed",
    "measure_load",
    "run_server",
    "write_store",
]

_MODULES = {
    "Load": "vitconv.serving.triton.perf_analyzer",
    "measure_load": "vitconv.serving.triton.perf_analyzer",
    "Store": "vitconv.serving.triton.store",
    "write_store": "vitconv.serving.triton.store",
    "INSTALLATION": "vitconv.serving.triton.server",
    "Server": "vitconv.serving.triton.server",
    "is_installed": "vitconv.serving.triton.server",
    "run_server": "vitconv.serving.triton.server",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return load(_MODULES[name], name, [])
