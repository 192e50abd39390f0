"""How far a model's answers may be believed, found out on labelled images that it was not trained on.

>>> from vitconv.calibration import calibrate
>>> calibrate("roofs", "held-out.csv").sentences()[0]  # doctest: +SKIP
'The calibration error falls from 0.121 to 0.013.'

The result is written to ``calibration.json`` in the model's folder. From then on each answer of that model says how
certain it is: :mod:`vitconv.inference.certainty`. docs/certainty.md says what the numbers mean, and what they do not
promise. It needs the extra ``evaluate``.
"""

from typing import TYPE_CHECKING, Any

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.calibration.calibration import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return load("vitconv.calibration.calibration", name, ["pyarrow", "sklearn", "torchmetrics"])
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
