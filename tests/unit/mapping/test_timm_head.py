"""A vision model of Transformers with timm's head, or pooling, in a file of code: in memory, in files, and as users
load it.
"""

import itertools
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import commands
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
from vitconv.models.catalogue import entries
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
#: The same, and a head that pools by attention itself, as no class with registers does.
MODELS = ONE_OF | {"attention": "vit_so150m_patch16_reg4_map_256"}
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
    model = reduced(MODELS[family], num_classes=7).float()
    torch.save(model.state_dict(), folder / "timm.pth")
    given = {"architecture": model, "labels": CLASSES, "data": {"crop_pct": 1.0, "crop_mode": "center"}}
    done = convert_checkpoint(folder / "timm.pth", folder / "hf", target="head_code", **given, **more)
    return model, done


def test_every_family_has_a_model_here():
    assert {family.vision.name for family in FAMILIES_WITH_TIMM_HEAD} == set(ONE_OF)


@pytest.mark.parametrize("family", FAMILIES_WITH_TIMM_HEAD, ids=lambda family: family.name)
def test_the_class_is_as_its_family_says(family):
    for name, kind in zip(family.classes, ("WithTimmHeadForImageClassification", "WithTimmPoolingModel"), strict=True):
        head = getattr(modeling_vitconv, name)
        vision = getattr(transformers, name.replace(kind, "Model"))
        assert vision.__name__ in family.vision.classes
        assert head.base_model_prefix == vision.base_model_prefix == family.attribute
        assert head.config_class is vision.config_class and head.vision_model_class is vision
        assert head._supports_sdpa == vision._supports_sdpa


def test_no_vision_model_has_a_classifier_of_its_own():
    """AutoModelForImageClassification would take that one, with random weights, where it does not trust the folder."""
    for name in ONE_OF.values():
        config = mapping.config(from_timm(reduced(name, num_classes=7)), target="head_code")
        assert config["model_type"] not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


@pytest.mark.parametrize("family", MODELS)
def test_it_computes_what_timm_computes_and_the_way_back_leads_there(family):
    model = reduced(MODELS[family], num_classes=7)
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


@pytest.mark.parametrize("family", sorted(MODELS.keys() - {"sapiens2"}))
def test_the_names_in_files_are_those_that_transformers_writes(family, tmp_path):
    model = reduced(MODELS[family], num_classes=7)
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


@pytest.mark.parametrize("family", MODELS)
def test_users_load_it_as_any_folder(family, tmp_path, monkeypatch):
    """Without trust the vision model alone, and no code; with trust the classifier; and in a pipeline, by the file."""
    model, done = convert(family, tmp_path)
    ours = getattr(modeling_vitconv, done.class_name).from_pretrained(done.destination).eval()
    picture = sample_image(tuple(2 * side for side in reversed(done.data.image_size)))
    picture.save(tmp_path / "photo.png")
    pixels = timm_pixels(picture, done.data)[None]

    with monkeypatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.get_class_in_module", None)  # running code would fail
        # Transformers remembers a class that was trusted before in this process.
        patch.setattr(AutoModelForImageClassification._model_mapping, "_extra_content", {})
        vision, info = AutoModel.from_pretrained(done.destination, output_loading_info=True)
        assert type(vision) is type(ours).vision_model_class
        assert all(name.startswith(("classifier.", "head_")) for name in info["unexpected_keys"])
        assert not info["missing_keys"]
        expected = ours.base_model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in vision.state_dict().items())
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForImageClassification.from_pretrained(done.destination, trust_remote_code=False)

    assert (
        f'model = AutoModelForImageClassification.from_pretrained("{done.destination}", trust_remote_code=True)'
        in (done.loading_lines)
    )
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


#: Without a head, what pools as no class of Transformers does: by a mean and a norm, and by attention.
POOLED = ("vit_base_patch16_reg4_gap_256", "vit_so150m_patch16_reg4_map_256")


