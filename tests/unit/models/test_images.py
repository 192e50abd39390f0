import io

import numpy as np
import pytest
from PIL import Image

from vitconv.errors import InputError
from vitconv.models import images
from vitconv.models.images import load_image, sample_image


def encoded(image, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_bytes_give_the_pixels_of_the_file(kind, tmp_path):
    content = encoded(sample_image((60, 40)), kind)
    (tmp_path / "image").write_bytes(content)
    from_file, from_bytes = load_image(tmp_path / "image"), load_image(content)
    assert from_bytes.mode == from_file.mode
    np.testing.assert_array_equal(np.asarray(from_bytes), np.asarray(from_file))


def test_bytes_that_are_no_image_are_called_the_image():
    with pytest.raises(InputError, match="^The image is not an image that can be read: it is empty"):
        load_image(b"")
    with pytest.raises(InputError, match="^The image is not an image that can be read"):
        load_image(b"no image")


def test_bytes_have_the_bounds_of_files(monkeypatch):
    content = encoded(Image.new("L", (40, 40)))
    monkeypatch.setattr(images, "MOST_PIXELS", 1599)
    with pytest.raises(InputError, match="^The image is 40x40 pixels; at most 1,599"):
        load_image(content)
    monkeypatch.setattr(images, "MOST_BYTES", len(content) - 1)
    with pytest.raises(InputError, match="^The image has .* bytes; at most"):
        load_image(content)
    monkeypatch.undo()
    monkeypatch.setattr(images, "_MOST_PIECES", 3)
    with pytest.raises(InputError, match="^The image consists of too many pieces"):
        load_image(content)
