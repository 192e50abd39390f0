import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def noise(width, height, mode="RGB"):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    options=st.fixed_dictionaries(
        {"quality": st.integers(1, 100), "subsampling": st.integers(0, 2), "progressive": st.booleans()}
    ),
)
@settings(deadline=None)
def test_a_jpeg_has_pillows_pixels(width, height, mode, options):
    """With its reader closed: Pillow need not read anything more to work with it."""
    buffer = io.BytesIO()
    noise(width, height, mode).save(buffer, "JPEG", **options)
    with Image.open(io.BytesIO(buffer.getvalue())) as expected:
        loaded = load_image(buffer.getvalue())
        assert loaded.mode == expected.mode == mode
        assert loaded.tobytes() == expected.tobytes()
        assert loaded.convert("RGB").resize((9, 7)).tobytes() == expected.convert("RGB").resize((9, 7)).tobytes()
    assert pickle.loads(pickle.dumps(loaded)).tobytes() == loaded.tobytes()


def test_a_photo_of_several_pictures_is_its_first(tmp_path):
    noise(60, 40).save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[noise(30, 20)])
    loaded = load_image(tmp_path / "photo.jpg")
    assert (loaded.format, loaded.size) == ("MPO", (60, 40))
    with Image.open(tmp_path / "photo.jpg") as expected:
        assert loaded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_jpeg_that_is_cut_off_is_refused(kept):
    content = encoded(noise(200, 200), "JPEG")
    with pytest.raises(InputError, match="^The image is not an image that can be read"):
        load_image(content[: int(len(content) * kept)])


@pytest.mark.parametrize(("kind", "copies"), [("JPEG", 0), ("MPO", 0), ("WEBP", 1), ("PNG", 1)])
def test_only_a_reader_that_holds_much_costs_a_copy(monkeypatch, kind, copies):
    content, made = encoded(noise(20, 20), kind), []
    copy = Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy", lambda image: made.append(image) or copy(image))
    load_image(content)
    assert len(made) == copies
