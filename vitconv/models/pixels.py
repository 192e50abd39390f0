"""The pixels that timm's transform and Transformers' processors compute from an image, and where they differ."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.architecture import MOST_PIXELS
from vitconv.models.data_config import DataConfig
from vitconv.models.images import MODES, check_size, convert_colors, sample_image
from vitconv.models.processors import PIL_CLASS, TIMM_CLASS, ProcessorName, load_processor

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers.image_processing_utils import BaseImageProcessor


def timm_pixels(image: Image, config: DataConfig, *, early_crop: bool = False) -> Tensor:
    """The pixels of timm's evaluation transform: float32, shape (channels, height, width).

    Args:
        image: any image.
        config: how timm prepares it.
        early_crop: begin the centre crop where Transformers does: :func:`crop_shift` pixels earlier than timm.

    Raises:
        InputError: the image, also resized, is too large (:data:`MOST_PIXELS`), or Pillow cannot convert its colours.
    """
    from timm.data import create_transform
    from torchvision.transforms import CenterCrop
    from torchvision.transforms.functional import crop

    check_size(image, _resized((image.height, image.width), config.resize, config.crop_mode))
    transform = create_transform(
        input_size=(config.num_channels, *config.image_size),
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    pixels: Any = convert_colors(image, config.num_channels)
    height, width = config.image_size
    for step in transform.transforms:
        if early_crop and isinstance(step, CenterCrop):
            pixels = crop(pixels, (pixels.height - height) // 2, (pixels.width - width) // 2, height, width)
        else:
            pixels = step(pixels)
    return pixels


def huggingface_pixels(
    image: Image, folder: str | Path, config: DataConfig, processor: ProcessorName = "transformers"
) -> Tensor:
    """The pixels of an image processor of the folder: float32, shape (1, channels, height, width).

    Raises:
        InputError: the folder has no such processor, or Transformers cannot read it.
    """
    return process(image, load_processor(folder, processor), config.num_channels)


def process(image: Image, processor: BaseImageProcessor, num_channels: int) -> Tensor:
    """The pixels of one image: float32, shape (1, channels, height, width).

    Raises:
        InputError: the image, also resized, is too large (:data:`MOST_PIXELS`), or Pillow cannot convert its colours.
    """
    _check_sizes(image, processor)
    # Transformers' own processor converts to RGB, but never to grey; timm's processor converts nothing.
    if num_channels == 1 or type(processor).__name__ == TIMM_CLASS:
        image = convert_colors(image, num_channels)
    return processor(image, return_tensors="pt")["pixel_values"]


def resize_first(image: Image, processor: BaseImageProcessor, num_channels: int) -> Image:
    """The image as the processor will resize it, where :func:`process` then makes the same pixels; else the image.

    ``CLIPImageProcessorPil`` copies an image into a NumPy array, and from there into a new Pillow image, before Pillow
    resizes it. For 12 megapixels the copies take half of the processor's time. Here Pillow resizes the image itself;
    the processor copies the small one, and finds that it has the right size. The proof of a conversion does without
    this function, so that it judges what the processor does by itself.

    Raises:
        InputError: the image, also resized, is too large (:data:`MOST_PIXELS`).
    """
    _check_sizes(image, processor)
    known = type(processor).__name__ == PIL_CLASS and processor.do_resize and processor.resample is not None
    # Colours that the processor converts, it converts before it resizes.
    if not known or image.mode != MODES[num_channels] or image.has_transparency_data:
        return image
    sides = {name: side for name, side in dict(processor.size).items() if side}
    if sides.keys() == {"shortest_edge"}:
        height, width = _resized((image.height, image.width), (sides["shortest_edge"],) * 2, "center")
    elif sides.keys() == {"height", "width"}:
        height, width = sides["height"], sides["width"]
    else:
        return image
    return image.resize((width, height), processor.resample)


def _resized(image_size: tuple[int, int], resize: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """(height, width) that timm resizes an image of this size to, before it crops.

    Args:
        image_size: (height, width) of the image.
        resize: :attr:`DataConfig.resize`.
        crop_mode: as timm calls it.
    """
    if crop_mode == "squash":
        return resize
    scales = [Fraction(new, old) for new, old in zip(resize, image_size, strict=True)]
    scale = min(scales) if crop_mode == "border" else max(scales)
    return math.floor(image_size[0] * scale), math.floor(image_size[1] * scale)


def _check_sizes(image: Image, processor: BaseImageProcessor) -> None:
    """Raise :class:`InputError` if the image, or what the processor makes of it, is too large."""
    for size in _processors_sizes(image, processor):
        check_size(image, size)


def _processors_sizes(image: Image, processor: BaseImageProcessor) -> list[tuple[int, int]]:
    """(height, width) of the images that a processor makes: resized, cropped and padded, which may be larger."""
    if type(processor).__name__ == TIMM_CLASS:
        data = processor.data_config
        crop = data["input_size"][1:]
        resize = [math.floor(side / data["crop_pct"]) for side in crop]
        return [_resized((image.height, image.width), (resize[0], resize[1]), data["crop_mode"]), tuple(crop)]
    sizes = []
    size, crop, pad = (
        {name: side for name, side in dict(getattr(processor, sides, None) or {}).items() if side}
        if getattr(processor, does, False)
        else {}
        for does, sides in (("do_resize", "size"), ("do_center_crop", "crop_size"), ("do_pad", "pad_size"))
    )
    if "shortest_edge" in size:
        sizes.append(_resized((image.height, image.width), (size["shortest_edge"],) * 2, "center"))
    fixed = (size, crop, pad)
    return sizes + [(sides["height"], sides["width"]) for sides in fixed if {"height", "width"} <= sides.keys()]


def known_difference(image: Image, config: DataConfig) -> str | None:
    """How timm and Transformers are known to prepare this image differently, in a sentence; ``None`` if they do not.

    There are two known differences. The crop: see :func:`crop_shift`. Transparency: timm drops it, so that the colour
    under a transparent pixel counts; Transformers 5 blends with white first, and has no setting for it.
    """
    down, right = crop_shift((image.height, image.width), config)
    if down or right:
        return f"Transformers begins the crop one pixel earlier than timm (image {image.width}x{image.height})."
    if config.num_channels == 3 and _is_transparent(image):
        return (
            "Transformers blends transparency with white, timm drops it: pass it image.convert('RGBA').convert('RGB')."
        )
    return None


def _is_transparent(image: Image) -> bool:
    """Whether any pixel lets through what is behind it: many a screenshot has transparency, and is opaque."""
    if not image.has_transparency_data:
        return False
    alpha = image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A")
    return alpha.tobytes().strip(b"\xff") != b""


def without_transparency(image: Image, config: DataConfig) -> Image:
    """The image without transparency, so that Transformers sees timm's colours: see :func:`known_difference`."""
    transparent = config.num_channels == 3 and image.has_transparency_data
    return image.convert("RGBA").convert("RGB") if transparent else image


