"""From timm's evaluation transform to Transformers image processors that make the same pixels.

timm resizes the short edge, cuts the centre and normalises. ``CLIPImageProcessor`` is the Transformers class
that has had all three steps since 4.x; with the PIL backend it gives timm's pixels bit for bit, but
for two things: where the margin around the crop is 3, 7, 11… pixels it begins the crop one pixel earlier, and it
blends transparency with white (:func:`known_difference`). It needs no timm, and is what ``AutoImageProcessor`` and
pipelines take: ``preprocessor_config.json``.

``TimmWrapperImageProcessor`` of Transformers runs timm's own transform, and so gives timm's pixels of every image,
where timm is installed. It has a file of its own, ``timm_processor.json``.

Neither turns a photo by its EXIF orientation, as timm's datasets do not; ``transformers.pipeline`` and
``transformers.image_utils.load_image`` do, before the processor sees the photo.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from vitconv.architecture import MOST_PIXELS, Architecture
from vitconv.checkpoints.description import DATA, SelfDescription
from vitconv.errors import InputError, VitconvError, first_few, shown
from vitconv.files import MOST_TEXT, NoRegularFileError, check_file, open_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers.image_processing_utils import BaseImageProcessor

PROCESSOR_FILE = "preprocessor_config.json"
TIMM_PROCESSOR_FILE = "timm_processor.json"
#: What processors of images and text are saved to. An image processor in it goes before every other file's.
NESTED_FILE = "processor_config.json"

ProcessorName = Literal["transformers", "timm"]

#: The image processors that a folder may have, each with its file: Transformers' own, and timm's transform.
PROCESSORS: dict[str, str] = {"transformers": PROCESSOR_FILE, "timm": TIMM_PROCESSOR_FILE}

_TIMM_CLASS = "TimmWrapperImageProcessor"
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
#: How Pillow calls the colours of images with so many channels: the only ones that image files have.
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class DataConfig:
    """How timm turns an image into pixel values for evaluation.

    Attributes:
        image_size: (height, width) of the model's input.
        num_channels: channels of the model's input.
        interpolation: of the resize: ``"bicubic"``, ``"bilinear"``…
        mean, std: subtracted and divided by, per channel, of values in 0…1.
        crop_pct: the crop's share of the resized image.
        crop_mode: ``"center"``, ``"squash"`` or ``"border"``.
        origin: where these values come from, in a few words for people.
        given: the values that were given instead of the tag's, by timm's names.
    """

    image_size: tuple[int, int]
    num_channels: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    origin: str = field(default="given", compare=False)
    given: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def values(self) -> str:
        """The values themselves, in one line for people."""
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        size = f"{self.image_size[0]}x{self.image_size[1]}"
        return f"{size}, {self.interpolation[:100]}, crop {self.crop_pct:g} ({self.crop_mode}), mean {mean}, std {std}"

    @property
    def resize(self) -> tuple[int, int]:
        """(height, width) of the image that the crop is cut from, as timm rounds it."""
        height, width = (math.floor(size / self.crop_pct) for size in self.image_size)
        return height, width


def tag_config(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What timm itself makes of a pretrained tag's configuration, by timm's names.

    ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``, and the ``tag``: ``None`` if it has none.

    Args:
        pretrained_cfg: as a timm model has it; empty for timm's defaults.
    """
    from timm.data import resolve_data_config

    resolved = resolve_data_config(args={"in_chans": 3}, pretrained_cfg=dict(pretrained_cfg))
    values = {name: resolved[name] for name in DATA}
    return values | {"tag": pretrained_cfg.get("tag") or None}


