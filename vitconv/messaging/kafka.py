"""Apache Kafka, by confluent-kafka: librdkafka, which Confluent keeps.

A group's offset says that everything before it is acknowledged. Kafka counts no deliveries, so the reader notes what
it begins, as offsets of groups without members: everything before the offset of ``GROUP.try2`` was begun twice. A
reader that finds such an offset beyond the group's own knows that another did not get through these messages.
"""

from __future__ import annotations

import itertools
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from vitconv.errors import InputError, VitconvError
from vitconv.files import MOST_TEXT, check_file, open_file
from vitconv.messaging.broker import BrokerError, Closing, Message, RefusedError, arrived
from vitconv.messaging.turns import Turns
from vitconv.messaging.urls import hosts_of

if TYPE_CHECKING:
    from vitconv.messaging.broker import Broker
    from vitconv.messaging.worker import Delivery

_log = logging.getLogger("vitconv.messaging")
#: Seconds after which a broker that does not answer is taken for absent.
PATIENCE = 15.0
_MOST_MESSAGE = 64 * 2**20
#: Set here, and nowhere else: what is promised depends on them.
_OURS = (
    *("bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store", "enable.idempotence"),
    *("acks", "transactional.id", "error_cb", "logger"),
)
#: What text cannot set: functions, tables, and one that confluent-kafka takes no text for.
_NO_TEXT = re.compile(r".*_cb|on_delivery|on_commit|default\.topic\.config|delivery\.report\.only\.error")
#: They name code that librdkafka loads into this process.
_LOADS_CODE = ("plugin.library.paths", "ssl.engine.location")
#: Notes that are so many messages ahead of the first that comes are none of this run: somebody has set the group back
#: since.
_MOST_AHEAD = 1000


@dataclass
class _Partition:
    """What is known of a partition that this reader has.

    Attributes:
        position: the offset behind the last message that came.
        open: the offsets of messages that came and are not acknowledged, with the attempt that each is at.
        begun: for a number of tries, the offset before which messages were begun so often.
    """

    position: int = -1
    open: dict[int, int] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)

    def committed(self, settled: Iterable[int] = ()) -> int:
        """Everything before this offset is acknowledged, if these are. Offsets may have gaps: topics are compacted."""
        return min(self.open.keys() - set(settled), default=self.position)

    def come(self, offset: int, most_ahead: int) -> int:
        """Count a message that came, and return which attempt it is at.

        How far a note is ahead is counted from the first message that comes: the group's own offset may be missing,
        or far before it, where the log begins later or is compacted.
        """
        if self.position < 0:
            self.begun = {tries: until for tries, until in self.begun.items() if until - offset <= most_ahead}
        self.position = offset + 1
        self.open[offset] = self.attempt(offset)
        return self.open[offset]

    def attempt(self, offset: int) -> int:
        """Which attempt the next one is."""
        return 1 + max((tries for tries, until in self.begun.items() if offset < until), default=0)

    def failed(self) -> dict[int, int]:
        """What is noted without the tries that have not come to an end."""
        ended = {
            tries: max((offset + 1 for offset, attempt in self.open.items() if attempt > tries), default=0)
            for tries in self.begun
        }
        # What is noted of messages that have not come here is another reader's.
        return {tries: until if until > self.position else ended[tries] for tries, until in self.begun.items()}


