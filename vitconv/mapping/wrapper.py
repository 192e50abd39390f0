"""timm inside Transformers: the target for models that no class of Transformers computes, by that name only.

``TimmWrapperForImageClassification``, or without a head ``TimmWrapperModel``, builds timm's own model and runs it. So
it computes what any timm model computes, and has nothing of what a native class has. It is never chosen where it was
not asked for: it is not in :data:`vitconv.mapping.FAMILIES`, but :func:`vitconv.mapping.family_for` knows its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from vitconv.architecture import AnyArchitecture, Shapes
from vitconv.mapping.family import Family, Row

#: What a user should know before taking it.
_PRICE = "timm inside Transformers (needs timm; no native attention maps or backends, no q_proj for PEFT)"
#: What to do with a model that no class of Transformers computes.
WAY_OUT = f"Keep this model in timm, or take --target timm_wrapper: {_PRICE}."
#: What is said of every model that is converted so.
WARNING = f"This is {_PRICE}."


class _Wrapper(Family):
    """Every tensor keeps timm's name in files; in memory, the wrapper's modules have a prefix."""

    def obstacles(self, architecture: Any) -> list[str]:
        """None: it runs timm's own model."""
        return []

    def rows(self, architecture: Any, shapes: Shapes) -> Iterator[Row]:
        """A row for each tensor, whatever it is."""
        for name in shapes:
            yield Row(timm=name, part=None, dropped=0, hub=name, transformers5=f"timm_model.{name}")


def _class_name(a: AnyArchitecture) -> str:
    return "TimmWrapperForImageClassification" if a.classifier else "TimmWrapperModel"


def _vision_config(config: Any) -> SimpleNamespace:
    """The sizes, which the wrapper's configuration has where timm has them."""
    channels, *image_size = config.pretrained_cfg["input_size"]
    return SimpleNamespace(num_channels=channels, image_size=image_size)


WRAPPER = _Wrapper(
    name="timm_wrapper",
    model_type=lambda a: "timm_wrapper",
    table="",
    class_name=_class_name,
    classes=("TimmWrapperForImageClassification", "TimmWrapperModel"),
    config=lambda a: {
        "architecture": a.name,
        "num_classes": a.num_labels,
        "num_features": a.num_features,
        "model_args": dict(a.model_args),
    },
    expresses={},
    limits=lambda a: [],
    rewrites=(),
    output_expression=lambda a: "logits" if a.classifier else "pooler_output",
    vision_config=_vision_config,
    droppable={},
)
