"""The images of a calibration: which of them do what, and the odd ones that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitconv.models.images import convert_colors, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

#: What a third of the images does each: the first fits the temperature and the odd scores, the second sets the limits,
#: the third judges.
FIT, SET, JUDGE = range(3)
PARTS = 3
#: A class with fewer images would have less than two that fit, one that sets and one that judges.
FEWEST_OF_A_CLASS = 4


def deal(labels: NDArray[np.int64], digests: Sequence[str]) -> NDArray[np.int64]:
    """Deal the images of each class in turn to the three parts: by their contents, so always in the same way.

    Args:
        labels: the indices of the classes, (images,).
        digests: the SHA-256 of each image's file, all different.

    Returns:
        :data:`FIT`, :data:`SET` or :data:`JUDGE` for each image.
    """
    parts = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = sorted(np.flatnonzero(labels == label).tolist(), key=lambda image: digests[image])
        parts[own] = np.arange(len(own)) % PARTS
    return parts


def write_odd_images(files: Sequence[Path], digests: Sequence[str], folder: Path, shape: tuple[int, int, int]) -> None:
    """Make an odd image of each of these, and write it: blurred, under noise and zoomed into, in turn.

    Args:
        files: images that can be read.
        digests: the SHA-256 of each, which seeds its chance.
        folder: it is made; the images have the numbers of the files as names, in this order.
        shape: (channels, height, width) of the model's input. Much larger images are made smaller first.
    """
    folder.mkdir(parents=True)
    for number, (file, digest) in enumerate(zip(files, digests, strict=True)):
        image = _reduce(convert_colors(load_image(file), 3), max(shape[1:]))
        made = KINDS[number % len(KINDS)](image, np.random.default_rng(int(digest[:16], 16)))
        made.save(folder / f"{number:08}.png", compress_level=1)


def _reduce(image: Image, side: int) -> Image:
    """The image, with a shorter side of 4 to 8 times the model's if it is longer: the model sees no more of it.

    Noise in the full size of a photo would make a file of a hundred megabytes, of which the model sees little.
    """
    factor = min(image.size) // (4 * side)
    return image.reduce(factor) if factor > 1 else image


def blur(image: Image, rng: np.random.Generator) -> Image:
    """The image so blurred that only its colours are left: by a sixteenth of its shorter side."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 16))


def add_noise(image: Image, rng: np.random.Generator) -> Image:
    """The image under noise as strong as its contrast can be: of a standard deviation of 80 of 255."""
    from PIL import Image as Pillow

    values = np.array(image)
    flat = values.reshape(-1)
    for first in range(0, len(flat), _AT_ONCE):  # in float64, a whole panorama would take gigabytes
        part = flat[first : first + _AT_ONCE]
        part[:] = (part + rng.normal(0, 80, len(part))).clip(0, 255)
    return Pillow.fromarray(values)


def zoom(image: Image, rng: np.random.Generator) -> Image:
    """A small part of the image, somewhere in it, as large as its shorter side: an eighth of that, enlarged."""
    from PIL.Image import Resampling

    length = min(image.size)
    side = max(1, length // 8)
    x, y = (int(rng.integers(0, whole - side + 1)) for whole in image.size)
    return image.crop((x, y, x + side, y + side)).resize((length, length), Resampling.BICUBIC)


_AT_ONCE = 2**20
#: How odd images are made.
KINDS: tuple[Callable[[Image, np.random.Generator], Image], ...] = (blur, add_noise, zoom)
