"""An architecture and its rewrites in a few words, for the command line and for notebooks."""

from __future__ import annotations

from collections.abc import Iterable

from vitconv import mapping
from vitconv.architecture import AnyArchitecture, WrappedArchitecture
from vitconv.errors import count_classes
from vitconv.mapping.plan import collapse
from vitconv.mapping.rewrites import Made


def summarise_architecture(a: AnyArchitecture, target: str | None) -> str:
    """The Transformers class and the sizes, on one line.

    >>> from vitconv.models.catalogue import entries
    >>> summarise_architecture(entries()["vit_tiny_patch16_224"].architecture, None)[:49]
    'ViTForImageClassification, width 192, 12 blocks, '
    """
    head = count_classes(a.num_labels) if a.classifier else "no head"
    if isinstance(a, WrappedArchitecture):
        size = "{}x{}".format(*a.image_size)
        return f"{mapping.class_name(a, target)}, timm's {a.name}, image {size}, {a.num_channels} channels, {head}"
    return (
        f"{mapping.class_name(a, target)}, width {a.hidden_size}, {a.num_hidden_layers} blocks, "
        f"{a.num_attention_heads} heads, patch {a.patch_size[0]}x{a.patch_size[1]}, "
        f"image {a.image_size[0]}x{a.image_size[1]}, "
        f"{a.num_channels} channels, {head}, {a.hidden_act}, eps {a.layer_norm_eps:g}"
    )


def rewritten(made: Iterable[Made]) -> list[dict[str, str]]:
    """The same as plain data, for JSON."""
    return [{"tensors": names, "how": how} for names, how in summarise_rewrites(made)]


def summarise_rewrites(made: Iterable[Made]) -> list[tuple[str, str]]:
    """The names of the tensors that were made, with those of all blocks as one, and how they were made."""
    by_how: dict[str, list[str]] = {}
    for tensor in made:
        by_how.setdefault(tensor.description, []).append(tensor.tensor)
    return [(", ".join(collapse(names)), how) for how, names in by_how.items()]
