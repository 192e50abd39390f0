"""A vision model of Transformers with timm's head in a file of code: in memory, in files, and as users load it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from models import perturbed, pixels_for, reduced
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    TimmWrapperImageProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from vitconv import mapping
from vitconv.convert import convert_checkpoint, revert_checkpoint, to_huggingface, to_timm, verify_checkpoint
from vitconv.errors import ArchitectureError, CheckpointError, InputError
from vitconv.inference import predict
from vitconv.inference.predictions import read_predictions
from vitconv.mapping.plan import make_plan, shapes_of
from vitconv.mapping.timm_head import FAMILIES_WITH_TIMM_HEAD
from vitconv.models import modeling_vitconv
from vitconv.models.images import load_image, sample_image
from vitconv.models.pixels import timm_pixels
from vitconv.models.timm import from_timm
from vitconv.parity import compare
from vitconv.parity.float64 import float64_throughout

#: The vision model's family -> one of timm's architectures, which with a head of one's own needs the file of code.
ONE_OF = {
    "siglip": "vit_base_patch16_siglip_224",
    "clip": "vit_base_patch16_clip_224",
    "dinov3": "vit_small_patch16_dinov3",
    "aimv2": "aimv2_large_patch14_224",
    "internvl": "vit_intern300m_patch14_448",
    "radio": "vit_base_patch16_radio_v3",
    "sapiens2": "vit_base_patch16_sapiens2",
    "sam": "samvit_base_patch16",
    "dpt": "vit_base_r50_s16_224",
    "sam3": "vit_pe_spatial_gigantic_patch14_448",
}
CLASSES = ("ash", "beech", "cedar", "fir", "oak", "pine", "yew")


@pytest.fixture(autouse=True, scope="module")
def code_cache(tmp_path_factory):
    """Transformers copies a folder's code to a cache and imports it from there."""
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield


def convert(family, folder, **more):
    """A small timm model with seven classes and the folder that it is converted to."""
    model = reduced(ONE_OF[family], num_classes=7).float()
    torch.save(model.state_dict(), folder / "timm.pth")
    given = {"architecture": model, "labels": CLASSES, "data": {"crop_pct": 1.0, "crop_mode": "center"}}
    done = convert_checkpoint(folder / "timm.pth", folder / "hf", target="head_code", **given, **more)
    return model, done


def test_every_family_has_a_model_here():
    assert {family.vision.name for family in FAMILIES_WITH_TIMM_HEAD} == set(ONE_OF)


@pytest.mark.parametrize("family", FAMILIES_WITH_TIMM_HEAD, ids=lambda family: family.name)
def test_the_class_is_as_its_family_says(family):
    (name,) = family.classes
    head = getattr(modeling_vitconv, name)
    vision = getattr(transformers, name.replace("WithTimmHeadForImageClassification", "Model"))
    assert vision.__name__ in family.vision.classes
    assert head.base_model_prefix == vision.base_model_prefix == family.attribute
    assert head.config_class is vision.config_class and head.vision_model_class is vision
    assert head._supports_sdpa == vision._supports_sdpa


def test_no_vision_model_has_a_classifier_of_its_own():
    """AutoModelForImageClassification would take that one, with random weights, where it does not trust the folder."""
    for name in ONE_OF.values():
        config = mapping.config(from_timm(reduced(name, num_classes=7)), target="head_code")
        assert config["model_type"] not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


@pytest.mark.parametrize("family", ONE_OF)
def test_it_computes_what_timm_computes_and_the_way_back_leads_there(family):
    model = reduced(ONE_OF[family], num_classes=7)
    twin = to_huggingface(model, target="head_code", verify=False)
    assert type(twin).__name__ == mapping.class_name(from_timm(model), "head_code")
    pixels = pixels_for(model).double()
    compare(model, twin, pixels, dtypes=["float64"]).assert_match()
    back = to_timm(twin)
    assert from_timm(back).num_labels == 7
    with torch.no_grad():
        with float64_throughout(model):
            expected = model(pixels)
        with float64_throughout(back):
            actual = back.eval()(pixels)
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_pooling(pool):
    """As timm builds it when one asks for another pooling than the name's."""
    model = reduced("vit_small_patch16_dinov3", num_classes=7, global_pool=pool)
    compare(model, to_huggingface(model, target="head_code", verify=False), pixels_for(model).double()).assert_match()


