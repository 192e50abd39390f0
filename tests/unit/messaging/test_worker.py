"""The worker, on every broker: nothing is lost, whatever fails."""

import json
import threading
import time
from dataclasses import replace

import pytest
from photos import image_file

from vitconv.errors import InputError
from vitconv.messaging import BrokerError, Message, RefusedError, Worker, WorkerSettings, image_message
from vitconv.messaging.results import result_of
from vitconv.messaging.worker import State

SETTINGS = WorkerSettings(batch=4, wait=0.02, tries=3, workers=2, cores=1)


@pytest.mark.parametrize("count", [0, 10**400, None])
def test_a_number_of_workers_that_cannot_be_had(count):
    with pytest.raises(InputError, match="The number of workers is "):
        WorkerSettings(workers=count)


class Line:
    """Three topics of one kind of broker, and a worker between them."""

    def __init__(self, kind, places, classifier):
        self.images, self.results, self.dead = (places(kind) for _ in range(3))
        self.classifier, self.outcomes = classifier, []

    def send(self, messages):
        self.images.open(self.images.writer).publish(messages)

    def worker(self, classifier=None, source=None, target=None, settings=SETTINGS):
        made = Worker(
            classifier or self.classifier,
            source or self.images.open(self.images.reader),
            target or self.results.open(self.results.writer),
            self.dead.open(self.dead.writer),
            settings,
        )
        if isinstance(made.classifier.runtime, Faulty):
            made.classifier.runtime.armed = True
        made.on_done = lambda message, outcome, *more: self.outcomes.append((message.id, outcome))
        return made

    def work(self, worker, count, seconds=60):
        """Run it until so many messages came to something."""
        thread = threading.Thread(target=worker.run)
        thread.start()
        end = time.monotonic() + seconds
        while sum(outcome != "retry" for _, outcome in self.outcomes) < count and time.monotonic() < end:
            assert thread.is_alive()
            time.sleep(0.01)
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert worker.state.in_work == 0

    def read(self, place, count):
        reader, found, end = place.open(place.reader), [], time.monotonic() + 30
        while len(found) < count and time.monotonic() < end:
            pulled = reader.pull(count - len(found), 0.1)
            reader.ack(pulled)
            found += pulled
        assert reader.pull(1, 0.3) == []
        return {one.id: one for one in found}


@pytest.fixture(params=["memory", "kafka", "pubsub"])
def line(request, places, classifier):
    return Line(request.param, places, classifier)


@pytest.fixture
def quick(places, classifier):
    """In memory, for what has nothing to do with the broker."""
    return Line("memory", places, classifier)


def images(count):
    return [image_message(image_file(seed=i), f"m{i}") for i in range(count)]


class Faulty:
    """A model that fails with these errors, once it is armed: a worker tries it before it begins."""

    def __init__(self, classifier, *faults):
        self.info, self._runtime, self._faults = classifier.info, classifier.runtime, list(faults)
        self._lock, self.armed = threading.Lock(), False

    def __call__(self, pixels):
        with self._lock:
            fault = self._faults.pop(0) if self._faults and self.armed else None
        if fault is not None:
            raise fault
        return self._runtime(pixels)


def test_every_message_has_its_result(line):
    sent = images(10)
    sent[3] = image_message(b"no image", "m3")
    line.send(sent)
    line.work(line.worker(), 10)
    found = line.read(line.results, 10)
    assert found.keys() == {one.id for one in sent}
    for one in sent:
        assert found[one.id].content == result_of(one, line.classifier).message.content
    assert json.loads(found["m3"].content)["error"] and sorted(line.outcomes)[3] == ("m3", "error")
    assert line.read(line.dead, 0) == {}


