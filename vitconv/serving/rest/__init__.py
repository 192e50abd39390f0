"""The REST server: FastAPI over :class:`vitconv.serving.Classifier`, in one process.

It needs `pip install -e '.[serve]'` in vitconv's clone.

>>> from vitconv.serving import open_classifier
>>> from vitconv.serving.rest import Settings, create_app
>>> app = create_app(open_classifier("converted"), Settings(timeout=2))  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from vitconv.inference.optional import load
from vitconv.serving.rest.settings import Settings

__all__ = ["Settings", "bind", "create_app", "serve"]

#: What the functions need, by the names that Python imports.
PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client", "fastapi_offline")

if TYPE_CHECKING:
    from vitconv.serving.rest.app import create_app
    from vitconv.serving.rest.server import bind, serve


def __getattr__(name: str) -> object:
    """Import the functions when they are asked for: without the packages, they say so when they are called."""
    if name in ("bind", "create_app", "serve"):
        module = "app" if name == "create_app" else "server"
        return load(f"vitconv.serving.rest.{module}", name, PACKAGES, "serve")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
