"""A vision model of Transformers with timm's head: classifiers of a class that Transformers does not have.

The class is in ``vitconv/models/modeling_vitconv.py``, which is written into the folder as it is: Transformers runs it
if the user trusts it (``trust_remote_code=True``). Without that, the folder is the vision model alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vitconv.architecture import Architecture, Shapes
from vitconv.mapping.aimv2 import AIMV2
from vitconv.mapping.clip import CLIP
from vitconv.mapping.dinov3 import DINOV3
from vitconv.mapping.dpt import DPT
from vitconv.mapping.family import Family, Row, num_labels
from vitconv.mapping.internvl import INTERNVL
from vitconv.mapping.radio import RADIO
from vitconv.mapping.rewrites import ZERO_HEAD_BIAS, Rewrite
from vitconv.mapping.sam import SAM
from vitconv.mapping.sam3 import SAM3
from vitconv.mapping.sapiens2 import SAPIENS2
from vitconv.mapping.siglip import SIGLIP

#: The module of the head, in the folder and in ``vitconv.models``.
HEAD_MODULE = "modeling_vitconv"
#: The target that stands for all of these families.
HEAD_CODE = "head_code"

_HEAD = {
    "fc_norm.weight": "head_norm.weight",
    "fc_norm.bias": "head_norm.bias",
    "head.fc.weight": "classifier.weight",
    "head.fc.bias": "classifier.bias",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
#: What the head reads, by the expression for what timm returns without a head.
_POOLING = {
    "pooler_output": "pooler_output",
    "summary": "summary",
    "last_hidden_state[:, 0]": "class_token",
    "last_hidden_state.mean(1)": "mean",
    "features.mean(1)": "mean",
    "last_hidden_state.mean((2, 3))": "mean_2d",
}


@dataclass(frozen=True)
class FamilyWithTimmHead(Family):
    """A family whose models are those of another one, the vision models, and a head.

    Attributes:
        vision: the family of the vision models.
        attribute: what the class calls the vision model, its ``base_model_prefix``.
        one_dialect: whether the names in files are those in memory: where Transformers renames the tensors of a vision
            model only if nothing stands before their names.
    """

    vision: Family = field(kw_only=True)
    attribute: str = field(kw_only=True)
    one_dialect: bool = field(kw_only=True, default=False)

    @property
    def tag(self) -> str:
        """What the Hub calls the vision models."""
        return self.vision.name

    def obstacles(self, architecture: Architecture) -> list[str]:
        """What the vision model does not express of the architecture without its head."""
        if not architecture.classifier:
            return ["no classification head (`head`)"]
        return self.vision.obstacles(headless(self.vision, architecture))

    def unsupported(self, architecture: Architecture) -> list[str]:
        """The facts that the vision model has no place for."""
        return self.vision.unsupported(headless(self.vision, architecture))

    def rows(self, architecture: Architecture, shapes: Shapes) -> Iterator[Row]:
        """The vision model's rows, within the attribute, and the head's."""
        inside = {name: shape for name, shape in shapes.items() if name not in _HEAD}
        for row in self.vision.rows(headless(self.vision, architecture), inside):
            hub = row.transformers5 if self.one_dialect else row.hub
            yield replace(row, hub=self._inside(hub), transformers5=self._inside(row.transformers5))
        for timm, name in _HEAD.items():
            if timm in shapes:
                yield Row(timm, None, 0, name, name)

    def _inside(self, name: str | None) -> str | None:
        return None if name is None else f"{self.attribute}.{name.removeprefix(self.vision.prefix)}"


def headless(vision: Family, architecture: Architecture) -> Architecture:
    """The vision model's part of an architecture: without the head, and where the model does not pool as timm does,
    without the pooling and the norm behind it.
    """
    bare = replace(architecture, num_labels=0)
    tokens = replace(bare, global_pool="", fc_norm=False)
    return tokens if vision.obstacles(bare) and not vision.obstacles(tokens) else bare


def _head_settings(vision: Family, architecture: Architecture) -> dict[str, Any]:
    """``timm_head`` in ``config.json``: see ``modeling_vitconv.py``."""
    bare = headless(vision, architecture)
    expression = vision.output_expression(bare)
    first = 0
    pooled = not (architecture.global_pool and not bare.global_pool)
    if not pooled:
        pooling = "class_token" if architecture.global_pool == "token" else "mean"
        first = architecture.num_prefix_tokens if pooling == "mean" else 0
    elif match := re.fullmatch(r"last_hidden_state\[:, (\d+):\]\.mean\(1\)", expression):
        pooling, first = "mean", int(match[1])
    else:
        pooling = _POOLING[expression]
        first = architecture.num_prefix_tokens if expression == "features.mean(1)" else 0
    return {
        "pooling": pooling,
        "first_patch": first,
        "num_features": architecture.neck_channels or architecture.hidden_size,
        "norm_eps": architecture.layer_norm_eps if architecture.fc_norm and not pooled else None,
    }


def auto_map_of(class_name: str) -> dict[str, str]:
    """The setting by which Transformers finds the class in the folder's file."""
    return {"AutoModelForImageClassification": f"{HEAD_MODULE}.{class_name}"}


