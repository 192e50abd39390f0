"""That float64 is float64 throughout, whatever the models' code asks for, and only as long as it is wanted."""

import pytest
import torch
import transformers
from models import reduced
from torch import nn
from transformers.models.dinov3_vit import modeling_dinov3_vit

from vitconv.convert import to_huggingface
from vitconv.parity import compare
from vitconv.parity.float64 import float64_throughout


class Stubborn(nn.Module):
    """Computes in float32 in every way that Transformers' layers do."""

    def forward(self, x):
        x = x.to(torch.float32) + x.float() + x.to(dtype=torch.float32)
        return nn.functional.softmax(x + torch.ones(3, dtype=torch.float32), dim=-1, dtype=torch.float32)


def test_no_float32_is_left():
    model, x = Stubborn(), torch.rand(3).double()
    assert model(x).dtype == torch.float32
    with float64_throughout(model):
        assert model(x).dtype == torch.float64
    assert model(x).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        *("aimv2_large_patch14_224", "vit_small_patch16_dinov3", "vit_base_patch16_radio_v3"),
        "vit_pe_lang_gigantic_patch14_448",
    ],
)
def test_it_makes_a_difference_where_layers_compute_in_float32(name):
    """Else this page would not be needed: without it, float64 is wrong by float32's rounding."""
    timm_model = reduced(name)
    model = to_huggingface(timm_model).double()
    pixels = torch.rand(1, 3, *timm_model.patch_embed.img_size).double()
    with torch.no_grad():
        rounded = model(pixels).last_hidden_state
        with float64_throughout(model):
            exact = model(pixels).last_hidden_state
    assert 1e-12 < (exact - rounded).abs().max() / exact.abs().max() < 1e-4


def test_positions_that_are_no_whole_numbers_are_computed_in_float64():
    """Of five patches scaled to 32, float32 cannot hold the place of any but the first."""
    timm_model = reduced("vit_pe_lang_gigantic_patch14_448", img_size=70)
    pixels = torch.rand(1, 3, 70, 70).double()
    compare(timm_model, to_huggingface(timm_model, verify=False), pixels, dtypes=["float64"]).assert_match()


def test_what_is_remembered_does_not_leak():
    """Transformers keeps rotary coordinates from call to call: neither dtype may be served the other's."""
    remembered = modeling_dinov3_vit.get_patches_center_coordinates
    model = to_huggingface(reduced("vit_small_patch16_dinov3"))
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model.float()(pixels).last_hidden_state
        with float64_throughout(model.double()):
            model(pixels.double())
        assert modeling_dinov3_vit.get_patches_center_coordinates is remembered
        assert remembered(4, 4, torch.float32, pixels.device).dtype == torch.float32
    twin = to_huggingface(reduced("vit_small_patch16_dinov3")).float()
    with torch.no_grad():
        assert torch.equal(twin(pixels).last_hidden_state, before)


def test_eager_attention_computes_in_float64_too():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(config).double().eval()
    pixels = torch.rand(1, 3, 32, 32).double()
    with torch.no_grad(), float64_throughout(model):
        fused = model(pixels).last_hidden_state
        model.set_attn_implementation("eager")
        assert (model(pixels).last_hidden_state - fused).abs().max() < 1e-13
