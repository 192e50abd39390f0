from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FOLDED, KINDS, perturbed, pixels_for, small_model

from vitconv.mapping import family_for
from vitconv.mapping import rewrites as rewrites_module
from vitconv.models import timm as timm_models
from vitconv.models.timm import from_timm


def rewrite(state_dict, architecture):
    return family_for(architecture).rewrite(state_dict, architecture)


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
    simple = rewrite(model.state_dict(), from_timm(model))
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
    rewrite(state_dict, from_timm(small_model(kind)))
    assert list(state_dict) == list(before)
    assert all(torch.equal(state_dict[name], before[name]) for name in before)


def test_what_is_not_rewritten_is_passed_on():
    model = small_model("layer scale")
    state_dict = model.state_dict()
    simple = rewrite(state_dict, from_timm(model)).state_dict
    shared = {name for name in simple if simple[name] is state_dict[name]}
    assert set(simple) - shared == {
        f"blocks.{block}.{layer}.{kind}"
        for block in (0, 1)
        for layer in ("attn.proj", "mlp.fc2")
        for kind in ("weight", "bias")
    }


def test_the_record_names_what_was_made_of_what():
    model = small_model("deit3")
    made = {record.tensor: record for record in rewrite(model.state_dict(), from_timm(model)).made}
    assert made["blocks.1.mlp.fc2.bias"].sources == ("blocks.1.mlp.fc2.bias", "blocks.1.ls2.gamma")
    assert made["pos_embed"].description == "a zero row for the class token in front"
    assert len(made) == 2 * 4 + 1


def test_folding_rounds_once():
    """The product of two float32 is exact in float64, so folding in float32 is that product correctly rounded."""
    model = small_model("layer scale")
    single = rewrite(model.state_dict(), from_timm(model)).state_dict
    double = rewrite(model.double().state_dict(), from_timm(model)).state_dict
    assert all(torch.equal(single[name], double[name].float()) for name in single)


def test_the_identity_pooler_is_exact():
    model = small_model("headless")
    simple = rewrite(model.state_dict(), from_timm(model)).state_dict
    features = torch.randn(7, 64)
    assert torch.equal(torch.nn.functional.linear(features, simple["pooler.weight"], simple["pooler.bias"]), features)


# ---- the rewrites one by one, timm against timm ------------------------------------------------------------------

FIVE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}


def vision_transformer(**arguments):
    return perturbed(timm.create_model("vit_tiny_patch16_224", **{**FIVE, **arguments})).double()


def keys_with_zero_bias(tensors, size=64):
    """drop_key_bias leaves queries' and values' biases: as timm's own names, with zeros for the keys'."""
    for block in (0, 1):
        query, value = (tensors.pop(f"blocks.{block}.attn.{part}_bias") for part in ("q", "v"))
        tensors[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros(size).double(), value])
    return tensors


def without(model, path):
    model.get_submodule(path).bias = None
    return model