def data_config(
    tag: Mapping[str, Any],
    architecture: Architecture,
    given: Mapping[str, Any] | None = None,
    *,
    stated: SelfDescription | None = None,
) -> DataConfig:
    """What timm's own data configuration says for the model, at the architecture's size and channels.

    A grey model takes the mean of the three channels' mean and std, as timm averages an RGB model's first
    convolution for one channel.

    Args:
        tag: what timm says of the model's pretrained tag, or of the checkpoint's ``pretrained_cfg``:
            :func:`tag_config`.
        architecture: the model's, as the weights have it.
        given: values that go before all others, by timm's names: :data:`GIVEN`.
        stated: what the checkpoint says of itself: its values go before the tag's.

    Raises:
        InputError: a value is of an unknown name, or does not fit the model.
    """
    stated = stated or SelfDescription()
    channels = architecture.num_channels
    given = dict(given or {})
    own = {name: _for_channels(name, value, channels) for name, value in stated.data.items()}
    _check_given(given, architecture)
    basis = tag_values(tag, channels)
    # An interpolation that is not among the given ones is an obstacle to a processor, not to the model.
    unchecked = ("interpolation",) if isinstance(basis["interpolation"], str) else ()
    checked = {name: value for name, value in basis.items() if name not in unchecked}
    _check_given({**checked, **own}, architecture, stated)
    resolved = {**basis, **own, **given}
    sources = {", ".join(given): "as given", ", ".join(name for name in own if name not in given): _places(stated)}
    parts = [f"{names} {how}" for names, how in sources.items() if names]
    origin = _origin(tag, stated)
    return DataConfig(
        image_size=architecture.image_size,
        num_channels=channels,
        interpolation=resolved["interpolation"],
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        crop_pct=resolved["crop_pct"],
        crop_mode=resolved["crop_mode"],
        origin=f"{', '.join(parts)}, the rest from {origin}" if parts else origin,
        given=given or None,
    )


