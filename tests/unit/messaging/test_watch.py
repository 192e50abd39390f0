"""What a worker shows: health, figures, the log."""

import dataclasses
import json
import logging
import socket
import urllib.request

import pytest
from photos import image_file
from scraped import samples
from starlette.testclient import TestClient

from vitconv.messaging import (
    BrokerError,
    Message,
    Worker,
    WorkerSettings,
    connect,
    image_message,
    memory,
    watched,
)
from vitconv.messaging.metrics import Metrics
from vitconv.messaging.watch import STUCK, health_app
from vitconv.messaging.worker import State
from vitconv.serving import open_classifier


@pytest.fixture
def state():
    return State(problem=None)


@pytest.fixture
def metrics(state, classifier):
    return Metrics(state, classifier, "1.2.3")


@pytest.fixture
def client(state, classifier, metrics):
    return TestClient(health_app(state, classifier.info, metrics))


def test_ready_is_whether_the_brokers_answer(client, state, classifier):
    ready = {"status": "ready", "model": "trees", "fingerprint": classifier.info.fingerprint}
    assert (client.get("/health/ready").status_code, client.get("/health/ready").json()) == (200, ready)
    state.problem = BrokerError("Kafka does not answer.", "Check it.")
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json() == {"error": {"problem": "Kafka does not answer.", "remedy": "Check it."}}
    assert client.get("/health/live").status_code == 200  # to start it again would not help


def test_live_is_whether_it_does_something(client, state):
    assert client.get("/health/live").json() == {"status": "live"}
    state.seen -= STUCK + 1
    assert client.get("/health/live").status_code == 503


def test_figures(client, state, metrics, classifier):
    metrics.observe("answer", 0.2)
    metrics.observe("answer", 3)
    metrics.observe("dead_letter", 1)
    state.in_work = 7
    found = samples(client)
    counted = {key[1]: value for key, value in found.items() if key[0] == "vitconv_messages_total"}
    assert counted == {"answer": 2, "error": 0, "dead_letter": 1, "retry": 0}
    assert found["vitconv_message_seconds_count",] == 3 and found["vitconv_message_seconds_sum",] == 4.2
    assert (found["vitconv_messages_in_work",], found["vitconv_broker_up",]) == (7, 1)
    assert found["vitconv_idle_seconds",] >= 0 and found["process_resident_memory_bytes",] > 1e6
    (info,) = [key for key in found if key[0] == "vitconv_model_info"]
    assert {"trees", classifier.info.fingerprint, "transformers", "1.2.3"} == set(info[1:])
    state.problem = BrokerError("a", "b")
    assert samples(client)["vitconv_broker_up",] == 0


def test_each_message_s_image_counts_once(client, metrics, classifier):
    answer = classifier(image_file())
    metrics.observe("answer", 0.2, answer)
    metrics.observe("error", 0.2)
    metrics.observe("retry", 0.2)  # it comes again
    metrics.observe("dead_letter", 0.2)
    metrics.observe("answer", 0.2, answer)
    found = samples(client)
    images = {key[1]: value for key, value in found.items() if key[0] == "vitconv_images_total"}
    assert images == {"answer": 2, "unreadable": 1, "failed": 1}
    assert found["vitconv_answers_total", *sorted((answer.name, "unknown"))] == 2
    assert found["vitconv_answer_probability_count",] == 2
    assert found["vitconv_model_written_timestamp_seconds",] > 1e9


def test_what_a_worker_answers_is_counted(certain):
    calibrated = open_classifier(certain, "cpu")
    ends = [connect(f"memory://counted?topic={name}&group=g") for name in "abc"]
    worker = Worker(calibrated, *ends, WorkerSettings(batch=4, workers=1, cores=1, wait=0.01))
    sent = [image_message(image_file(seed=i), f"m{i}") for i in range(3)] + [image_message(b"no image", "m3")]
    sent.append(image_message(b"", "x" * 2000))  # its id is too long: a dead letter
    ends[0].publish(sent)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with watched(worker, listener):
            record = worker.on_done

            def stop_after_the_last(*what):
                record(*what)
                done.append(what[1])
                if len(done) == len(sent):
                    worker.stop()

            done, worker.on_done = [], stop_after_the_last
            worker.run()
            host, port = listener.getsockname()
            text = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30).read().decode()
    memory.clear()
    assert sorted(done) == ["answer", "answer", "answer", "dead_letter", "error"]
    for outcome, count in (("answer", 3), ("unreadable", 1), ("failed", 1)):
        assert f'vitconv_images_total{{outcome="{outcome}"}} {count}.0' in text
    assert "vitconv_oddness_rank_count 3.0" in text and "vitconv_answer_probability_count 3.0" in text


def test_each_message_is_a_line(classifier, capsys):
    ends = [connect(f"memory://watch?topic={name}&group=g") for name in "abc"]
    worker = Worker(classifier, *ends, WorkerSettings(workers=1, cores=1))
    with watched(worker):
        worker.on_done(Message(b"abc", {"ce-id": "é\n"}, attempt=2), "retry", "no memory", 0.0123, None)
    memory.clear()
    for name in ("uvicorn", "vitconv.messaging"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    line = json.loads(capsys.readouterr().err)
    del line["time"]
    assert line == {
        "level": "info",
        "message": "message",
        "id": "é\n",
        "outcome": "retry",
        "attempt": 2,
        "ms": 12.3,
        "image_bytes": 3,
        "problem": "no memory",
    }
    assert dataclasses.is_dataclass(worker.state)
