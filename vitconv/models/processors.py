"""The image processors of a folder: written from timm's data configuration, read back, and loaded.

timm resizes the short edge, crops the centre and normalises. ``CLIPImageProcessor`` is the Transformers class that has
done all three steps since 4.x. With the PIL backend it gives timm's pixels bit for bit, with two exceptions: where the
margin around the crop is 3, 7, 11… pixels it begins the crop one pixel earlier, and it blends transparency with white
(:func:`vitconv.models.pixels.known_difference`). It does not need timm, and ``AutoImageProcessor`` and pipelines load
it from ``preprocessor_config.json``.

``TimmWrapperImageProcessor`` of Transformers runs timm's own transform. It gives timm's pixels of every image, but
needs timm. Its settings are in a separate file, ``timm_processor.json``.

Neither rotates a photo by its EXIF orientation, as timm's datasets do not; ``transformers.pipeline`` and
``transformers.image_utils.load_image`` do, before the processor sees the photo.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitconv.architecture import Architecture
from vitconv.checkpoints.checkpoint import CONFIG_FILE
from vitconv.errors import InputError, VitconvError, first_few, shown
from vitconv.files import MOST_TEXT, check_file, read_json
from vitconv.models.data_config import RESAMPLE, DataConfig, makes_pixels
from vitconv.models.huggingface import quiet
from vitconv.models.wrapper import is_wrapper, pretrained_cfg

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

PROCESSOR_FILE = "preprocessor_config.json"
TIMM_PROCESSOR_FILE = "timm_processor.json"
#: What processors of images and text are saved to. An image processor in it overrides every other file.
NESTED_FILE = "processor_config.json"
ProcessorName = Literal["transformers", "timm"]
#: The image processors that a folder may have, each with its file: Transformers' own, and timm's transform.
PROCESSORS: dict[str, str] = {"transformers": PROCESSOR_FILE, "timm": TIMM_PROCESSOR_FILE}
TIMM_CLASS = "TimmWrapperImageProcessor"
#: What Transformers makes of the processor that vitconv writes, with the PIL backend.
PIL_CLASS = "CLIPImageProcessorPil"


def obstacle(config: DataConfig) -> str | None:
    """The reason why Transformers has no image processor for this configuration; ``None`` if it has one."""
    if not makes_pixels(config):
        return f"Image files have 1 or 3 channels, but the model has {config.num_channels}."
    if config.crop_mode == "border":
        return "Transformers has no image processor that pads the borders with the mean (`crop_mode='border'`)."
    if config.interpolation not in RESAMPLE:
        return f"Transformers has no fixed resampling for timm's interpolation {shown(config.interpolation)}."
    if config.crop_mode != "squash" and config.image_size[0] != config.image_size[1]:
        return "Transformers cannot resize an image to cover a rectangle (`crop_mode='center'`, not square)."
    return None


def missing_processor(config: DataConfig) -> str | None:
    """Why a folder gets no ``preprocessor_config.json``, and the alternative; ``None`` if it gets one."""
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
        "resample": RESAMPLE[config.interpolation],
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
        "image_processor_type": TIMM_CLASS,
        "architecture": architecture,
        "pretrained_cfg": pretrained_cfg(config),
    }


def timm_data_config(folder: Path, file: str = TIMM_PROCESSOR_FILE) -> DataConfig | None:
    """What ``timm_processor.json`` in a folder says of timm's pixels; ``None`` if it cannot be told.

    It needs no timm: the values tell for which images timm and Transformers are known to differ.
    """
    try:
        values = read_json(folder / file)["pretrained_cfg"]
        channels, height, width = map(int, values["input_size"])
        config = DataConfig(
            (height, width),
            channels,
            str(values["interpolation"]),
            tuple(map(float, values["mean"])),
            tuple(map(float, values["std"])),
            float(values["crop_pct"]),
            str(values["crop_mode"]),
        )
        sides = config.resize
    except (VitconvError, KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return config if min(height, width, *sides) > 0 else None


def from_processor(
    content: Mapping[str, Any], architecture: Architecture, file: str = PROCESSOR_FILE
) -> dict[str, Any]:
    """timm's names for what a ``preprocessor_config.json`` does: the way back from :func:`processor_config`.

    Only the settings named here are read. Other steps of a processor, such as padding, show in the pixels of
    :func:`vitconv.models.pixels.probe_images`.

    Args:
        content: the processor's settings.
        architecture: the model's.
        file: where they are from, for people.

    Raises:
        InputError: it does something that timm's evaluation transform does not.
    """
    size, crop = _sides(content.get("size")), _sides(content.get("crop_size"))
    height, width = architecture.image_size
    cropped: tuple[int, ...] | None = (crop["height"], crop["width"]) if crop.keys() == {"height", "width"} else ()
    if not content.get("do_center_crop"):
        cropped = None
    given: dict[str, Any] = {
        "mean": content.get("image_mean"),
        "std": content.get("image_std"),
        "interpolation": {str(number): name for name, number in RESAMPLE.items()}.get(str(content.get("resample"))),
    }
    share = None
    if size.keys() == {"shortest_edge"} and cropped == (height, width) and height == width:
        share, given["crop_mode"] = _crop_pct((height, width), (size["shortest_edge"],) * 2), "center"
    elif size.keys() == {"height", "width"} and cropped in (None, (height, width)):
        resized = (size["height"], size["width"])
        # Without a crop, the resized image is what the model gets.
        share = _crop_pct((height, width), resized) if cropped or resized == (height, width) else None
        given["crop_mode"] = "squash"
    if share is not None:
        given["crop_pct"] = share
    factor = content.get("rescale_factor", 1 / 255)
    odd = {
        "image_mean": given["mean"] is None,
        "image_std": given["std"] is None,
        "resample": given["interpolation"] is None,
        "size": share is None,
        **{name: not content.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize")},
        "rescale_factor": not isinstance(factor, float) or not math.isclose(factor, 1 / 255),
    }
    if odd["size"] and cropped is not None:  # either of the two may be the wrong one
        odd["crop_size"] = True
    wrong = [f"`{name}` is {shown(content.get(name))}" for name, is_odd in odd.items() if is_odd]
    if wrong:
        raise InputError(
            f"timm has no transform that does what {file} does: {', '.join(wrong)}.",
            "Correct it, or remove it: then the architecture's own preprocessing is taken.",
        )
    return given


def _sides(size: Any) -> dict[str, int]:
    """A processor's size as a mapping of positive numbers; empty if it is anything else."""
    whole = isinstance(size, dict) and all(type(side) is int and side > 0 for side in size.values())
    return size if whole else {}


