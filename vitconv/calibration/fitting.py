"""What is fitted to a model's logits: the temperature, the least probability of a prediction set, the odd scores.

Each is a few lines of scipy, scikit-learn and numpy. Libraries that have them want more around them:

* scikit-learn's ``CalibratedClassifierCV(method="temperature")`` wants an estimator around the logits, keeps the
  temperature in a private object, and makes a model that is always right infinitely sure;
* MAPIE and crepes want an estimator, too, for what is one order statistic;
* pytorch-ood wants torch and features, which no optimised folder gives.

What is applied to answers needs numpy alone: :mod:`vitconv.inference.certainty`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitconv.inference.certainty import LEVELS, SCORES, Oddness, numbers

#: Of more classes, the score "mahalanobis" has matrices that are too large for a file beside a model.
MOST_CLASSES = 1000
_NOTHING = np.empty((0, 0))
_NO_SCORES = np.empty(0)
#: A number that varies by less than this share of the largest is rounding.
_SMALLEST = 1e-9


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature of the smallest log loss (Guo et al. 2017).

    The log loss is that of Platt's targets (1999): of n images, the true class gets (n + 1) / (n + 2), and the others
    share the rest. With targets of 1, a model that is right on all n images would become infinitely sure.

    Args:
        logits: (images, classes), of two classes or more.
        labels: the indices of the true classes, (images,).

    >>> import numpy as np
    >>> logits = np.array([[2, 0], [2, 0], [2, 0], [0, 2]], np.float32)
    >>> sure = fit_temperature(logits, np.array([0, 0, 0, 1]))  # always right: 5 of 6
    >>> round(float(1 / (1 + np.exp(-2 / sure))), 3)
    0.833
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    count, classes = logits.shape
    targets = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), labels] = (count + 1) / (count + 2)
    values = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(values / math.exp(log_temperature), axis=1)).sum())

    # Convex in 1 / temperature, so there is one minimum.
    return math.exp(minimize_scalar(loss, bounds=(-10, 10), options={"xatol": 1e-10}).x)


def order_statistic(values: NDArray[np.float64], share: float) -> float:
    """The smallest of these values that at least this share of other values of their kind does not exceed.

    It is the ⌈(n + 1) · share⌉-th of n values. If these and a new one are exchangeable (all orders are as likely), the
    new one exceeds it with a probability of at most 1 − share: split conformal prediction (Vovk et al. 2005).

    Raises:
        ValueError: there are too few values: see :func:`fewest`.

    >>> import numpy as np
    >>> order_statistic(np.arange(1.0, 20.0), 0.9)
    18.0
    """
    place = _place(len(values), share)
    if place > len(values):
        raise ValueError(f"{len(values)} values are too few for {share}.")
    return float(np.sort(values)[place - 1])


def fewest(share: float) -> int:
    """How many values :func:`order_statistic` needs.

    >>> fewest(0.9), fewest(0.95)
    (9, 19)
    """
    count = max(1, math.floor(share / (1 - share)) - 1)
    while _place(count, share) > count:
        count += 1
    return count


def percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 1st to the 99th percentile of these values, (99,), below which other values of their kind are so often.

    The k-th smallest of n values is taken for the k / (n + 1)-quantile ("weibull"): if these and a new one are
    exchangeable, that is the probability that the new one is smaller. numpy's usual quantiles lie nearer to the
    middle, and of a few dozen values that shows.
    """
    return np.quantile(values, LEVELS, method="weibull")


def _place(count: int, share: float) -> int:
    return max(1, math.ceil(round((count + 1) * share, 9)))  # 30 * 0.9 is a little more than 27


def least_probability(probabilities: NDArray[np.float64], labels: NDArray[np.int64], coverage: float) -> float:
    """How probable a class must be to be in a prediction set, so that the true class is in it in this share of cases.

    These are the sets of Sadinle et al. (2019), the smallest on average that keep such a promise.

    Args:
        probabilities: calibrated, (images, classes).
        labels: the indices of the true classes, (images,).
        coverage: the share.
    """
    true = probabilities[np.arange(len(labels)), labels]
    return -order_statistic(-true, coverage)


def odd_scores(
    logits: NDArray[np.float32], appearance: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, Oddness]:
    """The scores that can tell odd images, fitted to known ones, by name; without a limit and percentiles yet.

    Args:
        logits: of known images, (images, classes).
        appearance: of the same: :func:`vitconv.inference.appearance.describe`.
        labels: the indices of the true classes, (images,); each class occurs.
    """
    found = {}
    for score in SCORES:
        if not score.startswith("mahalanobis"):
            found[score] = Oddness(score, math.nan, _NOTHING, _NOTHING, _NO_SCORES)
        elif logits.shape[1] <= MOST_CLASSES:
            values = numbers(score, logits.astype(np.float64), appearance)
            centres, whitening = _spread(values, labels, logits.shape[1])
            found[score] = Oddness(score, math.nan, centres, whitening, _NO_SCORES)
    return found


def _spread(
    values: NDArray[np.float64], labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The means of the classes, and what whitens the spread that they share: :attr:`Oddness.centres` and its like.

    The covariance is that of Ledoit and Wolf (2004), which is sound for few images, and for logits of which one is
    given by the others. It shrinks towards equal spreads, so each number is first measured in units of its own.
    """
    from sklearn.covariance import LedoitWolf

    means = np.stack([values[labels == k].mean(axis=0) for k in range(classes)])
    rest = values - means[labels]
    units = rest.std(axis=0)
    units = np.where(units > _SMALLEST * max(1.0, np.abs(values).max()), units, 1.0)  # one that does not vary
    precision = LedoitWolf(assume_centered=True).fit(rest / units).precision_
    sizes, directions = np.linalg.eigh(precision)  # a square root that also exists where nothing varies
    whitening = directions * np.sqrt(sizes.clip(0)) / units[:, None]
    return means @ whitening, whitening


def auroc(known: NDArray[np.float64], odd: NDArray[np.float64]) -> float:
    """How well a score tells odd images from known ones: the share of pairs that it puts in the right order."""
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.zeros(len(known)), np.ones(len(odd))])
    return float(roc_auc_score(truth, np.concatenate([known, odd])))
