"""What a benchmark measures, in which order, in which processes, and what it says of it. No time is asserted."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import psutil
import pytest
import recorded
from conftest import convert_small
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from vitconv.cli.benchmark import as_table
from vitconv.errors import CheckpointError, DestinationError, InputError, VitconvError
from vitconv.inference import RUNTIMES
from vitconv.optimization import benchmark, benchmark_process
from vitconv.optimization.benchmark import Benchmark, Machine, Variant, benchmark_models, unique_names

#: Most of them start processes, each of which imports torch.
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
QUIET = Machine("Intel Xeon", 2, ("avx2", "avx512_vnni"), None, 0.01, 2)


@pytest.fixture(scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNTIMES, "recorded", recorded.KIND)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        Image.effect_noise((40 + number, 40), 50).convert("RGB").save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [folder, recorded.make(folder, root / "a" / "onnx"), recorded.make(folder, root / "b" / "onnx")]


@pytest.fixture(scope="module")
def run(known, models, photos):
    """A benchmark of three models in three rounds: (result, steps, counts)."""
    steps, counts = [], []
    done = benchmark_models(
        models,
        photos,
        rounds=3,
        device="cpu",
        on_step=steps.append,
        on_progress=lambda *count: counts.append(count),
    )
    return done, steps, counts


# ---- a run ------------------------------------------------------------------------------------------------------


def test_every_model_is_measured(run, models):
    done, _, _ = run
    assert [one.name for one in done.variants] == ["trees", "a/onnx", "b/onnx"]
    assert [one.runtime for one in done.variants] == ["transformers", "recorded", "recorded"]
    assert [one.folder for one in done.variants] == [str(model) for model in models]
    assert set(done.variants[0].versions) == {"torch", "transformers"}
    for one in done.variants:
        assert 0 < one.p50_ms <= one.p90_ms and 0 < one.from_file_p50_ms <= one.from_file_p90_ms
        assert one.images_per_second > 0 and one.load_seconds > 0 and one.cores > 0
        assert one.peak_bytes > 10**8  # Python with torch
        assert (one.device, one.processor) == ("cpu", "transformers")
        assert one.threads >= 1
    weights = (models[0] / "model.safetensors").stat().st_size
    assert weights < done.variants[0].folder_bytes < weights + 10**5
    assert done.rounds == 3


def test_the_images_are_spread_over_the_list(run, photos):
    done, _, _ = run
    assert done.images == tuple(str(photos / f"{number}.jpg") for number in (0, 2, 4, 6))
    assert done.megapixels == pytest.approx(43 * 40 / 1e6)


def test_each_model_has_a_process_of_its_own(run, models):
    pids = [{call["pid"] for call in recorded.calls(model)} for model in models[1:]]
    assert all(len(one) == 1 for one in pids) and pids[0] != pids[1]
    assert os.getpid() not in pids[0] | pids[1]
    assert not any(psutil.pid_exists(pid) for pid in pids[0] | pids[1])


def test_one_model_computes_at_a_time(run, models):
    calls = sorted((call for model in models[1:] for call in recorded.calls(model)), key=lambda call: call["start"])
    assert all(one["end"] <= other["start"] for one, other in zip(calls, calls[1:], strict=False))


def test_each_turn_computes_the_same(run, models):
    """An image to warm up, four images, batches of eight, and four from the file, each a quarter of a second or longer."""
    for model in models[1:]:
        batches = "".join(str(call["batch"]) for call in recorded.calls(model))
        found = re.fullmatch(r"(?:181){2}(1(?:1111)+8+(?:1111)+?){3}", batches)
        assert found, batches
        assert batches.count("8") > 2 + 3  # of a small model more than one a turn


def test_the_models_take_turns_in_a_seeded_order(run, models):
    warm_up = len("181181")
    calls = sorted((call["start"], number) for number in (1, 2) for call in recorded.calls(models[number])[warm_up:])
    order = random.Random(benchmark._SEED)
    expected = [number for _ in range(3) for number in order.sample(range(3), 3)]
    assert expected[:3] != expected[3:6] != expected[6:]
    by_turn = [number for number, _ in groupby(number for _, number in calls)]
    assert by_turn == [number for number, _ in groupby(number for number in expected if number)]


def test_progress_is_told(run):
    _, steps, counts = run
    loading = ["Loading trees", "Loading a/onnx", "Loading b/onnx"]
    assert steps == ["Reading the folders and images", *loading, "Measuring"]
    assert counts == [(number, 0, 9) for number in range(1, 10)]


def test_the_result_is_json(run, tmp_path):
    done, _, _ = run
    content = json.loads(json.dumps(done.to_json(), allow_nan=False))
    assert content["schema"] == 1 and content["conclusion"] == done.conclusion
    assert content["variants"][0]["ratios"] == {"latency": 1, "throughput": 1, "from_file": 1, "size": 1}
    assert content["machine"]["instructions"] == list(done.machine.instructions)
    done.save(tmp_path / "new" / "benchmark.json")
    assert json.loads((tmp_path / "new" / "benchmark.json").read_text()) == content
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError):
        done.save(tmp_path / "file" / "benchmark.json")


def test_the_result_is_shown(run):
    done, _, _ = run
    assert repr(done).startswith("Benchmark(3 models, 3 rounds: ") and done.conclusion in repr(done)
    shown = done._repr_markdown_()
    assert "| model | batch 1 p50 ms | p90 ms | × | batch 8 images/s | × | from file p50 ms | p90 ms | × |" in shown
    assert "| a/onnx | recorded | cpu |" in shown and "- measured: 3 rounds, 4 images of 0.0" in shown


def test_the_machine_is_named(run):
    import torch

    machine = run[0].machine
    assert machine.gpu is None and machine.cores >= 1 and machine.others >= 0
    assert all(torch.cpu.get_capabilities()[name] for name in machine.instructions)


def test_models_of_the_same_kind_need_no_note(run):
    assert not any("The models" in note for note in run[0].notes)


def test_different_models_are_compared_with_notes(folder, photos, tmp_path):
    """Here on a single image."""
    other = convert_small(tmp_path, tmp_path / "wide", "not square", labels=("a", "b", "c", "d", "e"))
    done = benchmark_models([folder, other], photos / "3.jpg", rounds=1, device="cpu")
    assert done.images == (str(photos / "3.jpg"),)
    assert done.notes[0] == "The models take inputs of different shapes: trees 3x32x32, wide 3x32x64."
    assert done.notes[1] == "The models have different image processors: trees transformers, wide timm."
    assert done.notes[2].startswith("The models do not have the same classes: ")


# ---- what is refused, and what goes wrong -----------------------------------------------------------------------


@pytest.fixture
def no_process(monkeypatch):
    """Fail where a process is started: bad input is told before."""
    monkeypatch.setattr(benchmark, "ModelProcess", None)


@pytest.mark.parametrize("rounds", [0, -1])
def test_fewer_than_one_round_is_refused(no_process, folder, photos, rounds):
    with pytest.raises(InputError, match=f"{rounds} rounds measure nothing"):
        benchmark_models([folder], photos, rounds=rounds)


def test_no_model_is_refused(no_process, photos):
    with pytest.raises(InputError, match="There is no model to benchmark"):
        benchmark_models([], photos)


def test_a_folder_that_is_none_is_refused(no_process, folder, photos, tmp_path):
    with pytest.raises(CheckpointError, match=f"There is no folder '{tmp_path}/none'"):
        benchmark_models([folder, tmp_path / "none"], photos)
    with pytest.raises(CheckpointError, match="0.jpg' is a file, not a folder"):
        benchmark_models([folder, photos / "0.jpg"], photos)


def test_a_model_without_a_head_is_refused(no_process, folder, photos, tmp_path):
    headless = convert_small(tmp_path, tmp_path / "headless", "headless", labels=None)
    with pytest.raises(InputError, match="headless' has no classes"):
        benchmark_models([folder, headless], photos)


def test_images_that_cannot_be_read_are_refused(no_process, folder, tmp_path, write_images):
    with pytest.raises(InputError, match=r"00000.jpg' is not an image that can be read"):
        benchmark_models([folder], write_images(4, broken=(0,)))
    with pytest.raises(InputError, match="There is no list of images"):
        benchmark_models([folder], tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty' has no images"):
        benchmark_models([folder], tmp_path / "empty")


def test_a_device_that_is_not_there_is_refused(known, folder, photos):
    with pytest.raises(VitconvError, match="There is no device 'cuda:99' here"):
        benchmark_models([folder], photos, device="cuda:99")


FAILURES = {
    "killed": ("The process of 'onnx' was killed, perhaps for want of memory.", "Benchmark fewer models at once"),
    "open, and is killed": ("The process of 'onnx' was killed, perhaps for want of memory.", "Benchmark fewer"),
    "illegal": ("The process of 'onnx' ended: Illegal instruction.", "Check that it predicts an image."),
    "exits": ("The process of 'onnx' ended: exit code 7. The last that it printed is 'goodbye'.", "Check that"),
    "memory": ("There is too little memory to run 'onnx'.", "Benchmark fewer models at once"),
    "wrong": ("'onnx' cannot be run: ValueError: the value is wrong", "Check that it predicts an image."),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_process_that_fails_is_named(known, folder, photos, tmp_path, failure):
    model = recorded.make(folder, tmp_path / "onnx", failure)
    before = psutil.Process().children()  # such as another test's broker
    with pytest.raises(VitconvError) as caught:
        benchmark_models([model], photos, rounds=1, device="cpu")
    problem, remedy = FAILURES[failure]
    assert caught.value.problem == problem and caught.value.remedy.startswith(remedy)
    assert set(psutil.Process().children()) <= set(before)


def test_a_process_that_cannot_be_started_is_named(known, folder, photos, monkeypatch):
    def refuse(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(benchmark_process.subprocess, "Popen", refuse)
    with pytest.raises(VitconvError, match="The process of 'trees' cannot be started: Resource temporarily"):
        benchmark_models([folder], photos)


RUN = (
    "import sys, recorded; from vitconv.inference import RUNTIMES; RUNTIMES['recorded'] = recorded.KIND\n"
    "from vitconv.optimization import benchmark_models; benchmark_models(sys.argv[1:3], sys.argv[3])"
)


def test_no_process_outlives_the_benchmark(folder, photos, tmp_path):
    """Not even if that is killed, and whatever they do: one waits for its turn, and one computes for ever."""
    models = [recorded.make(folder, tmp_path / "waits"), recorded.make(folder, tmp_path / "onnx", "hangs")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, "-c", RUN, *models, photos], env=environment) as process:
        calls = models[1] / recorded.CALLS
        while not calls.exists() or len(calls.read_text().splitlines()) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_without_the_extra_it_says_what_to_install():
    script = (
        "import sys; sys.modules['psutil'] = None\n"
        "from vitconv.optimization import benchmark_models\n"
        "try: benchmark_models(['a'], 'b')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "InputError benchmark_models needs packages that are not installed: psutil.\n"
        "Install them with pip install -e '.[benchmark]' in vitconv's clone.\n"
    )


# ---- words and tables -------------------------------------------------------------------------------------------


def variant(name, ms=100.0, from_file=150.0, per_second=20.0, size=344_000_000, **more):
    values = {
        "folder": f"/models/{name}",
        "runtime": "transformers",
        "versions": {"torch": "2.15"},
        "settings": {},
        "device": "cpu",
        "processor": "transformers",
        "threads": 2,
        "cores": 1.9,
        "load_seconds": 0.5,
        "peak_bytes": 1_200_000_000,
    } | more
    return Variant(
        name=name,
        p50_ms=ms,
        p90_ms=1.2 * ms,
        images_per_second=per_second,
        from_file_p50_ms=from_file,
        from_file_p90_ms=1.1 * from_file,
        folder_bytes=size,
        **values,
    )


def result(*variants, machine=QUIET):
    return Benchmark(variants, machine, ("/photos/a.jpg",), 12.0, 10)


FLOAT32 = variant("vit-7class", 546, 856, 1.9)
INT8 = variant("openvino-int8", 80.3, 390, 12.9, 89_000_000)


def test_the_conclusion_is_computed_from_the_figures():
    assert result(FLOAT32, INT8).conclusion == (
        "openvino-int8 is 6.8 × as fast as vit-7class at batch 1 (2.2 × from the file on), 6.8 × at batch 8, and a "
        "quarter of its size."
    )
    slower = variant("onnx", 569, 880, 1.8)
    assert result(FLOAT32, slower, INT8).conclusion == result(FLOAT32, INT8).conclusion
    assert result(INT8, FLOAT32).conclusion == (
        "openvino-int8 is the fastest at batch 1: vit-7class, the next, is 0.15 × as fast."
    )
    assert result(FLOAT32).conclusion == (
        "vit-7class takes 546 ms for an image at batch 1 (856 ms from the file on), and computes 1.90 images a second "
        "at batch 8."
    )


def test_a_difference_of_a_few_percent_is_none():
    assert result(FLOAT32, variant("onnx", 530)).conclusion == (
        "No model is clearly faster than vit-7class at batch 1, and onnx is as fast."
    )


def test_a_busy_machine_is_told():
    busy = replace(QUIET, others=0.92)
    assert not QUIET.busy and busy.busy and not replace(busy, all_cores=64).busy
    assert result(FLOAT32, INT8, machine=busy).conclusion.startswith("On a busy machine, openvino-int8 is 6.8 ×")
    infos = [recorded.ModelInfo("t", Path("/m"), ("a",), (3, 4, 4), "f", {})] * 2
    assert benchmark._notes(infos, (FLOAT32, INT8), QUIET) == []
    assert benchmark._notes(infos, (FLOAT32, INT8), busy) == [
        "The machine was busy: other processes used 0.92 of its 2 cores. The times are too long, and the ratios "
        "uncertain; run it again on a quiet machine."
    ]


def test_what_others_use_is_what_is_not_ours(monkeypatch):
    """In ten seconds, 14 were computed, and 5 of them by the benchmark."""
    moments = iter([(100.0, 1000.0, 50.0), (110.0, 1014.0, 55.0), (120.0, 1014.0, 55.1)])
    monkeypatch.setattr(benchmark._Watch, "_now", lambda self: next(moments))
    watch = benchmark._Watch()
    assert watch.others() == pytest.approx(0.9)
    assert watch.others() == pytest.approx(0.445)


def test_the_ways_of_counting_agree():
    """Between two looks, all processes have computed at least as much as this one."""
    _, everything, ours = benchmark._Watch._now()
    start = time.process_time()
    while time.process_time() - start < 0.3:
        pass
    _, everything_later, ours_later = benchmark._Watch._now()
    assert 0.2 < ours_later - ours <= everything_later - everything + 0.05


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=1, max_size=6))
def test_names_are_unique_and_tell_the_folder(paths):
    folders = [Path("/", *path) for path in paths]
    names = unique_names(folders)
    assert len(set(names)) == len(names)
    for folder, name in zip(folders, names, strict=True):
        assert str(folder).endswith(re.sub(r" \(\d\)$", "", name).lstrip("/"))


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=120)


@given(st.lists(st.tuples(NAMES, st.floats(1e-2, 99_999), st.floats(1e-2, 99_999)), min_size=1, max_size=4))
def test_the_tables_fit_80_columns(rows):
    done = result(*(variant(name, ms, ms * 2, rate, device="cuda:15") for name, ms, rate in rows))
    for table in (done.speed, done.costs):
        console = Console(width=80, file=open(os.devnull, "w"), legacy_windows=False)  # noqa: SIM115
        with console.capture() as capture:
            console.print(as_table(table))
        lines = capture.get().splitlines()
        assert all(len(line) <= 80 for line in lines)
        words = " ".join(lines).split()
        for cell in (cell for row in table[1] for cell in row[1:]):
            assert cell in words  # whole
