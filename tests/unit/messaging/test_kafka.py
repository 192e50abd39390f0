"""What only Kafka has: offsets, the count of tries, transactions, properties."""

import time
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import messages, pull_all

pytest.importorskip("confluent_kafka")

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, TopicPartition

from vitconv.errors import InputError
from vitconv.messaging import BrokerError, Message, RefusedError, Transactions, connect, image_message, kafka
from vitconv.messaging.results import dead_letter
from vitconv.messaging.worker import Delivery


class Came:
    """A message as confluent-kafka delivers it."""

    def __init__(self, offset, headers=()):
        self._offset, self._headers = offset, headers

    def error(self):
        return None

    def partition(self):
        return 0

    def offset(self):
        return self._offset

    def key(self):
        return None

    def value(self):
        return b"abc"

    def headers(self):
        if isinstance(self._headers, Exception):
            raise self._headers
        return self._headers


class Consumer:
    """A consumer of a group with these messages to come; its partition has no commit."""

    def __init__(self, came):
        self._came = came

    def consume(self, count, seconds):
        taken, self._came = self._came[:count], self._came[count:]
        return taken

    def committed(self, places, timeout):
        return [TopicPartition(one.topic, one.partition, -1001) for one in places]

    def close(self):
        pass


class Admin:
    """Keeps offsets of groups: the notes of what is begun."""

    def __init__(self):
        self.kept = {}

    def alter_consumer_group_offsets(self, requests, request_timeout):
        (request,) = requests
        self.kept[request.group_id] = {one.partition: one.offset for one in request.topic_partitions}
        return {request.group_id: self._done(request)}

    def list_consumer_group_offsets(self, requests, request_timeout):
        (request,) = requests
        kept = self.kept.get(request.group_id, {})
        places = [
            TopicPartition("t", one.partition, kept.get(one.partition, -1001)) for one in request.topic_partitions
        ]
        return {request.group_id: self._done(ConsumerGroupTopicPartitions(request.group_id, places))}

    def _done(self, what):
        future = Future()
        future.set_result(what)
        return future


def reader(came, admin):
    """A reader that has just been given the topic's only partition, without a broker."""
    made = kafka.KafkaBroker("h:1", "t", "g")
    made._consumer, made._admin = Consumer(came), admin
    made._begin(made._consumer, [TopicPartition("t", 0)])
    return made


def die(broker):
    """Close it as a process that is killed: it takes nothing back. The group learns of it at once, for speed."""
    broker._write_begun = lambda found: None
    broker.close()


@pytest.fixture
def topic(places):
    """A topic with four messages, and what opens a reader of it."""
    place = places("kafka")
    place.open(place.writer).publish(messages(4))
    return lambda: place.open(place.reader)


def summary(found):
    return [(one.id, one.attempt) for one in found]


@pytest.mark.slow
def test_what_was_begun_when_a_reader_died_is_tried_alone(topic):
    first = topic()
    found = pull_all(first, 4)
    assert summary(found) == [("m0", 1), ("m1", 1), ("m2", 1), ("m3", 1)]
    first.ack(found[:1])
    die(first)

    second = topic()
    (one,) = pull_all(second, 1)
    # One at a time, so that the order is known: of suspects with as many attempts, any comes first.
    assert summary([one]) == [("m1", 2)] and second.pull(1, 0.1) == []
    second.ack([one])
    assert summary(pull_all(second, 1)) == [("m2", 2)]
    die(second)

    third = topic()
    (guilty,) = pull_all(third, 1)
    assert summary([guilty]) == [("m2", 3)]
    third.ack([guilty])
    (innocent,) = pull_all(third, 1)
    assert summary([innocent]) == [("m3", 2)]
    third.ack([innocent])
    assert third.pull(4, 0.5) == []
    die(third)

    # What was noted of tries is taken back: a group that is set back suspects nobody of the second try or later.
    fourth = topic()
    assert fourth.pull(1, 5) == [] and fourth._partitions[0].begun == {}


