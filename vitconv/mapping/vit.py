"""ViT: a class token, learned positions, norms before. ``ViTForImageClassification``, headless ``ViTModel``."""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import MASK_TOKEN, Family, one_norm, sizes, tokens_only_headless
from vitconv.mapping.rewrites import (
    FOLD_LAYER_SCALE,
    IDENTITY_POOLER,
    JOIN_BRANCHES,
    NORM_BEFORE_POOL,
    PAD_CLASS_POSITION,
    ZERO_HEAD_BIAS,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
)

_TABLE = """
cls_token                      vit.embeddings.cls_token                                =
pos_embed                      vit.embeddings.position_embeddings                      =
patch_embed.proj.weight        vit.embeddings.patch_embeddings.projection.weight       =
patch_embed.proj.bias          vit.embeddings.patch_embeddings.projection.bias         =
blocks.{i}.norm1.weight        vit.encoder.layer.{i}.layernorm_before.weight           vit.layers.{i}.layernorm_before.weight
blocks.{i}.norm1.bias          vit.encoder.layer.{i}.layernorm_before.bias             vit.layers.{i}.layernorm_before.bias
blocks.{i}.attn.qkv.weight[q]  vit.encoder.layer.{i}.attention.attention.query.weight  vit.layers.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k]  vit.encoder.layer.{i}.attention.attention.key.weight    vit.layers.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v]  vit.encoder.layer.{i}.attention.attention.value.weight  vit.layers.{i}.attention.v_proj.weight
blocks.{i}.attn.qkv.bias[q]    vit.encoder.layer.{i}.attention.attention.query.bias    vit.layers.{i}.attention.q_proj.bias
blocks.{i}.attn.qkv.bias[k]    vit.encoder.layer.{i}.attention.attention.key.bias      vit.layers.{i}.attention.k_proj.bias
blocks.{i}.attn.qkv.bias[v]    vit.encoder.layer.{i}.attention.attention.value.bias    vit.layers.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight    vit.encoder.layer.{i}.attention.output.dense.weight     vit.layers.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias      vit.encoder.layer.{i}.attention.output.dense.bias       vit.layers.{i}.attention.o_proj.bias
blocks.{i}.norm2.weight        vit.encoder.layer.{i}.layernorm_after.weight            vit.layers.{i}.layernorm_after.weight
blocks.{i}.norm2.bias          vit.encoder.layer.{i}.layernorm_after.bias              vit.layers.{i}.layernorm_after.bias
blocks.{i}.mlp.fc1.weight      vit.encoder.layer.{i}.intermediate.dense.weight         vit.layers.{i}.mlp.fc1.weight
blocks.{i}.mlp.fc1.bias        vit.encoder.layer.{i}.intermediate.dense.bias           vit.layers.{i}.mlp.fc1.bias
blocks.{i}.mlp.fc2.weight      vit.encoder.layer.{i}.output.dense.weight               vit.layers.{i}.mlp.fc2.weight
blocks.{i}.mlp.fc2.bias        vit.encoder.layer.{i}.output.dense.bias                 vit.layers.{i}.mlp.fc2.bias
norm.weight                    vit.layernorm.weight                                    =
norm.bias                      vit.layernorm.bias                                      =
head.weight                    classifier.weight                                       =
head.bias                      classifier.bias                                         =
pooler.weight                  vit.pooler.dense.weight                                 =
pooler.bias                    vit.pooler.dense.bias                                   =
"""  # noqa: E501 (a table is read across)


def transformer_config(a: Architecture) -> dict[str, Any]:
    """What the configurations of ViT, DeiT and BEiT have in common."""
    return {
        **sizes(a),
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "qkv_bias": a.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _config(a: Architecture) -> dict[str, Any]:
    """A headless model gets a linear pooler, so that ``AutoModel`` returns timm's features as ``pooler_output``.

    Parallel branches are joined: more heads than the width has room for, so that theirs must be given.
    """
    config = transformer_config(a) | ({} if a.classifier else {"pooler_act": "linear"})
    if a.parallel_branches > 1:
        config["num_attention_heads"] *= a.parallel_branches
        config["intermediate_size"] *= a.parallel_branches
        config["head_dim"] = a.hidden_size // a.num_attention_heads
    return config


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    return {
        "num_attention_heads": config.num_attention_heads // known.parallel_branches,
        "intermediate_size": config.intermediate_size // known.parallel_branches,
    }


def _limits(a: Architecture) -> list[str]:
    found = [*one_norm(a), *tokens_only_headless(a)]
    if a.parallel_branches > 1 and not (a.qkv_bias and a.proj_bias):
        found.append("parallel branches without biases (`blocks.0`)")
    return found


VIT = Family(
    name="vit",
    model_type=lambda a: "vit",
    table=_TABLE,
    base_classes=("ViTModel",),
    prefix="vit.",
    class_name=lambda a: "ViTForImageClassification" if a.classifier else "ViTModel",
    random_in_auto_model="a pooler",
    classes=("ViTForImageClassification", "ViTModel"),
    config=_config,
    expresses={
        "global_pool": ("token", ""),
        "parallel_branches": None,
        "layer_scale": None,
        "class_position": None,
        "final_norm": None,
        "fc_norm": None,
        "patch_bias": None,
        "qkv_bias": None,
        "proj_bias": None,
        "head_bias": None,
    },
    limits=_limits,
    from_config=_from_config,
    rewrites=(
        JOIN_BRANCHES,
        ZERO_PATCH_BIAS,
        ZERO_PROJECTION_BIASES,
        ZERO_HEAD_BIAS,
        FOLD_LAYER_SCALE,
        PAD_CLASS_POSITION,
        NORM_BEFORE_POOL,
        IDENTITY_POOLER,
    ),
    output_expression=lambda a: (
        "logits" if a.classifier else "pooler_output" if a.global_pool else "last_hidden_state"
    ),
    decisive={"pooler_act": lambda value: None},  # the pooler may be dropped
    droppable={
        "pooler": "a pooler, a layer on the class token",
        **MASK_TOKEN,
        "decoder": "a decoder for masked patches",  # of a masked autoencoder
    },
)
