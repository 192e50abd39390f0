"""Which Transformers class computes what a timm model computes, and what each calls the tensors.

One file a family: a table of names, a configuration, and what the family expresses (:mod:`vitconv.mapping.family`).
A new family is one more file and one more name in ``FAMILIES``: see docs/adding-a-family.md. Nothing imports torch.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from vitconv.architecture import AnyArchitecture, Architecture
from vitconv.errors import ArchitectureError, InputError
from vitconv.mapping.aimv2 import AIMV2
from vitconv.mapping.beit import BEIT
from vitconv.mapping.clip import CLIP
from vitconv.mapping.deit import DEIT
from vitconv.mapping.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from vitconv.mapping.dinov3 import DINOV3
from vitconv.mapping.dpt import DPT
from vitconv.mapping.family import Dialect, Family, Row
from vitconv.mapping.internvl import INTERNVL
from vitconv.mapping.radio import RADIO
from vitconv.mapping.sam import SAM
from vitconv.mapping.sam3 import SAM3
from vitconv.mapping.sapiens2 import SAPIENS2
from vitconv.mapping.siglip import SIGLIP
from vitconv.mapping.timm import timm_shapes
from vitconv.mapping.timm_head import FAMILIES_WITH_TIMM_HEAD, HEAD_CODE
from vitconv.mapping.vit import VIT
from vitconv.mapping.wrapper import WAY_OUT, WRAPPER

__all__ = [
    "CLASSES",
    "FAMILIES",
    "FAMILIES_WITH_TIMM_HEAD",
    "HEADS",
    "HEAD_CODE",
    "LOADED_CLASSES",
    "TARGETS",
    "WRAPPER",
    "Dialect",
    "Family",
    "HeadName",
    "Row",
    "check_any_family",
    "class_name",
    "config",
    "family_for",
    "target_for",
    "timm_shapes",
]

#: In the order of preference, where several express the same model: the plainest first.
FAMILIES = (
    VIT,
    DEIT,
    SIGLIP,
    CLIP,
    DINOV2,
    DINOV2_WITH_REGISTERS,
    BEIT,
    DINOV3,
    AIMV2,
    INTERNVL,
    RADIO,
    SAPIENS2,
    SAM,
    DPT,
    SAM3,
)

#: The classes that vitconv converts to, each with its family.
CLASSES = {name: family for family in (*FAMILIES, *FAMILIES_WITH_TIMM_HEAD) for name in family.classes}
#: The same, and those that run timm's own model.
LOADED_CLASSES = CLASSES | dict.fromkeys(WRAPPER.classes, WRAPPER)
#: What may be asked for by its name.
TARGETS = (*(family.name for family in FAMILIES), HEAD_CODE, WRAPPER.name)


def family_for(architecture: AnyArchitecture, target: str | None = None) -> Family:
    """The family that computes what the architecture computes.

    Args:
        target: Transformers' name of the family to use (``"dinov2"``); by default the first that expresses all.
            ``"timm_wrapper"`` is taken by its name only.

    Raises:
        InputError: there is no such target.
        ArchitectureError: no family expresses the architecture, or not the wanted one; the message names what the
            nearest has no place for.
    """
    wanted = _wanted(target)
    with_code = target is not None and target.endswith(HEAD_CODE)
    if with_code and not architecture.classifier:
        _refuse_needless_code(architecture)  # where Transformers pools as timm does, it is not asked to run code
    for family in wanted:
        if not family.obstacles(architecture):
            return family
    if with_code:
        _refuse_needless_code(architecture)
    if target == HEAD_CODE:
        return family_for(architecture)  # raises: no class computes it, and code for the head changes nothing
    nearest = min(
        wanted, key=lambda family: (len(family.unsupported(architecture)), len(family.obstacles(architecture)))
    )
    listed = "; and ".join(nearest.obstacles(architecture))
    name = nearest.class_name(architecture)
    who = "No Transformers class computes" if target is None else f"{name} does not compute"
    which = f"; the nearest, {name}, has no place for that" if target is None else ""
    raise ArchitectureError(
        f"{who} what this model computes: it has {listed}{which}.", _ways_out(architecture, target)
    )


def _refuse_needless_code(architecture: AnyArchitecture) -> None:
    """Raise :class:`ArchitectureError` where a file of code with the head was asked for, and the model needs none."""
    native = next((family for family in FAMILIES if not family.obstacles(architecture)), None)
    if native is None:
        return
    name = native.class_name(architecture)
    why = (
        f"it becomes {name}, a class of Transformers with its head"
        if architecture.classifier
        else f"it has no classification head (`head`) and becomes {name}"
    )
    raise ArchitectureError(
        f"This model needs no code for a head: {why}.", "Leave out --head code (in Python target='head_code')."
    )


def target_for(target: str | None, head: HeadName) -> str | None:
    """The target for a family, or none, and for where the head is to be."""
    if head == "native":
        return target
    return HEAD_CODE if target is None else f"{target}_{HEAD_CODE}"


HeadName = Literal["native", "code"]
#: Where a head can be: in a class of Transformers, or in a file of code in the folder.
HEADS: tuple[HeadName, ...] = get_args(HeadName)


def check_any_family(architecture: Architecture) -> None:
    """Raise :class:`ArchitectureError` unless some family computes what the architecture computes, by any target."""
    if all(family.obstacles(architecture) for family in FAMILIES_WITH_TIMM_HEAD):
        family_for(architecture)


def _wanted(target: str | None) -> tuple[Family, ...]:
    """The families that a target stands for."""
    if target is None:
        return FAMILIES
    if target == HEAD_CODE:
        return FAMILIES_WITH_TIMM_HEAD
    wanted = tuple(family for family in (*FAMILIES, *FAMILIES_WITH_TIMM_HEAD, WRAPPER) if family.name == target)
    if not wanted:
        raise InputError(f"There is no target '{target}'.", f"Choose one of {', '.join(TARGETS)}.")
    return wanted


def _ways_out(architecture: Any, target: str | None) -> str:
    """What to do with a model that no class of Transformers computes."""
    if target is None and not all(family.obstacles(architecture) for family in FAMILIES_WITH_TIMM_HEAD):
        part, instead = ("head", " Or without its head: --headless.") if architecture.classifier else ("pooling", "")
        return (
            f"Convert it with --head code (in Python target='head_code'): Transformers' vision model, and the {part} "
            f"in a file of code that Transformers runs if it is trusted.{instead}"
        )
    return f"{WAY_OUT} `vitconv models` lists the architectures that convert."


def class_name(architecture: AnyArchitecture, target: str | None = None) -> str:
    """The Transformers class that computes what the architecture computes."""
    return family_for(architecture, target).class_name(architecture)


def config(
    architecture: Architecture, labels: tuple[str, ...] | None = None, target: str | None = None
) -> dict[str, Any]:
    """The contents of ``config.json``: the same facts in Transformers' words. A headless model gets no labels."""
    family = family_for(architecture, target)
    labels = labels or tuple(f"LABEL_{i}" for i in range(architecture.num_labels))
    return {
        "architectures": [family.class_name(architecture)],
        "model_type": family.model_type(architecture),
        **family.config(architecture),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
