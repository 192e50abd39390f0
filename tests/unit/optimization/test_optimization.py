"""optimize: every recipe on small models of every family, what the gate must catch, and what is refused."""

import errno
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import timm
import torch
from conftest import CLASSES, convert_small
from models import SMALL, full_but_each, perturbed, small_model
from optimizing import (
    ANY,
    LIMITS,
    convert_with_margins,
    skip_without_instructions,
    with_margins,
    with_massive_channel,
    with_outlier,
    write_pictures,
)
from PIL import Image
from safetensors import SafetensorError

from vitconv.convert import convert_checkpoint, verify_checkpoint
from vitconv.errors import CheckpointError, DestinationError, InputError, ParityError, VitconvError
from vitconv.evaluation import evaluate_model
from vitconv.inference import open_model, predict
from vitconv.inference.machine import INSTRUCTIONS
from vitconv.inference.predictions import read_predictions
from vitconv.inference.runtime import read_info
from vitconv.models.huggingface import load_folder
from vitconv.optimization import RECIPES, GateError, Limits, optimize
from vitconv.optimization import optimization as module
from vitconv.optimization.recipes import onnx, openvino
from vitconv.optimization.recipes.recipe import Calibration, Written
from vitconv.optimization.recipes.weights import save

#: Most of them export a model.
pytestmark = pytest.mark.slow

CPU = ("bfloat16", "onnx", "onnx-int8", "openvino", "openvino-bf16", "openvino-int8")
#: A recipe of each runtime.
FEW = ("bfloat16", "onnx", "openvino")
FILES = {
    "bfloat16": {"model.safetensors"},
    "onnx": {"onnx", "onnx/model.onnx"},
    "onnx-int8": {"onnx", "onnx/model_quantized.onnx"},
    **dict.fromkeys(
        ("openvino", "openvino-bf16", "openvino-int8"),
        {"openvino", "openvino/openvino_model.xml", "openvino/openvino_model.bin"},
    ),
}


DESCRIBED = {"README.md", "config.json", "optimization.json", "preprocessor_config.json", "timm_processor.json"}


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """Whatever happens, no hidden folder stays."""
    yield
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def swap(monkeypatch, name, **changes):
    """Have a recipe do something else."""
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], **changes))


# What comes out.


@pytest.mark.parametrize("recipe", CPU)
def test_a_recipe_makes_a_whole_folder_that_predicts(woods, tmp_path, recipe):
    done = woods.made(recipe)
    folder = done.folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == FILES[recipe] | DESCRIBED
    assert (folder.name, done.recipe.name, done.figures.changed) == (recipe, recipe, 0)
    assert done.figures.images == done.figures.labelled == 60 and done.figures.accuracy_before == 1
    if RECIPES[recipe].exact:
        assert done.figures.largest_difference <= 1e-5 * done.figures.scale
    else:
        assert done.nbytes < 0.9 * done.nbytes_before or recipe == "openvino-bf16"
    assert (
        "60 of 60 images keep their answer" in done.sentence()
        and done.sentence() in (folder / "README.md").read_text()
    )

    record = json.loads((folder / "optimization.json").read_text())
    assert record["figures"] == vars(done.figures) and record["limits"] == vars(LIMITS)
    assert record["artefact"]["recipe"] == recipe and not record["careful"]
    assert record["model"] == {
        "name": "trees",
        "fingerprint": read_info(woods.model).fingerprint,
        "nbytes": done.nbytes_before,
    }
    assert (record["calibration"] is None) == (recipe != "openvino-int8")
    assert record["images"]["images"] == 60 and record["instructions"]
    assert set(RECIPES[recipe].packages) - {"onnxruntime", "openvino"} <= set(record["versions"])

    summary = predict(folder, woods.held, tmp_path / "out")
    assert (summary.rows, summary.errors, summary.device) == (60, 0, "cpu")
    settings = read_predictions(tmp_path / "out").run.settings
    assert settings["runtime"] == RECIPES[recipe].runtime
    assert RECIPES[recipe].runtime in settings["versions"] or recipe == "bfloat16"
    assert settings["runtime_settings"] == record["artefact"]["settings"]
    one, other = (read_predictions(place).logits() for place in (tmp_path / "out", woods.reference))
    assert np.abs(one - other).max() == pytest.approx(done.figures.largest_difference)


@pytest.mark.parametrize("recipe", ["onnx", "openvino"])
def test_a_folder_takes_batches_of_any_size(woods, tmp_path, recipe):
    one, other = open_model(woods.made(recipe).folder, "cpu"), open_model(woods.model, "cpu")
    for size in (1, 3, 8):
        pixels = np.random.default_rng(size).normal(size=(size, 3, 32, 32)).astype(np.float32)
        expected = other(pixels)
        found = one(pixels)
        assert found.shape == (size, 5) and found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    kept = found.copy()
    one(np.zeros((8, 3, 32, 32), np.float32))
    assert np.array_equal(found, kept)  # the next call does not write into it


