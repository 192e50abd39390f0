"""What a checkpoint says of itself is what timm makes of it: judged from the image file, by timm's own code."""

import argparse
import json
import os
import re

import pytest
import timm
import torch
import transformers
from descriptions import assert_same_data, check_descriptions
from models import full_model, perturbed
from PIL import Image
from selfdescribed import TINY, as_train_py_saves, photos, timm_answers, train_py_config
from timm.data import resolve_data_config
from timm.models import save_for_hf

from vitconv.checkpoints.description import SelfDescription, Statement, describe, describe_folder, same_value
from vitconv.convert import convert_checkpoint, inspect, verify_checkpoint
from vitconv.errors import ArchitectureError, CheckpointError, InputError, VitconvError
from vitconv.models.images import load_image
from vitconv.models.pixels import known_difference
from vitconv.models.timm import from_timm

ARCH = "vit_tiny_patch16_224"
#: `make fuzz` and tests/system/test_descriptions.py ask for more.
CASES = max(200, int(os.environ.get("VITCONV_FUZZ_CASES", "0")) // 6)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos") / "all")


def check_from_image_files(folder, data, model, config, images):
    """timm's validation transform and model against the folder's processor, model and pipeline."""
    assert not any(known_difference(load_image(image), data) for image in images)
    pixels, expected = timm_answers(model, config, images)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    twin = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processed = processor([Image.open(image) for image in images], return_tensors="pt")["pixel_values"]
    assert torch.equal(processed, pixels)
    with torch.no_grad():
        actual = torch.cat([twin(one[None]).logits for one in processed])
    assert torch.allclose(actual, expected, atol=1e-5)
    pipeline = transformers.pipeline("image-classification", model=str(folder), image_processor=processor)
    answers = [pipeline(str(image), top_k=1)[0]["label"] for image in images]
    assert answers == [twin.config.id2label[int(best)] for best in expected.argmax(-1)]
    assert len(set(answers)) > 1, "images that all get one class tell nothing"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.25, 0.3], "crop_pct": 1.0, "interpolation": "bilinear"},
        {"mean": [0.4], "std": [0.3]},
        {"gp": "avg", "model_kwargs": {**TINY, "fc_norm": False}},
        {"model_kwargs": {**TINY, "act_layer": "gelu_tanh"}},
        {"model_kwargs": {**TINY, "init_values": 0.1, "no_embed_class": True}, "drop": 0.1},
        {"model": f"{ARCH}.augreg_in21k"},
        {"model": "deit_tiny_patch16_224"},
        {"img_size": 96, "model_kwargs": {**TINY, "img_size": 96}},
        {"input_size": [3, 96, 96], "model_kwargs": {**TINY, "img_size": 96}},
    ],
    ids=str,
)
def test_what_timm_s_training_script_saves(changes, images, tmp_path):
    """The arguments supply the architecture and the data configuration, which are not given."""
    path, model, args = as_train_py_saves(tmp_path / "run", images=images, **changes)
    done = convert_checkpoint(path, tmp_path / "hf")
    assert done.architecture == from_timm(model)
    config = train_py_config(args, model)
    check_from_image_files(tmp_path / "hf", done.data, model, config, images)
    assert verify_checkpoint(path, tmp_path / "hf").parity.matches


@pytest.mark.skipif("VITCONV_TRAINED" not in os.environ, reason="VITCONV_TRAINED names no folder of timm's train.py")
def test_what_the_script_itself_wrote(images, tmp_path):
    """Every run in a folder that timm's own train.py has written, if there is one."""
    from pathlib import Path

    import yaml

    runs = sorted(Path(os.environ["VITCONV_TRAINED"]).glob("*/last.pth.tar"))
    assert runs
    for path in runs:
        args = yaml.safe_load((path.parent / "args.yaml").read_text())
        done = convert_checkpoint(path, tmp_path / path.parent.name, ema=False)
        model = timm.create_model(
            args["model"], num_classes=args["num_classes"], global_pool=args["gp"], **args["model_kwargs"]
        ).eval()
        model.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
        real = [Path(image) for image in sorted(Path(args["data_dir"], args["val_split"]).glob("*/*"))]
        for group in (images, [image for image in real if not known_difference(load_image(image), done.data)]):
            pixels, expected = timm_answers(model, train_py_config(args, model), group)
            twin = getattr(
                transformers, json.loads((done.destination / "config.json").read_text())["architectures"][0]
            )
            processor = transformers.AutoImageProcessor.from_pretrained(done.destination, backend="pil")
            files = [Image.open(image) for image in group]
            assert torch.equal(processor(files, return_tensors="pt")["pixel_values"], pixels), path
            with torch.no_grad():
                actual = twin.from_pretrained(done.destination).eval()(pixels).logits
            assert torch.allclose(actual, expected, atol=1e-5), path
            assert torch.equal(actual.argmax(-1), expected.argmax(-1)), path
        print(f"{path.parent.name}: {len(group)} of {len(real)} validation images equal")


