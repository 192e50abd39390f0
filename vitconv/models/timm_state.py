"""What the forward passes of timm's modules read besides weights and children, and what it must be.

A model may be edited after it was built: a setting replaced, a token or a buffer taken away. timm computes with what
the modules hold at that moment. So each attribute that a known class reads is listed here, with what it must be for
the rest of vitconv to be right about the model; a contradiction is named. Where vitconv reads an attribute
that timm itself never looks at, such as ``embed_dim``, it is held to the weights in the same way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


#: timm's Vision Transformer for images of any size.
NAFLEX = "timm.naflexvit.NaFlexVit"


def class_name(module: Any) -> str:
    """The class by the library it comes from: ``torch.nn.Linear``, ``timm.Attention``, or its full path.

    The exact class counts: a subclass computes something else. timm has several ``Block``: only those of its plain
    Vision Transformer have no more than its name here.
    """
    cls = type(module)
    if cls.__module__.startswith("torch.nn.modules."):
        return f"torch.nn.{cls.__name__}"
    if cls.__module__.startswith("timm."):
        place = cls.__module__.removeprefix("timm.").split(".")
        plain = place[0] == "layers" or place[-1] in ("vision_transformer", "deit")
        return f"timm.{cls.__name__}" if plain else f"timm.{place[-1]}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def contradictions(model: Any) -> list[str]:
    """Name the attributes and buffers that contradict the rest of a model whose modules are all known.

    Raises nothing: an attribute of a type that cannot be judged is a contradiction, too.

    Args:
        model: a timm model of which each module's class is in :data:`SETTINGS`.

    Returns:
        for each, its place and value, such as ``"`blocks.0.attn.head_dim` = 7"``, in the modules' order.
    """
    found = []
    for path, module in model.named_modules():
        settings = SETTINGS.get(class_name(module), {})
        odd = [name for name, rule in settings.items() if not _is_right(name, rule, module, model)]
        if CONSTANT in settings.values():
            odd += _other_buffers(module, model, [name for name, rule in settings.items() if rule is CONSTANT])
        found += [f"`{path}.{name}`{_shown(module, name)}".replace("`.", "`") for name in odd]
    return found


def _shown(module: Any, name: str) -> str:
    value = getattr(module, name)
    return f" = {value!r}"[:60] if isinstance(value, (str, Real, tuple, list, type(None))) else ""


def _is_right(name: str, rule: Rule, module: Any, model: Any) -> bool:
    if not hasattr(module, name):  # another version of timm; where it was taken away, timm itself fails
        return True
    if rule is PART:  # in `vars`, anything with a `__call__` would be run in place of the part
        return vars(module).get(name) is None
    try:
        return bool(rule(getattr(module, name), module, model))
    except Exception:  # an edited model may hold anything
        return False


def _other_buffers(module: Any, model: Any, names: list[str]) -> list[str]:
    """Those of the buffers that are not what the module's own code computes, but for their dtype's rounding."""
    import torch

    values = {name: module._buffers.get(name) for name in names}
    values = {name: value for name, value in values.items() if value is not None and not value.is_meta}
    if not values or not hasattr(module, "init_non_persistent_buffers"):  # an older timm cannot make them again
        return []
    fresh = copy.copy(module)
    fresh._buffers = {
        name: buffer if buffer is None else torch.zeros(buffer.shape, dtype=_at_least_float32(buffer), device="cpu")
        for name, buffer in module._buffers.items()
    }
    try:
        with torch.device("cpu"):
            fresh.init_non_persistent_buffers()
        precision = patch_embedding(model).proj.weight.dtype
        return [name for name, value in values.items() if not _same(value, fresh._buffers[name], precision)]
    except Exception:  # of shapes or settings that timm could not have built
        return list(values)


def _at_least_float32(buffer: Tensor) -> Any:
    import torch

    return torch.promote_types(buffer.dtype, torch.float32) if buffer.is_floating_point() else buffer.dtype


def _same(value: Tensor, expected: Tensor, precision: Any) -> bool:
    """Equal up to what rounding to the buffer's dtype does, where that is no coarser than the weights' dtype."""
    import torch

    value = value.detach().cpu()
    if value.dtype.is_floating_point != expected.dtype.is_floating_point or value.shape != expected.shape:
        return False
    if not value.dtype.is_floating_point:
        return torch.equal(value, expected)
    coarsest = max(torch.finfo(torch.float32).eps, torch.finfo(precision).eps)
    rounding = 4 * min(coarsest, max(torch.finfo(torch.float32).eps, torch.finfo(value.dtype).eps))
    return torch.allclose(value.double(), expected.double(), rtol=rounding, atol=rounding)


# ------------------------------------------------------------------------------------------------------------
# Rules: (value, module, model) -> whether it may be converted.

Rule = Callable[[Any, Any, Any], bool]


def PART(value: Any, module: Any, model: Any) -> bool:  # noqa: N802
    """A weight or a child: weights are held to the shapes, children to the whitelist of modules."""
    return True


def CONSTANT(value: Any, module: Any, model: Any) -> bool:  # noqa: N802
    """A buffer that no state dict holds; it must be what the module's own code computes."""
    return True