def test_a_changed_hint_is_another_run(woods, tmp_path):
    """The weights of the two are the same, bit for bit."""
    folders = [woods.made(recipe).folder for recipe in ("openvino", "openvino-bf16")]
    weights = [(folder / openvino.WEIGHTS).read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    runs = [predict(folder, woods.held, tmp_path / f"out-{folder.name}").run for folder in folders]
    assert runs[0] != runs[1]
    with pytest.raises(DestinationError, match="other (weights|run)|another run"):
        predict(folders[1], woods.held, tmp_path / "out-openvino")


def test_another_version_of_the_runtime_is_another_run(woods, tmp_path, monkeypatch):
    folder = woods.made("onnx").folder
    first = predict(folder, woods.held, tmp_path / "one").run
    monkeypatch.setattr("vitconv.inference.optimized.version", lambda name: "99.0")
    assert predict(folder, woods.held, tmp_path / "two").run != first


def test_the_float32_answers_are_kept_for_the_next_recipe(woods, tmp_path, monkeypatch):
    woods.optimize(tmp_path / "one", "bfloat16", reference=tmp_path / "kept")
    ran = []
    right = module.predict
    monkeypatch.setattr(module, "predict", lambda *a, **k: ran.append(right(*a, **k)) or ran[-1])
    woods.optimize(tmp_path / "two", "bfloat16", reference=tmp_path / "kept")
    assert [run.found for run in ran] == [60, 0]


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left on device (os error 28)"), OSError(28, "No space left on device")]
)
def test_a_temporary_folder_without_space_for_the_float32_copy(woods, tmp_path, monkeypatch, error):
    half = shutil.copytree(woods.model, tmp_path / "half")
    save(load_folder(half).bfloat16(), half)

    def fail(model, folder):
        raise error

    monkeypatch.setattr(module, "save", fail)
    with pytest.raises(DestinationError, match="copy of the model in float32 .* No space left on device") as found:
        optimize(half, tmp_path / "fast", recipe="onnx", images=woods.held)
    assert "TMPDIR" in found.value.remedy
    assert not (tmp_path / "fast").exists()


def test_other_predictions_are_not_replaced_by_the_float32_answers(woods, tmp_path):
    other = predict(woods.made("onnx").folder, woods.held, tmp_path / "kept").run
    with pytest.raises(DestinationError, match="kept' holds predictions of other weights, images or settings"):
        woods.optimize(tmp_path / "fast", "bfloat16", reference=tmp_path / "kept")
    assert read_predictions(tmp_path / "kept").run.fingerprint == other
    woods.optimize(tmp_path / "fast", "bfloat16", reference=tmp_path / "kept", overwrite=True)
    assert read_predictions(tmp_path / "kept").run.settings["runtime"] == "transformers"


def test_a_folder_is_replaced_only_with_overwrite(woods, tmp_path):
    woods.copy("onnx", tmp_path / "fast")
    with pytest.raises(DestinationError, match="exists already"):
        woods.optimize(tmp_path / "fast", "bfloat16")
    woods.optimize(tmp_path / "fast", "bfloat16", overwrite=True)
    assert read_info(tmp_path / "fast").runtime == "transformers" and not (tmp_path / "fast" / "onnx").exists()
    source = woods.model.parent / "trees.pth"
    convert_checkpoint(source, tmp_path / "fast", architecture=small_model(), verify=False, overwrite=True)
    assert not (tmp_path / "fast" / "optimization.json").exists()
    assert read_info(tmp_path / "fast").classes != CLASSES  # it was converted without names


def test_a_model_in_half_precision_is_compared_in_float32(woods, tmp_path):
    half = tmp_path / "half"
    convert_checkpoint(woods.model.parent / "trees.pth", half, architecture=small_model(), labels=CLASSES, verify=False, dtype="bfloat16")  # fmt: skip
    done = woods.optimize(tmp_path / "again", "bfloat16", model=half)
    assert 1e-5 < done.figures.largest_difference < 1  # its weights are the same, but not its computing


def test_one_image_is_enough_to_prove_an_export(woods, tmp_path):
    image = next(woods.held.rglob("*.png"))
    woods.optimize(tmp_path / "fast", "onnx", images=image, reference=None)
    with pytest.raises(InputError, match="The model answers 'ash' to every image"):
        woods.optimize(tmp_path / "other", "bfloat16", images=woods.held / "ash", reference=None, limits=ANY)


# Every family.

FAMILIES = {
    **{name: {} for name in ("vit", "deit", "siglip", "beit", "dinov2_with_registers", "clip")},
    "dinov3": {"target": "head_code"},
    "siglip map": {"target": "head_code"},
    "wrapper": {"target": "timm_wrapper"},
}