def test_notes_report_what_the_checkpoint_states(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, gp="avg", mean=[0.3, 0.4, 0.5])
    found = inspect(path)
    (note,) = [note for note in found.notes if note.startswith("The checkpoint says of itself: ")]
    for text in (f"architecture {ARCH} (arch)", "global_pool avg (args.gp)", "mean 0.3/0.4/0.5 (args.mean)"):
        assert text in note
    assert found.data.origin == "mean from `args.mean`, the rest from timm's pretrained tag 'augreg_in21k_ft_in1k'"
    assert not found.warnings  # nothing is assumed


def test_class_names_alone_are_no_note(tmp_path, small_checkpoint):
    content = {"state_dict": torch.load(small_checkpoint), "label_names": [f"class {i}" for i in range(5)]}
    torch.save(content, tmp_path / "named.pth")
    found = inspect(tmp_path / "named.pth", architecture="vit_tiny_patch16_224")
    assert not any("says of itself" in note for note in found.notes)


# ---- contradictions name both sides, and how to choose -----------------------------------------------------------


def refusal(kind, path, architecture=None, **options):
    with pytest.raises(kind) as caught:
        inspect(path, architecture, **options)
    return caught.value


def test_a_contradicting_architecture_is_an_error(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, model="deit_tiny_patch16_224")
    error = refusal(ArchitectureError, path, ARCH)
    assert error.problem == (
        f"The architecture given is '{ARCH}', but the checkpoint says 'deit_tiny_patch16_224' (`arch`)."
    )
    assert error.remedy == "Leave --arch out to take the checkpoint's, or pass --ignore architecture to take yours."
    assert inspect(path, ARCH, ignore=["architecture"]).data.mean == (0.5, 0.5, 0.5)
    assert inspect(path, "deit_tiny_patch16_224").data.mean == (0.485, 0.456, 0.406)


def test_a_tag_with_other_preprocessing_is_an_error(tmp_path):
    """The checkpoint's name without a tag is timm's default tag; another one's crop differs."""
    path, *_ = as_train_py_saves(tmp_path, model="vit_base_patch16_224")
    error = refusal(ArchitectureError, path, "vit_base_patch16_224.mae")
    assert "The tag of 'vit_base_patch16_224.mae' says `mean`" in error.problem
    assert "--ignore architecture" in error.remedy
    assert inspect(path, "vit_base_patch16_224.mae", ignore=["architecture"]).data.mean == (0.485, 0.456, 0.406)
    assert inspect(path, "vit_base_patch16_224.augreg2_in21k_ft_in1k").data.mean == (0.5, 0.5, 0.5)


def test_contradicting_preprocessing_is_an_error(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, mean=[0.3, 0.4, 0.5])
    error = refusal(InputError, path, data={"mean": [0.5, 0.5, 0.5]})
    assert error.problem == "The given `mean` is 0.5/0.5/0.5, but the checkpoint says 0.3/0.4/0.5 (`args.mean`)."
    assert error.remedy == "Leave `mean` out to take the checkpoint's, or pass --ignore mean to take yours."
    assert inspect(path, data={"mean": [0.5, 0.5, 0.5]}, ignore=["mean"]).data.mean == (0.5, 0.5, 0.5)
    assert inspect(path, data={"mean": [0.3, 0.4, 0.5], "crop_pct": 1}).data.crop_pct == 1


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_classes", 9, "7"),
        ("in_chans", 1, "3"),
        ("img_size", 384, "224/224"),
        ("input_size", [3, 96, 96], "224/224"),
    ],
)
def test_contradicting_sizes_are_an_error(name, value, told, tmp_path):
    path, *_ = as_train_py_saves(tmp_path)
    content = torch.load(path, weights_only=False)
    setattr(content["args"], name, value)
    torch.save(content, path)
    error = refusal(CheckpointError, path)
    assert f"(args.{name}), but the weights have {told}." in error.problem
    name = name.replace("input_size", "img_size")
    assert f"--ignore {name}" in error.remedy
    assert inspect(path, ignore=[name]).architecture.num_labels == 7


def test_an_image_size_that_timm_would_resample_to(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, img_size=384)
    assert "--img-size 384 384 to resample" in refusal(CheckpointError, path).remedy
    assert inspect(path, image_size=(384, 384)).architecture.image_size == (384, 384)


def test_an_impossible_image_size_beside_a_stated_one(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, img_size=224)
    assert "`pos_embed` was trained for" in refusal(InputError, path, image_size=(8, 8)).problem


