import math
import sys
import types
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitconv.errors import InputError
from vitconv.evaluation import metrics
from vitconv.evaluation.metrics import (
    BUILT_IN,
    RESERVED,
    Recount,
    compute,
    find_metric,
    interval,
    intervals,
    proportion,
)

CLASSES = ("a", "b", "c", "d", "e", "f")
#: Four images of six classes: the first two right, the third right at the second place, the last at the sixth.
LABELS = np.array([0, 1, 2, 0])
PROBABILITIES = np.array(
    [
        [0.75, 0.05, 0.05, 0.05, 0.05, 0.05],
        [0.05, 0.75, 0.05, 0.05, 0.05, 0.05],
        [0.50, 0.05, 0.30, 0.05, 0.05, 0.05],
        [0.01, 0.59, 0.10, 0.10, 0.10, 0.10],
    ]
)


@pytest.fixture
def mine():
    """An importable module to which tests add custom metrics."""
    module = types.ModuleType("mine")
    sys.modules["mine"] = module
    yield module
    del sys.modules["mine"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", {"accuracy": 2 / 4}),
        ("top", {"top_3": 3 / 4, "top_5": 3 / 4}),
        # a: 1 of 2 answers and 1 of 2 images; b: 1 of 2 and 1 of 1; c: none of 0 and of 1
        ("precision", {"precision": (1 / 2 + 1 / 2 + 0) / 3}),
        ("recall", {"recall": (1 / 2 + 1 + 0) / 3}),
        ("f1", {"f1": (1 / 2 + 2 / 3 + 0) / 3}),
        ("log_loss", {"log_loss": -(2 * math.log(0.75) + math.log(0.3) + math.log(0.01)) / 4}),
        # confidences 0.75 twice (both right), 0.5 and 0.59 (both wrong), in bins of a tenth
        ("calibration_error", {"calibration_error": (2 * 0.25 + (0.5 + 0.59)) / 4}),
    ],
)
def test_metrics_equal_values_computed_by_hand(name, expected):
    assert compute(name, LABELS, PROBABILITIES, CLASSES) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.data())
def test_every_built_in_metric_accepts_any_probabilities(data):
    """Any number of classes and images, classes without images, probabilities of 0 and 1."""
    count, images = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 12))
    labels = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=images, max_size=images)))
    weights = data.draw(
        st.lists(st.lists(st.integers(0, 5), min_size=count, max_size=count), min_size=images, max_size=images)
    )
    weights = np.array(weights, float) + np.where(np.sum(weights, axis=1) == 0, 1, 0)[:, None]
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    for name in BUILT_IN:
        for key, value in compute(name, labels, probabilities, list(map(str, range(count)))).items():
            assert value >= 0
            assert name == "log_loss" or value <= 1 + 1e-6, key
    assert compute("accuracy", labels, probabilities, range(count))["accuracy"] == pytest.approx(
        (probabilities.argmax(1) == labels).mean()
    )


def test_a_custom_metric(mine):
    seen = []

    def cost(labels, probabilities, classes):
        seen.append((labels, probabilities, classes))
        return {"low": 1, "high": np.float32(2.5)}

    mine.cost = cost
    mine.one = lambda labels, probabilities, classes=None: 3
    assert compute("mine:cost", LABELS, PROBABILITIES, CLASSES) == {"cost_low": 1.0, "cost_high": 2.5}
    assert compute("mine:one", LABELS, PROBABILITIES, CLASSES) == {"one": 3.0}
    assert (seen[0][0] == LABELS).all() and (seen[0][1] == PROBABILITIES).all()
    assert seen[0][2] == CLASSES


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_metric_that_changes_what_it_is_given_changes_no_other(mine):
    """torch writes into read-only arrays."""

    def greedy(labels, probabilities, classes):
        torch.from_numpy(probabilities).clamp_(0.4, 0.6)
        torch.from_numpy(labels).clamp_(max=0)
        probabilities.flags.writeable = True
        return 1.0

    mine.greedy = greedy
    labels, probabilities = LABELS.copy(), PROBABILITIES.copy()
    for array in (labels, probabilities):
        array.flags.writeable = False
    assert compute("mine:greedy", labels, probabilities, CLASSES) == {"greedy": 1.0}
    assert (labels == LABELS).all() and (probabilities == PROBABILITIES).all()


