"""What the process of a model tells of itself; test_benchmark.py has whole runs, and processes that fail."""

import os
import subprocess
import sys
from multiprocessing.connection import Pipe
from types import SimpleNamespace

import psutil
import pytest

from vitconv.errors import InputError, ParityError
from vitconv.optimization import benchmark_process
from vitconv.optimization.benchmark_process import ModelProcess, peak_memory

SAY_PEAK = (
    "from vitconv.optimization.benchmark_process import peak_memory\n"
    "before = peak_memory(); taken = b'x' * 200_000_000; del taken\n"
    "print(before, peak_memory())"
)


def test_the_memory_is_the_process_s_own():
    """Linux tells in `ru_maxrss` what the parent had, too: here torch, and 300 MB more."""
    taken = b"x" * 300_000_000
    done = subprocess.run([sys.executable, "-c", SAY_PEAK], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 200_000_000 < after < 400_000_000
    assert psutil.Process().memory_info().rss > 300_000_000 and len(taken)


def test_the_memory_is_told_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(benchmark_process, "Path", lambda path: SimpleNamespace(read_text=lambda: "nothing"))
    assert peak_memory() >= psutil.Process().memory_info().rss / 2


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes."),
        RuntimeError("Failed to allocate memory for requested buffer of size 9"),
        RuntimeError("Exception from src/inference: std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 9 GiB."),
        chained(ParityError("The model cannot be run.", "Check its config.json.", "loading"), MemoryError()),
    ],
    ids=str,
)
def test_too_little_memory_is_recognised(error):
    assert benchmark_process._failure(error).problem == "There is too little memory to run '{name}'."


def test_errors_for_people_are_passed_on():
    assert benchmark_process._failure(InputError("It is wrong.", "Mend it.")) == ("It is wrong.", "Mend it.")


def test_the_process_ends_when_nobody_is_there(folder):
    """Whether it has been told what to do or not."""
    ours, theirs = Pipe()
    command = f"from vitconv.optimization.benchmark_process import main; main({theirs.fileno()})"
    with subprocess.Popen([sys.executable, "-c", command], pass_fds=[theirs.fileno()], stderr=-1) as process:
        theirs.close()
        ours.close()
        assert process.wait(60) == 0 and process.stderr.read() == b""


def test_a_process_that_was_never_started_needs_no_end():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ModelProcess("roofs"):
        pass
    assert not before or len(os.listdir("/proc/self/fd")) == before
