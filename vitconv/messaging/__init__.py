"""A classifier behind a queue: one interface to Apache Kafka and Google Pub/Sub, and the worker that answers.

>>> from vitconv.messaging import connect, image_message
>>> with connect("memory://example?topic=images&group=readers") as broker:
...     broker.publish([image_message(b"...", "photo-1")])
...     (message,) = broker.pull(8, 0.05)
...     broker.ack([message])
>>> message.id
'photo-1'

Kafka and Pub/Sub need `pip install -e '.[queue]'` in vitconv's clone. docs/queue.md says what is guaranteed.
"""

from typing import TYPE_CHECKING

from vitconv.inference.optional import load
from vitconv.messaging.broker import Broker, BrokerError, Message, RefusedError, event, image_message
from vitconv.messaging.urls import connect, place_of

if TYPE_CHECKING:
    from vitconv.messaging.kafka import Transactions
    from vitconv.messaging.watch import watched
    from vitconv.messaging.worker import Worker, WorkerSettings

__all__ = [
    "Broker",
    "BrokerError",
    "Message",
    "RefusedError",
    "Transactions",
    "Worker",
    "WorkerSettings",
    "connect",
    "event",
    "image_message",
    "place_of",
    "watched",
]

#: Where what needs torch or other packages is, and the packages, by the names that Python imports.
_LATER = {
    "Transactions": ("kafka", ["confluent_kafka"]),
    "watched": ("watch", ["fastapi", "uvicorn", "httptools", "prometheus_client"]),
    "Worker": ("worker", []),
    "WorkerSettings": ("worker", []),
}


def __getattr__(name: str) -> object:
    """Import the rest when it is asked for: without the packages, it says so when it is called."""
    if name in _LATER:
        module, packages = _LATER[name]
        return load(f"vitconv.messaging.{module}", name, packages, "queue")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
