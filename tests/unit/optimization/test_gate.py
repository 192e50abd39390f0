"""The gate: every figure against a formula of its own, every limit's sentence, and laws."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from vitconv.errors import InputError
from vitconv.optimization.gate import Figures, Limits, compare, failures, images_needed, upper_bound

#: Wide limits, so that a test sees only the one that it sets.
WIDE = {"disagreement": 1, "margin": 1, "cosine": 0, "calibration_error": 1, "p_value": 0, "difference": 1}
NAMES = ("ash", "beech", "cedar")


def logits_of(answers, classes=3, lead=4.0):
    """Logits whose largest is that of these classes, by this much."""
    return lead * np.eye(classes)[list(answers)]


def judged(before, after, labels=None, *, exact=False, **limits):
    found = compare(before, after, None if labels is None else np.array(labels), NAMES[: before.shape[1]])
    return failures(found, Limits(**{**WIDE, **limits}), exact=exact)


# Figures.


@pytest.mark.parametrize(("changed", "images"), [(0, 1), (0, 299), (1, 42), (7, 600), (41, 42), (42, 42)])
def test_the_bound_is_clopper_and_pearson_s(changed, images):
    """By its definition: the share at which so few changes, or fewer, have a probability of 5 %."""
    bound = upper_bound(changed, images)
    interval = stats.binomtest(changed, images, alternative="less").proportion_ci(0.95, method="exact")
    assert bound == pytest.approx(interval.high)
    if changed < images:
        assert stats.binom.cdf(changed, images, bound) == pytest.approx(0.05)


@pytest.mark.parametrize(("share", "images"), [(0.01, 299), (0.005, 598), (0.05, 59), (0.95, 1)])
def test_so_many_images_without_a_change_prove_a_share(share, images):
    assert images_needed(share) == images
    assert upper_bound(0, images) <= share
    assert images == 1 or upper_bound(0, images - 1) > share


def test_figures_by_hand():
    before = np.array([[4.0, 0, 0], [0, 4.0, 0], [0.5, 0, 0.4], [0, 0, 3.0]])
    after = np.array([[4.0, 0, 0], [0, 3.5, 0.2], [0.4, 0, 0.5], [0, 0, 3.0]])
    found = compare(before, after)
    assert (found.images, found.changed, found.classes, found.not_finite) == (4, 1, 3, 0)
    assert found.largest_difference == 0.5 and found.median_difference == pytest.approx(0.05)
    assert found.scale == 4
    cosines = [a @ b / math.sqrt(a @ a * (b @ b)) for a, b in zip(before, after, strict=True)]
    assert found.smallest_cosine == pytest.approx(min(cosines))
    exponentials = np.exp(before[2])
    first, second = sorted(exponentials / exponentials.sum())[:0:-1]
    assert found.surest_change == pytest.approx(first - second)
    assert found.labelled == 0 and found.p_value is None and found.accuracy_before is None
    assert found.kept == "3 of 4 images keep their answer"


def test_figures_with_labels_by_hand():
    """Six were right and became wrong, one became right: McNemar's p-value is P(X ≥ 6) of 7 fair coins."""
    truth = [0, 1, 2, 0, 1, 2, 0, 1, 2, -1]
    before = logits_of([0, 1, 2, 0, 1, 2, 1, 1, 2, 0])
    after = logits_of([1, 2, 0, 1, 2, 0, 0, 1, 2, 1])
    found = compare(before, after, np.array(truth), NAMES)
    assert (found.labelled, found.changed, found.became_wrong, found.became_right) == (9, 8, 6, 1)
    assert found.accuracy_before == pytest.approx(8 / 9) and found.accuracy_after == pytest.approx(3 / 9)
    assert found.p_value == pytest.approx((math.comb(7, 6) + 1) / 2**7)
    sure = math.exp(4) / (math.exp(4) + 2)  # every answer has this probability, so all are in one bin
    assert found.calibration_before == pytest.approx(abs(8 / 9 - sure), abs=1e-6)
    assert found.calibration_after == pytest.approx(abs(3 / 9 - sure), abs=1e-6)


def test_without_a_change_of_the_right_answers_mcnemar_says_nothing():
    found = compare(logits_of([0, 1]), logits_of([0, 1]), np.array([0, 2]), NAMES)
    assert (found.became_wrong, found.became_right, found.p_value) == (0, 0, 1.0)


