"""The table of names: what timm, the Hub and Transformers call each tensor of a Vision Transformer.

One row a tensor, one column a dialect. ``{i}`` is the block's number. ``[q]``, ``[k]`` and ``[v]`` are the
first, second and third part of the rows. A row counts only where the flag of :class:`~vitconv.architecture.
Architecture` in its column ``when`` is true. The shapes, before any slicing into parts:

====  =======================  ====  =====================  ====  ================================
D     hidden size              F     MLP width              T     positions (rows of `pos_embed`)
C     channels of the image    P Q   patch height, width    K     classes
====  =======================  ====  =====================  ====  ================================

The column ``hub`` is the layout of files: what every Transformers reads and what 5.x still writes. The column
``transformers5`` is what 5.x calls the parameters in memory; in 4.x they are called as in files. A dash means
that the tensor has no place there: :mod:`vitconv.simplify` works it into others first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vitconv.architecture import Architecture

Dialect = Literal["timm", "hub", "transformers5"]

_VIT = """
timm                          shape    when            hub                                                      transformers5
cls_token                     1,1,D    -               vit.embeddings.cls_token                                 vit.embeddings.cls_token
pos_embed                     1,T,D    -               vit.embeddings.position_embeddings                       vit.embeddings.position_embeddings
patch_embed.proj.weight       D,C,P,Q  -               vit.embeddings.patch_embeddings.projection.weight        vit.embeddings.patch_embeddings.projection.weight
patch_embed.proj.bias         D        patch_bias      vit.embeddings.patch_embeddings.projection.bias          vit.embeddings.patch_embeddings.projection.bias
blocks.{i}.norm1.weight       D        -               vit.encoder.layer.{i}.layernorm_before.weight            vit.layers.{i}.layernorm_before.weight
blocks.{i}.norm1.bias         D        -               vit.encoder.layer.{i}.layernorm_before.bias              vit.layers.{i}.layernorm_before.bias
blocks.{i}.attn.qkv.weight[q] 3D,D     -               vit.encoder.layer.{i}.attention.attention.query.weight   vit.layers.{i}.attention.q_proj.weight
blocks.{i}.attn.qkv.weight[k] 3D,D     -               vit.encoder.layer.{i}.attention.attention.key.weight     vit.layers.{i}.attention.k_proj.weight
blocks.{i}.attn.qkv.weight[v] 3D,D     -               vit.encoder.layer.{i}.attention.attention.value.weight   vit.layers.{i}.attention.v_proj.weight
blocks.{i}.attn.qkv.bias[q]   3D       qkv_bias        vit.encoder.layer.{i}.attention.attention.query.bias     vit.layers.{i}.attention.q_proj.bias
blocks.{i}.attn.qkv.bias[k]   3D       qkv_bias        vit.encoder.layer.{i}.attention.attention.key.bias       vit.layers.{i}.attention.k_proj.bias
blocks.{i}.attn.qkv.bias[v]   3D       qkv_bias        vit.encoder.layer.{i}.attention.attention.value.bias     vit.layers.{i}.attention.v_proj.bias
blocks.{i}.attn.proj.weight   D,D      -               vit.encoder.layer.{i}.attention.output.dense.weight      vit.layers.{i}.attention.o_proj.weight
blocks.{i}.attn.proj.bias     D        proj_bias       vit.encoder.layer.{i}.attention.output.dense.bias        vit.layers.{i}.attention.o_proj.bias
blocks.{i}.ls1.gamma          D        layer_scale     -                                                        -
blocks.{i}.norm2.weight       D        -               vit.encoder.layer.{i}.layernorm_after.weight             vit.layers.{i}.layernorm_after.weight
blocks.{i}.norm2.bias         D        -               vit.encoder.layer.{i}.layernorm_after.bias               vit.layers.{i}.layernorm_after.bias
blocks.{i}.mlp.fc1.weight     F,D      -               vit.encoder.layer.{i}.intermediate.dense.weight          vit.layers.{i}.mlp.fc1.weight
blocks.{i}.mlp.fc1.bias       F        proj_bias       vit.encoder.layer.{i}.intermediate.dense.bias            vit.layers.{i}.mlp.fc1.bias
blocks.{i}.mlp.fc2.weight     D,F      -               vit.encoder.layer.{i}.output.dense.weight                vit.layers.{i}.mlp.fc2.weight
blocks.{i}.mlp.fc2.bias       D        proj_bias       vit.encoder.layer.{i}.output.dense.bias                  vit.layers.{i}.mlp.fc2.bias
blocks.{i}.ls2.gamma          D        layer_scale     -                                                        -
norm.weight                   D        final_norm      vit.layernorm.weight                                     vit.layernorm.weight
norm.bias                     D        final_norm      vit.layernorm.bias                                       vit.layernorm.bias
fc_norm.weight                D        fc_norm         -                                                        -
fc_norm.bias                  D        fc_norm         -                                                        -
head.weight                   K,D      classifier      classifier.weight                                        classifier.weight
head.bias                     K        classifier_bias classifier.bias                                          classifier.bias
head.weight                   D,D      pooler          vit.pooler.dense.weight                                  vit.pooler.dense.weight
head.bias                     D        pooler          vit.pooler.dense.bias                                    vit.pooler.dense.bias
"""  # noqa: E501 (a table is read across)


@dataclass(frozen=True)
class Row:
    """One line of the table for one block: a timm tensor, or a third of one, and its other names.

    Attributes:
        timm: timm's name of the whole tensor.
        part: which of its three parts goes here (0: query, 1: key, 2: value); ``None`` for all of it.
        shape: the shape of timm's whole tensor.
        hub, transformers5: the names elsewhere; ``None`` where the tensor has no place.
    """

    timm: str
    part: int | None
    shape: tuple[int, ...]
    hub: str | None
    transformers5: str | None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of what goes to the other dialects."""
        return self.shape if self.part is None else (self.shape[0] // 3, *self.shape[1:])


def rows(architecture: Architecture) -> Iterator[Row]:
    """The table written out for one architecture: every tensor it has, block by block."""
    lines = [_Line(*line.split()) for line in _VIT.strip().splitlines()[1:]]
    lines = [line for line in lines if line.when == "-" or getattr(architecture, line.when)]
    in_blocks = [line for line in lines if "{i}" in line.timm]
    first = lines.index(in_blocks[0])
    for line in lines[:first]:
        yield line.row(architecture)
    for block in range(architecture.num_hidden_layers):
        for line in in_blocks:
            yield line.row(architecture, block)
    for line in lines[first:]:
        if line not in in_blocks:
            yield line.row(architecture)


@dataclass(frozen=True)
class _Line:
    timm: str
    shape: str
    when: str
    hub: str
    transformers5: str

    def row(self, architecture: Architecture, block: int = 0) -> Row:
        name, part = re.fullmatch(r"([^\[]+)(?:\[([qkv])\])?", self.timm).groups()  # type: ignore[union-attr]

        def there(text: str) -> str | None:
            return None if text == "-" else _prefixed(text.replace("{i}", str(block)), architecture)

        return Row(
            timm=name.replace("{i}", str(block)),
            part=None if part is None else "qkv".index(part),
            shape=_shape(self.shape, architecture),
            hub=there(self.hub),
            transformers5=there(self.transformers5),
        )


def _prefixed(name: str, architecture: Architecture) -> str:
    """Without a classifier the model is a bare ``ViTModel``, whose names lack the prefix ``vit.``."""
    return name if architecture.classifier else name.removeprefix("vit.")


def _shape(text: str, architecture: Architecture) -> tuple[int, ...]:
    sizes = {
        "D": architecture.hidden_size,
        "3D": 3 * architecture.hidden_size,
        "F": architecture.intermediate_size,
        "C": architecture.num_channels,
        "P": architecture.patch_size[0],
        "Q": architecture.patch_size[1],
        "T": architecture.num_positions,
        "K": architecture.num_labels,
        "1": 1,
    }
    return tuple(sizes[letter] for letter in text.split(","))


def timm_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of timm's state dict, in the table's order."""
    return {row.timm: row.shape for row in rows(architecture)}


#: The Transformers classes that the table is for.
CLASSES = frozenset({"ViTForImageClassification", "ViTModel"})


def class_name(architecture: Architecture) -> str:
    """The Transformers class that computes what the architecture computes."""
    return "ViTForImageClassification" if architecture.classifier else "ViTModel"


def config(architecture: Architecture, labels: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The contents of ``config.json``: the same facts in Transformers' words.

    A headless model gets no labels and a linear pooler, so that ``AutoModel`` returns timm's features as
    ``pooler_output``.
    """
    labels = labels or tuple(f"LABEL_{i}" for i in range(architecture.num_labels))
    return {
        "architectures": [class_name(architecture)],
        "model_type": "vit",
        "image_size": _one_or_two(architecture.image_size),
        "patch_size": _one_or_two(architecture.patch_size),
        "num_channels": architecture.num_channels,
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": architecture.num_attention_heads,
        "intermediate_size": architecture.intermediate_size,
        "hidden_act": architecture.hidden_act,
        "layer_norm_eps": architecture.layer_norm_eps,
        "qkv_bias": architecture.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    } | ({} if architecture.classifier else {"pooler_act": "linear"})


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
