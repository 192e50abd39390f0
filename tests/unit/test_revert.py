import io
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from models import KINDS, each, perturbed, pixels_for, reduced, small_model
from safetensors.torch import load_file, save_file

from vitconv import mapping
from vitconv.architecture import Architecture
from vitconv.convert import convert_checkpoint, revert_checkpoint, to_huggingface, to_timm
from vitconv.errors import (
    ArchitectureError,
    CheckpointError,
    DestinationError,
    InputError,
    ParityError,
    VitconvError,
    WeightsError,
)
from vitconv.models import huggingface
from vitconv.models.catalogue import entries
from vitconv.models.data_config import DataConfig, data_config, tag_config
from vitconv.models.images import sample_image
from vitconv.models.pixels import known_difference, probe_images
from vitconv.models.processors import from_processor, load_any_processor, processor_config
from vitconv.models.timm import from_timm

CLASSES = ("ash", "birch", "cedar", "elm", "fir")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("name", each(name for name, entry in entries().items() if entry.architecture))
def test_there_and_back(name):
    """The same function for all; the same bytes where nothing was folded."""
    model = reduced(name)
    known = from_timm(model)
    # A table of relative positions does not tell the network that computed it: timm's Beit has such a table.
    back = to_timm(to_huggingface(model), architecture=None if known.relative_network else name)
    pixels = pixels_for(model).double()
    with torch.no_grad():
        assert torch.allclose(model(pixels), back(pixels), rtol=0, atol=1e-8)
    # An MLP that was padded stays so, where its width is not timm's own.
    if mapping.family_for(known).exactness(known) != "folded" and from_timm(back) == known:
        before, after = model.state_dict(), back.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_mean_of_patches_and_back():
    name = "vit_so150m_patch16_reg4_gap_256"
    model = reduced(name, num_classes=0)
    back = to_timm(to_huggingface(model), architecture=name)
    pixels = pixels_for(model).double()
    assert (back.global_pool, back.cls_token) == ("avg", None)
    with torch.no_grad():
        assert torch.allclose(model(pixels), back(pixels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("no head bias", "headless tokens")])
def test_every_kind_of_vit_finds_an_architecture_by_itself(kind):
    model = small_model(kind)
    back = to_timm(to_huggingface(model))
    pixels = pixels_for(model)
    with torch.no_grad():
        assert torch.allclose(model(pixels), back(pixels), rtol=0, atol=1e-5)


def add_one(module, arguments, output):
    return output + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edit", ["hook", "forward", "epsilon", "activation"])
def test_what_was_edited_in_memory_is_not_left_out_in_silence(edit, dtype):
    """A state dict and a configuration say nothing of it."""
    model = to_huggingface(small_model()).to(dtype)
    if edit == "hook":
        model.classifier.register_forward_hook(add_one)
    elif edit == "forward":
        model.classifier.forward = lambda x: x[..., :5]
    elif edit == "epsilon":
        model.vit.layernorm.eps = 0.5
    else:
        model.config.hidden_act = "relu"
    with pytest.raises(ParityError):
        to_timm(model)
    assert to_timm(model, verify=False).training == model.training


def test_weights_on_meta_are_not_run():
    assert next(to_timm(to_huggingface(small_model().to("meta"))).parameters()).is_meta


