"""BEiT: no bias for the keys; relative positions, LayerScale, a norm after the mean. ``BeitForImageClassification``.

Without a head, it norms all tokens, too, and leaves their mean to the reader: ``BeitModel``.
Besides timm's ``Beit`` it expresses EVA's first generation and class-token models that norm the mean of the patches.
"""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, one_norm, square, width_from_config
from vitconv.mapping.rewrites import (
    ABSORB_PREFIX_POSITIONS,
    DROP_KEY_BIAS,
    PAD_CLASS_POSITION,
    PLAIN_EMBEDDING,
    REGISTER_AS_CLASS_TOKEN,
    RESAMPLE_POSITIONS,
    TABLE_OF_RELATIVE_POSITIONS,
    ZERO_HEAD_BIAS,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
    ZERO_QUERY_AND_VALUE_BIAS,
)
from vitconv.mapping.vit import transformer_config

_TABLE = """
cls_token                                     beit.embeddings.cls_token                                                                       =
pos_embed                                     beit.embeddings.position_embeddings                                                             =
patch_embed.proj.weight                       beit.embeddings.patch_embeddings.projection.weight                                              =
patch_embed.proj.bias                         beit.embeddings.patch_embeddings.projection.bias                                                =
shared_rel_pos.relative_position_bias_table   beit.encoder.relative_position_bias.relative_position_bias_table                              beit.shared_position_bias.relative_position_bias_table
blocks.{i}.norm1.weight                       beit.encoder.layer.{i}.layernorm_before.weight                                                  beit.layers.{i}.layernorm_before.weight
blocks.{i}.norm1.bias                         beit.encoder.layer.{i}.layernorm_before.bias                                                    beit.layers.{i}.layernorm_before.bias
blocks.{i}.attn.relative_position_bias_table  beit.encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table  beit.layers.{i}.relative_position_bias.relative_position_bias_table
blocks.{i}.attn.qkv.weight[q]                 beit.encoder.layer.{i}.attention.attention.query.weight                                         beit.layers.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k]                 beit.encoder.layer.{i}.attention.attention.key.weight                                           beit.layers.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v]                 beit.encoder.layer.{i}.attention.attention.value.weight                                         beit.layers.{i}.attention.v_proj.weight
blocks.{i}.attn.q_bias                        beit.encoder.layer.{i}.attention.attention.query.bias                                           beit.layers.{i}.attention.q_proj.bias
blocks.{i}.attn.v_bias                        beit.encoder.layer.{i}.attention.attention.value.bias                                           beit.layers.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight                   beit.encoder.layer.{i}.attention.output.dense.weight                                            beit.layers.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias                     beit.encoder.layer.{i}.attention.output.dense.bias                                              beit.layers.{i}.attention.o_proj.bias
blocks.{i}.ls1.gamma                          beit.encoder.layer.{i}.lambda_1                                                                 beit.layers.{i}.lambda_1
blocks.{i}.gamma_1                            beit.encoder.layer.{i}.lambda_1                                                                 beit.layers.{i}.lambda_1
blocks.{i}.norm2.weight                       beit.encoder.layer.{i}.layernorm_after.weight                                                   beit.layers.{i}.layernorm_after.weight
blocks.{i}.norm2.bias                         beit.encoder.layer.{i}.layernorm_after.bias                                                     beit.layers.{i}.layernorm_after.bias
blocks.{i}.mlp.fc1.weight                     beit.encoder.layer.{i}.intermediate.dense.weight                                                beit.layers.{i}.mlp.fc1.weight
blocks.{i}.mlp.fc1.bias                       beit.encoder.layer.{i}.intermediate.dense.bias                                                  beit.layers.{i}.mlp.fc1.bias
blocks.{i}.mlp.fc2.weight                     beit.encoder.layer.{i}.output.dense.weight                                                      beit.layers.{i}.mlp.fc2.weight
blocks.{i}.mlp.fc2.bias                       beit.encoder.layer.{i}.output.dense.bias                                                        beit.layers.{i}.mlp.fc2.bias
blocks.{i}.ls2.gamma                          beit.encoder.layer.{i}.lambda_2                                                                 beit.layers.{i}.lambda_2
blocks.{i}.gamma_2                            beit.encoder.layer.{i}.lambda_2                                                                 beit.layers.{i}.lambda_2
norm.weight                                   beit.layernorm.weight                                                                           =
norm.bias                                     beit.layernorm.bias                                                                             =
fc_norm.weight                                beit.pooler.layernorm.weight                                                                    =
fc_norm.bias                                  beit.pooler.layernorm.bias                                                                      =
head.weight                                   classifier.weight                                                                               =
head.bias                                     classifier.bias                                                                                 =
"""  # noqa: E501 (a table is read across)


