"""Readiness: what it costs, and what it shows."""

import asyncio
import gc

import pytest
from fastapi import Request

from vitconv.serving.rest import service as module
from vitconv.serving.rest.service import Service
from vitconv.serving.rest.settings import Settings
from vitconv.serving.workers import BusyError, Workers


@pytest.fixture
def served(gate):
    made, classifier = gate
    workers = Workers(1, queue=1)
    yield made, Service(classifier, workers, Settings(workers=1, timeout=30))
    made.open.set()
    workers.drain()


def test_many_who_ask_share_one_inference(served):
    made, service = served

    async def ask():
        await asyncio.gather(*(service.check_ready() for _ in range(10)))
        await service.check_ready()  # it was answered just now

    asyncio.run(ask())
    assert made.calls == 1


def test_it_is_asked_again_after_a_while(served, monkeypatch):
    made, service = served
    asyncio.run(service.check_ready())
    monkeypatch.setattr(module, "_FRESH", 0)
    asyncio.run(service.check_ready())
    assert made.calls == 2


def test_requests_that_are_answered_show_it_too(served, photo):
    made, service = served
    asyncio.run(service.run(lambda: service.classifier(photo), 30))
    asyncio.run(service.check_ready())
    assert made.calls == 1


def test_who_stops_asking_does_not_stop_it_for_others(served):
    made, service = served
    made.close()

    async def ask():
        first, second = (asyncio.create_task(service.check_ready()) for _ in range(2))
        while not made.calls:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        made.open.set()
        await second

    asyncio.run(ask())
    assert made.calls == 1


def test_a_worker_that_hangs_is_not_ready(served):
    made, service = served
    service.settings = Settings(workers=1, timeout=0.2)
    made.close()

    async def ask():
        with pytest.raises(BusyError, match=r"within 0\.2 s"):
            await service.check_ready()
        made.open.set()

    asyncio.run(ask())


def test_a_probe_that_fails_when_nobody_waits_any_more_is_no_news(served, photo):
    """Under load, the log would have a traceback for each."""
    made, service = served
    service.settings = Settings(workers=1, timeout=0.2)
    made.close()
    before = service.workers.enqueue(lambda: service.classifier(photo), 30)
    said = []

    async def ask():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context["message"]))
        with pytest.raises(BusyError, match=r"within 0\.2 s"):
            await service.check_ready()
        made.open.set()
        while not service._probing.done():
            await asyncio.sleep(0.01)
        service._probing = None
        gc.collect()

    asyncio.run(ask())
    assert before.result().name and said == []


def test_a_busy_server_does_not_wait_for_the_body(served, photo):
    made, service = served
    made.close()
    waiting = [service.workers.enqueue(lambda: service.classifier(photo), 30) for _ in range(2)]
    assert made.begun.acquire(timeout=30)

    async def receive():
        pytest.fail("It was read.")

    async def ask():
        with pytest.raises(BusyError, match="busy"):
            async with service.admitted(Request({"type": "http", "headers": []}, receive)):
                pass

    asyncio.run(ask())
    made.open.set()
    for future in waiting:
        future.result(30)
