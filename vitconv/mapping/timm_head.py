"""A vision model of Transformers with timm's head, or its pooling alone: classes that Transformers does not have.

They are in ``vitconv/models/modeling_vitconv.py``, which is written into the folder as it is: Transformers runs it if
the user trusts it (``trust_remote_code=True``). Without that, the folder is the vision model alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vitconv.architecture import Architecture, Shapes
from vitconv.mapping.aimv2 import AIMV2
from vitconv.mapping.clip import CLIP
from vitconv.mapping.dinov3 import DINOV3
from vitconv.mapping.dpt import DPT
from vitconv.mapping.family import Family, Row, is_classifier, num_labels, tokens_only_headless
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
    "attn_pool.latent": "head_pool.latent",
    **{
        f"attn_pool.{layer}.{kind}": f"head_pool.{layer}.{kind}"
        for layer in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    },
    "norm.weight": "head_norm.weight",
    "norm.bias": "head_norm.bias",
    "fc_norm.weight": "head_norm.weight",
    "fc_norm.bias": "head_norm.bias",
    "head.fc.weight": "classifier.weight",
    "head.fc.bias": "classifier.bias",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
#: Where the vision model's output has the pooled features, for the head: by the expression for what timm returns.
_POOLED = {
    "pooler_output": "pooler_output",
    "summary": "summary",
    "last_hidden_state.mean((2, 3))": "mean_2d",
}
#: How the head pools tokens itself, by timm's name for it.
_OF_TOKENS = {"token": "class_token", "avg": "mean", "map": "attention"}
#: All that ``pooling`` in ``timm_head`` may be.
POOLINGS = (*_POOLED.values(), *_OF_TOKENS.values())


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
        if not architecture.classifier and architecture.global_pool == "":
            return ["no head (`head`), and no pooling"]
        return tokens_only_headless(architecture) or self.vision.obstacles(headless(self.vision, architecture))

    def unsupported(self, architecture: Architecture) -> list[str]:
        """The facts that the vision model has no place for."""
        return self.vision.unsupported(headless(self.vision, architecture))

    def rows(self, architecture: Architecture, shapes: Shapes) -> Iterator[Row]:
        """The vision model's rows, within the attribute, and the head's."""
        bare = headless(self.vision, architecture)
        inside = _inside_vision_model(architecture, bare, shapes)
        for row in self.vision.rows(bare, inside):
            hub = row.transformers5 if self.one_dialect else row.hub
            yield replace(row, hub=self._inside(hub), transformers5=self._inside(row.transformers5))
        for timm, name in _HEAD.items():
            if timm in shapes and timm not in inside:
                yield Row(timm, None, 0, name, name)

    def _inside(self, name: str | None) -> str | None:
        return None if name is None else f"{self.attribute}.{name.removeprefix(self.vision.prefix)}"


def headless(vision: Family, architecture: Architecture) -> Architecture:
    """The vision model's part of an architecture: without the head, and where the model does not pool as timm does,
    without the pooling and the norm behind it, or before it where the pooling is attention.
    """
    bare = replace(architecture, num_labels=0)
    if architecture.global_pool == "map" and architecture.fc_norm:
        return bare  # the head has no norm behind its attention
    tokens = replace(bare, global_pool="", fc_norm=False)
    if architecture.global_pool == "map":
        tokens = replace(tokens, final_norm=False)
    return tokens if vision.obstacles(bare) and not vision.obstacles(tokens) else bare


def _inside_vision_model(architecture: Architecture, bare: Architecture, shapes: Shapes) -> Shapes:
    """Of timm's tensors those that the vision model has; what it leaves out is the head's."""
    moved: tuple[str, ...] = ("fc_norm.", "head.")
    if bare.final_norm != architecture.final_norm:
        moved += ("norm.",)
    if bare.global_pool != "map":
        moved += ("attn_pool.",)
    return {name: shape for name, shape in shapes.items() if not name.startswith(moved)}


def _head_settings(vision: Family, architecture: Architecture) -> dict[str, Any]:
    """``timm_head`` in ``config.json``: see ``modeling_vitconv.py``."""
    bare = headless(vision, architecture)
    pooling = _POOLED.get(vision.output_expression(bare)) or _OF_TOKENS[architecture.global_pool]
    has_norm = (architecture.fc_norm and not bare.fc_norm) or (architecture.final_norm and not bare.final_norm)
    settings = {
        "pooling": pooling,
        "first_patch": architecture.num_prefix_tokens if pooling in ("mean", "attention") else 0,
        "num_features": architecture.neck_channels or architecture.hidden_size,
        "norm_eps": architecture.layer_norm_eps if has_norm else None,
    }
    return settings | ({"intermediate_size": architecture.intermediate_size} if pooling == "attention" else {})


def auto_map_of(class_name: str) -> dict[str, str]:
    """The setting by which Transformers finds the class in the folder's file."""
    auto = "AutoModelForImageClassification" if is_classifier(class_name) else "AutoModel"
    return {auto: f"{HEAD_MODULE}.{class_name}"}


def _with_timm_head(
    vision: Family, vision_class: str, attribute: str, *, one_dialect: bool = False
) -> FamilyWithTimmHead:
    """The family of this family's models of this class with timm's head, or its pooling alone."""
    with_head, with_pooling = (
        vision_class.removesuffix("Model") + kind
        for kind in ("WithTimmHeadForImageClassification", "WithTimmPoolingModel")
    )

    def class_name(a: Architecture) -> str:
        return with_head if a.classifier else with_pooling

    def config(a: Architecture) -> dict[str, Any]:
        return {
            **vision.config(headless(vision, a)),
            "auto_map": auto_map_of(class_name(a)),
            "timm_head": _head_settings(vision, a),
        }

    def needed_without_head(rewrite: Rewrite) -> Rewrite:
        return replace(rewrite, needed=lambda a: rewrite.needed(headless(vision, a)))

    same = {one.name: getattr(vision, one.name) for one in fields(Family)}
    same |= {
        "name": f"{vision.name}_{HEAD_CODE}",
        "model_type": lambda a: vision.model_type(headless(vision, a)),
        "class_name": class_name,
        "classes": (with_head, with_pooling),
        "config": config,
        "from_config": lambda known, config: vision.from_config(headless(vision, known), config),
        "rewrites": (*map(needed_without_head, vision.rewrites), ZERO_HEAD_BIAS),
        "output_expression": lambda a: "logits" if a.classifier else "pooler_output",
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