@pytest.fixture(scope="module")
def family(request, tmp_path_factory):
    """A converted folder of a family, and pictures of its size to judge by and to calibrate with."""
    place = tmp_path_factory.mktemp("family")
    if request.param == "siglip map":
        model = with_margins(
            perturbed(timm.create_model("vit_base_patch16_siglip_224", num_classes=5, **families.SMALL))
        )
        torch.save(model.state_dict(), place / "source.pth")
        convert_checkpoint(place / "source.pth", place / "model", architecture=model, labels=CLASSES, verify=False, target="head_code")  # fmt: skip
    else:
        name = "vit" if request.param == "wrapper" else request.param
        families.save_folder(place / "source", name, CLASSES, with_margins)
        convert_checkpoint(place / "source", place / "model", verify=False, **FAMILIES[request.param])
    write_pictures(place / "held", 20, size=96)
    write_pictures(place / "others", 25, first=1000, size=96)
    return place


@pytest.mark.parametrize(("family", "recipe"), full_but_each(list(FAMILIES), CPU[::-1]), indirect=["family"])
def test_every_family_keeps_its_answers(family, tmp_path, recipe):
    skip_without_instructions(recipe)
    calibration = family / "others" if RECIPES[recipe].calibrates else None
    limits = replace(LIMITS, disagreement=0.14, cosine=0.98)  # 20 images, in bfloat16 of random weights
    done = optimize(
        *(family / "model", tmp_path / "fast"),
        recipe=recipe,
        images=family / "held",
        calibration=calibration,
        reference=family / "reference",
        limits=limits,
    )
    assert done.figures.changed == 0 and done.figures.classes > 2
    if RECIPES[recipe].exact:
        assert done.figures.largest_difference <= 1e-5 * done.figures.scale
    predict(tmp_path / "fast", family / "held", tmp_path / "out")
    found, expected = (read_predictions(place) for place in (tmp_path / "out", family / "reference"))
    assert found.rows["class"].equals(expected.rows["class"])
    assert np.abs(found.logits() - expected.logits()).max() == pytest.approx(done.figures.largest_difference)


def test_a_mean_over_tokens_keeps_its_answers_in_int8(tmp_path):
    """OpenVINO computes the mean wrongly where it is rounded to int8 right after: the head stays in float."""
    skip_without_instructions("openvino-int8")
    model = with_margins(perturbed(timm.create_model("vit_base_patch16_siglip_gap_224", **SMALL)))
    held = write_pictures(tmp_path / "held", 60)
    done = optimize(
        *(convert_with_margins(tmp_path / "model", model), tmp_path / "fast"),
        recipe="openvino-int8",
        images=held,
        calibration=write_pictures(tmp_path / "others", 25, first=1000),
        limits=LIMITS,
    )
    assert done.figures.smallest_cosine > 0.995
    assert not json.loads((tmp_path / "fast" / "optimization.json").read_text())["careful"]


# What the gate must catch.


def refused(woods, destination, recipe, **options):
    """The reasons for which the gate refuses this recipe's result."""
    with pytest.raises(GateError) as caught:
        woods.optimize(destination, recipe, **options)
    assert not destination.exists()
    assert caught.value.remedy.endswith("Nothing was written.")
    return caught.value


def permuted(write):
    """The recipe for a model of which two classes are swapped."""

    def write_permuted(model, folder, calibration):
        order = [1, 0, 2, 3, 4]
        model.classifier.weight.data = model.classifier.weight.data[order]
        model.classifier.bias.data = model.classifier.bias.data[order]
        return write(model, folder, calibration)

    return write_permuted


@pytest.mark.parametrize("recipe", CPU[:-1])
def test_permuted_classes_are_caught(woods, tmp_path, monkeypatch, recipe):
    swap(monkeypatch, recipe, write=permuted(RECIPES[recipe].write))
    error = refused(woods, tmp_path / "fast", recipe)
    assert error.figures.changed == 24
    expected = "The logits differ by " if RECIPES[recipe].exact else "24 of 60 images get another answer"
    assert error.problem.startswith(expected)


def test_a_careful_way_is_judged_too(woods, tmp_path, monkeypatch):
    right = RECIPES["bfloat16"].write
    swap(monkeypatch, "bfloat16", write=permuted(right), careful=permuted(right))
    assert refused(woods, tmp_path / "fast", "bfloat16").figures.changed == 24
    swap(monkeypatch, "bfloat16", write=permuted(right), careful=right)
    steps = []
    assert woods.optimize(tmp_path / "fast", "bfloat16", on_step=steps.append).figures.changed == 0
    assert steps[-2:] == ["Writing bfloat16, with more of it in float", "Running bfloat16"]
    assert json.loads((tmp_path / "fast" / "optimization.json").read_text())["careful"] is True