@pytest.mark.parametrize("name", ["acuracy", "", ":", "mine:", ":cost", "Accuracy"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(InputError, match="There is no metric") as caught:
        find_metric(name)
    assert f"'{name}'" in caught.value.problem
    assert "accuracy, top, precision" in caught.value.remedy


def test_a_metric_that_cannot_be_imported_is_refused(mine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spoilt_metric.py").write_text("1 / 0\n")
    for name, reason in [
        ("no.such.module:cost", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("spoilt_metric:cost", "cannot be imported: ZeroDivisionError"),
        ("mine:cost", "the module 'mine' has no 'cost'"),
        ("mine:__name__", "has '__name__', but it is not a function"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            find_metric(name)
        assert f"'{name}'" in caught.value.problem


@pytest.mark.parametrize(
    "function",
    [lambda: 0, lambda labels, probabilities: 0, lambda a, b, c, d: 0, lambda *, labels, probabilities, classes: 0],
    ids=["none", "two", "four", "by name"],
)
def test_a_wrong_signature_is_refused_before_it_is_called(mine, function):
    mine.cost = function
    with pytest.raises(InputError, match="'mine:cost' cannot be called with three arguments") as caught:
        find_metric("mine:cost")
    assert "def function(labels, probabilities, classes)" in caught.value.remedy


@pytest.mark.parametrize(
    "value", [None, "good", math.nan, -math.inf, True, [1], 1j, {"a": None}, {"a": "b"}, np.ones(2)]
)
def test_a_value_that_is_not_a_finite_number_is_refused(mine, value):
    mine.cost = lambda labels, probabilities, classes: value
    with pytest.raises(InputError, match=r"The metric 'mine:cost' returned .* for 'cost") as caught:
        compute("mine:cost", LABELS, PROBABILITIES, CLASSES)
    assert caught.value.remedy == "It must return finite numbers."


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**5000), Fraction(10**400, 3), Decimal("NaN"), Decimal("sNaN"), np.float64("inf"), np.True_, np.array(1j), np.ones(1), torch.tensor(True), torch.ones(2), "1", "a" * 10**6, b"1", lambda: 1, object, float, {"a": 10**400}, {"a": {"b": 1}}, np.ma.masked, {"a": np.ma.masked}, np.ma.array([1.0], mask=True).mean(), np.timedelta64(5, "ns"), np.datetime64(5, "ns")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_values_that_are_not_finite_numbers_are_refused(mine, value):
    mine.cost = lambda labels, probabilities, classes: value
    with pytest.raises(InputError, match=r"The metric 'mine:cost' returned .* for 'cost") as caught:
        compute("mine:cost", LABELS, PROBABILITIES, CLASSES)
    assert len(caught.value.problem) < 300


class Rude(int):
    """A number whose conversion fails."""

    def __float__(self):
        raise SystemError

    __repr__ = __float__


class Ending(float):
    """A number whose conversion ends Python with exit code 0."""

    def __float__(self):
        raise SystemExit(0)

    __repr__ = __float__


class EndingError(Exception):
    def __str__(self):
        raise SystemExit(0)


class Spoilt(Mapping):
    def __getitem__(self, key):
        return 1.0

    def __iter__(self):
        yield "a"
        sys.exit(0)

    def __len__(self):
        return 1


class Unprintable(BaseException):
    def __str__(self):
        raise RuntimeError


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(0.5, requires_grad=True), {"cost": 0.5}),
        (torch.tensor(3), {"cost": 3.0}),
        (np.array(0.5), {"cost": 0.5}),
        (np.int8(3), {"cost": 3.0}),
        (Decimal("0.5"), {"cost": 0.5}),
        (Fraction(1, 2), {"cost": 0.5}),
        (-0.0, {"cost": 0.0}),
        ({3: 1, None: 2, "a=\n": 3}, {"cost_3": 1.0, "cost_None": 2.0, "cost_a=\n": 3.0}),
        ({}, {}),
    ],
    ids=str,
)
def test_numbers_of_any_type_are_accepted(mine, value, expected):
    mine.cost = lambda labels, probabilities, classes: value
    found = compute("mine:cost", LABELS, PROBABILITIES, CLASSES)
    assert found == expected
    assert all(type(number) is float for number in found.values())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda *_: sys.exit(0), "failed: SystemExit: 0"),
        (lambda *_: sys.exit("a\nb"), "failed: SystemExit: a b"),
        (lambda *_: raise_(GeneratorExit()), "failed: GeneratorExit"),
        (lambda *_: raise_(MemoryError()), "failed: MemoryError"),
        (lambda *_: raise_(Unprintable()), "failed: Unprintable"),
        (lambda *_: raise_(ValueError("a" * 10**6)), "failed: ValueError"),
        (lambda *_: Spoilt(), "failed: SystemExit"),
        (lambda *_: {"\ud800": 1.0}, "failed: UnicodeEncodeError"),
        (lambda *_: Rude(1), "returned a value of the type Rude"),
        (lambda *_: Ending(1), "returned a value of the type Ending"),
        (lambda *_: raise_(EndingError()), "failed: EndingError: "),
        (lambda *_: {1: 1.0, "1": 2.0}, "returns 'cost_1', a name that is already in use"),
    ],
)
def test_an_error_about_a_metric_names_it(mine, function, words):
    mine.cost = function
    with pytest.raises(InputError, match=words) as caught:
        compute("mine:cost", LABELS, PROBABILITIES, CLASSES)
    assert "'mine:cost'" in caught.value.problem
    assert "\n" not in caught.value.problem and len(caught.value.problem) < 1000


