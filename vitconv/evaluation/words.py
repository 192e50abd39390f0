"""The metrics' names and values for people: in words, and rounded so that no rounding makes a value look better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_NAMES = {
    "images": "Images",
    "errors": "Images that could not be read",
    "compared": "Images compared",
    "known_differences": "Images with a known difference",
    "not_compared": "Images without an expected answer",
    "labelled": "Images with a label",
    "agreement": "Images that get the expected answer",
    "max_logit_difference": "Largest difference of a logit",
    "accuracy": "Images that get their label (accuracy)",
    "top_3": "Label among the 3 most probable classes",
    "top_5": "Label among the 5 most probable classes",
    "precision": "Precision, mean of the classes",
    "recall": "Recall, mean of the classes",
    "f1": "F1, mean of the classes",
    "log_loss": "Log loss",
    "calibration_error": "Calibration error",
    "thresholds_missed": "Thresholds missed",
}
#: The shares of images, and what counts the images.
_SHARES = {
    "agreement": "compared",
    "accuracy": "labelled",
    "top_3": "labelled",
    "top_5": "labelled",
}
_FEW_DIGITS = 1e-3  # below, a difference is told by its power of ten


def in_words(name: str) -> str:
    """The name of a metric for people; a custom metric keeps its name."""
    return _NAMES.get(name, name)


def in_a_sentence(name: str) -> str:
    """The name of a metric within a sentence.

    >>> in_a_sentence("max_logit_difference"), in_a_sentence("f1"), in_a_sentence("MyCost")
    ('largest difference of a logit', 'F1, mean of the classes', 'MyCost')
    """
    words = in_words(name)
    return words if words == name or words[1].isdigit() else words[0].lower() + words[1:]


def number(value: float | None) -> str:
    """A number with three significant digits, but never a whole one that it is not.

    >>> number(0.98765), number(0.99999), number(12345), number(5.0209e-05), number(None)
    ('0.988', '0.99999', '12,345', '5.02e-5', '–')
    """
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.1f}" if abs(value) < 1e15 else f"{value:.3g}"
    digits = next((n for n in range(3, 17) if float(f"{value:.{n}g}") != round(value)), 17)
    return f"{value:.{digits}g}".replace("e-0", "e-")


def percent(share: float) -> str:
    """A share in percent, never a whole one that it is not.

    >>> percent(0.95), percent(1), percent(0.99999)
    ('95 %', '100 %', '99.999 %')
    """
    return f"{number(round(share * 100, 12))} %"


def at_most(difference: float) -> str:
    """A bound for a difference: ``0``, the next power of ten, or above 0.001 two digits, rounded up.

    >>> at_most(0), at_most(5.0209e-05), at_most(3e-6), at_most(1.501)
    ('0', '0.0001', '1e-5', '1.6')
    """
    if difference == 0:
        return "0"
    exponent = math.ceil(math.log10(difference))
    if difference <= _FEW_DIGITS:
        return f"{10.0**exponent:g}".replace("e-0", "e-")
    step = 10.0 ** (exponent - 2)
    return f"{math.ceil(round(difference / step, 6)) * step:.6g}"


def value_of(name: str, metrics: Mapping[str, float]) -> str:
    """A metric's value for people: shares of images as counts, the difference of the logits as a bound.

    >>> value_of("agreement", {"agreement": 0.75, "compared": 4})
    '3 of 4'
    """
    value, total = metrics[name], metrics.get(_SHARES.get(name, ""))
    if total is not None:
        return f"{value * total:,.0f} of {total:,.0f}"
    if name == "max_logit_difference" and value >= 0:
        bound = at_most(value)
        return bound if bound == "0" else f"≤ {bound}"
    return number(value)


def interval_of(name: str, interval: Sequence[float]) -> str:
    """The confidence interval of a metric for people.

    >>> interval_of("accuracy", (0.9159, 1.0)), interval_of("log_loss", (0.0731, 0.25))
    ('91.6 % to 100 %', '0.0731 to 0.25')
    """
    return " to ".join(percent(one) if name in _SHARES else number(one) for one in interval)


def limit_of(name: str, bound: str, limit: float) -> str:
    """The limit of a threshold for people.

    >>> limit_of("agreement", "min", 1.0), limit_of("errors", "max", 0)
    ('≥ 100 %', '≤ 0')
    """
    return f"{'≥' if bound == 'min' else '≤'} {percent(limit) if name in _SHARES else exact(limit)}"


def exact(value: float) -> str:
    """A number as it was given, in the fewest digits.

    >>> exact(1e-4), exact(1e-5), exact(3.0)
    ('0.0001', '1e-5', '3')
    """
    return f"{value:.15g}".replace("e-0", "e-")


def image_count(count: int) -> str:
    """A number of images.

    >>> image_count(1), image_count(2000)
    ('1 image', '2,000 images')
    """
    return f"{count:,} image{'' if count == 1 else 's'}"


def why_skipped(metrics: Mapping[str, float]) -> str:
    """Why a default threshold could not be judged, in a sentence."""
    if "compared" not in metrics:
        return "There are no expected answers."
    return "No image was compared." if not metrics["compared"] else "The expected answers have no logits."
