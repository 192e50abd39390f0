import doctest

import pytest

from vitconv.evaluation import words
from vitconv.evaluation.metrics import _BUILT_IN_NAMES, RESERVED


def test_the_examples():
    results = doctest.testmod(words)
    assert results.attempted > 5 and not results.failed


def test_every_metric_of_vitconv_has_a_name_in_words():
    names = (RESERVED | _BUILT_IN_NAMES) - {"top"}  # which gives top_3 and top_5
    assert not [name for name in names if words.in_words(name) == name]
    assert words.in_words("my_cost") == "my_cost"


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0"), (1.0, "1"), (0.9996, "0.9996"), (1.0004, "1.0004"), (1e-20, "1e-20"), (-0.5, "-0.5"), (1234.56, "1,234.6")],
)  # fmt: skip
def test_no_number_is_rounded_to_a_whole_one(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    "difference", [1e-15, 9.99e-6, 1e-5, 1.0001e-5, 1e-4, 1.0000001e-4, 0.00123, 0.1, 1.0, 1.51, 7.02]
)
def test_a_bound_is_never_below_the_difference(difference):
    assert difference <= float(words.at_most(difference)) <= difference * 10 * (1 + 1e-9)


def test_a_share_that_is_not_all_is_never_all():
    metrics = {"agreement": 49_999 / 50_000, "compared": 50_000}
    assert words.value_of("agreement", metrics) == "49,999 of 50,000"
    assert words.percent(49_999 / 50_000) == "99.998 %"


def test_a_negative_difference_of_an_edited_file_is_a_number():
    assert words.value_of("max_logit_difference", {"max_logit_difference": -5.0}) == "-5"
