"""The gate: how much an optimised model's answers changed, and whether that is little enough.

Both models see the same pixels of the same images, none of which had a part in making the optimised model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitconv.errors import InputError, shown
from vitconv.evaluation.metrics import calibration_error
from vitconv.evaluation.words import image_count
from vitconv.inference.answers import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How sure the statements about other images are.
CONFIDENCE = 0.95
#: The smallest limit of the disagreement: it takes three million images without a change to prove it.
_LEAST_DISAGREEMENT = 1e-6


@dataclass(frozen=True)
class Limits:
    """What is little enough. Shares are between 0 and 1.

    Attributes:
        disagreement: the largest share of all images that may get another answer: with 95 % confidence, not only of
            those that were tried. So it also says how many images are needed: 299 without a change prove 1 %.
        margin: how far the first class may lead before the second, in probability, for an answer to be allowed to
            change. A change where float32 was sure is an error, not rounding.
        cosine: the smallest cosine of the two models' logits, for any image.
        calibration_error: by how much the expected calibration error may grow, where labels are known.
        p_value: below this probability, McNemar's test says that more answers became wrong than right, where labels
            are known.
        difference: for recipes that compute in float32: the largest difference of a logit, as a share of the largest
            logit. Then the other limits need not be proved for other images.
    """

    disagreement: float = 0.01
    margin: float = 0.2
    cosine: float = 0.99
    calibration_error: float = 0.02
    p_value: float = 0.05
    difference: float = 1e-5

    def check(self) -> None:
        """Raise :class:`InputError` if a limit is no share, or one that no number of images proves."""
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InputError(
                    f"The limit of the {name.replace('_', ' ')} is {shown(value)}.", "Choose a number between 0 and 1."
                )
        if self.disagreement < _LEAST_DISAGREEMENT:
            proves = "millions of images prove" if self.disagreement else "no number of images proves"
            raise InputError(
                f"The limit of the disagreement is {shown(self.disagreement)}, which {proves}.",
                f"Choose a larger one, such as 0.005, for which {images_needed(0.005):,} images are enough.",
            )


@dataclass(frozen=True)
class Figures:
    """What was found, for the float32 model and the optimised one on the same images.

    Attributes:
        images: their number.
        changed: how many get another answer.
        bound: the upper bound of the share of all images that do, with 95 % confidence.
        classes: how many different answers the float32 model gives.
        largest_difference, median_difference: of the logits; of each image, its largest.
        scale: the largest absolute logit of the float32 model.
        smallest_cosine: of the two models' logits, over the images.
        surest_change: the largest lead of float32's first class before its second, in probability, among the changed
            images; 0 without any.
        not_finite: the number of images whose logits are not finite.
        labelled: how many have a known label; without any, the following are ``None``.
        accuracy_before, accuracy_after: the shares of right answers.
        became_wrong, became_right: the numbers of images.
        p_value: of McNemar's exact test, one-sided.
        calibration_before, calibration_after: the expected calibration errors.
    """

    images: int
    changed: int
    bound: float
    classes: int
    largest_difference: float
    median_difference: float
    scale: float
    smallest_cosine: float
    surest_change: float
    not_finite: int = 0
    labelled: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    became_wrong: int | None = None
    became_right: int | None = None
    p_value: float | None = None
    calibration_before: float | None = None
    calibration_after: float | None = None

    @property
    def kept(self) -> str:
        """How many images keep their answer, in words."""
        return f"{self.images - self.changed:,} of {image_count(self.images)} keep their answer"


def compare(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
) -> Figures:
    """Compare the logits of two models on the same images.

    Args:
        before: the float32 model's logits, (images, classes).
        after: the optimised model's.
        labels: the indices of the true classes, -1 where unknown.
        classes: the names of the classes.

    >>> import numpy as np
    >>> logits = np.eye(3)
    >>> compare(logits, logits).changed
    0
    >>> round(compare(logits, logits).bound, 2)  # three images prove little
    0.63
    """
    finite = np.isfinite(after).all(axis=1)
    answers, others = before.argmax(axis=1), np.where(finite, np.nan_to_num(after).argmax(axis=1), -1)
    changed = answers != others
    differences = np.abs(after - before).max(axis=1)
    differences[~finite] = np.inf
    ordered = np.sort(softmax(before.astype(np.float32)), axis=1)
    lead = ordered[:, -1] - (ordered[:, -2] if before.shape[1] > 1 else 0)
    figures = Figures(
        images=len(before),
        changed=int(changed.sum()),
        bound=upper_bound(int(changed.sum()), len(before)),
        classes=len(np.unique(answers)),
        largest_difference=float(differences.max()),
        median_difference=float(np.median(differences)),
        scale=float(np.abs(before).max()),
        smallest_cosine=float(_cosines(before, after)[finite].min(initial=1.0)) if finite.all() else -1.0,
        surest_change=float(lead[changed].max(initial=0.0)),
        not_finite=int((~finite).sum()),
    )
    which = finite & (np.zeros(len(before), bool) if labels is None else labels >= 0)
    return _with_labels(figures, before, after, labels, which, classes) if which.any() else figures


def _with_labels(
    figures: Figures,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    which: NDArray[np.bool_],
    classes: Sequence[str],
) -> Figures:
    from scipy.stats import binomtest

    assert labels is not None
    truth = labels[which]
    right, still_right = (logits[which].argmax(axis=1) == truth for logits in (before, after))
    wrong, better = int((right & ~still_right).sum()), int((~right & still_right).sum())
    errors = [
        calibration_error(truth, softmax(logits[which].astype(np.float32)), classes) for logits in (before, after)
    ]
    return replace(
        figures,
        labelled=int(which.sum()),
        accuracy_before=float(right.mean()),
        accuracy_after=float(still_right.mean()),
        became_wrong=wrong,
        became_right=better,
        p_value=float(binomtest(wrong, wrong + better, alternative="greater").pvalue) if wrong + better else 1.0,
        calibration_before=float(errors[0]),
        calibration_after=float(errors[1]),
    )


def upper_bound(changed: int, images: int) -> float:
    """The exact upper bound of a share, one-sided with 95 % confidence (Clopper and Pearson, 1934).

    >>> round(upper_bound(0, 600), 4)
    0.005
    """
    from scipy.stats import beta

    return 1.0 if changed == images else float(beta.ppf(CONFIDENCE, changed + 1, images - changed))


def images_needed(share: float) -> int:
    """How many images, all with the same answers, prove that no more than a share of all images changes.

    >>> images_needed(0.01)
    299
    """
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log1p(-share))) if 0 < share < 1 else 1


def _cosines(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of each image's logits; 1 where they are the same, also if all are 0."""
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosines = np.divide((before * after).sum(axis=1), lengths, out=np.zeros(len(before)), where=lengths > 0)
    return np.where((before == after).all(axis=1), 1.0, cosines)


