"""Fixtures, and an environment in which nothing asks the network."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import settings
from models import HUB_REVISION, full_model, perturbed, small_model, wrapped_arguments
from PIL import Image

from vitconv.convert import convert_checkpoint

if TYPE_CHECKING:
    from optimizing import Woods

_died: dict[str, str] = {}
_how = ""


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Keep how a process of the tests ended: comes before :func:`pytest_handlecrashitem`."""
    global _how
    if error:
        with suppress(subprocess.TimeoutExpired):  # it has closed its pipe, and may take a moment to end
            code = node.gateway._io.popen.wait(10)
            _how = signal.Signals(-code).name if code < 0 else f"exit code {code}"


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_handlecrashitem(crashitem: str, report: Any, sched: Any) -> None:
    """Run a test once more, in a new process, if its process has died under it. The summary names it.

    Twice in ten thousand tests a process ended without a word, of SIGSEGV. The only known cause is mended: see
    :func:`vitconv.inference.openvino.only_core`. Whether it was that one is not known: processes here have many native
    libraries loaded, and the tests pass by themselves. What dies twice fails.
    """
    if crashitem in _died:
        return
    try:
        sched.mark_test_pending(crashitem)
    except NotImplementedError:  # by --dist loadfile
        return
    _died[crashitem] = _how
    report.outcome = "rerun"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which tests were run twice."""
    for test, how in _died.items():
        terminalreporter.write_line(f"The process of {test} died ({how}), and it was run again.", yellow=True)


# How long a case takes depends on what else the machine does; pytest's timeout finds what hangs. The same cases every
# time, so that a failure is one of the change that is tested: `make fuzz` looks for new ones.
settings.register_profile("vitconv", deadline=None, derandomize="VITCONV_FUZZ_CASES" not in os.environ)
settings.load_profile("vitconv")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same random numbers in every run: before the fixtures, which build models of them."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ``vit_tiny_patch16_224`` with 5 classes."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(full_model("vit_tiny_patch16_224", num_classes=5).state_dict(), path)
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save something with ``torch.save`` and return its path."""

    def save(content: Any, name: str = "weights.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """The Hub's local cache, offline; call it to put the model ``our/roofs`` there as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(files: dict[str, bytes]) -> None:
        model = tmp_path / "hub" / "models--our--roofs"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(HUB_REVISION)
        (model / "snapshots" / HUB_REVISION).mkdir(parents=True)
        (model / "blobs").mkdir()
        for number, (name, content) in enumerate(files.items()):
            (model / "blobs" / str(number)).write_bytes(content)
            (model / "snapshots" / HUB_REVISION / name).symlink_to(f"../../blobs/{number}")

    return put


CLASSES = ("ash", "beech", "cedar", "oak", "pine")


def convert_small(
    folder: Path, destination: Path, name: str = "plain", labels: tuple[str, ...] | None = CLASSES
) -> Path:
    """Convert the small model of this kind, which takes 32x32 pixels, without the time to prove it."""
    model = small_model(name)
    torch.save(model.state_dict(), folder / f"{name}.pth")
    convert_checkpoint(folder / f"{name}.pth", destination, architecture=model, labels=labels, verify=False)
    return destination


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model of five trees."""
    root = tmp_path_factory.mktemp("model")
    return convert_small(root, root / "trees")


def calibrate_any_how(place: Path) -> None:
    """Give a model of five classes a calibration, which was not found out, but made up."""
    from vitconv.files import write_json
    from vitconv.inference.appearance import count
    from vitconv.inference.certainty import LEVELS, SCHEMA, Certainty, Oddness, identity, seal
    from vitconv.inference.runtime import read_info

    info = read_info(place)
    width = 5 + count(info.input_shape)
    found = Certainty(
        0.02, 0.9, 0.2, Oddness("mahalanobis", 25.0, np.zeros((5, width)), np.eye(width) + 0.25, 26 * LEVELS)
    )
    content = {"schema": SCHEMA, "processor": "transformers", "model": identity(info), **found.to_dict()}
    write_json({**content, "seal": seal(content)}, place / "calibration.json")


@pytest.fixture(scope="session")
def certain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model of five trees with a calibration, which was not found out, but made up."""
    place = Path(shutil.copytree(folder, tmp_path_factory.mktemp("certain") / "trees"))
    calibrate_any_how(place)
    return place


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint that no native class computes, and the proved folder in which Transformers runs timm's model."""
    root = tmp_path_factory.mktemp("wrapped")
    arguments = wrapped_arguments("eva02_tiny_patch14_224")
    model = perturbed(timm.create_model("eva02_tiny_patch14_224", num_classes=5, **arguments))
    content = {"state_dict": model.state_dict(), "arch": "eva02_tiny_patch14_224", "model_args": arguments}
    torch.save(content, root / "eva02.pth")
    convert_checkpoint(root / "eva02.pth", root / "folder", target="timm_wrapper", labels=CLASSES)
    return root / "eva02.pth", root / "folder"


@pytest.fixture(scope="session")
def woods(tmp_path_factory: pytest.TempPathFactory) -> Woods:
    """A model that tells its pictures apart, and pictures to judge by and to calibrate with."""
    from optimizing import Woods

    return Woods.make(tmp_path_factory.mktemp("woods"))


@pytest.fixture(scope="session")
def _empty_registry(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """An embedded store of MLflow's without a model: MLflow takes seconds to make its tables, so once is enough."""
    from vitconv.registry.store import open_store

    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent  # of all processes of the tests
    with (shared / "registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "registry.db").exists():
            with open_store(f"sqlite:///{shared / 'registry.new'}"):
                pass
            (shared / "registry.new").rename(shared / "registry.db")
    return shared / "registry.db"


@pytest.fixture
def registry(_empty_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an embedded store of MLflow's without a model, as MLflow finds it by itself."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "registry"
    place.mkdir()
    shutil.copyfile(_empty_registry, place / "mlflow.db")
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """Write a list of noisy images of several sizes, JPEG and PNG in turn, and return the CSV file.

    Args:
        count: how many.
        broken: the numbers of those that are cut off, or for every other one missing.
        labels: of each.
    """

    def write(count: int = 10, broken: tuple[int, ...] = (), labels: list[str] | None = None) -> Path:
        rng = np.random.default_rng(0)
        (tmp_path / "images").mkdir(exist_ok=True)
        lines = ["path,label" if labels else "path"]
        for i in range(count):
            name = f"images/{i:05}.{'png' if i % 2 else 'jpg'}"
            pixels = rng.integers(0, 256, (32 + i % 7, 40 - i % 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
            if i in broken and broken.index(i) % 2:
                (tmp_path / name).unlink()
            elif i in broken:
                (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
            lines.append(f"{name},{labels[i]}" if labels else name)
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "list.csv"

    return write
