"""The command ``benchmark``, in words, exit codes and processes that end."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import commands
import psutil
import pytest
import recorded

from vitconv.inference import RUNTIMES
from vitconv.optimization.benchmark import Benchmark, Machine, Variant

#: Most of them start processes, each of which imports torch.
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]


run = partial(commands.run, "benchmark")


def variant(name, ms):
    figures = {
        "p50_ms": ms,
        "p90_ms": ms,
        "from_file_p50_ms": ms,
        "from_file_p90_ms": ms,
        "images_per_second": 1000 / ms,
    }
    facts = {
        "runtime": "transformers",
        "versions": {},
        "settings": {},
        "device": "cpu",
        "processor": "transformers",
        "threads": 2,
    }
    sizes = {"load_seconds": 0.5, "peak_bytes": 10**9, "folder_bytes": 10**8, "cores": 1.9}
    return Variant(name=name, folder=f"/models/{name}", **figures, **facts, **sizes)


MACHINE = Machine("Intel Xeon", 2, ("avx2",), None, 0.0, 2)
DONE = Benchmark((variant("[red]slow", 400), variant("fast", 100)), MACHINE, ("a.jpg",), 12.0, 5, ("The note.",))
CONCLUSION = (
    "fast is 4.0 × as fast as [red]slow at batch 1 (4.0 × from the file on), 4.0 × at batch 8, and of the same size.\n"
)


@pytest.fixture
def given(monkeypatch):
    """Replace the benchmark, and return the arguments that it gets."""
    arguments = {}

    def benchmark_models(models, images, *, on_step, on_progress, **options):
        arguments.update(models=models, images=images, **options)
        on_step("Measuring")
        on_progress(1, 0, 1)
        return DONE

    monkeypatch.setattr("vitconv.optimization.benchmark_models", benchmark_models, raising=False)
    return arguments


def test_the_tables_and_the_conclusion_are_printed(given):
    code, out, err = run("slow", "fast", "--images", "photos", "--rounds", 5, "--device", "cpu")
    assert code == 0
    assert given == {"models": [Path("slow"), Path("fast")], "images": Path("photos"), "rounds": 5, "device": "cpu"}
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["model", "p50", "ms", "p90", "ms", "×", "images/s", "×", "p50", "ms", "p90", "ms", "×"]
    assert lines[2] == ["[red]slow", "400", "400", "1.0", "2.50", "1.0", "400", "400", "1.0"]
    assert lines[3] == ["fast", "100", "100", "4.0", "10.0", "4.0", "100", "100", "4.0"]
    assert ["fast", "transformers", "cpu", "0.500", "1,000", "100", "1.9"] in lines
    assert "machine: Intel Xeon, 2 cores (avx2)\n" in out and out.endswith(CONCLUSION)
    assert err == "Measuring…\nMeasuring: 1 of 1…\nnote: The note.\n"


def test_quiet_is_a_line(given):
    assert run("slow", "fast", "--images", "photos", "-q") == (0, CONCLUSION, "")
    assert (given["rounds"], given["device"]) == (10, "auto")


def test_json_is_for_programs(given):
    code, out, err = run("slow", "fast", "--images", "photos", "--json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(DONE.to_json()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "photos"], "Missing argument 'MODEL"),
        (["model"], "Missing option '--images'"),
        (["model", "--images", "photos", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["model", "--images", "photos", "--rounds", "1" + "0" * 400], "Invalid value for '--rounds'"),
        (["", "--images", "photos"], "It is empty."),
    ],
)
def test_wrong_usage_is_told(given, arguments, said):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and said in err and not given


def test_the_help_is_in_words():
    code, out, err = run("--help")
    assert code == 0 and "benchmark [OPTIONS] MODEL..." in out
    assert "list[" not in out and "{" not in out


def test_what_is_refused_is_told_in_two_lines(folder, tmp_path):
    code, out, err = run(folder, tmp_path / "none", "--images", tmp_path, "-q", "--json")
    assert code == 1 and json.loads(out)["error"] == f"There is no folder '{tmp_path}/none'."
    assert err == f"error: There is no folder '{tmp_path}/none'.\nPass a folder that `vitconv convert` has written.\n"


def test_a_process_that_is_killed_is_named(folder, tmp_path, write_images, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "recorded", recorded.KIND)
    model = recorded.make(folder, tmp_path / "onnx", "killed")
    code, out, err = run(model, "--images", write_images(2), "-q", "--device", "cpu")
    assert (code, out) == (1, "")
    assert err == (
        "error: The process of 'onnx' was killed, perhaps for want of memory.\n"
        "Benchmark fewer models at once, or where there is more memory.\n"
    )


MAIN = (
    "import recorded; from vitconv.inference import RUNTIMES; RUNTIMES['recorded'] = recorded.KIND\n"
    "from vitconv.cli import run; run()"
)


STOPPED_WHILE_STARTING = (
    "import os, pathlib, signal, subprocess, sys, time\n"
    "Popen = subprocess.Popen\n"
    "def start(*arguments, **options):\n"
    "    process = Popen(*arguments, **options)\n"
    "    if 'start_new_session' in options:\n"
    "        pathlib.Path('pid').write_text(str(process.pid))\n"
    "        os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
    "    return process\n"
    "subprocess.Popen = start; from vitconv.cli import run; run()"
)


def not_ignored():
    """A shell's background job inherits Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("number", "word", "until"),
    [
        (signal.SIGINT, "Interrupted", "one computes for ever"),
        pytest.param(signal.SIGINT, "Interrupted", "they take turns", marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, "Terminated", "they take turns", marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_no_process(folder, tmp_path, write_images, number, word, until):
    """A terminal sends Ctrl-C to all processes of the group."""
    hangs = "hangs" if until == "one computes for ever" else ""
    model = recorded.make(folder, tmp_path / "onnx", hangs)
    calls = model / recorded.CALLS
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", MAIN, "benchmark", model, "--images", write_images(2), "--rounds", "99999", "-q"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=not_ignored, process_group=0
    ) as process:
        parent = psutil.Process(process.pid)
        wanted = {"one computes for ever": 2, "they take turns": 20}[until]
        while not (found := parent.children(recursive=True)) or wanted > (
            len(calls.read_text().splitlines()) if calls.exists() else 0
        ):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)
        said = process.stderr.read()
    assert (process.returncode, said) == (128 + number, f"error: {word}.\nNothing was written.\n")
    assert not any(one.is_running() for one in found)


def test_a_signal_when_a_process_has_just_started_leaves_none(folder, tmp_path, write_images):
    """At the moment when it runs, and the benchmark does not yet know it."""
    command = [sys.executable, "-c", STOPPED_WHILE_STARTING, "benchmark", folder, "--images", write_images(2), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=not_ignored, cwd=tmp_path)
    left = psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert (done.returncode, done.stderr, left) == (130, "error: Interrupted.\nNothing was written.\n", False)