def test_the_twin_has_weights_dtype_and_mode_of_its_own():
    model = to_huggingface(small_model()).bfloat16().train()
    back = to_timm(model)
    assert back.training
    assert {tensor.dtype for tensor in back.state_dict().values()} == {torch.bfloat16}
    with torch.no_grad():
        back.cls_token.zero_()
    assert model.vit.embeddings.cls_token.abs().max() > 0


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small model with labels and preprocessing of its own, converted from timm."""
    folder = tmp_path_factory.mktemp("converted")
    model = perturbed(timm.create_model("deit_tiny_patch16_224", num_classes=5))
    torch.save(model.state_dict(), folder / "timm.pth")
    data = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "crop_pct": 0.95, "interpolation": "bilinear"}
    convert_checkpoint(
        folder / "timm.pth", folder / "hf", architecture="deit_tiny_patch16_224", labels=CLASSES, data=data
    )
    return folder / "hf", model, data


def test_a_folder_comes_back_with_labels_and_preprocessing(converted, tmp_path):
    folder, model, data = converted
    done = revert_checkpoint(folder, tmp_path / "back")
    assert done.timm_name == "deit_tiny_patch16_224"
    assert done.parity.matches and all(comparison.same_bits for comparison in done.parity.comparisons)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in loaded.state_dict().items())
    resolved = tag_config(loaded.pretrained_cfg)
    assert {name: resolved[name] for name in data} == data
    assert json.loads((tmp_path / "back" / "config.json").read_text())["label_names"] == list(CLASSES)


def swap(one, other, place):
    """As `--overwrite` does."""
    one.rename(place)
    other.rename(one)
    place.rename(other)


@pytest.mark.parametrize("step", ["config", "Writing the folder", "Comparing the models"])
def test_a_folder_that_is_replaced_meanwhile_is_refused(step, converted, tmp_path, monkeypatch):
    """Its files are read one after the other: the class names of one model, and the weights of another."""
    mine, other = (Path(shutil.copytree(converted[0], tmp_path / name)) for name in ("mine", "other"))
    read = huggingface._read_config

    def replace(name):
        if name == step:
            swap(mine, other, tmp_path / "between")

    def read_and_replace(place):
        content = read(place)
        replace("config")
        return content

    monkeypatch.setattr(huggingface, "_read_config", read_and_replace)
    with pytest.raises(CheckpointError, match="mine' have changed while they were (read|converted back)"):
        revert_checkpoint(mine, tmp_path / "back", on_step=replace)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("verify", [True, False])
def test_a_wrapped_model_that_is_replaced_meanwhile_is_refused(verify, wrapped, tmp_path):
    mine, other = (Path(shutil.copytree(wrapped[1], tmp_path / name)) for name in ("mine", "other"))

    def replace(name):
        if name == "Writing the folder":
            swap(mine, other, tmp_path / "between")

    with pytest.raises(CheckpointError, match="mine' have changed while they were converted back"):
        revert_checkpoint(mine, tmp_path / "back", verify=verify, on_step=replace)


def test_and_there_again(converted, tmp_path):
    """The folder for timm is a source like any other: no --arch, no labels, no preprocessing to give."""
    folder, _, _ = converted
    revert_checkpoint(folder, tmp_path / "back")
    again = convert_checkpoint(tmp_path / "back", tmp_path / "again")
    assert again.labels == CLASSES
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "again" / name).read_text())


# ---- folders that vitconv never saw ---------------------------------------------------------------------------


def foreign(folder, model, **more):
    """Save a Transformers model as Transformers does, perturbed, with more tensors in its file."""
    perturbed(model)
    model.save_pretrained(folder)
    if more:
        tensors = {**load_file(folder / "model.safetensors"), **more}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def vit(**settings):
    return transformers.ViTConfig(
        **{**SMALL, "intermediate_size": 256, "layer_norm_eps": 1e-6, "num_labels": 3, **settings}
    )


def pooler():
    return {"vit.pooler.dense.weight": torch.randn(64, 64), "vit.pooler.dense.bias": torch.randn(64)}


def test_google_s_layout_with_its_pooler(tmp_path):
    source = foreign(tmp_path / "google", transformers.ViTForImageClassification(vit()), **pooler())
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(source)
    with pytest.raises(WeightsError, match=r"a pooler, a layer on the class token \(`vit.pooler.dense") as caught:
        revert_checkpoint(source, tmp_path / "back")
    assert "--drop pooler" in caught.value.remedy
    assert not (tmp_path / "back").exists()
    done = revert_checkpoint(source, tmp_path / "back", drop=["pooler"])
    assert done.dropped == ("pooler",)
    assert done.parity.matches
    assert (done.data.crop_mode, done.data.crop_pct, done.data.interpolation) == ("squash", 1.0, "bilinear")


def test_another_epsilon_is_refused_in_a_folder_and_set_in_memory(tmp_path):
    model = perturbed(transformers.ViTForImageClassification(vit(layer_norm_eps=1e-12)))
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(ArchitectureError, match="epsilon is 1e-12, that of timm's .* is 1e-06"):
        revert_checkpoint(tmp_path / "hf", tmp_path / "back")
    back = to_timm(model)
    assert back.norm.eps == 1e-12
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(back(pixels), model.eval()(pixels).logits)


def test_a_bare_model_with_a_tanh_pooler(tmp_path):
    source = foreign(tmp_path / "hf", transformers.ViTModel(vit()))
    with pytest.raises(WeightsError, match="has a pooler"):
        revert_checkpoint(source, tmp_path / "back")
    done = revert_checkpoint(source, tmp_path / "back", drop=["pooler"])
    assert done.architecture.num_labels == 0
    assert done.parity.matches


def test_the_encoder_of_a_masked_autoencoder(tmp_path):
    config = transformers.ViTMAEConfig(
        **SMALL, intermediate_size=256, layer_norm_eps=1e-6, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=64,
    )  # fmt: skip
    source = foreign(tmp_path / "mae", transformers.ViTMAEForPreTraining(config))
    with pytest.raises(WeightsError, match="a decoder for masked patches"):
        revert_checkpoint(source, tmp_path / "back")
    done = revert_checkpoint(source, tmp_path / "back", drop=["decoder"])
    assert done.dropped == ("decoder",)
    assert done.parity.matches


def test_a_size_that_no_image_has(tmp_path):
    """Rotary positions fit any size, so that nothing else tells."""
    config = transformers.DINOv3ViTConfig(**SMALL | {"image_size": 100_000}, intermediate_size=256)
    source = foreign(tmp_path / "hf", transformers.DINOv3ViTModel(config))
    with pytest.raises(InputError, match="Image size 100000x100000 is too large"):
        revert_checkpoint(source, tmp_path / "back")


def hybrid(**settings):
    backbone = {"model_type": "bit", "layer_type": "bottleneck", "global_padding": "same", "embedding_dynamic_padding": True,
                "depths": [3, 4, 9], "out_features": ["stage1", "stage2", "stage3"], **settings.pop("backbone", {})}  # fmt: skip
    return transformers.DPTConfig(
        **SMALL | {"patch_size": 16}, intermediate_size=256, layer_norm_eps=1e-6, is_hybrid=True,
        backbone_config=backbone, backbone_featmap_shape=[1, 1024, 2, 2], **settings
    )  # fmt: skip


@pytest.mark.slow
def test_a_hybrid_s_pooler_is_a_head(tmp_path):
    source = foreign(
        tmp_path / "hf", transformers.DPTModel(hybrid(pooler_act="linear", pooler_output_size=3, num_labels=3))
    )
    done = revert_checkpoint(source, tmp_path / "back")
    assert (done.timm_name, done.architecture.num_labels) == ("vit_base_r50_s16_224", 3)
    assert done.parity.matches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, WeightsError, "has no place in timm"),  # tanh
        ({"pooler_act": "linear"}, WeightsError, "The model has a pooler, which has no place in timm"),
        (
            {"pooler_act": "linear", "backbone": {"embedding_dynamic_padding": False}},
            ArchitectureError,
            "No architecture",
        ),
        ({"pooler_act": "linear", "backbone": {"depths": [3, 4, 8]}}, ArchitectureError, "No architecture of timm's"),
    ],
)
def test_another_hybrid_has_no_way_back(tmp_path, settings, error, message):
    source = foreign(tmp_path / "hf", transformers.DPTModel(hybrid(**settings)))
    with pytest.raises(error, match=message):
        revert_checkpoint(source, tmp_path / "back")


def test_parallel_branches_share_the_norm_and_the_first_has_the_bias(tmp_path):
    """Of a model that was trained on: nothing tells how the branches were before they were joined."""
    model = perturbed(
        transformers.ViTForImageClassification(vit(num_attention_heads=4, head_dim=32, intermediate_size=512))
    )
    model.save_pretrained(tmp_path / "hf")
    done = revert_checkpoint(tmp_path / "hf", tmp_path / "back")
    assert (done.architecture.parallel_branches, done.architecture.num_attention_heads) == (2, 2)
    assert done.parity.matches


def test_a_mask_token(tmp_path):
    config = transformers.Dinov2Config(**SMALL, mlp_ratio=4)
    source = foreign(tmp_path / "dinov2", transformers.Dinov2Model(config))
    with pytest.raises(WeightsError, match="a token for masked patches"):
        revert_checkpoint(source, tmp_path / "back")
    done = revert_checkpoint(source, tmp_path / "back", drop=["mask_token"])
    assert done.architecture.layer_scale
    assert done.parity.matches


def test_a_head_on_class_token_and_patches_has_no_place(tmp_path):
    config = transformers.Dinov2Config(**SMALL, mlp_ratio=4, num_labels=3, use_mask_token=False)
    source = foreign(tmp_path / "dinov2", transformers.Dinov2ForImageClassification(config))
    with pytest.raises(WeightsError, match="`head.weight` is not 0 throughout"):
        revert_checkpoint(source, tmp_path / "back")


def test_names_of_transformers_5_in_the_file(tmp_path):
    model = perturbed(transformers.ViTForImageClassification(vit()))
    model.save_pretrained(tmp_path / "hf")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    assert revert_checkpoint(tmp_path / "hf", tmp_path / "back").parity.matches


def test_without_a_processor_a_note_says_whose_preprocessing_it_is(tmp_path):
    source = foreign(tmp_path / "hf", transformers.ViTForImageClassification(vit()))
    done = revert_checkpoint(source, tmp_path / "back")
    assert "No preprocessor_config.json" in done.notes[0]


def test_the_processor_is_the_one_that_transformers_loads(converted, tmp_path):
    """As CLIPProcessor saves it: in processor_config.json, which goes before preprocessor_config.json."""
    source = shutil.copytree(converted[0], tmp_path / "source")
    own = json.loads((source / "preprocessor_config.json").read_text())
    nested = own | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3}
    (source / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    for name in ("both", "nested only"):
        data = revert_checkpoint(source, tmp_path / name).data
        assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4,) * 3)
        (source / "preprocessor_config.json").unlink(missing_ok=True)
    del nested["image_std"]  # CLIP's own is taken
    (source / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    data = revert_checkpoint(source, tmp_path / "default").data
    assert data.std == tuple(transformers.CLIPImageProcessor().image_std)


def test_code_in_the_folder_is_neither_run_nor_asked_about(converted, tmp_path, monkeypatch):
    source = shutil.copytree(converted[0], tmp_path / "source")
    (source / "evil.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')\nclass Foo: pass\n")
    (source / "preprocessor_config.json").write_text('{"auto_map": {"AutoImageProcessor": "evil.Foo"}}')
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(CheckpointError, match="`auto_map` in '.*preprocessor_config.json' names code"):
        revert_checkpoint(source, tmp_path / "back")
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize("size", [(600, 448), (601, 449)])
def test_a_wrong_preprocessing_never_hides_behind_a_known_difference(converted, tmp_path, monkeypatch, size):
    sample_image(size).save(tmp_path / "image.png")
    done = revert_checkpoint(converted[0], tmp_path / "right", image=tmp_path / "image.png")
    assert done.notes == tuple(filter(None, [known_difference(sample_image(size), done.data)]))
    given = {**converted[2], "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr("vitconv.revert.from_processor", lambda *arguments: given)
    with pytest.raises(ParityError, match="does not make the pixels"):
        revert_checkpoint(converted[0], tmp_path / "wrong", image=tmp_path / "image.png")


def test_a_rectangle_cut_from_the_short_edge_has_no_way_back():
    architecture = Architecture((32, 64), (8, 8), 3, 64, 1, 1, 64, "gelu", 1e-6, 0)
    content = processor_config(DataConfig((32, 32), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center"))
    with pytest.raises(InputError, match=r"does: `size` is .*, `crop_size` is {'height': 32, 'width': 64}"):
        from_processor(content | {"crop_size": {"height": 32, "width": 64}}, architecture)


@pytest.mark.parametrize("hidden_act", ["silu", "gelu", "mish"])
def test_swiglu_computes_silu_whatever_hidden_act_says(hidden_act, tmp_path):
    config = transformers.Dinov2Config(
        **SMALL, mlp_ratio=4, use_swiglu_ffn=True, hidden_act=hidden_act, use_mask_token=False
    )
    source = foreign(tmp_path / "hf", transformers.Dinov2Model(config))
    done = revert_checkpoint(source, tmp_path / "back")
    assert done.architecture.hidden_act == "silu"
    assert done.parity.matches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_position_beside_registers_is_added_to_the_token(dtype, tmp_path):
    config = transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=4, num_register_tokens=4)
    model = transformers.Dinov2WithRegistersModel(config)
    source = foreign(tmp_path / "hf", model.to(dtype))
    assert model.embeddings.position_embeddings[:, 0].abs().max() > 0
    done = revert_checkpoint(source, tmp_path / "back", drop=["mask_token"])
    assert done.parity.matches
    assert done.parity.comparisons[-1].same_bits
    assert any("position was added to `cls_token`" in note for note in done.notes)
    stored = load_file(tmp_path / "back" / "model.safetensors")
    with torch.no_grad():
        expected = model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]
    assert torch.equal(stored["cls_token"], expected)
    assert torch.equal(stored["pos_embed"], model.embeddings.position_embeddings[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("gelu_python", "gelu"),
        ("swish", "silu"),
        ("gelu_new", "gelu_pytorch_tanh"),
        ("gelu_accurate", "gelu_pytorch_tanh"),
        ("gelu_python_tanh", "gelu_pytorch_tanh"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_name_of_an_activation(alias, name, dtype, tmp_path):
    model = transformers.ViTForImageClassification(vit(hidden_act=alias)).to(dtype)
    done = revert_checkpoint(foreign(tmp_path / "hf", model), tmp_path / "back")
    assert done.architecture.hidden_act == name
    assert [comparison.dtype for comparison in done.parity.comparisons] == ["float64", "float32"]
    assert done.parity.matches


@pytest.mark.parametrize("name", transformers.activations.ACT2FN)
def test_every_activation_of_transformers_is_accepted_or_named(name):
    """Those that are accepted are timm's function to the rounding of float64."""
    if name in ("prelu", "xielu"):  # they have parameters of their own
        return
    model = perturbed(transformers.ViTForImageClassification(vit(hidden_act=name, num_hidden_layers=1))).double()
    try:
        back = to_timm(model)
    except ArchitectureError as error:
        assert f"is '{name}' (`hidden_act`)" in error.problem
        return
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    assert (transformers.activations.ACT2FN[name](x) - back.blocks[0].mlp.act(x)).abs().max() < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"return_dict": False}, {"_attn_implementation": "eager"}, {"output_hidden_states": True}])  # fmt: skip
def test_how_a_model_answers_is_no_part_of_it(converted, setting, tmp_path):
    copy = tmp_path / "hf"
    shutil.copytree(converted[0], copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | setting))
    assert revert_checkpoint(copy, tmp_path / "back").parity.matches


