"""Whatever arguments timm is given: the model converts exactly, or is refused in words. Nothing else ever happens."""

import os

import pytest
import timm
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models import perturbed
from timm.layers import GluMlp, Mlp, SwiGLU

from vitconv.convert import to_huggingface, to_timm
from vitconv.errors import VitconvError
from vitconv.models.timm import read
from vitconv.parity import compare

#: `make fuzz` asks for more.
CASES = max(250, int(os.environ.get("VITCONV_FUZZ_CASES", "0")) // 6)
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def mostly(usual, *others):
    """The usual value three times out of four: of models that differ in everything, all are refused."""
    return st.integers(0, 3).flatmap(lambda n: st.sampled_from((usual, *others)) if n == 0 else st.just(usual))


vision_transformers = st.fixed_dictionaries({
    "img_size": mostly(32, (32, 48), 35),
    "patch_size": mostly(8, (8, 4)),
    "num_classes": mostly(5, 0),
    "in_chans": mostly(3, 1),
    "class_token": mostly(True, False),
    "reg_tokens": mostly(0, 1, 3),
    "no_embed_class": mostly(False, True),
    "pos_embed": mostly("learn", "none"),
    "global_pool": st.sampled_from(["token", "token", "avg", "map", "", "max"]),
    "pool_include_prefix": mostly(False, True),
    "fc_norm": mostly(None, True, False),
    "final_norm": mostly(True, False),
    "pre_norm": mostly(False, True),
    "init_values": mostly(None, 0.5),
    "qkv_bias": mostly(True, False),
    "proj_bias": mostly(True, False),
    "qk_norm": mostly(False, True),
    "act_layer": mostly("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
    "mlp_layer": mostly(Mlp, GluMlp, SwiGLU),
    "mlp_ratio": mostly(4, 2.6),
    "dynamic_img_size": mostly(False, True),
})  # fmt: skip
evas = st.fixed_dictionaries({
    "img_size": mostly(32, (32, 48)),
    "patch_size": st.just(8),
    "num_classes": mostly(0, 5),
    "class_token": mostly(True, False),
    "num_reg_tokens": mostly(0, 1, 4),
    "no_embed_class": mostly(False, True),
    "global_pool": st.sampled_from(["token", "avg", ""]),
    "use_fc_norm": mostly(None, True, False),
    "use_pre_transformer_norm": mostly(False, True),
    "init_values": mostly(0.5, None),
    "attn_only_layer_scale": mostly(False, True),
    "qkv_bias": mostly(True, False),
    "qkv_fused": mostly(True, False),
    "swiglu_mlp": st.booleans(),
    "swiglu_align_to": mostly(8, 0),
    "use_abs_pos_emb": st.booleans(),
    "use_rot_pos_emb": st.booleans(),
    "rope_type": mostly("dinov3", "cat"),
    "rope_rotate_half": mostly(True, False),
    "rope_grid_indexing": st.sampled_from(["ij", "xy"]),
    "rope_grid_offset": mostly(0.0, 1.0),
    "ref_feat_shape": mostly(None, 5, (5, 6)),
    "rope_temperature": mostly(100.0, 10.0),
    "attn_type": mostly("eva", "rope"),
    "dynamic_img_size": mostly(True, False),
})  # fmt: skip
beits = st.fixed_dictionaries({
    "img_size": mostly(32, (32, 48)),
    "patch_size": mostly(8, 16),
    "num_classes": mostly(5, 0),
    "global_pool": st.sampled_from(["avg", "token", ""]),
    "qkv_bias": mostly(True, False),
    "init_values": mostly(0.5, None),
    "use_abs_pos_emb": st.booleans(),
    "use_rel_pos_bias": st.booleans(),
    "use_shared_rel_pos_bias": mostly(False, True),
    "swiglu_mlp": mostly(False, True),
})  # fmt: skip
sams = st.fixed_dictionaries({
    "img_size": mostly(32, 48, (32, 48)),
    "patch_size": st.just(8),
    "num_classes": mostly(0, 5),
    "global_pool": mostly("avg", "", "max"),
    "window_size": st.sampled_from([2, 3, 14]),
    "global_attn_indexes": st.sampled_from([(1,), (0, 1), ()]),
    "use_rel_pos": mostly(True, False),
    "use_abs_pos": mostly(True, False),
    "qkv_bias": mostly(True, False),
    "neck_chans": mostly(16, 0),
})  # fmt: skip
relatives = st.fixed_dictionaries({
    "img_size": mostly(32, (32, 48)),
    "patch_size": st.just(8),
    "num_classes": mostly(5, 0),
    "class_token": st.booleans(),
    "global_pool": st.sampled_from(["avg", "token", ""]),
    "fc_norm": mostly(None, True, False),
    "qkv_bias": mostly(True, False),
    "init_values": mostly(0.5, None),
    "rel_pos_type": mostly("mlp", "bias"),
    "shared_rel_pos": mostly(False, True),
})  # fmt: skip
NAFLEX = {
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 0,
    "init_values": None,
    "reg_tokens": 0,
    "pos_embed_grid_size": (5, 5),
}
#: Of models with so many settings that each forbids others, random ones are all refused: one that converts, and changes.
naflexes = st.builds(
    lambda base, changes: {**NAFLEX, **base, **dict(changes)},
    st.sampled_from([
        {"global_pool": "map", "fc_norm": None},
        {"global_pool": "avg", "fc_norm": True, "reg_tokens": 1, "num_classes": 5},
        {"global_pool": "token", "fc_norm": None, "class_token": True, "reg_tokens": 3, "final_norm": False},
    ]),
    st.lists(st.sampled_from([
        *(("img_size", 48), ("img_size", (32, 48)), ("img_size", 40), ("img_size", 36), ("patch_size", (8, 4))),
        *(("num_classes", 0), ("num_classes", 5), ("in_chans", 1), ("class_token", True), ("reg_tokens", 1)),
        *(("pos_embed", "none"), ("pos_embed", "factorized"), ("pos_embed_grid_size", (16, 16))),
        *(("pos_embed_grid_size", (3, 7)), ("pos_embed_interp_mode", "bilinear"), ("pos_embed_interp_mode", "nearest")),
        *(("pos_embed_ar_preserving", True), ("pos_embed_antialias", False), ("pos_embed_align_corners", True)),
        *(("pos_embed_use_grid_sample", True), ("dynamic_img_pad", True), ("patchify_channels_last", False)),
        *(("use_key_only_attn_mask", True), ("enable_patch_interpolator", True), ("embed_proj_type", "conv")),
        *(("embed_norm_layer", "layernorm"), ("norm_layer", "rmsnorm"), ("act_layer", "gelu_tanh")),
        *(("global_pool", ""), ("global_pool", "max"), ("pool_include_prefix", True), ("attn_pool_num_heads", 2)),
        *(("attn_pool_mlp_ratio", 2.0), ("fc_norm", True), ("fc_norm", False), ("final_norm", False)),
        *(("pre_norm", True), ("init_values", 0.5), ("qkv_bias", False), ("proj_bias", False), ("qk_norm", True)),
        *(("scale_mlp_norm", True), ("scale_attn_inner_norm", True), ("swiglu_mlp", True), ("attn_gated", True)),
        *(("attn_type", "eva"), ("rope_type", "dinov3"), ("num_kv_heads", 1), ("mlp_ratio", 2.6)),
    ]), max_size=4),
)  # fmt: skip
models = st.one_of(
    *(st.tuples(st.just("vit_tiny_patch16_224"), vision_transformers),) * 4,
    st.tuples(
        st.sampled_from(["eva_giant_patch14_224", "vit_small_patch16_dinov3", "vit_pe_spatial_gigantic_patch14_448"]),
        evas,
    ),
    st.tuples(st.just("beit_base_patch16_224"), beits),
    st.tuples(st.just("samvit_base_patch16"), sams),
    st.tuples(st.just("vit_relpos_small_patch16_224"), relatives),
    st.tuples(st.just("naflexvit_base_patch16_gap"), naflexes),
)


@pytest.mark.slow
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(models)
def test_exact_or_refused(case):
    name, arguments = case
    try:
        model = perturbed(timm.create_model(name, **{**SMALL, **arguments})).double()
    except Exception:
        assume(False)  # timm itself does not build it
    try:
        twin = to_huggingface(model, verify=False)
    except VitconvError as error:
        assert error.remedy
        return
    pixels = torch.randn(2, arguments.get("in_chans", 3), *read(model).image_size)
    compare(model, twin, pixels, dtypes=["float64"]).assert_match()
    try:
        back = to_timm(twin)
    except VitconvError as error:
        assert error.remedy
        return
    compare(back, twin, pixels, dtypes=["float64"]).assert_match()