@pytest.mark.slow
def test_while_messages_wait_a_pull_gets_some(places):
    """librdkafka looks for more only after a second if it has enough for now, which is one message."""
    place = places("kafka")
    place.open(place.writer).publish([image_message(bytes(300_000), f"m{i}") for i in range(80)])
    broker = place.open(place.reader)
    found = pull_all(broker, 8)
    counts = []
    while len(found) < 80:
        pulled = broker.pull(8, 0.1)
        counts.append(len(pulled))
        broker.ack(pulled)
        found += pulled
        assert len(counts) < 200
        time.sleep(0.2 * bool(pulled))  # as if they were computed
    assert counts.count(0) < 5, counts


@pytest.mark.slow
def test_a_reader_that_closes_leaves_no_suspects(topic):
    first = topic()
    assert len(pull_all(first, 4)) == 4
    first.close()
    assert summary(pull_all(topic(), 4)) == [("m0", 1), ("m1", 1), ("m2", 1), ("m3", 1)]


@pytest.mark.slow
def test_notes_far_ahead_are_of_another_time(topic):
    """Somebody has set the group back, to read everything again."""
    first = topic()
    assert len(pull_all(first, 4)) == 4
    die(first)
    second = topic()
    second._most_ahead = 3
    assert summary(pull_all(second, 4)) == [("m0", 1), ("m1", 1), ("m2", 1), ("m3", 1)]


def test_headers_that_are_not_utf_8_end_nothing():
    """confluent-kafka raises SystemError where the name of a header is not UTF-8: seen with librdkafka's mock broker."""
    broken = SystemError("<method 'headers'> returned a result with an exception set")
    found = reader([Came(0, broken), Came(1, [("ce_id", b"a\xff"), ("x", None)])], Admin()).pull(2, 1)
    assert [one.id for one in found] == ["t/0/0", "a\N{REPLACEMENT CHARACTER}"]
    assert "not UTF-8" in found[0].problem and found[1].problem == ""


class Producer:
    """A producer to a broker that takes messages of up to so many bytes, in transactions."""

    def __init__(self, most):
        self._most, self.sent, self.done = most, [], []

    def produce(self, topic, content, key, headers, on_delivery):
        if len(content) > self._most:
            on_delivery(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
        else:
            self.sent.append((topic, content))

    def __len__(self):
        return 0

    def flush(self, seconds):
        return 0

    def begin_transaction(self):
        self.sent.clear()

    def send_offsets_to_transaction(self, offsets, group, seconds):
        self.done.append("offsets")

    def commit_transaction(self, seconds):
        self.done.append("commit")

    def abort_transaction(self, seconds):
        self.done.append("abort")


def test_which_message_of_a_transaction_is_refused_is_told():
    source = reader([Came(0), Came(1), Came(2)], Admin())
    source._consumer.consumer_group_metadata = lambda: None
    target, letters = kafka.KafkaBroker("h:1", "results"), kafka.KafkaBroker("h:1", "dead")
    transactions = Transactions(source, target, letters)
    transactions._producer = producer = Producer(most=3)
    one, two, three = source.pull(3, 1)
    large = Delivery(two, Message(b"large", {"ce-id": "b"}), is_dead_letter=True)
    done = [Delivery(one, Message(b"one", {"ce-id": "a"})), large, Delivery(three, Message(b"two", {"ce-id": "c"}))]
    with pytest.raises(RefusedError, match="'dead'.* cannot be used") as caught:
        transactions.deliver(done)
    assert caught.value.message is large.result and producer.done == ["abort"]
    done[1] = Delivery(two, Message(b"", {"ce-id": "b"}), is_dead_letter=True)
    transactions.deliver(done)
    assert producer.sent == [("dead", b""), ("results", b"one"), ("results", b"two")]
    assert producer.done == ["abort", "offsets", "commit"]


def test_which_message_is_refused_is_told():
    broker = kafka.KafkaBroker("h:1", "t")
    broker._producer = producer = Producer(most=3)
    producer.purge = lambda: None
    sent = [Message(b"a", {"ce-id": "a"}), Message(b"large", {"ce-id": "b"})]
    with pytest.raises(RefusedError) as caught:
        broker.publish(sent)
    assert caught.value.message is sent[1] and producer.sent == [("t", b"a")]


def test_an_error_that_is_no_message_s_fault_is_not_laid_to_one():
    broker = kafka.KafkaBroker("h:1", "t")
    for code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._ALL_BROKERS_DOWN):
        assert not isinstance(broker.error_for(KafkaError(code), Message(b"")), RefusedError)


