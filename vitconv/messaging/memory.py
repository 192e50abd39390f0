"""A broker within the process, for the tests of programs that send and receive messages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vitconv.errors import InputError
from vitconv.messaging.broker import Closing, Message, arrived
from vitconv.messaging.turns import Turns


class _Topic:
    """All that was ever sent to a topic, and how far each group has read."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.read: dict[str, int] = {}
        self.again: dict[str, deque[Message]] = {}
        self.changed = threading.Condition()


_topics: dict[tuple[str, str], _Topic] = {}
_lock = threading.Lock()


def clear() -> None:
    """Forget every message of every broker."""
    with _lock:
        _topics.clear()


class MemoryBroker(Closing):
    """See :class:`vitconv.messaging.Broker`. A group reads a topic from its beginning, as with Kafka.

    Args:
        name: brokers of one name share their topics.
        topic: to send to and to read.
        group: readers of one group share the messages; empty for one that only sends.
    """

    def __init__(self, name: str, topic: str, group: str = "") -> None:
        with _lock:
            self._topic = _topics.setdefault((name, topic), _Topic())
        self._name, self._group = topic, group
        self._turns = Turns()

    def check(self) -> None:
        """It is always there."""

    def publish(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.publish`."""
        with self._topic.changed:
            for message in messages:
                number = len(self._topic.sent)
                name, attributes = f"{self._name}/{number}", dict(message.attributes)
                self._topic.sent.append(arrived(message.content, attributes, name, key=message.key, receipt=number))
            self._topic.changed.notify_all()

    def pull(self, most: int, wait: float) -> list[Message]:
        """See :meth:`vitconv.messaging.Broker.pull`."""
        if not self._group:
            raise InputError("Nothing can be pulled without a group.", "Add &group=NAME to the URL.")
        return self._turns.pull(most, wait, self._fetch)

    def _fetch(self, count: int, seconds: float) -> None:
        with self._topic.changed:
            self._topic.changed.wait_for(self._waiting, seconds)
            again = self._topic.again.setdefault(self._group, deque())
            for _ in range(count):
                if again:
                    self._turns.add(again.popleft())
                elif (place := self._topic.read.get(self._group, 0)) < len(self._topic.sent):
                    self._turns.add(self._topic.sent[place])
                    self._topic.read[self._group] = place + 1

    def _waiting(self) -> bool:
        read = self._topic.read.get(self._group, 0)
        return bool(self._topic.again.get(self._group)) or read < len(self._topic.sent)

    def ack(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.ack`."""
        for message in messages:
            self._turns.settle(message)

    def nack(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.nack`."""
        for message in filter(self._turns.settle, messages):
            self._give_back(replace(message, attempt=message.attempt + 1))

    def close(self) -> None:
        """See :meth:`vitconv.messaging.Broker.close`. As when a reader dies, what it had is delivered again."""
        held = list(self._turns.out)
        self.nack(held)
        self._turns.forget(partial(self._return_unread))

    def _return_unread(self, message: Message) -> bool:
        self._give_back(message)
        return True

    def _give_back(self, message: Message) -> None:
        with self._topic.changed:
            self._topic.again.setdefault(self._group, deque()).append(message)
            self._topic.changed.notify_all()
