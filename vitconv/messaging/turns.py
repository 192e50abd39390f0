"""Which of the messages that arrived may be handled at the same time."""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable

from vitconv.messaging.broker import Message


class Turns:
    """Messages that wait to be handed out, and those that are.

    A message of an earlier, failed delivery is a suspect: perhaps it ended a process. Suspects come first, one by one,
    with nothing beside them. Of several, the one with the fewest attempts comes first, since the guilty one has the
    most in the end.
    """

    def __init__(self) -> None:
        self._fresh: deque[Message] = deque()
        self._suspects: list[tuple[int, float, Message]] = []
        self._out: dict[Hashable, Message] = {}

    @property
    def out(self) -> Iterable[Message]:
        """What was handed out and is not settled."""
        return self._out.values()

    def add(self, message: Message) -> None:
        """Let a message wait; its receipt tells it from all others."""
        if message.attempt > 1:
            heapq.heappush(self._suspects, (message.attempt, random.random(), message))
        else:
            self._fresh.append(message)

    def missing(self, most: int) -> int:
        """How many more would be handed out together if they were here: 0 if waiting brings nothing."""
        return 0 if self._suspects else max(0, most - len(self._fresh))

    def take(self, most: int) -> list[Message]:
        """Hand out what may be handled now."""
        if self._suspects:
            taken = [] if self._out else [heapq.heappop(self._suspects)[2]]
        elif any(message.attempt > 1 for message in self._out.values()):
            taken = []
        else:
            taken = [self._fresh.popleft() for _ in range(min(most, len(self._fresh)))]
        self._out |= {message.receipt: message for message in taken}
        return taken

    def settle(self, message: Message) -> bool:
        """Forget one that was handed out; false if it was not, or not any more."""
        return self._out.pop(message.receipt, None) is not None

    def forget(self, gone: Callable[[Message], bool]) -> None:
        """Forget all of a kind."""
        self._fresh = deque(message for message in self._fresh if not gone(message))
        self._suspects = [entry for entry in self._suspects if not gone(entry[2])]
        heapq.heapify(self._suspects)
        self._out = {receipt: message for receipt, message in self._out.items() if not gone(message)}

    def pull(self, most: int, wait: float, fetch: Callable[[int, float], None]) -> list[Message]:
        """What :meth:`.broker.Broker.pull` returns.

        Args:
            most, wait: as there.
            fetch: adds up to so many messages, waiting for so many seconds at most.
        """
        end = time.monotonic() + wait
        left = wait
        while (count := self.missing(most)) and left >= 0:
            fetch(count, left)
            left = end - time.monotonic()
        return self.take(most)