def test_quantised_weights_are_named(converted, tmp_path):
    copy = tmp_path / "hf"
    shutil.copytree(converted[0], copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(VitconvError, match="`quantization_config` in config.json"):
        revert_checkpoint(copy, tmp_path / "back")


# ---- refusals -------------------------------------------------------------------------------------------------


def test_a_class_without_a_way_back_is_named(tmp_path):
    transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path / "hf")  # fmt: skip
    with pytest.raises(CheckpointError, match="holds ResNetModel, which cannot be converted to timm"):
        revert_checkpoint(tmp_path / "hf", tmp_path / "back")


def test_an_architecture_that_does_not_fit(converted, tmp_path):
    folder, _, _ = converted
    with pytest.raises(ArchitectureError, match="timm's vit_base_patch16_clip_224 does not compute"):
        revert_checkpoint(folder, tmp_path / "back", architecture="vit_base_patch16_clip_224")
    with pytest.raises(ArchitectureError, match="no architecture named 'vit_none'"):
        revert_checkpoint(folder, tmp_path / "back", architecture="vit_none")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_separate_part_of_the_class_is_kept():
    """BEiT's final norm is in what Transformers calls its pooler."""
    model = reduced("beit_base_patch16_224")
    back = to_timm(to_huggingface(model), drop=["pooler"])
    assert torch.equal(back.fc_norm.weight, model.fc_norm.weight)