@pytest.mark.parametrize("side", [100_000, 10**30])
@pytest.mark.parametrize("name", ["img_size", "input_size"])
def test_an_image_size_over_the_bound_is_refused(side, name, tmp_path):
    for value in [side, [side, side]] if name == "img_size" else [[3, side, side]]:
        path, *_ = as_train_py_saves(tmp_path, **{name: value})
        error = refusal(CheckpointError, path)
        assert f"`args.{name}` has more than the 50,331,648 pixels that an image may have" in error.problem
        assert "--ignore img_size" in error.remedy
        assert inspect(path, ignore=["img_size"]).architecture.image_size == (224, 224)


def test_long_texts_are_shortened_in_errors(folder, tmp_path):
    long = "x" * 10**6
    assert len(str(VitconvError(long, long))) < 50_000
    for name in ("class_map", "input_img_mode", "interpolation", "norm_layer", long):
        for part in ("model_args", "pretrained_cfg"):
            original = (folder() / "config.json").read_text()
            path = folder(lambda config, name=name, part=part: config[part].update({name: long}))
            try:
                found = inspect(path)
            except VitconvError as error:
                assert len(str(error)) < 6000
            else:
                assert max(map(len, [*found.notes, *found.warnings, found.data.values])) < 3000
            (path / "config.json").write_text(original)


def test_a_model_that_takes_any_size(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, model_kwargs={**TINY, "img_size": 96, "dynamic_img_size": True})
    assert "timm gives it 224x224" in refusal(CheckpointError, path).problem
    assert inspect(path, image_size=(96, 96)).architecture.image_size == (96, 96)
    path, *_ = as_train_py_saves(tmp_path / "b", model_kwargs={**TINY, "dynamic_img_size": True})
    assert inspect(path).architecture.image_size == (224, 224)


def test_a_given_model_that_contradicts_the_checkpoint_is_an_error(tmp_path):
    path, model, _ = as_train_py_saves(tmp_path, gp="avg")
    assert inspect(path, model).architecture.global_pool == "avg"
    other = timm.create_model(ARCH, num_classes=7, fc_norm=True, **TINY)
    assert "differs from it in global_pool" in refusal(ArchitectureError, path, other).problem
    assert "pools by 'token'" in refusal(ArchitectureError, path, other, ignore=["architecture"]).problem
    assert inspect(path, other, ignore=["architecture", "global_pool"]).architecture.global_pool == "token"


def test_contradicting_statements_are_an_error(tmp_path, save):
    weights = full_model(ARCH, num_classes=5).state_dict()
    path = save({"state_dict": weights, "arch": ARCH, "args": argparse.Namespace(model="deit_tiny_patch16_224")})
    assert "in `arch` and deit_tiny_patch16_224 in `args.model`" in refusal(CheckpointError, path).problem


