import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_model
from PIL import Image

from vitconv.architecture import from_timm
from vitconv.checkpoint import write_json
from vitconv.errors import InputError
from vitconv.preprocess import (
    PROCESSOR_FILE,
    DataConfig,
    crop_shift,
    data_config,
    huggingface_pixels,
    load_image,
    obstacle,
    processor_config,
    sample_image,
    timm_pixels,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config_for(**changes) -> DataConfig:
    plain = dict(image_size=(96, 96), num_channels=3, interpolation="bicubic", mean=MEAN, std=STD, crop_pct=1.0)
    return DataConfig(**{**plain, "crop_mode": "center", **changes})


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: a shift by one pixel or another interpolation changes every value."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """timm's pixels and those of a written image processor."""
    folder = tmp_path_factory.mktemp("processor")

    def both(image: Image.Image, config: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
        write_json(processor_config(config), folder / PROCESSOR_FILE)
        return timm_pixels(image, config), huggingface_pixels(image, folder, config)[0]

    return both


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_the_processor_makes_timm_s_pixels(both, crop_pct, interpolation, crop_mode):
    config = config_for(crop_pct=crop_pct, interpolation=interpolation, crop_mode=crop_mode)
    ours, theirs = both(noise_image(128, 128), config)
    assert torch.equal(ours, theirs)


def test_squash_needs_no_square(both):
    ours, theirs = both(noise_image(120, 77), config_for(image_size=(64, 96), crop_mode="squash"))
    assert ours.shape == (3, 64, 96)
    assert torch.equal(ours, theirs)


def test_grey_images_for_one_channel(both):
    ours, theirs = both(noise_image(120, 96), config_for(num_channels=1, mean=(0.5,), std=(0.25,)))
    assert ours.shape == (1, 96, 96)
    assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=150)
@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from([1.0, 0.95, 0.9, 0.875]))
def test_crop_shift_is_the_only_difference(both, width, height, crop_pct):
    """Where the crops begin at the same pixel the pixels are equal; elsewhere one is the other, shifted by one."""
    config = config_for(crop_pct=crop_pct)
    image = noise_image(width, height)
    ours, theirs = both(image, config)
    down, right = crop_shift((height, width), config)
    size = 96
    assert torch.equal(ours[:, : size - down, : size - right], theirs[:, down:, right:])
    if (down, right) != (0, 0):
        assert not torch.equal(ours, theirs)


def test_what_no_processor_can_do_has_a_reason():
    assert "pads the borders" in obstacle(config_for(crop_mode="border"))
    assert "rectangle" in obstacle(config_for(image_size=(64, 96)))
    assert "the model 6" in obstacle(config_for(num_channels=6))
    assert "'random'" in obstacle(config_for(interpolation="random"))
    assert obstacle(config_for()) is None
    assert processor_config(config_for(crop_mode="border")) is None


def test_the_config_is_timm_s():
    model = timm.create_model("vit_base_patch16_384.augreg_in21k_ft_in1k")
    config = data_config(model, from_timm(model))
    assert config == DataConfig((384, 384), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    deit = timm.create_model("deit3_small_patch16_384")
    assert data_config(deit, from_timm(deit)).mean == MEAN


def test_the_size_is_the_weights_not_the_tag_s():
    model = small_model("not square")
    assert data_config(model, from_timm(model)).image_size == (32, 64)


def test_grey_models_average_mean_and_std():
    model = small_model("one channel")
    config = data_config(model, from_timm(model))
    assert config.mean == (0.5,)
    assert len(config.std) == 1


def test_resize_rounds_as_timm_does():
    assert config_for(image_size=(224, 224), crop_pct=0.95).resize == (math.floor(224 / 0.95),) * 2


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n truncated"])
def test_refuses_what_is_no_image(content, tmp_path):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match=r"image.png' is not an image that can be read"):
        load_image(tmp_path / "image.png")


def test_refuses_a_missing_image(tmp_path):
    with pytest.raises(InputError, match="There is no image"):
        load_image(tmp_path / "none.png")


def test_refuses_a_truncated_image(tmp_path):
    noise_image(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(InputError, match="is not an image"):
        load_image(tmp_path / "image.png")


def test_the_sample_image_has_detail():
    pixels = np.asarray(sample_image(), dtype=int)
    assert pixels.shape == (448, 600, 3)
    assert all(len(np.unique(pixels[..., channel])) > 100 or channel == 2 for channel in range(3))
