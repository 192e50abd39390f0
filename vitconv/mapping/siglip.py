"""SigLIP: no class token; mean or attention pooling. ``SiglipForImageClassification``, ``SiglipVisionModel``."""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, headless_only, one_norm, sizes, square
from vitconv.mapping.rewrites import (
    FOLD_LAYER_SCALE,
    FUSE_ATTENTION_POOL,
    PLAIN_EMBEDDING,
    RESAMPLE_POSITIONS,
    ZERO_HEAD_BIAS,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
    ZERO_QKV_BIAS,
)

_TABLE = """
pos_embed[0]                   vision_model.embeddings.position_embedding.weight          =
patch_embed.proj.weight        vision_model.embeddings.patch_embedding.weight             =
patch_embed.proj.bias          vision_model.embeddings.patch_embedding.bias               =
blocks.{i}.norm1.weight        vision_model.encoder.layers.{i}.layer_norm1.weight         =
blocks.{i}.norm1.bias          vision_model.encoder.layers.{i}.layer_norm1.bias           =
blocks.{i}.attn.qkv.weight[q]  vision_model.encoder.layers.{i}.self_attn.q_proj.weight    =
blocks.{i}.attn.qkv.weight[k]  vision_model.encoder.layers.{i}.self_attn.k_proj.weight    =
blocks.{i}.attn.qkv.weight[v]  vision_model.encoder.layers.{i}.self_attn.v_proj.weight    =
blocks.{i}.attn.qkv.bias[q]    vision_model.encoder.layers.{i}.self_attn.q_proj.bias      =
blocks.{i}.attn.qkv.bias[k]    vision_model.encoder.layers.{i}.self_attn.k_proj.bias      =
blocks.{i}.attn.qkv.bias[v]    vision_model.encoder.layers.{i}.self_attn.v_proj.bias      =
blocks.{i}.attn.proj.weight    vision_model.encoder.layers.{i}.self_attn.out_proj.weight  =
blocks.{i}.attn.proj.bias      vision_model.encoder.layers.{i}.self_attn.out_proj.bias    =
blocks.{i}.norm2.weight        vision_model.encoder.layers.{i}.layer_norm2.weight         =
blocks.{i}.norm2.bias          vision_model.encoder.layers.{i}.layer_norm2.bias           =
blocks.{i}.mlp.fc1.weight      vision_model.encoder.layers.{i}.mlp.fc1.weight             =
blocks.{i}.mlp.fc1.bias        vision_model.encoder.layers.{i}.mlp.fc1.bias               =
blocks.{i}.mlp.fc2.weight      vision_model.encoder.layers.{i}.mlp.fc2.weight             =
blocks.{i}.mlp.fc2.bias        vision_model.encoder.layers.{i}.mlp.fc2.bias               =
norm.weight                    vision_model.post_layernorm.weight                         =
norm.bias                      vision_model.post_layernorm.bias                           =
attn_pool.latent               vision_model.head.probe                                    =
attn_pool.in_proj_weight       vision_model.head.attention.in_proj_weight                 =
attn_pool.in_proj_bias         vision_model.head.attention.in_proj_bias                   =
attn_pool.proj.weight          vision_model.head.attention.out_proj.weight                =
attn_pool.proj.bias            vision_model.head.attention.out_proj.bias                  =
attn_pool.norm.weight          vision_model.head.layernorm.weight                         =
attn_pool.norm.bias            vision_model.head.layernorm.bias                           =
attn_pool.mlp.fc1.weight       vision_model.head.mlp.fc1.weight                           =
attn_pool.mlp.fc1.bias         vision_model.head.mlp.fc1.bias                             =
attn_pool.mlp.fc2.weight       vision_model.head.mlp.fc2.weight                           =
attn_pool.mlp.fc2.bias         vision_model.head.mlp.fc2.bias                             =
head.weight                    classifier.weight                                          =
head.bias                      classifier.bias                                            =
"""


def _config(a: Architecture) -> dict[str, Any]:
    vision = {
        **sizes(a),
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "attention_dropout": 0.0,
    }
    if _is_base(a):
        return {**vision, "vision_use_head": a.global_pool == "map"}
    return {"vision_config": {**vision, "vision_use_head": False}}


def _is_base(a: Architecture) -> bool:
    """Attention pooling and no head at all: the bare vision model."""
    return a.global_pool == "map" or not a.classifier


def _limits(a: Architecture) -> list[str]:
    return one_norm(a) + square(a) + (headless_only(a) if a.global_pool != "avg" else [])


def _output_expression(a: Architecture) -> str:
    if a.global_pool == "map":
        return "pooler_output"
    return "logits" if a.classifier else "last_hidden_state.mean(1)" if a.global_pool else "last_hidden_state"


SIGLIP = Family(
    name="siglip",
    model_type=lambda a: "siglip_vision_model" if _is_base(a) else "siglip",
    table=_TABLE,
    class_name=lambda a: "SiglipVisionModel" if _is_base(a) else "SiglipForImageClassification",
    random_in_auto_model="a text model",
    classes=("SiglipForImageClassification", "SiglipVisionModel"),
    config=_config,
    expresses={
        "design": ("VisionTransformer", "NaFlexVit"),
        "position_grid": None,
        "position_resampling": None,
        "class_token": (False,),
        "global_pool": ("avg", "map", ""),
        "layer_scale": None,
        "patch_bias": None,
        "qkv_bias": None,
        "proj_bias": None,
        "head_bias": None,
    },
    limits=_limits,
    rewrites=(
        RESAMPLE_POSITIONS,
        PLAIN_EMBEDDING,
        ZERO_PATCH_BIAS,
        ZERO_QKV_BIAS,
        ZERO_PROJECTION_BIASES,
        ZERO_HEAD_BIAS,
        FOLD_LAYER_SCALE,
        FUSE_ATTENTION_POOL,
    ),
    output_expression=_output_expression,
    base_classes=("SiglipVisionModel",),
    prefix="vision_model.",
    prefix_in_files=True,
    vision_config=lambda config: getattr(config, "vision_config", config),
)