CONTRADICTIONS = {
    "architecture": (ARCH, "deit_tiny_patch16_224"),
    "num_classes": (5, 6),
    "in_chans": (3, 1),
    "img_size": (224, 256),
    "mean": ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)),
    "std": ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)),
    "interpolation": ("bicubic", "bilinear"),
    "crop_pct": (0.9, 1.0),
    "crop_mode": ("center", "squash"),
    "global_pool": ("token", "avg"),
    "class_map": ("a.txt", "b.txt"),
    "input_img_mode": ("RGB", "L"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_itself_can_be_ignored(name, save):
    one, other = CONTRADICTIONS[name]
    path = save(
        {
            "state_dict": full_model(ARCH, num_classes=5).state_dict(),
            "args": argparse.Namespace(**{name: one}),
            "hyper_parameters": {name: other},
        }
    )
    error = refusal(CheckpointError, path, ARCH)
    assert f"in `args.{name}` and" in error.problem and f"in `hyper_parameters.{name}`" in error.problem
    assert f"--ignore {name}" in error.remedy
    assert inspect(path, ARCH, ignore=[name]).architecture.num_labels == 5


@pytest.mark.parametrize("name", ["num_heads", "qkv_bias", "act_layer"])
def test_an_argument_that_contradicts_itself_can_be_ignored(name, save):
    values = {"num_heads": (3, 6), "qkv_bias": (True, False), "act_layer": ("gelu", "relu")}[name]
    weights = full_model(ARCH, num_classes=5).state_dict()
    args, hyper = ({"model_kwargs": {name: value}} for value in values)
    path = save({"state_dict": weights, "args": argparse.Namespace(**args), "hyper_parameters": hyper})
    assert f"--ignore {name}" in refusal(CheckpointError, path, ARCH).remedy
    assert inspect(path, ARCH, ignore=[name]).architecture.num_attention_heads == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", "deit_tiny_patch16_224"),
        ("pretrained_cfg", {"crop_pct": 0.5}),
        ("label_names", list("edcba")),
    ],
)
def test_what_a_folder_and_its_weights_say_differently_can_be_ignored(name, value, tmp_path):
    model = full_model(ARCH, num_classes=5)
    torch.save({"state_dict": model.state_dict(), name: value}, tmp_path / "pytorch_model.bin")
    config = {"architecture": ARCH, "num_classes": 5, "pretrained_cfg": {"label_names": list("abcde")}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"--ignore {name}" in refusal(CheckpointError, tmp_path, ARCH).remedy
    assert inspect(tmp_path, ARCH, ignore=[name]).architecture.num_labels == 5


def test_arguments_that_are_not_read_can_be_ignored(save):
    weights = full_model(ARCH, num_classes=5).state_dict()
    path = save({"state_dict": weights, "model_args": {"pretrained_cfg": {"mean": [0.1]}}, "args": {"mean": [0.5]}})
    assert "--ignore pretrained_cfg" in refusal(CheckpointError, path, ARCH).remedy
    assert "--ignore pretrained_cfg" in refusal(CheckpointError, path, ARCH, ignore=["mean"]).remedy
    assert inspect(path, ARCH, ignore=["pretrained_cfg"]).data.mean == (0.5, 0.5, 0.5)


def test_ignoring_what_is_not_stated_is_an_error(small_checkpoint):
    error = refusal(InputError, small_checkpoint, ARCH, ignore=["mean"])
    assert error.problem == "The checkpoint does not state 'mean', so it cannot be ignored."


def test_a_name_that_is_not_timm_s(save):
    """DINO's own, for example; and the class name that timm's CheckpointSaver writes without arguments."""
    weights = full_model(ARCH, num_classes=5).state_dict()
    found = inspect(save({"state_dict": weights, "arch": "visiontransformer"}), ARCH)
    assert "The checkpoint says `arch` 'visiontransformer', which is not a timm architecture." in found.notes
    error = refusal(ArchitectureError, save({"state_dict": weights, "arch": "visiontransformer"}))
    assert "The architecture is not given" in error.problem


@pytest.mark.slow
def test_a_name_on_timm_s_own_page_of_the_hub(save):
    weights = full_model("vit_base_patch16_224", depth=12, num_classes=5).state_dict()
    for name in ("hf-hub:timm/vit_base_patch16_224.mae", "hf_hub:timm/vit_base_patch16_224.mae"):
        found = inspect(save({"state_dict": weights, "args": argparse.Namespace(model=name)}))
        assert found.data.origin == "timm's pretrained tag 'mae'"


def test_an_old_name_of_timm_s(save):
    weights = full_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    found = inspect(save({"state_dict": weights, "arch": "vit_tiny_patch16_224_in21k"}), ARCH)
    assert found.architecture.num_labels == 5


def test_other_scripts_arguments(save):
    """DeiT's script has `input_size` as one number; arguments that are not timm's are skipped."""
    weights = full_model(ARCH, num_classes=5).state_dict()
    args = argparse.Namespace(model=ARCH, input_size=224, nb_classes=5, data_set="IMNET", opt="adamw")
    assert inspect(save({"model": weights, "args": args})).architecture.image_size == (224, 224)
    args.input_size = 384
    assert "img_size" in refusal(CheckpointError, save({"model": weights, "args": args})).problem


def test_class_names_that_lie_beside_the_checkpoint(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, class_map="somewhere/else/classes.txt")
    assert "'somewhere/else/classes.txt' (`class_map`): pass --labels" in inspect(path).notes[-1]
    (tmp_path / "classes.txt").write_text("\n".join("abcdefg"))
    done = convert_checkpoint(path, tmp_path / "hf", verify=False)
    assert done.labels == tuple("abcdefg")
    assert "which the checkpoint names" in done.notes[-1]


# ---- folders: what timm.create_model("local-dir:…") makes of them ---------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder as timm writes it, of a model with arguments of its own; call it to change its config.json."""
    model = perturbed(timm.create_model(ARCH, num_classes=7, act_layer="gelu_tanh", **TINY))
    save_for_hf(model, tmp_path / "folder", model_config={"label_names": list("abcdefg")}, safe_serialization=True)

    def change(edit=lambda config: config):
        path = tmp_path / "folder" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(edit(config) or config))
        return tmp_path / "folder"

    return change


def check_against_timm(folder, architecture=None, *, load=True):
    found = inspect(folder, architecture)
    model = timm.create_model(
        f"local-dir:{folder}", pretrained=load, **({} if load else {"checkpoint_path": ""})
    ).eval()
    config = resolve_data_config(model=model)
    assert found.architecture == from_timm(model)
    assert_same_data(found.data, config)
    return found


def test_a_folder_of_timm_s_from_the_image_file(folder, images, tmp_path):
    done = convert_checkpoint(folder(), tmp_path / "hf")
    model = timm.create_model(f"local-dir:{folder()}", pretrained=True).eval()
    check_from_image_files(tmp_path / "hf", done.data, model, resolve_data_config(model=model), images)
    assert done.labels == tuple("abcdefg")


@pytest.mark.parametrize("name", [ARCH, f"{ARCH}.augreg_in21k_ft_in1k"])
def test_a_name_given_keeps_the_folder_s_arguments(name, folder):
    assert check_against_timm(folder(), name).architecture.hidden_act == "gelu_pytorch_tanh"


