"""The pipeline of dvc.yaml, run by DVC in a separate project: on a small checkpoint in which the weights of one class
were edited, and on a model of every family that has a head.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from families import save_folder
from models import full_but, full_model
from PIL import Image

from vitconv.convert import inspect
from vitconv.models.images import load_image
from vitconv.models.pixels import timm_pixels

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
CLASSES = ("ash", "beech", "cedar", "oak", "pine")
SEVEN = ("ash", "beech", "cedar", "elm", "larch", "oak", "pine")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A git repository with the pipeline, images, timm's answers, and a checkpoint that gives others for 'cedar'."""
    root = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".dvcignore", "notebooks", "vitconv"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, root / name)
    (root / ".gitignore").write_text("/artifacts\n/build\n/converted\n/families\n/hub\n__pycache__/\n")

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
    """Run a command with this environment's programs, even if it is not activated, and a Hub cache in the project."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HF_HUB_CACHE": str(root / "hub"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command.split(), cwd=root, capture_output=True, text=True, timeout=900, env=environment)


@pytest.fixture(scope="module")
def first_run(project):
    return run(project, "dvc repro")


def test_a_class_with_edited_weights_misses_the_threshold_and_is_named(project, first_run):
    done = first_run
    assert done.returncode != 0
    assert (
        "error: Images that get the expected answer (agreement): 0.85, below 1: most often 'cedar', 3 of 3 images wrong"
        in done.stderr
    ), done.stderr
    assert "Largest difference of a logit (max_logit_difference): " in done.stderr
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
    assert "Running stage 'sources'" in again.stdout  # which looks whether anything has changed
    assert "Running stage 'report'" in again.stdout


def test_a_changed_parameter_runs_only_what_depends_on_it(project, first_run):
    """With thresholds that this checkpoint meets, only the evaluation runs again, and no image is predicted again."""
    limits = {"agreement.min": 0.8, "accuracy.min": 0.8, "max_logit_difference.max": 10}
    settings = " ".join(f"-S thresholds.{name}={limit}" for name, limit in limits.items())
    done = run(project, f"dvc exp run {settings}")
    assert done.returncode == 0, done.stderr
    assert "Stage 'predict' didn't change, skipping" in done.stdout
    assert "Running stage 'evaluate'" in done.stdout
    assert "build/report/index.html: passed" in done.stdout
    assert "<h1>Passed</h1>" in (project / "build" / "report" / "index.html").read_text()
    edited = yaml.safe_load((project / "params.yaml").read_text())
    assert edited["thresholds"]["agreement"]["min"] == 0.8
    assert "**`dvc exp run -S`** edits `params.yaml`" in GUIDE

    figures = json.loads((project / "metrics.json").read_text())
    assert figures["thresholds_missed"] == 0
    shown = json.loads(run(project, "dvc metrics show --json").stdout)
    assert shown[""]["data"]["metrics.json"]["data"] == figures
    assert run(project, "dvc plots show").returncode == 0
    page = (project / "dvc_plots" / "index.html").read_text()
    assert page.count("<img") == 5
    assert "http" not in page


def test_a_clone_has_no_pictures_and_dvc_wants_a_name_for_what_is_not_committed(project, tmp_path, monkeypatch):
    """As docs/evaluation.md says."""
    for name, value in (("HOME", tmp_path), ("GIT_CONFIG_GLOBAL", os.devnull), ("GIT_CONFIG_SYSTEM", os.devnull)):
        monkeypatch.setenv(name, str(value))
    clone = tmp_path / "clone"
    assert run(project, f"git clone -q . {clone}").returncode == 0
    for command in ("dvc plots show", "dvc plots diff HEAD"):
        assert "failed to load some plots" in run(clone, command).stderr
        assert "<img" not in (clone / "dvc_plots" / "index.html").read_text()
    assert "On a fresh clone, run `make evaluate` first" in GUIDE

    with (clone / "params.yaml").open("a") as file:
        file.write("# not committed\n")
    done = run(clone, "dvc exp run -S batch_size=2")
    assert done.returncode != 0
    assert "Git user name and email must be configured" in done.stderr
    assert "While anything is not committed, DVC needs your name and address in git" in GUIDE


@pytest.fixture
def family_project(project):
    """Change the project's settings to another model, and restore them afterwards."""
    before = (project / "params.yaml").read_text()

    def set_up(family, classes, **parameters):
        folder = project / "families" / family
        timm_model = save_folder(folder / "timm", family, classes)
        data = inspect(folder / "timm", None, target=parameters.get("target")).data
        rows = []
        for i in range(8):
            pixels = timm_pixels(load_image(project / "artifacts" / "images" / f"{i}.png"), data)[None]
            with torch.no_grad():
                rows.append(timm_model(pixels)[0].tolist())
        paths = [f"../../artifacts/images/{i}.png" for i in range(8)]
        best = [classes[np.argmax(row)] if classes else "" for row in rows]
        _write(folder / "inputs.csv", ["path,label", *map(",".join, zip(paths, best, strict=True))])
        answers = (
            ",".join([path, name, *(f"{x:.9g}" for x in row)])
            for path, name, row in zip(paths, best, rows, strict=True)
        )
        _write(folder / "outputs.csv", [",".join(["path", "class", *classes]), *answers])
        given = {
            "checkpoint": f"families/{family}/timm",
            "architecture": "",
            "labels": "",
            "image": "",
            "model": f"converted/{family}",
            "images": f"families/{family}/inputs.csv",
            "expected": f"families/{family}/outputs.csv",
        }
        settings = yaml.safe_load((ROOT / "params.yaml").read_text()) | given | parameters
        (project / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        return folder

    yield set_up
    (project / "params.yaml").write_text(before)


# The stages know no families: these differ most.
@pytest.mark.parametrize("family", full_but(("vit",), ["vit", "dpt"]))
def test_a_family_with_a_head_passes(family, project, family_project):
    """A timm folder needs no other parameters, and empty parameters are not dependencies."""
    family_project(family, SEVEN)
    done = run(project, "dvc repro")
    assert done.returncode == 0, done.stderr
    config = json.loads((project / "converted" / family / "config.json").read_text())
    assert config["model_type"].startswith("clip" if family == "clip" else family)
    assert tuple(config["id2label"].values()) == SEVEN
    figures = json.loads((project / "metrics.json").read_text())
    assert figures["images"] == figures["compared"] == 8
    assert figures["agreement"] == figures["accuracy"] == 1
    assert "<h1>Passed</h1>" in (project / "build" / "report" / "index.html").read_text()


def test_a_head_of_code_passes_again_and_again(project, family_project):
    """Also where DVC lets the conversion replace its folder; without expected answers, timm's model is run."""
    for seed, expected in enumerate(("families/dinov3/outputs.csv", "")):
        family_project("dinov3", SEVEN, target="head_code", expected=expected, batch_size=4 + seed)
        done = run(project, "dvc repro")
        assert done.returncode == 0, done.stderr
        assert (project / "converted" / "dinov3" / "modeling_vitconv.py").exists()
        figures = json.loads((project / "metrics.json").read_text())
        assert figures["agreement"] == figures["accuracy"] == 1


def test_a_folder_of_photos_without_answers_is_compared_with_the_timm_model(project, family_project):
    """Only params.yaml is edited. The labels are the names of the subfolders; one photo has a known difference."""
    given = {"images": "families/photos", "images_folder": "families/photos", "expected": "", "thresholds": {}}
    family_project("vit", SEVEN, **given)
    for i, name in enumerate(SEVEN[:3]):
        (project / "families" / "photos" / name).mkdir(parents=True)
        shutil.copy(project / "artifacts" / "images" / f"{i}.png", project / "families" / "photos" / name)
    size = json.loads((project / "families" / "vit" / "timm" / "config.json").read_text())["pretrained_cfg"]
    side = size["input_size"][1]
    resized = int(side / size["crop_pct"])
    wide = next(width for width in range(resized, resized + 9) if (width - side) % 4 == 3)
    Image.new("RGB", (wide, resized), "red").save(project / "families" / "photos" / "oak.png")
    done = run(project, "dvc repro")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((project / "metrics.json").read_text())
    assert (metrics["agreement"], metrics["compared"], metrics["known_differences"]) == (1, 3, 1)
    assert metrics["labelled"] == 3
    page = (project / "build" / "report" / "index.html").read_text()
    assert "<h1>Passed</h1>" in page
    assert "the timm model of families/vit/timm" in page and "begins the crop one pixel earlier" in page
    assert "Stage 'timm' didn't change, skipping" in run(project, "dvc repro").stdout


def test_a_model_on_the_hub_with_other_preprocessing_and_size_and_without_expected_answers(project, family_project):
    parameters = {"checkpoint": "hf-hub:our/roofs", "data_config": "families/vit/data.json", "img_size": [128, 128]}
    parameters["ignore"] = ["mean"]  # of which its config.json says something else
    folder = family_project("vit", SEVEN, **parameters, expected="", thresholds={"errors": {"max": 0}})
    (folder / "data.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3]}))
    snapshot = project / "hub" / "models--our--roofs" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(folder / "timm", snapshot)
    (project / "hub" / "models--our--roofs" / "refs").mkdir()
    (project / "hub" / "models--our--roofs" / "refs" / "main").write_text(snapshot.name)
    done = run(project, "dvc repro")
    assert done.returncode == 0, done.stderr
    processor = json.loads((project / "converted" / "vit" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.1, 0.2, 0.3]
    assert json.loads((project / "converted" / "vit" / "config.json").read_text())["image_size"] == 128
    assert json.loads((project / "metrics.json").read_text())["agreement"] == 1  # with the timm model of the Hub

    # The file behind a parameter is watched, though DVC knows only the parameter.
    (folder / "data.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.4]}))
    assert run(project, "dvc repro convert").returncode == 0
    processor = json.loads((project / "converted" / "vit" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("name", ["Jim's; touch PWNED; echo '", '-$(touch PWNED) `touch PWNED`|"&*{}${model}\\~#\n!'])
def test_files_of_any_name(name, project, family_project):
    """A shell would interpret these names. They work, and no other command runs."""
    names = {
        key: f"families/{name}/{name} {key}" for key in ("checkpoint", "labels", "image", "data_config", "expected")
    }
    names |= {"images": f"families/{name}/{name}.csv", "images_folder": f"families/{name}/{name}"}
    names |= {"model": f"converted/{name}"}
    folder = family_project("vit", SEVEN, **names)
    hostile = project / "families" / name
    shutil.copytree(project / "artifacts" / "images", hostile / name)
    shutil.copytree(folder / "timm", project / names["checkpoint"])
    shutil.copyfile(folder / "inputs.csv", project / names["images"])
    shutil.copyfile(folder / "outputs.csv", project / names["expected"])
    shutil.copyfile(hostile / name / "0.png", project / names["image"])
    (project / names["data_config"]).write_text("{}")
    _write(project / names["labels"], SEVEN)
    done = run(project, "dvc repro")
    assert done.returncode == 0, done.stderr
    assert (project / names["model"] / "config.json").is_file()
    assert json.loads((project / "metrics.json").read_text())["agreement"] == 1
    assert not list(project.rglob("PWNED*"))


@pytest.mark.parametrize(
    "parameter, stage, words",
    [
        ("device", "convert", "There is no device 'cpu; touch PWNED'"),
        ("metrics", "evaluate", "There is no metric '; touch PWNED'"),
    ],
)
def test_an_error_in_a_notebook_is_one_sentence(parameter, stage, words, project, family_project):
    family_project(
        "vit", SEVEN, **{parameter: {"device": "cpu; touch PWNED", "metrics": ["; touch PWNED"]}[parameter]}
    )
    done = run(project, "dvc repro")
    assert done.returncode != 0
    assert f"error: {words}" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"failed to reproduce '{stage}'" in done.stderr
    assert not list(project.rglob("PWNED*"))


def test_a_headless_model_is_converted_and_verified_and_not_predicted_with(project, family_project):
    family_project("dinov3", ())
    done = run(project, "dvc repro")
    assert "Running stage 'verify'" in done.stdout
    assert (project / "converted" / "dinov3" / "config.json").is_file()
    assert done.returncode != 0
    assert "has no classes: it is a DINOv3ViTModel" in done.stderr
    assert "failed to reproduce 'predict'" in done.stderr


def test_the_page_of_the_plots_fits_any_window():
    """DVC's own page shows pictures in their size."""
    from dvc_render.html import HTML

    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc" / "config")
    template = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text()
    page = HTML(template).with_element('<img src="a.png">').embed()
    assert '<img src="a.png">' in page and not re.search(r"\{\w+\}", page)  # every placeholder is filled
    assert re.search(r"img \{ max-width: 100%;", page)
