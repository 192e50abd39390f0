"""`vitconv worker` as processes on a real broker: nothing is lost, whatever dies.

Where VITCONV_KAFKA names a broker that runs already, such as Apache Kafka's own, it is that one; else tansu, which is a
process of this test.
"""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from photos import image_file
from PIL import Image
from poisoned_worker import POISON

from vitconv.messaging import connect, image_message
from vitconv.messaging.results import result_of
from vitconv.serving import open_classifier

pytest.importorskip("confluent_kafka")
from kafka_broker import KafkaServer

TESTS = Path(__file__).parents[1]
#: `VITCONV_QUEUE_MESSAGES=1000` for a first look.
COUNT = int(os.environ.get("VITCONV_QUEUE_MESSAGES", "10000"))
#: How often the one worker is killed, and how many messages kill theirs.
KILLS = POISONS = 3 if COUNT >= 10_000 else 1
TRIES = 2


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    with KafkaServer(tmp_path_factory.mktemp("kafka"), os.environ.get("VITCONV_KAFKA", "")) as server:
        yield server


class Topics:
    """Three new topics, and the options of a worker between them."""

    def __init__(self, kafka, name):
        for end in ("images", "results", "dead"):
            kafka.make(f"{name}-{end}", partitions=4)
        url = f"kafka://{kafka.address}?config={kafka.properties}&topic={name}"
        self.images, self.results, self.dead = (f"{url}-{end}" for end in ("images", "results", "dead"))
        self.options = [
            *("--from", f"{self.images}&group={name}", "--to", self.results, "--dead-letter", self.dead),
            *("--tries", str(TRIES), "--device", "cpu", "--port", "0"),
        ]

    def send(self, messages):
        with connect(self.images) as broker:
            for start in range(0, len(messages), 500):
                broker.publish(messages[start : start + 500])


class Reader:
    """Everything in a topic, in the order of its arrival."""

    def __init__(self, url):
        self.broker, self.found = connect(f"{url}&group=reader-{uuid.uuid4()}", most=1000), []

    def read(self):
        for pulled in iter(lambda: self.broker.pull(500, 0.2), []):
            self.broker.ack(pulled)
            self.found += pulled
        return self.found

    def ids(self):
        return {one.id for one in self.read()}


class WorkerProcess:
    """`vitconv worker`, which is started again when it dies, as `restart: unless-stopped` does."""

    def __init__(self, model, options, log):
        self.command = [sys.executable, str(TESTS / "poisoned_worker.py"), "worker", str(model), *options]
        self.log, self.codes, self.memory, self.process = log, [], [], None
        self.start()

    def start(self):
        self.place = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as file:
            self.process = subprocess.Popen(self.command, stderr=file)
        self.memory.append([])

    def tend(self):
        """Start it again if it has died."""
        if self.process.poll() is not None:
            self.codes.append(self.process.returncode)
            self.start()

    def watch(self, ended):
        """Note its memory ten times a second once it answers, whatever else this process does."""
        while not ended.wait(0.1):
            life, pid = self.memory[-1], self.process.pid
            with suppress(psutil.Error):
                if self.answers():
                    life.append(psutil.Process(pid).memory_info().rss)

    def answers(self):
        """Whether this process has answered something."""
        return b'"outcome"' in self.log.read_bytes()[self.place :]

    def is_ready(self):
        """Whether this process has said where it tells of its health."""
        return b"/metrics" in self.log.read_bytes()[self.place :]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def giant():
    """A PNG that says that it has 10^10 pixels."""
    head = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + image_file()[33:]


def large(tmp_path):
    Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(tmp_path / "large.jpg")
    return (tmp_path / "large.jpg").read_bytes()


