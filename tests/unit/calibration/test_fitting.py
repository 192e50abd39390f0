import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from vitconv.calibration.fitting import (
    auroc,
    fewest,
    fit_temperature,
    least_probability,
    odd_scores,
    order_statistic,
    percentiles,
)
from vitconv.inference.answers import softmax
from vitconv.inference.certainty import SCORES, Oddness


def drawn(count, temperature, seed=0, classes=4):
    """Logits, and labels that are as often right as the softmax at this temperature says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, classes)).astype(np.float32)
    chances = softmax(logits.astype(np.float64) / temperature)
    labels = (rng.random((count, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return logits, labels.clip(0, classes - 1)


class Logits(ClassifierMixin, BaseEstimator):
    """An estimator whose features are the logits, as scikit-learn wants one."""

    def fit(self, values, labels):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, values):
        return values

    def predict(self, values):
        return values.argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_and_is_scikit_learn_s(temperature):
    logits, labels = drawn(6000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.06)
    values = logits.astype(np.float64)
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits().fit(values, labels)), method="temperature")
    theirs.fit(values, labels)
    assert np.abs(theirs.predict_proba(values) - softmax(values / found)).max() < 0.005


@settings(max_examples=25)
@given(st.floats(0.1, 10), st.integers(0, 20))
def test_logits_that_are_larger_by_a_factor_have_a_temperature_larger_by_it(factor, seed):
    logits, labels = drawn(60, 1.0, seed)
    one, other = fit_temperature(logits, labels), fit_temperature((logits * factor).astype(np.float32), labels)
    assert other == pytest.approx(factor * one, rel=1e-3)


@pytest.mark.parametrize("count", [20, 200])
def test_a_model_that_is_always_right_is_not_infinitely_sure(count):
    """Of n right answers of n, (n + 1) / (n + 2) is what the next one may be expected to be."""
    logits = np.tile(np.array([[5, 0, 0]], np.float32), (count, 1))
    found = fit_temperature(logits, np.zeros(count, np.int64))
    assert softmax(logits[:1].astype(np.float64) / found)[0, 0] == pytest.approx((count + 1) / (count + 2), abs=1e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_an_order_statistic_keeps_its_share(values, share):
    values = np.array(values)
    if len(values) < fewest(share):
        with pytest.raises(ValueError, match="too few"):
            order_statistic(values, share)
        return
    found = order_statistic(values, share)
    assert (values <= found).sum() >= (len(values) + 1) * share - 1e-6
    assert (values < found).sum() < (len(values) + 1) * share


def test_the_smallest_share_is_the_smallest_value():
    assert order_statistic(np.arange(1.0, 20.0), 1e-12) == 1


def test_how_many_are_needed():
    assert [fewest(share) for share in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_have_the_true_class_as_often_as_promised(coverage):
    """The mean over many calibrations lies between the promise and the promise + 1 / (n + 1)."""
    hits, count = [], 99
    for seed in range(300):
        logits, labels = drawn(count + 200, 2.0, seed)
        probabilities = softmax(logits)
        least = least_probability(probabilities[:count], labels[:count], coverage)
        later = probabilities[count:]
        hits.append((later[np.arange(len(later)), labels[count:]] >= least).mean())
    error = np.std(hits) / np.sqrt(len(hits))
    assert coverage - 3 * error <= np.mean(hits) <= coverage + 1 / (count + 1) + 3 * error


def test_known_images_are_flagged_as_rarely_as_promised():
    flagged = []
    for seed in range(300):
        values = np.random.default_rng(seed).exponential(size=219)
        flagged.append((values[19:] > order_statistic(values[:19], 0.95)).mean())
    assert np.mean(flagged) <= 0.05 + 3 * np.std(flagged) / np.sqrt(len(flagged))


def clusters(count, seed=0, spread=0.3):
    """Logits of three classes, whose sum is 0 as of a ridge regression; and what the images look like."""
    labels, rng = np.arange(count) % 3, np.random.default_rng(seed)
    centres = np.array([[6, -3, -3], [-3, 6, -3], [-3, -3, 6]])
    rest = rng.normal(0, spread, (count, 3))
    logits = (centres[labels] + rest - rest.mean(axis=1, keepdims=True)).astype(np.float32)
    return logits, labels[:, None] + rng.normal(0, (0.001, 100), (count, 2)), labels


def test_each_score_tells_what_it_is_for():
    found = odd_scores(*clusters(90))
    known, look, _ = clusters(60, seed=1)
    assert list(found) == list(SCORES)

    def told(name, logits, seen=look):
        return auroc(found[name].scores(known, look), found[name].scores(logits, seen[: len(logits)]))

    assert all(told(name, known * np.float32(0.2)) == 1 for name in found)
    between = np.tile(np.array([[6, 6, -12]], np.float32), (60, 1))  # as sure as others, and nowhere near them
    assert (
        told("mahalanobis", between) == told("mahalanobis-logits", between) == 1 and told("max-logit", between) < 0.6
    )
    other = look + (0.02, 0)  # much, for a number that varies so little
    assert told("mahalanobis", known, other) == 1
    assert told("mahalanobis-logits", known, other) == pytest.approx(0.5)


@given(st.floats(1e-3, 1e3))
def test_the_units_do_not_matter(unit):
    logits, look, labels = clusters(60)
    one, other = odd_scores(logits, look, labels), odd_scores(logits, look * unit, labels)
    scores = one["mahalanobis"].scores(logits, look), other["mahalanobis"].scores(logits, look * unit)
    assert np.allclose(*scores, rtol=1e-6)


def test_what_does_not_vary_has_no_spread_to_measure_by():
    logits = np.tile(np.eye(3, dtype=np.float32), (4, 1))
    found = odd_scores(logits, np.ones((12, 2)), np.arange(12) % 3)
    for one in found.values():
        assert np.isfinite(one.scores(logits, np.ones((12, 2)))).all()
    assert np.allclose(found["mahalanobis"].scores(logits, np.ones((12, 2))), 0)


def test_matrices_of_very_many_classes_are_not_written(monkeypatch):
    monkeypatch.setattr("vitconv.calibration.fitting.MOST_CLASSES", 2)
    assert list(odd_scores(*clusters(30))) == ["energy", "max-logit"]


def test_auroc_is_the_share_of_pairs_in_order():
    assert auroc(np.array([0.0, 1, 2]), np.array([1.5, 3])) == pytest.approx(5 / 6)


@pytest.mark.parametrize("count", [19, 35, 1000])
def test_ranks_of_scores_like_those_of_the_calibration_are_all_as_frequent(count):
    """In each bucket of the histogram, also where the calibration had few images."""
    rng, tenths, shares = np.random.default_rng(0), np.arange(1, 10) / 10, []
    for _ in range(2000):
        scores = rng.gamma(2, size=count + 20)
        known = Oddness("energy", 0.0, np.empty((0, 0)), np.empty((0, 0)), percentiles(scores[:count]))
        shares.append((known.ranks(scores[count:])[:, None] <= tenths).mean(axis=0))
    assert np.abs(np.mean(shares, axis=0) - tenths).max() < 0.012
