"""What is refused before a cluster starts. tests/system/test_ray_serve.py starts one."""

import pytest

from vitconv.errors import InputError
from vitconv.serving.ray.server import serve
from vitconv.serving.ray.settings import RaySettings


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def fail(*arguments):
        pytest.fail("a cluster was started")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("vitconv.serving.ray.server.join_cluster", fail)


def refused(settings):
    with pytest.raises(InputError) as caught:
        serve(settings, "127.0.0.1", 1, lambda: None)
    return caught.value.problem


def test_more_copies_than_cores(monkeypatch):
    monkeypatch.setattr("vitconv.serving.ray.server.cores", lambda: 4)
    settings = RaySettings("mine", replicas=1, most_replicas=3, workers=2)
    assert refused(settings) == "3 replicas of 2 workers need 6 cores; this machine has 4."


def test_more_copies_than_gpus(monkeypatch):
    monkeypatch.setattr("vitconv.serving.ray.server.cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert refused(RaySettings("mine", "cuda", replicas=2)) == "2 replicas need a GPU each; this machine has 1."


def test_another_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert "RAY_ADDRESS names a cluster" in refused(RaySettings("mine"))
