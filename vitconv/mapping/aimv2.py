"""AIMv2: RMS norms, one of them on the patches, SwiGLU without biases, no class token. ``Aimv2VisionModel``.

Its pooling head (``use_head``) could be given weights that compute a mean and a linear head. It is not used for that:
its output is as wide as the model, so that logits would be padded, under ``pooler_output``, and without labels.
"""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, headless_only, sizes, square
from vitconv.mapping.rewrites import ZERO_PATCH_BIAS

_TABLE = """
pos_embed[0]                   embeddings.position_embedding.weight          =
patch_embed.proj.weight        embeddings.patch_embed.weight                 =
patch_embed.proj.bias          embeddings.patch_embed.bias                   =
patch_embed.norm.weight        embeddings.rms_norm.weight                    =
blocks.{i}.norm1.weight        encoder.layers.{i}.rms_norm1.weight           =
blocks.{i}.attn.qkv.weight[q]  encoder.layers.{i}.attention.q_proj.weight    =
blocks.{i}.attn.qkv.weight[k]  encoder.layers.{i}.attention.k_proj.weight    =
blocks.{i}.attn.qkv.weight[v]  encoder.layers.{i}.attention.v_proj.weight    =
blocks.{i}.attn.qkv.bias[q]    encoder.layers.{i}.attention.q_proj.bias      =
blocks.{i}.attn.qkv.bias[k]    encoder.layers.{i}.attention.k_proj.bias      =
blocks.{i}.attn.qkv.bias[v]    encoder.layers.{i}.attention.v_proj.bias      =
blocks.{i}.attn.proj.weight    encoder.layers.{i}.attention.out_proj.weight  =
blocks.{i}.attn.proj.bias      encoder.layers.{i}.attention.out_proj.bias    =
blocks.{i}.norm2.weight        encoder.layers.{i}.rms_norm2.weight           =
blocks.{i}.mlp.fc1_g.weight    encoder.layers.{i}.ffn.gate_proj.weight       =
blocks.{i}.mlp.fc1_g.bias      encoder.layers.{i}.ffn.gate_proj.bias         =
blocks.{i}.mlp.fc1_x.weight    encoder.layers.{i}.ffn.up_proj.weight         =
blocks.{i}.mlp.fc1_x.bias      encoder.layers.{i}.ffn.up_proj.bias           =
blocks.{i}.mlp.fc2.weight      encoder.layers.{i}.ffn.down_proj.weight       =
blocks.{i}.mlp.fc2.bias        encoder.layers.{i}.ffn.down_proj.bias         =
norm.weight                    rms_norm.weight                               =
"""


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "intermediate_size": a.intermediate_size,
        "rms_norm_eps": a.layer_norm_eps,
        "qkv_bias": a.qkv_bias,
        "mlp_bias": a.proj_bias,
        "attention_dropout": 0.0,
        "is_native": False,
        "use_head": False,
    }


def _limits(a: Architecture) -> list[str]:
    found = square(a) + headless_only(a)
    if a.qkv_bias != a.proj_bias:
        found.append("a bias in one of `blocks.0.attn.qkv` and `blocks.0.attn.proj` only")
    return found


AIMV2 = Family(
    name="aimv2",
    model_type=lambda a: "aimv2_vision_model",
    table=_TABLE,
    class_name=lambda a: "Aimv2VisionModel",
    classes=("Aimv2VisionModel",),
    config=_config,
    expresses={
        "class_token": (False,),
        "global_pool": ("avg", ""),
        "patch_norm": (True,),
        "rms_norm": (True,),
        "mlp": ("gated",),
        "patch_bias": None,
        "qkv_bias": None,
        "proj_bias": None,
    },
    limits=_limits,
    epsilon="rms_norm_eps",
    rewrites=(ZERO_PATCH_BIAS,),
    output_expression=lambda a: "last_hidden_state.mean(1)" if a.global_pool else "last_hidden_state",
)
