"""From a converted folder and a list of images to a report: predict, evaluate, report, each a step of its own.

``images`` (what to look at) → ``predictor`` (pixels to logits) → an engine, ``local`` or ``cluster`` (which runs them
over all batches) → ``predictions`` (Parquet files): that is ``predict``. ``answers`` (predictions beside what is
expected and true) → ``metrics`` → ``thresholds``: that is ``evaluate``. Then ``pictures`` and ``report``. Nothing else
in vitconv imports this package but the command line, and it needs the extra ``evaluate``.
"""

from importlib.util import find_spec

from vitconv.errors import InputError, first_few

_missing = [name for name in ("jinja2", "matplotlib", "pyarrow", "sklearn", "torchmetrics") if find_spec(name) is None]
if _missing:
    raise InputError(
        f"Predicting and evaluating need packages that are not installed: {first_few(_missing)}.",
        "Install them with pip install 'vitconv[evaluate]'.",
    )