def tag_values(tag: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """A tag's values for a model of so many channels: for one, the mean of three channels' ``mean`` and ``std``."""
    values = {name: _for_channels(name, tag[name], channels) for name in DATA}
    for name in ("mean", "std"):
        value = values[name]
        if channels == 1 and isinstance(value, (list, tuple)) and len(value) == 3 and _are_numbers(value):
            values[name] = (sum(value) / 3,)
    return values


def _for_channels(name: str, value: Any, channels: int) -> Any:
    """One number for ``mean`` or ``std`` is that number for each channel, as timm takes it."""
    repeated = name in ("mean", "std") and isinstance(value, (list, tuple)) and len(value) == 1
    return list(value) * channels if repeated else value


def _places(stated: SelfDescription) -> str:
    """Where the preprocessing stands in the checkpoint, for people."""
    return "from " + ", ".join(dict.fromkeys(f"`{stated.where(name)}`" for name in stated.data))


def _origin(tag: Mapping[str, Any], stated: SelfDescription) -> str:
    if "pretrained_cfg" in stated.statements:
        return f"the checkpoint's own {stated.where('pretrained_cfg')}"
    return f"timm's pretrained tag '{tag['tag']}'" if tag["tag"] else "timm's defaults"


#: The names that a given data configuration may have, and what a value must be.
GIVEN: dict[str, str] = {
    "mean": "a list of numbers, one per channel",
    "std": "a list of positive numbers, one per channel",
    "interpolation": "'bicubic', 'bilinear', 'nearest', 'lanczos', 'box' or 'hamming'",
    "crop_pct": "a number from 0.01 up to the image's size",
    "crop_mode": "'center', 'squash' or 'border'",
    "input_size": "[channels, height, width], those of the weights",
}


def read_data_config(path: str | Path) -> dict[str, Any]:
    """Read a data configuration from a JSON file: timm's ``pretrained_cfg``, or some of its values.

    What does not concern the pixels (``url``, ``num_classes``…) is left out if the file is a whole timm
    ``config.json`` with a ``pretrained_cfg``.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    check_file(path, "data configuration", most=MOST_TEXT)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no data configuration '{path}'.", "Check the path of the file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The data configuration '{path}' is not readable JSON.", _GIVE) from error
    if not isinstance(content, dict):
        raise InputError(f"The data configuration '{path}' is no JSON object.", _GIVE)
    if isinstance(content.get("pretrained_cfg"), dict):
        return {name: value for name, value in content["pretrained_cfg"].items() if name in GIVEN}
    return content


_GIVE = (
    'Write a JSON object with any of: {"mean": […], "std": […], "interpolation": …, "crop_pct": …, "crop_mode": …}.'
)


def _are_numbers(value: Any) -> bool:
    """Whether it is a list of numbers that float32 can hold."""
    return isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) and abs(v) < 3e38 for v in value)


def _resizes(crop_pct: Any, size: tuple[int, int]) -> bool:
    """Whether a crop's share makes an image that can be cut from: at least a pixel, at most 100 times the crop."""
    return _are_numbers([crop_pct]) and min(size) >= crop_pct >= 0.01


def _check_given(given: Mapping[str, Any], architecture: Architecture, stated: SelfDescription | None = None) -> None:
    channels = architecture.num_channels
    # Without a format for images of so many channels, mean and std are never used.
    lengths = (channels,) if channels in MODES else (channels, 3)
    checks = {
        "mean": lambda value: _are_numbers(value) and len(value) in lengths,
        "std": lambda value: _are_numbers(value) and len(value) in lengths and min(value) > 1e-37,
        "interpolation": lambda value: isinstance(value, str) and value in _RESAMPLE,
        "crop_pct": lambda value: _resizes(value, architecture.image_size),
        "crop_mode": lambda value: value in ("center", "squash", "border"),
        "input_size": lambda value: _are_numbers(value) and list(value) == [channels, *architecture.image_size],
    }
    for name, value in given.items():
        if name not in checks:
            raise InputError(f"The data configuration has an unknown name '{name}'.", _GIVE)
        if not checks[name](value):
            if stated is None:
                raise InputError(f"The data configuration's `{name}` is {shown(value)}.", f"It must be {GIVEN[name]}.")
            place = name if name in stated.statements else "pretrained_cfg"
            where = f" (`{stated.where(place)}`)" if place in stated.statements else ""
            raise InputError(
                f"The checkpoint's `{name}` is {value!r:.200}{where}.",
                f"It must be {GIVEN[name]}: give it with --data-config and pass --ignore {name}.",
            )


def makes_pixels(config: DataConfig) -> bool:
    """Whether timm can read an image file for the model at all: it has 1 or 3 channels."""
    return config.num_channels in MODES


def obstacle(config: DataConfig) -> str | None:
    """Why no image processor of Transformers' own does what this configuration says; ``None`` if one does."""
    if not makes_pixels(config):
        return f"Image files have 1 or 3 channels, the model {config.num_channels}."
    if config.crop_mode == "border":
        return "Transformers has no image processor that pads the borders with the mean (`crop_mode='border'`)."
    if config.interpolation not in _RESAMPLE:
        return f"Transformers has no fixed resampling for timm's interpolation {shown(config.interpolation)}."
    if config.crop_mode != "squash" and config.image_size[0] != config.image_size[1]:
        return "Transformers cannot resize an image to cover a rectangle (`crop_mode='center'`, not square)."
    return None


def missing_processor(config: DataConfig) -> str | None:
    """That, why, and instead of what a folder gets no ``preprocessor_config.json``; ``None`` if it gets one."""
    reason = obstacle(config)
    if reason is None:
        return None
    instead = f" Prepare images with {TIMM_PROCESSOR_FILE} (it needs timm), as in the folder's README.md."
    return f"No {PROCESSOR_FILE}: {reason}" + (instead if makes_pixels(config) else "")


def processor_config(config: DataConfig) -> dict[str, Any] | None:
    """The contents of ``preprocessor_config.json``; ``None`` where :func:`obstacle` gives a reason."""
    if obstacle(config):
        return None
    resize = config.resize
    squash = config.crop_mode == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": config.num_channels == 3,
        "do_resize": True,
        "size": {"height": resize[0], "width": resize[1]} if squash else {"shortest_edge": resize[0]},
        "resample": _RESAMPLE[config.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": config.image_size[0], "width": config.image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }


def timm_processor_config(config: DataConfig, architecture: str | None = None) -> dict[str, Any] | None:
    """The contents of ``timm_processor.json``; ``None`` for a model that no image file fits (:func:`makes_pixels`).

    Args:
        config: how timm prepares an image for the model.
        architecture: timm's name of the model, for people: the pixels do not depend on it.
    """
    if not makes_pixels(config):
        return None
    return {
        "image_processor_type": _TIMM_CLASS,
        "architecture": architecture,
        "pretrained_cfg": {
            "input_size": [config.num_channels, *config.image_size],
            "interpolation": config.interpolation,
            "mean": list(config.mean),
            "std": list(config.std),
            "crop_pct": config.crop_pct,
            "crop_mode": config.crop_mode,
        },
    }


def from_processor(
    content: Mapping[str, Any], architecture: Architecture, file: str = PROCESSOR_FILE
) -> dict[str, Any]:
    """timm's names for what a ``preprocessor_config.json`` does: the way back from :func:`processor_config`.

    Args:
        content: the processor's settings.
        architecture: the model's.
        file: where they are from, for people.

    Raises:
        InputError: it does something that timm's evaluation transform does not.
    """
    size, crop = _sides(content.get("size")), _sides(content.get("crop_size"))
    height, width = architecture.image_size
    cropped = (crop.get("height"), crop.get("width")) if content.get("do_center_crop") else None
    given: dict[str, Any] = {
        "mean": content.get("image_mean"),
        "std": content.get("image_std"),
        "interpolation": {str(number): name for name, number in _RESAMPLE.items()}.get(str(content.get("resample"))),
    }
    if "shortest_edge" in size and cropped == (height, width) and height == width:
        given |= {"crop_pct": _crop_pct(height, size["shortest_edge"]), "crop_mode": "center"}
    elif "height" in size and cropped in (None, (height, width)):
        given |= {"crop_pct": _crop_pct(height, size["height"]), "crop_mode": "squash"}
    switched = all(content.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize"))
    odd = [name for name, value in given.items() if value is None] + ([] if "crop_pct" in given else ["size"])
    factor = content.get("rescale_factor", 1 / 255)
    if odd or not switched or not isinstance(factor, float) or not math.isclose(factor, 1 / 255):
        raise InputError(
            f"timm has no transform that does what {file} does ({', '.join(odd) or 'its steps'}).",
            "Correct it, or remove it: then the architecture's own preprocessing is taken.",
        )
    return given


def _sides(size: Any) -> dict[str, int]:
    """A processor's size as a mapping of positive numbers; empty if it is none."""
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    whole = isinstance(sides, dict) and all(isinstance(side, int) and side > 0 for side in sides.values())
    return sides if whole else {}


def _crop_pct(crop: int, resized: int) -> float | None:
    """The share of which timm makes this resize: floor(crop / share)."""
    near = crop / resized
    shares = (round(near, 2), round(near, 3), round(near, 6), near, math.nextafter(near, 0))
    return next((share for share in shares if share and math.floor(crop / share) == resized), None)


def timm_pixels(image: Image, config: DataConfig, *, early_crop: bool = False) -> Tensor:
    """What timm's evaluation transform makes of the image: float32, shape (channels, height, width).

    Args:
        image: any picture.
        config: how timm prepares it.
        early_crop: begin the centre crop where Transformers does, by :func:`crop_shift` earlier than timm.

    Raises:
        InputError: it is too large, or becomes so (:data:`MOST_PIXELS`), or Pillow cannot convert its colours.
    """
    from timm.data import create_transform
    from torchvision.transforms import CenterCrop
    from torchvision.transforms.functional import crop

    _check_size(image, _resized((image.height, image.width), config.resize, config.crop_mode))
    transform = create_transform(
        input_size=(config.num_channels, *config.image_size),
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    pixels = _converted(image, config.num_channels)
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
    """What an image processor of the folder makes of the image: float32, shape (1, channels, height, width).

    Raises:
        InputError: the folder has no such processor, or Transformers cannot read it.
    """
    return process(image, load_processor(folder, processor), config.num_channels)


def load_processor(folder: str | Path, processor: ProcessorName = "transformers") -> BaseImageProcessor:
    """An image processor of the folder.

    Args:
        folder: as vitconv writes it.
        processor: ``"transformers"`` for ``preprocessor_config.json``, with the backend that makes timm's pixels
            (PIL); ``"timm"`` for ``timm_processor.json``, which needs timm.

    Raises:
        InputError: there is no such processor, the folder does not have it, Transformers cannot read it, or takes
            other settings than the file's (:data:`NESTED_FILE`); or timm is not installed.
    """
    if processor not in PROCESSORS:
        raise InputError(f"There is no processor '{processor}'.", f"Choose one of {', '.join(PROCESSORS)}.")
    return _load_timm_processor(Path(folder)) if processor == "timm" else _load_own_processor(Path(folder))


def processor_file(folder: Path) -> str | None:
    """The name of the file of which Transformers takes a folder's image processor; ``None`` if there is none.

    Raises:
        InputError: it is a pipe, a device, or larger than any such file.
    """
    for name in (NESTED_FILE, PROCESSOR_FILE):
        check_file(folder / name, "file", most=MOST_TEXT)
    own = PROCESSOR_FILE if (folder / PROCESSOR_FILE).exists() else None
    try:
        content = json.loads((folder / NESTED_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return own
    except (OSError, ValueError, RecursionError):
        return NESTED_FILE  # when Transformers loads it, it is said
    nested = not isinstance(content, dict) or content.get("image_processor") is not None
    return NESTED_FILE if nested else own


def load_any_processor(folder: Path) -> BaseImageProcessor:
    """The image processor that Transformers itself loads from a folder, whoever wrote it; with the PIL backend.

    Code that lies in the folder is neither run nor asked about.

    Raises:
        InputError: there is none that Transformers can read.
    """
    file = processor_file(folder) or PROCESSOR_FILE
    return _from_pretrained(folder, folder, file)


def _from_pretrained(path: Path, folder: Path, file: str) -> BaseImageProcessor:
    """The image processor in a folder, or in one file of it."""
    import transformers

    major = int(transformers.__version__.partition(".")[0])
    pil: dict[str, Any] = {"backend": "pil"} if major >= 5 else {"use_fast": False}
    try:
        # Without the last argument, a folder with code of its own makes Transformers ask on the terminal.
        processor = transformers.AutoImageProcessor.from_pretrained(path, **pil, trust_remote_code=False)
    except Exception as error:  # its settings are checked by Transformers, each in its own way
        raise InputError(
            f"'{folder}' has no {file} that Transformers can read.",
            f"It has {TIMM_PROCESSOR_FILE}: choose the processor 'timm'."
            if (folder / TIMM_PROCESSOR_FILE).is_file()
            else "Pass a folder that `vitconv convert` has written; where it warned that there is no image processor "
            "for the model, prepare the pixels in code of your own.",
        ) from error
    if getattr(processor, "auto_map", None):
        raise InputError(
            f"{file} in '{folder}' asks for code of the folder's own, which is not run.",
            "Write the settings of one of Transformers' own image processors into it, without `auto_map`.",
        )
    return processor


def _load_own_processor(folder: Path) -> BaseImageProcessor:
    loaded = load_any_processor(folder)
    _check_override(folder, PROCESSOR_FILE, loaded, _from_pretrained(folder / PROCESSOR_FILE, folder, PROCESSOR_FILE))
    return loaded


def _check_override(folder: Path, file: str, loaded: BaseImageProcessor, own: BaseImageProcessor) -> None:
    """Raise :class:`InputError` unless what Transformers loads from a folder has the settings of the file in it."""
    found, expected = loaded.to_dict(), own.to_dict()
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if names:
        other = NESTED_FILE if processor_file(folder) == NESTED_FILE else "config.json"
        raise InputError(
            f"Transformers takes the image processor in '{folder}' from {other}, with other settings than those in "
            f"{file} ({first_few(names)}).",
            f"Remove {NESTED_FILE}." if other == NESTED_FILE else f"Restore {other}, or convert the checkpoint again.",
        )


def _load_timm_processor(folder: Path) -> BaseImageProcessor:
    import transformers

    path = folder / TIMM_PROCESSOR_FILE
    if not path.is_file():
        raise InputError(
            f"'{folder}' has no {TIMM_PROCESSOR_FILE}.",
            "Convert the checkpoint again: `vitconv convert` writes it for every model of 1 or 3 channels.",
        )
    check_file(path, "file", most=MOST_TEXT)
    nested = processor_file(folder) == NESTED_FILE
    try:
        cls = transformers.TimmWrapperImageProcessor
        loaded, own = cls.from_pretrained(folder, image_processor_filename=path.name), cls.from_pretrained(path)
    except ImportError as error:
        raise InputError(
            f"The image processor in {TIMM_PROCESSOR_FILE} needs timm and torchvision, of which one is not installed.",
            "Install them with pip install timm torchvision, or choose the processor 'transformers'.",
        ) from error
    except Exception as error:  # timm checks nothing: what is wrong shows wherever it is used
        raise InputError(
            f"'{folder}' has no {TIMM_PROCESSOR_FILE} that Transformers can read.",
            f"Remove {NESTED_FILE}, which Transformers takes instead."
            if nested
            else "Convert the checkpoint again, or restore the file.",
        ) from error
    _check_override(folder, TIMM_PROCESSOR_FILE, loaded, own)
    return loaded


def process(image: Image, processor: BaseImageProcessor, num_channels: int) -> Tensor:
    """The pixels of one image: float32, shape (1, channels, height, width).

    Raises:
        InputError: it is too large, or becomes so (:data:`MOST_PIXELS`), or Pillow cannot convert its colours.
    """
    for size in _processors_sizes(image, processor):
        _check_size(image, size)
    # Transformers' own processor converts to RGB by itself, but to grey never; timm's takes an image as it is.
    if num_channels == 1 or type(processor).__name__ == _TIMM_CLASS:
        image = _converted(image, num_channels)
    return processor(image, return_tensors="pt")["pixel_values"]


def _converted(image: Image, num_channels: int) -> Image:
    try:
        return image.convert(MODES[num_channels])
    except ValueError as error:
        raise InputError(
            f"{_name(image)} has colours ('{image.mode}') that Pillow cannot convert to '{MODES[num_channels]}'.",
            "Save the image in RGB or grey.",
        ) from error


def _name(image: Image) -> str:
    """What to call an image at a sentence's beginning: by its file, if it has one."""
    file = getattr(image, "filename", "")
    return f"'{os.fspath(file)}'" if file else "The image"


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


def _processors_sizes(image: Image, processor: BaseImageProcessor) -> list[tuple[int, int]]:
    """(height, width) of what a processor makes of an image: of the resize, and of the crop, which may be larger."""
    if type(processor).__name__ == _TIMM_CLASS:
        data = processor.data_config
        crop = data["input_size"][1:]
        resize = [math.floor(side / data["crop_pct"]) for side in crop]
        return [_resized((image.height, image.width), (resize[0], resize[1]), data["crop_mode"]), tuple(crop)]
    sizes = []
    size, crop = (
        {name: side for name, side in dict(sides or {}).items() if side}
        for sides in (processor.do_resize and processor.size, processor.do_center_crop and processor.crop_size)
    )
    if "shortest_edge" in size:
        sizes.append(_resized((image.height, image.width), (size["shortest_edge"],) * 2, "center"))
    return sizes + [(sides["height"], sides["width"]) for sides in (size, crop) if {"height", "width"} <= sides.keys()]


def known_difference(image: Image, config: DataConfig) -> str | None:
    """Where timm and Transformers prepare this image differently on principle, in a sentence; ``None`` if nowhere.

    There are two such things. The crop: see :func:`crop_shift`. Transparency: timm drops it, so that the colour under
    a transparent pixel counts; Transformers 5 blends with white first, and has no setting for it.
    """
    down, right = crop_shift((image.height, image.width), config)
    if down or right:
        return f"Transformers begins the crop one pixel earlier than timm (image {image.width}x{image.height})."
    if config.num_channels == 3 and image.has_transparency_data:
        return (
            "Transformers blends transparency with white, timm drops it: pass it image.convert('RGBA').convert('RGB')."
        )
    return None


def without_transparency(image: Image, config: DataConfig) -> Image:
    """The image as :func:`known_difference` says to pass it to Transformers, for timm's colours."""
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


def _shift(margin: int) -> int:
    return round(margin / 2) - margin // 2 if margin > 0 else -margin % 2


#: The most bytes of an image file: so many pixels have fewer, uncompressed. Some formats are read as a whole.
MOST_BYTES = 2**28


def load_image(path: str | Path | bytes) -> Image:
    """Open an image file, or the content of one; of several frames, the first.

    Raises:
        InputError: there is no such file, it is no image that Pillow can read, or larger than :data:`MOST_PIXELS` or
            :data:`MOST_BYTES`. Its cause is what Pillow or the system said.
    """
    from PIL import Image

    is_content = isinstance(path, bytes)
    name = "The image" if is_content else f"'{path}'"
    try:
        with (
            io.BytesIO(path) if is_content else open_file(path) as file,
            _Pieces(file if is_content else file.raw, name) as stream,
            warnings.catch_warnings(),
        ):
            size = len(path) if is_content else os.fstat(stream.fileno()).st_size
            if not size:  # or a file of the system's, which may never end
                raise _unreadable(name, "it is empty")
            if size > MOST_BYTES:
                raise InputError(f"{name} has {size:,} bytes; the most are {MOST_BYTES:,}.", _SMALLER)
            warnings.simplefilter("ignore")  # of tags it skips; of too many pixels, which are refused below
            if _count_strips(stream) > _MOST_STRIPS:
                raise InputError(f"{name} is a TIFF in more than {_MOST_STRIPS:,} strips.", "Save it as PNG.")
            with Image.open(stream, formats=_formats()) as image:
                _check_size(image, name=name)
                _check_effort(image, stream, name)
                image.load()
                _check_size(image, name=name)  # an icon's file may hold another than it says
                loaded = image.copy()  # without the reader, which for WebP holds the picture three more times
                if not is_content:
                    loaded.filename = os.fspath(path)
                return loaded
    except FileNotFoundError as error:
        raise InputError(f"There is no image '{path}'.", "Check the path of the image.") from error
    except (VitconvError, MemoryError):
        raise
    except NoRegularFileError as error:
        raise _unreadable(name, f"it is {error.strerror}") from error
    except Image.DecompressionBombError as error:  # before Pillow tells its sides
        pixels = re.search(r"\d+", str(error))
        count = f"{int(pixels[0]):,}" if pixels else "too many"
        raise InputError(f"{name} has {count} pixels; the most are {MOST_PIXELS:,}.", _SMALLER) from error
    except Exception as error:  # Pillow's readers have no common one
        raise _unreadable(name) from error


#: What photos are kept in, and Pillow reads in C and in memory that its header tells. Not so other formats: an ICNS or
#: ICO file holds pictures of any size, FITS is read into Python's lists, and EPS is a program that Ghostscript runs.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")


@cache
def _formats() -> tuple[str, ...]:
    """Of these formats, those that the installed Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


class _Pieces(io.BufferedReader):
    """A file of which only so many pieces, and of small ones so many bytes, are read.

    Pillow looks at the parts of a file (chunks, segments, blocks, comments) in Python, one by one, and keeps or joins
    many of them. A photo has some; 256 MiB of them take minutes and gigabytes.
    """

    def __init__(self, raw: Any, name: str) -> None:
        super().__init__(raw)
        self._name, self._count, self._small = name, 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As :meth:`io.BufferedReader.read`; :class:`InputError` where there are too many."""
        self._count += 1
        self._small += size if size is not None and 0 < size < 2**16 else 0
        if self._count > _MOST_PIECES or self._small > _MOST_SMALL:
            raise InputError(f"{self._name} is in too many pieces.", "Save it again, as PNG or JPEG.")
        return super().read(size)


_MOST_PIECES = 10**6
_MOST_SMALL = 2**25


def _count_strips(stream: BinaryIO) -> int:
    """How many strips, or tiles, a TIFF says that it is in; 0 for any other file. Pillow makes objects of each."""
    start = stream.read(16).ljust(16, b"\0")
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    count = 0
    if order:
        large = 43 in start[2:4]  # BigTIFF
        (offset,) = struct.unpack_from(f"{order}Q" if large else f"{order}I", start, 8 if large else 4)
        entry = struct.Struct(f"{order}HHQ8x" if large else f"{order}HHI4x")
        with suppress(OSError, OverflowError, struct.error):  # Pillow says so
            stream.seek(offset)
            (entries,) = struct.unpack(f"{order}{'Q' if large else 'H'}", stream.read(8 if large else 2))
            directory = stream.read(min(entries, 2**16) * entry.size)
            found = entry.iter_unpack(directory[: len(directory) // entry.size * entry.size])
            count = max((values for tag, _, values in found if tag in _PLACES), default=0)
    stream.seek(0)
    return count


_PLACES = (273, 279, 324, 325)  # tags: where strips and tiles are, and their lengths
_MOST_STRIPS = 2**17


def _check_effort(image: Image, stream: BinaryIO, name: str) -> None:
    """Raise :class:`InputError` if reading the opened image would take minutes, or more memory than its size says."""
    from PIL.Image import DECODERS

    if any(tile[0] in DECODERS for tile in image.tile):  # decoders in Python: a byte takes a microsecond
        raise InputError(f"{name} is of a kind of {image.format} that is read too slowly.", "Save it as PNG.")
    pixels = image.width * image.height
    if image.format == "TIFF":
        width, height = (image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        if width * height > max(pixels, _SMALL_TILE):
            raise InputError(f"{name} is in tiles of {width}x{height} pixels, larger than itself.", "Save it as PNG.")
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        stream.seek(0)
        scans = stream.read().count(b"\xff\xda")
        stream.seek(0)
        if scans * pixels > _MOST_SCANNED:
            raise InputError(f"{name} has {scans:,} scans of {pixels:,} pixels each.", "Save it again.")


_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags: TIFF 6.0, section 15
_SMALL_TILE = 2**20
#: A progressive JPEG is decoded whole at each of its scans, of which it has some ten, or as many as it likes.
_MOST_SCANNED = 16 * MOST_PIXELS


_SMALLER = "Make the image smaller, or cut out the part that matters."


def _unreadable(name: str, why: str | None = None) -> InputError:
    reason = f": {why}" if why else ""
    return InputError(f"{name} is not an image that can be read{reason}.", "Pass a PNG, JPEG or WebP file.")


def _check_size(image: Image, resized: tuple[int, int] | None = None, name: str | None = None) -> None:
    """Raise :class:`InputError` if an image, or what its resize makes on the way, has more than :data:`MOST_PIXELS`.

    Args:
        image: it need not be loaded.
        resized: (height, width) that it is resized to.
        name: what to call it, for people, if not as it calls itself.
    """
    name = name or _name(image)
    height, width = image.height, image.width
    if height * width > MOST_PIXELS:
        raise InputError(f"{name} is {width}x{height} pixels; the most are {MOST_PIXELS:,}.", _SMALLER)
    # Pillow resizes the rows first: in between, the picture has the new width and the old height.
    between = (max(resized[0], height), resized[1]) if resized else (0, 0)
    if between[0] * between[1] > MOST_PIXELS:
        raise InputError(
            f"{name} is {width}x{height} pixels, and {between[1]}x{between[0]} while it is resized; the most are "
            f"{MOST_PIXELS:,}.",
            _SMALLER,
        )


def sample_image(size: tuple[int, int] = (600, 448)) -> Image:
    """A picture drawn by rule, for when none is given: coloured gradients under a grid of discs.

    It has smooth parts, edges and fine detail, and is the same on every machine.

    Args:
        size: (width, height) in pixels.
    """
    import numpy as np
    from PIL import Image

    width, height = size
    y, x = np.mgrid[:height, :width]
    discs = ((x % 75 - 37) ** 2 + (y % 64 - 32) ** 2) < 500
    stripes = (x // 5 + y // 7) % 2
    red = 255 * x // width
    green = 255 * y // height
    blue = np.where(discs, 220, 40) - 30 * stripes
    red = np.where(discs, 255 - red, red)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype("uint8"), "RGB")


def probe_pixels(config: DataConfig) -> Tensor:
    """Pixel values that no photo has, to find what a photo hides: shape (4, channels, height, width).

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
    """Mean and std for the model's channels; of RGB values for a model that takes other channels, the first's."""
    if len(config.mean) == len(config.std) == config.num_channels:
        return config.mean, config.std
    return config.mean[:1], config.std[:1]