def _free(value: Any, module: Any, model: Any) -> bool:
    """It changes nothing in evaluation."""
    return True


def _read(value: Any, module: Any, model: Any) -> bool:
    """:mod:`vitconv.models.timm` reads it, or compares it with a literal."""
    return True


def _is(*values: Any) -> Rule:
    return lambda value, module, model: any(_is_equal(value, one) for one in values)


def _equals(expected: Callable[[Any, Any], Any]) -> Rule:
    return lambda value, module, model: _is_equal(value, expected(module, model))


def _is_equal(value: Any, expected: Any) -> bool:
    """Equal, and whole where a whole number is expected: 3.0 is no number of heads."""
    if isinstance(expected, tuple):
        items = tuple(value)
        return len(items) == len(expected) and all(map(_is_equal, items, expected))
    return value == expected and (isinstance(value, Integral) or not isinstance(expected, Integral))


def _number(value: Any, module: Any, model: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _not_negative(value: Any, module: Any, model: Any) -> bool:
    return _number(value, module, model) and value >= 0


def _rate(value: Any, module: Any, model: Any) -> bool:
    return _number(value, module, model) and 0 <= value <= 1


def _count(value: Any, module: Any, model: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def _pair(value: Any, module: Any, model: Any) -> bool:
    return len(value) == 2 and all(_count(size, module, model) for size in value)


def _has(module: Any, name: str) -> bool:
    return getattr(module, name, None) is not None


def patch_embedding(model: Any) -> Any:
    """The module that makes patches of the pixels: ``patch_embed``, in a NaFlexVit ``embeds``."""
    return model.embeds if class_name(model) == NAFLEX else model.patch_embed


def _prefix_tokens(module: Any, model: Any) -> int:
    """How many tokens the forward pass puts before the patches."""
    place = getattr(model, "embeds", model)
    tokens = (getattr(place, name, None) for name in ("cls_token", "dist_token", "reg_token"))
    return sum(token.shape[1] for token in tokens if token is not None)


def _grid(module: Any, model: Any) -> tuple[int, ...]:
    patches = model.patch_embed
    return tuple(size // patch for size, patch in zip(patches.img_size, patches.patch_size, strict=True))


def _places(patches: Any, model: Any) -> tuple[int, ...]:
    """The places in column and row of the features that a ResNet makes of an image, which it pads if need be."""
    stride = 2 * 2 ** len(patches.backbone.stages)
    return tuple(math.ceil(side / stride) for side in patches.img_size)


def _attention_width(module: Any, model: Any) -> int:
    """The width of all heads of an attention together, by its weights."""
    for name, share in (("q_proj", 1), ("qkv", 3), ("q", 1)):
        if _has(module, name):
            return getattr(module, name).weight.shape[0] // share
    raise AttributeError("an attention without queries")


def _head_width(module: Any, model: Any) -> int:
    return _attention_width(module, model) // module.num_heads


def _pooling(value: Any, module: Any, model: Any) -> bool:
    if value == "token" and not _prefix_tokens(module, model):
        return False
    return value in ("token", "avg", "map", "") and (value == "map") == _has(model, "attn_pool")


def _sam_pooling(value: Any, module: Any, model: Any) -> bool:
    """The model's head says it once more, and timm runs the head."""
    head = model.head
    flattens = [class_name(part) == "torch.nn.Flatten" for part in (head.global_pool.flatten, head.flatten)]
    pools = class_name(head.global_pool.pool) == "torch.nn.AdaptiveAvgPool2d"
    return value == ("avg" if pools else "") and any(flattens) == pools


def _is_flat(value: Any, module: Any, model: Any) -> bool:
    """Whether patches leave the embedding as a row: where timm adds positions to a grid, they must not."""
    grid = class_name(model).endswith("VisionTransformerSAM") or getattr(model, "dynamic_img_size", False)
    return bool(value) != bool(grid)


_WEIGHTS: dict[str, Rule] = {"weight": PART, "bias": PART}
_NORM: dict[str, Rule] = {
    **_WEIGHTS,
    "eps": _not_negative,
    "normalized_shape": _equals(lambda norm, model: tuple(norm.weight.shape)),
    "_fast_norm": _free,
}
_RESIDUAL: dict[str, Rule] = dict.fromkeys(("attn", "drop_path1", "drop_path2", "mlp", "norm1", "norm2"), PART)
_LS: dict[str, Rule] = {"ls1": PART, "ls2": PART}
_GAMMAS: dict[str, Rule] = {"gamma_1": PART, "gamma_2": PART}
_ATTENTION: dict[str, Rule] = {
    **dict.fromkeys(("attn_drop", "k_norm", "norm", "proj", "proj_drop", "q_norm", "qkv", "gate"), PART),
    "num_heads": _count,
    "head_dim": _equals(_head_width),
    "attn_dim": _equals(_attention_width),
    "scale": _number,
    "fused_attn": _free,
}
_SPLIT: dict[str, Rule] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), PART),
    "num_prefix_tokens": _read,
    "rotate_half": _read,
}
_SEPARATE_BIAS: dict[str, Rule] = {
    **dict.fromkeys(("q_bias", "v_bias"), PART),
    "k_bias": CONSTANT,
    "qkv_bias_separate": _free,
}
_MLP: dict[str, Rule] = dict.fromkeys(("act", "drop1", "drop2", "fc1", "fc2", "norm"), PART)
_ROTARY: dict[str, Rule] = {
    "dim": _equals(lambda rope, model: _head_width(model.blocks[0].attn, model)),
    "feat_shape": lambda value, rope, model: model.dynamic_img_size or _is_equal(value, _grid(rope, model)),
    "temperature": _number,
    **dict.fromkeys(("grid_indexing", "rotate_half"), _read),
    # In training only.
    **dict.fromkeys(("aug_active", "shift_coords", "jitter_coords", "rescale_coords"), _free),
}
_MODEL: dict[str, Rule] = {
    **dict.fromkeys(
        ("attn_pool", "blocks", "cls_token", "fc_norm", "head", "head_drop", "norm", "norm_pre", "patch_drop",
         "patch_embed", "pos_drop", "pos_embed", "reg_token", "rope"), PART
    ),
    "dynamic_img_size": _free,  # the patch embedding's `flatten` is held to it
    "embed_dim": _equals(lambda module, model: patch_embedding(model).proj.weight.shape[0]),
    "global_pool": _pooling,
    "grad_checkpointing": _free,
    "no_embed_class": _read,
    "num_prefix_tokens": _equals(_prefix_tokens),
    "pool_include_prefix": _read,
}  # fmt: skip

