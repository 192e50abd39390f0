"""Metrics: scikit-learn's and torchmetrics', or your own, with one signature.

A metric is any callable ``(labels, probabilities, classes) -> float | dict[str, float]``:

* ``labels``: int64, (images,): the index of each image's true class;
* ``probabilities``: float64, (images, classes): the softmax of the model's logits;
* ``classes``: the names of the classes, in the order of the indices.

In ``params.yaml`` it is named ``module:function``, as in ``metrics: [accuracy, my_package.module:cost]``. A function
that returns a mapping gives several metrics: ``cost`` with the keys ``low`` and ``high`` gives ``cost_low`` and
``cost_high``. For the confidence interval the function is called again on resampled images, so it should be
deterministic and fast.

>>> def error_rate(labels, probabilities, classes):
...     return float((probabilities.argmax(axis=1) != labels).mean())
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitconv.errors import InputError, shown

if TYPE_CHECKING:
    import torch

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Metric = Callable[[Labels, Probabilities, Sequence[str]], "float | Mapping[str, float]"]

#: The number of bins of the calibration error and of the reliability diagram.
BINS = 10
#: The number of resamples for a confidence interval. Very many images get fewer: see :func:`interval`.
RESAMPLES = 1000
_TOP = (3, 5)
#: Names of the evaluation's own metrics. Another metric must not return them.
RESERVED = frozenset(
    ("images", "errors", "labelled", "thresholds_missed")
    + ("compared", "not_compared", "agreement", "max_logit_difference")
)
_GROUPS = 200
_FEWEST_WRONG = 5


def accuracy(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The share of images whose most probable class is the true one."""
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, probabilities.argmax(axis=1))


def top(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, float]:
    """The share of images whose true class is among the 3 (and the 5) most probable, if there are more classes."""
    place = _place(labels, probabilities)
    return {str(k): float((place < k).mean()) for k in _TOP if k < len(classes)}


def precision(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """Macro precision: the share of a class's predictions that are right, averaged over the classes that occur."""
    from sklearn.metrics import precision_score

    return precision_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)


def recall(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """Macro recall: the share of a class's images that are found, averaged over the classes that occur."""
    from sklearn.metrics import recall_score

    return recall_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)


def f1(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """Macro F1: the harmonic mean of a class's precision and recall, averaged over the classes that occur."""
    from sklearn.metrics import f1_score

    return f1_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)


def log_loss(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The mean negative natural logarithm of the true class's probability."""
    return float(_loss(labels, probabilities).mean())


def calibration_error(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The expected calibration error (Naeini et al. 2015): how far confidence is from accuracy, in 10 bins."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    # The binary error of 'the answer is right' equals the multiclass error, and needs no copy of all probabilities.
    right = probabilities.argmax(axis=1) == labels
    value = binary_calibration_error(_confidence(probabilities), torch.tensor(right).int(), n_bins=BINS, norm="l1")
    return value.item()


# The per-image values that the built-in metrics need. Each takes one pass over the probabilities, without sorting
# or copying them: for 50 000 images of 1000 classes they take 400 MB.


def _place(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """The rank of the true class from 0, int64, (images,). As in scikit-learn, the last of equals ranks first."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    later = np.arange(probabilities.shape[1]) > labels[:, None]
    return np.count_nonzero((probabilities > own) | ((probabilities == own) & later), axis=1)


def _loss(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """The negative logarithm of the true class's probability, (images,), clipped as in scikit-learn to stay finite."""
    smallest = np.finfo(probabilities.dtype).eps
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], smallest, 1 - smallest))


def _confidence(probabilities: Probabilities) -> torch.Tensor:
    """The largest probability, (images,), as float32, the dtype in which torchmetrics bins it."""
    import torch

    return torch.tensor(probabilities.max(axis=1)).float()


BUILT_IN: dict[str, Metric] = {
    metric.__name__: metric for metric in (accuracy, top, precision, recall, f1, log_loss, calibration_error)
}
#: The names they return. A custom metric with such a name would look like a built-in one in the report.
_BUILT_IN_NAMES = BUILT_IN.keys() | {f"top_{k}" for k in _TOP}
_SHARES = ("accuracy", "top")  # shares of the images, so their interval is binomial


