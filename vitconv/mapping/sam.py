"""SAM: attention in windows, relative positions along each axis, two convolutions at the end. ``SamVisionModel``."""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, headless_only, sizes, square
from vitconv.mapping.rewrites import ZERO_PATCH_BIAS, ZERO_QKV_BIAS

_TABLE = """
pos_embed                    vision_encoder.pos_embed                      =
patch_embed.proj.weight      vision_encoder.patch_embed.projection.weight  =
patch_embed.proj.bias        vision_encoder.patch_embed.projection.bias    =
blocks.{i}.norm1.weight      vision_encoder.layers.{i}.layer_norm1.weight  =
blocks.{i}.norm1.bias        vision_encoder.layers.{i}.layer_norm1.bias    =
blocks.{i}.attn.rel_pos_h    vision_encoder.layers.{i}.attn.rel_pos_h      =
blocks.{i}.attn.rel_pos_w    vision_encoder.layers.{i}.attn.rel_pos_w      =
blocks.{i}.attn.qkv.weight   vision_encoder.layers.{i}.attn.qkv.weight     =
blocks.{i}.attn.qkv.bias     vision_encoder.layers.{i}.attn.qkv.bias       =
blocks.{i}.attn.proj.weight  vision_encoder.layers.{i}.attn.proj.weight    =
blocks.{i}.attn.proj.bias    vision_encoder.layers.{i}.attn.proj.bias      =
blocks.{i}.norm2.weight      vision_encoder.layers.{i}.layer_norm2.weight  =
blocks.{i}.norm2.bias        vision_encoder.layers.{i}.layer_norm2.bias    =
blocks.{i}.mlp.fc1.weight    vision_encoder.layers.{i}.mlp.lin1.weight     =
blocks.{i}.mlp.fc1.bias      vision_encoder.layers.{i}.mlp.lin1.bias       =
blocks.{i}.mlp.fc2.weight    vision_encoder.layers.{i}.mlp.lin2.weight     =
blocks.{i}.mlp.fc2.bias      vision_encoder.layers.{i}.mlp.lin2.bias       =
neck.0.weight                vision_encoder.neck.conv1.weight              =
neck.1.weight                vision_encoder.neck.layer_norm1.weight        =
neck.1.bias                  vision_encoder.neck.layer_norm1.bias          =
neck.2.weight                vision_encoder.neck.conv2.weight              =
neck.3.weight                vision_encoder.neck.layer_norm2.weight        =
neck.3.bias                  vision_encoder.neck.layer_norm2.bias          =
"""


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "mlp_dim": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "output_channels": a.neck_channels,
        "qkv_bias": True,
        "use_abs_pos": a.position_embedding,
        "use_rel_pos": a.axis_positions,
        "window_size": a.window_size,
        "global_attn_indexes": list(a.global_attention),
        "attention_dropout": 0.0,
    }


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    found = {"intermediate_size": config.mlp_dim}
    if known.neck_channels:
        found |= {
            "window_size": config.window_size,
            "global_attention": tuple(config.global_attn_indexes),
            "neck_channels": config.output_channels,
        }
    return found


def _limits(a: Architecture) -> list[str]:
    found = square(a) + headless_only(a)
    return found if a.neck_channels else [*found, "no convolutions after the blocks (`neck`)"]


SAM = Family(
    name="sam",
    model_type=lambda a: "sam_vision_model",
    table=_TABLE,
    class_name=lambda a: "SamVisionModel",
    classes=("SamVisionModel",),
    config=_config,
    from_config=_from_config,
    widths=("mlp_dim", "output_channels"),
    counts=("window_size",),
    expresses={
        "design": ("VisionTransformerSAM",),
        "global_pool": ("avg", ""),
        "class_token": (False,),
        "axis_positions": None,
        "window_size": None,
        "global_attention": None,
        "neck_channels": None,
        "final_norm": (False,),
        "patch_bias": None,
        "qkv_bias": None,
    },
    limits=_limits,
    rewrites=(ZERO_PATCH_BIAS, ZERO_QKV_BIAS),
    output_expression=lambda a: "last_hidden_state.mean((2, 3))" if a.global_pool else "last_hidden_state",
)
