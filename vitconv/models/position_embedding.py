"""Resample a model's position embedding for another image size, as timm does when it loads weights for one.

This is the one step that changes what a model computes: a model at another size is another model. So a note says
it, and the proof compares with timm's model of that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitconv.architecture import AnyArchitecture
from vitconv.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def resample(tensors: Mapping[str, Tensor], trained: AnyArchitecture, wanted: AnyArchitecture) -> dict[str, Tensor]:
    """The tensors with ``pos_embed``, shape (1, positions, hidden size), resampled from one grid to another.

    timm's own routine: bicubic with antialiasing, the positions before the patches' as they are, computed in float32
    and stored in the tensor's dtype.
    """
    from timm.layers import resample_abs_pos_embed

    if "pos_embed" not in tensors or tensors["pos_embed"].ndim != 3:
        raise InputError(
            f"The positions in the blocks were trained for images of {trained.image_size[0]}x{trained.image_size[1]}, "
            "and are not resampled.",
            "Use that size, or let timm make a checkpoint of the other one.",
        )

    positions = resample_abs_pos_embed(
        tensors["pos_embed"],
        new_size=list(wanted.grid),
        old_size=list(trained.grid),
        num_prefix_tokens=trained.num_positions - math.prod(trained.grid),
    )
    return {**tensors, "pos_embed": positions.to(tensors["pos_embed"].dtype)}


def describe(trained: AnyArchitecture, wanted: AnyArchitecture) -> str:
    """What :func:`resample` does, in a sentence."""
    rows, columns = trained.grid
    return (
        f"`pos_embed` was resampled from {rows}x{columns} to {wanted.grid[0]}x{wanted.grid[1]} patches, for images of "
        f"{wanted.image_size[0]}x{wanted.image_size[1]} instead of {trained.image_size[0]}x{trained.image_size[1]}: "
        "the model computes what timm computes at that size, not what it was trained at."
    )
