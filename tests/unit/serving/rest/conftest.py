"""A small model behind the REST application, in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from photos import image_file
from starlette.testclient import TestClient

from vitconv.serving import Classifier, open_classifier
from vitconv.serving.rest import Settings, create_app


@pytest.fixture(scope="session")
def classifier(folder: Path) -> Classifier:
    """The model of five trees."""
    return open_classifier(folder, "cpu")


@pytest.fixture
def start(classifier: Classifier) -> Iterator[Callable[..., TestClient]]:
    """Start the application with these settings and, perhaps, another model."""
    started: list[TestClient] = []

    def start(model: Classifier = classifier, **settings: Any) -> TestClient:
        app: FastAPI = create_app(model, Settings(**{"workers": 2, **settings}))
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        started.append(client)
        return client

    yield start
    for client in started:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start: Callable[..., TestClient]) -> TestClient:
    """The application."""
    return start()


@pytest.fixture(scope="session")
def photo() -> bytes:
    """An image file."""
    return image_file("JPEG")


class Gate:
    """A model that waits until it is let through, and counts who waits."""

    def __init__(self, classifier: Classifier) -> None:
        self.info, self._runtime = classifier.info, classifier.runtime
        self.open, self.begun = threading.Event(), threading.Semaphore(0)
        self.calls = 0
        self.open.set()

    def close(self) -> None:
        """Let nothing through from now on; ``begun`` counts what comes to the gate."""
        self.open.clear()
        self.begun = threading.Semaphore(0)

    def __call__(self, pixels: Any) -> Any:
        self.calls += 1
        self.begun.release()
        assert self.open.wait(30)
        return self._runtime(pixels)


@pytest.fixture
def gate(classifier: Classifier) -> Iterator[tuple[Gate, Classifier]]:
    """A gate, open, and the model behind it."""
    made = Gate(classifier)
    yield made, replace(classifier, runtime=made)
    made.open.set()