class KafkaBroker(Closing):
    """See :class:`vitconv.messaging.Broker`. It connects when it is first used.

    Args:
        servers: ``host:port``, or several with commas between them.
        topic: to send to, or to read.
        group: the consumer group to read in; empty for one that only sends.
        config: a file with further properties of librdkafka, or empty.
        most: how many messages are pulled and not acknowledged at most.

    Raises:
        InputError: the file cannot be read, or sets what must not be set.
    """

    def __init__(self, servers: str, topic: str, group: str = "", config: str = "", most: int = 16) -> None:
        self._most_ahead = max(_MOST_AHEAD, 4 * most)
        self.servers, self.topic, self.group = servers, topic, group
        self.properties = {
            **(_read_properties(config) if config else {}),
            "bootstrap.servers": servers,
            "error_cb": self._note,
            "logger": _log,
        }
        self._producer: Any = None
        self._consumer: Any = None
        self._admin: Any = None
        self._turns = Turns()
        self._partitions: dict[int, _Partition] = {}
        self._down: KafkaError | None = None

    # ---- sending ----------------------------------------------------------------------------------------------------

    @property
    def producer(self) -> Any:
        """librdkafka's producer. It repeats what was not confirmed, and the broker drops what it had already."""
        if self._producer is None:
            self._producer = self.make_producer({})
        return self._producer

    def make_producer(self, properties: dict[str, Any]) -> Any:
        """A producer with further properties."""
        return _client(
            Producer,
            {
                "message.max.bytes": _MOST_MESSAGE,
                "message.timeout.ms": round(PATIENCE * 1000),
                "linger.ms": 0,
                **self.properties,
                "enable.idempotence": True,
                "acks": "all",
                **properties,
            },
        )

    def publish(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.publish`."""
        try:
            self.send(self.producer, messages)
        except KafkaException as error:
            self._drop_producer()
            raise self.error_for(error.args[0]) from error
        except VitconvError:
            self._drop_producer()
            raise

    def send(self, producer: Any, messages: Sequence[Message]) -> None:
        """Send messages to the topic, and return when the broker has accepted all of them.

        Raises:
            BrokerError, InputError: see :meth:`vitconv.messaging.Broker.publish`.
        """
        failed: list[tuple[KafkaError, Message]] = []
        for message in messages:
            _produce(producer, self.topic, message, failed)
        if producer.flush(2 * PATIENCE):
            raise self._absent("It does not confirm what is sent")
        errors = [self.error_for(*one) for one in failed]
        if errors:
            raise next(filter(_is_final, errors), errors[0])

    def _drop_producer(self) -> None:
        """After some errors a producer never sends again; a new one does."""
        if self._producer is not None:
            self._producer.purge()
        self._producer = None

    # ---- reading ----------------------------------------------------------------------------------------------------

    @property
    def admin(self) -> Any:
        """librdkafka's client for the offsets of other groups."""
        if self._admin is None:
            self._admin = _client(AdminClient, self.properties)
        return self._admin

    @property
    def consumer(self) -> Any:
        """librdkafka's consumer."""
        if not self.group:
            raise InputError("Nothing can be pulled without a group.", "Add &group=NAME to the URL.")
        if self._consumer is None:
            self._consumer = _client(
                Consumer,
                {
                    "auto.offset.reset": "earliest",
                    "queued.min.messages": 1,  # what waits here another reader could have
                    "queued.max.messages.kbytes": 2**14,
                    "fetch.queue.backoff.ms": 5,  # by default it leaves a queue empty for up to a second
                    **self.properties,
                    "group.id": self.group,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                },
            )
            self._consumer.subscribe(
                [self.topic], on_assign=self._begin, on_revoke=self._give_back, on_lost=self._lose
            )
        return self._consumer

    def check(self) -> None:
        """See :meth:`vitconv.messaging.Broker.check`."""
        with self.for_people():
            client = self.consumer if self.group else self.producer
            known = client.list_topics(timeout=PATIENCE).topics
        if self.topic not in known:
            raise InputError(f"The broker at {self.servers} has no topic '{self.topic}'.", "Create it.")

    def pull(self, most: int, wait: float) -> list[Message]:
        """See :meth:`vitconv.messaging.Broker.pull`."""
        taken = self._turns.pull(most, wait, self._fetch)
        if taken:
            self._note_begun(taken)
        elif self._down is not None:
            down, self._down = self._down, None
            with self.for_people():
                self.consumer.list_topics(self.topic, timeout=PATIENCE)  # it may be back
            _log.info("%s is back after: %s", self.servers, down)
        return taken

    def _fetch(self, count: int, seconds: float) -> None:
        with self.for_people():
            found = self.consumer.consume(count, seconds)
        for message in found:
            if (error := message.error()) is not None:
                if _is_final(self.error_for(error)):
                    raise self.error_for(error)
                _log.info("%s: %s", self.topic, error)
                continue
            number, offset = message.partition(), message.offset()
            partition = self._partitions.get(number)
            if partition is None:  # it went to another reader just now, who must not be robbed of its offset
                continue
            attempt = partition.come(offset, self._most_ahead)
            name, receipt = f"{self.topic}/{number}/{offset}", (number, offset)
            key = (message.key() or b"").decode(errors="replace")
            content, attributes = message.value() or b"", _attributes(message)
            self._turns.add(arrived(content, attributes, name, key=key, receipt=receipt, attempt=attempt))

    def ack(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.ack`."""
        self._commit(self.settle(messages))

    def nack(self, messages: Sequence[Message]) -> None:
        """See :meth:`vitconv.messaging.Broker.nack`. This reader gets them again, as the offset stays before them."""
        for message in filter(self._turns.settle, messages):
            number, offset = message.receipt
            self._partitions[number].open[offset] = message.attempt + 1
            self._turns.add(replace(message, attempt=message.attempt + 1))

    def close(self) -> None:
        """See :meth:`vitconv.messaging.Broker.close`."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        if self._producer is not None:
            self._producer.flush(PATIENCE)
            self._producer = None
        self._turns.forget(lambda message: True)
        self._partitions.clear()

    # ---- offsets ----------------------------------------------------------------------------------------------------

    def settle(self, messages: Sequence[Message]) -> list[TopicPartition]:
        """Count messages as acknowledged here, and return the offsets that the broker is to hear of."""
        offsets = self.offsets(messages)
        for message in messages:
            number, offset = message.receipt
            self._turns.settle(message)
            if number in self._partitions:
                self._partitions[number].open.pop(offset, None)
        self._forget_begun({one.partition for one in offsets})
        return offsets

    def holds(self, message: Message) -> bool:
        """Whether it was pulled here, is not acknowledged, and its partition is still this reader's."""
        return any(one.receipt == message.receipt for one in self._turns.out)

    def offsets(self, settled: Sequence[Message]) -> list[TopicPartition]:
        """What to commit for the partitions of these messages, once they are acknowledged."""
        places: dict[int, list[int]] = {}
        for number, offset in (message.receipt for message in settled):
            places.setdefault(number, []).append(offset)
        return [
            TopicPartition(self.topic, number, self._partitions[number].committed(offsets))
            for number, offsets in sorted(places.items())
            if number in self._partitions
        ]

    def _commit(self, offsets: list[TopicPartition]) -> None:
        if not offsets:
            return
        try:
            done = self.consumer.commit(offsets=offsets, asynchronous=False)
            error = next((one.error for one in done if one.error is not None), None)
        except KafkaException as failed:
            error = failed.args[0]
        if error is None:
            return
        if error.code() in _MOVED:
            # Another reader has the partition, and gets these messages again.
            _log.info("The offsets of %s were not committed: %s", self.topic, error)
            return
        raise self.error_for(error)

    def _note_begun(self, taken: Sequence[Message]) -> None:
        """Have the broker keep how often these messages are begun, before they are."""
        found: dict[int, dict[int, int]] = {}
        for message in taken:
            number, offset = message.receipt
            begun = self._partitions[number].begun
            begun[message.attempt] = max(begun.get(message.attempt, 0), offset + 1)
            found.setdefault(message.attempt, {})[number] = begun[message.attempt]
        self._write_begun(found)

    def _forget_begun(self, numbers: set[int]) -> None:
        """Take back what is noted of messages that are done: not of first tries, which the next ones overwrite."""
        found: dict[int, dict[int, int]] = {}
        for number in numbers:
            partition = self._partitions[number]
            for tries, until in list(partition.begun.items()):
                if tries > 1 and until <= partition.committed():
                    del partition.begun[tries]
                    found.setdefault(tries, {})[number] = 0
        self._write_begun(found)

    def _write_begun(self, found: dict[int, dict[int, int]]) -> None:
        for tries, places in found.items():
            group = f"{self.group}.try{tries}"
            offsets = [TopicPartition(self.topic, number, offset) for number, offset in places.items()]
            request = [ConsumerGroupTopicPartitions(group, offsets)]
            try:
                self.admin.alter_consumer_group_offsets(request, request_timeout=PATIENCE)[group].result()
            except KafkaException as error:
                _log.warning("What is begun cannot be noted in %s: %s", group, error)

    def _read_begun(self, assigned: list[TopicPartition]) -> None:
        committed = {one.partition: one.offset for one in self.consumer.committed(assigned, timeout=PATIENCE)}
        places = [TopicPartition(self.topic, number) for number in committed]
        for tries in itertools.count(1):
            group = f"{self.group}.try{tries}"
            request = [ConsumerGroupTopicPartitions(group, places)]
            answer = self.admin.list_consumer_group_offsets(request, request_timeout=PATIENCE)[group].result()
            ahead = {
                one.partition: one.offset
                for one in answer.topic_partitions
                if one.offset > max(committed[one.partition], 0)
            }
            for number, offset in ahead.items():
                self._partitions[number].begun[tries] = offset
            if not ahead:
                return

    def _begin(self, consumer: Any, assigned: list[TopicPartition]) -> None:
        """Learn what was begun before in partitions that this reader gets."""
        for one in assigned:
            self._partitions[one.partition] = _Partition()
        if not assigned:
            return
        try:
            self._read_begun(assigned)
        except KafkaException as error:
            _log.warning("What was begun before is not known: %s", error)

    def _give_back(self, consumer: Any, revoked: list[TopicPartition]) -> None:
        """Let the next reader not suspect what this one has not finished, but know of the tries that failed."""
        found: dict[int, dict[int, int]] = {}
        for number in {one.partition for one in revoked} & self._partitions.keys():
            partition = self._partitions[number]
            for tries, until in partition.failed().items():
                if until != partition.begun[tries]:
                    found.setdefault(tries, {})[number] = until
        self._write_begun(found)
        self._lose(consumer, revoked)

    def _lose(self, consumer: Any, lost: list[TopicPartition]) -> None:
        numbers = {one.partition for one in lost}
        self._turns.forget(lambda message: message.receipt[0] in numbers)
        for number in numbers:
            self._partitions.pop(number, None)

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _note(self, error: KafkaError) -> None:
        """librdkafka connects again by itself; it says here that it must."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self._down = error

    def for_people(self) -> _Translating:
        """Turns Kafka's exceptions into vitconv's, in a ``with`` statement."""
        return _Translating(self.error_for)

    def error_for(self, error: KafkaError, message: Message | None = None) -> VitconvError:
        """What people are told: an :class:`InputError` where trying again does not help.

        Args:
            message: that could not be sent.
        """
        if error.code() in _FINAL:
            problem = f"The topic '{self.topic}' at {self.servers} cannot be used: {error.str()}."
            remedy = "Check the topic, its limits, and the rights of this user."
            if message is not None and error.code() in _REFUSED:
                return RefusedError(problem, remedy, message)
            return InputError(problem, remedy)
        return self._absent(error.str())

    def _absent(self, why: str) -> BrokerError:
        return BrokerError(f"Kafka at {self.servers} does not answer: {why}.", "Check the broker and the network.")


class _Translating:
    """Turns Kafka's exceptions into vitconv's, for a ``with`` statement."""

    def __init__(self, error: Callable[[KafkaError], VitconvError]) -> None:
        self._error_for = error

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KafkaException):
            raise self._error_for(error.args[0]) from error


def _produce(producer: Any, topic: str, message: Message, failed: list[tuple[KafkaError, Message]]) -> None:
    """Give a message to a producer, which appends to `failed` if the broker does not accept it.

    Raises:
        RefusedError: the producer never has room for it.
    """

    def report(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append((error, message))

    # In CloudEvents' binding for Kafka, the names of headers begin with ce_.
    headers = [(re.sub("^ce-", "ce_", name), value.encode()) for name, value in message.attributes.items()]
    key = message.key.encode() or None
    while True:
        empty = not len(producer)
        try:
            producer.produce(topic, message.content, key, headers=headers, on_delivery=report)
            return
        except BufferError as error:  # its queue is full
            if empty:
                raise RefusedError(
                    f"A message for the topic '{topic}' is larger than the producer's queue.",
                    "Raise queue.buffering.max.kbytes in the file of config=FILE, or send less.",
                    message,
                ) from error
            producer.poll(0.1)
        except KafkaException as error:
            failed.append((error.args[0], message))
            return


class Transactions:
    """Sends results and acknowledges their messages in transactions of Kafka's: all of it happens, or nothing.

    Readers that read only what is committed, as librdkafka's do by default, see each result once.

    Args:
        source: where the messages come from.
        target: where the results go.
        dead_letters: where messages go that come to nothing.

    Raises:
        InputError: they are not topics of one Kafka.
    """

    def __init__(self, source: Broker, target: Broker, dead_letters: Broker) -> None:
        self._source, self._target, self._dead = (_kafka(one) for one in (source, target, dead_letters))
        if len({hosts_of(one.servers) for one in (self._source, self._target, self._dead)}) > 1:
            raise _not_one_kafka()
        self._producer: Any = None
        self._unsure: Sequence[Delivery] | None = None  # what a transaction holds that may be committed or not

    def deliver(self, done: Sequence[Delivery]) -> None:
        """Send results and acknowledge their messages.

        Raises:
            BrokerError: it did not happen, or is not known to have. Call it again with the same.
            InputError: it never will.
        """
        if self._unsure is None:
            # What went to another reader meanwhile is answered there.
            held = [one for one in done if self._source.holds(one.message)]
            with self._source.for_people():
                self._fill(held)
            self._unsure = held
        try:
            self._producer.commit_transaction(PATIENCE)
        except KafkaException as error:
            if not error.args[0].retriable():
                self._abort()
            raise self._source.error_for(error.args[0]) from error
        self._source.settle([one.message for one in self._unsure])
        self._unsure = None

    def _fill(self, held: Sequence[Delivery]) -> None:
        if self._producer is None:
            name = f"vitconv-{self._source.group}-{uuid.uuid4().hex}"
            producer = self._target.make_producer({"transactional.id": name, "transaction.timeout.ms": 30_000})
            producer.init_transactions(PATIENCE)
            self._producer = producer
        try:
            self._producer.begin_transaction()
            # One by one: Kafka refuses a batch for one of its messages, and does not say for which.
            for one in held:
                if one.is_dead_letter:
                    self._dead.send(self._producer, [one.result])
            self._target.send(self._producer, [one.result for one in held if not one.is_dead_letter])
            offsets = self._source.offsets([one.message for one in held])
            group = self._source.consumer.consumer_group_metadata()
            self._producer.send_offsets_to_transaction(offsets, group, PATIENCE)
        except (KafkaException, VitconvError):
            self._abort()
            raise

    def _abort(self) -> None:
        self._unsure = None
        try:
            self._producer.abort_transaction(PATIENCE)
        except KafkaException as error:  # the broker ends it by itself, and this producer with it
            _log.info("A transaction was not aborted: %s", error)
            self._producer = None


def _kafka(broker: Broker) -> KafkaBroker:
    if not isinstance(broker, KafkaBroker):
        raise _not_one_kafka()
    return broker


def _not_one_kafka() -> InputError:
    return InputError(
        "Exactly once is possible only from Kafka to the same Kafka.",
        "Leave it out: each result has its message's id, by which repeats are told.",
    )


def _attributes(message: Any) -> dict[str, str] | None:
    """Of several headers of one name, the last counts. ``None`` if they cannot be read."""
    try:
        headers = message.headers() or ()
    except (SystemError, UnicodeError):  # the name of one is not UTF-8: confluent-kafka does not say that it failed
        return None
    return {re.sub("^ce_", "ce-", name): (value or b"").decode(errors="replace") for name, value in headers}


def _client(kind: Callable[[dict[str, Any]], Any], properties: dict[str, Any]) -> Any:
    """A client of confluent-kafka's, which raises Python's own errors for some properties that it cannot use."""
    try:
        return kind(properties)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"A property of Kafka cannot be used: {error}.", "Remove it from the file that config=FILE names."
        ) from error


def _read_properties(path: str) -> dict[str, str]:
    """The properties in a file: ``name=value`` in each line, as librdkafka's own tools read them."""
    what = "file of Kafka's properties"
    check_file(path, what, most=MOST_TEXT)
    try:
        with open_file(path) as file:
            lines = file.read().decode().splitlines()
    except FileNotFoundError as error:
        raise InputError(f"There is no {what} '{path}'.", "Check config=FILE in the URL.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The {what} '{path}' is not UTF-8.", "Save it as UTF-8.") from error
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        name, sign, value = (part.strip() for part in line.partition("="))
        if not sign or not name:
            raise InputError(f"Line {number} of '{path}' is not name=value.", "Write one property a line.")
        if name in _OURS:
            raise InputError(f"'{path}' sets {name}, which vitconv sets itself.", f"Remove line {number}.")
        if _NO_TEXT.fullmatch(name):
            raise InputError(f"'{path}' sets {name}, which no file can set.", f"Remove line {number}.")
        if name in _LOADS_CODE:
            raise InputError(f"'{path}' sets {name}: vitconv loads no code for Kafka.", f"Remove line {number}.")
        found[name] = value
    return found


def _is_final(error: VitconvError) -> bool:
    return isinstance(error, InputError)


#: Trying again does not help.
_FINAL = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._INVALID_ARG,  # of a property
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INVALID_RECORD,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}
#: Of these, what another message does not come to.
_REFUSED = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD}
#: The partition went to another reader of the group, or is about to.
_MOVED = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._NO_OFFSET,
}
