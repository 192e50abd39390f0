"""What Prometheus reads of a worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from vitconv.messaging.worker import OUTCOMES
from vitconv.serving.metrics import FAILED, UNREADABLE, ModelMetrics

if TYPE_CHECKING:
    from vitconv.inference.answers import Answer
    from vitconv.messaging.worker import State
    from vitconv.serving.classifier import Classifier

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 60)
#: What an image without an answer counts as, by its message's outcome.
_FAILURES = {"error": UNREADABLE, "dead_letter": FAILED}


class Metrics(ModelMetrics):
    """The figures of one worker.

    Args:
        state: what it is doing.
        classifier: the model.
        version: of vitconv.
    """

    def __init__(self, state: State, classifier: Classifier, version: str) -> None:
        super().__init__(classifier, version)
        registry = self.registry
        self._messages = Counter("vitconv_messages", "Messages by what they came to.", ("outcome",), registry=registry)
        for outcome in OUTCOMES:  # 0, not absent, so that a rate can be computed of the first
            self._messages.labels(outcome)
        self._seconds = Histogram(
            "vitconv_message_seconds",
            "From when a message was pulled until it was acknowledged.",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, text, value in (
            ("vitconv_messages_in_work", "Messages that are pulled and not acknowledged.", lambda: state.in_work),
            ("vitconv_broker_up", "1, or 0 while the worker waits for a broker.", lambda: state.problem is None),
            ("vitconv_idle_seconds", "Since the worker last did something.", lambda: time.monotonic() - state.seen),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def observe(self, outcome: str, seconds: float, answer: Answer | None = None) -> None:
        """Count a message, and its image unless it will be tried again.

        Args:
            outcome: one of :data:`vitconv.messaging.worker.OUTCOMES`.
            seconds: since it came.
            answer: of its image; ``None`` if there is none.
        """
        self._messages.labels(outcome).inc()
        self._seconds.observe(seconds)
        if answer is not None:
            self.count_answer(answer)
        elif outcome in _FAILURES:
            self.count_failure(_FAILURES[outcome])
