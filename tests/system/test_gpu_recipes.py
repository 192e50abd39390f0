"""Every recipe for a GPU, through optimize and predict: ``make test-gpu``. Skipped if there is no GPU."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from models import perturbed
from PIL import Image
from timm import create_model
from torchvision.transforms.functional import to_tensor

from vitconv.convert import convert_checkpoint
from vitconv.inference import open_model, predict
from vitconv.inference.predictions import read_predictions
from vitconv.optimization import Limits, optimize
from vitconv.optimization.recipes import RECIPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
LIMITS = Limits(disagreement=0.2, margin=0.5)
ON_GPU = [recipe.name for recipe in RECIPES.values() if recipe.device == "cuda"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        patches = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((96, 96), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def trees(tmp_path_factory, pictures):
    """A converted folder whose answers to the pictures differ; its widths suit float8, which takes multiples of 16."""
    root = tmp_path_factory.mktemp("trees")
    model = perturbed(create_model("vit_tiny_patch16_224", img_size=96, depth=2, num_classes=5))
    pixels = torch.stack([to_tensor(Image.open(path)) * 2 - 1 for path in sorted(pictures.iterdir())])
    with torch.no_grad():
        model.head.weight.mul_(10)
        model.head.bias.sub_(model(pixels).mean(0))
    torch.save(model.state_dict(), root / "trees.pth")
    convert_checkpoint(root / "trees.pth", root / "trees", architecture=model, labels=tuple("abcde"), verify=False)
    return root / "trees"


def test_there_are_recipes_for_a_gpu():
    assert ON_GPU == ["float16", "compiled-cuda", "torchao-float8", "tensorrt-fp16"]


@pytest.mark.parametrize("name", ON_GPU)
def test_a_recipe_is_made_judged_and_run(name, trees, pictures, tmp_path, monkeypatch):
    missing = [package for package in RECIPES[name].packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if name == "torchao-float8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply in float8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    done = optimize(trees, tmp_path / name, recipe=name, images=pictures, limits=LIMITS)
    assert done.figures.smallest_cosine > 0.99
    assert done.nbytes < 0.6 * done.nbytes_before or name in ("compiled-cuda", "torchao-float8")
    predict(done.folder, pictures, tmp_path / "out")
    assert np.isfinite(read_predictions(tmp_path / "out").logits()).all()
    model, exact = open_model(done.folder), open_model(trees, "cuda")
    for batch in (1, 3, 8):
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, 96, 96), dtype=np.float32)
        found, expected = model(pixels), exact(pixels)
        assert found.shape == expected.shape
        assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
