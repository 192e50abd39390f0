"""Recognise checkpoints that are something else, to refuse them by name and say what would help.

Most of this module only decides the wording of a refusal. The exception is :func:`added_parts`: it finds weights that
would have to be merged into others, and must not be left out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TIMM = "Pass the state dict of a timm Vision Transformer."
_MERGE = "Merge the adapter into the model first (PEFT: `model.merge_and_unload()`), and save the merged weights."
_BEFORE = "Pass the checkpoint as it was before it was quantised."

#: What is added to a model's own tensors: (a name's pattern, what it is, what to do).
_ADDED: tuple[tuple[str, str, str], ...] = (
    (
        r"\blora_|\blora\.|\bloha_|\blokr_|\bada_?lora|\bdora_|\bia3_|\badapter(s|_|\.)",
        "a LoRA or PEFT adapter",
        _MERGE,
    ),
    (
        r"\.(absmax|quant_map|quant_state\.|SCB|weight_format|qweight|qzeros|g_idx|_packed_params|zero_point|"
        r"weight_scale|input_scale|weight_quantizer)",
        "a quantised checkpoint",
        _BEFORE,
    ),
)

#: Whole models: (a name's pattern, what it is, what to do).
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (
        r"(embeddings\.patch_embeddings\.projection\.|embeddings\.patch_embedding\.)",
        "already a Transformers model",
        "Load it with `from_pretrained`; vitconv converts timm's weights.",
    ),
    (
        r"conv_proj\.|encoder\.layers\.encoder_layer_[0-9]+\.",
        "torchvision's VisionTransformer",
        "Its names are not timm's: rename them first, and verify the timm model against torchvision's.",
    ),
    (
        r"decoder_blocks\.[0-9]+\.|decoder_embed\.",
        "a masked autoencoder with its decoder (MAE pretraining)",
        "Save the encoder alone: leave out `mask_token` and all names that begin with `decoder_`.",
    ),
    (r"transformer\.resblocks\.[0-9]+\.", "a CLIP model with OpenAI's names", _TIMM),
    (r"\bconv1\.weight$|\blayer[1-4]\.[0-9]+\.(conv|bn)[1-3]\.", "a ResNet", _TIMM),
    (r"relative_position_bias_table$", "a Swin Transformer or a ViT with relative positions", _TIMM),
    (r"stages\.[0-9]+\.(blocks\.)?[0-9]+\.(conv_dw|dwconv|gamma)", "a ConvNeXt", _TIMM),
    (r"conv_stem\.weight", "an EfficientNet or MobileNet", _TIMM),
    (r"mlp_tokens\.", "an MLP-Mixer", _TIMM),
    (r"features\.[0-9]+\.[0-9.]*weight", "a convolutional network from torchvision", _TIMM),
    (r"stages\.[0-9]+\.", "a network in stages, not a Vision Transformer", _TIMM),
)


def added_parts(names: Iterable[str]) -> tuple[str, str, str] | None:
    """An adapter's or a quantisation's tensor among the names: (the name, what it is, what to do)."""
    return _first(_ADDED, list(names))


def family(names: Iterable[str]) -> tuple[str, str, str] | None:
    """What other model the names belong to: (a telling name, what it is, what to do)."""
    return _first(_FAMILIES, list(names))


def _first(table: tuple[tuple[str, str, str], ...], names: list[str]) -> tuple[str, str, str] | None:
    for pattern, what, remedy in table:
        for name in names:
            if re.search(pattern, name):
                return name, what, remedy
    return None
