"""From predictions to a report.

``outcomes`` (predictions aligned with expected and true labels) → ``metrics`` → ``thresholds``: that is
:func:`evaluate`. Then ``plots`` and :func:`report`.
:func:`evaluate_model` does all of it, from a folder and images. It needs the extra ``evaluate``.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.evaluation.about import describe
    from vitconv.evaluation.evaluation import evaluate
    from vitconv.evaluation.one_step import evaluate_model, run_timm
    from vitconv.evaluation.reporting import report

LabelsFrom = Literal["folders", "nothing"]

#: Where the labels of a folder's images are taken from, if that is said.
LABELS_FROM: tuple[str, ...] = get_args(LabelsFrom)

__all__ = ["LABELS_FROM", "LabelsFrom", "describe", "evaluate", "evaluate_model", "report", "run_timm"]

_MODULES = {
    "describe": "vitconv.evaluation.about",
    "run_timm": "vitconv.evaluation.one_step",
    "evaluate": "vitconv.evaluation.evaluation",
    "evaluate_model": "vitconv.evaluation.one_step",
    "report": "vitconv.evaluation.reporting",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return load(_MODULES[name], name, ["jinja2", "matplotlib", "pyarrow", "sklearn", "torchmetrics"])
