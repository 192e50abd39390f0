import functools
import inspect
import json
import shutil

import pytest
import timm
import torch
from models import perturbed, small_model, wrapped_arguments
from safetensors.torch import load_file, save_file
from timm.models import _builder, _factory
from torch import nn

from vitconv.convert import convert_checkpoint, inspect_checkpoint, revert_checkpoint
from vitconv.errors import ArchitectureError, CheckpointError, InputError, ParityError, WeightsError
from vitconv.models.huggingface import load_folder
from vitconv.models.processors import load_processor
from vitconv.models.wrapper import NOT_ARGUMENTS, is_wrapper, read_wrapped

NAME = "eva02_tiny_patch14_224"


def build(name=NAME, **more):
    return perturbed(timm.create_model(name, **{**wrapped_arguments(name), **more}))


def found(save, model, name=NAME, **options):
    arguments = {key: value for key, value in wrapped_arguments(name).items() if key != "img_size"}
    path = save({"state_dict": model.state_dict(), "arch": name, "model_args": arguments})
    return inspect_checkpoint(path, target="timm_wrapper", **options).architecture


@pytest.mark.slow
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


EDITS = {
    "`blocks.1.norm1.eps`": lambda model: setattr(model.blocks[1].norm1, "eps", 1e-3),
    "`head`": lambda model: setattr(model, "head", nn.Sequential(nn.Linear(64, 3))),
    "timm does not rebuild": lambda model: setattr(model.blocks[0].mlp.fc1, "bias", None),
    "`blocks.0.attn.scale`": lambda model: setattr(model.blocks[0].attn, "scale", 0.3),
    "`pool_include_prefix`": lambda model: setattr(model, "pool_include_prefix", True),
    "`VisionTransformer`": lambda model: setattr(model, "forward_head", model.forward_features),
    "`blocks.0`": lambda model: model.blocks[0].register_forward_hook(lambda module, given, found: 2 * found),
}


@pytest.mark.parametrize("named", EDITS)
def test_an_edited_model_is_refused(named):
    model = build("vit_tiny_patch16_224", num_classes=3)
    EDITS[named](model)
    with pytest.raises(ArchitectureError, match="timm does not rebuild this model from") as caught:
        read_wrapped(model)
    assert named in caught.value.problem


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", NAME])
def test_what_training_alone_uses_is_no_edit(name):
    model = build(name, num_classes=3, drop_rate=0.1, drop_path_rate=0.1)
    model.set_grad_checkpointing()
    model.reset_classifier(4, global_pool="avg")
    known = read_wrapped(model)
    assert (known.num_labels, known.model_args["global_pool"]) == (4, "avg")


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
        ({"model_args": {"device": "cpu"}}, "model_args.device"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": [0, 0, 0]}, r"`pretrained_cfg.std` in config.json is \[0, 0, 0\]. It must be a list of numbers from"),
        ({"std": None}, "`pretrained_cfg.std` in config.json is None"),
        ({"mean": [0.5]}, r"`pretrained_cfg.mean` in config.json is \[0.5\]. It must be .*, one per channel"),
        ({"mean": "x"}, "`pretrained_cfg.mean` in config.json is 'x'"),
        ({"mean": [float("nan")] * 3}, "`pretrained_cfg.mean` in config.json is"),
        ({"crop_pct": 0}, "`pretrained_cfg.crop_pct` in config.json is 0"),
        ({"crop_pct": "a"}, "`pretrained_cfg.crop_pct` in config.json is 'a'"),
        ({"crop_pct": 1e-9}, "`pretrained_cfg.crop_pct` in config.json is 1e-09"),
        ({"crop_mode": "zz"}, "`pretrained_cfg.crop_mode` in config.json is 'zz'. It must be 'center'"),
        ({"interpolation": 3}, "`pretrained_cfg.interpolation` in config.json is 3"),
        ({"num_classes": 3}, "`pretrained_cfg.num_classes` in config.json is 3, but `num_classes` is 5"),
        (
            {"input_size": [3, 64, 64]},
            r"`pretrained_cfg.input_size` .* \[3, 64, 64\], but the model's is \[3, 56, 56\]",
        ),
        (
            {"input_size": [1, 56, 56], "mean": [0.5], "std": [0.5]},
            r"`pretrained_cfg.input_size` .* \[1, 56, 56\], but the model's is \[3, 56, 56\]",
        ),
    ],
)
def test_how_images_are_prepared_is_checked_before_any_is(wrapped, tmp_path, change, message):
    folder = changed(wrapped, tmp_path, lambda content: content["pretrained_cfg"].update(change))
    for load in (load_folder, lambda folder: revert_checkpoint(folder, tmp_path / "back")):
        with pytest.raises(ParityError, match=message) as caught:
            load(folder)
        assert "Correct this setting" in caught.value.remedy
    assert not (tmp_path / "back").exists()


def test_a_folder_that_tells_no_processor_is_named_by_its_file(wrapped, tmp_path):
    folder = changed(wrapped, tmp_path, lambda content: content["pretrained_cfg"].update(interpolation="zz"))
    with pytest.raises(InputError, match="has no config.json that Transformers can read"):
        load_processor(folder)


@pytest.mark.parametrize("size", [[10**5, 10**5], 10**5, 20_000])
def test_images_that_are_too_large_are_refused(wrapped, tmp_path, size):
    folder = changed(wrapped, tmp_path, lambda content: content["model_args"].update(img_size=size))
    with pytest.raises(InputError, match="too large"):
        load_folder(folder)


def test_a_model_larger_than_its_weights_is_refused_before_it_is_built(wrapped, tmp_path):
    folder = changed(wrapped, tmp_path, lambda content: content["model_args"].update(depth=20))
    with pytest.raises(CheckpointError, match=r"has [\d,]+ elements, and its weights have"):
        load_folder(folder)


@pytest.mark.parametrize("prefix", ["", "timm_model."])
def test_a_model_of_other_shapes_is_refused_before_it_is_built(wrapped, tmp_path, prefix):
    """Its positions may take much more room than its weights."""
    folder = changed(wrapped, tmp_path, lambda content: content["model_args"].update(patch_size=1))
    tensors = load_file(folder / "model.safetensors")
    named = {prefix + name: tensor for name, tensor in tensors.items() if name != "pos_embed"}
    named["pos_embed"] = torch.zeros(1, 56 * 56 + 1, 48)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tensors of other shapes than its weights: patch_embed.proj.weight"):
        load_folder(folder)


def test_without_arguments_of_its_own_a_model_is_timm_s(wrapped, tmp_path):
    """A configuration may leave them out; here that is another model than the one of the weights."""
    folder = changed(wrapped, tmp_path, lambda content: content.pop("model_args"))
    with pytest.raises(ParityError, match=r"input_size` in config.json is .*, but the model's is \[3, 224, 224\]"):
        load_folder(folder)


def test_a_folder_is_told_by_its_model_type(wrapped, folder, tmp_path):
    assert is_wrapper(wrapped[1])
    assert not is_wrapper(folder)
    assert not is_wrapper(tmp_path)