def test_an_unknown_part_to_drop(converted, tmp_path):
    with pytest.raises(InputError, match="There is no part 'head' to drop"):
        revert_checkpoint(converted[0], tmp_path / "back", drop=["head"])


def test_a_destination_in_the_source_is_refused(converted):
    folder, _, _ = converted
    before = sorted(folder.iterdir())
    with pytest.raises(DestinationError, match="lies in '.*hf', which is read"):
        revert_checkpoint(folder, folder / "back", verify=False)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a'b", "é"])
def test_the_loading_line_is_python_whatever_the_name(converted, tmp_path, name):
    line = revert_checkpoint(converted[0], tmp_path / name, verify=False).loading_line
    assert isinstance(eval(line, {"timm": timm}), torch.nn.Module)


def test_missing_weights(converted, tmp_path):
    folder, _, _ = converted
    copy = tmp_path / "hf"
    copy.mkdir()
    (copy / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    del tensors["vit.layernorm.bias"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match="Weights that the configuration names are missing in the folder: vit.layernorm.bias"
    ):
        revert_checkpoint(copy, tmp_path / "back")
    (copy / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError):
        revert_checkpoint(copy, tmp_path / "back")
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        revert_checkpoint(copy, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_processor_that_timm_cannot_follow(converted, tmp_path):
    content = json.loads((converted[0] / "preprocessor_config.json").read_text()) | {"do_normalize": False}
    with pytest.raises(InputError, match="timm has no transform that does what preprocessor_config.json does"):
        from_processor(content, entries()["deit_tiny_patch16_224"].architecture)


@pytest.mark.parametrize(
    "change",
    [
        {"size": []},
        {"size": {"shortest_edge": "a"}},
        {"size": {"shortest_edge": 0}},
        {"crop_size": 7},
        {"resample": [3]},
        {"rescale_factor": "1/255"},
        {"rescale_factor": 1.0},
        {"image_mean": None},
    ],
)
def test_a_processor_that_makes_no_sense(converted, change):
    content = json.loads((converted[0] / "preprocessor_config.json").read_text()) | change
    with pytest.raises(InputError, match="timm has no transform that does what"):
        from_processor(content, entries()["deit_tiny_patch16_224"].architecture)


@pytest.fixture(scope="module")
def edited(folder, tmp_path_factory):
    """A copy of a small converted model, with a JSON file of it changed: a mapping adds, ``...`` removes."""

    def edited(file, **changes):
        copy = shutil.copytree(folder, tmp_path_factory.mktemp("edited") / "hf")
        content = json.loads((copy / file).read_text()) | changes
        (copy / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
        return copy

    return edited


def names(folder):
    return json.loads((folder / "config.json").read_text()).get("label_names")


#: The small model cuts 32x32 of images whose short edge is 35.
SIZES = {
    "both edges, far apart": {"size": {"shortest_edge": 35, "longest_edge": 1333}},
    "both edges": {"size": {"shortest_edge": 35, "longest_edge": 35}},
    "the long edge": {"size": {"longest_edge": 35}},
    "the most": {"size": {"max_height": 35, "max_width": 35}},
    "a rectangle": {"size": {"height": 35, "width": 70}},
    "a rectangle, as a list": {"size": [35, 70]},
    "of another size, not cut": {"size": {"height": 35, "width": 35}, "do_center_crop": False},
    "a rectangle, not cut": {"size": {"height": 32, "width": 64}, "do_center_crop": False},
    "the short edge, not cut": {"size": {"shortest_edge": 32}, "do_center_crop": False},
    "true": {"size": {"shortest_edge": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_size_that_timm_does_not_know_is_named(kind, verify, edited, tmp_path):
    with pytest.raises(InputError, match="`size` is {"):
        revert_checkpoint(edited("preprocessor_config.json", **SIZES[kind]), tmp_path / "back", verify=verify)
    assert not (tmp_path / "back").exists()


#: What a class does beside its settings, or by settings of its own.
CLASSES_OF_THEIR_OWN = {
    "pads": {"do_pad": True, "pad_size": {"height": 64, "width": 64}},
    "resizes to a share more": {"image_processor_type": "LevitImageProcessor"},
    "swaps the colours": {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True},
    "crops by a share of its own": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}},
}


@pytest.mark.parametrize("kind", CLASSES_OF_THEIR_OWN)
def test_what_a_processor_does_beside_its_settings_shows_without_a_proof_of_the_models(kind, edited, tmp_path):
    with pytest.raises(ParityError, match="does not make the pixels .* timm has no transform that does"):
        revert_checkpoint(
            edited("preprocessor_config.json", **CLASSES_OF_THEIR_OWN[kind]), tmp_path / "back", verify=False
        )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"size": 35},
        {"size": {"height": 35, "width": 35}},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"size": {"shortest_edge": 32}},
        {"size": {"shortest_edge": 20}},
        {"size": {"shortest_edge": 100}, "resample": 2},
        {"image_processor_type": "ViTImageProcessor"},
        {"image_processor_type": "BitImageProcessor", "do_convert_rgb": ...},
    ],
)
def test_images_of_every_shape_become_the_same_pixels(change, edited, tmp_path):
    source = edited("preprocessor_config.json", **change)
    data = revert_checkpoint(source, tmp_path / "back", verify=False).data
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({}, model=timm.create_model(f"local-dir:{tmp_path / 'back'}"))
    )
    processor = load_any_processor(source)
    for size in [(600, 448), (448, 600), (64, 64), (32, 32), (20, 20), (3, 5), (400, 40), (40, 400)]:
        image = sample_image(size)
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(transform(image), theirs) or known_difference(image, data)


