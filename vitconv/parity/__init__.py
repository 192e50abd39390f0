"""The proof: a folder verified against its source, and two models compared stage by stage."""

from vitconv.parity.comparison import Comparison, Parity, Stage, compare

__all__ = ["Comparison", "Parity", "Stage", "compare"]
