"""Image files of every kind, as cameras, scanners and programs write them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def image_file(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 50), seed: int = 0, **how: Any
) -> bytes:
    """The content of an image file with noise."""
    shape = (size[1], size[0]) if mode in ("L", "P", "1", "I;16") else (size[1], size[0], len(mode))
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values)
    if mode not in ("I;16", "LA", "RGBA"):
        image = (
            image.convert(mode) if mode in ("P", "1", "L", "RGB") else Image.frombytes(mode, size, values.tobytes())
        )
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()
