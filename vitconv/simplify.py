"""Rewrites from timm to timm that change no function, so that what is left has a place in Transformers.

Each rewrite takes a state dict and an architecture and returns new ones, for a timm model that computes the
same from every input; the input is left as it is, and tensors that a rewrite does not touch are passed on
without a copy. In exact arithmetic the two models are equal; in floating point LayerScale rounds once per
weight, and every other rewrite is exact to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vitconv.architecture import Architecture

if TYPE_CHECKING:
    from torch import Tensor

StateDict = dict[str, "Tensor"]


@dataclass(frozen=True)
class Made:
    """A tensor that is not simply moved: what it was made from, and how.

    Attributes:
        tensor: its name in timm.
        sources: the source tensors that went into it; empty for a constant.
        how: the rewrite, in a few words for people.
    """

    tensor: str
    sources: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Simplified:
    """A state dict and its architecture after the rewrites, and the tensors that the rewrites made."""

    state_dict: StateDict
    architecture: Architecture
    made: tuple[Made, ...] = ()


def is_simple(architecture: Architecture) -> bool:
    """Whether no rewrite is needed: every tensor is only moved."""
    return not any(needed(architecture) for needed, _ in _REWRITES)


def simplify(state_dict: StateDict, architecture: Architecture) -> Simplified:
    """Apply every rewrite that the architecture needs."""
    result = Simplified(dict(state_dict), architecture)
    for needed, rewrite in _REWRITES:
        if needed(result.architecture):
            result = rewrite(result)
    return result


def fold_layer_scale(model: Simplified) -> Simplified:
    r"""Fold LayerScale into the linear layer before it.

    A branch computes :math:`\gamma \odot (Wx + b) = (\operatorname{diag}(\gamma) W) x + \gamma \odot b`, so
    row :math:`i` of the weight and entry :math:`i` of the bias are multiplied by :math:`\gamma_i`
    (LayerScale: Touvron et al., https://arxiv.org/abs/2103.17239).
    """
    tensors, made = dict(model.state_dict), []
    for block in range(model.architecture.num_hidden_layers):
        for scale, linear in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma_name = f"blocks.{block}.{scale}.gamma"
            gamma = tensors.pop(gamma_name)
            for name in (f"blocks.{block}.{linear}.weight", f"blocks.{block}.{linear}.bias"):
                if name in tensors:
                    tensor = tensors[name]
                    tensors[name] = gamma.reshape(-1, *[1] * (tensor.ndim - 1)) * tensor
                    made.append(Made(name, (name, gamma_name), "LayerScale folded in"))
    return Simplified(tensors, replace(model.architecture, layer_scale=False), (*model.made, *made))


def pad_class_position(model: Simplified) -> Simplified:
    """Give the class token a position of zeros, where timm adds positions to the patches alone."""
    import torch

    tensors = dict(model.state_dict)
    positions = tensors["pos_embed"]
    zero = positions.new_zeros(1, 1, positions.shape[2])
    tensors["pos_embed"] = torch.cat([zero, positions], dim=1)
    made = Made("pos_embed", ("pos_embed",), "a zero row for the class token in front")
    return Simplified(tensors, replace(model.architecture, class_position=True), (*model.made, made))


def zero_patch_bias(model: Simplified) -> Simplified:
    """A patch convolution without bias is one with a bias of zeros."""
    return _with_zero_biases(model, ["patch_embed.proj"], "patch_bias")


def zero_projection_biases(model: Simplified) -> Simplified:
    """Linear layers without bias are linear layers with a bias of zeros."""
    layers = [
        f"blocks.{block}.{linear}"
        for block in range(model.architecture.num_hidden_layers)
        for linear in ("attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    return _with_zero_biases(model, layers, "proj_bias")


def zero_head_bias(model: Simplified) -> Simplified:
    """A classification head without bias is one with a bias of zeros."""
    return _with_zero_biases(model, ["head"], "head_bias")


def norm_before_pool(model: Simplified) -> Simplified:
    """Norm every token and take the class token, instead of taking it first: a LayerNorm sees one token at a time."""
    tensors, made = dict(model.state_dict), []
    for kind in ("weight", "bias"):
        tensors[f"norm.{kind}"] = tensors.pop(f"fc_norm.{kind}")
        made.append(Made(f"norm.{kind}", (f"fc_norm.{kind}",), "moved from after the pooling to before it"))
    return Simplified(tensors, replace(model.architecture, fc_norm=False), (*model.made, *made))


def identity_head(model: Simplified) -> Simplified:
    """A headless model is one whose head multiplies by the identity matrix: exact, as x·1 + 0 is x.

    Transformers' ``ViTModel`` has a pooler, a linear layer on the class token, and initialises it at random
    when a file lacks it. With this identity in its place, ``AutoModel`` returns timm's features as
    ``pooler_output``.
    """
    import torch

    tensors, size = dict(model.state_dict), model.architecture.hidden_size
    like = {"dtype": tensors["cls_token"].dtype, "device": tensors["cls_token"].device}
    tensors["head.weight"] = torch.eye(size, **like)
    tensors["head.bias"] = torch.zeros(size, **like)
    made = [Made(f"head.{kind}", (), "the identity, for the pooler") for kind in ("weight", "bias")]
    return Simplified(tensors, replace(model.architecture, pooler=True), (*model.made, *made))


_REWRITES: tuple[tuple[Callable[[Architecture], bool], Callable[[Simplified], Simplified]], ...] = (
    (lambda a: not a.patch_bias, zero_patch_bias),
    (lambda a: not a.proj_bias, zero_projection_biases),
    (lambda a: a.classifier and not a.head_bias, zero_head_bias),
    (lambda a: a.layer_scale, fold_layer_scale),
    (lambda a: not a.class_position, pad_class_position),
    (lambda a: a.fc_norm, norm_before_pool),
    (lambda a: not a.classifier and not a.pooler, identity_head),
)


def _with_zero_biases(model: Simplified, layers: list[str], flag: str) -> Simplified:
    tensors, made = dict(model.state_dict), []
    for layer in layers:
        weight = tensors[f"{layer}.weight"]
        tensors[f"{layer}.bias"] = weight.new_zeros(weight.shape[0])
        made.append(Made(f"{layer}.bias", (), "zeros, where timm has no bias"))
    return Simplified(tensors, replace(model.architecture, **{flag: True}), (*model.made, *made))
