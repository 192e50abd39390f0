"""What a recipe is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from vitconv.inference.images import ImageList
    from vitconv.inference.pixels import Preprocessor

#: One recorded sample of an export. Its batch is not 1, which an exporter would take for a constant.
SAMPLE = 2
#: The largest batch that an exported model takes.
MOST_BATCH = 4096
#: Sets with which bfloat16 is faster than float32. With `avx512_bf16` alone it took 1.3 to 1.8 times as long.
FAST_BFLOAT16 = ("amx_bf16", "bf16")
#: Sets of which a processor needs one to add products of int8 in 32 bits. In 16 bits, pairs of them can overflow.
VNNI = ("avx512_vnni", "avx_vnni", "dot")
#: What happens without them.
OVERFLOW = "sums of int8 products would overflow"
#: The set with which OpenVINO computes in bfloat16. With AVX-512 only, it emulates bfloat16: an image took a
#: ViT-B/16-384 28 s instead of 0.63. With neither, it computes in float32 (OpenVINO 2026.4).
BFLOAT16 = ("avx512_bf16",)


@dataclass(frozen=True)
class Calibration:
    """Images whose activations set the ranges of int8 numbers. They never judge the result.

    It can be iterated over more than once, and holds one image in memory at a time.

    Attributes:
        images: which they are.
        preprocessor: the model's own; other pixels would set other ranges.
    """

    images: ImageList
    preprocessor: Preprocessor

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield each image as the model's input, float32 of shape (1, channels, height, width)."""
        import torch

        for path in self.images.slice(range(len(self.images))):
            pixels = self.preprocessor(self.images.folder / path)
            yield {"pixel_values": torch.from_numpy(pixels)[None]}


@dataclass(frozen=True)
class Written:
    """What a recipe has written into a folder.

    Attributes:
        file: the model's file, relative to the folder.
        settings: what else decides the numbers, for the runtime.
        others: further files that decide the numbers, relative to the folder.
        instructions: the processor's instruction sets that it was made for, besides the recipe's.
    """

    file: str
    settings: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()


Write = Callable[["PreTrainedModel", Path, "Calibration | None"], Written]


@dataclass(frozen=True)
class Recipe:
    """A way to make a model faster.

    Attributes:
        name: as people type it.
        summary: what it does, in a line.
        runtime: what runs the folder: a name in :data:`vitconv.inference.RUNTIMES`, or ``"transformers"``.
        write: writes the model into a folder. The model is in float32 and in evaluation mode, and may be changed.
        packages: the modules that it needs besides vitconv's own.
        extra: the extra of pyproject.toml that installs them; empty if none does.
        device: the only kind of device that runs the result; empty for any.
        exact: whether it computes in float32, so that only the order of its sums differs.
        calibrates: whether it needs images for the ranges of its integers.
        careful: for a model that :attr:`write` makes too inexact: a slower way, whose result is less fast.
        instructions: sets of which a processor needs one.
        without: what would happen without them.
        fast_with: sets of which a processor needs one to be fast; without, the result is right, but may be slow.
        bound: whether the result is made for the processor that is here, and runs on no lesser one.
        code: whether the result is a program, which runs when it is loaded: see :mod:`vitconv.inference.trusted`.
    """

    name: str
    summary: str
    runtime: str
    write: Write
    packages: tuple[str, ...] = ()
    extra: str = ""
    device: str = "cpu"
    exact: bool = False
    calibrates: bool = False
    careful: Write | None = None
    instructions: tuple[str, ...] = ()
    without: str = ""
    fast_with: tuple[str, ...] = ()
    bound: bool = False
    code: bool = False


def sample(model: PreTrainedModel) -> dict[str, Any]:
    """Inputs to export a model with: :data:`SAMPLE` images of its size, float32 of any value."""
    import torch

    from vitconv.mapping import LOADED_CLASSES

    vision = LOADED_CLASSES[type(model).__name__].vision_config(model.config)
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(SAMPLE, vision.num_channels, height, width, generator=generator)}


def any_batch() -> dict[str, Any]:
    """The shapes of an export: of any batch, and otherwise as in the sample."""
    import torch

    return {"pixel_values": {0: torch.export.Dim("batch", min=1, max=MOST_BATCH)}}


def first(names: Iterable[str], available: Iterable[str]) -> str:
    """The first name that is available; empty if there is none."""
    available = set(available)
    return next((name for name in names if name in available), "")