def _config(a: Architecture) -> dict[str, Any]:
    config, relative = transformer_config(a), a.relative_position or a.relative_network > 0
    del config["qkv_bias"]  # queries and values have a bias, keys have none
    return config | {
        "use_mask_token": False,
        "use_absolute_position_embeddings": a.position_embedding,
        "use_relative_position_bias": relative and not a.shared_relative_position,
        "use_shared_relative_position_bias": relative and a.shared_relative_position,
        "layer_scale_init_value": 1.0 if a.layer_scale else 0.0,
        "use_mean_pooling": a.fc_norm and a.global_pool == "avg",
        "drop_path_rate": 0.0,
    }


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    found = width_from_config(known, config)
    if known.design == "Beit":
        found |= {
            "global_pool": "avg" if config.use_mean_pooling else "token",
            "final_norm": not config.use_mean_pooling,
            "fc_norm": config.use_mean_pooling,
            "position_embedding": config.use_absolute_position_embeddings,
            "relative_position": config.use_relative_position_bias,
            "layer_scale": config.layer_scale_init_value > 0,
        }
    return found


def _mean_of_normed(a: Architecture) -> bool:
    """Whether timm returns the mean of the normed patches, which BEiT does not compute, but its user can."""
    return not a.classifier and a.global_pool == "avg" and not a.fc_norm


def _limits(a: Architecture) -> list[str]:
    found = one_norm(a) + square(a)
    # With relative positions from a network, a class token can be hidden: see the rewrite.
    if a.class_token + a.num_register_tokens != 1 and not (a.relative_network and not a.num_prefix_tokens):
        found.append("not exactly one token before the patches")
    if a.fc_norm != (a.global_pool == "avg") and not _mean_of_normed(a):
        found.append("a norm before mean pooling (`norm`)" if a.final_norm else "a norm after the pooling (`fc_norm`)")
    return found


BEIT = Family(
    name="beit",
    model_type=lambda a: "beit",
    table=_TABLE,
    base_classes=("BeitModel",),
    prefix="beit.",
    class_name=lambda a: "BeitModel" if _mean_of_normed(a) else "BeitForImageClassification",
    classes=("BeitForImageClassification", "BeitModel"),
    config=_config,
    from_config=_from_config,
    expresses={
        "design": ("VisionTransformer", "Eva", "Beit", "VisionTransformerRelPos", "NaFlexVit"),
        "position_grid": None,
        "position_resampling": None,
        "class_token": None,
        "num_register_tokens": (0, 1),
        "global_pool": ("token", "avg"),
        "position_embedding": None,
        "class_position": None,
        "relative_position": None,
        "relative_network": None,
        "shared_relative_position": None,
        "layer_scale": None,
        "final_norm": None,
        "fc_norm": None,
        "patch_bias": None,
        "qkv_bias": None,
        "key_bias": None,
        "proj_bias": None,
        "head_bias": None,
    },
    limits=_limits,
    rewrites=(
        RESAMPLE_POSITIONS,
        PLAIN_EMBEDDING,
        ZERO_PATCH_BIAS,
        ZERO_QUERY_AND_VALUE_BIAS,
        DROP_KEY_BIAS,
        ZERO_PROJECTION_BIASES,
        ZERO_HEAD_BIAS,
        ABSORB_PREFIX_POSITIONS,
        TABLE_OF_RELATIVE_POSITIONS,
        REGISTER_AS_CLASS_TOKEN,
        PAD_CLASS_POSITION,
    ),
    output_expression=lambda a: "last_hidden_state[:, 1:].mean(1)" if _mean_of_normed(a) else "logits",
    decisive={"layer_scale_init_value": lambda value: value > 0},
    placeholders=lambda a: int(a.relative_network > 0 and not a.class_token),
)