def find_metric(name: str) -> Metric:
    """Find a metric by its name.

    Args:
        name: one of :data:`BUILT_IN`, or ``"module:function"`` for a function of your own that Python can import.

    Raises:
        InputError: there is no such metric, or it cannot be called with the three arguments.
    """
    if not isinstance(name, str):
        raise InputError(
            f"The name of a metric must be a string, got {shown(name)}.",
            "Write a list of names, such as accuracy or my_module:my_function, without a space after the colon.",
        )
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise InputError(
            f"There is no metric '{name}'.",
            f"Choose from {', '.join(BUILT_IN)}, or name your own as 'module:function'.",
        )
    try:
        module = importlib.import_module(module_name)
        metric = getattr(module, attribute, None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module may raise anything when it is imported, also SystemExit
        raise InputError(
            f"The metric '{name}' cannot be imported: {_said(error)}",
            "Install its module, or put it into the project's root or on PYTHONPATH.",
        ) from error
    if not callable(metric):
        what = f"has no '{attribute}'" if metric is None else f"has '{attribute}', but it is not a function"
        raise InputError(f"The metric '{name}': the module '{module_name}' {what}.", _SIGNATURE)
    try:
        inspect.signature(metric).bind(None, None, None)
    except TypeError as error:
        raise InputError(f"The metric '{name}' cannot be called with three arguments: {error}.", _SIGNATURE) from error
    except Exception:  # some callables, such as those written in C, have no signature
        pass
    return metric


def _said(error: BaseException) -> str:
    """The type and message of any exception, on one line."""
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text[:500]}"


_SIGNATURE = "Write it as def function(labels, probabilities, classes) -> float | dict[str, float]."


def compute(name: str, labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, float]:
    """Compute a metric: a value by the metric's name, or for a mapping one by each ``name_key``.

    Raises:
        InputError: the metric fails, or returns something other than finite numbers.
    """
    metric = find_metric(name)
    short = name.rpartition(":")[2]
    if name not in BUILT_IN:  # torch writes into arrays that are read-only, and the next metric would see it
        labels, probabilities = labels.copy(), probabilities.copy()
        for array in (labels, probabilities):
            array.flags.writeable = False  # numpy then says what the metric should not do
    try:
        value = metric(labels, probabilities, classes)
        found = (
            [(f"{short}_{key}", it) for key, it in value.items()] if isinstance(value, Mapping) else [(short, value)]
        )
        for key, _ in found:
            key.encode()  # the names are written as UTF-8
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, which would end the run with success
        raise InputError(
            f"The metric '{name}' failed: {_said(error)}", "Fix it, or remove it from metrics."
        ) from error
    result: dict[str, float] = {}
    for key, it in found:
        number = _number(it)
        if number is None:
            raise InputError(
                f"The metric '{name}' returned {shown(it)} for '{key}'.", "It must return finite numbers."
            )
        if key in result or key in RESERVED or (name not in BUILT_IN and key in _BUILT_IN_NAMES):
            raise InputError(
                f"The metric '{name}' returns '{key}', a name that is already in use.", "Give it another name."
            )
        result[key] = number
    return result


def _number(value: Any) -> float | None:
    """A finite number of Python, NumPy or torch as a float; ``None`` for anything else."""
    try:
        if np.ma.is_masked(value) or getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
            return None  # `item` gives 0 for what is masked, and a number of nanoseconds for a time
        if getattr(value, "ndim", None) == 0:  # a NumPy scalar, or a tensor
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
            return None
        number = float(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as an integer beyond the largest float, or a class of the user's
        return None
    return number if math.isfinite(number) else None


def intervals(
    names: Sequence[str], labels: Labels, probabilities: Probabilities, classes: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Compute the 95 % confidence intervals of these metrics; a metric without one is left out.

    A share of the images (accuracy, top) has the interval of :func:`proportion`, any other metric that of
    :func:`interval`, which says when there is none. The built-in metrics other than shares also have none if fewer
    than five images are wrong: in simulations, such intervals covered the truth in as few as 42 of 100 cases
    (benchmarks/coverage.py).
    """
    found: dict[str, tuple[float, float]] = {}
    count = len(labels)
    counted: dict[str, float] = {}
    for name in names:
        values = compute(name, labels, probabilities, classes)
        if name in _SHARES:
            found |= {key: proportion(round(value * count), count) for key, value in values.items()}
        elif name in BUILT_IN:
            counted |= values
        elif values:
            again = partial(_again, name, list(values), labels, probabilities, classes)
            found |= _by_name(values, interval(again, count))
    if counted and np.count_nonzero(probabilities.argmax(axis=1) != labels) >= _FEWEST_WRONG:
        recount = Recount(labels, probabilities, len(classes))
        ranges = _by_name(recount.keys, interval(recount, count, full=100_000))
        found |= {key: ends for key, ends in ranges.items() if key in counted}
    return found


def _by_name(keys: Iterable[str], ends: tuple[Sequence[float], Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {key: (lo, hi) for key, lo, hi in zip(keys, *ends, strict=True) if math.isfinite(lo + hi)}


def _again(
    name: str,
    keys: Sequence[str],
    labels: Labels,
    probabilities: Probabilities,
    classes: Sequence[str],
    chosen: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Compute a metric on some of the images; NaN where that fails."""
    try:
        values = compute(name, labels[chosen], probabilities[chosen], classes)
    except InputError:
        values = {}
    return np.array([values.get(key, math.nan) for key in keys])


class Recount:
    """Computes the built-in metrics other than shares on one resample after another.

    The per-image values are computed once. A resample then only counts its images, whatever the number of classes;
    the metrics themselves would go through all the probabilities again.

    Attributes:
        keys: the names of the metrics.
    """

    def __init__(self, labels: Labels, probabilities: Probabilities, classes: int) -> None:
        import torch

        self.keys = ("precision", "recall", "f1", "log_loss", "calibration_error")
        self._labels, self._classes = labels, classes
        self._predicted = probabilities.argmax(axis=1)
        self._right = self._predicted == labels
        self._loss = _loss(labels, probabilities)
        confidence = _confidence(probabilities)
        self._bin = (torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1).numpy()
        self._gap = self._right - confidence.double().numpy()

    def __call__(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute the metrics, in the order of :attr:`keys`, on the images with these indices; they may repeat."""
        times = np.bincount(chosen, minlength=len(self._labels)).astype(np.float64)
        images = np.bincount(self._labels, times, self._classes)
        answers = np.bincount(self._predicted, times, self._classes)
        right = np.bincount(self._labels, times * self._right, self._classes)
        occur = images + answers > 0
        images, answers, right = images[occur], answers[occur], right[occur]
        gap = np.bincount(self._bin, times * self._gap)
        return np.array(
            [
                (right / np.maximum(answers, 1)).mean(),
                (right / np.maximum(images, 1)).mean(),
                (2 * right / (images + answers)).mean(),
                times @ self._loss / len(chosen),
                np.abs(gap).sum() / len(chosen),
            ]
        )


def proportion(hits: int, count: int) -> tuple[float, float]:
    """Compute the 95 % confidence interval of Clopper and Pearson (1934) for a share, ``hits`` of ``count`` images.

    It covers the true share in at least 95 % of cases, for any number of images and any true share, 1 included.
    """
    from scipy.stats import binomtest

    ends = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="exact")
    return float(ends.low), float(ends.high)


def interval(
    statistic: Callable[[NDArray[np.int64]], Any], count: int, *, full: int = 10_000
) -> tuple[list[float], list[float]]:
    """Compute 95 % confidence intervals with the BCa bootstrap over images (Efron 1987), with a fixed seed.

    BCa corrects the percentile bootstrap for the bias and the skew of the metric; without the correction, the interval
    covers the true value too rarely. scipy's implementation leaves out each image in turn to estimate the skew, with
    one call for each image. Here the images are left out in at most 200 groups, which estimates it as well.

    Args:
        statistic: a function from the indices of some images to the metrics of these images.
        count: the number of images.
        full: up to this number of images there are :data:`RESAMPLES` resamples. More images get fewer resamples, but
            at least a tenth of that.

    Returns:
        the lower and the upper ends. They are NaN for a metric that some resample lacks, that is the same in all
        resamples, or that lies outside its own interval; and for fewer than two images.
    """
    from scipy.special import ndtr, ndtri

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of absent classes
        whole = np.atleast_1d(statistic(np.arange(count)))
        nothing = np.full(len(whole), np.nan)
        if count < 2:
            return nothing.tolist(), nothing.tolist()
        rng = np.random.default_rng(0)
        resamples = max(RESAMPLES // 10, min(RESAMPLES, full * RESAMPLES // count))
        groups = np.array_split(rng.permutation(count), min(count, _GROUPS, resamples))
        without = np.array([np.atleast_1d(statistic(np.delete(np.arange(count), group))) for group in groups])
        again = np.array([np.atleast_1d(statistic(rng.integers(0, count, count))) for _ in range(resamples)])
    with np.errstate(invalid="ignore", over="ignore"):  # a metric may be NaN, huge or infinitely biased
        pull = without.mean(axis=0) - without
        spread = (pull**2).sum(axis=0) ** 1.5
        skew = np.divide((pull**3).sum(axis=0), 6 * spread, out=np.zeros_like(spread), where=spread != 0)
        bias = ndtri(((again < whole).mean(axis=0) + (again <= whole).mean(axis=0)) / 2)
        ends = []
        for normal in ndtri([0.025, 0.975]):
            level = ndtr(bias + (bias + normal) / (1 - skew * (bias + normal)))
            ends.append([np.quantile(again[:, k], p) if 0 < p < 1 else np.nan for k, p in enumerate(level)])
        low, high = np.array(ends)
        varies = np.ptp(again, axis=0) > 1e-9 * np.abs(whole)  # by more than rounding
        sound = varies & (low <= whole) & (whole <= high)
    return np.where(sound, low, nothing).tolist(), np.where(sound, high, nothing).tolist()