def test_probe_images_are_of_every_shape():
    images = probe_images(DataConfig((32, 32), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 0.9, "center"))
    sides = [(image.width, image.height) for image in images]
    assert {(width > height) - (width < height) for width, height in sides} == {-1, 0, 1}
    assert any(min(side) > 35 for side in sides) and any(max(side) < 32 for side in sides)


@pytest.mark.slow
def test_probe_images_that_would_be_immense_are_left_out():
    images = probe_images(DataConfig((32, 32), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 0.9, "center"))
    immense = DataConfig((4096, 4096), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    assert len(probe_images(immense)) < len(images)


NAMES = {str(number): name for number, name in enumerate(("ash", "beech", "cedar", "oak", "pine"))}
LABELS = {
    "a gap": ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "5": "e"}}, "none by the number 4; it has 5"),
    "from 1": ({"id2label": {str(i + 1): f"{i}" for i in range(5)}}, "none by the number 0; it has 5"),
    "from -1": ({"id2label": {str(i - 1): f"{i}" for i in range(5)}}, "none by the number 4; it has -1"),
    "twice": ({"id2label": {"0": "a", "1": "b", "01": "x", "2": "c", "3": "d", "4": "e"}}, "it has 01"),
    "spelt otherwise": ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", " 4": "e"}}, "it has  4"),
    "no numbers": ({"id2label": {name: name for name in "abcde"}}, "none by the number 0; it has a, b, c, d"),
    "the reverse": ({"id2label": {name: i for i, name in enumerate("abcde")}}, "none by the number 0"),
    "a list": ({"id2label": list("abcde")}, "`id2label` is .*, no mapping"),
    "no texts": ({"id2label": dict.fromkeys(NAMES)}, "calls the class 0 None, which is no text"),
    "fewer": ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 5}, "is 5, and `id2label` names 3 classes"),
    "more": ({"id2label": NAMES, "num_labels": 3}, "`num_labels` is 3, and `id2label` names 5 classes"),
    "the other way round": ({"id2label": NAMES, "label2id": {v: 4 - int(k) for k, v in NAMES.items()}}, "calls 'ash' 4"),
    "some": ({"id2label": NAMES, "label2id": {"ash": 0}}, "calls the class 1 'beech', and `label2id` does not"),
    "true": ({"id2label": NAMES, "label2id": {v: int(k) for k, v in NAMES.items()} | {"beech": True}}, "'beech' True"),
    "no id2label": ({"num_labels": 5, "label2id": {v: int(k) for k, v in NAMES.items()}}, "calls 'ash' 0"),
    "no mapping": ({"id2label": NAMES, "label2id": list(NAMES)}, "`label2id` is .*, no mapping"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_contradict_each_other_are_named(kind, edited, tmp_path):
    change, message = LABELS[kind]
    with pytest.raises(ParityError, match=f"The labels in config.json are not those of the classes: .*{message}"):
        revert_checkpoint(
            edited("config.json", **{"id2label": ..., "label2id": ...} | change), tmp_path / "back", verify=False
        )
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"id2label": dict(reversed(NAMES.items()))}, list(NAMES.values())),
        ({"id2label": NAMES, "num_labels": 5}, list(NAMES.values())),
        ({"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}, list(NAMES.values())),
        ({"id2label": NAMES | {"4": "ash"}, "label2id": {"ash": 4, "beech": 1, "cedar": 2, "oak": 3}}, [*list(NAMES.values())[:4], "ash"]),
        ({"num_labels": 5}, None),
    ],
)  # fmt: skip
def test_labels_come_back_in_the_model_s_order(change, expected, edited, tmp_path):
    revert_checkpoint(
        edited("config.json", **{"id2label": ..., "label2id": ...} | change), tmp_path / "back", verify=False
    )
    assert names(tmp_path / "back") == expected