@pytest.mark.parametrize(
    ("rewrite", "before", "after", "change"),
    [
        ("unit_layer_scale", {}, {"init_values": 1.0}, None),
        ("absorb_prefix_positions", {"reg_tokens": 4}, {"reg_tokens": 4, "no_embed_class": True}, None),
        ("absorb_prefix_positions", {}, {"no_embed_class": True}, None),
        (
            "register_as_class_token",
            {"reg_tokens": 3, "class_token": False, "no_embed_class": True, "global_pool": "avg"},
            {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"},
            None,
        ),
        (
            "register_as_class_token",
            {"reg_tokens": 1, "class_token": False, "no_embed_class": True, "global_pool": "avg"},
            {"no_embed_class": True, "global_pool": "avg"},
            None,
        ),
        ("pad_mlp", {"mlp_ratio": 2.6}, {"mlp_ratio": 3}, None),
        ("zero_qkv_bias", {"qkv_bias": False}, {}, None),
        ("drop_key_bias", {}, {}, keys_with_zero_bias),
        ("pad_class_position", {"no_embed_class": True}, {}, None),
        ("zero_patch_bias", {"pre_norm": True}, {"pre_norm": True, "embed_norm_layer": None}, None),
    ],
)  # fmt: skip
def test_a_rewrite_changes_no_function(rewrite, before, after, change):
    model = vision_transformer(**before)
    architecture = timm_models.read(model)
    result = getattr(rewrites_module, rewrite)(rewrites_module.Rewritten(dict(model.state_dict()), architecture))
    twin = vision_transformer(**after)
    if rewrite == "zero_patch_bias":
        twin.patch_embed.proj.bias = torch.nn.Parameter(torch.zeros(64).double())
    twin.load_state_dict((change or dict)(dict(result.state_dict)), strict=True)
    pixels = pixels_for(model).double()
    with torch.no_grad():
        expected, actual = model(pixels), twin(pixels)
    assert (actual - expected).abs().max() <= 1e-14 * expected.abs().max()
    if change is None:
        assert timm_models.read(twin) == result.architecture


@pytest.mark.parametrize(
    ("rewrite", "path"), [("head_bias_into_weight", "head"), ("patch_bias_into_positions", "patch_embed.proj")]
)
def test_a_bias_worked_into_its_neighbour(rewrite, path):
    model = vision_transformer()
    twin = without(vision_transformer(), path)
    result = getattr(rewrites_module, rewrite)(
        rewrites_module.Rewritten(dict(model.state_dict()), timm_models.read(model))
    )
    tensors = dict(result.state_dict)
    if rewrite == "patch_bias_into_positions":  # the class token's position has no patch
        tensors["pos_embed"] = torch.cat([model.pos_embed[:, :1], tensors["pos_embed"][:, 1:]], dim=1)
    twin.load_state_dict(tensors, strict=True)
    pixels = pixels_for(model).double()
    with torch.no_grad():
        expected, actual = model(pixels), twin(pixels)
    assert (actual - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_a_head_bias_of_zeros_just_goes():
    model = vision_transformer()
    model.head.bias.data.zero_()
    before = dict(model.state_dict())
    after = rewrites_module.head_bias_into_weight(
        rewrites_module.Rewritten(before, timm_models.read(model))
    ).state_dict
    assert "head.bias" not in after
    assert all(after[name] is before[name] for name in after)


def moved_bias(model):
    """The model with its head's bias worked into the weight, and the tensors that made it."""
    given = rewrites_module.Rewritten(dict(model.state_dict()), timm_models.read(model))
    result = rewrites_module.head_bias_into_weight(given)
    twin = without(vision_transformer(num_classes=model.num_classes), "head")
    twin.load_state_dict(dict(result.state_dict), strict=True)
    return twin, {made.tensor for made in result.made}


@pytest.mark.parametrize("classes", [5, 64, 65, 1000])
@pytest.mark.parametrize(
    ("case", "shifted"),
    [
        ("a constant", False),
        ("no constant", True),
        ("hardly a constant", True),
        ("one channel without scale", False),
        ("one channel without scale and bias", True),
        ("two channels without scale", False),
        ("one channel with hardly any scale", False),
        ("two that cancel", True),
        ("negative scales", False),
    ],
)
def test_a_head_s_bias_is_worked_in_whatever_the_norm(case, shifted, classes):
    """With more classes than channels, and with equal rows, too. The features change only where the norm's bias must."""
    model = vision_transformer(num_classes=classes)
    model.head.weight.data[1] = model.head.weight.data[0]
    gamma, beta = model.norm.weight.data, model.norm.bias.data
    beta += 0.5 * gamma  # by itself, a constant that is large enough
    if case in ("no constant", "hardly a constant"):
        beta -= gamma * (beta / gamma).mean()
    if case == "hardly a constant":
        beta += 1e-9 * gamma
    if case.startswith(("one channel without", "two channels")):
        gamma[3] = 0
    if case == "two channels without scale":
        gamma[5] = 0
    if case == "one channel without scale and bias":
        beta[3] = 0
    if case == "one channel with hardly any scale":
        gamma[3] = 1e-12
    if case == "two that cancel":
        gamma[3], gamma[5], beta[3], beta[5] = 1e-6, 1e-6, 0.3, -0.3
    if case == "negative scales":
        gamma *= -1
    twin, made = moved_bias(model)
    assert made == {"head.weight", "norm.bias"} if shifted else made == {"head.weight"}
    pixels = pixels_for(model).double()
    with torch.no_grad():
        expected, actual = model(pixels), twin(pixels)
        features, others = (
            model.forward_head(model.forward_features(pixels), True),
            twin.forward_head(twin.forward_features(pixels), True),
        )
    assert (actual - expected).abs().max() <= 1e-13 * expected.abs().max()
    assert torch.equal(features, others) == (not shifted)


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(-12, 1), st.integers(0, 3))
@settings(max_examples=200)
def test_a_norm_s_constant_is_one_for_whatever_it_computes(seed, mean, scale, zeros):
    """Of any weight and bias of a LayerNorm, shifted where they must be; in float64, with what rounding allows."""
    generator = torch.Generator().manual_seed(seed)
    gamma = 1 + torch.randn(32, generator=generator).double()
    gamma[0] = 10**scale
    gamma[1 : 1 + zeros] = 0
    beta = mean * gamma + torch.randn(32, generator=generator).double()
    beta[1:zeros] = 0
    beta = beta + rewrites_module._shift_of_norm(gamma, beta)
    if (gamma != 0).all():
        terms = beta / gamma
        size = (1 + terms.square()).sqrt().sum()
        assert size <= (1 + 1e-9) * rewrites_module._MOST_ROUNDING * terms.sum().abs()
    values = torch.nn.functional.layer_norm(torch.randn(8, 32, generator=generator).double(), (32,), gamma, beta)
    products = values @ rewrites_module._constant_of_norm(gamma, beta)
    assert (products - 1).abs().max() <= 1e-12


# ---- NaFlexVit ----------------------------------------------------------------------------------------------

NAFLEX = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}