def test_a_tag_given_contradicts_the_folder(folder):
    path = folder(lambda config: config["pretrained_cfg"].update(crop_pct=0.8))
    error = refusal(ArchitectureError, path, f"{ARCH}.augreg_in21k_ft_in1k")
    assert "`crop_pct` 0.9, but the checkpoint says 0.8 (`config.json`)" in error.problem
    assert refusal(ArchitectureError, path, "deit_tiny_patch16_224").problem.startswith("The architecture given is")


def test_a_data_configuration_given_contradicts_the_folder(folder):
    assert "(config.json)" in refusal(InputError, folder(), data={"crop_pct": 0.8}).problem
    assert inspect(folder(), data={"crop_pct": 0.8}, ignore=["crop_pct"]).data.crop_pct == 0.8


def flat(config):
    """As timm wrote it before 2023: one level, labels by their old name."""
    return {"architecture": ARCH, "num_classes": 7, "num_features": 48, "labels": list("abcdefg")} | {
        name: value for name, value in config["pretrained_cfg"].items() if name in ("mean", "std", "input_size")
    }


def test_the_old_flat_form(tmp_path):
    model = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=7))
    folder = tmp_path / "flat"
    save_for_hf(model, folder, safe_serialization=True)
    config = {"architecture": ARCH, "num_classes": 7, "num_features": 192, "labels": list("abcdefg")}
    for more in ({}, {"mean": [0.1, 0.2, 0.3]}, {"crop_pct": 1.0, "interpolation": "bilinear", "std": None}):
        (folder / "config.json").write_text(json.dumps(config | more))
        found = check_against_timm(folder)
        assert found.data.origin == "the checkpoint's own config.json"
    done = convert_checkpoint(folder, tmp_path / "hf", verify=False)
    assert done.labels == tuple("abcdefg")
    # What today's timm does not read, vitconv does not either.
    (folder / "config.json").write_text(json.dumps(config | {"global_pool": "token"}))
    assert "timm cannot build" in refusal(ArchitectureError, folder).problem


@pytest.mark.parametrize(
    "cfg",
    [{}, {"mean": None}, {"mean": [0.1, 0.2, 0.3]}, {"crop_mode": "squash"}, {"interpolation": "", "crop_pct": 0}],
    ids=str,
)
def test_what_is_left_out_is_timm_s_default_not_the_tag_s(cfg, folder):
    check_against_timm(folder(lambda config: config.update(pretrained_cfg=cfg)))


@pytest.mark.parametrize("names", [list("abcdefg"), {str(i): name for i, name in enumerate("abcdefg")}, {name: i for i, name in enumerate("abcdefg")}])  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_class_names_in_every_form(names, inside, folder, tmp_path):
    def edit(config):
        config.pop("label_names", None)
        config["pretrained_cfg"].pop("label_names", None)
        (config["pretrained_cfg"] if inside else config)["label_names"] = names

    assert convert_checkpoint(folder(edit), tmp_path / "hf", verify=False).labels == tuple("abcdefg")


def test_arguments_of_create_model_that_are_not_of_the_model(folder):
    path = folder(lambda config: config["model_args"].update(checkpoint_path="/etc/passwd"))
    assert inspect(path).architecture.hidden_act == "gelu_pytorch_tanh"  # whence the weights came is not the model's
    path = folder(lambda config: config["model_args"].update(features_only=True))
    assert "model_args.features_only` changes the model" in refusal(CheckpointError, path).problem


def test_a_folder_whose_weights_are_of_another_size(folder):
    path = folder(lambda config: config["model_args"].update(img_size=96))
    error = refusal(CheckpointError, path)
    assert "`img_size` 96/96" in error.problem
    assert "--img-size 96 96 to resample the position embedding to that size as timm does" in error.remedy
    path = folder(lambda config: config["model_args"].update(num_classes=9, img_size=224))
    assert "`num_classes` 9" in refusal(CheckpointError, path).problem


@pytest.mark.parametrize("side", [100_000, 10**30])
def test_a_folder_for_images_of_a_size_that_no_image_has(side, folder):
    path = folder(lambda config: config["model_args"].update(img_size=side))
    assert "model_args.img_size` has more than the 50,331,648 pixels" in refusal(CheckpointError, path).problem

    def edit(config):
        config["model_args"].pop("img_size")
        config["pretrained_cfg"].update(input_size=[3, side, side])

    path = folder(edit)
    assert "config.json: input_size` has more than the 50,331,648 pixels" in refusal(CheckpointError, path).problem


@pytest.mark.parametrize("content", ['{"architecture": 3}', '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": 3}', '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": "red"}}', '{"architecture": "vit_tiny_patch16_224", "model_args": [1]}', '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": {"img_size": "x"}}', '{"architecture": "nothing", "pretrained_cfg": {}}'])  # fmt: skip
def test_nonsense_in_config_json_is_an_error_in_words(content, folder):
    path = folder()
    (path / "config.json").write_text(content)
    assert refusal(VitconvError, path).remedy


