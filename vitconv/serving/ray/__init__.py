"""The server of :mod:`vitconv.serving.rest` on many cores and machines: copies of the model behind Ray Serve's proxy.

`vitconv serve MODEL --engine ray` runs it on this machine; with `--write-config DIR`, it writes what a cluster needs.
It needs `pip install -e '.[rayserve]'` in vitconv's clone.
"""

from typing import TYPE_CHECKING

from vitconv.inference.optional import load
from vitconv.serving.ray.settings import RaySettings

__all__ = ["RaySettings", "serve", "write_configuration"]

if TYPE_CHECKING:
    from vitconv.serving.ray.configuration import write_configuration
    from vitconv.serving.ray.server import serve


def __getattr__(name: str) -> object:
    """Import the functions when they are asked for: without the packages, they say so when they are called."""
    if name == "serve":
        return load("vitconv.serving.ray.server", name, ["ray", "fastapi"], "rayserve")
    if name == "write_configuration":
        return load("vitconv.serving.ray.configuration", name, ["ray", "yaml"], "rayserve")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
