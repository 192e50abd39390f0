"""What Prometheus reads of anything that serves a model: which model it is, and what it answers.

Figures that tell how its images and answers change are counters and histograms, so that Prometheus adds up those of
all copies, and of any time. Libraries for drift want the data of all images in one process instead, and much around
it: evidently 0.7 a web framework and telemetry; nannyml 0.13 LightGBM, telemetry, and a Python below 3.13;
alibi-detect 0.13 numpy below 2, Transformers below 5, and for production a licence that is paid for.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from vitconv.checkpoints.checkpoint import CALIBRATION_FILE, is_optimized
from vitconv.errors import VitconvError
from vitconv.inference.optimized import read_record

if TYPE_CHECKING:
    from pathlib import Path

    from vitconv.inference.answers import Answer
    from vitconv.serving.classifier import Classifier

#: What becomes of an image: an answer; nothing, as it cannot be read or is too large; nothing, by no fault of its own.
ANSWER, UNREADABLE, FAILED = "answer", "unreadable", "failed"
#: Of more classes, answers are counted together: each class would be two series in every copy.
MOST_CLASSES = 100
_TENTHS = tuple(i / 10 for i in range(1, 11))
_RELIABLE = {True: "true", False: "false", None: "unknown"}


class ModelMetrics:
    """The figures of a model that is served. Threads may share it.

    Args:
        classifier: the model.
        version: of vitconv.

    Attributes:
        registry: for further figures.
    """

    def __init__(self, classifier: Classifier, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        info, calibrated = classifier.info, classifier.certainty is not None
        Info("vitconv_model", "What is served.", registry=registry).info({
            "name": info.folder.name,
            "fingerprint": info.fingerprint,
            "runtime": info.runtime,
            "vitconv": version,
        })  # fmt: skip
        if (seconds := written(info.folder)) is not None:
            name, text = "vitconv_model_written_timestamp_seconds", "When the model's folder was written."
            Gauge(name, text, registry=registry).set(seconds)

        # Each series is there with 0 from the start: else no rate could be computed of its first.
        images = Counter("vitconv_images", "Images by what became of them.", ("outcome",), registry=registry)
        self._images = {outcome: images.labels(outcome) for outcome in (ANSWER, UNREADABLE, FAILED)}
        self._by_class = len(info.classes) <= MOST_CLASSES
        answers = Counter(
            "vitconv_answers", "Answers by class, and whether reliable.", ("class", "reliable"), registry=registry
        )
        self._answers = {
            (name, reliable): answers.labels(name, _RELIABLE[reliable])
            for name in (info.classes if self._by_class else [""])
            for reliable in ((True, False) if calibrated else (None,))
        }
        self._probability = Histogram(
            "vitconv_answer_probability",
            "The probability of the class that is answered, calibrated if the model is.",
            buckets=_TENTHS,
            registry=registry,
        )
        self._rank: Histogram | None = None
        if calibrated:
            self._rank = Histogram(
                "vitconv_oddness_rank",
                "The share of the calibration's images that are less odd than this one.",
                buckets=_TENTHS,
                registry=registry,
            )

    def count_answer(self, answer: Answer) -> None:
        """Count an image that was answered."""
        self._images[ANSWER].inc()
        self._answers[answer.name if self._by_class else "", answer.reliable].inc()
        calibrated = answer.calibrated_probability
        self._probability.observe(answer.probability if calibrated is None else calibrated)
        if self._rank is not None and answer.oddness_rank is not None:
            self._rank.observe(answer.oddness_rank)

    def count_failure(self, outcome: str) -> None:
        """Count an image that was not.

        Args:
            outcome: :data:`UNREADABLE` or :data:`FAILED`.
        """
        self._images[outcome].inc()

    def text(self) -> bytes:
        """All figures, in Prometheus' format."""
        return generate_latest(self.registry)


def written(folder: Path) -> float | None:
    """When a model's folder was written, in seconds since 1970; ``None`` if it is gone.

    An optimised folder's record says it. ``parity.json`` does not, so of a converted folder it is when the newest of
    its files was written here: a copy that does not keep times makes it younger. A calibration makes no new model.
    """
    with suppress(OSError, VitconvError, KeyError, TypeError, ValueError):
        if is_optimized(folder):
            return datetime.fromisoformat(read_record(folder)[1]["date"]).timestamp()
    with suppress(OSError, ValueError):
        files = (file for file in folder.iterdir() if file.is_file() and file.name != CALIBRATION_FILE)
        return max(file.stat().st_mtime for file in files)
    return None
