"""timm models for ``TimmWrapper``: what of them goes into a folder's ``config.json``, and what is read back of it.

A ``config.json`` of this kind names one of timm's Vision Transformers and arguments of plain values; it brings no
code, and nothing in it may make timm load anything else than the folder's own weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.architecture import HEADS, Shapes, WrappedArchitecture, check_image_size
from vitconv.checkpoints.checkpoint import CONFIG_FILE
from vitconv.checkpoints.description import is_image_size
from vitconv.errors import ArchitectureError, CheckpointError, InputError, ParityError, VitconvError, first_few, shown
from vitconv.files import read_json
from vitconv.mapping.plan import check_names, check_tensors, shapes_of
from vitconv.mapping.wrapper import WRAPPER
from vitconv.models import catalogue
from vitconv.models.data_config import GIVEN, DataConfig, wrong_value
from vitconv.models.timm import build_timm

if TYPE_CHECKING:
    from torch import nn

#: Arguments by which timm loads something else than the model, or builds another one. ``num_classes`` has a place of
#: its own.
NOT_ARGUMENTS = (
    *("model_name", "num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
    *("cache_dir", "scriptable", "exportable", "no_jit", "kwargs", "variant", "model_cls", "model_cfg", "feature_cfg"),
    *("pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "kwargs_filter", "pruned"),
    *("features_only", "out_indices", "feature_cls", "output_fmt", "device", "dtype"),
)
#: What ``pretrained_cfg`` of a folder may hold: how images are prepared. Nothing in it says where weights are.
_DATA = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode", "num_classes")
_MOST_CLASSES = 10**6


# ------------------------------------------------------------------------------------------------------------
# From a timm model to a configuration.


def read_wrapped(model: Any) -> WrappedArchitecture:
    """The name, the arguments and the sizes of a model that timm has built; the weights may be on ``meta``.

    Raises:
        ArchitectureError: the model is none of timm's Vision Transformers, or its arguments do not rebuild it; the
            message names them.
    """
    from timm.models import get_model_args

    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name not in catalogue.entries() or not hasattr(model, "_model_args"):
        raise ArchitectureError(
            f"A {type(model).__name__} without the name of one of timm's Vision Transformers cannot be wrapped.",
            "Build it with `timm.create_model`, or pass the name.",
        )
    known = ("num_classes", "device")  # where it was built says nothing of what it is
    arguments = {key: value for key, value in get_model_args(model).items() if key not in known}
    if hasattr(model, "patch_embed"):
        arguments["img_size"] = tuple(model.patch_embed.img_size)
    for key, value in arguments.items():
        if key in NOT_ARGUMENTS or not _is_plain(value):
            raise ArchitectureError(
                f"The model was built with `{key}` {shown(value)}, which a config.json cannot express.",
                "Keep this model in timm.",
            )
    arguments = json.loads(json.dumps(arguments))
    _check_rebuilt(model, build_timm(name, num_classes=model.num_classes, **arguments))
    image_size, grid = _sizes(model)
    return WrappedArchitecture(
        name=name,
        model_args=arguments,
        image_size=image_size,
        num_channels=model.in_chans,
        num_labels=model.num_classes,
        num_features=model.num_features,
        grid=grid,
        shapes=shapes_of(model.state_dict()),
    )


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold the value, and timm gets the same back."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def _check_rebuilt(model: nn.Module, rebuilt: nn.Module) -> None:
    """Raise :class:`ArchitectureError` if two models differ, but for their weights and what training alone uses."""
    one, other = _facts(model), _facts(rebuilt)
    odd = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if odd or shapes_of(model.state_dict()) != shapes_of(rebuilt.state_dict()):
        what = f": {first_few(f'`{name}`' for name in odd)}" if odd else ""
        raise ArchitectureError(
            f"timm does not rebuild this model from its name and arguments{what}.",
            "Keep this model in timm, or pass it as timm has built it.",
        )


#: Attributes of timm's modules that change nothing in evaluation.
_OF_TRAINING = ("training", "grad_checkpointing", "distilled_training", "pretrained_cfg", "default_cfg")


def _facts(model: Any) -> dict[str, Any]:
    """What decides what a model computes, besides its weights: each module's class and attributes, and edits of it.

    As when timm itself saves a model, dropout and stochastic depth are left out.
    """
    facts: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if "drop" in path.rpartition(".")[2]:
            continue
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        replaced = [name for name in vars(module) if callable(getattr(type(module), name, None))]
        facts[path or type(module).__name__] = (type(module), hooks, replaced)
        for name, value in vars(module).items():
            if not name.startswith("_") and "drop" not in name and name not in _OF_TRAINING and _is_plain(value):
                facts[f"{path}.{name}".lstrip(".")] = value
    return facts


def _sizes(model: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """The image size and the grid of patches; a model for any size has those that timm prepares images to."""
    from timm.models._input import get_model_input_config

    patches = getattr(model, "patch_embed", None)
    if patches is not None:
        return tuple(patches.img_size), tuple(patches.grid_size)
    height, width = get_model_input_config(model)["input_size"][1:]
    patch = model.embeds.patch_size
    return (height, width), (height // patch[0], width // patch[1])


def wrapper_config(architecture: WrappedArchitecture, labels: Sequence[str], data: DataConfig) -> dict[str, Any]:
    """The contents of ``config.json``, as timm and Transformers' ``TimmWrapperConfig`` read it."""
    pool = architecture.model_args.get("global_pool")
    return {
        "architectures": [WRAPPER.class_name(architecture)],
        "model_type": WRAPPER.name,
        **WRAPPER.config(architecture),
        **({"global_pool": pool} if pool else {}),
        "label_names": list(labels),
        "pretrained_cfg": pretrained_cfg(data) | {"num_classes": architecture.num_labels},
    }


