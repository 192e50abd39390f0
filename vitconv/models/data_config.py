"""timm's data configuration, that is how it prepares images: from the tag, the checkpoint and the user."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitconv.architecture import AnyArchitecture
from vitconv.checkpoints.description import DATA, SelfDescription
from vitconv.errors import InputError, brief, shown
from vitconv.files import MOST_TEXT, RepeatedKeyError, check_file, parse_json, repeated_key
from vitconv.models.images import MODES

#: The interpolations that Transformers has too, with Pillow's number of each.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"DataConfig({self.values}, from {brief(self.origin)})"

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
    architecture: AnyArchitecture,
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
        given: values that override all others, by timm's names: :data:`GIVEN`.
        stated: what the checkpoint says of itself: its values override the tag's.

    Raises:
        InputError: a name is unknown, or a value does not fit the model.
    """
    stated = stated or SelfDescription()
    channels = architecture.num_channels
    given = dict(given or {})
    own = {name: _for_channels(name, value, channels) for name, value in stated.data.items()}
    _check_given(given, architecture)
    basis = tag_values(tag, channels)
    # An interpolation that Transformers lacks only prevents a processor, not the conversion.
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
    """A tag's values for a model with this number of channels: for 1, ``mean`` and ``std`` are averaged over three."""
    values = {name: _for_channels(name, tag[name], channels) for name in DATA}
    for name in ("mean", "std"):
        value = values[name]
        if channels == 1 and isinstance(value, (list, tuple)) and len(value) == 3 and _are_numbers(value):
            values[name] = (sum(value) / 3,)
    return values


def _for_channels(name: str, value: Any, channels: int) -> Any:
    """A single ``mean`` or ``std`` repeated for each channel, as timm does; any other value as it is."""
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
    "mean": "a list of numbers from -1000000 to 1000000, one per channel",
    "std": "a list of numbers from 0.000001, one per channel",
    "interpolation": "'bicubic', 'bilinear', 'nearest', 'lanczos', 'box' or 'hamming'",
    "crop_pct": "a number from 0.01 up to the image's size",
    "crop_mode": "'center', 'squash' or 'border'",
    "input_size": "[channels, height, width], those of the weights",
}


def read_data_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a data configuration from a JSON file: timm's ``pretrained_cfg``, or some of its values.

    From a whole timm ``config.json`` with a ``pretrained_cfg``, only the values that concern pixels are returned, not
    ``url``, ``num_classes`` and the like.

    Raises:
        InputError: the file does not exist, is not a JSON object, or has a key twice.
    """
    check_file(path, "data configuration", most=MOST_TEXT)
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no data configuration '{path}'.", "Check the path of the file.") from error
    except RepeatedKeyError as error:
        raise repeated_key(f"The data configuration '{path}'", error) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The data configuration '{path}' is not readable JSON.", _WRITE_JSON) from error
    if not isinstance(content, dict):
        raise InputError(f"The data configuration '{path}' is not a JSON object.", _WRITE_JSON)
    if isinstance(content.get("pretrained_cfg"), dict):
        return {name: value for name, value in content["pretrained_cfg"].items() if name in GIVEN}
    return content


_WRITE_JSON = (
    'Write a JSON object with any of: {"mean": […], "std": […], "interpolation": …, "crop_pct": …, "crop_mode": …}.'
)


def _are_numbers(value: Any) -> bool:
    """Whether it is a list of numbers that float32 can hold. To Python, true and false are numbers, too."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 3e38 for v in value
    )


def _resizes(crop_pct: Any, size: tuple[int, int]) -> bool:
    """Whether a ``crop_pct`` gives a resized image of at least one pixel and at most 100 times the crop's side."""
    return _are_numbers([crop_pct]) and min(size) >= crop_pct >= 0.01


def _checks(channels: int, image_size: tuple[int, int]) -> dict[str, Callable[[Any], bool]]:
    """Whether a value is what :data:`GIVEN` says, by its name, for a model of these sizes."""
    # No image file has another number of channels than those in MODES, so mean and std are then never used.
    lengths = (channels,) if channels in MODES else (channels, 3)
    return {
        # With these bounds a pixel is at most about 1e12. The square of a larger one, in a layer norm, can overflow.
        "mean": lambda value: _are_numbers(value) and len(value) in lengths and max(map(abs, value)) <= 1e6,
        "std": lambda value: _are_numbers(value) and len(value) in lengths and min(value) >= 1e-6,
        "interpolation": lambda value: isinstance(value, str) and value in RESAMPLE,
        "crop_pct": lambda value: _resizes(value, image_size),
        "crop_mode": lambda value: value in ("center", "squash", "border"),
        "input_size": lambda value: _are_numbers(value) and list(value) == [channels, *image_size],
    }


def wrong_value(values: Mapping[str, Any], channels: int, image_size: tuple[int, int]) -> str | None:
    """The first of :data:`~vitconv.checkpoints.description.DATA` that is none or missing; ``None`` if all are right.

    An interpolation that Transformers does not have is right.
    """
    checks = _checks(channels, image_size) | {"interpolation": lambda value: isinstance(value, str)}
    return next((name for name in DATA if not checks[name](values.get(name))), None)


def _check_given(
    given: Mapping[str, Any], architecture: AnyArchitecture, stated: SelfDescription | None = None
) -> None:
    checks = _checks(architecture.num_channels, architecture.image_size)
    for name, value in given.items():
        if name not in checks:
            raise InputError(f"The data configuration has an unknown name '{name}'.", _WRITE_JSON)
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
