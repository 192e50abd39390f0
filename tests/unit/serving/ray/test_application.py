"""A copy, without a cluster: Ray Serve's local testing mode has no HTTP, so its application is asked here."""

import asyncio

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from vitconv.errors import InputError
from vitconv.serving.ray.application import Replica, build, deployment
from vitconv.serving.ray.settings import NAME, RaySettings


@pytest.fixture(scope="module")
def replica(folder):
    return Replica(**RaySettings(str(folder)).arguments())


def test_it_answers_with_the_application_of_vitconv_serve(replica, tmp_path):
    Image.new("RGB", (40, 50), "green").save(tmp_path / "image.png")
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        image, headers = (tmp_path / "image.png").read_bytes(), {"Content-Type": "image/png"}
        answer = client.post("/v1/predict", content=image, headers=headers)
    assert answer.status_code == 200
    assert len(answer.json()["logits"]) == 5
    assert "X-Request-ID" not in answer.headers  # Ray Serve's proxy adds it


def test_a_copy_that_answers_is_healthy(folder):
    asyncio.run(Replica(**RaySettings(str(folder)).arguments()).check_health())


def test_a_copy_that_does_not_answer_is_not(folder, monkeypatch):
    def fail(self, pixels):
        raise ValueError("the model is gone")

    replica = Replica(**RaySettings(str(folder)).arguments())
    monkeypatch.setattr("vitconv.serving.classifier.Classifier.logits", fail)
    with pytest.raises(ValueError, match="the model is gone"):
        asyncio.run(replica.check_health())


def test_it_asks_for_the_key(folder, monkeypatch):
    monkeypatch.setenv("VITCONV_API_KEY", "secret")
    with TestClient(Replica(**RaySettings(str(folder)).arguments()).__serve_build_asgi_app__()) as client:
        assert client.post("/v1/predict", content=b"x").status_code == 401
        assert client.get("/health/live").status_code == 200


def test_ray_serve_takes_the_options():
    settings = RaySettings("mine", replicas=1, most_replicas=3)
    made = deployment(**settings.options())
    assert made.name == NAME
    assert made.max_queued_requests == 16
    assert made.backpressure_config.status_code == 503


def test_a_file_s_arguments_are_those_of_a_copy(folder):
    build(RaySettings(str(folder)).arguments())
    with pytest.raises(InputError):
        Replica(**RaySettings(str(folder), device="mps").arguments())
