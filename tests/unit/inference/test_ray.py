"""How the engine for many machines starts. What it computes: see tests/system/test_ray.py."""

import signal

import ray

from vitconv.inference.ray import join_cluster


def test_the_handler_of_sigterm_stays(monkeypatch):
    """Ray sets its own, which ends the process with 15 in place of 143."""

    def init(address, **options):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    join_cluster("data")
    assert signal.getsignal(signal.SIGTERM) is before