@pytest.mark.parametrize("name", POOLED)
def test_without_a_head_the_pooling_is_in_the_file_of_code(name, tmp_path, monkeypatch):
    """With trust, timm's features are the pooled output, in a pipeline, too; without it, the vision model is loaded."""
    model = reduced(name, num_classes=0).float()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    given = {"architecture": model, "data": {"crop_pct": 1.0, "crop_mode": "center"}}
    with pytest.raises(ArchitectureError, match="No Transformers class computes") as caught:
        convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", **given)
    assert "--head code" in caught.value.remedy and "the pooling in a file" in caught.value.remedy
    assert "--headless" not in caught.value.remedy
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", target="head_code", **given)
    assert done.class_name == "RadioWithTimmPoolingModel"
    picture = sample_image(tuple(2 * side for side in reversed(done.data.image_size)))
    pixels = timm_pixels(picture, done.data)[None]
    with torch.no_grad():
        expected = model(pixels)

    with monkeypatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.get_class_in_module", None)  # running code would fail
        vision, info = AutoModel.from_pretrained(done.destination, output_loading_info=True)
        assert type(vision).__name__ == "RadioModel" and not info["missing_keys"]
        assert all(key.startswith("head_") for key in info["unexpected_keys"])
    loaded, info = AutoModel.from_pretrained(done.destination, trust_remote_code=True, output_loading_info=True)
    assert type(loaded).__name__ == done.class_name and not any(info.values())
    with torch.no_grad():
        output = loaded.eval()(pixels, output_hidden_states=True)
        assert torch.equal(output.last_hidden_state, vision.eval()(pixels).last_hidden_state)
    assert len(output.hidden_states) == len(model.blocks) + 1
    assert torch.allclose(output.pooler_output, expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert type(AutoModel.from_pretrained(done.destination)).__name__ == "RadioModel"  # it is not remembered
    processor = AutoImageProcessor.from_pretrained(done.destination, backend="pil")
    ask = pipeline(
        "image-feature-extraction", str(done.destination), image_processor=processor, trust_remote_code=True, pool=True
    )
    assert torch.allclose(torch.tensor(ask(picture)), expected, rtol=0, atol=1e-5 * expected.abs().max())
    card = (done.destination / "README.md").read_text()
    assert "The pooling is in `modeling_vitconv.py`" in card and "pipeline_tag: image-feature-extraction" in card
    assert "model = AutoModel.from_pretrained(folder, trust_remote_code=True)" in card

    loaded.save_pretrained(tmp_path / "again")
    back = revert_checkpoint(tmp_path / "again", tmp_path / "back", architecture=name)
    reverted = timm.create_model(f"local-dir:{back.destination}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert torch.allclose(reverted(pixels), expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("count", [7, 0])
def test_every_pooling_of_every_architecture_has_a_configuration_or_a_refusal(count):
    for facts in filter(None, (entry.facts for entry in entries().values())):
        for pool, target in itertools.product(("", "avg", "token", "map"), (None, "head_code")):
            with suppress(ArchitectureError):
                architecture = replace(facts, num_labels=count, global_pool=pool)
                assert mapping.config(architecture, target=target)["architectures"]


def test_without_a_head_and_without_pooling_there_is_nothing_to_add():
    architecture = replace(from_timm(reduced("vit_base_patch16_reg4_gap_256", num_classes=0)), global_pool="")
    with pytest.raises(ArchitectureError, match="RadioWithTimmPoolingModel does not .* has no head"):
        mapping.family_for(architecture, "radio_head_code")


def test_a_norm_behind_attention_pooling_is_in_no_head():
    model = reduced("vit_so150m_patch16_reg4_map_256", num_classes=7, fc_norm=True)
    with pytest.raises(ArchitectureError, match="attention pooling"):
        to_huggingface(model, target="head_code")


@pytest.mark.parametrize(
    "name",
    ["vit_so150m_patch16_reg4_map_256", "naflexvit_so150m2_patch16_reg1_map", "vit_base_patch16_reg4_gap_256"],
)
def test_the_way_back_leads_to_an_architecture_that_converts_with_code_only(name, tmp_path):
    model = reduced(name, num_classes=7).float()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    given = {"architecture": model, "labels": CLASSES, "data": {"crop_pct": 1.0, "crop_mode": "center"}}
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", target="head_code", **given)
    back = revert_checkpoint(done.destination, tmp_path / "back", architecture=name)
    assert back.timm_name == name
    reverted = timm.create_model(f"local-dir:{back.destination}", pretrained=True).eval()
    pixels = pixels_for(model)
    with torch.no_grad():
        expected = model(pixels)
        assert torch.allclose(reverted(pixels), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_a_loaded_classifier_is_saved_with_its_code(tmp_path):
    _, done = convert("dinov3", tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(done.destination, trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again", trust_remote_code=True)
    expected = loaded.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    revert_checkpoint(tmp_path / "again", tmp_path / "back")  # a folder that vitconv did not write


@pytest.mark.parametrize("family", ["dinov3", "siglip", "radio", "attention"])
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


def bring_a_pipeline(folder):
    """Which `pipeline(…, trust_remote_code=True)` would run instead of its own."""
    config = json.loads((folder / "config.json").read_text())
    config["custom_pipelines"] = {"image-classification": {"impl": "other.Pipe", "pt": ["AutoModel"]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "other.py").write_text(f"open({str(folder / 'PWNED')!r}, 'w')\n")


def bring_a_processor(folder):
    """Which `AutoImageProcessor.from_pretrained(…, trust_remote_code=True)` would run."""
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor["auto_map"] = {"AutoImageProcessor": "other.Processor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
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
    ("edit", "message", "remedy"),
    [
        (add_a_line, "modeling_vitconv.py' is not a file that vitconv wrote.", "Do not load this folder with"),
        (point_elsewhere, "`auto_map` in the config.json in", "Do not load this folder with trust_remote_code=True."),
        (bring_a_processor, "preprocessor_config.json' names code", "Do not load this folder with trust_remote_code"),
        (take_away, "has no modeling_vitconv.py, which its class DINOv3ViTWithTimmHead", "Do not load this folder"),
        (
            bring_a_pipeline,
            "`custom_pipelines` in config.json is",
            "Remove this setting, or convert the source again.",
        ),
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
def test_other_code_is_refused_by_every_command_and_does_not_run(
    edit, message, remedy, command, converted, tmp_path, monkeypatch
):
    for name in ("timm", "photo.png"):
        (tmp_path / name).symlink_to(converted / name)
    folder = shutil.copytree(converted / "hf", tmp_path / "hf")
    edit(folder)
    monkeypatch.chdir(folder)
    code, _, said = commands.run(*command.split())
    assert code == 1, said
    assert "error: " in said and message in said and "Traceback" not in said
    assert remedy in said
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


@pytest.mark.parametrize("family", [family for family in ONE_OF if family != "clip"])  # CLIP always pools
def test_a_head_on_every_token_is_refused(family):
    model = reduced(ONE_OF[family], num_classes=7, global_pool="")
    with pytest.raises(ArchitectureError, match="it has a head on every token"):
        to_huggingface(model, target="head_code")


def test_without_a_head_there_is_no_code():
    model = perturbed(reduced("vit_small_patch16_dinov3"))
    with pytest.raises(ArchitectureError, match="it has no classification head"):
        to_huggingface(model, target="head_code")


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("vit_tiny_patch16_224", "ViTForImageClassification"),
        ("beit_base_patch16_224", "BeitForImageClassification"),
        ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegistersForImageClassification"),
        ("vit_relpos_small_patch16_224", "BeitForImageClassification"),
        ("deit_tiny_distilled_patch16_224", "DeiTForImageClassificationWithTeacher"),
    ],
)
@pytest.mark.parametrize("target", ["head_code", "dpt_head_code"])
def test_a_model_whose_head_transformers_has_needs_no_code(name, becomes, target):
    architecture = from_timm(reduced(name, num_classes=7))
    with pytest.raises(ArchitectureError, match=f"needs no code for a head: it becomes {becomes}, a class") as caught:
        mapping.family_for(architecture, target)
    assert caught.value.remedy == "Leave out --head code (in Python target='head_code')."
    assert mapping.class_name(architecture) == becomes


def test_where_code_does_not_help_the_reason_is_that_of_the_native_classes():
    architecture = replace(from_timm(reduced("vit_tiny_patch16_224", num_classes=7)), global_pool="max")
    with pytest.raises(ArchitectureError) as native:
        mapping.family_for(architecture)
    with pytest.raises(ArchitectureError) as caught:
        mapping.family_for(architecture, "head_code")
    assert (caught.value.problem, caught.value.remedy) == (native.value.problem, native.value.remedy)
    assert "another pooling" in caught.value.problem and "timm_wrapper" in caught.value.remedy


def test_the_target_may_name_the_vision_model_s_family():
    assert mapping.target_for("dinov3", "code") == "dinov3_head_code"
    model = reduced("vit_small_patch16_dinov3", num_classes=7)
    twin = to_huggingface(model, target="dinov3_head_code", verify=False)
    assert type(twin).__name__ == "DINOv3ViTWithTimmHeadForImageClassification"
    with pytest.raises(InputError, match="There is no target 'vit_head_code'"):
        mapping.family_for(from_timm(model), mapping.target_for("vit", "code"))
