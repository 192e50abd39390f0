"""A message, and the one interface to every broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from vitconv.errors import InputError, VitconvError, shown
from vitconv.files import is_unicode

#: Bytes of the longest id. Results have it several times, and Pub/Sub takes no longer attribute.
MOST_ID = 1024


class BrokerError(VitconvError):
    """The broker does not do it now. The same call may succeed later."""


class RefusedError(InputError):
    """The broker never takes this message: it is too large, or has attributes that the broker does not know.

    Attributes:
        message: which of those that were sent.
    """

    def __init__(self, problem: str, remedy: str, message: Message) -> None:
        super().__init__(problem, remedy)
        self.message = message


@dataclass(frozen=True)
class Message:
    """What a broker carries.

    Attributes:
        content: any bytes, such as those of an image file.
        attributes: text by name. Those of CloudEvents begin with ``ce-``; ``content-type`` says what the content is.
        key: Kafka keeps messages of one key in order, and a compacted topic the last of them. Others ignore it.
        attempt: which delivery this is, from 1. Above 1, an earlier one was not acknowledged.
        receipt: what the broker knows it by; ``None`` before it was delivered.
        problem: why it cannot be answered, whatever its content is; empty if nothing is wrong with how it came.
    """

    content: bytes = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    attempt: int = field(default=1, compare=False)
    receipt: Any = field(default=None, repr=False, compare=False)
    problem: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """CloudEvents' `id`. Without one, or with one that is too long, a message has the broker's own."""
        return self.attributes["ce-id"]


def event(content: bytes, id: str, *, source: str, type: str, content_type: str, key: str = "") -> Message:
    """A message with the attributes that CloudEvents 1.0 wants. `source` and `id` together tell it from all others."""
    attributes = {
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-source": source,
        "ce-type": type,
        "content-type": content_type,
    }
    return Message(content, attributes, key)


def image_message(image: bytes, id: str, *, source: str = "vitconv") -> Message:
    """A message that asks for the answer on an image.

    Args:
        image: the content of a file: JPEG, PNG, WebP…
        id: the result has it, too. Two images need two ids.
        source: who asks, as a URI reference.

    Raises:
        InputError: no broker takes the id.
    """
    if not is_unicode(id):  # as the name of a file may be
        raise InputError(f"The id {shown(id)} cannot be written as UTF-8.", "Give the image another one.")
    return event(image, id, source=source, type="vitconv.image", content_type="application/octet-stream", key=id)


def arrived(
    content: bytes, attributes: dict[str, str] | None, otherwise: str, *, key: str, receipt: Any, attempt: int = 1
) -> Message:
    """A message as a broker delivers it. It has an id that is not longer than :data:`MOST_ID`.

    Args:
        attributes: as they came; ``None`` if they cannot be read.
        otherwise: the broker's own name for the message: its id where it has none that can be used.
        content, key, receipt, attempt: see :class:`Message`.
    """
    if attributes is None:
        attributes, problem = {}, "Its headers cannot be read: the name of one is not UTF-8."
    else:
        size = len(attributes.get("ce-id", "").encode(errors="replace"))
        problem = (
            f"Its id, {shown(attributes['ce-id'])}, has {size:,} bytes, and may have {MOST_ID:,}."
            if size > MOST_ID
            else ""
        )
    if problem or not attributes.get("ce-id"):
        attributes = {**attributes, "ce-id": otherwise}
    return Message(content, attributes, key, attempt, receipt, problem)


class Broker(Protocol):
    """A topic, and perhaps the right to read it as one of a group. For one thread at a time.

    It delivers **at least once**: what was pulled and not acknowledged is delivered again, to this reader or another.
    A message of an earlier, failed delivery comes alone, and only after all others are settled: if it ends the
    process again, it is to blame and not its neighbours.
    """

    def check(self) -> None:
        """Ask the broker whether it is there.

        Raises:
            BrokerError: it does not answer.
            InputError: there is no such topic or subscription, or it may not be used.
        """

    def publish(self, messages: Sequence[Message]) -> None:
        """Send messages, and return when the broker has accepted all of them.

        Raises:
            BrokerError: it did not accept all: some may have arrived.
            RefusedError: it never accepts one of them, as it is. Some of the others may have arrived.
            InputError: it never accepts any: the topic is gone, or may not be used.
        """

    def pull(self, most: int, wait: float) -> list[Message]:
        """Messages that were not pulled yet: as soon as there are `most` of them, or what came in `wait` seconds.

        Raises:
            BrokerError: it does not answer.
            InputError: the topic or the subscription is gone.
        """

    def ack(self, messages: Sequence[Message]) -> None:
        """Never deliver these again. To acknowledge one twice, or one that went to another reader, changes nothing.

        Raises:
            BrokerError: it does not answer. Call it again.
        """

    def nack(self, messages: Sequence[Message]) -> None:
        """Deliver these again, with the next attempt."""

    def close(self) -> None:
        """Give back what is not acknowledged, and disconnect."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Closing:
    """What a broker needs for a ``with`` statement."""

    def close(self) -> None:
        """See :meth:`Broker.close`."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