def naflex(**arguments):
    return perturbed(timm.create_model("naflexvit_base_patch16_siglip", **{**NAFLEX, **arguments}))


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (136, 136), (40, 88), (160, 16)])
@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("mode", "dtype"), [("bilinear", torch.float32), ("bicubic", torch.float32), ("bicubic", torch.bfloat16)]
)
def test_positions_are_resampled_to_the_bits_that_timm_adds(mode, dtype, align_corners, antialias, cropped, size):
    model = naflex(
        img_size=size,
        pos_embed_grid_size=(8, 8),
        pos_embed_interp_mode=mode,
        pos_embed_antialias=antialias,
        pos_embed_align_corners=align_corners,
        pos_embed_ar_preserving=cropped,
    ).to(dtype)
    architecture = timm_models.read(model)
    tensors = dict(model.state_dict())
    if architecture.position_grid:
        result = rewrites_module.resample_positions(rewrites_module.Rewritten(tensors, architecture))
        tensors = result.state_dict
        assert result.architecture.position_grid == ()
    else:
        assert size == (64, 64)
    positions = tensors["embeds.pos_embed"]
    assert positions.shape == (1, *architecture.grid, 48) and positions.dtype == dtype
    with torch.no_grad():
        model.embeds.proj.weight.zero_()
        model.embeds.proj.bias.zero_()
        added, _ = model.embeds(torch.zeros(1, 3, *size, dtype=dtype))
    assert torch.equal(positions.flatten(1, 2), added)


def test_weights_in_float64_are_resampled_in_float64():
    """As the comparison in float64 lets timm compute: rounded to float32, the positions would differ by 1e-8."""
    model = naflex(img_size=136, pos_embed_grid_size=(8, 8)).double()
    result = rewrites_module.resample_positions(
        rewrites_module.Rewritten(dict(model.state_dict()), timm_models.read(model))
    ).state_dict["embeds.pos_embed"]
    assert result.dtype == torch.float64 and not torch.equal(result, result.float().double())


def test_the_plain_form_of_a_naflexvit_is_a_vision_transformer_that_computes_the_same():
    model = naflex(img_size=(32, 64), pos_embed_grid_size=(4, 8), reg_tokens=2, class_token=True, global_pool="token")
    model = model.double()
    architecture = timm_models.read(model)
    result = rewrites_module.plain_embedding(rewrites_module.Rewritten(dict(model.state_dict()), architecture))
    twin = timm.create_model(
        "vit_tiny_patch16_224", **NAFLEX, img_size=(32, 64), reg_tokens=2, no_embed_class=True, act_layer="gelu_tanh"
    )
    twin = twin.double().eval()
    twin.load_state_dict(result.state_dict, strict=True)
    # What is left of the other design is how it would resample, which the plain one never does.
    assert timm_models.read(twin) == replace(result.architecture, position_resampling="")
    pixels = pixels_for(model).double()
    with torch.no_grad():
        expected, actual = model(pixels), twin(pixels)
    assert (actual - expected).abs().max() <= 1e-14 * expected.abs().max()
    back = rewrites_module.PLAIN_EMBEDDING.undo(dict(result.state_dict), architecture)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.items())