def test_a_message_that_is_larger_than_the_producer_s_queue_is_refused(tmp_path):
    (tmp_path / "a").write_text("queue.buffering.max.kbytes=1")
    sent = Message(b"x" * 4000, {"ce-id": "a"})
    broker = kafka.KafkaBroker("127.0.0.1:9", "t", config=str(tmp_path / "a"))
    with pytest.raises(RefusedError, match="larger than the producer's queue") as caught:
        broker.publish([sent])
    assert caught.value.message is sent


def life(admin, offsets, *, end="dies"):
    """What a reader pulls first of messages that no reader acknowledges: their offsets, and which attempt they are at.

    Args:
        end: it `dies`; or it is `closed`, or its partition goes to another reader, with everything in work.
    """
    made = reader([Came(offset) for offset in offsets], admin)
    found = [(one.receipt[1], one.attempt) for one in made.pull(8, 0)]
    if end == "closed":
        made._give_back(made._consumer, [TopicPartition("t", 0)])
    return found


@pytest.mark.parametrize("start", [0, 50_000])
def test_tries_are_counted_wherever_the_log_begins(start):
    """A group without a commit: its offset is no place in the log, whose beginning was deleted."""
    admin = Admin()
    assert [life(admin, [start])[0] for _ in range(4)] == [(start, attempt) for attempt in (1, 2, 3, 4)]


def test_a_note_far_ahead_of_the_first_message_is_of_another_time():
    admin = Admin()
    life(admin, [5000])
    assert life(admin, [10])[0] == (10, 1)
    assert life(admin, [10])[0] == (10, 2)


def test_an_orderly_end_counts_no_try_and_keeps_those_of_deaths():
    admin = Admin()
    ends = ["dies", "dies", "closed", "dies", "closed", "closed", "dies"]
    assert [life(admin, [7], end=end)[0][1] for end in ends] == [1, 2, 3, 3, 4, 4, 4]
    assert life(admin, [7])[0] == (7, 5)


def test_an_orderly_end_leaves_no_suspects_where_nobody_died():
    admin = Admin()
    for _ in range(3):
        assert life(admin, [3, 4, 5], end="closed") == [(3, 1), (4, 1), (5, 1)]


def test_an_orderly_end_keeps_tries_that_failed_and_those_of_messages_that_did_not_come_yet():
    admin = Admin()
    assert life(admin, [3, 4, 5, 6]) == [(3, 1), (4, 1), (5, 1), (6, 1)]
    second = reader([Came(3)], admin)
    for attempt in (2, 3):
        (one,) = second.pull(1, 0)
        assert one.attempt == attempt
        second.nack([one])
    second._give_back(second._consumer, [TopicPartition("t", 0)])
    third = reader([Came(3), Came(4), Came(5), Came(6)], admin)
    third._fetch(4, 0)
    assert third._partitions[0].open == {3: 4, 4: 2, 5: 2, 6: 2}