def crop_shift(image_size: tuple[int, int], config: DataConfig) -> tuple[int, int]:
    """By how many pixels Transformers' centre crop begins earlier than timm's: (down, right), each 0 or 1.

    timm (torchvision) begins at ``round(margin / 2)``, half to even; Transformers at ``margin // 2``. Where the
    image is smaller than the crop (``crop_pct`` above 1), both pad it with black, and for an odd difference
    Transformers puts the extra row first, timm last.

    Args:
        image_size: (height, width) of the image before any resizing.
        config: timm's data configuration.

    >>> square = DataConfig((224, 224), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    >>> crop_shift((448, 454), square)  # resized to 224 x 227: margins 0 and 3
    (0, 1)
    """
    size = _resized(image_size, config.resize, config.crop_mode)
    down, right = (_shift(side - crop) for side, crop in zip(size, config.image_size, strict=True))
    return down, right


def always_shifted(config: DataConfig) -> bool:
    """Whether Transformers' crop begins earlier than timm's for every image: the short edge's margin is fixed."""
    return crop_shift((1, 1), config) != (0, 0)


def _shift(margin: int) -> int:
    return round(margin / 2) - margin // 2 if margin > 0 else -margin % 2


def probe_images(config: DataConfig) -> list[Image]:
    """Images of different shapes: two transforms may agree on one shape and differ on another.

    Landscape, portrait, square, tiny and a panorama, larger and smaller than the crop; without those that the resize
    would make too large.
    """
    side = max(config.image_size)
    sizes = [
        (2 * side + side // 2 + 1, 2 * side + 2),
        (side + 1, side + side // 2 + 2),
        (side, side),
        (side // 2 + 1, side // 2 + 1),
        (5, 3),
        (2 * side, side // 4 + 1),
    ]
    resized = [_resized((height, width), config.resize, config.crop_mode) for width, height in sizes]
    return [
        sample_image(size) for size, made in zip(sizes, resized, strict=True) if math.prod(made) <= MOST_PIXELS // 2
    ]


def probe_pixels(config: DataConfig) -> Tensor:
    """Pixel values unlike a photo's, which show differences that a photo hides: shape (4, channels, height, width).

    Noise, where every patch differs; all black; all white; and a checkerboard of both, the strongest edges there are.
    """
    import torch

    shape = (config.num_channels, *config.image_size)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in _per_channel(config))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    rows, columns = (torch.arange(size) for size in config.image_size)
    board = ((rows[:, None] + columns[None]) % 2).float().expand(shape)
    values = torch.stack([noise, torch.zeros(shape), torch.ones(shape), board])
    return (values - mean) / std


def _per_channel(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for the model's channels; the first channel's for all if their number differs."""
    if len(config.mean) == len(config.std) == config.num_channels:
        return config.mean, config.std
    return config.mean[:1], config.std[:1]
