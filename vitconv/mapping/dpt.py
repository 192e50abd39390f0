"""DPT: a ResNet in front of the patch convolution, as in the first paper's hybrids. ``DPTModel``.

Transformers' DPT estimates depth; the model below its head is a Vision Transformer, and with ``is_hybrid`` one behind
BiT's ResNet. Its pooler, a linear layer on the class token, is timm's head.
"""

from __future__ import annotations

from typing import Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, one_norm, sizes, square, tokens_only_headless
from vitconv.mapping.rewrites import (
    FOLD_LAYER_SCALE,
    IDENTITY_POOLER,
    NORM_BEFORE_POOL,
    PAD_CLASS_POSITION,
    ZERO_HEAD_BIAS,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
)

_RESNET = "\n".join(
    f"patch_embed.backbone.{timm} embeddings.backbone.bit.{name} ="
    for timm, name in [
        *((f"stem.conv.{kind}", f"embedder.convolution.{kind}") for kind in ("weight",)),
        *((f"stem.norm.{kind}", f"embedder.norm.{kind}") for kind in ("weight", "bias")),
        *(
            (f"stages.{{s}}.blocks.{{j}}.{layer}.{kind}", f"encoder.stages.{{s}}.layers.{{j}}.{layer}.{kind}")
            for layer in ("downsample.conv", "downsample.norm", "conv1", "norm1", "conv2", "norm2", "conv3", "norm3")
            for kind in ("weight", "bias")
        ),
    ]
)

_TABLE = f"""
cls_token                        embeddings.cls_token                               =
pos_embed                        embeddings.position_embeddings                     =
{_RESNET}
patch_embed.proj.weight          embeddings.projection.weight                       =
patch_embed.proj.bias            embeddings.projection.bias                         =
blocks.{{i}}.norm1.weight        encoder.layer.{{i}}.layernorm_before.weight        =
blocks.{{i}}.norm1.bias          encoder.layer.{{i}}.layernorm_before.bias          =
blocks.{{i}}.attn.qkv.weight[q]  encoder.layer.{{i}}.attention.attention.query.weight  =
blocks.{{i}}.attn.qkv.weight[k]  encoder.layer.{{i}}.attention.attention.key.weight    =
blocks.{{i}}.attn.qkv.weight[v]  encoder.layer.{{i}}.attention.attention.value.weight  =
blocks.{{i}}.attn.qkv.bias[q]    encoder.layer.{{i}}.attention.attention.query.bias    =
blocks.{{i}}.attn.qkv.bias[k]    encoder.layer.{{i}}.attention.attention.key.bias      =
blocks.{{i}}.attn.qkv.bias[v]    encoder.layer.{{i}}.attention.attention.value.bias    =
blocks.{{i}}.attn.proj.weight    encoder.layer.{{i}}.attention.output.dense.weight  =
blocks.{{i}}.attn.proj.bias      encoder.layer.{{i}}.attention.output.dense.bias    =
blocks.{{i}}.norm2.weight        encoder.layer.{{i}}.layernorm_after.weight         =
blocks.{{i}}.norm2.bias          encoder.layer.{{i}}.layernorm_after.bias           =
blocks.{{i}}.mlp.fc1.weight      encoder.layer.{{i}}.intermediate.dense.weight      =
blocks.{{i}}.mlp.fc1.bias        encoder.layer.{{i}}.intermediate.dense.bias        =
blocks.{{i}}.mlp.fc2.weight      encoder.layer.{{i}}.output.dense.weight            =
blocks.{{i}}.mlp.fc2.bias        encoder.layer.{{i}}.output.dense.bias              =
norm.weight                      layernorm.weight                                   =
norm.bias                        layernorm.bias                                     =
head.weight                      pooler.dense.weight                                =
head.bias                        pooler.dense.bias                                  =
pooler.weight                    pooler.dense.weight                                =
pooler.bias                      pooler.dense.bias                                  =
"""


#: What is the same in all of timm's hybrids.
_BIT: dict[str, Any] = {
    "model_type": "bit",
    "embedding_size": 64,
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "global_padding": "SAME",
    "num_groups": 32,
    "embedding_dynamic_padding": True,
    "output_stride": 32,
    "width_factor": 1,
}


def _config(a: Architecture) -> dict[str, Any]:
    widths = [256 * 2**stage for stage in range(len(a.stem_depths))]
    names = [f"stage{stage}" for stage, _ in enumerate(widths, 1)]
    return {
        **sizes(a),
        "intermediate_size": a.intermediate_size,
        "layer_norm_eps": a.layer_norm_eps,
        "qkv_bias": a.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pooler_output_size": a.num_labels or a.hidden_size,
        "pooler_act": "linear",
        "is_hybrid": True,
        "backbone_featmap_shape": [1, widths[-1], *a.grid],
        "backbone_config": {
            **_BIT,
            "num_channels": a.num_channels,
            "hidden_sizes": widths,
            "depths": list(a.stem_depths),
            "drop_path_rate": 0.0,
            "out_features": names[-3:],  # of which the patch convolution sees the last; the class asks for three
        },
    }


def _limits(a: Architecture) -> list[str]:
    found = [*one_norm(a), *square(a), *tokens_only_headless(a)]
    if len(a.stem_depths) not in (3, 4):
        found.append("no ResNet of three or four stages before the patches (`patch_embed.backbone`)")
    if any(side % a.patch_size[0] for side in a.image_size):
        size = "x".join(map(str, a.image_size))
        found.append(f"an image size that is no multiple of the patches' ({size}, patches of {a.patch_size[0]})")
    return found


def _num_labels(class_name: str, config: Any) -> int:
    """The pooler is the head of a model that was converted from a timm classifier: it has an output for each label."""
    return config.num_labels if config.num_labels == config.pooler_output_size else 0


def _resnet(value: Any) -> dict[str, Any]:
    """What decides of a ResNet's configuration, as an object or as it is written."""
    written = value if isinstance(value, dict) else value.to_dict() if value else {}
    found = {name: written.get(name) for name in (*_BIT, "num_channels", "depths")}
    found["hidden_sizes"] = list(written.get("hidden_sizes") or ())[: len(found["depths"] or ())]  # Bit ignores others
    return found | {"out_features": list(written.get("out_features") or ())[-1:]}


DPT = Family(
    name="dpt",
    model_type=lambda a: "dpt",
    table=_TABLE,
    class_name=lambda a: "DPTModel",
    classes=("DPTModel",),
    config=_config,
    expresses={
        "stem_depths": None,
        "global_pool": ("token", ""),
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
    rewrites=(
        ZERO_PATCH_BIAS,
        ZERO_PROJECTION_BIASES,
        ZERO_HEAD_BIAS,
        FOLD_LAYER_SCALE,
        PAD_CLASS_POSITION,
        NORM_BEFORE_POOL,
        IDENTITY_POOLER,
    ),
    output_expression=lambda a: "last_hidden_state" if a.global_pool == "" else "pooler_output",
    logits="pooler_output",
    num_labels=_num_labels,
    widths=("pooler_output_size",),
    decisive={"backbone_config": _resnet, "backbone_featmap_shape": lambda shape: list(shape or ())},
    droppable={},
)
