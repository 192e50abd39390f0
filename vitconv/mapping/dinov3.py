"""DINOv3: rotary positions, register tokens, LayerScale, SwiGLU, no head. ``DINOv3ViTModel``."""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import (
    Family,
    headless_only,
    one_norm,
    pooled_by_the_model,
    rotary_from_config,
    rotary_with_registers,
    sizes,
    width_from_config,
)
from vitconv.mapping.rewrites import UNIT_LAYER_SCALE, ZERO_MASK_TOKEN, ZERO_PATCH_BIAS

_TABLE = """
cls_token                      embeddings.cls_token                =
mask_token                     embeddings.mask_token               =
reg_token                      embeddings.register_tokens          =
patch_embed.proj.weight        embeddings.patch_embeddings.weight  =
patch_embed.proj.bias          embeddings.patch_embeddings.bias    =
blocks.{i}.norm1.weight        layer.{i}.norm1.weight              model.layer.{i}.norm1.weight
blocks.{i}.norm1.bias          layer.{i}.norm1.bias                model.layer.{i}.norm1.bias
blocks.{i}.attn.qkv.weight[q]  layer.{i}.attention.q_proj.weight   model.layer.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k]  layer.{i}.attention.k_proj.weight   model.layer.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v]  layer.{i}.attention.v_proj.weight   model.layer.{i}.attention.v_proj.weight
blocks.{i}.attn.q_bias         layer.{i}.attention.q_proj.bias     model.layer.{i}.attention.q_proj.bias
blocks.{i}.attn.v_bias         layer.{i}.attention.v_proj.bias     model.layer.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight    layer.{i}.attention.o_proj.weight   model.layer.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias      layer.{i}.attention.o_proj.bias     model.layer.{i}.attention.o_proj.bias
blocks.{i}.gamma_1             layer.{i}.layer_scale1.lambda1      model.layer.{i}.layer_scale1.lambda1
blocks.{i}.norm2.weight        layer.{i}.norm2.weight              model.layer.{i}.norm2.weight
blocks.{i}.norm2.bias          layer.{i}.norm2.bias                model.layer.{i}.norm2.bias
blocks.{i}.mlp.fc1.weight      layer.{i}.mlp.up_proj.weight        model.layer.{i}.mlp.up_proj.weight
blocks.{i}.mlp.fc1.bias        layer.{i}.mlp.up_proj.bias          model.layer.{i}.mlp.up_proj.bias
blocks.{i}.mlp.fc1_g.weight    layer.{i}.mlp.gate_proj.weight      model.layer.{i}.mlp.gate_proj.weight
blocks.{i}.mlp.fc1_g.bias      layer.{i}.mlp.gate_proj.bias        model.layer.{i}.mlp.gate_proj.bias
blocks.{i}.mlp.fc1_x.weight    layer.{i}.mlp.up_proj.weight        model.layer.{i}.mlp.up_proj.weight
blocks.{i}.mlp.fc1_x.bias      layer.{i}.mlp.up_proj.bias          model.layer.{i}.mlp.up_proj.bias
blocks.{i}.mlp.fc2.weight      layer.{i}.mlp.down_proj.weight      model.layer.{i}.mlp.down_proj.weight
blocks.{i}.mlp.fc2.bias        layer.{i}.mlp.down_proj.bias        model.layer.{i}.mlp.down_proj.bias
blocks.{i}.gamma_2             layer.{i}.layer_scale2.lambda1      model.layer.{i}.layer_scale2.lambda1
norm.weight                    norm.weight                         =
norm.bias                      norm.bias                           =
"""


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "rope_theta": a.rope_theta,
        "num_register_tokens": a.num_register_tokens,
        "use_gated_mlp": a.mlp == "gated",
        "query_bias": a.qkv_bias,
        "key_bias": False,
        "value_bias": a.qkv_bias,
        "proj_bias": True,
        "mlp_bias": True,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
    }


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    return width_from_config(known, config) | rotary_from_config(known, config)


DINOV3 = Family(
    name="dinov3",
    model_type=lambda a: "dinov3_vit",
    table=_TABLE,
    class_name=lambda a: "DINOv3ViTModel",
    classes=("DINOv3ViTModel",),
    config=_config,
    from_config=_from_config,
    expresses={
        "design": ("Eva",),
        "global_pool": ("token", "avg", ""),
        "num_register_tokens": None,
        "position_embedding": (False,),
        "rope_theta": None,
        "mlp": ("plain", "gated"),
        "layer_scale": None,
        "patch_bias": None,
        "qkv_bias": None,
        "key_bias": (False,),
    },
    limits=lambda a: one_norm(a) + headless_only(a) + rotary_with_registers(a),
    rewrites=(
        ZERO_PATCH_BIAS,
        UNIT_LAYER_SCALE,
        ZERO_MASK_TOKEN,
    ),
    output_expression=pooled_by_the_model,
)
