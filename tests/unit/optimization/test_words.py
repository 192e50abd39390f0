import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitconv.optimization.words import figure, size_beside


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.5, "half its size"), (0.345, "a third of its size"), (0.6, "60 % of its size"), (2, "twice its size")],
)
def test_sizes_in_words(ratio, words):
    assert size_beside(ratio) == words


@given(st.floats(1e-5, 1e7))
def test_a_figure_is_within_half_a_percent(value):
    assert math.isclose(float(figure(value).replace(",", "")), value, rel_tol=5.01e-3)