def test_what_the_first_way_has_written_is_gone(woods, tmp_path, monkeypatch):
    def messy(model, folder, calibration):
        (folder / "onnx").mkdir()
        (folder / "onnx" / "rest").write_text("")
        return permuted(right)(model, folder, calibration)

    right = RECIPES["bfloat16"].write
    swap(monkeypatch, "bfloat16", write=messy, careful=right)
    woods.optimize(tmp_path / "fast", "bfloat16")
    assert not (tmp_path / "fast" / "onnx").exists()


@pytest.mark.parametrize(
    "wrong", [lambda pixels: (pixels + 1) / 2, lambda pixels: (pixels + 1) * 127.5], ids=["0 to 1", "0 to 255"]
)
def test_calibration_with_another_normalisation_is_caught(woods, tmp_path, monkeypatch, wrong):
    right = Calibration.__iter__
    monkeypatch.setattr(
        Calibration, "__iter__", lambda self: ({"pixel_values": wrong(one["pixel_values"])} for one in right(self))
    )
    assert refused(woods, tmp_path / "fast", "openvino-int8").figures.changed > 20


def quantize_everything(model, folder, calibration):
    """onnxruntime's static quantisation with its defaults, which takes all operations."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(calibration)

        def get_next(self):
            one = next(self.rest, None)
            return one and {"pixel_values": one["pixel_values"].numpy()}

    written = onnx.export(model, folder, "model.onnx")
    quantize_static(str(folder / written.file), str(folder / "onnx" / "model_quantized.onnx"), Reader())
    (folder / written.file).unlink()
    return Written("onnx/model_quantized.onnx")


def test_static_quantisation_of_all_operations_is_caught(woods, tmp_path, monkeypatch):
    model = convert_with_margins(tmp_path / "massive", with_margins(with_massive_channel(small_model())))
    woods.optimize(tmp_path / "good", "onnx-int8", model=model)  # only the products of matrices
    swap(monkeypatch, "onnx-int8", write=quantize_everything, calibrates=True)
    assert refused(woods, tmp_path / "fast", "onnx-int8", model=model).figures.smallest_cosine < 0.9


@pytest.fixture(scope="module")
def outlier(woods, tmp_path_factory):
    return convert_with_margins(tmp_path_factory.mktemp("outlier"), with_outlier(with_margins(small_model())))


def test_an_outlier_channel_changes_nothing_in_float32_and_is_caught_in_int8(woods, outlier, tmp_path):
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    expected = open_model(woods.model, "cpu")(pixels)
    assert np.abs(open_model(outlier, "cpu")(pixels) - expected).max() < 1e-5 * np.abs(expected).max()
    woods.optimize(tmp_path / "bfloat16", "bfloat16", model=outlier)
    assert refused(woods, tmp_path / "fast", "onnx-int8", model=outlier).figures.changed > 20


def test_an_outlier_channel_that_the_careful_way_cannot_rescue_is_caught(woods, outlier, tmp_path):
    """Or can: then the result has passed the same gate."""
    try:
        assert woods.optimize(tmp_path / "fast", "openvino-int8", model=outlier).figures.changed == 0
    except GateError as error:
        assert error.figures.changed > 0 or error.figures.smallest_cosine < LIMITS.cosine
        assert not (tmp_path / "fast").exists()


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """Another checkpoint of the same architecture."""
    return convert_with_margins(tmp_path_factory.mktemp("another"), perturbed(small_model(), seed=7))


@pytest.mark.parametrize("recipe", FEW)
def test_a_stale_artefact_of_another_checkpoint_is_caught(woods, another, tmp_path, monkeypatch, recipe):
    """Written by the recipe, as from a cache; or copied over a finished folder later."""
    right = RECIPES[recipe].write
    swap(monkeypatch, recipe, write=lambda model, *rest: right(module.load_folder(another).float(), *rest))
    refused(woods, tmp_path / "fast", recipe)
    stale = optimize(another, tmp_path / "stale", recipe=recipe, images=woods.held, limits=ANY).folder if recipe != "bfloat16" else None  # fmt: skip
    swap(monkeypatch, recipe, write=right)
    woods.copy(recipe, tmp_path / "fast")
    file = json.loads((tmp_path / "fast" / "optimization.json").read_text())["artefact"]["file"]
    for name in FILES[recipe]:
        if (tmp_path / "fast" / name).is_file():
            shutil.copyfile((stale or another) / name, tmp_path / "fast" / name)
    was = f"{file}' is not the file that `vitconv optimize` wrote and judged"
    with pytest.raises(CheckpointError, match=was):
        predict(tmp_path / "fast", woods.held, tmp_path / "out")
    with pytest.raises(CheckpointError, match=was):
        evaluate_model(tmp_path / "fast", woods.held, tmp_path / "report", expected=woods.reference)
    with pytest.raises(CheckpointError, match="is an optimised folder"):
        verify_checkpoint(woods.model.parent / "trees.pth", tmp_path / "fast", architecture=small_model())
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_another_checkpoint_is_caught(woods, tmp_path):
    """The names of the classes are in it."""
    folder = woods.copy("onnx", tmp_path / "fast")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"ash"', '"elm"'))
    with pytest.raises(CheckpointError, match="config.json' is not the file"):
        predict(folder, woods.held, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("recipe", ("bfloat16", "onnx"))
def test_logits_that_are_not_finite_are_caught(woods, tmp_path, monkeypatch, recipe, value):
    def write(model, folder, calibration):
        model.classifier.bias.data[1] = value
        return right(model, folder, calibration)

    right = RECIPES[recipe].write
    swap(monkeypatch, recipe, write=write)
    assert refused(woods, tmp_path / "fast", recipe, limits=ANY).problem == "The logits of 60 images are not finite."


def test_another_output_than_the_logits_is_caught(woods, tmp_path, monkeypatch):
    """Such as the hidden states: its shape is another."""

    class Hidden(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model.vit(pixel_values).last_hidden_state[:, 0]

    def write(model, folder, calibration):
        (folder / "onnx").mkdir()
        pixels = torch.zeros(2, 3, 32, 32)
        torch.onnx.export(
            Hidden(model).eval(), (pixels,), folder / "onnx" / "model.onnx", input_names=["pixel_values"],
            output_names=["logits"], dynamo=True, external_data=False, verbose=False,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}},
        )  # fmt: skip
        return Written("onnx/model.onnx")

    swap(monkeypatch, "onnx", write=write)
    with pytest.raises(ParityError, match=r"gives float32 of shape \(8, 64\) instead of float32 of shape \(8, 5\)"):
        woods.optimize(tmp_path / "fast", "onnx")


def test_the_remedy_of_too_few_images_names_the_limit_that_they_prove(woods, tmp_path):
    error = refused(woods, tmp_path / "fast", "bfloat16", limits=Limits())
    assert error.problem.startswith("60 images prove no more than that below 4.9%")
    assert "for 1.0%, at least 299 are needed" in error.problem
    assert "--max-disagreement 0.049" in error.remedy
    woods.optimize(tmp_path / "fast", "bfloat16", limits=Limits(disagreement=0.049))


def test_an_export_that_is_not_the_same_has_no_recipe_that_changes_less(woods, tmp_path, monkeypatch):
    swap(monkeypatch, "onnx", write=permuted(RECIPES["onnx"].write))
    error = refused(woods, tmp_path / "fast", "onnx", limits=Limits())
    assert error.remedy.startswith("Keep the converted folder, and report this")
    swap(monkeypatch, "bfloat16", write=permuted(RECIPES["bfloat16"].write))
    assert "such as openvino or onnx" in refused(woods, tmp_path / "fast", "bfloat16").remedy


@pytest.mark.parametrize(
    ("found", "others"),
    [(("avx512_vnni",), "bfloat16 or onnx."), (("avx512_bf16",), "openvino-bf16 or bfloat16 or onnx.")],
)
def test_the_remedy_names_recipes_that_run_here(woods, monkeypatch, found, others):
    monkeypatch.setattr(module, "instructions", lambda: found)
    figures = woods.made("bfloat16").figures
    assert f"such as {others}" in module._remedy(RECIPES["openvino-int8"], figures, LIMITS, ("This.", "And that."))


# What is refused before anything is run.


def nothing_run(*arguments, **options):
    raise AssertionError("something was run")


@pytest.fixture
def early(monkeypatch):
    """Refused before anything is run, on any processor."""
    monkeypatch.setattr(module, "predict", nothing_run)
    monkeypatch.setattr(module, "instructions", lambda: INSTRUCTIONS)


def test_a_missing_package_is_named_with_its_extra(woods, tmp_path, monkeypatch, early):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in ("nncf", "onnxruntime") else True)
    with pytest.raises(
        InputError, match="The recipe openvino-int8 needs packages that are not installed: nncf"
    ) as caught:
        woods.optimize(tmp_path / "fast", "openvino-int8")
    assert caught.value.remedy == "Install them with pip install -e '.[openvino]' in vitconv's clone."
    with pytest.raises(InputError, match="The recipe onnx needs packages that are not installed: onnxruntime"):
        woods.optimize(tmp_path / "fast", "onnx")


def test_there_is_no_such_recipe(woods, tmp_path, early):
    with pytest.raises(InputError, match="There is no recipe 'int4'") as caught:
        optimize(woods.model, tmp_path / "fast", recipe="int4", images=woods.held)
    assert "bfloat16" in caught.value.remedy


def test_a_gpu_s_recipe_without_one_is_refused(woods, tmp_path, monkeypatch, early):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="The recipe float16 needs a CUDA GPU") as caught:
        woods.optimize(tmp_path / "fast", "float16")
    assert "openvino-int8" in caught.value.remedy and "tensorrt" not in caught.value.remedy


def test_a_processor_without_the_instructions(woods, tmp_path, monkeypatch, early):
    """Where the result would be wrong, it is an error; where it is slow, a note."""
    monkeypatch.setattr(module, "instructions", lambda: ("avx2",))
    for recipe, calibration, reason in (
        ("onnx-int8", None, "avx512_vnni or avx_vnni or dot, which this one does not have: sums of int8 products"),
        ("openvino-int8", woods.calibration, "avx512_vnni or avx_vnni or dot, which this one does not have: sums"),
        ("openvino-bf16", None, "avx512_bf16, which this one does not have: OpenVINO would take many times as long"),
    ):
        with pytest.raises(InputError, match=f"{recipe} needs a processor with {reason}"):
            optimize(woods.model, tmp_path / "fast", recipe=recipe, images=woods.held, calibration=calibration)
    monkeypatch.setattr(module, "predict", predict)
    done = woods.optimize(tmp_path / "fast", "bfloat16")
    assert (
        "may be slower than float32" in done.notes[0]
        and done.notes[0] in (tmp_path / "fast" / "README.md").read_text()
    )


def test_a_model_without_a_head_is_refused(woods, tmp_path, early):
    model = small_model("headless")
    torch.save(model.state_dict(), tmp_path / "headless.pth")
    convert_checkpoint(tmp_path / "headless.pth", tmp_path / "headless", architecture=model, verify=False)
    with pytest.raises(InputError, match="has no classes: it is a ViTModel"):
        woods.optimize(tmp_path / "fast", "onnx", model=tmp_path / "headless")


def test_an_optimised_folder_is_not_optimised_again(woods, tmp_path, monkeypatch):
    folder = woods.made("bfloat16").folder
    monkeypatch.setattr(module, "predict", nothing_run)
    with pytest.raises(InputError, match="bfloat16' is an optimised folder") as caught:
        woods.optimize(tmp_path / "faster", "onnx", model=folder)
    assert caught.value.remedy == "Pass the converted folder that it was made from."


def test_what_is_no_folder_of_vitconv_s_is_refused(woods, tmp_path, early):
    with pytest.raises(CheckpointError, match="There is no folder"):
        woods.optimize(tmp_path / "fast", "onnx", model=tmp_path / "none")


def test_limits_are_no_mapping(woods, tmp_path, early):
    with pytest.raises(InputError, match=r"limits is \{'cosine': 0.9\}"):
        woods.optimize(tmp_path / "fast", "onnx", limits={"cosine": 0.9})


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"cosine": float("nan")}, "cosine is nan"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"disagreement": -1}, "disagreement is -1"),
        ({"disagreement": 0}, "disagreement is 0, which no number"),
    ],
)
def test_limits_out_of_range_are_refused(woods, tmp_path, early, limits, word):
    with pytest.raises(InputError, match=f"The limit of the {word}"):
        woods.optimize(tmp_path / "fast", "onnx", limits=Limits(**limits))


def test_destinations_that_are_refused(woods, tmp_path, early):
    other = shutil.copytree(woods.model, tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    for destination, overwrite, word in [
        (tmp_path / "full", False, "exists already, and holds files that no conversion writes"),
        (tmp_path / "full", True, "holds files that no conversion writes"),
        (tmp_path / "full" / "notes.txt", False, "exists already, and is a file"),
        (tmp_path / "full" / "notes.txt" / "fast", False, "is not a folder"),
        (other, False, "exists already"),
        (other, True, "which is read, so it is not overwritten"),
        (other / "fast", False, "lies in '.*model', which is read"),
        (woods.held / "fast", False, "lies in '.*held', which is read"),
    ]:
        with pytest.raises(DestinationError, match=word):
            woods.optimize(destination, "onnx", model=other, overwrite=overwrite)
    for reference in (tmp_path / "fast", tmp_path / "fast" / "reference"):
        with pytest.raises(DestinationError, match="lies in the destination"):
            woods.optimize(tmp_path / "fast", "onnx", reference=reference)
    assert sorted(os.listdir(tmp_path)) == ["full", "model"] and not (woods.held / "fast").exists()


def test_calibration_images_that_are_refused(woods, tmp_path, early):
    few = write_pictures(tmp_path / "few", 20, first=2000)
    same = tmp_path / "same"
    same.mkdir()
    for number in range(30):
        shutil.copyfile(next(few.rglob("*.png")), same / f"{number}.png")
    alike = write_pictures(tmp_path / "alike", 30, first=3000, classes=CLASSES[:1])
    judged = shutil.copytree(woods.calibration, tmp_path / "judged")
    shutil.copyfile(woods.held / "ash" / "0000.png", judged / "oak" / "renamed.png")
    for recipe, calibration, word in [
        ("openvino-int8", None, "needs calibration images"),
        ("onnx", woods.calibration, "needs no calibration images"),
        ("openvino-int8", few, "has 20 images: too few"),
        ("openvino-int8", same, "has 1 image: too few"),
        ("openvino-int8", alike, "All images in '.*alike' are labelled 'ash'"),
        ("openvino-int8", judged, r"1 image in '.*judged' is also in '.*held' \(oak/renamed.png\)"),
        ("openvino-int8", tmp_path / "none", "There is no list of images"),
    ]:
        with pytest.raises(InputError, match=word):
            woods.optimize(tmp_path / "fast", recipe, calibration=calibration)


def test_one_class_of_calibration_images_is_seen_in_a_list_too(woods, tmp_path, early):
    images = sorted(woods.calibration.rglob("*.png"))
    rows = [f"{path},{'' if number % 2 else 'ash'}" for number, path in enumerate(images)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match="labelled 'ash'"):
        woods.optimize(tmp_path / "fast", "openvino-int8", calibration=tmp_path / "list.csv")


def test_one_class_is_for_recipes_in_float32(woods, tmp_path, early):
    """Its answer is kept whatever becomes of the logit."""
    one = convert_small(tmp_path, tmp_path / "one", "one class", ("ash",))
    with pytest.raises(InputError, match="has one class, and so one answer") as caught:
        woods.optimize(tmp_path / "fast", "openvino-int8", model=one)
    assert caught.value.remedy.startswith("Choose a recipe that computes in float32: torchscript, onnx or openvino")
    with pytest.raises(AssertionError, match="something was run"):
        woods.optimize(tmp_path / "fast", "onnx", model=one)


@pytest.mark.parametrize("where", ["calibration", "images"])
@pytest.mark.parametrize("broken", ["missing", "a pipe", "a NUL"])
def test_files_that_are_no_images_in_either_list(woods, tmp_path, early, where, broken):
    """Found before anything is run, as each file's SHA-256 is needed."""
    place = shutil.copytree(getattr(woods, {"calibration": "calibration", "images": "held"}[where]), tmp_path / "copy")
    images = [os.fspath(path) for path in sorted(place.rglob("*.png"))]
    if broken == "a NUL":
        images[3] = images[3].replace("png", "\0png")
    else:
        os.unlink(images[3])
    if broken == "a pipe":
        os.mkfifo(images[3])
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(images) + "\n")
    with pytest.raises(InputError, match="cannot be read|is a pipe, not a file|NUL"):
        woods.optimize(tmp_path / "fast", "openvino-int8", **{where: tmp_path / "list.csv"})