@pytest.mark.slow
def test_what_fails_is_tried_again_and_then_given_up(line):
    line.send(images(1))
    model = replace(line.classifier, runtime=Faulty(line.classifier, *[RuntimeError("no memory")] * 3))
    line.work(line.worker(model), 1)
    assert line.outcomes == [("m0", "retry"), ("m0", "retry"), ("m0", "dead_letter")]
    (letter,) = line.read(line.dead, 1).values()
    assert letter.content == images(1)[0].content
    assert letter.attributes["vitconv-problem"] == "RuntimeError: no memory"
    assert letter.attributes["vitconv-attempts"] == "3"
    assert line.read(line.results, 0) == {}


@pytest.mark.slow
def test_what_fails_once_is_answered(line):
    line.send(images(3))
    model = replace(line.classifier, runtime=Faulty(line.classifier, MemoryError()))
    line.work(line.worker(model), 3)
    assert line.read(line.results, 3).keys() == {"m0", "m1", "m2"}
    assert [outcome for _, outcome in line.outcomes].count("retry") == 1


@pytest.mark.slow
def test_what_a_dead_worker_had_is_answered_by_the_next(line):
    line.send(images(6))
    dead = line.images.open(line.images.reader)
    had = []
    while len(had) < 3:
        had += dead.pull(3 - len(had), 0.1)
    dead.close()
    line.work(line.worker(), 6)
    assert line.read(line.results, 6).keys() == {f"m{i}" for i in range(6)}


def test_nothing_is_acknowledged_before_its_result_is_accepted(quick):
    """A broker that takes no results: the messages stay."""
    order = []

    class Target:
        def check(self):
            pass

        def publish(self, messages):
            order.append("publish")
            raise BrokerError("It is away.", "Wait.")

    source = quick.images.open(quick.images.reader)
    acknowledge = source.ack
    source.ack = lambda messages: (order.append("ack"), acknowledge(messages))
    quick.send(images(2))
    worker = quick.worker(source=source, target=Target())
    thread = threading.Thread(target=worker.run)
    thread.start()
    while len(order) < 3:
        time.sleep(0.01)
    assert worker.state.problem.problem == "It is away."
    worker.stop()
    thread.join(30)
    assert set(order) == {"publish"} and quick.outcomes == []
    source.close()
    quick.work(quick.worker(), 2)
    assert quick.read(quick.results, 2).keys() == {"m0", "m1"}


def test_a_broker_that_goes_away_is_waited_for(quick, caplog):
    source = quick.images.open(quick.images.reader)
    fails = iter([True] * 4)

    def flaky(do):
        def call(*arguments):
            if next(fails, False):
                raise BrokerError("It is away.", "Wait.")
            return do(*arguments)

        return call

    for name in ("check", "pull", "ack"):
        setattr(source, name, flaky(getattr(source, name)))
    quick.send(images(2))
    worker = quick.worker(source=source)
    quick.work(worker, 2)
    assert quick.read(quick.results, 2).keys() == {"m0", "m1"}
    assert worker.state.problem is None
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["It is away."]


def test_a_broker_that_refuses_ends_the_worker(quick):
    class Source:
        def check(self):
            raise InputError("There is no topic.", "Create it.")

    worker = quick.worker(source=Source())
    with pytest.raises(InputError, match="no topic"):
        worker.run()


def test_at_the_end_what_was_pulled_is_finished(quick):
    quick.send(images(40))
    worker = quick.worker()
    done = quick.outcomes.append
    worker.on_done = lambda message, outcome, *more: (done((message.id, outcome)), worker.stop())
    worker.run()
    assert 4 <= len(quick.outcomes) <= 8  # its batch, and the one ahead
    assert quick.read(quick.results, len(quick.outcomes)).keys() == {id for id, _ in quick.outcomes}
    assert quick.images.open(quick.images.reader).pull(40, 0.1)[0].attempt == 1


def test_tries_that_are_used_up_are_not_tried(quick):
    """As when the process ended in each: nothing is computed."""
    quick.send(images(1))
    for _ in range(3):
        reader = quick.images.open(quick.images.reader)
        assert len(reader.pull(1, 0.1)) == 1
        reader.close()
    model = replace(quick.classifier, runtime=Faulty(quick.classifier))
    worker = quick.worker(model)
    worker.classifier.runtime._runtime = None  # it would fail with another error
    quick.work(worker, 1)
    (letter,) = quick.read(quick.dead, 1).values()
    assert "never finished" in letter.attributes["vitconv-problem"] and letter.attributes["vitconv-attempts"] == "4"


