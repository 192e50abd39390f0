from collections import OrderedDict

import pytest
from models import SMALL, small_hybrid, small_model
from timm.layers import Mlp
from torch import nn

from vitconv.architecture import Architecture
from vitconv.errors import ArchitectureError
from vitconv.mapping import family_for
from vitconv.models.timm import build_timm, from_name, from_timm


def test_reads_the_facts_from_a_name():
    assert from_name("vit_base_patch16_384") == Architecture(
        image_size=(384, 384),
        patch_size=(16, 16),
        num_channels=3,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        num_labels=1000,
    )


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("no qkv bias", {"qkv_bias": False}),
        ("layer scale", {"layer_scale": True}),
        ("deit3", {"layer_scale": True, "class_position": False}),
        ("no class position", {"class_position": False, "num_positions": 16}),
        ("tanh gelu", {"hidden_act": "gelu_pytorch_tanh"}),
        ("quick gelu", {"hidden_act": "quick_gelu"}),
        ("other eps", {"layer_norm_eps": 1e-3}),
        ("not square", {"image_size": (32, 64), "grid": (4, 8), "num_positions": 33}),
        ("oblong patches", {"patch_size": (4, 8), "grid": (8, 4)}),
        ("headless", {"num_labels": 0, "classifier": False}),
        ("headless tokens", {"global_pool": ""}),
        ("no projection bias", {"proj_bias": False}),
        ("norm after pool", {"fc_norm": True, "final_norm": False}),
        ("mlp ratio 3", {"intermediate_size": 192}),
        ("pixels left over", {"image_size": (37, 37), "grid": (4, 4)}),
    ],
)
def test_reads_the_facts_from_the_modules(kind, facts):
    architecture = from_timm(small_model(kind))
    assert {name: getattr(architecture, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "max pooling (`global_pool='max'`)"),
        ("vit_tiny_patch16_224", {"global_pool": ""}, "a head on every token (`global_pool=''`); the nearest, ViTForImageClassification"),
        ("vit_base_patch16_siglip_224", {"num_classes": 5}, "a classification head (`head`); the nearest, SiglipVisionModel"),
        ("vit_base_patch16_siglip_gap_224", {"img_size": (32, 64)}, "an image that is not square (32x64)"),
        ("vit_base_patch16_siglip_224", {"reg_tokens": 4, "num_classes": 0}, "4 register tokens (`reg_token`)"),
        ("vit_tiny_patch16_224", {"pre_norm": True, "global_pool": "avg"}, "mean pooling (`global_pool='avg'`)"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": True, "reg_tokens": 4, "class_token": False}, "a norm after mean pooling (`fc_norm`)"),
        ("vit_small_patch16_18x2_224", {"qkv_bias": False}, "parallel branches without biases (`blocks.0`)"),
        ("vit_small_patch16_18x2_224", {"reg_tokens": 4}, "4 register tokens (`reg_token`)"),
        ("vit_small_patch16_18x2_224", {"qk_norm": True}, "a module unknown to vitconv (`blocks.0.attns.0.attn.q_norm` is"),
        ("vit_base_r50_s16_224", {"img_size": 72}, "an image size that is no multiple of the patches' (72x72, patches of 16)"),
        ("vit_base_r50_s16_224", {"img_size": (32, 64)}, "an image that is not square (32x64)"),
        ("vit_base_r50_s16_224", {"patch_size": 2}, "another ResNet before the patches than BiT's (`patch_embed.proj`)"),
        ("vit_base_r50_s16_224", {"reg_tokens": 4}, "a ResNet before the patches (`patch_embed.backbone`)"),
        ("vit_base_r50_s16_224", {"pre_norm": True}, "a ResNet before the patches (`patch_embed.backbone`)"),
        ("vit_tiny_r_s16_p8_224", {}, "a ResNet without stages before the patches (`patch_embed.backbone`)"),
        ("vit_base_resnet26d_224", {}, "a ResNet with batch norms before the patches (`patch_embed.backbone`)"),
        ("vit_base_mci_224", {}, "other convolutions before the patches than a ResNetV2's (`patch_embed.backbone`)"),
        ("vit_base_patch16_xp_224", {}, "parallel attention and MLP (`blocks.0`)"),
        ("vit_base_patch16_rpn_224", {}, "norms after attention and MLP (`blocks.0`)"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "normalised queries (`blocks.0.attn.q_norm`)"),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}, "a norm after attention (`blocks.0.attn.norm`)"),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "a norm inside the MLP (`blocks.0.mlp.norm`)"),
        ("vit_dlittle_patch16_reg1_gap_256", {}, "differential attention (`blocks.0.attn`)"),
        ("vit_tiny_patch16_224", {"final_norm": False}, "0 final norms (`norm`, `fc_norm`)"),
        ("vit_tiny_patch16_224", {"embed_norm_layer": nn.LayerNorm}, "a norm on the patches (`patch_embed.norm`)"),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "RMS norm (`blocks.0.norm1`)"),
        ("vit_tiny_patch16_224", {"dynamic_img_pad": True, "img_size": 37}, "padded images (`dynamic_img_pad`)"),
        ("vit_tiny_patch16_224", {"act_layer": nn.Mish}, "a module unknown to vitconv (`blocks.0.mlp.act` is a torch.nn.Mish)"),
        ("vit_tiny_patch16_224", {"pool_include_prefix": True, "global_pool": "avg"}, "pooling of the tokens before the patches, too"),
        ("vit_giant_patch14_dinov2", {"num_classes": 5, "global_pool": "avg", "fc_norm": True, "patch_size": 8}, "a norm after mean pooling (`fc_norm`)"),
        ("vit_small_patch16_dinov3", {"num_classes": 5}, "a classification head (`head`)"),
        ("vit_small_patch16_dinov3", {"rope_temperature": 50.0, "rope_grid_offset": 1.0}, "rotary positions set up otherwise than DINOv3's (`rope`: grid_offset)"),
        ("vit_base_patch16_rope_224", {}, "rotary positions of another kind than DINOv3's (`rope`)"),
        ("vit_base_patch16_rope_mixed_224", {}, "rotary positions that are learned (`rope`)"),
        ("vit_pe_spatial_tiny_patch16_512", {}, "a class token beside rotary positions as Perception Encoder's (`rope`)"),
        ("vit_pe_lang_gigantic_patch14_448", {"rope_grid_indexing": "ij"}, "rotary positions of another kind than DINOv3's (`rope`)"),
        ("vit_pe_lang_gigantic_patch14_448", {"num_classes": 5}, "a classification head (`head`)"),
        ("vit_pe_lang_gigantic_patch14_448", {"attn_type": "eva"}, "no bias in `blocks.0.attn's keys`"),
        ("eva02_tiny_patch14_224", {}, "rotary positions of another kind than DINOv3's (`rope`)"),
        ("beit_base_patch16_224", {"img_size": (32, 64)}, "an image that is not square (32x64)"),
        ("vit_relpos_base_patch16_rpn_224", {}, "norms after attention and MLP (`blocks.0`)"),
        ("vit_srelpos_small_patch16_224", {}, "a norm before mean pooling (`norm`)"),
        ("vit_srelpos_small_patch16_224", {"rel_pos_type": "bias"}, "relative positions of another kind than a small network's (`shared_rel_pos`)"),
        ("vit_relpos_base_patch16_plus_240", {}, "a norm before mean pooling (`norm`)"),
        ("naflexvit_base_patch16_gap", None, "4 register tokens (`reg_token`); the nearest, BeitForImageClassification"),
        ("naflexvit_base_patch16_parfac_gap", None, "positions by row and column (`embeds.pos_embed_y`, `embeds.pos_embed_x`)"),
        ("naflexvit_base_patch16_siglip", {"embed_proj_type": "conv"}, "another patch embedding than one linear layer (`embeds.proj`)"),
        ("naflexvit_base_patch16_siglip", {"embed_norm_layer": "layernorm"}, "a norm on the patches (`embeds.norm`)"),
        ("naflexvit_base_patch16_siglip", {"enable_patch_interpolator": True}, "a module unknown to vitconv (`embeds.patch_interpolator`"),
        ("naflexvit_base_patch16_siglip", {"pos_embed_interp_mode": "area"}, "positions resampled by 'area' (`embeds.pos_embed_interp_mode`)"),
        ("naflexvit_base_patch16_siglip", {"patchify_channels_last": False}, "patches with their channels first (`patchify_channels_last`)"),
        ("naflexvit_base_patch16_siglip", {"img_size": 72}, "an image size that is no multiple of the patches' (`img_size`)"),
        ("naflexvit_base_patch16_siglip", {"img_size": (64, 96)}, "an image that is not square (64x96)"),
        ("naflexvit_base_patch16_siglip", {"rope_type": "axial"}, "rotary positions of another kind than DINOv3's (`rope`)"),
        ("naflexvit_base_patch16_siglip", {"attn_pool_num_heads": 3}, "another attention pooling than SigLIP's (`attn_pool`)"),
        ("naflexvit_base_patch16_siglip", {"num_classes": 5}, "a classification head (`head`)"),
        ("naflexvit_base_patch16_siglip", {"pool_include_prefix": True}, "pooling of the tokens before the patches, too"),
        ("samvit_base_patch16_224", None, "another neck than SAM's two convolutions (`neck`)"),
        ("resnet18", None, "another design (`timm.ResNet`)"),
    ],
)  # fmt: skip
def test_refuses_what_no_class_expresses_and_names_it(name, arguments, message):
    small = {**SMALL, "num_classes": 5} if name == "vit_tiny_patch16_224" else {"depth": 2}
    model = build_timm(name, **({} if arguments is None else {**small, **arguments}))
    with pytest.raises(ArchitectureError) as caught:
        family_for(from_timm(model))
    assert message in caught.value.problem
    assert caught.value.remedy


