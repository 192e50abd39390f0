import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from vitconv.inference.appearance import count, describe


@given(
    st.integers(1, 4),
    st.sampled_from([1, 3, 6]),
    st.tuples(st.integers(1, 40), st.integers(1, 70)),
    st.integers(0, 99),
)
def test_an_image_s_numbers_are_its_own_and_as_many_as_its_shape_says(images, channels, size, seed):
    pixels = np.random.default_rng(seed).normal(size=(images, channels, *size)).astype(np.float32)
    found = describe(pixels)
    assert found.shape == (images, count(pixels.shape[1:])) and found.dtype == np.float64
    assert np.isfinite(found).all()
    for image, numbers in zip(pixels, found, strict=True):
        assert describe(image[None])[0].tobytes() == numbers.tobytes()


def test_what_they_are():
    pixels = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (found,) = describe(pixels)
    assert np.allclose(found[:3], pixels[0].mean(axis=(1, 2)), atol=1e-6)
    assert np.allclose(np.exp(found[3:6]) - 1e-3, pixels[0].std(axis=(1, 2)), atol=1e-4)
    grey = pixels[0].mean(axis=0)
    halved = grey.reshape(8, 2, 8, 2).mean(axis=(1, 3))
    for place, values in ((6, grey), (8, halved)):
        for own, axis in ((place, 0), (place + 1, 1)):
            assert np.exp(found[own]) - 1e-3 == pytest.approx(
                np.sqrt((np.diff(values, axis=axis) ** 2).mean()), rel=1e-3
            )


def test_a_blurred_image_has_less_detail_and_a_noisy_one_more():
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))

    def fine(own):
        return describe(np.asarray(own, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)[0, 6:8]

    noisy = np.asarray(image) + rng.normal(0, 40, (64, 64, 3))
    assert (fine(image.filter(ImageFilter.GaussianBlur(3))) < fine(image) - 0.5).all()
    assert (fine(noisy) > fine(image) + 0.5).all()


def test_pixels_that_are_no_numbers_have_a_description_without_warnings():
    pixels = np.full((1, 3, 8, 8), np.inf, np.float32)
    assert not np.isfinite(describe(pixels)).all()