@pytest.mark.parametrize("where", ["calibration", "images"])
def test_a_broken_image_in_either_list(woods, tmp_path, where):
    place = shutil.copytree(getattr(woods, {"calibration": "calibration", "images": "held"}[where]), tmp_path / "copy")
    file = sorted(place.rglob("*.png"))[3]
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=f"{file.name}' is not an image that can be read") as caught:
        woods.optimize(tmp_path / "fast", "openvino-int8", reference=None, **{where: place})
    assert caught.value.remedy and not (tmp_path / "fast").exists()


def test_labels_that_are_not_the_model_s_are_refused_before_anything_is_exported(woods, tmp_path, monkeypatch):
    swap(monkeypatch, "bfloat16", write=nothing_run)
    rows = [f"{path},elm" for path in sorted(woods.held.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match="name a class that the model does not have: 'elm'"):
        woods.optimize(tmp_path / "fast", "bfloat16", images=tmp_path / "list.csv", reference=None)


def test_images_that_get_one_answer_are_refused_before_anything_is_exported(woods, tmp_path, monkeypatch):
    swap(monkeypatch, "bfloat16", write=nothing_run)
    with pytest.raises(InputError, match="The model answers 'oak' to every image"):
        woods.optimize(tmp_path / "fast", "bfloat16", images=woods.held / "oak", reference=None)


def test_a_model_that_is_replaced_in_the_middle_is_refused(woods, another, tmp_path, monkeypatch):
    """The record would state the fingerprint of the first model, and the weights would be the other's."""
    model = Path(shutil.copytree(woods.model, tmp_path / "model"))
    right = module.read_info

    def replace(folder):
        info = right(folder)
        if folder == model:
            shutil.copytree(another, model, dirs_exist_ok=True)
        return info

    monkeypatch.setattr(module, "read_info", replace)
    with pytest.raises(CheckpointError, match="have changed while it was optimised"):
        optimize(model, tmp_path / "fast", recipe="onnx", images=woods.held, limits=ANY)
    assert not (tmp_path / "fast").exists()


def test_an_image_that_vanishes_in_the_middle_is_named(woods, tmp_path, monkeypatch):
    place = shutil.copytree(woods.held, tmp_path / "copy")
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(map(str, sorted(place.rglob("*.png")))) + "\n")

    def write(*arguments):
        (place / "ash" / "0000.png").unlink()
        return right(*arguments)

    right = RECIPES["bfloat16"].write
    swap(monkeypatch, "bfloat16", write=write)
    with pytest.raises(InputError, match="Images that were read cannot be read any more: .*0000.png"):
        woods.optimize(tmp_path / "fast", "bfloat16", images=tmp_path / "list.csv", reference=None)


