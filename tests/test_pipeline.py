"""The pipeline of dvc.yaml, run by DVC in a project of its own, on a small checkpoint with one class's weights edited."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from models import full_model
from PIL import Image

from vitconv.convert import inspect
from vitconv.preprocess import load_image, timm_pixels

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
CLASSES = ("ash", "beech", "cedar", "oak", "pine")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A git repository with the pipeline, images, timm's answers, and a checkpoint that gives others for 'cedar'."""
    root = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".dvcignore", "notebooks", "vitconv"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, root / name)
    (root / ".gitignore").write_text("/artifacts\n/build\n/converted\n__pycache__/\n")

    artifacts = root / "artifacts"
    (artifacts / "images").mkdir(parents=True)
    timm_model = full_model("vit_tiny_patch16_224", num_classes=5)
    data = inspect(_save(timm_model, artifacts / "tiny.pth"), "vit_tiny_patch16_224").data
    answers, rng = [], np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((230, 230)).save(artifacts / "images" / f"{i}.png")
        with torch.no_grad():
            answers.append(timm_model(timm_pixels(load_image(artifacts / "images" / f"{i}.png"), data)[None])[0])
    # Centred, so that every class is the answer to some image.
    mean = torch.stack(answers).mean(0)
    answers = [answer - mean for answer in answers]
    with torch.no_grad():
        timm_model.head.bias -= mean
    _save(timm_model, artifacts / "tiny.pth")
    with torch.no_grad():
        timm_model.head.weight[2] *= -1
    _save(timm_model, artifacts / "edited.pth")
    best = [CLASSES[answer.argmax()] for answer in answers]
    assert "cedar" in best
    _write(artifacts / "labels.txt", CLASSES)
    _write(artifacts / "inputs.csv", ["path,label", *(f"images/{i}.png,{name}" for i, name in enumerate(best))])
    rows = (
        f"images/{i}.png,{best[i]}," + ",".join(f"{x:.6f}" for x in answer.tolist())
        for i, answer in enumerate(answers)
    )
    _write(artifacts / "outputs.csv", [",".join(["path", "class", *CLASSES]), *rows])

    parameters = yaml.safe_load((ROOT / "params.yaml").read_text())
    parameters |= {
        "checkpoint": "artifacts/edited.pth",
        "architecture": "vit_tiny_patch16_224",
        "image": "artifacts/images/0.png",
    }
    (root / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))
    for command in (
        "git init -q",
        "git config user.email tester@example.org",
        "git config user.name tester",
        "dvc init -q",
        "dvc config core.analytics false",
        "dvc config core.check_update false",
        "dvc add -q artifacts",
        "git add .",
        "git commit -qm pipeline",
    ):
        assert run(root, command).returncode == 0, command
    return root


def _save(model, path):
    torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return path


def _write(path, lines):
    path.write_text("\n".join(lines) + "\n")


def run(root, command):
    """Run a command with this environment's programs, where it is not activated, too."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    return subprocess.run(command.split(), cwd=root, capture_output=True, text=True, timeout=400, env=environment)


@pytest.fixture(scope="module")
def first_run(project):
    return run(project, "dvc repro")


def test_one_edited_class_fails_at_the_threshold_and_is_named(project, first_run):
    done = first_run
    assert done.returncode != 0
    assert "error: agreement is 0.85, below 1: most of all 'cedar', 3 of 3 images wrong" in done.stderr, done.stderr
    assert "max_logit_difference is" in done.stderr
    assert "'cedar' of " in done.stderr
    assert "failed to reproduce 'report'" in done.stderr
    page = (project / "build" / "report" / "index.html").read_text()
    assert "<h1>Not passed</h1>" in page
    assert "float64: logits equal bit for bit" in page  # the conversion is right: the checkpoint is not
    figures = json.loads((project / "metrics.json").read_text())
    assert figures["images"] == figures["compared"] == 20
    assert figures["agreement"] < 1

    # What has not changed does not run again: only the stage that failed does.
    again = run(project, "dvc repro")
    assert again.returncode != 0
    for stage in ("convert", "verify", "predict", "evaluate"):
        assert f"Stage '{stage}' didn't change, skipping" in again.stdout
    assert "Running stage 'report'" in again.stdout


def test_a_changed_parameter_runs_only_what_depends_on_it(project, first_run):
    """Thresholds that this checkpoint keeps: the figures are judged again, and no image is predicted again."""
    limits = {"agreement.min": 0.8, "accuracy.min": 0.8, "max_logit_difference.max": 10}
    settings = " ".join(f"-S thresholds.{name}={limit}" for name, limit in limits.items())
    done = run(project, f"dvc exp run {settings}")
    assert done.returncode == 0, done.stderr
    assert "Stage 'predict' didn't change, skipping" in done.stdout
    assert "Running stage 'evaluate'" in done.stdout
    assert "build/report/index.html: passed" in done.stdout
    assert "<h1>Passed</h1>" in (project / "build" / "report" / "index.html").read_text()

    figures = json.loads((project / "metrics.json").read_text())
    assert figures["thresholds_missed"] == 0
    shown = json.loads(run(project, "dvc metrics show --json").stdout)
    assert shown[""]["data"]["metrics.json"]["data"] == figures
    assert run(project, "dvc plots show").returncode == 0
    page = (project / "dvc_plots" / "index.html").read_text()
    assert page.count("<img") == 5
    assert "http" not in page
