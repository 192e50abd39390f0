import os

import torch

from vitconv.inference import machine


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    assert 1 <= machine.cores() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_instructions_are_torch_s_names_in_order(monkeypatch):
    known = set(torch.cpu.get_capabilities())
    assert known & set(machine.INSTRUCTIONS)
    assert set(machine.instructions()) <= known
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_int8": True, "avx2": True, "avx512_vnni": False, "mystery": True})  # fmt: skip
    machine.instructions.cache_clear()
    try:
        assert machine.instructions() == ("avx2", "amx_int8")
    finally:
        machine.instructions.cache_clear()
