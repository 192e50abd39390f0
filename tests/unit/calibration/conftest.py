"""A model that tells its pictures apart, with enough of them to calibrate it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import small_model
from optimizing import convert_with_margins, with_margins, write_pictures
from PIL import Image


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals that are quick, and rough."""
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 50)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pictures, in a subfolder for each of five classes."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 100, first=500)


@pytest.fixture(scope="session")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder that is always right on the pictures, and says so too seldom; only to be read."""
    network = with_margins(small_model("plain"))
    with torch.no_grad():
        network.head.weight *= 0.25
        network.head.bias *= 0.25
    return convert_with_margins(tmp_path_factory.mktemp("sure"), network)


@pytest.fixture
def model(sure: Path, tmp_path: Path) -> Path:
    """A copy of it, to be calibrated."""
    return Path(shutil.copytree(sure, tmp_path / "trees"))


@pytest.fixture(scope="session")
def oddities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of nothing that has a class."""
    folder, rng = tmp_path_factory.mktemp("oddities"), np.random.default_rng(7)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder
