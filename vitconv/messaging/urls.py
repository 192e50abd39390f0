"""From a URL to a broker."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, urlsplit

from vitconv.errors import InputError, shown
from vitconv.files import is_unicode
from vitconv.inference.optional import load
from vitconv.messaging.memory import MemoryBroker

if TYPE_CHECKING:
    from vitconv.messaging.broker import Broker

#: What a URL looks like, for people.
FORMS = (
    "kafka://HOST:PORT?topic=NAME[&group=NAME][&config=FILE]",
    "pubsub://PROJECT/TOPIC[?subscription=NAME]",
    "memory://NAME?topic=NAME[&group=NAME]",
)
#: That librdkafka takes where none is named.
_KAFKA_PORT = 9092
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(.*?)(?::([0-9]{1,5}))?", re.DOTALL)


def connect(url: str, *, most: int = 16) -> Broker:
    """The broker at a URL. Nothing is sent to it yet.

    - ``kafka://host:9092?topic=images&group=roofs``: several hosts with commas between them. `group` is for reading:
      readers of one group share the messages. `config` names a file with further properties of librdkafka, one
      ``name=value`` a line, such as user and password.
    - ``pubsub://project/topic?subscription=roofs``: `subscription` is for reading. Google's library finds the
      credentials, or the emulator of ``PUBSUB_EMULATOR_HOST``.
    - ``memory://name?topic=images&group=roofs``: within this process.

    Args:
        url: where it is.
        most: how many messages you will have pulled and not acknowledged, at most.

    Raises:
        InputError: it is no such URL, or packages are missing.
    """
    found, options = _split(url)
    if found.scheme == "kafka":
        _check(
            url, options, needed=("topic",), known=("topic", "group", "config"), place=found.netloc, path=found.path
        )
        broker = load("vitconv.messaging.kafka", "KafkaBroker", ["confluent_kafka"], "queue")
        return broker(found.netloc, options["topic"], options.get("group", ""), options.get("config", ""), most)
    if found.scheme == "pubsub":
        _check(url, options, (), ("subscription",), found.netloc)
        topic = found.path.strip("/")
        if not topic or "/" in topic:
            raise _wrong(url, "it names no topic")
        broker = load("vitconv.messaging.pubsub", "PubSubBroker", ["google.cloud.pubsub_v1"], "queue")
        return broker(found.netloc, topic, options.get("subscription", ""), most)
    if found.scheme == "memory":
        _check(url, options, ("topic",), ("topic", "group"), found.netloc, found.path)
        return MemoryBroker(found.netloc, options["topic"], options.get("group", ""))
    raise _wrong(url, f"its scheme is {shown(found.scheme)}")


def place_of(url: str) -> tuple[str, ...]:
    """What tells one topic from another: two URLs of one topic have the same.

    Raises:
        InputError: it is no URL.
    """
    found, options = _split(url)
    place = ",".join(hosts_of(found.netloc)) if found.scheme == "kafka" else found.netloc
    return found.scheme, place, found.path.strip("/"), options.get("topic", "")


def hosts_of(servers: str) -> tuple[str, ...]:
    """Kafka's servers in one order and one spelling. This machine has several names, and is `localhost` here.

    >>> hosts_of("Kafka2:9093,127.0.0.1,kafka1:9092")
    ('kafka1:9092', 'kafka2:9093', 'localhost:9092')
    """
    found = set()
    for server in servers.lower().split(","):
        host, port = _HOST.fullmatch(server.strip()).groups()  # type: ignore[union-attr]  # it matches any text
        host = host.removesuffix(".")
        found.add(f"{'localhost' if host in _THIS_MACHINE else host}:{int(port or _KAFKA_PORT)}")
    return tuple(sorted(found))


def _split(url: str) -> tuple[SplitResult, dict[str, str]]:
    try:
        found = urlsplit(url)
        pairs = parse_qsl(found.query, keep_blank_values=True, strict_parsing=bool(found.query))
    except ValueError as error:
        raise _wrong(url, str(error)) from error
    if len(dict(pairs)) < len(pairs):
        raise _wrong(url, "it says something twice")
    if not all(map(_can_be_a_name, (url, *dict(pairs).values()))):
        raise _wrong(url, "it has characters that no name has")
    return found, dict(pairs)


def _can_be_a_name(text: str) -> bool:
    """Whether the brokers' libraries take it: they are written in C, end at a NUL, and crash at a lone surrogate."""
    return "\0" not in text and is_unicode(text)


def _check(
    url: str, options: dict[str, str], needed: tuple[str, ...], known: tuple[str, ...], place: str, path: str = ""
) -> None:
    if not place:
        raise _wrong(url, "it names no place")
    if "@" in place:
        raise InputError(
            "A broker's URL holds a user or a password, which every user of this machine could read.",
            "Write them to a file, and name it with &config=FILE.",
        )
    if path.strip("/"):
        raise _wrong(url, f"it has a path, {shown(path)}")
    for name in needed:
        if not options.get(name):
            raise _wrong(url, f"it names no {name}")
    for name, value in options.items():
        if name not in known:
            raise _wrong(url, f"it has {shown(name)}")
        if not value:
            raise _wrong(url, f"its {name} is empty")


def _wrong(url: str, why: str) -> InputError:
    return InputError(f"{shown(url)} is no URL of a broker: {why}.", f"Write {', '.join(FORMS)}.")