# ---- Lightning ------------------------------------------------------------------------------------------------------


def test_lightning_s_hyperparameters(save, images, tmp_path):
    model = perturbed(timm.create_model(ARCH, num_classes=7, global_pool="avg", **TINY))
    hyper = {"model_name": ARCH, "num_classes": 7, "global_pool": "avg", "model_kwargs": TINY, "mean": [0.3, 0.4, 0.5]}
    content = {"state_dict": {f"model.{n}": t for n, t in model.state_dict().items()}, "hyper_parameters": hyper}
    done = convert_checkpoint(save(content | {"pytorch-lightning_version": "2.5.0"}), tmp_path / "hf")
    check_from_image_files(tmp_path / "hf", done.data, model, resolve_data_config(hyper, model=model), images)
    content["hyper_parameters"] = {**hyper, "num_classes": 9}
    assert "(hyper_parameters.num_classes)" in refusal(CheckpointError, save(content)).problem


def test_hyperparameters_by_themselves_and_nested(save):
    """`pretrained=True` says where weights came from; `act_layer` decides what is computed wherever it stands."""
    model = perturbed(timm.create_model(ARCH, num_classes=7, act_layer="relu", **TINY))
    for hyper in (
        {"model_name": ARCH, "act_layer": "relu", "model_kwargs": {**TINY, "pretrained": True}},
        {"model": {"model_name": ARCH, "act_layer": "relu", **TINY}, "lr": 1e-3},
        {"model_args": {"model_name": ARCH, "act_layer": "relu", "pretrained": False, **TINY}},
    ):
        found = inspect(save({"state_dict": model.state_dict(), "hyper_parameters": hyper}))
        assert found.architecture == from_timm(model)


# ---- what fresh eyes found ------------------------------------------------------------------------------------------

SIZED = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def test_a_rotary_model_is_as_large_as_timm_s_images(tmp_path):
    """Its weights do not tell the image size: timm uses the one in `pretrained_cfg`."""
    model = perturbed(timm.create_model("vit_small_patch16_dinov3", num_classes=0, **SIZED))
    save_for_hf(model, tmp_path, safe_serialization=True, data_config={"input_size": (3, 512, 512)})
    found = inspect(tmp_path)
    assert found.architecture.image_size == found.data.image_size == (512, 512)


def test_a_model_for_any_size_by_default_is_not_fed_another(tmp_path):
    model = perturbed(timm.create_model("test_vit", num_classes=7, img_size=112))
    save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 160, 160]
    config["pretrained_cfg"]["fixed_input_size"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "timm gives it 160x160" in refusal(CheckpointError, tmp_path).problem
    assert inspect(tmp_path, image_size=(112, 112)).architecture.image_size == (112, 112)


def test_a_model_given_whose_own_preprocessing_contradicts_the_checkpoint(folder):
    path = folder(lambda config: config["pretrained_cfg"].update(mean=[0.1, 0.2, 0.3]))
    model = timm.create_model(ARCH, num_classes=7, act_layer="gelu_tanh", **TINY)
    error = refusal(ArchitectureError, path, model)
    assert "The model given says `mean` (0.5, 0.5, 0.5), but the checkpoint says [0.1, 0.2, 0.3]" in error.problem
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    assert inspect(path, model).data.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "said",
    [{"args": argparse.Namespace(model="vit_base_patch16", nb_classes=5)}, {"hyper_parameters": {"num_classes": 5}}],
)
def test_a_description_that_says_nothing_of_the_preprocessing_leaves_it_an_assumption(said, save):
    weights = full_model(ARCH, num_classes=5).state_dict()
    (warning,) = inspect(save({"state_dict": weights, **said}), ARCH).warnings
    assert warning.startswith("The preprocessing is an assumption")


def test_the_architecture_in_a_pretrained_cfg(save):
    model = perturbed(timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=7, **TINY))
    cfg = {**model.pretrained_cfg, "num_classes": 7}
    path = save({"state_dict": model.state_dict(), "pretrained_cfg": cfg, "model_args": TINY})
    assert inspect(path).architecture.hidden_act == "quick_gelu"
    assert "pretrained_cfg.architecture" in refusal(ArchitectureError, path, "vit_base_patch16_clip_224").problem


def test_a_folder_and_the_arguments_in_its_weights(folder):
    path = folder(lambda config: config["pretrained_cfg"].update(mean=[0.1, 0.2, 0.3]))
    from safetensors.torch import load_file

    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save({"state_dict": weights, "args": argparse.Namespace(mean=[0.4] * 3)}, path / "pytorch_model.bin")
    error = refusal(CheckpointError, path)
    assert "`mean` 0.1/0.2/0.3 in config.json, but its weights file says 0.4/0.4/0.4 in `args.mean`" in error.problem
    assert inspect(path, data={"mean": [0.4] * 3}, ignore=["mean"]).data.mean == (0.4, 0.4, 0.4)


