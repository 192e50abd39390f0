"""RADIO: register tokens and no final norm, no head. ``RadioModel``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, headless_only, sizes, square
from vitconv.mapping.rewrites import (
    ABSORB_PREFIX_POSITIONS,
    PATCH_BIAS_INTO_POSITIONS,
    PLAIN_EMBEDDING,
    RADIO_FORM,
    REGISTER_AS_CLASS_TOKEN,
    RESAMPLE_POSITIONS,
    UNIT_LAYER_SCALE,
    ZERO_PROJECTION_BIASES,
)

_TABLE = """
summary_idxs                   radio_model.summary_idxs                           summary_idxs
norm_mean                      radio_model.input_conditioner.norm_mean            input_conditioner.norm_mean
norm_std                       radio_model.input_conditioner.norm_std             input_conditioner.norm_std
prefix_tokens[0]               radio_model.model.patch_generator.cls_token.token  embeddings.cls_register_token
pos_embed                      radio_model.model.patch_generator.pos_embed        embeddings.position_embedding
patch_embed.proj.weight        radio_model.model.patch_generator.embedder.weight  embeddings.patch_projection.weight
blocks.{i}.norm1.weight        radio_model.model.blocks.{i}.norm1.weight          encoder.layer.{i}.norm1.weight
blocks.{i}.norm1.bias          radio_model.model.blocks.{i}.norm1.bias            encoder.layer.{i}.norm1.bias
blocks.{i}.attn.qkv.weight     radio_model.model.blocks.{i}.attn.qkv.weight       -
blocks.{i}.attn.qkv.weight[q]  -                                                  encoder.layer.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k]  -                                                  encoder.layer.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v]  -                                                  encoder.layer.{i}.attention.v_proj.weight
blocks.{i}.attn.qkv.bias       radio_model.model.blocks.{i}.attn.qkv.bias         -
blocks.{i}.attn.qkv.bias[q]    -                                                  encoder.layer.{i}.attention.q_proj.bias
blocks.{i}.attn.qkv.bias[k]    -                                                  encoder.layer.{i}.attention.k_proj.bias
blocks.{i}.attn.qkv.bias[v]    -                                                  encoder.layer.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight    radio_model.model.blocks.{i}.attn.proj.weight      encoder.layer.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias      radio_model.model.blocks.{i}.attn.proj.bias        encoder.layer.{i}.attention.o_proj.bias
blocks.{i}.ls1.gamma           radio_model.model.blocks.{i}.layer_scale1.lambda1  encoder.layer.{i}.layer_scale1.lambda1
blocks.{i}.norm2.weight        radio_model.model.blocks.{i}.norm2.weight          encoder.layer.{i}.norm2.weight
blocks.{i}.norm2.bias          radio_model.model.blocks.{i}.norm2.bias            encoder.layer.{i}.norm2.bias
blocks.{i}.mlp.fc1.weight      radio_model.model.blocks.{i}.mlp.fc1.weight        encoder.layer.{i}.mlp.fc1.weight
blocks.{i}.mlp.fc1.bias        radio_model.model.blocks.{i}.mlp.fc1.bias          encoder.layer.{i}.mlp.fc1.bias
blocks.{i}.mlp.fc2.weight      radio_model.model.blocks.{i}.mlp.fc2.weight        encoder.layer.{i}.mlp.fc2.weight
blocks.{i}.mlp.fc2.bias        radio_model.model.blocks.{i}.mlp.fc2.bias          encoder.layer.{i}.mlp.fc2.bias
blocks.{i}.ls2.gamma           radio_model.model.blocks.{i}.layer_scale2.lambda1  encoder.layer.{i}.layer_scale2.lambda1
"""  # noqa: E501 (a table is read across)


#: What ``RadioModel`` does in each forward pass, in the words of ``Architecture.position_resampling``.
_RESAMPLING = "bilinear cropped"


def _resamples_alike(a: Architecture) -> bool:
    """Whether the positions can stay on their own grid, because ``RadioModel`` resamples them as timm does."""
    return a.position_resampling == _RESAMPLING and len(a.position_grid) == 2 and len(set(a.position_grid)) == 1


def _config(a: Architecture) -> dict[str, Any]:
    """The model does not normalise: the image processor does it, as timm's transform does."""
    return {
        **sizes(a),
        "max_img_size": a.position_grid[0] * a.patch_size[0] if _resamples_alike(a) else a.image_size[0],
        "mlp_ratio": a.intermediate_size / a.hidden_size,
        "layer_norm_eps": a.layer_norm_eps,
        "qkv_bias": a.qkv_bias,
        "num_cls_tokens": 1,
        "num_registers": a.num_prefix_tokens - 1,
        "summary_idxs": [0],
        "norm_mean": [0.0] * a.num_channels,
        "norm_std": [1.0] * a.num_channels,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }


def _limits(a: Architecture) -> list[str]:
    found = square(a) + headless_only(a)
    if not a.num_prefix_tokens:
        found.append("no token before the patches")
    if a.image_size[0] % a.patch_size[0]:
        found.append("pixels left over at the edges")
    if int(a.hidden_size * (a.intermediate_size / a.hidden_size)) != a.intermediate_size:
        found.append(f"an MLP of width {a.intermediate_size} (`blocks.0.mlp`)")
    return found


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "intermediate_size": int(config.hidden_size * config.mlp_ratio),
        "num_register_tokens": config.num_registers + (not known.class_token),
    }
    if known.position_resampling == _RESAMPLING and config.max_img_size != config.image_size:
        found["position_grid"] = (config.max_img_size // config.patch_size,) * 2
    return found


_OUTPUTS = {"token": "summary", "avg": "features.mean(1)", "": "last_hidden_state"}
RADIO = Family(
    name="radio",
    model_type=lambda a: "radio",
    table=_TABLE,
    class_name=lambda a: "RadioModel",
    classes=("RadioModel",),
    config=_config,
    from_config=_from_config,
    counts=("num_registers", "num_cls_tokens"),
    expresses={
        "design": ("VisionTransformer", "NaFlexVit"),
        "position_grid": None,
        "position_resampling": None,
        "class_token": None,
        "global_pool": ("token", "avg", ""),
        "num_register_tokens": None,
        "class_position": None,
        "layer_scale": None,
        "final_norm": (False,),
        "patch_bias": None,
        "qkv_bias": None,
        "proj_bias": None,
    },
    limits=_limits,
    rewrites=(
        replace(RESAMPLE_POSITIONS, needed=lambda a: bool(a.position_grid) and not _resamples_alike(a)),
        PLAIN_EMBEDDING,
        ZERO_PROJECTION_BIASES,
        UNIT_LAYER_SCALE,
        replace(ABSORB_PREFIX_POSITIONS, needed=lambda a: a.class_position),  # also without registers
        REGISTER_AS_CLASS_TOKEN,
        PATCH_BIAS_INTO_POSITIONS,
        RADIO_FORM,
    ),
    output_expression=lambda a: _OUTPUTS[a.global_pool],
)
