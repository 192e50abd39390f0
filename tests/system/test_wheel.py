"""The wheel and the sdist: what they hold, and that the installed wheel works where no working copy is.

``VITCONV_DIST`` names the folder of built ones to test, such as those that are about to be published; without it, both are
built from a copy of the tracked files.
"""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
NAME = "vit_tiny_patch16_224"

EVALUATE = """
import sys, vitconv
from vitconv.evaluation.plots import save_pictures
predictions, images, folder, metrics = sys.argv[1:]
evaluation = vitconv.evaluate(predictions, images, expected=predictions)
evaluation.save(folder, metrics)
save_pictures(evaluation, folder)
"""

CONVERT = f"""
import timm
from transformers import ViTConfig, ViTForImageClassification
from vitconv.convert import convert_state_dict
model = timm.create_model("{NAME}", num_classes=5)
config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=5)
print(ViTForImageClassification(config).load_state_dict(convert_state_dict(model.state_dict(), model), strict=True))
"""


def run(*command, cwd, **options):
    """Run a command and return what it printed; if it fails, its output is the test's error."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked():
    return {name for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0") if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with one wheel and one sdist."""
    if "VITCONV_DIST" in os.environ:
        return Path(os.environ["VITCONV_DIST"]).resolve()
    root = tmp_path_factory.mktemp("source")
    for name in tracked():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    (root / "vitconv" / "left-behind.txt").write_text("git does not know this file")
    (root / ".git" / "info").mkdir(parents=True)
    (root / ".git" / "info" / "exclude").write_text("left-behind.txt\n")
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"], ["tag", "v9.8.7"]):
        run("git", *command, cwd=root)
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=root)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def version(wheel):
    return wheel.name.split("-")[1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run a command of a new environment with the wheel, in an empty folder: ``installed("vitconv", "models")``.

    The environment has this one's packages, but not the working copy, which is only linked from this one.
    """
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=home)
    python = home / "environment" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=home, env=environment)
    (packages,) = (home / "environment").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(
        f"{Path(torch.__file__).parents[1]}\n"
    )  # a path: the links in it do not count
    (home / "work").mkdir()

    def call(command, *arguments):
        return run(python.with_name(command), *arguments, cwd=home / "work", env=environment)

    assert call("python", "-c", "import vitconv; print(vitconv.__file__)").startswith(str(packages))
    return call


def test_the_version_is_the_tag(version):
    assert "VITCONV_DIST" in os.environ or version == "9.8.7"


def test_the_wheel_holds_the_package_and_nothing_else(wheel, version):
    info = f"vitconv-{version}.dist-info"
    about = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names == {name for name in tracked() if name.startswith("vitconv/")} | {f"{info}/{name}" for name in about}


def test_the_sdist_holds_what_git_knows(dist, version):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in members if name in ("PKG-INFO", "setup.cfg") or name.startswith("vitconv.egg-info/")}
    assert members - made == tracked()


def test_the_metadata(wheel, version):
    text = zipfile.ZipFile(wheel).read(f"vitconv-{version}.dist-info/METADATA").decode()
    metadata = email.message_from_string(text)
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text("utf-8").strip()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert metadata.get_all("Provides-Extra") == [*extras] and {"serve", "onnx", "queue"} <= extras.keys()
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_it_says_its_version(installed, version):
    assert installed("vitconv", "--version") == f"vitconv {version}\n"
    assert installed("python", "-c", "import vitconv; print(vitconv.__version__)") == f"{version}\n"


def test_it_converts_predicts_and_reports(installed, small_checkpoint, tmp_path):
    """These read files of the package: the catalogue, the report's templates."""
    model, images = tmp_path / "model", tmp_path / "images.csv"
    installed("vitconv", "convert", small_checkpoint, model, "--arch", NAME)
    assert "equal bit for bit" in installed("vitconv", "verify", small_checkpoint, model, "--arch", NAME)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "gradient.png")
    images.write_text("path\ngradient.png\n")
    predictions, evaluation = tmp_path / "predictions", tmp_path / "evaluation"
    installed("vitconv", "predict", model, images, predictions)
    installed("python", "-c", EVALUATE, predictions, images, evaluation, tmp_path / "metrics.json")
    installed("vitconv", "report", evaluation, tmp_path / "report")
    assert "images get the expected answer" in (tmp_path / "report" / "index.html").read_text("utf-8")


def test_it_converts_in_python(installed):
    assert installed("python", "-c", CONVERT) == "<All keys matched successfully>\n"