def test_what_came_with_a_problem_is_not_tried(quick):
    """An id of 400 kB would be in the result three times: no topic would take it."""
    quick.send([image_message(image_file(), "a" * 400_000), *images(1)])
    quick.work(quick.worker(), 2)
    assert [outcome for _, outcome in quick.outcomes] == ["dead_letter", "answer"]
    (letter,) = quick.read(quick.dead, 1).values()
    assert letter.content == image_file() and len(letter.id) < 100
    assert "has 400,000 bytes" in letter.attributes["vitconv-problem"]
    assert quick.read(quick.results, 1).keys() == {"m0"}


@pytest.mark.parametrize(("most", "content", "other"), [(2000, True, True), (1500, True, False), (500, False, False)])
def test_of_a_dead_letter_that_is_refused_as_much_is_sent_as_the_topic_takes(quick, most, content, other):
    """Many workers in turn would end by a stranger's message otherwise."""
    image = bytes(1000)
    quick.send([Message(image, {"ce-id": "a" * 1025, "other": "x" * 400}), *images(1)])
    worker = quick.worker()
    limit(worker._dead, most)
    quick.work(worker, 2)
    assert [outcome for _, outcome in quick.outcomes] == ["dead_letter", "answer"]
    (letter,) = quick.read(quick.dead, 1).values()
    assert (letter.content == image, "other" in letter.attributes) == (content, other)
    problem = letter.attributes["vitconv-problem"]
    assert ("does not take its content of 1,000 bytes" in problem) is not content and "has 1,025 bytes" in problem
    assert quick.read(quick.results, 1).keys() == {"m0"}


def test_what_no_topic_takes_ends_the_worker(quick):
    quick.send([Message(b"", {"ce-id": "a" * 1025})])
    for name in ("_dead", "_target"):
        worker = quick.worker()
        limit(getattr(worker, name), 10)
        with pytest.raises(InputError, match="of at most 10"):
            worker.run()
        worker._source.close()
        if name == "_dead":
            quick.read(quick.images, 1)
            quick.send(images(1))


def limit(broker, most):
    """Have it refuse messages that are larger."""
    publish = broker.publish

    def checked(messages):
        for one in messages:
            size = len(one.content) + sum(len(text.encode()) for pair in one.attributes.items() for text in pair)
            if size > most:
                raise RefusedError(f"It has {size} bytes, of at most {most}.", "Send less.", one)
        publish(messages)

    broker.publish = checked


def test_a_file_that_cannot_be_read_now_is_read_later(quick, tmp_path, monkeypatch):
    from vitconv.messaging import results as module

    (tmp_path / "a.png").write_bytes(image_file())
    fails, read = iter([True, True]), module.open_file

    def flaky(path):
        if next(fails, False):
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(module, "open_file", flaky)
    quick.send([Message(b"", {"ce-id": "a", "ce-dataref": "a.png"})])
    quick.work(quick.worker(settings=replace(SETTINGS, root=tmp_path)), 1)
    assert quick.outcomes == [("a", "answer")]


def test_a_file_that_may_not_be_read_is_tried_once_each_time(quick, tmp_path, monkeypatch):
    """To wait, with all others of its batch, changes no permission."""
    from vitconv.messaging import results as module

    reads = []

    def refuse(path):
        reads.append(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "open_file", refuse)
    quick.send([Message(b"", {"ce-id": "a", "ce-dataref": "a.png"})])
    quick.work(quick.worker(settings=replace(SETTINGS, root=tmp_path, tries=1)), 1)
    assert quick.outcomes == [("a", "dead_letter")] and len(reads) == 1


def test_before_its_first_contact_it_is_not_ready():
    assert State().problem is not None
