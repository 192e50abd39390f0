import json
from dataclasses import replace

import pytest
import torch
from models import full_model, pixels_for, reduced
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from transformers import AutoModelForImageClassification

from vitconv.convert import convert_checkpoint, verify_checkpoint
from vitconv.errors import InputError
from vitconv.models.position_embedding import resample
from vitconv.models.timm import build_timm, from_timm

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