def test_as_many_labels_as_the_weights_have_classes(edited, tmp_path):
    source = edited("config.json", id2label={"0": "a", "1": "b"}, label2id=...)
    with pytest.raises(WeightsError, match=r"classifier.bias \(\[5\] instead of \[2\]\)"):
        revert_checkpoint(source, tmp_path / "back")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_none", "records the architecture 'vit_none', which timm does not know"),
        (["vit_tiny_patch16_224"], r"records the architecture \['vit_tiny_patch16_224'\], which timm does not know"),
        (7, "records the architecture 7, which timm does not know"),
        ("vit_base_patch16_clip_224", "records the architecture 'vit_base_patch16_clip_224', and the folder holds"),
    ],
)
def test_a_record_is_not_trusted(name, message, edited, tmp_path):
    with pytest.raises(VitconvError, match=f"parity.json' {message}") as caught:
        revert_checkpoint(edited("parity.json", architecture=name), tmp_path / "back")
    assert "--arch" in caught.value.remedy
    assert not (tmp_path / "back").exists()


def test_other_weights_than_the_usual_are_named(edited, tmp_path):
    source = edited("config.json", transformers_weights="other.safetensors")
    shutil.copyfile(source / "model.safetensors", source / "other.safetensors")
    with pytest.raises(ParityError, match="`transformers_weights` in config.json is 'other.safetensors'"):
        revert_checkpoint(source, tmp_path / "back")


