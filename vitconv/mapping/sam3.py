"""SAM 3's backbone: Perception Encoder's rotary positions, a norm before the blocks, none after. ``Sam3ViTModel``.

It has no class token: of Perception Encoder's language and spatial models, the giant ones become this.
"""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, headless_only, sizes, square, width_from_config
from vitconv.mapping.rewrites import FOLD_LAYER_SCALE, ZERO_QKV_BIAS

_TABLE = """
pos_embed                      embeddings.position_embeddings                 =
patch_embed.proj.weight        embeddings.patch_embeddings.projection.weight  =
norm_pre.weight                layer_norm.weight                              =
norm_pre.bias                  layer_norm.bias                                =
blocks.{i}.norm1.weight        layers.{i}.layer_norm1.weight                  =
blocks.{i}.norm1.bias          layers.{i}.layer_norm1.bias                    =
blocks.{i}.attn.qkv.weight[q]  layers.{i}.attention.q_proj.weight             =
blocks.{i}.attn.qkv.weight[k]  layers.{i}.attention.k_proj.weight             =
blocks.{i}.attn.qkv.weight[v]  layers.{i}.attention.v_proj.weight             =
blocks.{i}.attn.qkv.bias[q]    layers.{i}.attention.q_proj.bias               =
blocks.{i}.attn.qkv.bias[k]    layers.{i}.attention.k_proj.bias               =
blocks.{i}.attn.qkv.bias[v]    layers.{i}.attention.v_proj.bias               =
blocks.{i}.attn.proj.weight    layers.{i}.attention.o_proj.weight             =
blocks.{i}.attn.proj.bias      layers.{i}.attention.o_proj.bias               =
blocks.{i}.norm2.weight        layers.{i}.layer_norm2.weight                  =
blocks.{i}.norm2.bias          layers.{i}.layer_norm2.bias                    =
blocks.{i}.mlp.fc1.weight      layers.{i}.mlp.fc1.weight                      =
blocks.{i}.mlp.fc1.bias        layers.{i}.mlp.fc1.bias                        =
blocks.{i}.mlp.fc2.weight      layers.{i}.mlp.fc2.weight                      =
blocks.{i}.mlp.fc2.bias        layers.{i}.mlp.fc2.bias                        =
"""


def _config(a: Architecture) -> dict[str, Any]:
    """Every block attends to everything; then the size of the windows only says what the positions are scaled to."""
    return {
        **sizes(a),
        "pretrain_image_size": a.image_size[0],
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "window_size": a.rope_grid,
        "global_attn_indexes": list(range(a.num_hidden_layers)),
        "rope_parameters": {"rope_type": "axial", "rope_theta": a.rope_theta},
        "layer_scale_init_value": None,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    found = width_from_config(known, config)
    if known.rope_grid:
        found |= {"rope_theta": config.rope_parameters["rope_theta"], "rope_grid": config.window_size}
    # A LayerScale that was folded comes back as ones: no argument of timm's leaves it out.
    return found | {"layer_scale": known.layer_scale}


def _limits(a: Architecture) -> list[str]:
    found = square(a) + headless_only(a)
    return found if a.rope_grid else [*found, "no rotary positions as Perception Encoder's (`rope`)"]


SAM3 = Family(
    name="sam3",
    model_type=lambda a: "sam3_vit_model",
    table=_TABLE,
    class_name=lambda a: "Sam3ViTModel",
    classes=("Sam3ViTModel",),
    config=_config,
    from_config=_from_config,
    counts=("window_size",),
    expresses={
        "design": ("Eva",),
        "class_token": (False,),
        "global_pool": ("avg", ""),
        "rope_theta": None,
        "rope_grid": None,
        "pre_norm": (True,),
        "layer_scale": None,
        "final_norm": (False,),
        "patch_bias": (False,),
        "qkv_bias": None,
    },
    limits=_limits,
    rewrites=(FOLD_LAYER_SCALE, ZERO_QKV_BIAS),
    output_expression=lambda a: "last_hidden_state.mean(1)" if a.global_pool else "last_hidden_state",
)
