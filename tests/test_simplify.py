import pytest
import torch
from models import FOLDED, KINDS, pixels_for, small_model

from vitconv.mapping import family_for
from vitconv.timm_models import from_timm


def simplify(state_dict, architecture):
    return family_for(architecture).simplify(state_dict, architecture)


REWRITTEN = sorted(FOLDED | {"no class position", "norm after pool", "headless", "no head bias"})


def rebuilt(kind: str, state_dict: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The timm model that has exactly the simplified tensors: no LayerScale, a class position, all biases."""
    plain = {"init_values": 0, "no_embed_class": False, "proj_bias": True, "fc_norm": False}
    if kind == "headless":
        plain["num_classes"] = 64  # the identity pooler, as timm's head
        state_dict = {name.replace("pooler", "head"): tensor for name, tensor in state_dict.items()}
    model = small_model("plain" if kind == "no head bias" else kind, **plain).double()
    model.load_state_dict(state_dict, strict=True)
    return model


@pytest.mark.parametrize("kind", REWRITTEN)
def test_the_rewritten_timm_model_computes_the_same(kind):
    model = small_model(kind).double()
    simple = simplify(model.state_dict(), from_timm(model))
    twin = rebuilt(kind, simple.state_dict)
    if kind != "headless":
        assert from_timm(twin) == simple.architecture
    pixels = pixels_for(model).double()
    with torch.no_grad():
        expected, actual = model(pixels), twin(pixels)
    assert (actual - expected).abs().max() <= 1e-14 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_is_left_as_it_is(kind):
    state_dict = small_model(kind).state_dict()
    before = {name: tensor.clone() for name, tensor in state_dict.items()}
    simplify(state_dict, from_timm(small_model(kind)))
    assert list(state_dict) == list(before)
    assert all(torch.equal(state_dict[name], before[name]) for name in before)


def test_what_is_not_rewritten_is_passed_on():
    model = small_model("layer scale")
    state_dict = model.state_dict()
    simple = simplify(state_dict, from_timm(model)).state_dict
    shared = {name for name in simple if simple[name] is state_dict[name]}
    assert set(simple) - shared == {
        f"blocks.{block}.{layer}.{kind}"
        for block in (0, 1)
        for layer in ("attn.proj", "mlp.fc2")
        for kind in ("weight", "bias")
    }


def test_the_record_names_what_was_made_of_what():
    model = small_model("deit3")
    made = {record.tensor: record for record in simplify(model.state_dict(), from_timm(model)).made}
    assert made["blocks.1.mlp.fc2.bias"].sources == ("blocks.1.mlp.fc2.bias", "blocks.1.ls2.gamma")
    assert made["pos_embed"].how == "a zero row for the class token in front"
    assert len(made) == 2 * 4 + 1


def test_folding_rounds_once():
    """The product of two float32 is exact in float64, so folding in float32 is that product correctly rounded."""
    model = small_model("layer scale")
    single = simplify(model.state_dict(), from_timm(model)).state_dict
    double = simplify(model.double().state_dict(), from_timm(model)).state_dict
    assert all(torch.equal(single[name], double[name].float()) for name in single)


def test_the_identity_pooler_is_exact():
    model = small_model("headless")
    simple = simplify(model.state_dict(), from_timm(model)).state_dict
    features = torch.randn(7, 64)
    assert torch.equal(torch.nn.functional.linear(features, simple["pooler.weight"], simple["pooler.bias"]), features)