@pytest.mark.parametrize("family", sorted(ONE_OF.keys() - {"sapiens2"}))
def test_the_names_in_files_are_those_that_transformers_writes(family, tmp_path):
    model = reduced(ONE_OF[family], num_classes=7)
    to_huggingface(model, target="head_code", verify=False).save_pretrained(tmp_path)
    architecture = from_timm(model)
    known = mapping.family_for(architecture, "head_code")
    simple = known.rewrite(model.state_dict(), architecture)
    plan = make_plan(known, simple.architecture, shapes_of(simple.state_dict), "hub")
    assert set(load_file(tmp_path / "model.safetensors")) == {move.target for move in plan.moves}


def test_where_automodel_does_not_find_the_names_that_transformers_writes_files_have_those_in_memory():
    model = reduced(ONE_OF["sapiens2"], num_classes=7)
    known = mapping.family_for(from_timm(model), "head_code")
    assert all(row.hub == row.transformers5 for row in known.rows(from_timm(model), shapes_of(model.state_dict())))


@pytest.mark.parametrize("family", ONE_OF)
def test_users_load_it_as_any_folder(family, tmp_path, monkeypatch):
    """Without trust the vision model alone, and no code; with trust the classifier; and in a pipeline, by the file."""
    model, done = convert(family, tmp_path)
    ours = getattr(modeling_vitconv, done.class_name).from_pretrained(done.destination).eval()
    picture = sample_image(tuple(2 * side for side in reversed(done.data.image_size)))
    picture.save(tmp_path / "photo.png")
    pixels = timm_pixels(picture, done.data)[None]

    with monkeypatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.get_class_in_module", None)  # running code would fail
        vision, info = AutoModel.from_pretrained(done.destination, output_loading_info=True)
        assert type(vision) is type(ours).vision_model_class
        assert info["unexpected_keys"] <= {"classifier.weight", "classifier.bias"} and not info["missing_keys"]
        expected = ours.base_model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in vision.state_dict().items())
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForImageClassification.from_pretrained(done.destination, trust_remote_code=False)

    loaded, info = AutoModelForImageClassification.from_pretrained(
        done.destination, trust_remote_code=True, output_loading_info=True
    )
    assert type(loaded).__module__.startswith("transformers_modules.") and not any(info.values())
    with torch.no_grad():
        theirs = model(pixels)
        assert torch.equal(loaded.eval()(pixels).logits, ours(pixels).logits)
        assert torch.allclose(ours(pixels).logits, theirs, rtol=0, atol=1e-5 * theirs.abs().max())
    if (done.destination / "preprocessor_config.json").exists():
        processor = AutoImageProcessor.from_pretrained(done.destination, backend="pil")
    else:  # images that are not square
        file = {"image_processor_filename": "timm_processor.json"}
        processor = TimmWrapperImageProcessor.from_pretrained(done.destination, **file)
    ask = pipeline("image-classification", str(done.destination), image_processor=processor, trust_remote_code=True)
    answers = ask(str(tmp_path / "photo.png"), top_k=7)
    assert [answer["label"] for answer in answers] == [CLASSES[i] for i in theirs[0].argsort(descending=True)]


