"""CLIP: a norm before the blocks. ``CLIPVisionModelWithProjection``, and ``CLIPVisionModel`` without a head."""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, one_norm, sizes, square
from vitconv.mapping.rewrites import (
    FOLD_LAYER_SCALE,
    HEAD_BIAS_INTO_WEIGHT,
    NORM_BEFORE_POOL,
    PAD_CLASS_POSITION,
    ZERO_PROJECTION_BIASES,
    ZERO_QKV_BIAS,
)

_TABLE = """
cls_token[0,0]                 vision_model.embeddings.class_embedding                    =
pos_embed[0]                   vision_model.embeddings.position_embedding.weight          =
patch_embed.proj.weight        vision_model.embeddings.patch_embedding.weight             =
norm_pre.weight                vision_model.pre_layrnorm.weight                           =
norm_pre.bias                  vision_model.pre_layrnorm.bias                             =
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
head.weight                    visual_projection.weight                                   =
"""


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "attention_dropout": 0.0,
    } | ({"projection_dim": a.num_labels} if a.classifier else {})


def _num_labels(class_name: str, config: Any) -> int:
    """The projection is the head of a model that was converted from a timm classifier."""
    return config.projection_dim if class_name == "CLIPVisionModelWithProjection" else 0


CLIP = Family(
    name="clip",
    model_type=lambda a: "clip_vision_model",
    table=_TABLE,
    class_name=lambda a: "CLIPVisionModelWithProjection" if a.classifier else "CLIPVisionModel",
    classes=("CLIPVisionModelWithProjection", "CLIPVisionModel"),
    config=_config,
    expresses={
        "pre_norm": (True,),
        "patch_bias": (False,),
        "layer_scale": None,
        "class_position": None,
        "final_norm": None,
        "fc_norm": None,
        "qkv_bias": None,
        "proj_bias": None,
        "head_bias": None,
    },
    limits=lambda a: one_norm(a) + square(a),
    rewrites=(
        ZERO_QKV_BIAS,
        ZERO_PROJECTION_BIASES,
        FOLD_LAYER_SCALE,
        PAD_CLASS_POSITION,
        NORM_BEFORE_POOL,
        HEAD_BIAS_INTO_WEIGHT,
    ),
    output_expression=lambda a: "image_embeds" if a.classifier else "pooler_output",
    base_classes=("CLIPVisionModel",),
    prefix="vision_model.",
    prefix_in_files=True,
    norms_every_token=False,
    logits="image_embeds",
    num_labels=_num_labels,
    widths=("projection_dim",),
)
