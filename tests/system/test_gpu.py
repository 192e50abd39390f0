"""The full-size model meets the same criteria on a GPU: ``make test-gpu``. Skipped if there is no GPU."""

import pytest
import torch
from models import full_model, pixels_for

from vitconv.convert import to_huggingface
from vitconv.parity.comparison import compare
from vitconv.parity.criteria import FLOAT32_EPSILON, LOW_PRECISION_RATIO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.fixture(scope="module")
def pair():
    model = full_model("vit_base_patch16_384", num_classes=7)
    return model, to_huggingface(model), pixels_for(model, batch=8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "tf32", "float16", "bfloat16"])
def test_every_stage_meets_its_criterion(pair, dtype, attention):
    timm_model, hf_model, pixels = pair
    hf_model.set_attn_implementation(attention)
    try:
        parity = compare(timm_model, hf_model, pixels, dtypes=[dtype], device="cuda")
    finally:
        hf_model.set_attn_implementation("sdpa")
    parity.assert_match()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_compiled_model_meets_its_criterion(pair, dtype):
    timm_model, hf_model, pixels = (part.to("cuda") for part in pair)
    with torch.no_grad():
        exact = timm_model.double()(pixels.double())
        original = timm_model.to(dtype)(pixels.to(dtype)).double()
        compiled = torch.compile(hf_model.to(dtype))(pixels.to(dtype)).logits.double()
    timm_model.float()
    hf_model.float()
    far, near = ((values - exact).abs().mean().item() for values in (compiled, original))
    assert far <= LOW_PRECISION_RATIO * near or far <= 16 * FLOAT32_EPSILON * exact.abs().max().item()


def test_comparing_on_a_gpu_leaves_the_models_on_their_device(pair):
    timm_model, hf_model, pixels = (part.to("cpu") for part in pair)
    compare(timm_model, hf_model, pixels[:1], dtypes=["float16"], device="cuda")
    assert {p.device.type for model in (timm_model, hf_model) for p in model.parameters()} == {"cpu"}
