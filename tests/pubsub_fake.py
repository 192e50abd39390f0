"""Pub/Sub's published gRPC service, in this process: as much of it as the adapter and Google's library use.

What it leaves out: deadlines. What a reader has is delivered again if it is rejected, or a second after the reader's
stream has ended; Pub/Sub waits for ten seconds or more, whether the stream ends or not.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.cloud import pubsub_v1
from google.protobuf import empty_pb2

types = pubsub_v1.types


class _Subscription:
    def __init__(self, description: Any) -> None:
        self.description = description
        self.waiting: deque[tuple[Any, int]] = deque()  # messages, with how often they were delivered
        self.out: dict[str, tuple[Any, int, object]] = {}  # by acknowledgement id: also, by which stream


class FakePubSub:
    """A server on a free port of this machine, for a ``with`` statement.

    Attributes:
        address: for the variable PUBSUB_EMULATOR_HOST.
        refuse: while true, nothing is accepted or delivered: all calls fail as if it were away.
    """

    def __init__(self) -> None:
        self.refuse = False
        self._topics: dict[str, list[_Subscription]] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([self._publisher(), self._subscriber()])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> FakePubSub:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(0).wait()

    def make(self, project: str, topic: str, subscription: str = "", *, dead_letters: str = "dead") -> None:
        """A topic, and perhaps a subscription that reads it."""
        name = f"projects/{project}/topics/{topic}"
        with self._changed:
            readers = self._topics.setdefault(name, [])
            if subscription:
                path = f"projects/{project}/subscriptions/{subscription}"
                policy = {"dead_letter_topic": dead_letters, "max_delivery_attempts": 100} if dead_letters else {}
                made = _Subscription(types.Subscription(name=path, topic=name, dead_letter_policy=policy))
                readers.append(made)
                self._subscriptions[path] = made

    def _publisher(self) -> Any:
        def get_topic(request: Any, context: Any) -> Any:
            self._check(context, request.topic in self._topics)
            return types.Topic(name=request.topic)

        def publish(request: Any, context: Any) -> Any:
            self._check(context, request.topic in self._topics)
            ids = []
            with self._changed:
                for message in request.messages:
                    message.message_id = str(next(self._numbers))
                    ids.append(message.message_id)
                    for reader in self._topics[request.topic]:
                        reader.waiting.append((message, 0))
                self._changed.notify_all()
            return types.PublishResponse(message_ids=ids)

        return grpc.method_handlers_generic_handler(
            "google.pubsub.v1.Publisher",
            {
                "GetTopic": _unary(get_topic, types.GetTopicRequest, types.Topic),
                "Publish": _unary(publish, types.PublishRequest, types.PublishResponse),
            },
        )

    def _subscriber(self) -> Any:
        def get_subscription(request: Any, context: Any) -> Any:
            self._check(context, request.subscription in self._subscriptions)
            return self._subscriptions[request.subscription].description

        def acknowledge(request: Any, context: Any) -> Any:
            self._check(context, request.subscription in self._subscriptions)
            with self._changed:
                for name in request.ack_ids:
                    self._subscriptions[request.subscription].out.pop(name, None)
                self._changed.notify_all()
            return empty_pb2.Empty()

        def modify_deadline(request: Any, context: Any) -> Any:
            self._check(context, request.subscription in self._subscriptions)
            if request.ack_deadline_seconds == 0:
                self._again(self._subscriptions[request.subscription], set(request.ack_ids))
            return empty_pb2.Empty()

        def streaming_pull(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            first = next(requests, None)
            if first is None:  # the reader has gone already
                return
            self._check(context, first.subscription in self._subscriptions)
            reader, stream, most = self._subscriptions[first.subscription], object(), first.max_outstanding_messages
            context.add_callback(self._wake)
            threading.Thread(target=lambda: _drain(requests), daemon=True).start()
            try:
                while context.is_active():
                    with self._changed:
                        have = sum(one[2] is stream for one in reader.out.values())
                        if self.refuse or not reader.waiting or (most and have >= most):
                            self._changed.wait(0.2)
                            if self.refuse:
                                break
                            continue
                        message, count = reader.waiting.popleft()
                        name = str(next(self._numbers))
                        reader.out[name] = (message, count + 1, stream)
                    counted = bool(reader.description.dead_letter_policy.dead_letter_topic)
                    yield types.StreamingPullResponse(
                        received_messages=[
                            types.ReceivedMessage(
                                ack_id=name, message=message, delivery_attempt=count + 1 if counted else 0
                            )
                        ]
                    )
            finally:
                with self._changed:
                    left = {name for name, one in reader.out.items() if one[2] is stream}
                threading.Timer(1, self._again, (reader, left)).start()
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")

        return grpc.method_handlers_generic_handler(
            "google.pubsub.v1.Subscriber",
            {
                "GetSubscription": _unary(get_subscription, types.GetSubscriptionRequest, types.Subscription),
                "Acknowledge": _unary(acknowledge, types.AcknowledgeRequest, empty_pb2.Empty),
                "ModifyAckDeadline": _unary(modify_deadline, types.ModifyAckDeadlineRequest, empty_pb2.Empty),
                "StreamingPull": grpc.stream_stream_rpc_method_handler(
                    streaming_pull, types.StreamingPullRequest.deserialize, types.StreamingPullResponse.serialize
                ),
            },
        )

    def _check(self, context: Any, exists: bool) -> None:
        if self.refuse:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        if not exists:
            context.abort(grpc.StatusCode.NOT_FOUND, "Resource not found")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _again(self, reader: _Subscription, names: set[str]) -> None:
        with self._changed:
            for name in names & reader.out.keys():
                message, count, _ = reader.out.pop(name)
                reader.waiting.append((message, count))
            self._changed.notify_all()


def _drain(requests: Iterator[Any]) -> None:
    try:
        for _ in requests:
            pass
    except Exception:  # the stream has ended
        pass


def _unary(function: Any, request: Any, response: Any) -> Any:
    serialize = response.serialize if hasattr(response, "serialize") else response.SerializeToString
    return grpc.unary_unary_rpc_method_handler(function, request.deserialize, serialize)


class Emulator:
    """Google's emulator, which runs already.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def make(self, project: str, topic: str, subscription: str = "", *, dead_letters: str = "dead") -> None:
        """A topic, and perhaps a subscription that reads it."""
        with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
            name, dead = (f"projects/{project}/topics/{one}" for one in (topic, f"{topic}-{dead_letters}"))
            for one in (name, dead):
                publisher.create_topic(request={"name": one})
            if subscription:
                request = {"name": f"projects/{project}/subscriptions/{subscription}", "topic": name}
                if dead_letters:
                    request["dead_letter_policy"] = {"dead_letter_topic": dead, "max_delivery_attempts": 100}
                subscriber.create_subscription(request=request)
