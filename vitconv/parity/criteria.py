"""When a stage of the two models counts as equal: one criterion for each dtype.

========  =====================================================================================================
float64   |Δ| ≤ 1e-12 of the stage's scale. Rounding is about 1e-16 of it and grows to 1e-14 over a deep model; a
          wrong epsilon, activation or tensor moves something by 1e-8 or, mostly, far more.
float32   |Δ| ≤ 16 ε √(n + 1) of the stage's scale after n blocks, with ε = 2⁻²³: what rounding in another order of
          summation can add up to, if roundings are independent. On most CPUs both models run the same sums in the
          same order and agree bit for bit; that is reported when it holds. Where a model breaks this, both are
          compared again beside a float64 copy of the original: then |Δ| may also be up to twice what the original
          itself is off there. Some CPUs add up a whole patch in one go, which rounds more.
float16,  The converted model may be no further from the float64 reference than 1.5 × the original model is, in the
bfloat16  mean over the stage's values: in low precision the original is itself off by far more than a mistake.
tf32      float32 with a GPU's TF32 matrix products, with the criterion of float16.
========  =====================================================================================================

The stage's scale is the largest absolute value that the timm model has there, but at least a hundredth of the scale of
the stage before: a sum that happens to cancel to almost nothing still carries the rounding of its terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOAT64_TOLERANCE = 1e-12
FLOAT32_EPSILON = 2.0**-23
LOW_PRECISION_RATIO = 1.5
#: Two models that are equally far from the exact values, in any direction, are at most twice as far from each other.
ROUNDINGS_OF_TWO = 2.0


@dataclass(frozen=True)
class Criterion:
    """How the error at a stage is measured in one dtype, and how large it may be.

    Attributes:
        tolerance: the largest error allowed before the first block.
        accumulates: whether every block may add its rounding, so that the limit grows with their number, and with
            what the timm model itself is off.
        uses_reference: whether the error is a ratio of two distances from a float64 copy of the timm model: the
            converted model's, divided by the timm model's. Otherwise it is the largest |Δ| between the two models,
            divided by the stage's scale.
    """

    tolerance: float
    accumulates: bool = False
    uses_reference: bool = False

    @property
    def error_name(self) -> str:
        """What the error is, as the heading of a table's column."""
        return "error ratio" if self.uses_reference else "relative"

    def limit(self, stages_before: int) -> float:
        """The largest error allowed after this many stages."""
        # Roundings are independent: n of them add up to √n, not n.
        return self.tolerance * math.sqrt(stages_before + 1) if self.accumulates else self.tolerance

    def explain(self, error: float, limit: float) -> str:
        """Why an error breaks the criterion, as a clause for people."""
        if self.uses_reference:
            return (
                f"the converted model is {error:.2g} times as far from the float64 reference as the original, "
                f"and {limit:g} times is allowed"
            )
        return f"|Δ| is {error:.1e} of the values' scale, and rounding explains {limit:.0e}"


_LOW_PRECISION = Criterion(LOW_PRECISION_RATIO, uses_reference=True)

#: By dtype, in the order of falling precision.
CRITERIA = {
    "float64": Criterion(FLOAT64_TOLERANCE),
    "float32": Criterion(16 * FLOAT32_EPSILON, accumulates=True),
    "tf32": _LOW_PRECISION,
    "float16": _LOW_PRECISION,
    "bfloat16": _LOW_PRECISION,
}

#: The dtypes in which two models can be compared.
DTYPES = tuple(CRITERIA)