def test_a_loaded_classifier_is_saved_with_its_code(tmp_path):
    _, done = convert("dinov3", tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(done.destination, trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again", trust_remote_code=True)
    expected = loaded.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    revert_checkpoint(tmp_path / "again", tmp_path / "back")  # a folder that vitconv did not write


@pytest.mark.parametrize("family", ["dinov3", "siglip", "radio"])
def test_training_goes_on(family, tmp_path):
    """A step of Transformers' Trainer, and an adapter on the attention that is merged again."""
    model, done = convert(family, tmp_path, verify=False)
    loaded = AutoModelForImageClassification.from_pretrained(done.destination, trust_remote_code=True)
    data = [{"pixel_values": pixels_for(model)[0], "labels": i} for i in range(4)]
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    before = loaded.classifier.weight.clone()
    result = Trainer(loaded, arguments, train_dataset=data).train()
    assert result.training_loss > 0 and not torch.equal(loaded.classifier.weight, before)
    adapted = get_peft_model(loaded, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
    pixels = pixels_for(model)
    adapted(pixels, labels=torch.tensor([0, 3])).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert any("lora_B" in name for name in trained)
    merged = adapted.merge_and_unload()
    assert merged(pixels).logits.shape == (2, 7)


def test_a_folder_with_code_is_replaced_like_any_other(tmp_path):
    convert("dinov3", tmp_path, verify=False)
    _, done = convert("dinov3", tmp_path, verify=False, overwrite=True)
    assert (done.destination / "modeling_vitconv.py").exists()


def test_predictions_are_timms(tmp_path):
    model, done = convert("siglip", tmp_path)
    sample_image((96, 96)).save(tmp_path / "photo.png")
    predict(done.destination, tmp_path / "photo.png", tmp_path / "predictions")
    (row,) = read_predictions(tmp_path / "predictions").rows.to_pylist()
    with torch.no_grad():
        expected = model(timm_pixels(load_image(tmp_path / "photo.png"), done.data)[None])[0]
    assert row["class"] == CLASSES[expected.argmax()]
    assert torch.allclose(torch.tensor(row["logits"]), expected, atol=1e-5)


# ---- code that vitconv did not write ---------------------------------------------------------------------------


def add_a_line(folder):
    file = folder / "modeling_vitconv.py"
    file.write_text(file.read_text() + f"\nopen({str(folder / 'PWNED')!r}, 'w')\n")


def point_elsewhere(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "other.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "other.py").write_text(f"open({str(folder / 'PWNED')!r}, 'w')\n")


def take_away(folder):
    (folder / "modeling_vitconv.py").unlink()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    small = {"img_size": 96, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = perturbed(timm.create_model("vit_small_patch16_dinov3", num_classes=7, **small))
    timm.models.save_for_hf(model, folder / "timm", model_args=small, safe_serialization=True)
    convert_checkpoint(folder / "timm", folder / "hf", target="head_code", verify=False)
    sample_image((96, 96)).save(folder / "photo.png")
    return folder


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add_a_line, "modeling_vitconv.py' is not a file that vitconv wrote."),
        (point_elsewhere, "`auto_map` in the config.json in"),
        (take_away, "has no modeling_vitconv.py, which its class DINOv3ViTWithTimmHeadForImageClassification is in."),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "verify ../timm .",
        "predict . ../photo.png",
        "evaluate . ../photo.png",
        "revert . ../back",
    ],
)
def test_edited_code_is_refused_by_every_command_and_does_not_run(edit, message, command, converted, tmp_path):
    for name in ("timm", "photo.png"):
        (tmp_path / name).symlink_to(converted / name)
    folder = shutil.copytree(converted / "hf", tmp_path / "hf")
    edit(folder)
    done = subprocess.run(
        [sys.executable, "-m", "vitconv", *command.split()],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr and message in done.stderr and "Traceback" not in done.stderr
    assert "Do not load this folder with trust_remote_code=True." in done.stderr
    assert not list(tmp_path.rglob("PWNED")) and not (tmp_path / "back").exists()


ROOT = Path(__file__).parents[3]


def test_a_native_folder_may_not_name_code(tmp_path):
    """Transformers would run it for those who trust the folder, and vitconv has proved something else."""
    model = reduced("vit_small_patch16_dinov3").float()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, verify=False)
    point_elsewhere(done.destination)
    with pytest.raises(CheckpointError, match=r"`auto_map` in the config.json in '.*' is {'Auto.*'} instead of None"):
        verify_checkpoint(tmp_path / "timm.pth", done.destination, architecture=model)


# ---- the choice ----------------------------------------------------------------------------------------------------


def test_it_is_an_explicit_choice_that_the_refusal_names():
    model = reduced("vit_small_patch16_dinov3", num_classes=7)
    with pytest.raises(ArchitectureError, match="it has a classification head") as caught:
        to_huggingface(model)
    assert "Convert it with --head code" in caught.value.remedy and "--headless" in caught.value.remedy


def test_without_a_head_there_is_no_code():
    model = perturbed(reduced("vit_small_patch16_dinov3"))
    with pytest.raises(ArchitectureError, match="it has no classification head"):
        to_huggingface(model, target="head_code")


def test_the_target_may_name_the_vision_model_s_family():
    assert mapping.target_for("dinov3", "code") == "dinov3_head_code"
    model = reduced("vit_small_patch16_dinov3", num_classes=7)
    twin = to_huggingface(model, target="dinov3_head_code", verify=False)
    assert type(twin).__name__ == "DINOv3ViTWithTimmHeadForImageClassification"
    with pytest.raises(InputError, match="There is no target 'vit_head_code'"):
        mapping.family_for(from_timm(model), mapping.target_for("vit", "code"))
