"""From predictions to a report.

``outcomes`` (predictions aligned with expected and true labels) → ``metrics`` → ``thresholds``: that is
:func:`evaluate`. Then ``plots`` and :func:`report`. It needs the extra ``evaluate``.
"""

from typing import TYPE_CHECKING, Any

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.evaluation.evaluation import evaluate
    from vitconv.evaluation.reporting import report

__all__ = ["evaluate", "report"]

_MODULES = {"evaluate": "vitconv.evaluation.evaluation", "report": "vitconv.evaluation.reporting"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return load(_MODULES[name], name, ["jinja2", "matplotlib", "pyarrow", "sklearn", "torchmetrics"])
