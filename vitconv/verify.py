"""Prove a converted folder against the timm model it was made from.

The proof has two halves, because logits cannot see everything (softmax cancels a wrong key bias):

* the bookkeeping: every tensor in the file, read back, and every parameter that Transformers loads, equals bit
  for bit what the plan moves or a rewrite makes of the source;
* the numbers: the timm model and its twin compute the same, stage by stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.architecture import Architecture
from vitconv.checkpoint import WEIGHTS_FILE, read_state_dict
from vitconv.errors import ParityError, first_few
from vitconv.huggingface import build_model, installed_dialect, load_folder
from vitconv.parity import Parity, compare
from vitconv.plan import convert_tensors
from vitconv.preprocess import PROCESSOR_FILE, DataConfig, crop_shift, huggingface_pixels, makes_pixels, timm_pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        parity: how close the numbers came.
        same_pixels: whether the written image processor makes timm's pixels from the image, bit for bit;
            ``None`` if the folder has no processor.
    """

    parity: Parity
    same_pixels: bool | None


def verify_folder(
    folder: Path,
    state_dict: Mapping[str, Tensor],
    timm_model: nn.Module,
    architecture: Architecture,
    data: DataConfig,
    image: Image,
    say: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Prove ``folder``, or raise :class:`~vitconv.errors.ParityError` naming what differs.

    Args:
        folder: the Transformers folder.
        state_dict: the source, in timm's names.
        timm_model: timm's own model of the architecture; it takes the source's weights.
        architecture: what the weights were converted as.
        data: how timm prepares the image.
        image: any picture.
        say: called with a few words at the beginning of each step.
    """
    import torch

    say("Reading the folder back")
    written = read_state_dict(folder / WEIGHTS_FILE)
    dtypes = {tensor.dtype for tensor in written.values()}
    stored = dtypes.pop() if len(dtypes) == 1 else None
    check_bytes(convert_tensors(state_dict, architecture, "hub", stored), written)
    model = load_folder(folder)
    dialect = installed_dialect()
    check_bytes(convert_tensors(state_dict, architecture, dialect, stored), model.state_dict())
    pixels, same_pixels = _pixels(folder, data, image)

    say("Comparing the models in float64")
    timm_model.load_state_dict(dict(state_dict), strict=True, assign=True)
    in_float64 = {name: tensor.double() for name, tensor in state_dict.items()}
    exact = build_model(model.config, convert_tensors(in_float64, architecture, dialect))
    comparisons = compare(timm_model, exact, pixels, dtypes=("float64",)).comparisons
    del exact, in_float64

    # In 16 bits a folded or cast weight is rounded by far more than float32 computes with: there the bytes and
    # the float64 twin are the proof.
    if stored in (torch.float32, torch.float64) and all(t.dtype == stored for t in state_dict.values()):
        say("Comparing the models in float32")
        comparisons += compare(timm_model, model, pixels, dtypes=("float32",)).comparisons
    parity = Parity(comparisons)
    parity.assert_match()
    return Verification(parity, same_pixels)


def check_bytes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise :class:`~vitconv.errors.ParityError` unless both hold the same tensors, bit for bit."""
    differing = [
        name
        for name in {**expected, **found}
        if name not in expected or name not in found or not _same_bits(expected[name], found[name])
    ]
    if differing:
        raise ParityError(
            f"{len(differing)} tensors are not what the source makes of them: {first_few(differing)}.",
            "Check the disk and convert again; if it stays, report the architecture and this message.",
        )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in dtype, shape and every bit: NaN equals itself, and -0 differs from 0."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))


def _pixels(folder: Path, data: DataConfig, image: Image) -> tuple[Tensor, bool | None]:
    """The model's input, shape (1, channels, height, width), as timm makes it; and whether the folder makes it too."""
    import torch

    if not makes_pixels(data):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, data.num_channels, *data.image_size, generator=generator), None
    pixels = timm_pixels(image, data)[None]
    if not (folder / PROCESSOR_FILE).exists():
        return pixels, None
    same = torch.equal(pixels, huggingface_pixels(image, folder, data))
    if not same and crop_shift((image.height, image.width), data) == (0, 0):
        raise ParityError(
            f"The image processor in `{PROCESSOR_FILE}` does not make the pixels that timm's transform makes.",
            "Report the architecture and the image's size and mode.",
        )
    return pixels, same
