"""The brokers, each behind the same interface, and the small model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitconv.messaging import Broker, connect, memory
from vitconv.serving import Classifier, open_classifier

_numbers = itertools.count()


class Place:
    """A new topic of some broker.

    Attributes:
        writer: the URL to send to it.
        reader: the URL to read it, for a second reader, too.
    """

    def __init__(self, writer: str, reader: str) -> None:
        self.writer, self.reader = writer, reader
        self._opened: list[Broker] = []

    def open(self, url: str, **options: Any) -> Broker:
        """A broker, closed when the test ends."""
        self._opened.append(connect(url, **options))
        return self._opened[-1]

    def close(self) -> None:
        for broker in self._opened:
            broker.close()


def _memory(request: pytest.FixtureRequest, name: str) -> Place:
    request.addfinalizer(memory.clear)
    return Place(f"memory://tests?topic={name}", f"memory://tests?topic={name}&group=readers")


def _kafka(request: pytest.FixtureRequest, name: str) -> Place:
    broker = request.getfixturevalue("kafka")
    broker.make(name, partitions=1)
    url = f"kafka://{broker.address}?topic={name}&config={broker.properties}"
    return Place(url, f"{url}&group={name}-readers")


def _pubsub(request: pytest.FixtureRequest, name: str) -> Place:
    request.getfixturevalue("pubsub").make("tests", name, f"{name}-readers")
    return Place(f"pubsub://tests/{name}", f"pubsub://tests/{name}?subscription={name}-readers")


BROKERS: dict[str, Callable[[pytest.FixtureRequest, str], Place]] = {
    "memory": _memory,
    "kafka": _kafka,
    "pubsub": _pubsub,
}


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A broker that speaks Kafka's protocol: that of VITCONV_KAFKA, such as Apache's, or tansu as a process."""
    pytest.importorskip("confluent_kafka")
    from kafka_broker import KafkaServer

    with KafkaServer(tmp_path_factory.mktemp("kafka"), os.environ.get("VITCONV_KAFKA", "")) as server:
        yield server


@pytest.fixture(scope="session")
def pubsub_server() -> Iterator[Any]:
    """Google's emulator, where PUBSUB_EMULATOR_HOST names it, or the fake."""
    pytest.importorskip("google.cloud.pubsub_v1")
    import pubsub_fake

    if address := os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield pubsub_fake.Emulator(address)
        return
    with pubsub_fake.FakePubSub() as server:
        yield server


@pytest.fixture
def pubsub(pubsub_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_server.address)
    return pubsub_server


# The broker of Kafka takes seconds for each new topic and group.
@pytest.fixture(params=["memory", "pubsub", pytest.param("kafka", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A new topic of each broker in turn."""
    made = BROKERS[request.param](request, f"topic-{os.getpid()}-{next(_numbers)}")
    yield made
    made.close()


@pytest.fixture
def places(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Place]]:
    """Makes new topics of a kind of broker."""
    made: list[Place] = []

    def make(kind: str) -> Place:
        made.append(BROKERS[kind](request, f"topic-{os.getpid()}-{next(_numbers)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def classifier(folder: Path) -> Classifier:
    """The model of five trees."""
    return open_classifier(folder, "cpu")
