"""The image on which a server shows that it can answer."""

from __future__ import annotations

import io

from vitconv.models.images import sample_image


def sample_file() -> bytes:
    """vitconv's sample image, as a PNG file."""
    file = io.BytesIO()
    sample_image().save(file, "PNG")
    return file.getvalue()