def _with_timm_head(
    vision: Family, vision_class: str, attribute: str, *, one_dialect: bool = False
) -> FamilyWithTimmHead:
    """The family of this family's models of this class with timm's head."""
    name = f"{vision_class.removesuffix('Model')}WithTimmHeadForImageClassification"

    def config(a: Architecture) -> dict[str, Any]:
        return {
            **vision.config(headless(vision, a)),
            "auto_map": auto_map_of(name),
            "timm_head": _head_settings(vision, a),
        }

    def needed_without_head(rewrite: Rewrite) -> Rewrite:
        return replace(rewrite, needed=lambda a: rewrite.needed(headless(vision, a)))

    same = {one.name: getattr(vision, one.name) for one in fields(Family)}
    same |= {
        "name": f"{vision.name}_{HEAD_CODE}",
        "model_type": lambda a: vision.model_type(headless(vision, a)),
        "class_name": lambda a: name,
        "classes": (name,),
        "config": config,
        "from_config": lambda known, config: vision.from_config(headless(vision, known), config),
        "rewrites": (*map(needed_without_head, vision.rewrites), ZERO_HEAD_BIAS),
        "output_expression": lambda a: "logits",
        "placeholders": lambda a: vision.placeholders(headless(vision, a)),
        "logits": "logits",
        "code_module": HEAD_MODULE,
        "num_labels": num_labels,
        "base_classes": (),
        "random_in_auto_model": "",
    }
    return FamilyWithTimmHead(**same, vision=vision, attribute=attribute, one_dialect=one_dialect)


#: Not BEiT and DINOv2: they have a classifier of their own in Transformers, which ``AutoModelForImageClassification``
#: would fill with random weights where it is not told to trust the folder.
FAMILIES_WITH_TIMM_HEAD = (
    _with_timm_head(SIGLIP, "SiglipVisionModel", "vision_model"),
    _with_timm_head(CLIP, "CLIPVisionModel", "clip"),
    _with_timm_head(DINOV3, "DINOv3ViTModel", "model"),
    _with_timm_head(AIMV2, "Aimv2VisionModel", "aimv2"),
    _with_timm_head(INTERNVL, "InternVLVisionModel", "internvl_vision"),
    _with_timm_head(RADIO, "RadioModel", "model"),
    _with_timm_head(SAPIENS2, "Sapiens2Model", "model", one_dialect=True),
    _with_timm_head(SAM, "SamVisionModel", "sam"),
    _with_timm_head(DPT, "DPTModel", "dpt"),
    _with_timm_head(SAM3, "Sam3ViTModel", "sam3"),
)
