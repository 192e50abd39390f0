"""The worker: it pulls messages, answers them, sends the results, and acknowledges."""

from __future__ import annotations

import errno
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vitconv.inference.machine import cores
from vitconv.messaging.broker import Broker, BrokerError, Message, RefusedError
from vitconv.messaging.results import Result, dead_letter, result_of, smaller
from vitconv.serving.probe import sample_file
from vitconv.serving.workers import Workers, check_limits, default_count, torch_threads

if TYPE_CHECKING:
    from vitconv.inference.answers import Answer
    from vitconv.serving.classifier import Classifier

T = TypeVar("T")
_log = logging.getLogger("vitconv.messaging")
#: What a message came to: an answer; a result that says what is wrong with the image; given up; to be tried again.
OUTCOMES = ("answer", "error", "dead_letter", "retry")
_TRIED = "It was begun again and again, and never finished: it may end the process that reads it."
#: Seconds of the longest pause before something is tried again.
_LONGEST_PAUSE = 30.0
#: How often a file is tried to be read before its message counts as tried: 0.1 s, 0.2 s… between them, 6 s together.
_READS = 7


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker works.

    Attributes:
        batch: the most messages that are pulled, answered and acknowledged together.
        wait: seconds to wait for a batch to be full.
        tries: a message that came to nothing so often goes to the dead letters.
        root: the folder that messages may name files in; ``None`` for none.
        workers: how many images are computed at once.
        cores: which they share.
    """

    batch: int = 8
    wait: float = 0.05
    tries: int = 5
    root: Path | None = None
    workers: int = field(default_factory=default_count)
    cores: int = field(default_factory=cores)

    def __post_init__(self) -> None:
        """Raise :class:`~vitconv.errors.InputError` for what is no number of workers."""
        check_limits(self.workers)


@dataclass(frozen=True)
class Delivery:
    """A message and what is sent for it.

    Attributes:
        message: that is acknowledged once the result is accepted.
        result: the result, or the dead letter.
        is_dead_letter: which of the two.
        answer: the one in the result, if there is one.
    """

    message: Message
    result: Message
    is_dead_letter: bool = False
    answer: Answer | None = None

    @property
    def outcome(self) -> str:
        """One of :data:`OUTCOMES`."""
        return "dead_letter" if self.is_dead_letter else self.result.attributes["ce-type"].removeprefix("vitconv.")


@dataclass
class _Begun:
    """A message that is being answered."""

    message: Message
    since: float
    result: Future[Result]


@dataclass
class State:
    """What a worker is doing, for those who watch it.

    Attributes:
        seen: when it last did something, in :func:`time.monotonic`'s seconds.
        problem: the error of a broker that it waits for; ``None`` while all answer.
        in_work: how many messages it has.
    """

    seen: float = field(default_factory=time.monotonic)
    problem: BrokerError | None = field(
        default_factory=lambda: BrokerError("The worker has not reached its broker yet.", "Wait.")
    )
    in_work: int = 0


class Worker:
    """Answers the messages of a topic until it is told to stop.

    While a batch is computed, the next one is pulled: never more. Each image goes through the model by itself, in one
    of several threads, as in `vitconv serve`: in a batch, the last bits of its logits would depend on its neighbours,
    and the result of a message that is delivered twice would not be the same.

    Args:
        classifier: the model.
        source: where the messages come from.
        target: where the results go.
        dead_letters: where messages go that come to nothing.
        settings: how it works.
        deliver: sends results and acknowledges their messages; by default, the latter after the former.

    Attributes:
        on_done: called for every message with its outcome, what was wrong if it is not a result, the seconds since it
            came, and the answer if there is one.
        state: what it is doing.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: Broker,
        target: Broker,
        dead_letters: Broker,
        settings: WorkerSettings | None = None,
        *,
        deliver: Callable[[Sequence[Delivery]], None] | None = None,
    ) -> None:
        self.settings = settings = settings or WorkerSettings()
        self.classifier = classifier
        self._source, self._target, self._dead = source, target, dead_letters
        self._deliver = deliver or self._send_and_acknowledge
        self.on_done: Callable[[Message, str, str, float, Answer | None], None] = lambda *what: None
        self._stopped = threading.Event()
        self.state = State()
        threads = torch_threads(classifier, settings.workers, settings.cores, sample_file())
        self._workers = Workers(settings.workers, 2 * settings.batch, threads)

    def stop(self) -> None:
        """Pull no more; :meth:`run` returns when what was pulled is done. Any thread or signal handler may call it."""
        self._stopped.set()

    def run(self) -> None:
        """Work until :meth:`stop`.

        Raises:
            InputError: a broker refuses: there is no such topic, or no right to use it.
        """
        begun: list[_Begun] = []
        try:
            for broker in (self._source, self._target, self._dead):
                self._patiently(broker.check)
            while not self._stopped.is_set():
                following = [self._begin(message) for message in self._patiently(self._pull) or []]
                self._finish(begun)
                begun = following
            self._finish(begun)
        finally:
            self._stopped.set()
            self._workers.drain()

    def _pull(self) -> list[Message]:
        return self._source.pull(self.settings.batch, self.settings.wait)

    def _begin(self, message: Message) -> _Begun:
        self.state.in_work += 1
        since = time.monotonic()
        if problem := message.problem or (_TRIED if message.attempt > self.settings.tries else ""):
            hopeless: Future[Result] = Future()
            hopeless.set_exception(_HopelessError(problem))
            return _Begun(message, since, hopeless)
        return _Begun(message, since, self._workers.enqueue(lambda: self._answer(message), math.inf))

    def _answer(self, message: Message) -> Result:
        for number in range(_READS):
            try:
                return result_of(message, self.classifier, self.settings.root)
            except OSError as error:  # of the machine, or of a disk in the network
                if number == _READS - 1 or error.errno in (errno.EACCES, errno.EPERM):  # which no wait changes
                    raise
                _log.warning("%s: %s", message.id, error)
                self._stopped.wait(0.1 * 2**number)
        raise AssertionError

    def _finish(self, begun: list[_Begun]) -> None:
        """Wait for results, send them, and acknowledge their messages. What cannot be sent will be delivered again."""
        if not begun:
            return
        done: list[tuple[_Begun, Delivery, str]] = []
        again: list[tuple[_Begun, str]] = []
        for one in begun:
            try:
                result = one.result.result()
                done.append((one, Delivery(one.message, result.message, answer=result.answer), ""))
            except Exception as error:
                hopeless = isinstance(error, _HopelessError)
                problem = str(error) if hopeless else f"{type(error).__name__}: {error}"
                if one.message.attempt < self.settings.tries and not hopeless:
                    again.append((one, problem))
                else:
                    letter = dead_letter(one.message, problem)
                    done.append((one, Delivery(one.message, letter, is_dead_letter=True), problem))

        delivered = self._patiently(lambda: self._deliver_all(done)) if done else None
        if delivered:
            for one, delivery, problem in done:
                self._report(one, delivery.outcome, problem, delivery.answer)
        if again:
            self._patiently(lambda: self._source.nack([one.message for one, _ in again]))
            for one, problem in again:
                self._report(one, "retry", problem)
        self.state.in_work -= len(begun)

    def _deliver_all(self, done: list[tuple[_Begun, Delivery, str]]) -> bool:
        """Deliver results and dead letters: of a letter that its topic refuses, as much as it takes.

        A result that is refused is the fault of no message: its size depends on the model.
        """
        while True:
            try:
                self._deliver([delivery for _, delivery, _ in done])
                return True
            except RefusedError as error:
                refused = (
                    i for i, (_, sent, _) in enumerate(done) if sent.is_dead_letter and sent.result is error.message
                )
                place = next(refused, None)
                letter = None if place is None else smaller(error.message)
                if place is None or letter is None:
                    raise
                one, delivery, problem = done[place]
                _log.warning("%s: %s", one.message.id, error.problem)
                done[place] = (one, replace(delivery, result=letter), problem)

    def _report(self, one: _Begun, outcome: str, problem: str, answer: Answer | None = None) -> None:
        self.on_done(one.message, outcome, problem, time.monotonic() - one.since, answer)

    def _send_and_acknowledge(self, done: Sequence[Delivery]) -> None:
        # One by one, letters first: one that is refused is sent again in a smaller form, and the results only once.
        for one in done:
            if one.is_dead_letter:
                self._dead.publish([one.result])
        if results := [one.result for one in done if not one.is_dead_letter]:
            self._target.publish(results)
        self._source.ack([one.message for one in done])

    def _patiently(self, what: Callable[[], T]) -> T | None:
        """Do something as soon as the broker lets it be done; ``None`` if the worker is to stop before.

        It is tried at least once. The pauses double, and vary, so that many workers do not come back at once.
        """
        pause = 0.1
        while True:
            self.state.seen = time.monotonic()
            try:
                done = what()
            except BrokerError as error:
                if self.state.problem is None or str(error) != str(self.state.problem):
                    _log.warning("%s", error.problem)
                self.state.problem = error
            else:
                if self.state.problem is not None:
                    _log.info("The broker answers.")
                self.state.problem = None
                self.state.seen = time.monotonic()
                return done
            if self._stopped.wait(pause * random.uniform(0.5, 1)):
                return None
            pause = min(2 * pause, _LONGEST_PAUSE)


class _HopelessError(Exception):
    """A message that is given up without another try."""