def messages(tmp_path):
    """Images; of each hundred one is broken and one is giant; some kill whoever reads them."""
    some = [image_file("JPEG", seed=i) for i in range(50)]
    odd = {17: b"", 34: some[0][:200], 51: b"%PDF-1.7"}
    huge, twelve = giant(), large(tmp_path)
    made = []
    for i in range(COUNT):
        content = some[i % len(some)]
        if i % 100 == 17:
            content = list(odd.values())[i // 100 % 3]
        elif i % 100 == 50:
            content = huge if i // 100 % 2 else twelve
        made.append(image_message(content, f"m{i}"))
    for i in range(POISONS):
        place = COUNT // 10 + i * COUNT // POISONS
        made[place] = image_message(POISON, f"poison{i}")
    return made


def to_kill(workers, all_done):
    """The first worker, once it answers; the other where that one has answered all that was sent, and is idle."""
    answering = [worker for worker in workers if worker.answers()]
    return answering[0] if answering and (answering[0] is workers[0] or all_done) else None


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [[], ["--exactly-once"]], ids=["at least once", "exactly once"])
def test_two_workers_of_which_one_is_killed(kafka, folder, tmp_path, options):
    if options and not os.environ.get("VITCONV_KAFKA"):
        pytest.skip("tansu 0.6 shows the messages of transactions that were aborted")
    topics = Topics(kafka, f"q{os.getpid()}{len(options)}")
    sent = messages(tmp_path)
    wanted = {one.id for one in sent}
    # A kill in the midst of each part but the last, which is what the workers have left to do after all kills.
    size = -(-COUNT // (KILLS + 1))
    parts = [sent[start : start + size] for start in range(0, COUNT, size)]
    topics.send(parts[0])
    results, dead = Reader(topics.results), Reader(topics.dead)
    workers = [WorkerProcess(folder, [*topics.options, *options], tmp_path / f"{i}.log") for i in range(2)]
    begun, killed, ended = time.monotonic(), 0, threading.Event()
    watching = [threading.Thread(target=worker.watch, args=[ended]) for worker in workers]
    try:
        for one in watching:
            one.start()
        while not wanted <= results.ids() | dead.ids():
            for worker in workers:
                worker.tend()
            done, sent_until_now = len(results.ids() | dead.ids()), sum(map(len, parts[: killed + 1]))
            amid = killed < KILLS and done > sent_until_now - size // 2
            if amid and (worker := to_kill(workers, all_done=done == sent_until_now)):
                worker.process.kill()
                killed += 1
                topics.send(parts[killed])
            assert time.monotonic() - begun < 1700, sorted(wanted - results.ids() - dead.ids())[:20]
            time.sleep(0.3)
        seconds = time.monotonic() - begun
        while not all(worker.is_ready() for worker in workers):
            assert time.monotonic() - begun < 1700, [worker.codes for worker in workers]
            for worker in workers:
                worker.tend()
            time.sleep(0.3)
        codes = [worker.end() for worker in workers]
    finally:
        ended.set()
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
        for one in watching:
            one.join()
    assert killed == KILLS and codes == [143, 143]

    # Each has a result or a dead letter; those that kill have no result.
    poison = {one.id for one in sent if one.content == POISON}
    letters = {one.id for one in dead.found}
    assert poison <= letters and not poison & results.ids()
    assert results.ids() | letters == wanted
    # Only what was in work at a kill may be suspected.
    assert len(letters) <= POISONS + KILLS * 16, letters

    # Repeats are equal bit for bit, and all are what a model in this process says.
    times = Counter(one.id for one in results.found)
    by_id = {}
    for one in results.found:
        assert by_id.setdefault(one.id, one) == one
    classifier, known = open_classifier(folder, "cpu"), {}
    for one in sent:
        if one.id in by_id:
            content = known.setdefault(one.content, json.loads(result_of(one, classifier).message.content))
            assert json.loads(by_id[one.id].content) == {**content, "id": one.id}
    repeats = sum(times.values()) - len(times)
    if options:
        assert repeats == 0 and len(dead.found) == len(letters)

    # Memory is flat: after the first tenth of its life, no process grows by more than what one large image takes.
    growth = []
    for worker in workers:
        for life in worker.memory:
            if len(life) > 40:
                early, late = life[len(life) // 10 : len(life) // 2], life[-len(life) // 4 :]
                growth.append(sorted(late)[len(late) // 2] - max(early))
    assert not growth or max(growth) < 64 << 20, growth
    assert growth or COUNT < 10_000
    died = [code for worker in workers for code in worker.codes]
    print(
        f"{COUNT} messages in {seconds:.0f} s; {len(died)} deaths; {repeats} repeats; {len(letters)} dead letters; "
        f"memory grew by {max(growth, default=0) >> 20} MiB at most"
    )


def test_health_log_and_the_end(kafka, folder, tmp_path):
    topics = Topics(kafka, f"h{os.getpid()}")
    log = tmp_path / "log"
    worker = WorkerProcess(folder, topics.options, log)
    try:
        while not (found := re.search(r"http://127.0.0.1:(\d+)/metrics", log.read_text())):
            assert worker.process.poll() is None, log.read_text()
            time.sleep(0.1)
        topics.send([image_message(image_file(), "photo-1"), image_message(b"x", "photo-2")])
        results = Reader(topics.results)
        while len(results.read()) < 2:
            time.sleep(0.1)
        from urllib.request import urlopen

        ready = json.load(urlopen(f"http://127.0.0.1:{found[1]}/health/ready"))
        assert ready["status"] == "ready" and len(ready["fingerprint"]) == 64
        assert json.load(urlopen(f"http://127.0.0.1:{found[1]}/health/live")) == {"status": "live"}
        figures = urlopen(f"http://127.0.0.1:{found[1]}/metrics").read().decode()
        assert 'vitconv_messages_total{outcome="answer"} 1.0' in figures
        assert 'vitconv_messages_total{outcome="error"} 1.0' in figures and "vitconv_broker_up 1.0" in figures
        assert worker.end() == 143
    finally:
        worker.process.kill()
        worker.process.wait()
    assert log.read_text().endswith("error: Terminated.\nThe worker has ended.\n")
    done = {line["id"]: line for line in worker.lines() if line["message"] == "message"}
    assert (done["photo-1"]["outcome"], done["photo-2"]["outcome"]) == ("answer", "error")
    assert done["photo-1"]["attempt"] == 1 and done["photo-1"]["ms"] > 0


def test_a_broker_that_goes_away(kafka, folder, tmp_path):
    if os.environ.get("VITCONV_KAFKA"):
        pytest.skip("the broker is not this test's own")
    topics = Topics(kafka, f"a{os.getpid()}")
    worker = WorkerProcess(folder, topics.options, tmp_path / "log")
    try:
        sent = [image_message(image_file(seed=i), f"m{i}") for i in range(200)]
        topics.send(sent[:100])
        while not worker.answers():
            time.sleep(0.1)
        kafka.freeze()
        time.sleep(25)
        assert worker.process.poll() is None
        kafka.thaw()
        topics.send(sent[100:])
        results, end = Reader(topics.results), time.monotonic() + 120
        while len(results.ids()) < 200 and time.monotonic() < end:
            time.sleep(0.3)
        assert results.ids() == {one.id for one in sent}
        assert worker.end() == 143
    finally:
        kafka.thaw()
        worker.process.kill()
        worker.process.wait()
