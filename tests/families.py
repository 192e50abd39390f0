"""Small checkpoints of the families that vitconv converts to: real timm architectures, two narrow blocks each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
from models import perturbed
from torch import nn

from vitconv.models.timm import read

SMALL = {"img_size": 96, "embed_dim": 48, "depth": 2, "num_heads": 3}

#: One for each family that has a head: family -> (timm name, arguments besides SMALL).
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_distilled_patch16_224", {}),
    "siglip": ("vit_base_patch16_siglip_gap_224", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "dinov2_with_registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "beit": ("beit_base_patch16_224", {}),
    "dpt": ("vit_base_r50_s16_384", {"img_size": 64}),
}
#: The others, which Transformers has without a head only, and a headless one of those above.
HEADLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "siglip from any size": ("naflexvit_base_patch16_siglip", {}),
    "beit": ("vit_srelpos_small_patch16_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "aimv2": ("aimv2_large_patch14_224", {"img_size": 56}),
    "internvl": ("vit_intern300m_patch14_448", {"img_size": 56}),
    "radio": ("vit_base_patch16_radio_v3", {}),
    "sapiens2": ("vit_base_patch16_sapiens2", {"embed_dim": 64, "num_heads": 4, "num_kv_heads": [4, 2]}),
    "sam3": ("vit_pe_lang_gigantic_patch14_448", {"img_size": 56}),
    "sam": ("samvit_base_patch16", {"window_size": 3, "global_attn_indexes": (1,)}),
}


def save_folder(
    folder: Path,
    family: str,
    classes: Sequence[str] = (),
    prepare: Callable[[nn.Module], object] = lambda model: None,
) -> nn.Module:
    """Write a folder as timm saves it for the Hub, whose ``config.json`` says all that there is to say of the model.

    Args:
        folder: to write.
        family: of ``CLASSIFIERS`` if there are classes, else of ``HEADLESS``; of these with a head of code, too.
        classes: their names.
        prepare: changes the model before it is saved.

    Returns:
        the model that was saved.
    """
    name, more = (CLASSIFIERS if classes and family in CLASSIFIERS else HEADLESS)[family]
    arguments = {**SMALL, **more}
    model = perturbed(timm.create_model(name, num_classes=len(classes), **arguments))
    prepare(model)
    labels = {"label_names": list(classes)} if classes else {}
    data = {"input_size": (3, *read(model).image_size)}
    timm.models.save_for_hf(model, folder, labels, model_args=arguments, data_config=data, safe_serialization=True)
    return model
