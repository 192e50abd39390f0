"""Times, ratios and sizes for people."""

from __future__ import annotations

import math


def figure(value: float, digits: int = 3) -> str:
    """A number above 0 for people, with three significant digits; a larger one is rounded to a whole one.

    >>> figure(0.01234), figure(6.7), figure(51.72), figure(1234.5)
    ('0.0123', '6.70', '51.7', '1,234')
    """
    decimals = max(0, digits - 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{decimals}f}"


def times(value: float) -> str:
    """A ratio for people: its differences in the third digit are noise.

    >>> times(0.9612), times(5.23), times(12.3)
    ('0.96', '5.2', '12')
    """
    return figure(value, 2)


def size_beside(ratio: float) -> str:
    """What a folder's size is beside another's, in words.

    >>> size_beside(0.26), size_beside(0.37), size_beside(1.0), size_beside(1.3)
    ('a quarter of its size', '37 % of its size', 'of the same size', '1.3 × its size')
    """
    for share, words in ((1 / 4, "a quarter of"), (1 / 3, "a third of"), (1 / 2, "half"), (2, "twice")):
        if abs(ratio / share - 1) <= 0.05:
            return f"{words} its size"
    if abs(ratio - 1) <= 0.02:
        return "of the same size"
    return f"{ratio:.0%} of its size".replace("%", " %") if ratio < 1 else f"{times(ratio)} × its size"
