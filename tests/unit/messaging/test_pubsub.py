"""What only Pub/Sub has: its policy for dead letters, its stream, its errors."""

import os
import time

import pytest
from queues import messages, pull_all

pytest.importorskip("google.cloud.pubsub_v1")
if os.environ.get("PUBSUB_EMULATOR_HOST"):
    pytest.skip("these need the fake, which can refuse", allow_module_level=True)

from google.api_core.exceptions import InvalidArgument

from vitconv.errors import InputError
from vitconv.messaging import BrokerError, Message, RefusedError, connect
from vitconv.messaging.pubsub import PubSubBroker

URL = "pubsub://tests/{0}?subscription={0}-readers"


@pytest.fixture
def topic(pubsub, request):
    name = request.node.name.replace("[", "-").replace("]", "")
    pubsub.make("tests", name, f"{name}-readers")
    return name


def test_a_subscription_without_a_policy_is_refused(pubsub):
    """Pub/Sub would not say how often a message was delivered: one that kills workers would go round for ever."""
    pubsub.make("tests", "plain", "plain-readers", dead_letters="")
    with connect(URL.format("plain")) as broker, pytest.raises(InputError, match="does not count the deliveries") as e:
        broker.check()
    assert "dead-letter policy" in e.value.remedy


def test_a_subscription_of_another_topic_is_refused(topic):
    wanted = pytest.raises(InputError, match=f"is one of 'projects/tests/topics/{topic}'")
    with connect(f"pubsub://tests/other?subscription={topic}-readers") as broker, wanted:
        broker.check()


def test_a_subscription_that_does_not_exist(pubsub):
    with connect(URL.format("nowhere")) as broker:
        with pytest.raises(InputError, match="cannot be used"):
            broker.check()
        with pytest.raises(InputError, match="cannot be used"):
            pull_all(broker, 1)


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(pubsub, topic, monkeypatch):
    monkeypatch.setattr("vitconv.messaging.pubsub.PATIENCE", 2)
    with connect(f"pubsub://tests/{topic}") as writer, connect(URL.format(topic)) as reader:
        writer.publish(messages(2))
        reader.ack(pull_all(reader, 2))
        time.sleep(1)  # the library sends it a moment later
        pubsub.refuse = True
        try:
            with pytest.raises(BrokerError, match="does not answer"):
                reader.check()
            with pytest.raises(BrokerError, match="does not answer"):
                writer.publish(messages(1, start=7))
        finally:
            pubsub.refuse = False
        writer.publish(messages(2, start=2))
        ids, end = set(), time.monotonic() + 60
        while not {"m2", "m3"} <= ids and time.monotonic() < end:
            pulled = reader.pull(4, 0.1)
            reader.ack(pulled)
            ids |= {one.id for one in pulled}
        assert {"m2", "m3"} <= ids <= {"m2", "m3", "m7"}


def test_a_reader_holds_no_more_than_it_may(pubsub, topic):
    with connect(f"pubsub://tests/{topic}") as writer, connect(URL.format(topic), most=3) as reader:
        writer.publish(messages(10))
        assert len(pull_all(reader, 10, seconds=3)) == 3


def test_attributes_of_any_name_are_sent(pubsub, topic):
    """The library's own method has parameters of these names."""
    names = ("topic", "data", "ordering_key", "retry", "timeout", "self", "request", "messages")
    sent = Message(b"x", {"ce-id": "1", **dict.fromkeys(names, "y")})
    with connect(f"pubsub://tests/{topic}") as writer, connect(URL.format(topic)) as reader:
        writer.publish([sent])
        (found,) = pull_all(reader, 1)
    assert found.attributes == sent.attributes


@pytest.mark.parametrize(
    "message",
    [
        Message(b"x" * 10_000_000, {"ce-id": "1"}),
        Message(b"x", {"ce-id": "1", "other": "y" * 1025}),
        Message(b"x", {"ce-id": "1", "n" * 257: "y"}),
        Message(b"x", {"ce-id": "1", "google": "y"}),
        Message(b"x", {"ce-id": "1", "": "y"}),
        Message(b"x", {str(number): "y" for number in range(101)}),
    ],
    ids=("content", "value", "name", "google", "empty", "number"),
)
def test_what_pub_sub_never_takes_is_refused(message):
    good = messages(1)[0]
    with connect("pubsub://tests/none") as broker, pytest.raises(RefusedError, match="does not take") as caught:
        broker.publish([message, good])
    assert caught.value.message is message


def test_what_the_server_refuses_is_refused(pubsub, topic, monkeypatch):
    """Such as a message that does not fit the topic's schema."""

    def refuse(self, request, **options):
        raise InvalidArgument("It does not fit the schema.")

    monkeypatch.setattr("google.pubsub_v1.PublisherClient.publish", refuse)
    sent = messages(2)
    with connect(f"pubsub://tests/{topic}") as broker:
        with pytest.raises(RefusedError, match="schema") as caught:
            broker.publish(sent[:1])
        assert caught.value.message is sent[0]
        with pytest.raises(InputError, match="schema") as caught:
            broker.publish(sent)
        assert not isinstance(caught.value, RefusedError)


def test_many_messages_are_sent_in_requests_of_the_size_that_is_allowed(monkeypatch):
    monkeypatch.setattr("vitconv.messaging.pubsub._MOST_MESSAGES", 3)
    monkeypatch.setattr("vitconv.messaging.pubsub._MOST_REQUEST", 500)
    broker = PubSubBroker("tests", "t")
    sent = [Message(bytes(size), {"ce-id": "1"}) for size in (1, 1, 1, 1, 300, 300)]
    found = list(broker._requests(sent))
    assert [[len(one.data) for one in request.messages] for request in found] == [[1] * 3, [1, 300], [300]]
    assert all(type(one).pb(one).ByteSize() <= 500 and one.topic == broker.topic for one in found)
    assert list(broker._requests([])) == []
