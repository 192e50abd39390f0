import pytest
import torch
import transformers
from safetensors.torch import load_file

from vitconv.errors import InputError
from vitconv.files import read_json
from vitconv.inference import open_model
from vitconv.inference.runtime import read_info
from vitconv.models.huggingface import load_folder
from vitconv.optimization import optimize
from vitconv.optimization.optimization import _write
from vitconv.optimization.recipes import RECIPES

RECIPE = RECIPES["float16"]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/system/test_gpu_recipes.py runs it")


@pytest.fixture
def written(trees, tmp_path):
    """The folder as the recipe writes it, which no gate has judged."""
    _write(RECIPE, RECIPE.write, trees, read_info(trees), tmp_path, None)
    return tmp_path


def test_without_a_gpu_nothing_is_written(trees, pictures, tmp_path):
    with pytest.raises(InputError, match="float16 needs a CUDA GPU to be made and judged, and there is none") as error:
        optimize(trees, tmp_path / "new", recipe="float16", images=pictures)
    assert "bfloat16" in error.value.remedy
    assert not (tmp_path / "new").exists()


def test_the_weights_are_the_converted_ones_rounded(trees, written):
    before, after = load_file(trees / "model.safetensors"), load_file(written / "model.safetensors")
    assert set(after) == set(before)
    for name, values in before.items():
        assert torch.equal(after[name], values.half())


def test_the_configuration_says_so_and_nothing_else_new(trees, written):
    before, after = (read_json(folder / "config.json") for folder in (trees, written))
    assert after == before | {"dtype": "float16"}


def test_transformers_loads_it(written):
    model, info = transformers.AutoModelForImageClassification.from_pretrained(written, output_loading_info=True)
    assert model.dtype == torch.float16
    assert not any(info.values())


def test_it_is_not_run_where_it_was_not_judged(written):
    assert read_info(written).device == "cuda"
    with pytest.raises(InputError, match="runs on 'cuda' only: its recipe is float16"):
        open_model(written, "cpu")


def test_saving_prints_no_progress(trees, tmp_path, capfd):
    (tmp_path / "config.json").write_bytes((trees / "config.json").read_bytes())
    RECIPE.write(load_folder(trees), tmp_path, None)
    assert capfd.readouterr() == ("", "")