@given(st.sets(st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_an_offset_never_passes_what_is_open(offsets, order):
    """Also where offsets are missing, as in compacted topics."""
    partition = kafka._Partition()
    for offset in sorted(offsets):
        partition.come(offset, 1000)
    for offset in order:
        settled = partition.committed([offset])
        partition.open.pop(offset, None)
        committed = partition.committed()
        assert committed == settled and all(one >= committed for one in partition.open)
        assert committed == partition.position or committed in partition.open


@pytest.mark.slow
def test_a_transaction_sends_and_acknowledges(topic, places):
    results, dead = places("kafka"), places("kafka")
    source, target, letters = topic(), results.open(results.writer), dead.open(dead.writer)
    transactions = Transactions(source, target, letters)
    found = pull_all(source, 4)
    lost = Delivery(found[3], found[3])
    source._turns.settle(found[3])  # as when its partition goes to another reader
    done = [Delivery(found[0], found[0]), Delivery(found[1], dead_letter(found[1], "so"), is_dead_letter=True), lost]
    transactions.deliver(done)
    transactions.deliver([Delivery(found[2], found[2])])
    assert summary(pull_all(results.open(results.reader), 3, seconds=8)) == [("m0", 1), ("m2", 1)]
    assert summary(pull_all(dead.open(dead.reader), 2, seconds=8)) == [("m1", 1)]
    source.close()
    assert summary(pull_all(topic(), 4, seconds=8)) == [("m3", 1)]


def test_a_transaction_takes_one_kafka_by_two_names():
    urls = ("kafka://localhost:1,b:2?topic=a&group=g", "kafka://b:2,127.0.0.1:1?topic=b")
    source, target = map(connect, urls)
    Transactions(source, target, target)


def test_a_transaction_needs_one_kafka():
    one, other, memory = (
        connect(url) for url in ("kafka://a:1?topic=a&group=g", "kafka://b:1?topic=b", "memory://m?topic=c")
    )
    for brokers in ((one, other, one), (one, one, memory)):
        with pytest.raises(InputError, match="only from Kafka to the same Kafka"):
            Transactions(*brokers)


def test_a_broker_that_is_not_there(monkeypatch):
    monkeypatch.setattr(kafka, "PATIENCE", 0.5)
    with connect("kafka://127.0.0.1:9?topic=a&group=g") as broker, pytest.raises(BrokerError, match="does not answer"):
        broker.check()
    with connect("kafka://127.0.0.1:9?topic=a") as broker, pytest.raises(BrokerError, match="does not answer"):
        broker.publish(messages(1))


#: What confluent-kafka raised no exception of Kafka's for, or took for a function.
NO_TEXT = (
    *("stats_cb", "throttle_cb", "oauth_cb", "resolve_cb", "dr_cb", "on_delivery", "on_commit"),
    *("default.topic.config", "delivery.report.only.error"),
)


@pytest.mark.parametrize("name", ["stats_cb", "throttle_cb", "default.topic.config"])
def test_what_confluent_kafka_raises_for_a_property_is_an_error_for_people(name):
    for url, client in (("kafka://h:1?topic=a", "producer"), ("kafka://h:1?topic=a&group=g", "consumer")):
        broker = connect(url)
        broker.properties[name] = "x"
        for one in (client, "admin"):
            with pytest.raises(InputError, match="A property of Kafka cannot be used"):
                getattr(broker, one)


def test_properties(tmp_path):
    (tmp_path / "a").write_text("# a comment\n\n sasl.username = me \nsasl.password=a=b\n")
    assert kafka._read_properties(str(tmp_path / "a")) == {"sasl.username": "me", "sasl.password": "a=b"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"sasl.username", "Line 1 of .* is not name=value"),
        (b"\n=x", "Line 2 of .* is not name=value"),
        (b"acks=0", "sets acks, which vitconv sets itself"),
        (b"enable.auto.commit=true", "sets enable.auto.commit"),
        (b"\xff=1", "is not UTF-8"),
        (b"error_cb=x", "sets error_cb, which vitconv sets itself"),
        *((f"{name}=x".encode(), f"sets {name}, which no file can set") for name in NO_TEXT),
        (b"plugin.library.paths=/a.so", "sets plugin.library.paths: vitconv loads no code"),
        (b"ssl.engine.location=/a.so", "sets ssl.engine.location: vitconv loads no code"),
    ],
)
def test_properties_that_are_wrong(tmp_path, content, why):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=why):
        connect(f"kafka://h:1?topic=a&config={tmp_path / 'a'}")
    with pytest.raises(InputError, match="There is no file of Kafka's properties"):
        connect(f"kafka://h:1?topic=a&config={tmp_path / 'none'}")


def test_a_property_that_does_not_exist(tmp_path):
    (tmp_path / "a").write_text("sasl.user=me")
    for url in ("kafka://127.0.0.1:9?topic=a", "kafka://127.0.0.1:9?topic=a&group=g"):
        with connect(f"{url}&config={tmp_path / 'a'}") as broker, pytest.raises(InputError, match="sasl.user"):
            broker.check()
