import functools
import inspect
import json
import shutil

import pytest
import timm
import torch
from models import perturbed, small_model, wrapped_arguments
from timm.models import _builder, _factory
from torch import nn

from vitconv.convert import convert_checkpoint, inspect_checkpoint
from vitconv.errors import ArchitectureError, CheckpointError, InputError, ParityError, WeightsError
from vitconv.models.huggingface import load_folder
from vitconv.models.wrapper import NOT_ARGUMENTS, is_wrapper, read_wrapped

NAME = "eva02_tiny_patch14_224"


def build(name=NAME, **more):
    return perturbed(timm.create_model(name, **{**wrapped_arguments(name), **more}))


def found(save, model, name=NAME, **options):
    arguments = {key: value for key, value in wrapped_arguments(name).items() if key != "img_size"}
    path = save({"state_dict": model.state_dict(), "arch": name, "model_args": arguments})
    return inspect_checkpoint(path, target="timm_wrapper", **options).architecture


@pytest.mark.parametrize(
    "name, sizes",
    [
        (NAME, {"num_classes": 7, "in_chans": 4, "img_size": 70}),
        (NAME, {"num_classes": 0}),
        ("vit_small_resnet26d_224", {"num_classes": 7, "in_chans": 1, "img_size": 96}),
        ("beit_base_patch16_224", {"num_classes": 2, "img_size": 48}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 2, "in_chans": 6}),
    ],
)
def test_the_sizes_are_those_of_the_weights(save, name, sizes):
    model = build(name, **sizes)
    known = found(save, model, name)
    assert known.num_labels == model.num_classes
    assert known.num_channels == sizes.get("in_chans", 3)
    if "img_size" in sizes:
        assert known.image_size == (sizes["img_size"],) * 2
        assert known.model_args["img_size"] == [sizes["img_size"]] * 2


def test_sam_s_head_is_read_too(save):
    """Its positions are a grid, and it takes images of any size, so that one is named."""
    model = build("samvit_base_patch16", num_classes=2, img_size=96)
    known = found(save, model, "samvit_base_patch16", image_size=(96, 96))
    assert (known.num_labels, known.image_size) == (2, (96, 96))


def test_a_patch_linear_tells_the_channels(save):
    assert found(save, build("naflexvit_base_patch16_gap", in_chans=4), "naflexvit_base_patch16_gap").num_channels == 4


def test_weights_that_leave_the_size_open_take_the_given_one(save):
    name = "vit_small_patch16_rope_224"
    model = build(name, num_classes=2)
    assert found(save, model, name).image_size == (224, 224)
    assert found(save, model, name, image_size=(64, 96)).image_size == (64, 96)


def test_positions_are_resampled_to_a_given_size(save, tmp_path):
    path = save({"state_dict": build(num_classes=2).state_dict(), "arch": NAME, "model_args": wrapped_arguments(NAME)})
    done = convert_checkpoint(path, tmp_path / "out", target="timm_wrapper", image_size=(70, 84))
    assert done.architecture.image_size == (70, 84)
    assert any("`pos_embed` was resampled from 4x4 to 5x6 patches" in note for note in done.notes)


def test_a_size_that_is_no_square_must_be_given(save):
    model = build(num_classes=2, img_size=(56, 70))
    with pytest.raises(InputError, match="21 positions, which is not a square"):
        found(save, model)
    assert found(save, model, image_size=(56, 70)).image_size == (56, 70)


def test_other_weights_are_refused(save):
    with pytest.raises(WeightsError, match="of another shape"):
        found(save, build(mlp_ratio=2))
    state_dict = build().state_dict()
    del state_dict["blocks.1.norm1.weight"]
    path = save({"state_dict": state_dict, "arch": NAME, "model_args": wrapped_arguments(NAME)})
    with pytest.raises(WeightsError, match="1 tensor is missing"):
        inspect_checkpoint(path, target="timm_wrapper")


