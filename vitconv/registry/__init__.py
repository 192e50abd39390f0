"""A model registry through MLflow: a folder is registered under a name, and loaded back by an alias.

>>> from vitconv.registry import fetch, register
>>> register("roofs-fast", name="roofs", alias="champion").uri  # doctest: +SKIP
'models:/roofs@champion'
>>> fetch("roofs", "champion", "served").fingerprint[:8]  # doctest: +SKIP
'5f0c9a31'

MLflow's embedded store is used, or the server that ``MLFLOW_TRACKING_URI`` names. It needs the extra ``registry``,
which brings MLflow's client. docs/registry.md says what is logged where.
"""

from typing import TYPE_CHECKING, Any

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.registry.registry import Fetched, Registered, fetch, register

__all__ = ["Fetched", "Registered", "fetch", "register"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return load("vitconv.registry.registry", name, ["mlflow", "sqlalchemy", "alembic"], "registry")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