def test_all_changed():
    found = compare(logits_of([0, 1, 2]), logits_of([1, 2, 0]))
    assert (found.changed, found.bound) == (3, 1.0)
    assert found.surest_change == pytest.approx((math.exp(4) - 1) / (math.exp(4) + 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_a_change_and_always_fail(value):
    before = logits_of([0, 1, 2])
    after = before.copy()
    after[1] = value  # all of them: an argmax would be 0, or anything
    after[2, 0] = value
    found = compare(before, after, np.array([0, 1, 2]), NAMES)
    assert (found.not_finite, found.changed, found.labelled) == (2, 2, 1)
    assert found.largest_difference == np.inf and found.smallest_cosine == -1
    for exact in (True, False):
        assert judged(before, after, exact=exact) == ["The logits of 2 images are not finite."]


def test_no_image_with_finite_logits_has_no_accuracy():
    before = logits_of([0, 1])
    found = compare(before, np.full_like(before, np.nan), np.array([0, 1]), NAMES)
    assert found.not_finite == 2 and found.accuracy_after is None


def test_two_classes():
    before, after = np.array([[0.1, 0], [0, 2.0]]), np.array([[0, 0.1], [0, 2.0]])
    found = compare(before, after, np.array([0, 1]), NAMES[:2])
    assert (found.changed, found.became_wrong, found.p_value) == (1, 1, 0.5)
    assert found.surest_change == pytest.approx(math.tanh(0.05))


def test_one_class():
    """Its answer cannot change; its logit can, and its sign is the cosine."""
    before = np.array([[1.0], [2.0]])
    found = compare(before, np.array([[1.5], [-2.0]]), np.array([0, 0]), NAMES[:1])
    assert (found.changed, found.surest_change, found.largest_difference) == (0, 0, 4)
    assert found.smallest_cosine == -1


def test_logits_that_are_all_zero():
    zero = np.zeros((2, 3))
    found = compare(zero, zero)
    assert (found.smallest_cosine, found.scale, found.largest_difference) == (1, 0, 0)
    assert judged(zero, zero, exact=True, difference=0) == []
    assert compare(zero, logits_of([0, 1])).smallest_cosine == 0
    assert "differ by 4" in judged(zero, logits_of([0, 1]), exact=True)[0]


# Limits.


def test_the_limit_of_changes():
    before = logits_of([0, 1] * 50)
    after = np.concatenate([logits_of([1]), before[1:]])
    assert judged(before, after, disagreement=0.05) == []
    assert judged(before, after, disagreement=0.04) == [
        "1 of 100 images get another answer: below 4.7% of all images, with 95 % confidence, and the limit is 4.0%."
    ]


def test_too_few_images_are_no_proof():
    before = logits_of([0, 1] * 149)
    assert judged(before, before, disagreement=0.01) == [
        "298 images prove no more than that below 1.0% of all images change; for 1.0%, at least 299 are needed."
    ]
    before = logits_of([0, 1, 2] * 100)[:299]
    assert judged(before, before, disagreement=0.01) == []


def test_the_limit_of_sure_answers():
    before, after = logits_of([0] * 9, lead=1.0), logits_of([0] * 8 + [1], lead=1.0)
    lead = (math.e - 1) / (math.e + 2)
    assert judged(before, after, margin=lead + 1e-6) == []
    assert judged(before, after, margin=0.2) == [
        "An answer changed of which float32 was sure: its first class led by 36%, and changes are allowed up to 20%."
    ]


def test_the_limit_of_the_cosine():
    before, after = np.array([[1.0, 0, 0]]), np.array([[1.0, 0.5, 0]])
    assert judged(before, after, cosine=0.89) == []
    assert judged(before, after, cosine=0.9) == ["The logits of an image have a cosine of 0.894427, below 0.9."]


def test_the_limit_of_mcnemar():
    before, after, truth = logits_of([0] * 5), logits_of([1] * 5), [0] * 5
    assert judged(before, after, truth, p_value=1 / 32) == []
    assert judged(before, after, truth, p_value=0.05) == [
        "5 answers became wrong and 0 right: by chance, that has a probability of 0.031 (McNemar)."
    ]
    assert judged(after, before, truth, p_value=0.05) == []  # all became right


def test_the_limit_of_the_calibration_error():
    before, after, truth = logits_of([0] * 4, lead=9.0), logits_of([0] * 4, lead=1.0), [0] * 4
    growth = (1 - math.e / (math.e + 2)) - (1 - math.exp(9) / (math.exp(9) + 2))
    assert judged(before, after, truth, calibration_error=growth + 1e-6) == []
    assert judged(before, after, truth, calibration_error=0.02) == [
        f"The calibration error grew by {growth:.3f}, above 0.02."
    ]
    assert judged(after, before, truth, calibration_error=0) == []  # it shrank


def test_the_limit_of_a_float32_recipe():
    before = logits_of([0, 1])
    after = before + 4e-5
    assert judged(before, after, exact=True, difference=1.01e-5) == []
    assert judged(before, after, exact=True, difference=0.9e-5) == [
        "The logits differ by 4e-05, which is 1.0e-05 of the largest; in float32 it may be 9e-06."
    ]


def test_every_failure_is_said():
    before, after = logits_of([0] * 5), logits_of([1] * 5)
    found = failures(compare(before, after, np.zeros(5, int), NAMES), Limits(), exact=False)
    assert len(found) == 5


@pytest.mark.parametrize("name", list(WIDE))
@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf, "0.1", None, True, 10**400])
def test_a_limit_that_is_no_share_is_refused(name, value):
    with pytest.raises(InputError, match=f"The limit of the {name.replace('_', ' ')} is ") as caught:
        Limits(**{name: value}).check()
    assert caught.value.remedy == "Choose a number between 0 and 1."


