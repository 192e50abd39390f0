"""Messages for the tests of brokers, and how to get all of them."""

from __future__ import annotations

import time

from vitconv.messaging import Broker, Message, image_message

#: Seconds for which a batch waits.
SOON = 0.05


def pull_all(broker: Broker, count: int, seconds: float = 30) -> list[Message]:
    """Pull until there are so many, or for so long."""
    found: list[Message] = []
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        found += broker.pull(count - len(found), SOON)
    return found


def messages(count: int, start: int = 0) -> list[Message]:
    """Messages with the ids m0, m1…"""
    return [image_message(bytes([i % 256, 0, 255]) * i, f"m{i}") for i in range(start, start + count)]
