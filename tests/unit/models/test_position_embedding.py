import json
from dataclasses import replace

import pytest
import timm
import torch
from models import full_model, perturbed, pixels_for, reduced
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from transformers import AutoModel, AutoModelForImageClassification

from vitconv.convert import (
    convert_checkpoint,
    inspect_checkpoint,
    load_timm,
    revert_checkpoint,
    to_huggingface,
    verify_checkpoint,
)
from vitconv.errors import ArchitectureError, CheckpointError, InputError
from vitconv.models.position_embedding import resample
from vitconv.models.timm import build_timm, from_timm
from vitconv.parity import compare

ARCH = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights():
    return full_model(ARCH, num_classes=5).state_dict()


@pytest.mark.parametrize("size", [(384, 384), (112, 112), (96, 160)])
def test_the_resampled_model_computes_what_timm_s_own_loading_gives(size, weights, save, tmp_path):
    done = convert_checkpoint(save(weights), tmp_path / "hf", architecture=ARCH, image_size=size)
    theirs = build_timm(ARCH, num_classes=5, img_size=size).to_empty(device="cpu").eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(weights), theirs))
    pixels = pixels_for(theirs)
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "hf")
    assert torch.equal(theirs(pixels), ours(pixels).logits)
    rows, columns = size[0] // 16, size[1] // 16
    assert f"`pos_embed` was resampled from 14x14 to {rows}x{columns} patches" in done.notes[0]
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["image_size"] == list(size)


def test_verify_resamples_as_the_record_says(weights, save, tmp_path):
    path = save(weights)
    convert_checkpoint(path, tmp_path / "hf", architecture=ARCH, image_size=(96, 96), verify=False)
    assert verify_checkpoint(path, tmp_path / "hf").parity.matches


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_is_kept(dtype, weights, save, tmp_path):
    path = save({name: tensor.to(dtype) for name, tensor in weights.items()})
    convert_checkpoint(path, tmp_path / "hf", architecture=ARCH, image_size=(96, 96), verify=False)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "hf", dtype="auto").dtype == dtype


def test_without_a_class_position_every_row_is_resampled(tmp_path):
    arguments = {"depth": 2, "no_embed_class": True}
    model = full_model(ARCH, num_classes=3, **arguments)
    config = {"architecture": ARCH, "num_classes": 3, "pretrained_cfg": {}, "model_args": arguments}
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "timm" / "model.safetensors")
    done = convert_checkpoint(tmp_path / "timm", tmp_path / "hf", image_size=(96, 96))
    assert done.verification.parity.matches
    theirs = build_timm(ARCH, num_classes=3, img_size=96, **arguments).to_empty(device="cpu").eval()
    theirs.load_state_dict(checkpoint_filter_fn(model.state_dict(), theirs))
    pixels = pixels_for(theirs)
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(theirs(pixels), ours(pixels).logits)


def test_the_same_number_of_patches_in_another_shape_is_not_resampled_with_a_note(weights, save, tmp_path):
    done = convert_checkpoint(save(weights), tmp_path / "hf", architecture=ARCH, image_size=(112, 448), verify=False)
    assert "which was taken as the size of the training; `pos_embed` was not resampled from 224x224" in done.notes[0]
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "hf")
    assert torch.equal(ours.vit.embeddings.position_embeddings, weights["pos_embed"])


def test_positions_in_the_blocks_are_not_resampled():
    """BEiT's tables depend on the image size, too."""
    model = reduced("beit_base_patch16_224")
    known = from_timm(model)
    with pytest.raises(InputError, match="positions in the blocks were trained for images of 64x64, and are not"):
        resample(model.state_dict(), known, replace(known, image_size=(96, 96)))


def test_tokens_before_the_patches_keep_their_positions():
    model = reduced("deit_tiny_distilled_patch16_224")
    known = from_timm(model)
    positions = resample(model.state_dict(), known, replace(known, image_size=(96, 96)))["pos_embed"]
    assert positions.shape == (1, 2 + 36, 48)
    assert torch.equal(positions[:, :2], model.pos_embed[:, :2].float().double())


@pytest.mark.parametrize("size", [(100_000, 100_000), (10**30, 32)])
def test_a_size_that_no_image_has_is_refused_before_anything_is_resampled(size, weights, save, tmp_path):
    for arch in (ARCH, None):
        with pytest.raises(InputError, match="is too large: an image has 50,331,648 pixels at most"):
            convert_checkpoint(save(weights), tmp_path / "hf", architecture=arch, image_size=size)
    assert not (tmp_path / "hf").exists()


# ---- a NaFlexVit, which resamples in its forward pass ---------------------------------------------------------


@pytest.fixture(scope="module")
def naflex():
    return perturbed(timm.create_model("naflexvit_base_patch16_siglip", embed_dim=48, depth=2, num_heads=3))