def test_no_number_of_images_proves_zero():
    with pytest.raises(InputError, match="is 0, which no number of images proves") as caught:
        Limits(disagreement=0).check()
    assert "598 images are enough" in caught.value.remedy
    Limits(**{**WIDE, "margin": 0, "difference": 0}).check()


@pytest.mark.parametrize("share", [5e-324, 1e-310, 9e-7])
def test_a_limit_that_takes_millions_of_images_to_prove_is_refused(share):
    """Of the smallest, the number of images is infinite."""
    with pytest.raises(InputError, match=f"is {share!r}, which millions of images prove"):
        Limits(disagreement=share).check()
    Limits(disagreement=1e-6).check()


# Laws.

_floats = st.floats(-1e4, 1e4, width=32)


@st.composite
def arrays(draw, least=1):
    """The logits of some images."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(least, 4))
    rows = st.lists(_floats, min_size=classes, max_size=classes)
    return np.array(draw(st.lists(rows, min_size=images, max_size=images)))


@given(arrays(), st.data())
def test_the_same_logits_pass_whatever_the_limits(logits, data):
    labels = np.array(
        data.draw(st.lists(st.integers(-1, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits)))
    )
    found = compare(logits, logits, labels, ("a", "b", "c", "d")[: logits.shape[1]])
    assert (found.changed, found.largest_difference, found.smallest_cosine, found.surest_change) == (0, 0, 1, 0)
    strictest = Limits(disagreement=found.bound, margin=0, cosine=1, calibration_error=0, p_value=0.999, difference=0)
    assert failures(found, strictest, exact=False) == failures(found, strictest, exact=True) == []


@given(st.integers(1, 2000), st.data())
def test_more_changes_never_lower_the_bound_and_more_images_never_raise_it(images, data):
    changed = data.draw(st.integers(0, images - 1))
    assert changed / images < upper_bound(changed, images) <= upper_bound(changed + 1, images)
    assert upper_bound(changed, images + 1) <= upper_bound(changed, images)


@given(st.floats(1e-4, 0.99))
def test_the_number_of_images_is_the_least_that_proves_a_share(share):
    least = images_needed(share)
    assert upper_bound(0, least) <= share * (1 + 1e-9)
    assert least == 1 or upper_bound(0, least - 1) > share * (1 - 1e-9)


@given(arrays(), arrays(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_is_nothing(before, after, random):
    rows, columns = min(len(before), len(after)), min(before.shape[1], after.shape[1])
    before, after = before[:rows, :columns], after[:rows, :columns]
    labels = np.arange(rows) % columns
    order = list(range(rows))
    random.shuffle(order)
    one = compare(before, after, labels, ("a", "b", "c", "d")[:columns])
    other = compare(before[order], after[order], labels[order], ("a", "b", "c", "d")[:columns])
    for name, value in vars(one).items():
        assert getattr(other, name) == (pytest.approx(value, rel=1e-6, abs=1e-6) if value is not None else None)


@given(arrays(least=2), st.randoms(use_true_random=False))
def test_permuted_classes_are_caught_where_the_answers_move(logits, random):
    """Of images that together have an answer which the permutation moves, one changes; float32's own limit sees it, too."""
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    answers = logits.argmax(axis=1)
    lead = np.sort(logits, axis=1)
    assume((lead[:, -1] > lead[:, -2] + 1e-3 * np.abs(logits).max()).all())
    moved = [answer for answer in np.unique(answers) if order[answer] != answer]
    assume(moved)
    found = compare(logits, logits[:, order])
    assert found.changed == np.isin(answers, moved).sum()
    exactly_none = Limits(**{**WIDE, "disagreement": upper_bound(0, len(logits))})
    assert failures(found, exactly_none, exact=False)
    assert failures(found, Limits(), exact=True)


def test_figures_are_plain_data():
    """They are written as JSON: no numpy types."""
    found = compare(logits_of([0, 1]), logits_of([0, 1]), np.array([0, 1]), NAMES)
    assert isinstance(found, Figures)
    assert {type(value) for value in vars(found).values()} <= {int, float, type(None)}