_EMBEDS: dict[str, Rule] = {
    **dict.fromkeys(
        ("proj", "norm", "norm_input", "pos_drop", "cls_token", "reg_token", "pos_embed", "pos_embed_y", "pos_embed_x",
         "patch_interpolator"), PART
    ),
    **dict.fromkeys(
        ("pos_embed_interp_mode", "pos_embed_ar_preserving", "pos_embed_antialias", "pos_embed_align_corners",
         "channels_last"), _read
    ),
    # For patches that are given with their coordinates, or of another size; for a convolution; for padded images.
    **dict.fromkeys(
        ("pos_embed_use_grid_sample", "enable_patch_interpolator", "flatten", "dynamic_img_pad"), _free
    ),
    "in_chans": _equals(lambda embeds, model: embeds.proj.weight.shape[1] // math.prod(embeds.patch_size)),
    "patch_size": lambda value, embeds, model: (
        _pair(value, embeds, model) and math.prod(value) * embeds.in_chans == embeds.proj.weight.shape[1]
    ),
    "is_linear": _is(True),
    "pos_embed_type": lambda value, embeds, model: (value == "learned") == _has(embeds, "pos_embed"),
}  # fmt: skip
_CONV: dict[str, Rule] = {
    **_WEIGHTS,
    "in_channels": _equals(lambda conv, model: conv.weight.shape[1] * conv.groups),
    "out_channels": _equals(lambda conv, model: conv.weight.shape[0]),
    "kernel_size": _equals(lambda conv, model: tuple(conv.weight.shape[2:])),
    **dict.fromkeys(("stride", "padding", "dilation", "groups", "padding_mode"), _read),
    "_reversed_padding_repeated_twice": _free,  # padding is one of zeros, or refused
}

#: Per class: what its forward pass reads of itself, or vitconv does.
SETTINGS: dict[str, dict[str, Rule]] = {
    "torch.nn.Linear": {
        **_WEIGHTS,
        "in_features": _equals(lambda linear, model: linear.weight.shape[1]),
        "out_features": _equals(lambda linear, model: linear.weight.shape[0]),
    },
    "torch.nn.Conv2d": _CONV,
    "timm.StdConv2dSame": {**_CONV, "eps": _read, "same_pad": _read},
    "timm.GroupNormAct": {
        **_WEIGHTS,
        **dict.fromkeys(("act", "drop"), PART),
        **dict.fromkeys(("eps", "num_groups"), _read),
        "_fast_norm": _free,
    },
    "timm.MaxPool2dSame": dict.fromkeys(("kernel_size", "stride", "dilation", "ceil_mode"), _read),
    "torch.nn.Identity": {},
    "torch.nn.Dropout": {"p": _rate, "inplace": _free},
    "torch.nn.LayerNorm": _NORM,
    "timm.LayerNorm": _NORM,
    "timm.LayerNorm2d": _NORM,
    "timm.RmsNorm": _NORM,
    "torch.nn.GELU": {"approximate": _is("none", "tanh")},
    "torch.nn.SiLU": {"inplace": _free},
    "torch.nn.ReLU": {"inplace": _free},
    "timm.GELU": {},
    "timm.GELUTanh": {},
    "timm.QuickGELU": {},
    "torch.nn.Sequential": {},
    "torch.nn.ModuleList": {},
    "torch.nn.AdaptiveAvgPool2d": {"output_size": lambda value, pool, model: value == 1 or _is_equal(value, (1, 1))},
    "torch.nn.Flatten": {"start_dim": _is(1), "end_dim": _is(-1)},
    "timm.DropPath": {
        "drop_prob": lambda value, path, model: value is None or _rate(value, path, model),
        "scale_by_keep": _free,
    },
    **dict.fromkeys(
        ("timm.PatchDropout", "timm.PatchDropoutWithIndices"),
        {"prob": _rate, "num_prefix_tokens": _free, "ordered": _free},
    ),
    "timm.LayerScale": {"gamma": PART, "inplace": _free},
    "timm.Mlp": _MLP,
    "timm.GluMlp": {**_MLP, "chunk_dim": _read, "gate_last": _read},
    "timm.SwiGLU": {**_MLP, "fc1_g": PART, "fc1_x": PART},
    "timm.PatchEmbed": {
        "proj": PART,
        "norm": PART,
        "img_size": _pair,
        "patch_size": _equals(lambda patches, model: tuple(patches.proj.weight.shape[2:])),
        "grid_size": _equals(_grid),
        "num_patches": _equals(lambda patches, model: math.prod(_grid(patches, model))),
        "flatten": _is_flat,
        "output_fmt": lambda value, patches, model: bool(patches.flatten) or value == "NHWC",
        "strict_img_size": _read,
        "dynamic_img_pad": _read,
    },
    "timm.naflexvit.NaFlexEmbeds": _EMBEDS,
    "timm.HybridEmbed": {
        "backbone": PART,
        "proj": PART,
        "img_size": _pair,
        "patch_size": _equals(lambda patches, model: tuple(patches.proj.weight.shape[2:])),
        "grid_size": _equals(_places),
        "flatten": _is_flat,
        "output_fmt": lambda value, patches, model: bool(patches.flatten) or value == "NHWC",
        "strict_img_size": _read,
        "dynamic_img_pad": _free,  # to a multiple of one place
    },
    "timm.resnetv2.ResNetV2": dict.fromkeys(("head", "norm", "stages", "stem"), PART),
    "timm.resnetv2.ResNetStage": {"blocks": PART, "grad_checkpointing": _free},
    "timm.resnetv2.Bottleneck": dict.fromkeys(
        ("act3", "conv1", "conv2", "conv3", "downsample", "drop_path", "norm1", "norm2", "norm3"), PART
    ),
    "timm.resnetv2.DownsampleConv": dict.fromkeys(("conv", "norm"), PART),
    "timm.Attention": _ATTENTION,
    "timm.AttentionRope": {
        **_ATTENTION,
        **_SPLIT,
        "num_kv_heads": _count,
        "num_kv_groups": _equals(lambda attn, model: attn.num_heads // attn.num_kv_heads),
    },
    "timm.eva.EvaAttention": {**_ATTENTION, **_SPLIT, **_SEPARATE_BIAS},
    "timm.beit.Attention": {
        **_ATTENTION,
        **_SEPARATE_BIAS,
        "relative_position_bias_table": PART,
        "relative_position_index": CONSTANT,
        "window_size": lambda value, attn, model: (
            not _has(attn, "relative_position_bias_table") or _is_equal(value, _grid(attn, model))
        ),
    },
    "timm.vision_transformer_relpos.RelPosAttention": {**_ATTENTION, "rel_pos": PART},
    "timm.vision_transformer_sam.Attention": {
        **_ATTENTION,
        **dict.fromkeys(("rel_pos_h", "rel_pos_w", "rope"), PART),
        "use_rel_pos": lambda value, attn, model: bool(value) == _has(attn, "rel_pos_h"),
    },
    "timm.RelPosMlp": {
        "mlp": PART,
        "bias_act": PART,
        **dict.fromkeys(("bias_gain", "prefix_tokens", "mode", "window_size"), _read),
        "num_heads": _equals(lambda network, model: network.mlp.fc2.weight.shape[0]),
        "bias_shape": _equals(
            lambda network, model: (*[math.prod(_grid(network, model))] * 2, network.mlp.fc2.weight.shape[0])
        ),
        "rel_coords_log": CONSTANT,
        "relative_position_index": CONSTANT,
    },
    "timm.AttentionPoolLatent": {
        **_ATTENTION,
        **dict.fromkeys(("q", "kv", "latent", "mlp", "pos_embed"), PART),
        "scale": _equals(lambda pool, model: _head_width(pool, model) ** -0.5),
        "latent_len": _equals(lambda pool, model: pool.latent.shape[1]),
        "pool": _read,
        "out_features": _equals(lambda pool, model: pool.proj.weight.shape[0]),
    },
    "timm.RotaryEmbeddingDinoV3": {
        **_ROTARY,
        "periods": CONSTANT,
        "pos_embed_cached": CONSTANT,
        **dict.fromkeys(("grid_offset", "normalize_coords"), _read),
    },
    "timm.RotaryEmbeddingCat": {
        **_ROTARY,
        "ref_feat_shape": _pair,
        "bands": CONSTANT,
        "pos_embed": CONSTANT,
        "_use_cached_embed": _equals(lambda rope, model: rope.feat_shape is not None),
        **dict.fromkeys(("in_pixels", "grid_type"), _read),
        "grid_offset": _number,
        "normalize_coords": _free,  # of a grid of another type
    },
    "timm.Block": {**_RESIDUAL, **_LS},
    "timm.ParallelThingsBlock": dict.fromkeys(("attns", "ffns"), PART),
    "timm.eva.EvaBlock": {**_RESIDUAL, **_GAMMAS},
    "timm.beit.Block": {**_RESIDUAL, **_GAMMAS},
    "timm.vision_transformer_relpos.RelPosBlock": {**_RESIDUAL, **_LS},
    "timm.vision_transformer_sam.Block": {
        **_RESIDUAL,
        **_LS,
        "window_size": lambda value, block, model: value == 0 or _count(value, block, model),
    },
    "timm.ClassifierHead": dict.fromkeys(("drop", "fc", "flatten", "global_pool"), PART),
    "timm.SelectAdaptivePool2d": dict.fromkeys(("flatten", "pool"), PART),
    "timm.VisionTransformer": _MODEL,
    "timm.VisionTransformerDistilled": {
        **_MODEL,
        "dist_token": PART,
        "head_dist": PART,
        "distilled_training": _free,
        "global_pool": _is("token"),
    },
    NAFLEX: {
        **_MODEL,
        "embeds": PART,
        "rope_is_mixed": _is(False),
        "use_key_only_attn_mask": _free,  # of masks, which images do not have
    },
    "timm.eva.Eva": {**_MODEL, "rope_mixed": _is(False)},
    "timm.beit.Beit": {**_MODEL, "rel_pos_bias": PART},
    "timm.vision_transformer_relpos.VisionTransformerRelPos": {**_MODEL, "shared_rel_pos": PART},
    "timm.vision_transformer_sam.VisionTransformerSAM": {**_MODEL, "neck": PART, "global_pool": _sam_pooling},
}
