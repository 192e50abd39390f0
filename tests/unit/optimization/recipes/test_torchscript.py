import sys
import warnings

import numpy as np
import pytest
import torch
from families import CLASSIFIERS, save_folder
from recipes import distance, files_of, pixels_of, run_card

from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, InputError
from vitconv.inference import open_model, predict
from vitconv.inference.optimized import read_artefact
from vitconv.inference.predictions import read_predictions
from vitconv.mapping import LOADED_CLASSES
from vitconv.models.huggingface import load_folder
from vitconv.optimization.recipes import RECIPES

#: Most of them export a model.
pytestmark = pytest.mark.slow

RECIPE = RECIPES["torchscript"]


@pytest.fixture(scope="module")
def made(make):
    return make("torchscript")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_gives_the_numbers_of_float32(made, exact, batch):
    pixels = pixels_of(batch)
    assert distance(open_model(made)(pixels), exact(pixels)) < 1e-5


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_no_family_has_the_sample_s_batch_in_its_file(family, tmp_path):
    save_folder(tmp_path / "timm", family, "abcde")
    convert_checkpoint(tmp_path / "timm", tmp_path / "model", verify=False)
    written = RECIPE.write(load_folder(tmp_path / "model"), tmp_path, None)
    traced, model = torch.jit.load(tmp_path / written.file), load_folder(tmp_path / "model")
    size = model.config.image_size if hasattr(model.config, "image_size") else model.config.vision_config.image_size
    output = LOADED_CLASSES[type(model).__name__].logits
    for batch in (1, 3, 8):
        pixels = torch.from_numpy(pixels_of(batch, size))
        with torch.no_grad():
            assert distance(traced(pixels).numpy(), model(pixels)[output].numpy()) < 1e-5


def test_the_folder_holds_one_file_where_triton_looks_for_it(made):
    assert files_of(made) == {"README.md", "config.json", "model.pt", "optimization.json", "preprocessor_config.json", "timm_processor.json"}  # fmt: skip
    traced = torch.jit.load(made / "model.pt")
    assert isinstance(traced(torch.from_numpy(pixels_of(2))), torch.Tensor)


def test_it_is_a_program_and_runs_on_any_processor(made, monkeypatch):
    artefact = read_artefact(made)
    assert (artefact.instructions, artefact.device) == ((), "cpu")
    monkeypatch.setattr("vitconv.inference.optimized.instructions", tuple)
    open_model(made, "cpu")


def test_nothing_is_printed(trees, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RECIPE.write(load_folder(trees), tmp_path, None)
    assert not told
    assert capfd.readouterr() == ("", "")


def test_a_program_of_others_is_not_loaded(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(CheckpointError, match="is a program, and was not made by this user") as error:
        open_model(made)
    assert "trusted.txt" in error.value.remedy


def test_it_is_run_on_the_processor_only(made):
    with pytest.raises(InputError, match="runs on 'cpu' only"):
        open_model(made, "cuda")


def test_a_file_that_torch_cannot_load(made, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("version 99\nat C++")

    monkeypatch.setattr("torch.jit.load", refuse)
    with pytest.raises(CheckpointError, match="torch cannot load '.*model.pt': version 99"):
        open_model(made)


def test_the_card_s_code_runs(made, exact, monkeypatch):
    pixels = pixels_of(3)
    names = run_card(made, monkeypatch, pixels=torch.from_numpy(pixels))
    assert distance(names["logits"].detach().numpy(), exact(pixels)) < 1e-5


def test_both_engines_predict_the_same(made, pictures, tmp_path):
    predict(made, pictures, tmp_path / "local")
    try:
        predict(made, pictures, tmp_path / "ray", engine="ray")
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    local, ray = (read_predictions(tmp_path / name).logits() for name in ("local", "ray"))
    assert np.array_equal(local, ray)
