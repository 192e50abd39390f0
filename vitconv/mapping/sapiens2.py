"""Sapiens2: RMS norms, also of queries and keys, grouped queries, LayerScale on attention. ``Sapiens2Model``."""

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
from vitconv.mapping.rewrites import ZERO_PATCH_BIAS

_TABLE = """
cls_token                        cls_token                      embeddings.cls_token
reg_token                        storage_tokens                 embeddings.register_tokens
patch_embed.proj.weight          patch_embed.projection.weight  embeddings.patch_embeddings.weight
patch_embed.proj.bias            patch_embed.projection.bias    embeddings.patch_embeddings.bias
blocks.{i}.norm1.weight          blocks.{i}.ln1.weight          model.layer.{i}.norm1.weight
blocks.{i}.attn.q_proj.weight    blocks.{i}.attn.wq.weight      model.layer.{i}.attention.q_proj.weight
blocks.{i}.attn.q_proj.bias      blocks.{i}.attn.wq.bias        model.layer.{i}.attention.q_proj.bias
blocks.{i}.attn.k_proj.weight    blocks.{i}.attn.wk.weight      model.layer.{i}.attention.k_proj.weight
blocks.{i}.attn.k_proj.bias      blocks.{i}.attn.wk.bias        model.layer.{i}.attention.k_proj.bias
blocks.{i}.attn.v_proj.weight    blocks.{i}.attn.wv.weight      model.layer.{i}.attention.v_proj.weight
blocks.{i}.attn.v_proj.bias      blocks.{i}.attn.wv.bias        model.layer.{i}.attention.v_proj.bias
blocks.{i}.attn.q_norm.weight    blocks.{i}.attn.q_norm.weight  model.layer.{i}.attention.q_norm.weight
blocks.{i}.attn.k_norm.weight    blocks.{i}.attn.k_norm.weight  model.layer.{i}.attention.k_norm.weight
blocks.{i}.attn.proj.weight      blocks.{i}.attn.proj.weight    model.layer.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias        blocks.{i}.attn.proj.bias      model.layer.{i}.attention.o_proj.bias
blocks.{i}.gamma_1               blocks.{i}.attn.gamma.weight   model.layer.{i}.layer_scale1.lambda1
blocks.{i}.norm2.weight          blocks.{i}.ln2.weight          model.layer.{i}.norm2.weight
blocks.{i}.mlp.fc1.weight        blocks.{i}.ffn.w12.weight      -
blocks.{i}.mlp.fc1.weight[gate]  -                              model.layer.{i}.mlp.gate_proj.weight
blocks.{i}.mlp.fc1.weight[up]    -                              model.layer.{i}.mlp.up_proj.weight
blocks.{i}.mlp.fc1.bias          blocks.{i}.ffn.w12.bias        -
blocks.{i}.mlp.fc1.bias[gate]    -                              model.layer.{i}.mlp.gate_proj.bias
blocks.{i}.mlp.fc1.bias[up]      -                              model.layer.{i}.mlp.up_proj.bias
blocks.{i}.mlp.fc2.weight        blocks.{i}.ffn.w3.weight       model.layer.{i}.mlp.down_proj.weight
blocks.{i}.mlp.fc2.bias          blocks.{i}.ffn.w3.bias         model.layer.{i}.mlp.down_proj.bias
norm.weight                      ln1.weight                     norm.weight
"""


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "num_key_value_heads_per_layer": list(a.num_key_value_heads) or [a.num_attention_heads] * a.num_hidden_layers,
        "intermediate_size": a.intermediate_size,
        "rms_norm_eps": a.layer_norm_eps,
        "rope_theta": a.rope_theta,
        "num_register_tokens": a.num_register_tokens,
        "use_gated_mlp": True,
        "use_qk_norm": True,
        "use_mask_token": False,
        "query_bias": a.qkv_bias,
        "key_bias": a.qkv_bias and a.key_bias,
        "value_bias": a.qkv_bias,
        "proj_bias": True,
        "mlp_bias": True,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
    }


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    heads = tuple(config.num_key_value_heads_per_layer)
    return {
        **width_from_config(known, config),
        **rotary_from_config(known, config),
        "num_key_value_heads": heads if set(heads) != {config.num_attention_heads} else (),
    }


SAPIENS2 = Family(
    name="sapiens2",
    model_type=lambda a: "sapiens2",
    table=_TABLE,
    class_name=lambda a: "Sapiens2Model",
    classes=("Sapiens2Model",),
    config=_config,
    from_config=_from_config,
    epsilon="rms_norm_eps",
    expresses={
        "design": ("Eva",),
        "global_pool": ("token", "avg", ""),
        "num_register_tokens": None,
        "position_embedding": (False,),
        "rope_theta": None,
        "qk_norm": (True,),
        "split_qkv": (True,),
        "num_key_value_heads": None,
        "rms_norm": (True,),
        "mlp": ("packed",),
        "layer_scale": (True,),
        "layer_scale_on_mlp": (False,),
        "patch_bias": None,
        "qkv_bias": None,
        "key_bias": None,
    },
    limits=lambda a: one_norm(a) + headless_only(a) + rotary_with_registers(a),
    rewrites=(ZERO_PATCH_BIAS,),
    output_expression=pooled_by_the_model,
)