def pretrained_cfg(data: DataConfig) -> dict[str, Any]:
    """How images are prepared, by the names that timm has for it in a ``pretrained_cfg``."""
    return {
        "input_size": [data.num_channels, *data.image_size],
        "interpolation": data.interpolation,
        "mean": list(data.mean),
        "std": list(data.std),
        "crop_pct": data.crop_pct,
        "crop_mode": data.crop_mode,
    }


# ------------------------------------------------------------------------------------------------------------
# The sizes of weights.


def sized_wrapped(
    own: WrappedArchitecture,
    shapes: Shapes,
    image_size: tuple[int, int] | None,
    stated: Any,
    build: Callable[..., nn.Module],
) -> tuple[WrappedArchitecture, WrappedArchitecture]:
    """The architecture at the sizes that the weights were trained for, and at the sizes asked for.

    Nothing is concluded from names: timm builds the model at every size that may be right, until its tensors have the
    shapes of the weights.

    Args:
        own: with timm's own sizes, or those that the checkpoint states.
        shapes: of the weights.
        image_size: the wanted one; by default the weights'.
        stated: the image size that the checkpoint states.
        build: gives timm's model, by ``num_classes``, ``in_chans`` and ``img_size``.

    Raises:
        WeightsError: the weights do not fit the architecture at any size.
        InputError: the image size is needed.
    """
    classes = next((shapes[name][0] for name in HEADS if shapes.get(name)), 0)

    def at(channels: int, size: tuple[int, int]) -> WrappedArchitecture:
        return read_wrapped(build(num_classes=classes, in_chans=channels, img_size=size))

    def fitted(channels: int) -> WrappedArchitecture | None:
        for size in dict.fromkeys(_possible_sizes(own, shapes, image_size, stated)):
            check_image_size(size)
            try:
                found = at(channels, size)
            except ArchitectureError:
                continue  # timm builds no model of this size
            if found.shapes == shapes:
                return found
        return None

    base = at(own.num_channels, own.image_size)
    check_names(base.shapes, shapes)
    trained = fitted(own.num_channels)
    if trained is None:
        more = at(own.num_channels + 1, own.image_size)
        channels = _channels(base, more, shapes)
        trained = fitted(channels) if channels != own.num_channels else None
    if trained is None:
        positions = shapes["pos_embed"] if len(shapes.get("pos_embed", ())) == 3 else None
        others = {name: shape for name, shape in base.shapes.items() if name != "pos_embed"}
        if positions and positions[2] == base.shapes["pos_embed"][2] and others.items() <= shapes.items():
            raise InputError(
                f"`pos_embed` was trained for {positions[1]} positions, which is not a square of patches.",
                "Give the image size (height, width): --img-size H W.",
            )
        check_tensors(base.shapes, shapes)
        raise ArchitectureError(f"timm builds no '{own.name}' that the weights fit.", "Name another architecture.")
    if image_size is None or tuple(image_size) == trained.image_size:
        return trained, trained
    return trained, at(trained.num_channels, (int(image_size[0]), int(image_size[1])))