def test_an_interrupt_in_a_metric_is_not_reported_as_its_error(mine):
    mine.cost = lambda labels, probabilities, classes: raise_(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compute("mine:cost", LABELS, PROBABILITIES, CLASSES)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_metric_with_a_reserved_name_is_refused(mine, name):
    setattr(mine, name, lambda labels, probabilities, classes: 0.0)
    with pytest.raises(InputError, match=f"returns '{name}', a name that is already in use"):
        compute(f"mine:{name}", LABELS, PROBABILITIES, CLASSES)


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "raise BaseException", "def __getattr__(name): raise SystemExit"]
)
def test_a_module_that_ends_python_is_refused(tmp_path, monkeypatch, code):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ending_metric.py").write_text(code)
    with pytest.raises(InputError, match="'ending_metric:cost' cannot be imported: (SystemExit|BaseException)"):
        find_metric("ending_metric:cost")
    sys.modules.pop("ending_metric", None)


@pytest.mark.parametrize(
    "name", [None, 1, b"a", ["accuracy"], {"a": 1}, ".a:b", "a..b:c", "a\0:b", "a\n:b", "\ud800:b"]
)
def test_a_name_that_is_not_a_metric_name_is_refused(name):
    with pytest.raises(InputError):
        find_metric(name)


def test_a_metric_that_fails_is_named(mine):
    mine.cost = lambda labels, probabilities, classes: 1 / 0
    with pytest.raises(InputError, match="The metric 'mine:cost' failed: ZeroDivisionError: division by zero"):
        compute("mine:cost", LABELS, PROBABILITIES, CLASSES)


def test_an_interval_contains_the_metric_and_narrows_with_more_images():
    rng = np.random.default_rng(0)

    def width(count):
        right = rng.random(count) < 0.8
        (low,), (high,) = interval(lambda chosen: right[chosen].mean(), count)
        assert low <= right.mean() <= high
        return high - low

    few, many = width(50), width(5000)
    # ± 1.96 √(p (1 − p) / n)
    assert few == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 50), rel=0.3)
    assert many == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 5000), rel=0.3)


