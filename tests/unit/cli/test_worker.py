"""The command `vitconv worker`: what it says and refuses. That it works is in system/test_queue.py."""

import json
import signal
import threading
import time
from functools import partial

import commands
import pytest
from photos import image_file

from vitconv.messaging import connect, image_message, memory
from vitconv.messaging.worker import Worker

URLS = (
    "--from",
    "memory://cli?topic=a&group=g",
    "--to",
    "memory://cli?topic=b",
    "--dead-letter",
    "memory://cli?topic=c",
)


run = partial(commands.run, "worker")


@pytest.fixture
def worked(monkeypatch):
    """The worker that would run, instead of running it."""
    found = []
    monkeypatch.setattr(Worker, "run", lambda self: found.append(self))
    yield found
    memory.clear()


@pytest.mark.parametrize("option", ["--batch", "--tries", "--workers"])
def test_numbers_that_are_refused(folder, worked, option):
    code, _, said = run(folder, *URLS, option, "1" + "0" * 400)
    assert code == 2 and f"Invalid value for '{option}'" in said and not worked


def test_it_says_what_it_answers(folder, worked):
    code, out, said = run(folder, *URLS, "--device", "cpu")
    assert (code, out) == (0, "")
    assert said.splitlines()[-1] == f"{folder} answers the messages of memory://cli?topic=a&group=g until Ctrl-C."
    settings = worked[0].settings
    assert (settings.batch, settings.wait, settings.tries, settings.root) == (8, 0.05, 5, None)


def test_its_options(folder, worked, tmp_path):
    options = ("--batch", 3, "--wait", "2s", "--tries", 2, "--root", tmp_path, "--workers", 1, "--processor", "timm")
    code, _, said = run(folder, *URLS, *options, "--port", 0, "--device", "cpu")
    settings = worked[0].settings
    assert code == 0 and "/health/ready" in said
    assert (settings.batch, settings.wait, settings.tries, settings.root, settings.workers) == (3, 2, 2, tmp_path, 1)
    assert worked[0].classifier.preprocessor.name == "timm"


def test_it_warns_where_other_computers_can_reach_it(folder, worked):
    code, _, said = run(folder, *URLS, "--device", "cpu", "--port", 0, "--host", "0.0.0.0")
    warning, *rest = said.splitlines()
    assert code == 0 and warning == "warning: Other computers can reach this server. It shows its figures to anybody."
    assert any(line.startswith("Its health and figures: http://0.0.0.0:") for line in rest)


@pytest.mark.parametrize("time", ["60.1s", "999999999999s"])
def test_a_wait_after_which_a_broker_takes_it_to_be_dead(folder, worked, time):
    code, _, said = run(folder, *URLS, f"--wait={time}")
    assert code == 2 and "is more than 60s" in said and not worked


@pytest.mark.parametrize("time", ["50", "ms", "-1s", "1m", "1e3s"])
def test_what_is_no_time(folder, worked, time):
    code, _, said = run(folder, *URLS, f"--wait={time}")
    assert code == 2 and "is no time such as 50ms or 2s" in said and not worked


@pytest.mark.parametrize("count", [0, 10_001])
def test_a_batch_that_no_broker_takes(folder, worked, count):
    """librdkafka takes up to a million messages in one call."""
    code, _, said = run(folder, *URLS, "--batch", count)
    assert code == 2 and "--batch" in said and not worked


def test_a_worker_that_answers_itself_is_refused_whatever_the_topic_is_called(folder, worked):
    urls = ("--from", "kafka://localhost:9092,b:1?topic=a&group=g", "--to", "kafka://b:1,127.0.0.1:9092?topic=a")
    code, _, said = run(folder, *urls, "--dead-letter", "memory://cli?topic=c")
    assert code == 1 and "--to is the topic that the messages come from" in said and not worked


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"--from": "amqp://x"}, "is no URL of a broker"),
        ({"--to": "memory://cli?topic=a"}, "--to is the topic that the messages come from"),
        ({"--dead-letter": "memory://cli?topic=a"}, "--dead-letter is the topic"),
        ({"--root": "none"}, "There is no folder 'none'"),
        ({"--host": "999.1.1.1", "--port": "0"}, "The server cannot have port 0"),
    ],
)
def test_what_is_refused(folder, worked, change, why):
    given = {**dict(zip(URLS[::2], URLS[1::2], strict=True)), **change}
    code, _, said = run(folder, *(word for pair in given.items() for word in pair), "--device", "cpu")
    assert code == 1 and said.startswith("error: ") and why in said and "Traceback" not in said and not worked


def test_exactly_once_needs_kafka(folder, worked):
    pytest.importorskip("confluent_kafka")
    code, _, said = run(folder, *URLS, "--exactly-once", "--device", "cpu")
    assert code == 1 and "only from Kafka to the same Kafka" in said and not worked


def test_a_folder_that_is_no_model(tmp_path, worked):
    code, _, said = run(tmp_path, *URLS)
    assert code == 1 and said.startswith("error: ") and not worked


def test_a_signal_lets_it_finish(folder):
    """In this process, whose handlers are those of the tests again when it has ended."""
    with connect("memory://cli?topic=a") as images:
        images.publish([image_message(image_file(), "photo")])
    before = signal.getsignal(signal.SIGTERM)
    raised = []
    signal.signal(signal.SIGTERM, lambda number, frame: raised.append(number))
    try:
        results = connect("memory://cli?topic=b&group=r")

        def stop():
            while not results.pull(1, 1):
                pass
            time.sleep(0.1)
            signal.raise_signal(signal.SIGTERM)

        thread = threading.Thread(target=stop)
        thread.start()
        code, _, said = run(folder, *URLS, "--device", "cpu")
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
        memory.clear()
    assert raised == [signal.SIGTERM] and code == 0  # what ends a process is raised behind its work
    (line,) = [json.loads(line) for line in said.splitlines() if '"outcome"' in line]
    assert (line["id"], line["outcome"], line["attempt"]) == ("photo", "answer", 1)
