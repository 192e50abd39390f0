"""From the logits of an image to the answer that people read: the one place for it, for lists and for servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitconv.errors import ParityError

if TYPE_CHECKING:
    from vitconv.inference.certainty import Judgement

#: What an answer says of a model whose folder has no ``calibration.json``.
NOT_CALIBRATED = "The model is not calibrated: run `vitconv calibrate`."


@dataclass(frozen=True)
class Answer:
    """What a model says of one image.

    Attributes:
        name: the class of the largest logit.
        probability: its softmax, in float64.
        logits: float32, (classes,).
        note: how timm is known to prepare the image differently, in a sentence; ``None`` if it does not.
        calibrated_probability: how often such an answer is right; ``None`` if the model is not calibrated.
        prediction_set: the classes that may be right, the most probable one first; ``None`` likewise.
        reliable: whether the image is like those that the model was calibrated on, and only one class is likely;
            ``None`` likewise.
        why_not: why it is not reliable, or that this is not known, in sentences; ``None`` if it is.
        oddness_rank: the share of the calibration's images that are less odd than this one: see
            :meth:`vitconv.inference.certainty.Oddness.ranks`. It tells something of many images, not of one, and so is
            no part of what people read. ``None`` likewise.
    """

    name: str
    probability: float
    logits: NDArray[np.float32]
    note: str | None = None
    calibrated_probability: float | None = None
    prediction_set: tuple[str, ...] | None = None
    reliable: bool | None = None
    why_not: str | None = NOT_CALIBRATED
    oddness_rank: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer with the names that `vitconv predict --json` gives them."""
        return {
            "class": self.name,
            "probability": self.probability,
            "calibrated_probability": self.calibrated_probability,
            "prediction_set": None if self.prediction_set is None else list(self.prediction_set),
            "reliable": self.reliable,
            "why_not": self.why_not,
            "logits": self.logits.tolist(),
            "note": self.note,
        }


def softmax(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities, in float64, of logits of shape (images, classes)."""
    values = logits.astype(np.float64)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probabilities of an image's classes: float64, (classes,).

    Args:
        logits: float32, (classes,).

    Raises:
        ParityError: the logits are not finite.
    """
    if not np.isfinite(logits).all():
        raise ParityError(
            "The model's logits of the image are not finite.",
            "Check the model with `vitconv predict`.",
            stage="logits",
        )
    return softmax(logits[None])[0]


def answer(
    logits: NDArray[np.float32], classes: Sequence[str], note: str | None = None, judgement: Judgement | None = None
) -> Answer:
    """The answer that an image's logits give.

    Args:
        logits: float32, (classes,).
        classes: their names, in the order of the logits.
        note: what is known of the image: see :class:`Answer`.
        judgement: how far this answer may be believed, of :meth:`vitconv.inference.certainty.Certainty.judge`;
            ``None`` if the model is not calibrated.

    Raises:
        ParityError: the logits are not finite.
    """
    found, best = probabilities(logits), int(logits.argmax())
    plain = Answer(classes[best], float(found[best]), logits, note)
    if judgement is None:
        return plain
    return replace(
        plain,
        calibrated_probability=float(judgement.probabilities[0, best]),
        prediction_set=tuple(judgement.names(0, classes)),
        reliable=bool(judgement.reliable[0]),
        why_not=judgement.why_not(0, classes),
        oddness_rank=float(judgement.ranks[0]),
    )
