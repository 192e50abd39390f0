"""InternViT: LayerScale and no final norm, no head. ``InternVLVisionModel``."""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, headless_only, sizes, square
from vitconv.mapping.rewrites import (
    PAD_CLASS_POSITION,
    UNIT_LAYER_SCALE,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
)

_TABLE = """
cls_token                      embeddings.cls_token                                 =
pos_embed                      embeddings.position_embeddings                       =
patch_embed.proj.weight        embeddings.patch_embeddings.projection.weight        =
patch_embed.proj.bias          embeddings.patch_embeddings.projection.bias          =
blocks.{i}.norm1.weight        encoder.layer.{i}.layernorm_before.weight            =
blocks.{i}.norm1.bias          encoder.layer.{i}.layernorm_before.bias              =
blocks.{i}.attn.qkv.weight[q]  encoder.layer.{i}.attention.q_proj.weight            =
blocks.{i}.attn.qkv.weight[k]  encoder.layer.{i}.attention.k_proj.weight            =
blocks.{i}.attn.qkv.weight[v]  encoder.layer.{i}.attention.v_proj.weight            =
blocks.{i}.attn.qkv.bias[q]    encoder.layer.{i}.attention.q_proj.bias              =
blocks.{i}.attn.qkv.bias[k]    encoder.layer.{i}.attention.k_proj.bias              =
blocks.{i}.attn.qkv.bias[v]    encoder.layer.{i}.attention.v_proj.bias              =
blocks.{i}.attn.proj.weight    encoder.layer.{i}.attention.projection_layer.weight  =
blocks.{i}.attn.proj.bias      encoder.layer.{i}.attention.projection_layer.bias    =
blocks.{i}.ls1.gamma           encoder.layer.{i}.lambda_1                           =
blocks.{i}.norm2.weight        encoder.layer.{i}.layernorm_after.weight             =
blocks.{i}.norm2.bias          encoder.layer.{i}.layernorm_after.bias               =
blocks.{i}.mlp.fc1.weight      encoder.layer.{i}.mlp.fc1.weight                     =
blocks.{i}.mlp.fc1.bias        encoder.layer.{i}.mlp.fc1.bias                       =
blocks.{i}.mlp.fc2.weight      encoder.layer.{i}.mlp.fc2.weight                     =
blocks.{i}.mlp.fc2.bias        encoder.layer.{i}.mlp.fc2.bias                       =
blocks.{i}.ls2.gamma           encoder.layer.{i}.lambda_2                           =
"""


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "image_size": list(a.image_size),
        "patch_size": list(a.patch_size),
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "norm_type": "layer_norm",
        "attention_bias": a.qkv_bias,
        "use_qk_norm": False,
        "use_mask_token": False,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,  # that is, no final norm: the model itself pools nothing
        "hidden_dropout_prob": 0.0,
        "attention_dropout": 0.0,
        "projection_dropout": 0.0,
    }


INTERNVL = Family(
    name="internvl",
    model_type=lambda a: "internvl_vision",
    table=_TABLE,
    class_name=lambda a: "InternVLVisionModel",
    classes=("InternVLVisionModel",),
    config=_config,
    expresses={
        "global_pool": ("token", ""),
        "class_position": None,
        "layer_scale": None,
        "final_norm": (False,),
        "patch_bias": None,
        "qkv_bias": None,
        "proj_bias": None,
    },
    limits=lambda a: headless_only(a) + square(a),
    rewrites=(
        ZERO_PATCH_BIAS,
        ZERO_PROJECTION_BIASES,
        UNIT_LAYER_SCALE,
        PAD_CLASS_POSITION,
    ),
    output_expression=lambda a: "last_hidden_state[:, 0]" if a.global_pool else "last_hidden_state",
)
