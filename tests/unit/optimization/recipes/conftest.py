"""A small model that gives its pictures different answers, and what recipes make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES
from models import small_model
from PIL import Image
from recipes import LIMITS
from torchvision.transforms.functional import to_tensor

from vitconv.convert import convert_checkpoint
from vitconv.models.huggingface import load_folder
from vitconv.optimization import optimize


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A list of trusted programs of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures of a few large patches each."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(24):
        patches = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A converted folder whose answers to the pictures differ."""
    root, model = tmp_path_factory.mktemp("trees"), small_model()
    pixels = torch.stack([to_tensor(Image.open(path)) * 2 - 1 for path in sorted(pictures.iterdir())])
    with torch.no_grad():
        model.head.weight.mul_(10)
        model.head.bias.sub_(model(pixels).mean(0))
    torch.save(model.state_dict(), root / "trees.pth")
    convert_checkpoint(root / "trees.pth", root / "trees", architecture=model, labels=CLASSES, verify=False)
    return root / "trees"


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, trees: Path, pictures: Path) -> Callable[[str], Path]:
    """What a recipe makes of the trees, made once."""

    @cache
    def make(recipe: str) -> Path:
        folder = tmp_path_factory.mktemp("made") / recipe
        optimize(trees, folder, recipe=recipe, images=pictures, limits=LIMITS)
        return folder

    return make


@pytest.fixture(scope="session")
def exact(trees: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The logits of the trees in float32."""
    model = load_folder(trees)

    def exact(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pixels)).logits.numpy()

    return exact
