"""Metrics: scikit-learn's and torchmetrics', or your own, all called alike.

A metric is any callable ``(labels, probabilities, classes) -> float | dict[str, float]``:

* ``labels``: int64, (images,): the number of each image's true class;
* ``probabilities``: float64, (images, classes): the softmax of the model's logits;
* ``classes``: the names of the classes, in that order.

In ``params.yaml`` it is named ``module:function``, as in ``metrics: [accuracy, my_package.module:cost]``. A mapping
gives several figures, ``cost_low`` and ``cost_high``. It is called again on resampled images for its confidence
interval, so it should be deterministic and quick.

>>> def error_rate(labels, probabilities, classes):
...     return float((probabilities.argmax(axis=1) != labels).mean())
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitconv.errors import InputError, shown

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Metric = Callable[[Labels, Probabilities, Sequence[str]], "float | Mapping[str, float]"]

#: Bins of the calibration error and of the reliability diagram.
BINS = 10
#: For the confidence intervals, of up to 10 000 images; of more, fewer, but a tenth of it at least.
RESAMPLES = 1000
_TOP = (3, 5)
#: Figures that an evaluation has whatever the metrics, or may have: no metric's may be called so.
RESERVED = frozenset(
    ("images", "errors", "labelled", "thresholds_missed")
    + ("compared", "not_compared", "agreement", "max_logit_difference")
)


def accuracy(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The share of images whose most probable class is the true one."""
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, probabilities.argmax(axis=1))


def top(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, float]:
    """The share of images whose true class is among the 3, and the 5, most probable; of more classes than that."""
    from sklearn.metrics import top_k_accuracy_score

    everyone = np.arange(len(classes))
    return {
        str(k): top_k_accuracy_score(labels, probabilities, k=k, labels=everyone) for k in _TOP if k < len(classes)
    }


def precision(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """Of the images said to be of a class, the share that are: the mean over the classes that occur."""
    from sklearn.metrics import precision_score

    return precision_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)


def recall(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """Of the images of a class, the share that are said to be: the mean over the classes that occur."""
    from sklearn.metrics import recall_score

    return recall_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)


def f1(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The harmonic mean of a class's precision and recall: the mean over the classes that occur."""
    from sklearn.metrics import f1_score

    return f1_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)


def log_loss(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The mean negative logarithm (natural) of the true class's probability."""
    from sklearn.metrics import log_loss

    return log_loss(labels, probabilities, labels=np.arange(len(classes)))


def calibration_error(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> float:
    """The expected calibration error (Naeini et al. 2015): how far confidence is from accuracy, over 10 equal bins."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    value = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), num_classes=len(classes), n_bins=BINS, norm="l1"
    )
    return value.item()


BUILT_IN: dict[str, Metric] = {
    metric.__name__: metric for metric in (accuracy, top, precision, recall, f1, log_loss, calibration_error)
}


def find_metric(name: str) -> Metric:
    """The metric of this name.

    Args:
        name: one of :data:`BUILT_IN`, or ``"module:function"`` of your own, which Python must be able to import.

    Raises:
        InputError: there is none of this name, or it cannot be called as a metric is.
    """
    if not isinstance(name, str):
        raise InputError(
            f"A metric is named {shown(name)}.", "Write a list of names, 'module:function' without a space."
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
    except BaseException as error:  # whatever the module does when it is imported: also sys.exit()
        raise InputError(
            f"The metric '{name}' cannot be imported: {_said(error)}",
            "Its module must be installed, or lie in the project's root or on PYTHONPATH.",
        ) from error
    if not callable(metric):
        what = "has no" if metric is None else "has, but cannot call,"
        raise InputError(f"The metric '{name}': the module '{module_name}' {what} '{attribute}'.", _SIGNATURE)
    try:
        inspect.signature(metric).bind(None, None, None)
    except TypeError as error:
        raise InputError(f"The metric '{name}' cannot be called with three arguments: {error}.", _SIGNATURE) from error
    except Exception:  # some callables, such as those written in C, do not tell
        pass
    return metric


def _said(error: BaseException) -> str:
    """What an exception of somebody else's says, on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text[:500]}"


_SIGNATURE = "Write it as def function(labels, probabilities, classes) -> float | dict[str, float]."


def figures(name: str, labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, float]:
    """What a metric gives: by its own name, or for a mapping by ``name_key``.

    Raises:
        InputError: it fails, or gives anything but finite numbers.
    """
    metric = find_metric(name)
    short = name.rpartition(":")[2]
    try:
        value = metric(labels, probabilities, classes)
        found = (
            [(f"{short}_{key}", it) for key, it in value.items()] if isinstance(value, Mapping) else [(short, value)]
        )
        for key, _ in found:
            key.encode()  # the figures are written as UTF-8
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ) as error:  # whatever the metric does: also sys.exit(), which would end the run as if all were well
        raise InputError(
            f"The metric '{name}' failed: {_said(error)}", "Mend it, or leave it out of metrics."
        ) from error
    result: dict[str, float] = {}
    for key, it in found:
        number = _number(it)
        if number is None:
            raise InputError(
                f"The metric '{name}' returned {shown(it)} for '{key}'.", "It must return finite numbers."
            )
        if key in result or key in RESERVED:
            raise InputError(
                f"The metric '{name}' gives a figure that there is already: '{key}'.", "Give it another name."
            )
        result[key] = number
    return result


def _number(value: Any) -> float | None:
    """A finite number, of Python's, NumPy's or torch's, as a float; ``None`` for whatever else."""
    try:
        if getattr(value, "ndim", None) == 0:  # a scalar of NumPy's, or a tensor
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
            return None
        number = float(value)
    except Exception:  # such as an integer beyond the largest float
        return None
    return number if math.isfinite(number) else None


def intervals(
    names: Sequence[str], labels: Labels, probabilities: Probabilities, classes: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """The confidence interval of each figure of these metrics: see :func:`interval`.

    A figure that cannot be computed on some resample, because a class is not in it, has none.
    """
    found = {}
    for name in names:
        keys = list(figures(name, labels, probabilities, classes))

        def statistic(chosen: NDArray[np.int64], name: str = name, keys: Sequence[str] = keys) -> NDArray[np.float64]:
            try:
                values = figures(name, labels[chosen], probabilities[chosen], classes)
            except InputError:
                values = {}
            return np.array([values.get(key, math.nan) for key in keys])

        low, high = interval(statistic, len(labels)) if keys else ([], [])
        found |= {key: (lo, hi) for key, lo, hi in zip(keys, low, high, strict=True) if math.isfinite(lo + hi)}
    return found


def interval(statistic: Callable[[NDArray[np.int64]], Any], count: int) -> tuple[list[float], list[float]]:
    """The 95 % confidence interval of figures: the percentile bootstrap over images (Efron 1979), seeded.

    Args:
        statistic: from the numbers of some images to the figures of these.
        count: how many images there are.

    Returns:
        the lower and the upper ends; NaN for a figure that some resample lacks, and for less than two images.
    """
    from scipy.stats import bootstrap

    if count < 2:
        nothing = [math.nan] * np.size(statistic(np.arange(count)))
        return nothing, nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of intervals of no width; scikit-learn's, of absent classes
        result = bootstrap(
            (np.arange(count),),
            statistic,
            n_resamples=max(RESAMPLES // 10, min(RESAMPLES, 10_000 * RESAMPLES // count)),
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    low, high = (np.atleast_1d(end).tolist() for end in result.confidence_interval)
    return low, high