def _crop_pct(crop: tuple[int, int], resized: tuple[int, int]) -> float | None:
    """The ``crop_pct`` with which timm resizes to these sides, floor(side / crop_pct); ``None`` if there is none."""
    for side, goal in zip(crop, resized, strict=True):
        near = side / goal
        for share in (round(near, 2), round(near, 3), round(near, 6), near, math.nextafter(near, 0)):
            if share and tuple(math.floor(one / share) for one in crop) == resized:
                return share
    return None


def load_processor(folder: str | Path, processor: ProcessorName = "transformers") -> BaseImageProcessor:
    """An image processor of the folder.

    Args:
        folder: as vitconv writes it.
        processor: ``"transformers"`` for ``preprocessor_config.json``, with the backend that makes timm's pixels
            (PIL); ``"timm"`` for ``timm_processor.json``, which needs timm. A folder for ``TimmWrapper`` has one
            image processor, timm's, in its ``config.json``.

    Raises:
        InputError: the name is unknown, the folder does not have this processor, Transformers cannot read it or takes
            its settings from another file (:data:`NESTED_FILE`), or timm is not installed.
    """
    if processor not in PROCESSORS:
        raise InputError(f"There is no processor '{processor}'.", f"Choose one of {', '.join(PROCESSORS)}.")
    if is_wrapper(Path(folder)):
        return _load_wrapper_processor(Path(folder))
    return _load_timm_processor(Path(folder)) if processor == "timm" else _load_own_processor(Path(folder))


