import numpy as np
import pytest
import torch
from families import save_folder
from models import full_but
from recipes import distance, files_of, pixels_of, run_card

from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, InputError
from vitconv.inference import open_model, predict
from vitconv.inference.machine import instructions
from vitconv.inference.optimized import read_artefact
from vitconv.inference.predictions import read_predictions
from vitconv.mapping import LOADED_CLASSES
from vitconv.models.huggingface import load_folder
from vitconv.optimization.recipes import RECIPES

#: Each needs a compiled model.
pytestmark = pytest.mark.slow

RECIPE = RECIPES["compiled"]


@pytest.fixture(scope="module")
def made(make):
    return make("compiled")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_gives_the_numbers_of_float32_as_far_as_bfloat16_goes(made, exact, batch):
    pixels = pixels_of(batch)
    assert 1e-5 < distance(open_model(made)(pixels), exact(pixels)) < 0.02


@pytest.mark.parametrize("family", full_but(["beit"], ["vit", "beit", "dinov2_with_registers"]))
def test_families_compile_for_any_batch(family, tmp_path):
    save_folder(tmp_path / "timm", family, "abcde")
    convert_checkpoint(tmp_path / "timm", tmp_path / "model", verify=False)
    written = RECIPE.write(load_folder(tmp_path / "model"), tmp_path, None)
    compiled, model = torch._inductor.aoti_load_package(str(tmp_path / written.file)), load_folder(tmp_path / "model")
    size = model.config.image_size if hasattr(model.config, "image_size") else model.config.vision_config.image_size
    output = LOADED_CLASSES[type(model).__name__].logits
    for batch in (1, 3, 8):
        pixels = torch.from_numpy(pixels_of(batch, size))
        with torch.no_grad():
            assert distance(compiled(pixel_values=pixels).numpy(), model(pixels)[output].numpy()) < 0.05


def test_the_folder_holds_one_file(made):
    assert files_of(made) == {"README.md", "config.json", "model.pt2", "optimization.json", "preprocessor_config.json", "timm_processor.json"}  # fmt: skip


def test_it_is_a_program_for_processors_that_have_what_this_one_has(made, monkeypatch):
    artefact = read_artefact(made)
    assert (artefact.instructions, artefact.device) == (instructions(), "cpu")
    monkeypatch.setattr("vitconv.inference.optimized.instructions", tuple)
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match="was made for processors with .* and this one has no"):
        open_model(made)


def test_a_program_of_others_is_not_loaded(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(CheckpointError, match="is a program, and was not made by this user"):
        open_model(made)


def test_as_many_threads_run_it_as_torch_has_then(made):
    """The number of threads of the process that compiled it is nowhere in its code."""
    code = (made / "model.pt2").read_bytes()
    assert b"#pragma omp parallel" in code
    assert b"num_threads(" not in code


def test_without_a_compiler(trees, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def find():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", find)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, and none was found") as error:
        RECIPE.write(load_folder(trees), tmp_path, None)
    assert "g++" in error.value.remedy
    assert not list(tmp_path.iterdir())


def test_a_file_that_torch_cannot_load(made, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("undefined symbol\nat C++")

    monkeypatch.setattr("torch._inductor.aoti_load_package", refuse)
    with pytest.raises(CheckpointError, match="torch cannot load '.*model.pt2': undefined symbol"):
        open_model(made)


def test_the_card_s_code_runs(made, exact, monkeypatch):
    pixels = pixels_of(3)
    names = run_card(made, monkeypatch, pixels=torch.from_numpy(pixels))
    assert distance(names["logits"].detach().numpy(), exact(pixels)) < 0.02


def test_the_engine_runs_it(made, pictures, tmp_path):
    predict(made, pictures, tmp_path / "out")
    assert np.isfinite(read_predictions(tmp_path / "out").logits()).all()