def test_an_image_that_is_listed_again_counts_once(woods, tmp_path):
    """Else two images would prove anything; whatever their names, and with those that differ, it goes on."""
    images = [next((woods.held / name).glob("*.png")) for name in ("ash", "oak")]
    shutil.copyfile(images[0], tmp_path / "renamed.png")
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(map(str, [*images * 40, "renamed.png"])) + "\n")
    options = {"images": tmp_path / "list.csv", "reference": None}
    error = refused(woods, tmp_path / "fast", "bfloat16", **options)
    assert error.problem == (
        "2 images prove no more than that below 77.6% of all images change; for 6.0%, at least 49 are needed. Of 81 "
        "images, 2 are different, and each of them counts once."
    )
    done = woods.optimize(tmp_path / "fast", "bfloat16", limits=replace(LIMITS, disagreement=0.8), **options)
    assert done.figures.images == 2 and done.figures.bound > 0.77
    assert "Of 81 images, 2 are different" in (tmp_path / "fast" / "README.md").read_text()


# What goes wrong while a folder is written.


@pytest.mark.parametrize(
    "error", [RuntimeError("no such operator"), KeyError("x"), AssertionError(), TypeError("?\nmore")]
)
def test_whatever_an_exporter_raises_is_one_sentence(woods, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    swap(monkeypatch, "onnx", write=fail)
    with pytest.raises(VitconvError, match=f"The recipe onnx cannot be applied to this ViTForImageClassification: {type(error).__name__}: .") as caught:  # fmt: skip
        woods.optimize(tmp_path / "fast", "onnx")
    assert "\n" not in caught.value.problem and not (tmp_path / "fast").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupt_while_a_model_is_exported_leaves_nothing(woods, tmp_path, monkeypatch, error):
    def fail(model, folder, calibration):
        (folder / "onnx").mkdir()
        (folder / "onnx" / "half").write_text("")
        raise error

    swap(monkeypatch, "onnx", write=fail)
    with pytest.raises(type(error)):
        woods.optimize(tmp_path / "fast", "onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("recipe", (*CPU, "torchscript"))
def test_a_limit_of_file_sizes_is_named_whatever_the_exporter_raises(woods, tmp_path, monkeypatch, recipe):
    """Each has an error of its own, or none; none of them knows what to do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        return right(*arguments)

    right = RECIPES[recipe].write
    swap(monkeypatch, recipe, write=write, careful=None)
    try:
        with pytest.raises(DestinationError) as caught:
            woods.optimize(tmp_path / "fast", recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.problem == f"'{tmp_path / 'fast'}' cannot be written: {os.strerror(errno.EFBIG)}."
    assert not (tmp_path / "fast").exists()


def test_two_at_once_into_one_folder(woods, tmp_path):
    """The first to be done is there, whole; the other, which began earlier, says so."""

    def another(step):
        if step == "Running bfloat16":
            woods.optimize(tmp_path / "fast", "bfloat16", reference=None)

    with pytest.raises(DestinationError, match="exists already"):
        woods.optimize(tmp_path / "fast", "bfloat16", reference=None, on_step=another)
    assert read_info(tmp_path / "fast").runtime == "transformers"


@pytest.mark.parametrize("which", ["model", "destination"])
def test_a_name_that_is_not_utf_8_is_refused(woods, tmp_path, early, which):
    """The exporters' libraries cannot open such a path."""
    name = os.fsdecode(b"tre\xe9s")
    model = shutil.copytree(woods.model, tmp_path / name) if which == "model" else woods.model
    with pytest.raises(InputError, match="The name of '.*(tre.*s|fast)' is not UTF-8"):
        woods.optimize(tmp_path / ("fast" if which == "model" else name), "onnx", model=model)


def test_pictures_of_a_picture(tmp_path):
    """The pictures differ from each other, so that none of them judges what it has set."""
    folder = write_pictures(tmp_path / "pictures", 10)
    contents = {Image.open(path).tobytes() for path in folder.rglob("*.png")}
    assert len(contents) == 10 and isinstance(folder, Path)