@pytest.mark.parametrize("count", [2, 42, 200])
def test_the_interval_of_a_share_covers_any_true_share(count):
    """At least 95 % coverage, computed over every possible outcome, for true shares up to 1."""
    ends = np.array([proportion(hits, count) for hits in range(count + 1)])
    chance = [math.comb(count, hits) for hits in range(count + 1)]
    for truth in [*np.linspace(0, 1, 101), 0.999]:
        covers = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        weights = [c * truth**hits * (1 - truth) ** (count - hits) for hits, c in enumerate(chance)]
        assert np.dot(weights, covers) >= 0.95, truth


def test_shares_have_an_exact_interval_even_where_all_images_are_right():
    probabilities = np.eye(4)[np.arange(42) % 4]
    found = intervals(["accuracy", "top"], np.arange(42) % 4, probabilities, range(4))
    assert found == {"accuracy": proportion(42, 42), "top_3": proportion(42, 42)}
    assert found["accuracy"] == (pytest.approx(0.025 ** (1 / 42)), 1)
    found = intervals(["accuracy"], LABELS, PROBABILITIES, CLASSES)
    assert found["accuracy"] == (pytest.approx(0.0676, abs=1e-4), pytest.approx(0.9324, abs=1e-4))


def test_an_interval_is_close_to_that_of_scipy():
    """Within a fifteenth of its width, on skewed data for which percentiles are off by a fifth."""
    from scipy.stats import bootstrap

    data = np.random.default_rng(0).exponential(size=(2, 60)) ** 2
    statistics = [lambda x: x[0].mean(), lambda x: np.median(x[0]), lambda x: x[0].mean() / x[1].mean()]
    low, high = interval(lambda chosen: np.array([one(data[:, chosen]) for one in statistics]), 60)
    for k, one in enumerate(statistics):
        theirs = bootstrap(
            (np.arange(60),),
            lambda chosen, one=one: one(data[:, chosen]),
            vectorized=False,
            method="BCa",
            n_resamples=5000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        close = (theirs.high - theirs.low) / 15
        assert (low[k], high[k]) == (pytest.approx(theirs.low, abs=close), pytest.approx(theirs.high, abs=close))


def test_leaving_out_groups_estimates_the_skew_like_leaving_out_images(monkeypatch):
    data = np.random.default_rng(0).exponential(size=1000) ** 2

    def width_on_each_side():
        (low,), (high,) = interval(lambda chosen: data[chosen].mean(), 1000)
        return data.mean() - low, high - data.mean()

    in_groups = width_on_each_side()
    assert in_groups[1] > 1.1 * in_groups[0]
    monkeypatch.setattr(metrics, "_GROUPS", 1000)
    assert in_groups == pytest.approx(width_on_each_side(), rel=0.1)


@pytest.mark.parametrize(("wrong", "there"), [(0, False), (4, False), (5, True)])
def test_with_few_wrong_images_only_shares_have_an_interval(wrong, there):
    """Resampling cannot account for wrong answers that are not in the sample."""
    labels, predicted = np.arange(42) % 4, np.arange(42) % 4
    predicted[:wrong] = (predicted[:wrong] + 1) % 4
    confidence = np.linspace(0.5, 0.9, 42)[:, None]
    probabilities = np.where(np.arange(4) == predicted[:, None], confidence, (1 - confidence) / 3)
    others = {"precision", "recall", "f1", "log_loss", "calibration_error"} if there else set()
    assert set(intervals(BUILT_IN, labels, probabilities, range(4))) == {"accuracy", "top_3"} | others


def test_there_is_no_interval_if_resampling_cannot_estimate_it():
    """The metric is the same in every resample, or differs from the original value in all of them."""
    (same, spoilt, mean), (_, _, high) = interval(lambda chosen: [0.1, len(set(chosen)), chosen.mean()], 40)
    assert math.isnan(same)
    assert math.isnan(spoilt)
    assert mean < 19.5 < high


def test_metrics_that_resampling_biases_are_in_their_interval():
    """With three images in each of 1000 classes, a resample lacks some classes. BCa corrects this bias."""
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 1000
    logits = rng.standard_normal((3000, 1000))
    logits[np.arange(3000), labels] += 4
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for name in ("precision", "recall", "f1"):
        value = compute(name, labels, probabilities, range(1000))[name]
        low, high = intervals([name], labels, probabilities, range(1000)).get(name, (value, value))
        assert low <= value <= high


def test_an_interval_is_the_same_every_time():
    assert intervals(["log_loss"], LABELS, PROBABILITIES, CLASSES) == intervals(
        ["log_loss"], LABELS, PROBABILITIES, CLASSES
    )


def test_a_metric_that_some_resamples_lack_has_no_interval(mine):
    def needs_class_2(labels, probabilities, classes):
        if 2 not in labels:
            raise ValueError("class c is not there")
        return 1.0

    mine.needs = needs_class_2
    assert set(intervals(["mine:needs", "accuracy"], LABELS, PROBABILITIES, CLASSES)) == {"accuracy"}


def any_answers(images, classes, seed=0):
    """Labels and probabilities, some of them equal, 0 or 1; most predictions are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    weights = rng.integers(0, 4, (images, classes)).astype(float)
    weights[np.arange(images), labels] += rng.integers(0, 8, images)
    weights[weights.sum(axis=1) == 0] = 1
    return labels, weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("images", "classes"), [(1, 4), (9, 2), (40, 4), (300, 7), (60, 50)])
def test_the_fast_metrics_equal_those_of_the_libraries(images, classes):
    """Bit for bit, also with equal probabilities. The libraries sort and copy all probabilities."""
    import torch
    from sklearn.metrics import log_loss, top_k_accuracy_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels, probabilities = any_answers(images, classes)
    everyone = np.arange(classes)
    found = {
        key: value
        for name in ("top", "log_loss", "calibration_error")
        for key, value in compute(name, labels, probabilities, everyone).items()
    }
    expected = {
        f"top_{k}": top_k_accuracy_score(labels, probabilities, k=k, labels=everyone) for k in (3, 5) if k < classes
    }
    expected["log_loss"] = log_loss(labels, probabilities, labels=everyone)
    expected["calibration_error"] = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), num_classes=classes, n_bins=10, norm="l1"
    ).item()
    assert found == expected


@pytest.mark.parametrize(("images", "classes"), [(1, 4), (9, 2), (40, 4), (300, 7), (60, 50)])
def test_counting_a_resample_equals_computing_the_metrics_on_it(images, classes):
    labels, probabilities = any_answers(images, classes)
    recount, rng = Recount(labels, probabilities, classes), np.random.default_rng(1)
    for _ in range(20):
        chosen = rng.integers(0, images, images)
        found = dict(zip(recount.keys, recount(chosen), strict=True))
        for name in recount.keys:
            close = 1e-6 if name == "calibration_error" else 1e-12  # torchmetrics counts in float32
            for key, value in compute(name, labels[chosen], probabilities[chosen], range(classes)).items():
                assert found[key] == pytest.approx(value, abs=close), key


def test_the_built_in_metrics_are_not_computed_again_for_each_resample(mine, monkeypatch):
    """Each would read the probabilities of all classes: a thousand times take minutes for 2000 classes."""
    calls = dict.fromkeys([*BUILT_IN, "own"], 0)

    def counting(name, metric):
        def count(*arguments):
            calls[name] += 1
            return metric(*arguments)

        return count

    for name, metric in BUILT_IN.items():
        monkeypatch.setitem(BUILT_IN, name, counting(name, metric))
    mine.own = counting("own", lambda labels, probabilities, classes: labels.mean())
    monkeypatch.setattr(metrics, "RESAMPLES", 20)
    intervals([*BUILT_IN, "mine:own"], *any_answers(100, 7), range(7))
    assert calls.pop("own") >= 20
    assert set(calls.values()) == {1}