def _possible_sizes(
    own: WrappedArchitecture, shapes: Shapes, image_size: tuple[int, int] | None, stated: Any
) -> Iterator[tuple[int, int]]:
    """The image sizes that weights may have been trained for, the likeliest first."""
    if image_size is not None:
        yield int(image_size[0]), int(image_size[1])
    if is_image_size(stated):
        yield stated
    yield own.image_size
    stride = [size // patches for size, patches in zip(own.image_size, own.grid, strict=True)]
    positions = shapes.get("pos_embed", ())
    if len(positions) == 4:  # SAM's, in rows and columns
        yield positions[1] * stride[0], positions[2] * stride[1]
    if len(positions) == 3:
        side = math.isqrt(max(positions[1] - own.num_positions + math.prod(own.grid), 0))
        if side:
            yield side * stride[0], side * stride[1]
    table = shapes.get("blocks.0.attn.relative_position_bias_table", ())
    if len(table) == 2:  # (2·side − 1)² distances, and three for the class token
        side = (math.isqrt(max(table[0] - 3, 0)) + 1) // 2
        if side:
            yield side * stride[0], side * stride[1]


def _channels(base: WrappedArchitecture, more: WrappedArchitecture, shapes: Shapes) -> int:
    """The number of channels, by the tensors that grow where the model has one more."""
    for name, shape in base.shapes.items():
        for one, other, found in zip(shape, more.shapes[name], shapes[name], strict=False):
            step = other - one
            if step > 0 and found % step == 0 and found:
                return found // step
    return base.num_channels


# ------------------------------------------------------------------------------------------------------------
# Back from a folder.


def is_wrapper(folder: Path) -> bool:
    """Whether a folder's ``config.json`` says that it is for ``TimmWrapper``; what is wrong in it shows later."""
    try:
        return read_json(folder / CONFIG_FILE).get("model_type") == WRAPPER.name
    except (VitconvError, OSError):
        return False


def check_wrapper(folder: Path, content: Mapping[str, Any]) -> None:
    """Check a ``config.json`` before Transformers and timm build anything of it.

    Raises:
        CheckpointError: it names none of timm's Vision Transformers.
        ParityError: it holds anything but plain arguments of it, its classes and how images are prepared.
        InputError: its images are too large.
    """
    name, arguments = content.get("architecture"), content.get("model_args")
    if not isinstance(name, str) or name not in catalogue.entries():
        raise CheckpointError(
            f"The config.json in '{folder}' names the architecture {shown(name)}, which is none of timm's Vision "
            "Transformers.",
            "Pass a folder that `vitconv convert` has written.",
        )
    if not isinstance(arguments or {}, dict):
        raise _wrong("model_args", arguments)
    for key, value in (arguments or {}).items():
        if key in NOT_ARGUMENTS or not _is_plain(value):
            raise _wrong(f"model_args.{key}", value)
    size = (arguments or {}).get("img_size")
    sides = tuple(size) if isinstance(size, list) else (size, size)
    if is_image_size(sides):
        check_image_size(sides)
    _check_classes(content)
    cfg = content.get("pretrained_cfg")
    if not isinstance(cfg, dict):
        raise _wrong("pretrained_cfg", cfg)
    for key, value in cfg.items():
        if key not in _DATA:
            raise _wrong(f"pretrained_cfg.{key}", value)
    size = cfg.get("input_size")
    if not (isinstance(size, list) and len(size) == 3 and is_image_size(tuple(size[1:])) and _is_count(size[0], 1)):
        raise _wrong("pretrained_cfg.input_size", size)
    check_image_size((size[1], size[2]))
    count = content["num_classes"]
    if cfg.get("num_classes", count) != count:
        raise _contradiction("pretrained_cfg.num_classes", cfg["num_classes"], f"`num_classes` is {count}")
    wrong = wrong_value(cfg, size[0], (size[1], size[2]))
    if wrong is not None:
        raise ParityError(
            f"`pretrained_cfg.{wrong}` in config.json is {shown(cfg.get(wrong))}. It must be {GIVEN[wrong]}.",
            "Correct this setting, or convert the source again.",
            stage="config",
        )


def _check_classes(content: Mapping[str, Any]) -> None:
    """Raise :class:`ParityError` unless every class has a name: without names, Transformers takes ImageNet's."""
    count, names = content.get("num_classes"), content.get("label_names")
    if not _is_count(count, 0):
        raise _wrong("num_classes", count)
    if not isinstance(names, list) or len(names) != count or not all(isinstance(label, str) for label in names):
        raise ParityError(
            f"The labels in config.json are not those of the classes: `num_classes` is {count}, and `label_names` is "
            f"{shown(names)}.",
            "Write one name for each class into `label_names`, or convert the source again.",
            stage="labels",
        )


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _MOST_CLASSES


def _wrong(name: str, value: Any) -> ParityError:
    return ParityError(
        f"`{name}` in config.json is {shown(value)}, which no conversion writes: it may make timm build or load "
        "something else.",
        "Correct or remove this setting, or convert the source again.",
        stage="config",
    )


def _contradiction(name: str, value: object, other: str) -> ParityError:
    return ParityError(
        f"`{name}` in config.json is {shown(value)}, but {other}.",
        "Correct this setting, or convert the source again.",
        stage="config",
    )


def check_size(folder: Path, content: Mapping[str, Any], stored: Shapes) -> None:
    """Check the sizes of a model, before Transformers makes room for it.

    Raises:
        CheckpointError: it is larger than its weights, or they have other shapes.
        ParityError: images are prepared in another size than its own.
    """
    model: Any = build_timm(
        content["architecture"], num_classes=content["num_classes"], **(content.get("model_args") or {})
    )
    given = content["pretrained_cfg"]["input_size"]
    own = [model.in_chans, *(_sizes(model)[0] if hasattr(model, "patch_embed") else given[1:])]
    if given != own:
        raise _contradiction("pretrained_cfg.input_size", given, f"the model's is {own}")
    shapes = shapes_of(model.state_dict())
    wanted, found = (sum(map(math.prod, each.values())) for each in (shapes, stored))
    if wanted > found:
        raise CheckpointError(
            f"The model in the config.json in '{folder}' has {wanted:,} elements, and its weights have {found:,}.",
            "Check that the folder is whole.",
        )
    # Smaller patches have smaller weights, but more positions, whose rotary angles are in no file.
    both = {name: stored.get(name, stored.get(f"timm_model.{name}", shape)) for name, shape in shapes.items()}
    odd = [name for name, shape in shapes.items() if both[name] != shape]
    if odd:
        raise CheckpointError(
            f"The model in the config.json in '{folder}' has tensors of other shapes than its weights: "
            f"{first_few(odd)}.",
            "Check that the folder is whole.",
        )
