"""DeiT with a distillation token and the mean of two heads: ``DeiTForImageClassificationWithTeacher``."""

from __future__ import annotations

from vitconv.mapping.family import Family, one_norm
from vitconv.mapping.rewrites import (
    FOLD_LAYER_SCALE,
    PAD_CLASS_POSITION,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
)
from vitconv.mapping.vit import transformer_config

_TABLE = """
cls_token                      deit.embeddings.cls_token                                =
dist_token                     deit.embeddings.distillation_token                       =
pos_embed                      deit.embeddings.position_embeddings                      =
patch_embed.proj.weight        deit.embeddings.patch_embeddings.projection.weight       =
patch_embed.proj.bias          deit.embeddings.patch_embeddings.projection.bias         =
blocks.{i}.norm1.weight        deit.encoder.layer.{i}.layernorm_before.weight           deit.layers.{i}.layernorm_before.weight
blocks.{i}.norm1.bias          deit.encoder.layer.{i}.layernorm_before.bias             deit.layers.{i}.layernorm_before.bias
blocks.{i}.attn.qkv.weight[q]  deit.encoder.layer.{i}.attention.attention.query.weight  deit.layers.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k]  deit.encoder.layer.{i}.attention.attention.key.weight    deit.layers.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v]  deit.encoder.layer.{i}.attention.attention.value.weight  deit.layers.{i}.attention.v_proj.weight
blocks.{i}.attn.qkv.bias[q]    deit.encoder.layer.{i}.attention.attention.query.bias    deit.layers.{i}.attention.q_proj.bias
blocks.{i}.attn.qkv.bias[k]    deit.encoder.layer.{i}.attention.attention.key.bias      deit.layers.{i}.attention.k_proj.bias
blocks.{i}.attn.qkv.bias[v]    deit.encoder.layer.{i}.attention.attention.value.bias    deit.layers.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight    deit.encoder.layer.{i}.attention.output.dense.weight     deit.layers.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias      deit.encoder.layer.{i}.attention.output.dense.bias       deit.layers.{i}.attention.o_proj.bias
blocks.{i}.norm2.weight        deit.encoder.layer.{i}.layernorm_after.weight            deit.layers.{i}.layernorm_after.weight
blocks.{i}.norm2.bias          deit.encoder.layer.{i}.layernorm_after.bias              deit.layers.{i}.layernorm_after.bias
blocks.{i}.mlp.fc1.weight      deit.encoder.layer.{i}.intermediate.dense.weight         deit.layers.{i}.mlp.fc1.weight
blocks.{i}.mlp.fc1.bias        deit.encoder.layer.{i}.intermediate.dense.bias           deit.layers.{i}.mlp.fc1.bias
blocks.{i}.mlp.fc2.weight      deit.encoder.layer.{i}.output.dense.weight               deit.layers.{i}.mlp.fc2.weight
blocks.{i}.mlp.fc2.bias        deit.encoder.layer.{i}.output.dense.bias                 deit.layers.{i}.mlp.fc2.bias
norm.weight                    deit.layernorm.weight                                    =
norm.bias                      deit.layernorm.bias                                      =
head.weight                    cls_classifier.weight                                    =
head.bias                      cls_classifier.bias                                      =
head_dist.weight               distillation_classifier.weight                           =
head_dist.bias                 distillation_classifier.bias                             =
"""  # noqa: E501 (a table is read across)


DEIT = Family(
    name="deit",
    model_type=lambda a: "deit",
    table=_TABLE,
    class_name=lambda a: "DeiTForImageClassificationWithTeacher",
    random_in_auto_model="a pooler",
    classes=("DeiTForImageClassificationWithTeacher",),
    config=transformer_config,
    expresses={
        "design": ("VisionTransformerDistilled",),
        "distillation_token": (True,),
        "layer_scale": None,
        "class_position": None,
        "patch_bias": None,
        "qkv_bias": None,
        "proj_bias": None,
    },
    limits=one_norm,
    rewrites=(
        ZERO_PATCH_BIAS,
        ZERO_PROJECTION_BIASES,
        FOLD_LAYER_SCALE,
        PAD_CLASS_POSITION,
    ),
    output_expression=lambda a: "logits",
)
