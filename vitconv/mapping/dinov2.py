"""DINOv2: LayerScale, SwiGLU, register tokens, a head on class token and patches. ``Dinov2…[WithRegisters]…``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitconv.architecture import Architecture
from vitconv.mapping.family import Family, one_norm, pooled_by_the_model, sizes, square, tokens_only_headless
from vitconv.mapping.rewrites import (
    ABSORB_PREFIX_POSITIONS,
    HEAD_OF_TWO_HALVES,
    NORM_BEFORE_POOL,
    PAD_CLASS_POSITION,
    PAD_MLP,
    REGISTER_AS_CLASS_TOKEN,
    UNIT_LAYER_SCALE,
    ZERO_HEAD_BIAS,
    ZERO_MASK_TOKEN,
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
    dinov2_mlp_ratio,
    dinov2_width,
)

if TYPE_CHECKING:
    from torch import Tensor

_TABLE = """
cls_token                        dinov2.embeddings.cls_token                                =
mask_token[0]                    dinov2.embeddings.mask_token                               =
reg_token                        dinov2.embeddings.register_tokens                          =
pos_embed                        dinov2.embeddings.position_embeddings                      =
patch_embed.proj.weight          dinov2.embeddings.patch_embeddings.projection.weight       =
patch_embed.proj.bias            dinov2.embeddings.patch_embeddings.projection.bias         =
blocks.{i}.norm1.weight          dinov2.encoder.layer.{i}.norm1.weight                      =
blocks.{i}.norm1.bias            dinov2.encoder.layer.{i}.norm1.bias                        =
blocks.{i}.attn.qkv.weight[q]    dinov2.encoder.layer.{i}.attention.attention.query.weight  dinov2.encoder.layer.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k]    dinov2.encoder.layer.{i}.attention.attention.key.weight    dinov2.encoder.layer.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v]    dinov2.encoder.layer.{i}.attention.attention.value.weight  dinov2.encoder.layer.{i}.attention.v_proj.weight
blocks.{i}.attn.qkv.bias[q]      dinov2.encoder.layer.{i}.attention.attention.query.bias    dinov2.encoder.layer.{i}.attention.q_proj.bias
blocks.{i}.attn.qkv.bias[k]      dinov2.encoder.layer.{i}.attention.attention.key.bias      dinov2.encoder.layer.{i}.attention.k_proj.bias
blocks.{i}.attn.qkv.bias[v]      dinov2.encoder.layer.{i}.attention.attention.value.bias    dinov2.encoder.layer.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight      dinov2.encoder.layer.{i}.attention.output.dense.weight     dinov2.encoder.layer.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias        dinov2.encoder.layer.{i}.attention.output.dense.bias       dinov2.encoder.layer.{i}.attention.o_proj.bias
blocks.{i}.ls1.gamma             dinov2.encoder.layer.{i}.layer_scale1.lambda1              =
blocks.{i}.norm2.weight          dinov2.encoder.layer.{i}.norm2.weight                      =
blocks.{i}.norm2.bias            dinov2.encoder.layer.{i}.norm2.bias                        =
blocks.{i}.mlp.fc1.weight        dinov2.encoder.layer.{i}.mlp.fc1.weight                    =                                                 plain_mlp
blocks.{i}.mlp.fc1.bias          dinov2.encoder.layer.{i}.mlp.fc1.bias                      =                                                 plain_mlp
blocks.{i}.mlp.fc2.weight        dinov2.encoder.layer.{i}.mlp.fc2.weight                    =                                                 plain_mlp
blocks.{i}.mlp.fc2.bias          dinov2.encoder.layer.{i}.mlp.fc2.bias                      =                                                 plain_mlp
blocks.{i}.mlp.fc1.weight        dinov2.encoder.layer.{i}.mlp.weights_in.weight             -                                                 packed_mlp
blocks.{i}.mlp.fc1.weight[gate]  -                                                          dinov2.encoder.layer.{i}.mlp.gate_proj.weight     packed_mlp
blocks.{i}.mlp.fc1.weight[up]    -                                                          dinov2.encoder.layer.{i}.mlp.up_proj.weight       packed_mlp
blocks.{i}.mlp.fc1.bias          dinov2.encoder.layer.{i}.mlp.weights_in.bias               -                                                 packed_mlp
blocks.{i}.mlp.fc1.bias[gate]    -                                                          dinov2.encoder.layer.{i}.mlp.gate_proj.bias       packed_mlp
blocks.{i}.mlp.fc1.bias[up]      -                                                          dinov2.encoder.layer.{i}.mlp.up_proj.bias         packed_mlp
blocks.{i}.mlp.fc2.weight        dinov2.encoder.layer.{i}.mlp.weights_out.weight            dinov2.encoder.layer.{i}.mlp.down_proj.weight     packed_mlp
blocks.{i}.mlp.fc2.bias          dinov2.encoder.layer.{i}.mlp.weights_out.bias              dinov2.encoder.layer.{i}.mlp.down_proj.bias       packed_mlp
blocks.{i}.ls2.gamma             dinov2.encoder.layer.{i}.layer_scale2.lambda1              =
norm.weight                      dinov2.layernorm.weight                                    =
norm.bias                        dinov2.layernorm.bias                                      =
head.weight                      classifier.weight                                          =
head.bias                        classifier.bias                                            =
"""  # noqa: E501 (a table is read across)


def _config(a: Architecture) -> dict[str, Any]:
    return {
        **sizes(a),
        "mlp_ratio": dinov2_mlp_ratio(a),
        "use_swiglu_ffn": a.mlp != "plain",
        "layer_norm_eps": a.layer_norm_eps,
        "qkv_bias": a.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }


def _limits(a: Architecture) -> list[str]:
    # Transformers resamples the positions of any other image, as if they were a square's.
    found = one_norm(a) + tokens_only_headless(a) + square(a)
    if a.fc_norm and a.global_pool != "token":
        found.append("a norm after mean pooling (`fc_norm`)")
    return found


def _from_config(known: Architecture, config: Any) -> dict[str, Any]:
    if not config.use_swiglu_ffn and not isinstance(config.mlp_ratio, int):
        return {"intermediate_size": int(config.hidden_size * config.mlp_ratio)}
    mlp = "packed" if config.use_swiglu_ffn else "plain"
    width = dinov2_width(replace(known, hidden_size=config.hidden_size, mlp=mlp), config.mlp_ratio)
    # timm's own width may have been padded.
    return {"intermediate_size": known.intermediate_size if known.hidden_size == config.hidden_size else width}


def _from_config_with_registers(known: Architecture, config: Any) -> dict[str, Any]:
    registers = config.num_register_tokens + (not known.class_token)
    return {**_from_config(known, config), "num_register_tokens": registers}


def _hidden_act(config: Any) -> str:
    """DINOv2's SwiGLU computes SiLU, whatever the setting ``hidden_act`` says."""
    return "silu" if config.use_swiglu_ffn else config.hidden_act