def test_a_given_model_is_read_by_its_name_and_arguments(tmp_path):
    model = build(num_classes=3, drop_path_rate=0.1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    done = convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", architecture=model, target="timm_wrapper")
    assert done.architecture.name == NAME
    assert "drop_path_rate" not in done.architecture.model_args
    assert any("stochastic depth (rate 0.1)" in note for note in done.notes)


def test_arguments_that_json_cannot_hold_are_refused_by_name():
    model = build("vit_tiny_patch16_224", norm_layer=functools.partial(nn.LayerNorm, eps=1e-3))
    with pytest.raises(
        ArchitectureError, match="`norm_layer` functools.partial.*, which a config.json cannot express"
    ):
        read_wrapped(model)


@pytest.mark.parametrize("edit", ["epsilon", "head", "bias"])
def test_an_edited_model_is_refused(edit):
    model = build("vit_tiny_patch16_224", num_classes=3)
    if edit == "epsilon":
        model.blocks[1].norm1.eps = 1e-3
    elif edit == "head":
        model.head = nn.Sequential(nn.Linear(64, 3))
    else:
        model.blocks[0].mlp.fc1.bias = None
    with pytest.raises(ArchitectureError, match="timm does not rebuild this model"):
        read_wrapped(model)


def test_a_model_that_timm_did_not_build_is_refused():
    model = small_model()
    del model._model_args
    with pytest.raises(ArchitectureError, match="cannot be wrapped"):
        read_wrapped(model)
    with pytest.raises(ArchitectureError, match="A ResNet without the name"):
        read_wrapped(timm.create_model("resnet18"))


def test_a_given_model_may_not_contradict_the_checkpoint(save):
    content = {"state_dict": build().state_dict(), "arch": NAME, "model_args": wrapped_arguments(NAME)}
    for model in (build("vit_tiny_patch16_224"), build(init_values=0.1)):
        with pytest.raises(ArchitectureError, match="differs from it in"):
            inspect_checkpoint(save(content), model, target="timm_wrapper")


def test_no_argument_of_timm_s_builders_is_one_of_the_model():
    own = {
        *inspect.signature(_factory.create_model).parameters,
        *inspect.signature(_builder.build_model_with_cfg).parameters,
    }
    assert own <= set(NOT_ARGUMENTS)


def changed(wrapped, tmp_path, change):
    shutil.copytree(wrapped[1], tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return tmp_path / "folder"


@pytest.mark.parametrize(
    "name", ["hf-hub:org/name", "local-dir:/tmp/model", "resnet18", "eva02_tiny_patch14_224.mim_in22k", None, ["x"]]
)
def test_a_folder_names_one_of_timm_s_vision_transformers(wrapped, tmp_path, name):
    folder = changed(wrapped, tmp_path, lambda content: content.update(architecture=name))
    with pytest.raises(CheckpointError, match="none of timm's Vision Transformers"):
        load_folder(folder)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "model_args.checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "model_args.pretrained"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "evil.pth"}}}, "model_args.pretrained_cfg_overlay"),
        ({"model_args": {"features_only": True}}, "model_args.features_only"),
        ({"model_args": {"num_classes": 5}}, "model_args.num_classes"),
        ({"model_args": "depth"}, "model_args"),
        ({"pretrained_cfg": {"hf_hub_id": "org/name"}}, "pretrained_cfg.hf_hub_id"),
        ({"pretrained_cfg": {"url": "https://example.com/evil.pth"}}, "pretrained_cfg.url"),
        ({"pretrained_cfg": {"file": "evil.pth"}}, "pretrained_cfg.file"),
        ({"pretrained_cfg": {"input_size": [3, 56]}}, "pretrained_cfg.input_size"),
        ({"pretrained_cfg": None}, "pretrained_cfg"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
    ],
)
def test_nothing_in_a_folder_makes_timm_load_anything_else(wrapped, tmp_path, change, named):
    folder = changed(wrapped, tmp_path, lambda content: content.update(change))
    with pytest.raises(ParityError, match=f"`{named}` in config.json is .*, which no conversion writes"):
        load_folder(folder)


@pytest.mark.parametrize("labels", [None, [], ["a"], "abcde", [1, 2, 3, 4, 5]])
def test_without_its_names_a_folder_is_refused(wrapped, tmp_path, labels):
    """Transformers would take those of ImageNet."""
    folder = changed(wrapped, tmp_path, lambda content: content.update(label_names=labels))
    with pytest.raises(ParityError, match="The labels in config.json are not those of the classes"):
        load_folder(folder)


def test_images_that_are_too_large_are_refused(wrapped, tmp_path):
    folder = changed(wrapped, tmp_path, lambda content: content["model_args"].update(img_size=[10**5, 10**5]))
    with pytest.raises(InputError, match="too large"):
        load_folder(folder)


def test_a_model_larger_than_its_weights_is_refused_before_it_is_built(wrapped, tmp_path):
    folder = changed(wrapped, tmp_path, lambda content: content["model_args"].update(depth=20))
    with pytest.raises(CheckpointError, match=r"has [\d,]+ elements, and its weights have"):
        load_folder(folder)


def test_a_folder_is_told_by_its_model_type(wrapped, folder, tmp_path):
    assert is_wrapper(wrapped[1])
    assert not is_wrapper(folder)
    assert not is_wrapper(tmp_path)