def processor_file(folder: Path) -> str | None:
    """The name of the file from which Transformers takes a folder's image processor; ``None`` if there is none.

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
        return NESTED_FILE  # loading it raises the error
    nested = not isinstance(content, dict) or content.get("image_processor") is not None
    return NESTED_FILE if nested else own


def load_any_processor(folder: Path) -> BaseImageProcessor:
    """The image processor that Transformers itself loads from a folder, whoever wrote it; with the PIL backend.

    Code in the folder is not run, and nobody is asked whether to run it.

    Raises:
        InputError: the folder has no image processor that Transformers can read.
    """
    file = processor_file(folder) or (CONFIG_FILE if is_wrapper(folder) else PROCESSOR_FILE)
    return _from_pretrained(folder, folder, file)


def _from_pretrained(path: Path, folder: Path, file: str) -> BaseImageProcessor:
    """The image processor in a folder, or in one file of it."""
    import transformers

    major = int(transformers.__version__.partition(".")[0])
    pil: dict[str, Any] = {"backend": "pil"} if major >= 5 else {"use_fast": False}
    try:
        # Without the last argument, Transformers asks on the terminal about a folder that has code.
        with quiet():
            processor = transformers.AutoImageProcessor.from_pretrained(path, **pil, trust_remote_code=False)
    except Exception as error:  # its settings are checked by Transformers, each in its own way
        raise InputError(
            f"'{folder}' has no {file} that Transformers can read.",
            "Restore it, or convert the checkpoint again. With `--processor timm`, which `predict`, `evaluate` and "
            f"others take, {TIMM_PROCESSOR_FILE} is read instead."
            if (folder / TIMM_PROCESSOR_FILE).is_file()
            else "Pass a folder that `vitconv convert` has written; where it warned that there is no image processor "
            "for the model, prepare the pixels in your own code.",
        ) from error
    if getattr(processor, "auto_map", None):
        raise InputError(
            f"{file} in '{folder}' asks for code from the folder, which vitconv does not run.",
            "Write the settings of one of Transformers' own image processors into it, without `auto_map`.",
        )
    return processor


def _load_own_processor(folder: Path) -> BaseImageProcessor:
    loaded = load_any_processor(folder)
    _check_override(folder, PROCESSOR_FILE, loaded, _from_pretrained(folder / PROCESSOR_FILE, folder, PROCESSOR_FILE))
    return loaded


def _load_wrapper_processor(folder: Path) -> BaseImageProcessor:
    """The image processor that Transformers makes of the ``config.json`` of a folder for ``TimmWrapper``."""
    other = processor_file(folder)
    loaded = None if other else load_any_processor(folder)
    if type(loaded).__name__ != TIMM_CLASS:
        raise InputError(
            f"Transformers takes the image processor in '{folder}' from {other or 'another class'}, not timm's "
            "transform from config.json.",
            f"Remove {other}." if other else "Convert the checkpoint again.",
        )
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
            f"The image processor in {TIMM_PROCESSOR_FILE} needs timm and torchvision; at least one of them is "
            "not installed.",
            "Install them with pip install timm torchvision, or choose the processor 'transformers'.",
        ) from error
    except Exception as error:  # timm does not check the settings, so using a wrong one can raise anything
        raise InputError(
            f"'{folder}' has no {TIMM_PROCESSOR_FILE} that Transformers can read.",
            f"Remove {NESTED_FILE}, which Transformers takes instead."
            if nested
            else "Convert the checkpoint again, or restore the file.",
        ) from error
    _check_override(folder, TIMM_PROCESSOR_FILE, loaded, own)
    return loaded