def _without_class_position(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Add the class token's position to the token, for timm's models with registers, which have none; and a note.

    It is the sum that Transformers makes first of all, of the same operands: exact to the bit in this dtype.
    """
    result = dict(tensors)
    positions = next((name for name in tensors if name.endswith("embeddings.position_embeddings")), None)
    token = next((name for name in tensors if name.endswith("embeddings.cls_token")), None)
    if positions is None or token is None or not tensors[positions][:, :1].any():
        return result, []
    with_zero = tensors[positions].detach().clone()
    result[token] = tensors[token].detach() + with_zero[:, :1]
    with_zero[:, :1] = 0
    result[positions] = with_zero
    return result, ["The class token's position was added to `cls_token`, as timm's model has no place for it."]


def _registers(a: Architecture) -> int:
    """Registers that are left when one of them is the class token, if there is no other."""
    return a.num_register_tokens - (not a.class_token)


_EXPRESSES = {
    "class_token": None,
    "global_pool": ("token", "avg", ""),
    "mlp": ("plain", "packed"),
    "layer_scale": None,
    "class_position": None,
    "final_norm": None,
    "fc_norm": None,
    "patch_bias": None,
    "qkv_bias": None,
    "proj_bias": None,
    "head_bias": None,
}
_REWRITES = (
    ZERO_PATCH_BIAS,
    ZERO_PROJECTION_BIASES,
    ZERO_HEAD_BIAS,
    UNIT_LAYER_SCALE,
    ABSORB_PREFIX_POSITIONS,
    REGISTER_AS_CLASS_TOKEN,
    PAD_CLASS_POSITION,
    NORM_BEFORE_POOL,
    PAD_MLP,
    HEAD_OF_TWO_HALVES,
)


def _output_expression(a: Architecture) -> str:
    return "logits" if a.classifier else pooled_by_the_model(a)


DINOV2 = Family(
    name="dinov2",
    model_type=lambda a: "dinov2",
    table=_TABLE,
    base_classes=("Dinov2Model",),
    prefix="dinov2.",
    class_name=lambda a: "Dinov2ForImageClassification" if a.classifier else "Dinov2Model",
    classes=("Dinov2ForImageClassification", "Dinov2Model"),
    config=lambda a: {**_config(a), "use_mask_token": False},
    from_config=_from_config,
    hidden_act=_hidden_act,
    expresses=_EXPRESSES | {"num_register_tokens": (0, 1)},
    limits=lambda a: _limits(a) + ([] if _registers(a) == 0 else ["not exactly one token before the patches"]),
    rewrites=_REWRITES,
    output_expression=_output_expression,
)

DINOV2_WITH_REGISTERS = Family(
    name="dinov2_with_registers",
    model_type=lambda a: "dinov2_with_registers",
    table=_TABLE.replace("dinov2.", "dinov2_with_registers."),
    base_classes=("Dinov2WithRegistersModel",),
    prefix="dinov2_with_registers.",
    class_name=lambda a: "Dinov2WithRegistersForImageClassification" if a.classifier else "Dinov2WithRegistersModel",
    classes=("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel"),
    config=lambda a: {**_config(a), "num_register_tokens": _registers(a)},
    from_config=_from_config_with_registers,
    hidden_act=_hidden_act,
    before_revert=_without_class_position,
    expresses=_EXPRESSES | {"num_register_tokens": None},
    limits=lambda a: _limits(a) + ([] if _registers(a) > 0 else ["no register tokens besides the class token"]),
    rewrites=(*_REWRITES, ZERO_MASK_TOKEN),
    output_expression=_output_expression,
)
