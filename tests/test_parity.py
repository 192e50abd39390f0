import copy

import pytest
import torch
from models import FOLDED, KINDS, pixels_for, small_model

from vitconv.convert import to_huggingface
from vitconv.errors import ParityError
from vitconv.parity import compare


@pytest.fixture
def pair():
    model = small_model()
    return model, to_huggingface(model), pixels_for(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_conversion_matches(kind):
    model = small_model(kind)
    if kind in FOLDED:
        model = model.double()  # so that folding does not round to float32
    parity = compare(model, to_huggingface(model), pixels_for(model), dtypes=("float64",))
    parity.assert_match()
    last = parity["float64"].stages[-1]
    assert last.relative <= 1e-14
    assert last.name == ("features" if kind.startswith("headless") else "logits")
    assert parity["float64"].same_answer


def test_stages_are_in_the_order_of_the_computation(pair):
    stages = compare(*pair)["float32"].stages
    assert [stage.name for stage in stages] == ["embeddings", "blocks.0", "blocks.1", "norm", "logits"]
    assert all(stage.scale > 0.1 for stage in stages)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda m: m.vit.embeddings.position_embeddings.data[0, 3].add_(1e-3), "embeddings"),
        (lambda m: m.vit.layers[0].attention.v_proj.bias.data.add_(1e-3), "blocks.0"),
        (lambda m: setattr(m.vit.layers[1].layernorm_before, "eps", 1e-12), "blocks.1"),
        (lambda m: setattr(m.vit.layers[1].mlp, "activation_fn", torch.nn.GELU("tanh")), "blocks.1"),
        (lambda m: m.vit.layernorm.weight.data.mul_(1 + 1e-9), "norm"),
        (lambda m: m.classifier.bias.data[2].add_(1e-6), "logits"),
        (lambda m: m.vit.layernorm.bias.data[0].fill_(float("nan")), "norm"),
    ],
)
def test_an_error_is_found_in_its_stage(pair, change, stage):
    timm_model, hf_model, pixels = pair
    hf_model.double()
    change(hf_model)
    parity = compare(timm_model, hf_model, pixels, dtypes=("float64",))
    assert not parity.matches
    with pytest.raises(ParityError, match=f"diverge at `{stage}` in float64"):
        parity.assert_match()


def test_the_models_come_back_as_they_were(pair):
    timm_model, hf_model, pixels = pair
    timm_model.train()
    hf_model.to(torch.bfloat16)
    before = [copy.deepcopy(model.state_dict()) for model in (timm_model, hf_model)]
    compare(timm_model, hf_model, pixels)
    for model, state_dict in zip((timm_model, hf_model), before, strict=True):
        assert all(torch.equal(tensor, state_dict[name]) for name, tensor in model.state_dict().items())
        assert all(tensor.dtype == state_dict[name].dtype for name, tensor in model.state_dict().items())
    assert timm_model.training
    assert not hf_model.training
    assert not any(module._forward_hooks for module in (*timm_model.modules(), *hf_model.modules()))


def test_an_exception_in_the_timm_model_is_raised(pair):
    timm_model, hf_model, pixels = pair
    timm_model.head = torch.nn.Linear(3, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compare(timm_model, hf_model, pixels)


def test_an_exception_in_the_other_model_is_raised(pair):
    timm_model, hf_model, pixels = pair
    hf_model.classifier = torch.nn.Linear(3, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compare(timm_model, hf_model, pixels)


def test_the_figures_are_plain_data(pair):
    figures = compare(*pair).to_dict()
    assert figures["float64"]["matches"] is True
    assert figures["float64"]["stages"][-1]["name"] == "logits"