@pytest.mark.parametrize("size", [None, (160, 160), (256, 256)])
def test_a_model_for_any_size_computes_at_one_what_timm_computes_there(size, naflex, tmp_path):
    folder = tmp_path / "timm"
    timm.models.save_for_hf(naflex, folder, model_args={"embed_dim": 48, "depth": 2, "num_heads": 3})
    done = convert_checkpoint(folder, tmp_path / "hf", image_size=size)
    size = size or (384, 384)
    assert done.verification.parity.matches and done.architecture.image_size == size
    assert "takes images of any size, and is converted for {}x{}".format(*size) in " ".join(done.notes)
    ours = AutoModel.from_pretrained(tmp_path / "hf")
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels).pooler_output, naflex(pixels), rtol=1e-4, atol=1e-5)
        # The proof used timm's model with the source's own positions, which timm resampled itself.
        assert load_timm(folder, image_size=size).embeds.pos_embed.shape == (1, 16, 16, 48)


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ({}, 384),
        ({"img_size": 160}, 160),
        ({"input_size": [3, 160, 160]}, 160),
        ({"img_size": 160, "model_kwargs": {"img_size": 160}}, 160),
    ],
)
def test_a_model_for_any_size_has_the_one_that_timm_s_training_script_was_given(args, size, naflex, save):
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, **args.pop("model_kwargs", {})}
    args = {**args, "model": "naflexvit_base_patch16_siglip", "model_kwargs": sizes}
    found = inspect_checkpoint(save({"arch": args["model"], "args": args, "state_dict": naflex.state_dict()}))
    assert found.architecture.image_size == (size, size) == found.data.image_size
    model = timm.create_model(args["model"], **sizes)
    assert timm.data.resolve_data_config(args, model=model)["input_size"] == (3, size, size)


def test_a_model_for_any_size_that_is_built_for_another_than_timm_gives_it_needs_a_size(naflex, tmp_path):
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 160}
    model = timm.create_model("naflexvit_base_patch16_siglip", **sizes)
    timm.models.save_for_hf(model, tmp_path / "timm", model_args=sizes)
    told = r"any size \(`NaFlexVit`\): timm gives it 384x384, but it was built for 160x160. A converted model has one size"
    with pytest.raises(CheckpointError, match=told) as caught:
        inspect_checkpoint(tmp_path / "timm")
    assert "--img-size H W" in caught.value.remedy
    assert inspect_checkpoint(tmp_path / "timm", image_size=(160, 160)).architecture.image_size == (160, 160)


def test_a_model_for_any_size_takes_no_size_that_its_patches_do_not_divide(naflex, tmp_path):
    timm.models.save_for_hf(naflex, tmp_path / "timm", model_args={"embed_dim": 48, "depth": 2, "num_heads": 3})
    with pytest.raises(InputError, match="Image size 250x250 is no multiple of the patches' 16x16"):
        convert_checkpoint(tmp_path / "timm", tmp_path / "hf", image_size=(250, 250))
    with pytest.raises(ArchitectureError, match=r"an image that is not square \(256x512\)"):
        convert_checkpoint(tmp_path / "timm", tmp_path / "hf", image_size=(256, 512))
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("name", ["naflexvit_large_patch16_radio_v3", "naflexvit_so400m_patch16_radio_v4"])
@pytest.mark.parametrize("size", [(512, 512), (96, 160), (160, 64), (2048, 16)])
def test_radio_resamples_to_any_size_as_timm_does(name, size):
    model = reduced(name)
    twin = to_huggingface(model)
    assert twin.config.max_img_size == 2048
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    compare(model, twin, pixels, dtypes=["float64"]).assert_match()


def test_radio_with_aligned_corners_is_resampled_once_for_one_size():
    model = reduced("naflexvit_base_patch16_radio_v3")
    twin = to_huggingface(model)
    assert twin.config.max_img_size == from_timm(model).image_size[0]
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert not compare(model, twin, pixels, dtypes=["float64"]).matches


@pytest.mark.parametrize("name", ["naflexvit_so400m_patch16_radio_v4", "naflexvit_base_patch16_radio_v3"])
def test_the_way_back_has_the_positions_that_the_transformers_model_has(name, tmp_path):
    model = reduced(name).float()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    convert_checkpoint(tmp_path / "w.safetensors", tmp_path / "hf", architecture=model, verify=False)
    back = revert_checkpoint(tmp_path / "hf", tmp_path / "back", architecture=name)
    size = back.architecture.image_size
    assert back.parity.matches and size == from_timm(model).image_size
    loaded = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    grid = (128, 128) if "v4" in name else tuple(side // 16 for side in size)
    assert loaded.embeds.pos_embed.shape[1:3] == grid
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-4, atol=1e-5)