@pytest.mark.parametrize("mode", ["YCbCr", "L"])
def test_images_in_other_colours(mode, tmp_path):
    path, *_ = as_train_py_saves(tmp_path, input_img_mode=mode)
    assert f"'{mode}' (`args.input_img_mode`)" in refusal(CheckpointError, path).problem
    assert inspect(path, ignore=["input_img_mode"]).data.num_channels == 3


def test_beit_s_own_script(save):
    weights = full_model(ARCH, num_classes=5).state_dict()
    for default, mean in ((True, (0.485, 0.456, 0.406)), (False, (0.5, 0.5, 0.5))):
        args = argparse.Namespace(model=ARCH, imagenet_default_mean_and_std=default)
        assert inspect(save({"model": weights, "args": args})).data.mean == mean


def test_mae_s_own_script(save):
    model = perturbed(timm.create_model(ARCH, num_classes=7, global_pool="avg", **TINY))
    args = argparse.Namespace(model="vit_tiny_patch16", global_pool=True, input_size=224, model_kwargs=TINY)
    found = inspect(save({"model": model.state_dict(), "args": args}), ARCH)
    assert found.architecture == from_timm(model)


endless = []
endless.append(endless)


@pytest.mark.parametrize("value", [torch.tensor([0.5] * 3), endless, 10**400, [10**400] * 3, b"x", "red", [], [0.0] * 3, {"a": 1}, float("nan")], ids=lambda value: type(value).__name__)  # fmt: skip
@pytest.mark.parametrize("name", ["std", "crop_pct", "num_classes", "img_size", "input_size", "act_layer"])
def test_values_of_any_type_are_read_or_refused_in_words(name, value, save):
    weights = full_model(ARCH, num_classes=5).state_dict()
    for said in (
        {"args": argparse.Namespace(model=ARCH, **{name: value})},
        {"arch": ARCH, "hyper_parameters": {name: value}},
        {"arch": ARCH, "pretrained_cfg": {"mean": [0.5] * 3, "num_classes": 5, name: value}},
        {"arch": ARCH, "model_args": {name: value}},
    ):
        path = save({"state_dict": weights, **said})
        try:
            inspect(path)
        except VitconvError as error:
            assert error.remedy
            if "--ignore " in error.remedy and name != "input_size":  # the advice works
                assert inspect(path, ignore=[name]).architecture.num_labels == 5


@pytest.mark.parametrize(
    "data",
    [
        {"crop_pct": 5e-324},
        {"crop_pct": 300},
        {"std": [1e-320] * 3},
        {"std": [1e-36, 1, 1]},
        {"mean": [10**400] * 3},
        {"mean": [1e30, 0, 0]},
    ],
)
def test_impossible_preprocessing_is_refused(data, small_checkpoint):
    assert "`" in refusal(InputError, small_checkpoint, ARCH, data=data).problem


def test_the_most_extreme_preprocessing_gives_numbers(small_checkpoint, tmp_path):
    data = {"mean": [1e6] * 3, "std": [1e-6] * 3}
    done = convert_checkpoint(small_checkpoint, tmp_path / "hf", architecture=ARCH, data=data)
    assert not any("NaN" in warning for warning in done.warnings)


def test_two_places_that_name_other_classes(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, class_map="classes.txt")
    content = torch.load(path, weights_only=False)
    names = [f"class {index}" for index in range(len(content["state_dict"]["head.bias"]))]
    torch.save({**content, "label_names": names}, path)
    (path.parent / "classes.txt").write_text("\n".join(["other", *names[1:]]))
    with pytest.raises(InputError, match=r"class 0 'class 0' in `label_names` and 'other' in .*`args.class_map`"):
        convert_checkpoint(path, tmp_path / "hf", verify=False)
    done = convert_checkpoint(path, tmp_path / "hf", verify=False, ignore=["label_names"])
    assert done.labels == ("other", *names[1:])
    done = convert_checkpoint(path, tmp_path / "hf", verify=False, ignore=["class_map"], overwrite=True)
    assert done.labels == tuple(names)
    for given in (names, ["other", *names[1:]], ["third", *names[1:]]):
        done = convert_checkpoint(path, tmp_path / "hf", verify=False, labels=given, overwrite=True)
        (warning,) = done.warnings
        assert re.search(
            r"class 0 'class 0' in `label_names` and 'other' in .*classes.txt \(`args.class_map`\)", warning
        )
        assert warning.endswith("The labels given were taken.")


