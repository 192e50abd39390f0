"""Test models: real timm architectures, small ones of every kind, with every parameter moved off its initial value."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import HybridEmbed
from timm.models.vision_transformer_hybrid import _resnetv2
from torch import nn

from vitconv import mapping
from vitconv.models.catalogue import entries
from vitconv.models.timm import build_timm, from_timm, read

#: The commit of the only model in the fixture `hub_cache`.
HUB_REVISION = "0123456789abcdef0123456789abcdef01234567"

#: Two blocks of width 64 on 32x32 pixels; 2 heads, so that swapped heads show.
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}

#: One small model for each thing that ViTForImageClassification or ViTModel expresses: name -> (timm name, arguments).
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "no qkv bias": ("vit_base_patch16_224_miil", {}),
    "layer scale": ("vit_tiny_patch16_224", {"init_values": 1e-3}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "no class position": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "tanh gelu": ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}),
    "quick gelu": ("vit_tiny_patch16_224", {"act_layer": "quick_gelu"}),
    "relu": ("vit_tiny_patch16_224", {"act_layer": "relu"}),
    "other eps": ("vit_tiny_patch16_224", {"norm_layer": lambda dim, **kw: nn.LayerNorm(dim, eps=1e-3, **kw)}),
    "not square": ("vit_tiny_patch16_224", {"img_size": (32, 64)}),
    "oblong patches": ("vit_tiny_patch16_224", {"patch_size": (4, 8)}),
    "one channel": ("vit_tiny_patch16_224", {"in_chans": 1}),
    "six channels": ("vit_tiny_patch16_224", {"in_chans": 6}),
    "one class": ("vit_tiny_patch16_224", {"num_classes": 1}),
    "headless": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "headless tokens": ("vit_tiny_patch16_224", {"num_classes": 0, "global_pool": ""}),
    "no projection bias": ("vit_tiny_patch16_224", {"proj_bias": False, "init_values": 1e-3}),
    "no head bias": ("vit_tiny_patch16_224", {}),
    "norm after pool": ("vit_tiny_patch16_224", {"fc_norm": True}),
    "mlp ratio 3": ("vit_tiny_patch16_224", {"mlp_ratio": 3}),
    "pixels left over": ("vit_tiny_patch16_224", {"img_size": 37}),
    "dropout": ("vit_tiny_patch16_224", {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}),
}
#: The kinds whose weights are rounded once by folding; all others are moved to the bit.
FOLDED = {"layer scale", "deit3", "dinov2", "no projection bias"}


def perturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values, none of them timm's initial one, and put the model in evaluation mode.

    timm starts biases at 0 and norm weights at 1: there, swapping two tensors would change nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif "gamma" in name:
                parameter.copy_(0.5 + 0.3 * noise)
            else:
                parameter.copy_((0.1 if parameter.ndim == 1 else 0.05) * noise)
    return model.eval()


def small_model(kind: str = "plain", **overrides: Any) -> nn.Module:
    name, arguments = KINDS[kind]
    model = timm.create_model(name, **{**SMALL, **arguments, **overrides})
    if kind == "no head bias":
        model.head.bias = None
    return perturbed(model)


def _one_block_a_stage(in_chans: int = 3, **arguments: Any) -> HybridEmbed:
    return HybridEmbed(_resnetv2((1, 1, 1), in_chans=in_chans), in_chans=in_chans, **arguments)


#: A ResNet of three stages before 2x2 patches, for a hybrid of timm's.
HYBRID = {"img_size": 32, "patch_size": 1, "embed_layer": _one_block_a_stage}


def small_hybrid(**overrides: Any) -> nn.Module:
    return perturbed(timm.create_model("vit_base_r50_s16_224", **{**SMALL, **HYBRID, **overrides}))


def full_model(name: str, **overrides: Any) -> nn.Module:
    """A timm model of its real size; built on ``meta`` to save timm's slow initialisation."""
    return perturbed(build_timm(name, **overrides))


def pixels_for(model: nn.Module, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator, known = torch.Generator().manual_seed(seed), read(model)
    return torch.randn(batch, known.num_channels, *known.image_size, generator=generator)


def output_of(output: Any, timm_model: nn.Module) -> torch.Tensor:
    """What the timm model returns, of the output of the Transformers model that it converts to."""
    architecture = from_timm(timm_model)
    return mapping.family_for(architecture).output(architecture, output)


def reduced(name: str, **more) -> torch.nn.Module:
    """The architecture with two narrow blocks on few patches, in float64; nothing else about it is changed."""
    known = entries()[name].architecture or read(build_timm(name, **more))
    image_size = tuple(4 * patch if size == min(known.image_size) else 5 * patch for size, patch in zip(known.image_size, known.patch_size, strict=True))  # fmt: skip
    small = {"img_size": image_size, "embed_dim": 48, "depth": 2, "num_heads": 3, **more}
    if known.split_qkv:
        small |= {"embed_dim": 64, "num_heads": 4, "num_kv_heads": [4, 2] if known.num_key_value_heads else 4}
    if known.window_size:
        small |= {"window_size": 3, "global_attn_indexes": (1,)}
    if known.classifier:
        small.setdefault("num_classes", 5)
    return perturbed(timm.create_model(name, **small)).double()


#: One architecture of timm's for each class of Transformers that any of them becomes.
ONE_EACH = {mapping.class_name(e.architecture): name for name, e in entries().items() if e.architecture}


def each(names, few=None):
    """Parameters for a test of every architecture: `make test` takes one of each class, `make test-all` takes them all."""
    few = few or set(ONE_EACH.values())
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


def full_but(kept, names):
    """Parameters for a test that takes long: `make test-all` takes those that are kept, `make test-full` the others."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.full) for name in names]


def full_but_each(first, second):
    """Two parameters for such a test: `make test-all` takes the first of each with all of the other, `make test-full` all."""
    return [
        pytest.param(one, other, marks=[] if one == first[0] or other == second[0] else [pytest.mark.full])
        for one in first
        for other in second
    ]


#: Architectures that timm lists with a head, and that become something else without it.
WITHOUT_HEAD = (
    *("vit_srelpos_small_patch16_224", "vit_srelpos_medium_patch16_224", "vit_relpos_base_patch16_plus_240"),
    "vit_so150m_patch16_reg4_gap_256",
)


def wrapped_arguments(name: str) -> dict[str, Any]:
    """timm's arguments for two narrow blocks on four by four patches, for any architecture that timm lists."""
    full = build_timm(name)
    small: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    if hasattr(full, "patch_embed"):
        sides = zip(full.patch_embed.img_size, full.patch_embed.grid_size, strict=True)
        small["img_size"] = [4 * (size // patches) for size, patches in sides]
    if name == "vit_base_mci_224":  # its stem has one width
        small = {"depth": 2}
    if name.startswith("samvit"):
        small |= {"window_size": 3, "global_attn_indexes": [1]}
    if name.endswith("sapiens2"):
        small |= {"embed_dim": 64, "num_heads": 4, "num_kv_heads": [4, 2]}
    return small


#: For the tests of what runs timm's own model: one of each kind of block that no native class computes, and a plain one.
WRAPPED = {
    "eva02_tiny_patch14_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_pe_core_tiny_patch16_384",
    "beit3_base_patch16_224",
    "vit_small_patch16_18x2_224",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_relpos_small_patch16_rpn_224",
    "vit_small_resnet26d_224",
    "naflexvit_base_patch16_gap",
    "samvit_base_patch16_224",
    "vit_tiny_patch16_224",
}