def test_an_adapter_beside_the_model_is_named(edited, tmp_path):
    source = edited("config.json")
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has an adapter_config.json: where PEFT is installed"):
        revert_checkpoint(source, tmp_path / "back")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 0},
        {"num_hidden_layers": 10**6},
        {"image_size": None},
        {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}},
        {"architectures": None},
        {"hidden_act": "none"},
        {"num_attention_heads": 5},
        *({"hidden_size": value} for value in (-192, 10**5, 10**12, 192.0, True, "192", [192], {})),
        *({"num_hidden_layers": value} for value in (-1, 0, 10**9, 12.0, True, "12")),
        *({"intermediate_size": value} for value in (-1, 0, 10**5, 10**12)),
        *({"image_size": value} for value in (-224, 0, 10**9, [224] * 3, [224, -224], [], 224.0)),
        *({"num_labels": value} for value in (-1, 10**12, 5.0, "5")),
    ],
)
def test_a_hostile_configuration_is_refused_in_words(converted, change, tmp_path):
    folder, _, _ = converted
    copy = tmp_path / "hf"
    copy.mkdir()
    (copy / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(VitconvError) as caught:
        revert_checkpoint(copy, tmp_path / "back")
    assert caught.value.remedy
    assert not (tmp_path / "back").exists()


@given(
    size=st.sampled_from([224, 256, 384, 448]),
    crop_pct=st.one_of(st.floats(0.5, 1.0), st.sampled_from([0.875, 0.9, 0.95, 1.0])),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
)
def test_a_written_processor_is_read_back(size, crop_pct, crop_mode, interpolation):
    """The same processor again, though perhaps by another share that is rounded to the same size."""
    architecture = Architecture((size, size), (16, 16), 3, 64, 1, 1, 64, "gelu", 1e-6, 0)
    config = DataConfig((size, size), 3, interpolation, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), crop_pct, crop_mode)
    written = processor_config(config)
    tag = {
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "interpolation": "box",
        "crop_pct": 1,
        "crop_mode": "border",
        "tag": "",
    }
    assert processor_config(data_config(tag, architecture, from_processor(written, architecture))) == written


