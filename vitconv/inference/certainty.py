"""How far an answer may be believed: what `vitconv calibrate` found out of a model, applied to its answers.

``calibration.json`` lies in the model's folder and is read here. It is applied to logits and to what the pixels look
like (:mod:`vitconv.inference.appearance`), with numpy alone, whatever runs the model, and changes no logit.
:mod:`vitconv.calibration` makes it; docs/certainty.md says in plain words what the numbers mean.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitconv.checkpoints.checkpoint import CALIBRATION_FILE
from vitconv.errors import CheckpointError, first_few, shown
from vitconv.files import read_json
from vitconv.inference.answers import softmax
from vitconv.inference.appearance import count, describe

if TYPE_CHECKING:
    from pathlib import Path

    from vitconv.inference.runtime import ModelInfo

#: The form of the file; a later one may add to it.
SCHEMA = 1
UNLIKE = "The image is unlike those that the model was calibrated on."
#: The shares of which :attr:`Oddness.percentiles` has the scores.
LEVELS = np.arange(1, 100) / 100
_AGAIN = "Run `vitconv calibrate` again, or remove the file."


@dataclass(frozen=True, repr=False)
class Oddness:
    """How unlike the calibration images an image is: the larger, the odder.

    Attributes:
        score: a name in :data:`SCORES`.
        limit: what is above it is unlike the calibration images.
        centres: of a Mahalanobis score: the mean of each class's numbers, times ``whitening``: (classes, numbers).
            Empty for the others.
        whitening: of the same: the matrix by which the numbers' spread around these means becomes that of the unit
            ball, (numbers, numbers).
        percentiles: of the scores of the images that set the limits, the 1st to the 99th, (99,).
    """

    score: str
    limit: float
    centres: NDArray[np.float64]
    whitening: NDArray[np.float64]
    percentiles: NDArray[np.float64]

    def scores(self, logits: NDArray[np.float32], appearance: NDArray[np.float64]) -> NDArray[np.float64]:
        """The score of each image, (images,).

        Args:
            logits: float32, (images, classes).
            appearance: of :func:`vitconv.inference.appearance.describe`, (images, numbers).
        """
        values = logits.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # of huge logits
            if self.score in ("energy", "max-logit"):
                return (_energy if self.score == "energy" else _max_logit)(values)
            return self._distances(numbers(self.score, values, appearance))

    def ranks(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of the images that set the limits that are less odd than each of these, (images,).

        Between two percentiles it is interpolated; below the first it is 0, and above the last 1. Of images like those
        of the calibration, all ranks are as frequent. A score that is no finite number has the rank 1.

        Args:
            scores: of :meth:`scores`, (images,).
        """
        ranks = np.interp(scores, self.percentiles, LEVELS, left=0, right=1)
        return np.where(np.isfinite(scores), ranks, 1.0)

    def _distances(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The squared distance to the nearest class's mean, by the spread that the classes share (Lee et al. 2018)."""
        # Not a matrix product: of that, the last bits depend on how many images there are, and it starts threads.
        places = np.einsum("ij,jk->ik", values, self.whitening)
        return np.stack([((places - centre) ** 2).sum(axis=1) for centre in self.centres]).min(axis=0)

    def __repr__(self) -> str:
        return f"Oddness({self.score}, limit {self.limit:.4g})"


def _energy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The free energy of Liu et al. (2020), at the temperature 1: minus the log of the sum of the exponentials."""
    largest = logits.max(axis=1)
    return -(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)))


def _max_logit(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the largest logit (Hendrycks et al. 2022)."""
    return -logits.max(axis=1)


#: The scores, by name. The first two are distances of the logits and the appearance, and of the logits alone.
SCORES = ("mahalanobis", "mahalanobis-logits", "energy", "max-logit")


def numbers(score: str, logits: NDArray[np.float64], appearance: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a Mahalanobis score measures distances of, (images, numbers)."""
    return logits if score == "mahalanobis-logits" else np.concatenate([logits, appearance], axis=1)


@dataclass(frozen=True)
class Judgement:
    """What is said of images beside their logits.

    Attributes:
        probabilities: the calibrated ones, float64, (images, classes).
        sets: which classes are in each image's prediction set, bool, (images, classes).
        unlike: which images are unlike those that the model was calibrated on, bool, (images,).
        ranks: how odd the images are: see :meth:`Oddness.ranks`, float64, (images,).
    """

    probabilities: NDArray[np.float64]
    sets: NDArray[np.bool_]
    unlike: NDArray[np.bool_]
    ranks: NDArray[np.float64]

    @property
    def reliable(self) -> NDArray[np.bool_]:
        """Which answers are reliable, (images,): one class is likely, and the image is like the calibration's."""
        return ~self.unlike & (self.sets.sum(axis=1) == 1)

    def names(self, image: int, classes: Sequence[str]) -> list[str]:
        """The names of the classes in an image's prediction set, the most probable one first."""
        chosen = np.flatnonzero(self.sets[image])
        order = np.argsort(-self.probabilities[image, chosen], kind="stable")
        return [classes[k] for k in chosen[order]]

    def why_not(self, image: int, classes: Sequence[str]) -> str | None:
        """Why an answer is not reliable, in sentences; ``None`` if it is."""
        names = self.names(image, classes)
        reasons = [UNLIKE] if self.unlike[image] else []
        if len(names) > 1:
            reasons.append(f"{len(names):,} classes are likely: {first_few(names)}.")
        return " ".join(reasons) or None


@dataclass(frozen=True, repr=False)
class Certainty:
    """What ``calibration.json`` says that is applied to answers.

    Attributes:
        temperature: what the logits are divided by, so that probabilities are shares of right answers (Guo et al.
            2017).
        coverage: the share of images whose prediction set has the true class, at least: the promise.
        least: a class is in the set if its calibrated probability is at least this.
        oddness: how images are told that are unlike those of the calibration.
    """

    temperature: float
    coverage: float
    least: float
    oddness: Oddness

    @property
    def digest(self) -> str:
        """The SHA-256 of all of it: the same only for calibrations that say the same of all answers."""
        return seal(self.to_dict())

    def judge(self, logits: NDArray[np.float32], appearance: NDArray[np.float64]) -> Judgement:
        """What is said of images.

        Args:
            logits: float32, (images, classes), finite.
            appearance: of :func:`vitconv.inference.appearance.describe`, (images, numbers).

        The most probable class is always in the set, which so is never empty.
        """
        probabilities = softmax(logits.astype(np.float64) / self.temperature)
        sets = probabilities >= self.least
        sets[np.arange(len(sets)), logits.argmax(axis=1)] = True
        # What cannot be compared with the limit, as it is not a number, is above it.
        scores = self.oddness.scores(logits, appearance)
        return Judgement(probabilities, sets, ~(scores <= self.oddness.limit), self.oddness.ranks(scores))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as :func:`read_certainty` reads it."""
        matrices = {name: _encoded(getattr(self.oddness, name)) for name in _MATRICES}
        return {
            "temperature": self.temperature,
            "coverage": self.coverage,
            "least_probability": self.least,
            "oddness": {
                "score": self.oddness.score,
                "limit": self.oddness.limit,
                "percentiles": self.oddness.percentiles.tolist(),
                **matrices,
            },
        }

    def __repr__(self) -> str:
        return f"Certainty(temperature {self.temperature:.3g}, coverage {self.coverage:g}, {self.oddness!r})"


def judge(certainty: Certainty | None, logits: NDArray[np.float32], pixels: NDArray[np.float32]) -> Judgement | None:
    """What is said of images beside their logits; ``None`` if the model is not calibrated, or they are not finite.

    Args:
        certainty: what is known of the model; ``None`` if it is not calibrated.
        logits: float32, (images, classes).
        pixels: what they are of: float32, (images, channels, height, width).
    """
    if certainty is None or not np.isfinite(logits).all():
        return None
    return certainty.judge(logits, describe(pixels))


_MATRICES = ("centres", "whitening")
#: The most bytes of ``calibration.json``: that of 1,000 classes, the most that have matrices, has 22 million.
_MOST_RECORD = 2**25
#: What a temperature lies between: :func:`vitconv.calibration.fitting.fit_temperature` looks no further.
_TEMPERATURES = (math.exp(-11), math.exp(11))


def _encoded(values: NDArray[np.float64]) -> str:
    """A matrix as text: its float64 values, little-endian, in base64. As decimals it would be twice as long."""
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def _decoded(text: str, rows: int, columns: int) -> NDArray[np.float64]:
    """A matrix of :func:`_encoded`; ValueError if it has another shape, or a number is not finite."""
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a matrix has numbers that are not finite")
    return values.reshape(rows, columns)


def identity(info: ModelInfo) -> dict[str, Any]:
    """What a calibration belongs to: the model's numbers, and what computes them."""
    return {"fingerprint": info.fingerprint, "runtime": info.runtime, "settings": dict(info.settings)}


def read_certainty(info: ModelInfo, processor: str | None = None) -> Certainty | None:
    """What ``calibration.json`` in a model's folder says; ``None`` if the model is not calibrated.

    Args:
        info: the model.
        processor: what makes the pixels: see :func:`vitconv.inference.open_preprocessor`. ``None``: any.

    Raises:
        CheckpointError: the file is damaged, was edited, belongs to another model or to other pixels, or a later
            vitconv has written it.
    """
    path = info.folder / CALIBRATION_FILE
    if not os.path.lexists(path):
        return None
    content = read_record(path)
    model = content.get("model")
    if not isinstance(model, dict) or {name: model.get(name) for name in identity(info)} != identity(info):
        raise CheckpointError(
            f"'{path}' was made for another model: not for these weights, this runtime and its settings.", _AGAIN
        )
    if processor is not None and content.get("processor") != processor:
        raise CheckpointError(
            f"'{path}' was made with the processor {shown(content.get('processor'))}, and these images are prepared "
            f"by '{processor}'.",
            "Pass the same --processor, or run `vitconv calibrate` again.",
        )
    try:
        return _certainty(content, info)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise CheckpointError(
            f"'{path}' is not a record that vitconv has written: {shown(str(error))}.", _AGAIN
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """All that a ``calibration.json`` says, as it is.

    Raises:
        CheckpointError: it is damaged, was edited, or a later vitconv has written it.
    """
    content = read_json(path, _MOST_RECORD)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"'{path}' has the schema {shown(content.get('schema'))}, and this vitconv reads {SCHEMA}.",
            "Install the vitconv that wrote it, or run `vitconv calibrate` again.",
        )
    if content.pop("seal", None) != seal(content):
        raise CheckpointError(f"'{path}' has been edited since `vitconv calibrate` wrote it.", _AGAIN)
    return content


def seal(content: Mapping[str, Any]) -> str:
    """The SHA-256 of what the file says, which tells an edited file; it keeps out no one who means harm."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _certainty(content: Mapping[str, Any], info: ModelInfo) -> Certainty:
    """What the content says; KeyError, TypeError or ValueError where that cannot be."""
    oddness, classes = content["oddness"], len(info.classes)
    score = oddness["score"]
    if score not in SCORES:
        raise ValueError(f"its score is {shown(score)}")
    width = {"mahalanobis": classes + count(info.input_shape), "mahalanobis-logits": classes}.get(score, 0)
    centres = _decoded(oddness["centres"], classes if width else 0, width)
    whitening = _decoded(oddness["whitening"], width, width)
    return Certainty(
        temperature=_number(content, "temperature", *_TEMPERATURES),
        coverage=_number(content, "coverage", 0, 1),
        least=_number(content, "least_probability", -math.inf, math.inf),
        oddness=Oddness(
            score, _number(oddness, "limit", -math.inf, math.inf), centres, whitening, _percentiles(oddness)
        ),
    )


def _percentiles(oddness: Mapping[str, Any]) -> NDArray[np.float64]:
    values = [_number({"percentiles": one}, "percentiles", -math.inf, math.inf) for one in oddness["percentiles"]]
    if len(values) != len(LEVELS) or sorted(values) != values:
        raise ValueError(f"its `percentiles` are not {len(LEVELS)} numbers in their order")
    return np.array(values)


def _number(content: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise ValueError(f"its `{name}` is {shown(value)}")
    return float(value)
