"""A folder runs: images become pixels, a runtime turns pixels into logits, an engine does that for a whole list."""

from typing import Literal, get_args

EngineName = Literal["local", "ray"]

#: Where a list can be predicted: on this machine, or as a Ray Data pipeline on many.
ENGINES: tuple[str, ...] = get_args(EngineName)