@pytest.mark.parametrize(
    ("stored", "dtype"), [("float32", "float16"), ("float32", "bfloat16"), ("float64", "float32")]
)
def test_weights_that_transformers_would_round_are_refused(stored, dtype, tmp_path):
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, dtype=stored, verify=False)
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": dtype}))
    with pytest.raises(WeightsError, match=f"is stored as {stored}, and Transformers rounds it to {dtype}"):
        revert_checkpoint(tmp_path / "hf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_a_wrapper_that_transformers_would_round_are_refused(wrapped, dtype, tmp_path):
    folder = shutil.copytree(wrapped[1], tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    with pytest.raises(WeightsError, match=f"is stored as float32, and Transformers rounds it to {dtype}"):
        revert_checkpoint(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_timm_model_in_a_wrapper_comes_back_as_it_is(wrapped, tmp_path):
    done = revert_checkpoint(wrapped[1], tmp_path / "back")
    assert (done.timm_name, done.dropped, done.notes) == ("eva02_tiny_patch14_224", (), ())
    assert all(one.same_bits for one in done.parity.comparisons)
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    state_dict = torch.load(wrapped[0])["state_dict"]
    assert again.state_dict().keys() == state_dict.keys()
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in again.state_dict().items())
    found, first = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", wrapped[1]))
    assert found["label_names"] == first["label_names"]
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size"):
        assert found["pretrained_cfg"][name] == first["pretrained_cfg"][name]


def test_a_wrapper_holds_another_architecture_than_is_given(wrapped, tmp_path):
    with pytest.raises(ArchitectureError, match="but '.*' holds timm's eva02_tiny_patch14_224"):
        revert_checkpoint(wrapped[1], tmp_path / "back", architecture="vit_tiny_patch16_224")
    assert not (tmp_path / "back").exists()


def test_a_wrapper_in_memory_is_asked_for_its_model(wrapped):
    model = transformers.AutoModelForImageClassification.from_pretrained(wrapped[1])
    with pytest.raises(ArchitectureError, match="holds the timm model as it is") as caught:
        to_timm(model)
    assert "hf_model.timm_model" in caught.value.remedy