class OwnMlp(Mlp):
    """A subclass may compute anything."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.blocks[1], "mlp", OwnMlp(64, 256)), f"(`blocks.1.mlp` is a {__name__}.OwnMlp)"),
        (lambda m: m.add_module("adapter", nn.Linear(2, 2)), "(`adapter` is a torch.nn.Linear)"),
        (lambda m: setattr(m.blocks[1].norm2, "eps", 1e-3), "norms of different epsilon (1e-06, 0.001)"),
        (lambda m: setattr(m.blocks[1].mlp, "act", nn.ReLU()), "blocks that differ in activation"),
        (lambda m: setattr(m.blocks[1].attn, "num_heads", 4), "heads of another width or scale (`blocks.1.attn`"),
        (lambda m: setattr(m.blocks[0].attn, "scale", 1.0), "heads of another width or scale (`blocks.0.attn`"),
        (lambda m: setattr(m.blocks[0].mlp, "norm", m.blocks[0].mlp.act), "a norm inside the MLP (`blocks.0.mlp.norm`)"),
        (lambda m: setattr(m, "head_drop", m.blocks[0].mlp.act), "(`head_drop` is a torch.nn.GELU)"),
        (lambda m: setattr(m, "forward_head", lambda x: m.head(x.mean(1))), "a method of its own (the model itself: forward_head)"),
        (lambda m: setattr(m.blocks[0].mlp, "forward", lambda x: x), "a method of its own (`blocks.0.mlp`: forward)"),
        (lambda m: m.blocks[1].register_forward_hook(lambda module, inputs, output: 2 * output), "forward hooks (`blocks.1`)"),
        (lambda m: m.register_forward_pre_hook(lambda module, inputs: None), "forward hooks (the model itself)"),
        (lambda m: setattr(m, "blocks", nn.Sequential(OrderedDict([("1", m.blocks[1]), ("0", m.blocks[0])]))), "another order"),
        (lambda m: setattr(m, "blocks", nn.Sequential()), "no blocks (`blocks`)"),
        (lambda m: setattr(m.patch_embed.proj, "padding", (1, 1)), "overlapping or grouped patches (`patch_embed.proj`"),
    ],
)  # fmt: skip
def test_refuses_a_changed_model(change, message):
    model = small_model()
    change(model)
    with pytest.raises(ArchitectureError) as caught:
        from_timm(model)
    assert message in caught.value.problem


def test_reads_the_facts_of_a_hybrid_and_of_parallel_branches():
    hybrid = from_timm(small_hybrid())
    assert (hybrid.stem_depths, hybrid.patch_size, hybrid.kernel_size) == ((1, 1, 1), (16, 16), (1, 1))
    assert (hybrid.grid, hybrid.num_channels) == ((2, 2), 3)
    parallel = from_timm(build_timm("vit_small_patch16_18x2_224"))
    assert (parallel.parallel_branches, parallel.num_attention_heads, parallel.intermediate_size) == (2, 6, 1536)


RESNET = "another ResNet before the patches than BiT's (`patch_embed.backbone."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: setattr(r.stem.conv, "eps", 1e-6), f"{RESNET}stem.conv`)"),
        (lambda r: setattr(r.stages[1].blocks[0].conv2, "stride", (1, 1)), f"{RESNET}stages.1.blocks.0.conv2`)"),
        (lambda r: setattr(r.stages[2].blocks[0].downsample.conv, "same_pad", False), f"{RESNET}stages.2.blocks.0.downsample.conv`)"),
        (lambda r: setattr(r.stages[0].blocks[0].conv2, "dilation", (2, 2)), f"{RESNET}stages.0.blocks.0.conv2`)"),
        (lambda r: setattr(r.stages[0].blocks[0].norm3, "eps", 1e-6), f"{RESNET}stages.0.blocks.0.norm3`)"),
        (lambda r: setattr(r.stem.norm, "num_groups", 16), f"{RESNET}stem.norm`)"),
        (lambda r: setattr(r.stem.pool, "ceil_mode", True), f"{RESNET}stem.pool`)"),
        (lambda r: setattr(r, "stem", nn.Sequential(OrderedDict(reversed(list(r.stem.named_children()))))), f"{RESNET}stem`)"),
        (lambda r: setattr(r.stages[0].blocks[0], "downsample", None), f"{RESNET}stages.0.blocks.0.downsample.conv.weight`, "),
        (lambda r: setattr(r.stages[0].blocks[0].norm1, "act", nn.SiLU()), "(`patch_embed.backbone.stages.0.blocks.0.norm1.act` is a torch.nn.SiLU)"),
        (lambda r: setattr(r.stages[0].blocks[0].conv1, "bias", nn.Parameter(r.stem.norm.bias)), f"{RESNET}stages.0.blocks.0.conv1.bias`"),
    ],
)  # fmt: skip
def test_refuses_another_resnet(change, message):
    model = small_hybrid()
    from_timm(model)
    change(model.patch_embed.backbone)
    with pytest.raises(ArchitectureError) as caught:
        from_timm(model)
    assert message in caught.value.problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.blocks[1].attns.pop(1), "do not fit together"),
        (lambda m: [branches.pop(1) for branches in (m.blocks[1].attns, m.blocks[1].ffns)], "blocks that differ in the number of branches"),
        (lambda m: setattr(m.blocks[0].attns[1].norm, "eps", 1e-3), "norms of different epsilon"),
        (lambda m: setattr(m.blocks[0].attns[1].attn, "num_heads", 4), "heads of another width or scale (`blocks.0.attns.1.attn`"),
        (lambda m: setattr(m.blocks[0].ffns[1].mlp, "act", nn.ReLU()), "blocks that differ in activation"),
        (lambda m: m.blocks[0].ffns.__setitem__(1, nn.Sequential(OrderedDict(reversed(list(m.blocks[0].ffns[1].named_children()))))), "run in another order than timm's (`blocks.0.ffns.1`)"),
    ],
)  # fmt: skip
def test_refuses_changed_branches(change, message):
    model = build_timm("vit_small_patch16_18x2_224", depth=2, embed_dim=48, num_heads=3)
    from_timm(model)
    change(model)
    with pytest.raises(ArchitectureError) as caught:
        from_timm(model)
    assert message in caught.value.problem


def test_an_unknown_name_gets_close_matches():
    with pytest.raises(ArchitectureError) as caught:
        build_timm("vit_base_patch16_385")
    assert "no architecture named 'vit_base_patch16_385'" in caught.value.problem
    assert "vit_base_patch16_384" in caught.value.remedy


def test_an_unknown_tag_gets_the_known_ones():
    with pytest.raises(ArchitectureError) as caught:
        build_timm("vit_base_patch16_384.none")
    assert "no pretrained tag 'none'" in caught.value.problem
    assert "augreg_in21k_ft_in1k" in caught.value.remedy


def test_a_device_among_the_arguments_takes_no_memory():
    """They come from files; a small one could ask for a huge model."""
    model = build_timm("vit_base_patch16_224", embed_dim=49152, num_heads=64, device="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
