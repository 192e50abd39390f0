"""`vitconv optimize` in words, exit codes and JSON; told to end at any moment; on a disk that is full."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from commands import MAIN, not_ignored, run, stopped
from models import full_but, small_model
from optimizing import reseal, skip_without_instructions

from vitconv.errors import CheckpointError
from vitconv.evaluation import evaluate_model
from vitconv.evaluation.thresholds import default_thresholds
from vitconv.evaluation.words import at_most
from vitconv.inference.runtime import read_info
from vitconv.optimization import optimization as module

#: Most of them export a model, or start a process.
pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(woods, tmp_path):
    """Of a command that passes."""
    return ["optimize", woods.model, tmp_path / "fast", "--recipe", "bfloat16", "--images", woods.held]


ENOUGH = ("--max-disagreement", 0.06)


def test_it_says_what_was_made_and_how_to_run_it(arguments, tmp_path):
    code, out, err = run(*arguments, *ENOUGH)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"✓ {tmp_path / 'fast'}: bfloat16, judged on 60 images"
    assert "60 of 60 images keep their answer; below 4.87% of all images change, with 95 % confidence" in lines[1]
    assert lines[-1] == f"vitconv predict {tmp_path / 'fast'} IMAGES"
    assert err.splitlines()[0] == "Running the model in float32…" and "Writing bfloat16…" in err
    assert "Writing model shards" not in err
    code, out, err = run(*arguments, *ENOUGH)
    assert (code, out) == (1, "") and "exists already" in err
    code, out, err = run(*arguments, *ENOUGH, "--overwrite", "-q")
    assert code == 0 and "…" not in err


def test_as_json(arguments, woods, tmp_path):
    code, out, err = run(*arguments, *ENOUGH, "--json", "-q", "--reference", woods.reference)
    found = json.loads(out)
    assert code == 0 and found["figures"]["changed"] == 0 and found["recipe"] == "bfloat16"
    assert found["destination"] == str(tmp_path / "fast") and found["nbytes"] < found["nbytes_before"]


@pytest.mark.parametrize("as_json", [False, True])
def test_what_does_not_pass_is_said_with_what_to_do(arguments, tmp_path, as_json):
    code, out, err = run(*arguments, "-q", *["--json"] * as_json)
    problem = "60 images prove no more than that below 4.9% of all images change; for 1.0%, at least 299 are needed."
    remedy = "Pass more images, or say what is enough: --max-disagreement 0.049. Nothing was written."
    assert (code, err) == (1, f"error: {problem}\n{remedy}\n")
    assert (json.loads(out) == {"error": problem, "remedy": remedy}) if as_json else not out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [
        *(
            (option, value, 2, f"Invalid value for '{option}'")
            for option in ("--max-disagreement", "--max-margin", "--min-cosine")
            for value in ("1.1", "-0.1", "x", "nan")
        ),
        ("--max-disagreement", "0", 1, "is 0.0, which no number of images proves"),
        ("--batch-size", "0", 2, "Invalid value for '--batch-size'"),
        ("--recipe", "int4", 2, "'int4' is not one of 'bfloat16'"),
        ("--images", "none.csv", 1, "There is no list of images 'none.csv'"),
        ("--calibration", "held", 1, "The recipe bfloat16 needs no calibration images"),
    ],
)
def test_options_that_are_refused(arguments, tmp_path, monkeypatch, option, value, code, said):
    monkeypatch.setattr(sys, "argv", ["vitconv", "--json"])
    found, out, err = run(*arguments, option, value, "--json")
    assert found == code and said in json.loads(out)["error"]
    assert os.listdir(tmp_path) == []


def test_what_is_required(woods, tmp_path):
    for given in (["--recipe", "onnx"], ["--images", woods.held]):
        code, out, err = run("optimize", woods.model, tmp_path / "fast", *given)
        assert code == 2 and "Missing option" in err


# What else is done with such a folder.


@pytest.mark.parametrize("recipe", ["bfloat16", "onnx"])
def test_the_commands_for_checkpoints_say_what_it_is(woods, tmp_path, recipe):
    fast, source = woods.made(recipe).folder, woods.model.parent / "trees.pth"
    for command in (["verify", source, fast], ["revert", fast, tmp_path / "back"], ["inspect", fast],
                    ["convert", fast, tmp_path / "again"], ["verify", fast, woods.model]):  # fmt: skip
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert f"'{fast}' is an optimised folder" in err.replace("\n", " ") and "Pass the " in err
    assert os.listdir(tmp_path) == []


def test_an_optimised_folder_is_replaced_by_a_conversion(woods, tmp_path):
    import torch

    model = small_model()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    woods.copy("onnx", tmp_path / "fast")
    (tmp_path / "fast" / "onnx" / "notes.txt").write_text("")
    convert = ["convert", woods.model.parent / "trees.pth", tmp_path / "fast", "--arch", "vit_tiny_patch16_224"]
    code, out, err = run(*convert, "--overwrite")
    assert code == 1 and "holds files that no conversion writes (onnx/notes.txt)" in err
    (tmp_path / "fast" / "onnx" / "notes.txt").unlink()
    code, out, err = run(*convert)
    assert code == 1 and "exists already" in err
    assert read_info(tmp_path / "fast").runtime == "onnxruntime"  # it is as it was


def test_what_was_lost_is_read_in_a_report(woods, tmp_path):
    """By its own limits, on its own pixels: a conversion's would be missed by rounding."""
    fast = woods.made("openvino-bf16").folder
    arguments = ["evaluate", fast, woods.held, "--expected", woods.reference, "--out", tmp_path / "report"]
    code, out, err = run(*arguments)
    assert code == 0, err
    largest = woods.made("openvino-bf16").figures.largest_difference
    said = f"60 of 60 images get the expected answer; the logits differ by at most {at_most(largest)}."
    assert out.splitlines()[0].startswith(said)
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert found["metrics"]["compared"] == 60 and not found["known_differences"]
    assert found["metrics"]["max_logit_difference"] == pytest.approx(largest)
    assert [(one["name"], one["limit"]) for one in found["thresholds"]] == [("agreement", 0.94), ("not_compared", 0)]
    assert found["about"]["recipe"] == "openvino-bf16, run by openvino in bf16"
    assert found["about"]["made from"] == f"trees (SHA-256 {read_info(woods.model).fingerprint[:16]}…)"
    assert found["about"]["compared with"].endswith("of the model that it was made from")
    assert "checkpoint" not in found["about"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "openvino-bf16, run by openvino in bf16" in page
    code, out, err = run("report", tmp_path / "report", tmp_path / "again")
    assert code == 0 and "passed" in out


def test_an_export_is_judged_as_an_export(woods, tmp_path):
    found = evaluate_model(woods.made("onnx").folder, woods.held, tmp_path / "report", expected=woods.reference)
    scale = woods.made("onnx").figures.scale
    assert {one.name: one.limit for one in found.thresholds} == {
        "agreement": 1.0,
        "not_compared": 0,
        "max_logit_difference": max(1e-4, 1e-5 * scale),
    }
    assert found.passed


@pytest.mark.parametrize("value", [None, "x", [], 10**400], ids=["null", "text", "list", "400 digits"])
@pytest.mark.parametrize("where", [("figures", "scale"), ("limits", "disagreement"), ("limits", "difference")])
def test_limits_that_are_no_numbers_are_refused(woods, tmp_path, where, value):
    fast = woods.copy("onnx", tmp_path / "fast")
    reseal(fast, lambda record: record[where[0]].update({where[1]: value}))
    with pytest.raises(CheckpointError, match="does not state the limits that the model was judged by"):
        default_thresholds(fast)


def test_a_disagreement_beyond_the_limit_is_a_missed_threshold(woods, tmp_path):
    """The answers of another model: it did not become that."""
    answers = "\n".join(f"{path.relative_to(woods.held)},oak" for path in sorted(woods.held.rglob("*.png")))
    (tmp_path / "expected.csv").write_text(f"path,class\n{answers}\n")
    arguments = ["evaluate", woods.made("bfloat16").folder, woods.held, "--expected", tmp_path / "expected.csv"]
    code, out, err = run(*arguments, "--out", tmp_path / "report")
    assert code == 1 and "agreement" in err and "below 0.94" in err
    sentences = json.loads((tmp_path / "report" / "evaluation.json").read_text())["sentences"]
    assert "60 of 60 images get their label; by the expected answers, 12 would." in sentences


def test_converted_folders_are_judged_as_before(woods, tmp_path):
    found = evaluate_model(woods.model, woods.held, tmp_path / "report", expected=woods.reference)
    assert {one.name: one.limit for one in found.thresholds}["max_logit_difference"] == 1e-4
    assert found.metrics["compared"] == 60 and found.metrics["max_logit_difference"] == 0


# As a process.


@pytest.mark.parametrize(
    ("recipe", "sign", "number"),
    [
        pytest.param("bfloat16", "Running the model in float32", signal.SIGINT, marks=pytest.mark.full),
        ("bfloat16", "Running the model in float32", signal.SIGTERM),
        pytest.param("onnx", "Writing onnx", signal.SIGTERM, marks=pytest.mark.full),
        pytest.param("openvino", "Writing openvino", signal.SIGINT, marks=pytest.mark.full),
        ("openvino-int8", "Writing openvino-int8", signal.SIGTERM),
        ("onnx", "Running onnx", signal.SIGINT),
    ],
)
def test_a_signal_leaves_nothing(woods, tmp_path, recipe, sign, number):
    skip_without_instructions(recipe)
    (tmp_path / "tmp").mkdir()
    command = ["optimize", woods.model, tmp_path / "fast", "--recipe", recipe, "--images", woods.held, *ENOUGH]
    command += ["--calibration", woods.calibration] * (recipe == "openvino-int8")
    code, said = stopped(command, number, sign, 0.3, TMPDIR=str(tmp_path / "tmp"))
    if code == 0:
        pytest.skip("it was done before")
    assert code == 128 + number
    word = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[number]
    left = (
        "Nothing was written."
        if not (tmp_path / "fast").exists()
        else f"It was done: '{tmp_path / 'fast'}' is complete."
    )
    assert said.endswith(f"error: {word}.\n{left}\n") and said.count("error: ") == 1, said
    assert "Traceback" not in said
    assert set(os.listdir(tmp_path)) <= {"tmp", "fast"} and not [
        name for name in os.listdir(tmp_path / "tmp") if "vitconv" in name
    ]


@pytest.mark.parametrize("recipe", full_but(("openvino",), ["bfloat16", "onnx-int8", "openvino"]))
def test_a_limit_of_file_sizes(woods, tmp_path, recipe):
    """Of the whole process, as a full disk is: whichever library writes first."""
    skip_without_instructions(recipe)
    command = ["optimize", woods.model, tmp_path / "fast", "--recipe", recipe, "--images", woods.held, *ENOUGH, "-q"]
    command += ["--calibration", woods.calibration] * (recipe == "openvino-int8")
    done = subprocess.run(
        [*MAIN, *map(str, command)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert not (tmp_path / "fast").exists() and os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root, to mount a small disk")
@pytest.mark.parametrize(
    "recipe", full_but(("onnx", "openvino-int8"), ["bfloat16", "onnx", "onnx-int8", "openvino", "openvino-int8"])
)
def test_a_full_disk(woods, tmp_path, recipe):
    skip_without_instructions(recipe)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        command = ["optimize", woods.model, disk / "fast", "--recipe", recipe, "--images", woods.held, *ENOUGH, "-q"]
        command += ["--calibration", woods.calibration] * (recipe == "openvino-int8")
        done = subprocess.run([*MAIN, *map(str, command)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (
            1,
            f"error: '{disk / 'fast'}' cannot be written: No space left on device.\nCheck the disk and the permissions.\n",
        )
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_signal_that_an_exporter_swallows_ends_the_command(woods, tmp_path):
    """Its code is C++ and Python of others, with bare excepts."""
    code = (
        "import os, signal; from dataclasses import replace; from vitconv.cli import run\n"
        "from vitconv.optimization.recipes import RECIPES\n"
        "right = RECIPES['bfloat16']\n"
        "def write(*arguments):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(1)\n"
        "    except BaseException: pass\n"
        "    return right.write(*arguments)\n"
        "RECIPES['bfloat16'] = replace(right, write=write); run()"
    )
    command = [
        "optimize",
        woods.model,
        tmp_path / "fast",
        "--recipe",
        "bfloat16",
        "--images",
        woods.held,
        *ENOUGH,
        "-q",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, preexec_fn=not_ignored
    )
    assert (done.returncode, done.stderr) == (143, "error: Terminated.\nNothing was written.\n")
    assert os.listdir(tmp_path) == []


def test_the_module_is_not_shadowed():
    """The file that holds a public function never has the function's name."""
    from vitconv.optimization import optimize

    assert callable(optimize) and module.optimize is optimize
