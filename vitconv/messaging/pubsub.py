"""Google Cloud Pub/Sub, by Google's own library.

A stream brings the messages; the library keeps what is not acknowledged from being delivered to others. How often a
message was delivered, Pub/Sub says only of subscriptions with a dead-letter policy.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from typing import Any

from google import pubsub_v1 as plain
from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1

from vitconv.errors import InputError, VitconvError, shown
from vitconv.messaging.broker import BrokerError, Closing, Message, RefusedError, arrived
from vitconv.messaging.turns import Turns

_log = logging.getLogger("vitconv.messaging")
#: Seconds after which a broker that does not answer is taken for absent.
PATIENCE = 15.0
#: Seconds for which the library keeps a message for this reader at most; then another one gets it.
_LONGEST = 3600.0
#: Pub/Sub's limits: bytes and messages of a request; a message's attributes, and the bytes of their names and values.
_MOST_REQUEST = 10_000_000
_MOST_MESSAGES = 1000
_MOST_ATTRIBUTES, _MOST_NAME, _MOST_VALUE = 100, 256, 1024
_COUNT = "Give the subscription a dead-letter policy (gcloud pubsub subscriptions update --dead-letter-topic=…)."


class PubSubBroker(Closing):
    """See :class:`vitconv.messaging.Broker`. It connects when it is first used.

    Args:
        project: of Google Cloud.
        topic: to send to.
        subscription: to read; empty for one that only sends.
        most: how many messages may be pulled and not acknowledged.
    """

    def __init__(self, project: str, topic: str, subscription: str = "", most: int = 16) -> None:
        self.topic = f"projects/{project}/topics/{topic}"
        self.subscription = subscription and f"projects/{project}/subscriptions/{subscription}"
        self._most = most
        self._publisher: Any = None
        self._subscriber: Any = None
        self._stream: Any = None
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._turns = Turns()

    @property
    def publisher(self) -> Any:
        """The library's client for sending."""
        if self._publisher is None:
            self._publisher = self._call(pubsub_v1.PublisherClient)
        return self._publisher

    @property
    def subscriber(self) -> Any:
        """The library's client for reading."""
        if not self.subscription:
            raise InputError("Nothing can be pulled without a subscription.", "Add ?subscription=NAME to the URL.")
        if self._subscriber is None:
            self._subscriber = self._call(pubsub_v1.SubscriberClient)
        return self._subscriber

    def check(self) -> None:
        """See :meth:`vitconv.messaging.Broker.check`.

        Raises:
            InputError: also if the subscription has no dead-letter policy: its messages' attempts are not counted.
        """
        if not self.subscription:
            request = {"topic": self.topic}
            self._call(lambda: self.publisher.get_topic(request=request, retry=None, timeout=PATIENCE))
            return
        request = {"subscription": self.subscription}
        found = self._call(lambda: self.subscriber.get_subscription(request=request, retry=None, timeout=PATIENCE))
        if found.topic != self.topic:
            raise InputError(
                f"The subscription '{self.subscription}' is one of '{found.topic}', not of '{self.topic}'.",
                "Name the topic and its subscription.",
            )
        if not found.dead_letter_policy.dead_letter_topic:
            raise InputError(f"Pub/Sub does not count the deliveries of '{self.subscription}'.", _COUNT)

    def publish(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.publish`."""
        for request in self._requests(messages):
            again = retry.Retry(retry.if_transient_error, initial=0.1, timeout=PATIENCE)

            def send(request: Any = request, again: Any = again) -> None:
                # The library's own method takes attributes as keywords: one named `topic` could not be sent.
                plain.PublisherClient.publish(self.publisher, request=request, retry=again, timeout=PATIENCE)

            try:
                self._call(send)
            except InputError as error:
                if isinstance(error.__cause__, exceptions.InvalidArgument) and len(messages) == 1:
                    raise RefusedError(error.problem, error.remedy, messages[0]) from error
                raise

    def _requests(self, messages: Sequence[Message]) -> Iterator[Any]:
        """The requests that send messages, each within Pub/Sub's limits.

        Raises:
            RefusedError: a message is not.
        """
        empty = len(self.topic) + 8
        request, size = plain.PublishRequest(topic=self.topic), empty
        for message in messages:
            made = plain.PubsubMessage(data=message.content, attributes=dict(message.attributes))
            bytes_ = plain.PubsubMessage.pb(made).ByteSize() + 8  # the length of each part is sent, too
            if why := _refused(message, empty + bytes_):
                raise RefusedError(f"'{self.topic}' does not take a message: {why}.", "Send less.", message)
            if request.messages and (size + bytes_ > _MOST_REQUEST or len(request.messages) == _MOST_MESSAGES):
                yield request
                request, size = plain.PublishRequest(topic=self.topic), empty
            request.messages.append(made)
            size += bytes_
        if request.messages:
            yield request

    def pull(self, most: int, wait: float) -> list[Message]:
        """See :meth:`vitconv.messaging.Broker.pull`."""
        if self._stream is None:
            # What the library holds back counts for it: without a second batch, a reader would wait for the broker.
            self._stream = self.subscriber.subscribe(
                self.subscription,
                self._arrived.put,
                flow_control=pubsub_v1.types.FlowControl(max_messages=self._most, max_lease_duration=_LONGEST),
                await_callbacks_on_shutdown=True,
            )
        taken = self._turns.pull(most, wait, self._fetch)
        if not taken and self._stream.done():
            ended, self._stream = self._stream, None
            self._call(lambda: ended.result(0))
        return taken

    def _fetch(self, count: int, seconds: float) -> None:
        while count and not (self._arrived.empty() and seconds <= 0):
            try:
                found = self._arrived.get(timeout=max(seconds, 0.001))
            except queue.Empty:
                return
            name, attributes, attempt = found.message_id, dict(found.attributes), found.delivery_attempt or 1
            key = found.ordering_key
            self._turns.add(arrived(found.data, attributes, name, key=key, receipt=found, attempt=attempt))
            count, seconds = count - 1, 0

    def ack(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.ack`."""
        self._settle(messages, lambda found: found.ack_with_response())

    def nack(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.nack`."""
        self._settle(messages, lambda found: found.nack_with_response())

    def _settle(self, messages: Sequence[Message], how: Callable[[Any], Future[Any]]) -> None:
        sent = [how(message.receipt) for message in messages if self._turns.settle(message)]
        for future in sent:
            try:
                future.result(PATIENCE)
            except Exception as error:  # it is delivered again: at least once
                _log.info("%s: not settled: %s: %s", self.subscription, type(error).__name__, error)

    def close(self) -> None:
        """See :meth:`vitconv.messaging.Broker.close`."""
        if self._stream is not None:
            while not self._arrived.empty():
                self._arrived.get().nack()
            self._turns.forget(lambda message: message.receipt.nack() is None)
            self._stream.cancel()
            try:
                self._stream.result(PATIENCE)
            except Exception as error:
                _log.info("%s: %s: %s", self.subscription, type(error).__name__, error)
            self._stream = None
        for client in (self._subscriber, self._publisher):
            if client is not None:
                (client.stop if client is self._publisher else client.close)()
        self._subscriber = self._publisher = None

    def _call(self, what: Callable[[], Any]) -> Any:
        """Do something, with Google's exceptions turned into vitconv's."""
        try:
            return what()
        except VitconvError:
            raise
        except (GoogleAuthError, *_FINAL) as error:
            raise InputError(
                f"'{self.subscription or self.topic}' cannot be used: {error}",
                "Check the names, the credentials and their rights.",
            ) from error
        except (exceptions.GoogleAPICallError, exceptions.RetryError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise BrokerError(f"Pub/Sub does not answer: {reason}", "Check the network and Pub/Sub.") from error


def _refused(message: Message, size: int) -> str:
    """Why Pub/Sub does not take a message of so many bytes; empty if it does."""
    if size > _MOST_REQUEST:
        return f"it has {size:,} bytes, of at most {_MOST_REQUEST:,}"
    if len(message.attributes) > _MOST_ATTRIBUTES:
        return f"it has {len(message.attributes)} attributes, of at most {_MOST_ATTRIBUTES}"
    for name, value in message.attributes.items():
        if not name or name.startswith("goog") or len(name.encode()) > _MOST_NAME or len(value.encode()) > _MOST_VALUE:
            return f"its attribute {shown(name)} is empty, too long, or Google's own"
    return ""


#: Trying again does not help.
_FINAL = (exceptions.NotFound, exceptions.Forbidden, exceptions.Unauthorized, exceptions.BadRequest)