def test_labels_given_for_a_checkpoint_whose_own_do_not_fit(save, tmp_path):
    content = {"state_dict": full_model(ARCH, num_classes=2).state_dict(), "arch": ARCH, "label_names": list("abc")}
    done = convert_checkpoint(save(content), tmp_path / "hf", verify=False, labels=["a", "b"])
    assert done.warnings == (
        "The checkpoint names 3 classes (`label_names`), but the weights have 2. The labels given were taken.",
    )


def test_a_file_of_class_names_with_an_impossible_name(tmp_path):
    path, *_ = as_train_py_saves(tmp_path, class_map="x" * 300 + ".txt")
    assert "pass --labels" in inspect(path).notes[-1]


def test_a_model_of_timm_s_class_without_a_pretrained_configuration(tmp_path):
    model = perturbed(timm.models.VisionTransformer(num_classes=5, **TINY))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert inspect(tmp_path / "w.pth", model).data.mean == (0.485, 0.456, 0.406)


def test_control_characters_in_a_configuration_do_not_reach_the_terminal(folder):
    from typer.testing import CliRunner

    from vitconv.cli import app

    path = folder(lambda config: config["pretrained_cfg"].update(interpolation="\x1b[31mred"))
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert "\x1b" not in result.stdout + result.stderr and "[31mred" in result.stdout


@pytest.mark.parametrize("names", [["crane", "crane", *"abcde"], [], list("abc"), [["a"]] * 7])
def test_impossible_class_names_are_refused(names, folder, tmp_path):
    def edit(config):
        config.pop("label_names", None)
        config["pretrained_cfg"]["label_names"] = names

    path = folder(edit)
    with pytest.raises(InputError) as caught:
        convert_checkpoint(path, tmp_path / "hf", verify=False)
    assert caught.value.remedy == "Pass the right ones with --labels FILE, or --ignore label_names to have none."
    convert_checkpoint(path, tmp_path / "hf", verify=False, ignore=["label_names"])


def test_a_folder_may_have_an_unknown_tag(folder):
    check_against_timm(folder(lambda config: config.update(architecture=f"{ARCH}.mine")))


def test_a_size_that_timm_builds_can_be_ignored(folder):
    def edit(config):
        del config["model_args"]["num_classes"], config["num_classes"]
        config["pretrained_cfg"].pop("num_classes", None)

    path = folder(edit)
    error = refusal(CheckpointError, path)
    assert "1000 (config.json, as timm builds it), but the weights have 7" in error.problem
    assert inspect(path, ignore=["num_classes"]).architecture.num_labels == 7


# ---- reading, by itself ---------------------------------------------------------------------------------------------


def test_none_and_empty_values_are_skipped():
    """timm treats them the same: `interpolation` is '' and `class_map` '' by default."""
    said = describe({"args": argparse.Namespace(mean=None, interpolation="", crop_pct=0.0, gp=None, class_map="")})
    assert said == SelfDescription({}, said.rates)


def test_statements_name_their_place():
    said = describe({"args": {"input_size": [1, 96, 64]}, "model_args": {"act_layer": "gelu", "num_classes": None}})
    assert said.statements == {
        "act_layer": Statement("gelu", "model_args.act_layer", of_model=True),
        "in_chans": Statement(1, "args.input_size"),
        "img_size": Statement((96, 64), "args.input_size"),
    }
    assert said.model_args == {"act_layer": "gelu"}
    assert str(said.without(["in_chans", "act_layer"])) == "img_size 96/64 (args.input_size)"


def test_one_number_for_all_channels_is_the_same_as_one_for_each():
    assert same_value([0.5], (0.5, 0.5, 0.5))
    assert not same_value([0.5], (0.5, 0.5, 0.4))
    assert not same_value("bicubic", "bilinear")


# ---- the law: what timm makes of it, or a refusal -------------------------------------------------------------------


@pytest.mark.slow
def test_vitconv_reads_what_timm_builds_or_refuses(tmp_path_factory):
    tally = check_descriptions(CASES, tmp_path_factory)
    assert tally["equal"] > CASES / 3, tally


def test_values_that_multiply_are_not_read():
    """Each list holds the one below a thousand times: 10^15 values in a few thousand references."""
    value = 1
    for _ in range(5):
        value = [value] * 1000
    with pytest.raises(CheckpointError, match="has more than 10,000 values"):
        describe({"args": {"mean": value}}).check_readable()


def test_imagenet_21k_label_names_are_read():
    """timm's folders put the 21,843 names, and a description of each, into ``pretrained_cfg``."""
    names = [f"n{i:08d}" for i in range(21_843)]
    cfg = {"label_names": names, "label_descriptions": {name: f"the class {name}" for name in names}}
    description = describe_folder("vit_tiny_patch16_224", cfg, {}, file="config.json")
    description.check_readable()
    assert description.get("label_names") == names


def test_a_list_of_more_than_100000_names_is_refused():
    with pytest.raises(CheckpointError, match="`args.mean` has more than 100,000 values"):
        describe({"args": {"mean": ["a"] * 100_001}}).check_readable()
