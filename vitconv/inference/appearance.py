"""What an image looks like, in a few numbers: how bright, how colourful, how much detail of which size.

Logits tell little of it: a model may answer *slate* to a blurred slate as surely as to a sharp one. These numbers tell
a blurred, noisy or zoomed image, whatever runs the model, as they are computed from the pixels that enter it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: How often the image is halved to look for larger detail.
_SCALES = 5
#: What is added to a deviation before its logarithm is taken, so that a flat image has one. It is less than a step of
#: 8 bits.
_FLAT = 1e-3


def count(shape: tuple[int, int, int]) -> int:
    """How many numbers :func:`describe` gives for images of the shape (channels, height, width)."""
    return 2 * shape[0] + 2 * _scales(shape)


def describe(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Describe images: float64, (images, numbers).

    For each channel its mean and the logarithm of its standard deviation; then, of the mean of the channels, the
    logarithms of the root mean squares of the differences of neighbours, above each other and beside each other, in
    full size and after each halving. An image's numbers do not depend on the others.

    Args:
        pixels: as they enter the model: float32, (images, channels, height, width).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([_describe(image) for image in pixels], np.float64)


def _scales(shape: tuple[int, int, int]) -> int:
    return min(_SCALES, min(shape[1:]).bit_length() - 1)


def _describe(image: NDArray[np.float32]) -> list[float]:
    channels = image.reshape(len(image), -1)
    means = channels.mean(axis=1)
    squares = np.einsum("ij,ij->i", channels, channels) / channels.shape[1]
    numbers = [*means.tolist(), *_logarithms(np.sqrt((squares - means**2).clip(0)))]
    grey = image.sum(axis=0) / np.float32(len(image))
    for _ in range(_scales(image.shape)):
        steps = (grey[1:] - grey[:-1], grey[:, 1:] - grey[:, :-1])
        # einsum makes no copy to square, and starts no threads.
        numbers += _logarithms(np.sqrt([np.einsum("ij,ij->", step, step) / step.size for step in steps]))
        rows = grey[: len(grey) // 2 * 2]
        rows = rows[::2] + rows[1::2]
        grey = (rows[:, : rows.shape[1] // 2 * 2 : 2] + rows[:, 1::2]) / np.float32(4)
    return numbers


def _logarithms(deviations: NDArray[Any]) -> list[float]:
    return np.log(np.asarray(deviations, np.float64) + _FLAT).tolist()