def failures(figures: Figures, limits: Limits, *, exact: bool) -> list[str]:
    """What is not little enough, a sentence each; empty if the model passes.

    Args:
        figures: what was found.
        limits: what is allowed.
        exact: whether the recipe computes in float32.
    """
    return list(_failures(figures, limits, exact))


def _failures(found: Figures, limits: Limits, exact: bool) -> Iterator[str]:
    if found.not_finite:
        yield f"The logits of {image_count(found.not_finite)} are not finite."
        return
    if exact:
        share = found.largest_difference / found.scale if found.scale else found.largest_difference
        if share > limits.difference:
            yield (
                f"The logits differ by {found.largest_difference:.2g}, which is {share:.1e} of the largest; in "
                f"float32 it may be {limits.difference:.0e}."
            )
        return
    if found.bound > limits.disagreement:
        yield _too_many(found, limits)
    if found.surest_change > limits.margin:
        yield (
            f"An answer changed of which float32 was sure: its first class led by {found.surest_change:.0%}, and "
            f"changes are allowed up to {limits.margin:.0%}."
        )
    if found.smallest_cosine < limits.cosine:
        yield f"The logits of an image have a cosine of {found.smallest_cosine:.6g}, below {limits.cosine:.6g}."
    if found.p_value is not None and found.p_value < limits.p_value:
        yield (
            f"{found.became_wrong} answers became wrong and {found.became_right} right: by chance, that has a "
            f"probability of {found.p_value:.2g} (McNemar)."
        )
    if found.calibration_before is not None and found.calibration_after is not None:
        growth = found.calibration_after - found.calibration_before
        if growth > limits.calibration_error:
            yield f"The calibration error grew by {growth:.3f}, above {limits.calibration_error:g}."


def _too_many(found: Figures, limits: Limits) -> str:
    """Why the disagreement is too large: too many changes, or too few images to know."""
    needed = images_needed(limits.disagreement)
    if not found.changed:
        return (
            f"{image_count(found.images)} prove no more than that below {found.bound:.1%} of all images change; for "
            f"{limits.disagreement:.1%}, at least {needed:,} are needed."
        )
    return (
        f"{found.changed:,} of {image_count(found.images)} get another answer: below {found.bound:.1%} of all images, "
        f"with 95 % confidence, and the limit is {limits.disagreement:.1%}."
    )
