"""What a checkpoint says of itself: the architecture, its arguments, its sizes, how it wants its images prepared.

timm's training script saves its arguments beside the weights, Lightning its hyperparameters, and a folder for the Hub
has a ``config.json``. All of that is read here into one :class:`SelfDescription`, by timm's names and with the place
where each thing stands. It supplies what the user does not give. A contradiction with what the user gives is an error:
neither side wins silently. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitconv.architecture import MOST_PIXELS
from vitconv.errors import ArchitectureError, CheckpointError, InputError, shown

#: How timm prepares images: the names in its ``pretrained_cfg`` and its training script's arguments.
DATA = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
#: What the weights tell as well.
SIZES = ("num_classes", "in_chans", "img_size")
#: What is neither a size nor an argument of the model.
_OTHERS = ("architecture", "pretrained_cfg", "label_names", "class_map", "input_img_mode", *DATA)
#: Arguments of ``timm.create_model`` for loading weights and compiling code: they do not change what is computed.
_OF_LOADING = (
    *("checkpoint_path", "pretrained", "cache_dir", "pretrained_model_args", "pretrained_strict"),
    *("scriptable", "exportable", "no_jit"),
)
#: Arguments that change the model in ways that vitconv does not read.
_OF_ANOTHER_MODEL = ("pretrained_cfg", "pretrained_cfg_overlay", "features_only")
#: Arguments of timm's Vision Transformers that decide what they compute: also read from the top level of Lightning's
#: hyperparameters.
_OF_THE_MODEL = (
    *("act_layer", "attn_layer", "block_fn", "class_token", "depth", "dynamic_img_size", "embed_dim", "fc_norm"),
    *("final_norm", "global_pool", "init_values", "mlp_layer", "mlp_ratio", "no_embed_class", "norm_layer"),
    *("num_heads", "patch_size", "pool_include_prefix", "pos_embed", "pre_norm", "proj_bias", "qk_norm", "qkv_bias"),
    *("reg_tokens",),
)
#: Keys under which people save the name of the architecture.
_ARCHITECTURE = ("architecture", "arch", "model", "model_name")
#: Prefixes of models in timm's organisation on the Hub: what follows is the architecture and its tag.
_TIMM_ON_THE_HUB = ("hf-hub:timm/", "hf_hub:timm/", "timm/")


#: The most values in one setting, and the most names in one list: ImageNet-21k has 21,843 classes. What a file repeats
#: by reference counts each time.
_MOST_VALUES, _MOST_NAMES = 10_000, 100_000


@dataclass(frozen=True)
class Statement:
    """One thing that a checkpoint says of itself.

    Attributes:
        value: as it stands there.
        where: the place, for people: ``"args.mean"``.
        of_model: whether it is an argument of the model, which does not tell the size of the training images.
    """

    value: Any
    where: str
    of_model: bool = False


@dataclass(frozen=True)
class Unreadable:
    """Stands in for a value that vitconv does not read.

    Attributes:
        reason: why, as the rest of a sentence that begins with the value's place: ``"is a set, …"``.
    """

    reason: str

    def __str__(self) -> str:
        return "a value that is not read"


@dataclass(frozen=True)
class SelfDescription:
    """All that a checkpoint says of itself.

    Attributes:
        statements: by timm's names: ``architecture``, the :data:`SIZES`, :data:`DATA`, ``pretrained_cfg``,
            ``label_names``, ``class_map``; every other name is an argument of the model, such as ``global_pool``.
        rates: dropout rates and the like, by the names of timm's arguments: they only matter in training.
    """

    statements: Mapping[str, Statement] = field(default_factory=dict)
    rates: Mapping[str, Any] = field(default_factory=dict)

    def check_readable(self) -> None:
        """Raise :class:`CheckpointError` if a statement cannot be read. First remove ignored ones: :meth:`without`."""
        values = {name: (statement.value, statement.where) for name, statement in self.statements.items()}
        for name, value in self.pretrained_cfg.items():
            values[name] = value, f"{self.where('pretrained_cfg')}: {name}"
        for name, (value, where) in values.items():
            if isinstance(value, Unreadable):
                raise CheckpointError(
                    f"The checkpoint's `{where}` {value.reason}.",
                    f"Correct it there, or pass --ignore {name} and give the right value yourself.",
                )

    def get(self, name: str) -> Any:
        """The value that is stated for a name; ``None`` if none is."""
        statement = self.statements.get(name)
        return None if statement is None else statement.value

    def where(self, name: str) -> str:
        """The place where a name is stated."""
        return self.statements[name].where

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """timm's ``pretrained_cfg``; empty if none is stated, or one that is not read."""
        cfg = self.get("pretrained_cfg")
        return cfg if isinstance(cfg, Mapping) else {}

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments of timm's model, without its sizes."""
        return {
            name: statement.value
            for name, statement in self.statements.items()
            if name not in _OTHERS and name not in SIZES
        }

    @property
    def data(self) -> dict[str, Any]:
        """The stated preprocessing, by the names in :data:`DATA`: it overrides a tag's and ``pretrained_cfg``'s."""
        return {name: self.get(name) for name in DATA if name in self.statements}

    def without(self, names: Collection[str]) -> SelfDescription:
        """The same without some statements.

        Raises:
            InputError: the checkpoint does not state one of the names.
        """
        cfg = self.pretrained_cfg
        unknown = [name for name in names if name not in (*self.statements, *cfg, *SIZES)]
        if unknown:
            said = sorted({*self.statements, *(name for name in DATA if name in cfg)})
            raise InputError(
                f"The checkpoint does not state '{unknown[0]}', so it cannot be ignored.",
                f"Choose from what it states: {', '.join(said)}." if said else "Leave the option out.",
            )
        kept = {name: statement for name, statement in self.statements.items() if name not in names}
        if "pretrained_cfg" in kept and isinstance(kept["pretrained_cfg"].value, Mapping):
            values = {name: value for name, value in cfg.items() if name not in names}
            kept["pretrained_cfg"] = Statement(values, kept["pretrained_cfg"].where)
        return SelfDescription(kept, self.rates)

    def stating(self, name: str, value: Any) -> SelfDescription:
        """The same with another value for a name."""
        return SelfDescription({**self.statements, name: replace(self.statements[name], value=value)}, self.rates)

    def filled(self, values: Mapping[str, Any], where: str, ignore: Collection[str]) -> SelfDescription:
        """The same with more statements, for names that are neither stated yet nor ignored."""
        more = {name: Statement(value, where, of_model=True) for name, value in values.items() if name not in ignore}
        return SelfDescription({**more, **self.statements}, self.rates)

    def __str__(self) -> str:
        """The statements, for people, without ``pretrained_cfg`` and ``label_names``, which are long."""
        shown = [
            f"{name} {_short(statement.value)} ({statement.where})"
            for name, statement in self.statements.items()
            if name not in ("pretrained_cfg", "label_names")
        ]
        return ", ".join(shown)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)[:100]


def describe(content: Mapping[Any, Any], ignore: Collection[str] = ()) -> SelfDescription:
    """Read what the content of a file says of the weights in it.

    Args:
        content: what the file holds; timm's training script saves ``arch`` and ``args``, Lightning
            ``hyper_parameters``, and people ``model_args``, ``pretrained_cfg`` or ``label_names`` as in a
            ``config.json``.
        ignore: names that may be stated contradictorily, because they are not used.

    Raises:
        CheckpointError: two of its statements contradict each other.
    """
    args, hyper = _as_mapping(content.get("args")), _as_mapping(content.get("hyper_parameters"))
    found = [*_of_configuration(content), *_of_arguments(args, "args."), *_of_hyperparameters(hyper)]
    return SelfDescription(_merged(found, ignore), {**args, **_as_mapping(args.get("model_kwargs")), **hyper})


def describe_folder(
    architecture: str,
    pretrained_cfg: Mapping[str, Any],
    model_args: Mapping[str, Any],
    *,
    file: str,
    ignore: Collection[str] = (),
) -> SelfDescription:
    """What a folder's ``config.json`` says, as timm reads it: ``timm.models.load_model_config_from_path``.

    Raises:
        CheckpointError: two of its statements contradict each other, in a name that is not ignored.
    """
    cfg = _readable_cfg(pretrained_cfg)
    found = [("architecture", Statement(architecture, file)), ("pretrained_cfg", Statement(cfg, file))]
    found += [*_of_model_args(model_args, f"{file}: model_args.")]
    names = pretrained_cfg.get("label_names")
    if isinstance(names, (list, tuple, dict)):
        found.append(("label_names", Statement(names, file)))
    return SelfDescription(_merged(found, ignore), dict(model_args))


def together(*descriptions: SelfDescription, ignore: Collection[str] = ()) -> SelfDescription:
    """Merge the descriptions from several places.

    Raises:
        CheckpointError: two of them contradict each other, in a name that is not ignored.
    """
    found = [item for description in descriptions for item in description.statements.items()]
    rates: dict[str, Any] = {}
    for description in descriptions:
        rates |= description.rates
    return SelfDescription(_merged(found, ignore), rates)


def base_name(architecture: str) -> str:
    """timm's name without its tag."""
    return architecture.partition(".")[0]


def check_architecture(given: str, description: SelfDescription) -> str:
    """The name to build by: the given one, or the checkpoint's own where that also has a tag.

    Raises:
        ArchitectureError: they name two architectures.
    """
    stated = description.get("architecture")
    if stated is None:
        return given
    if base_name(given) != base_name(stated):
        raise ArchitectureError(
            f"The architecture given is '{given}', but the checkpoint says '{stated}' "
            f"(`{description.where('architecture')}`).",
            "Leave --arch out to take the checkpoint's, or pass --ignore architecture to take yours.",
        )
    return given if "." in given else stated


def check_data(given: Mapping[str, Any], description: SelfDescription) -> None:
    """Raise :class:`InputError` if the given preprocessing contradicts what the checkpoint says of itself."""
    for name, value in given.items():
        if name in DATA and name in description.statements:
            stated, where = description.get(name), f"`{description.where(name)}`"
        elif name in DATA and description.pretrained_cfg.get(name):
            stated, where = description.pretrained_cfg[name], description.where("pretrained_cfg")
        else:
            continue
        if not same_value(value, stated):
            raise InputError(
                f"The given `{name}` is {_short(value)}, but the checkpoint says {_short(stated)} ({where}).",
                f"Leave `{name}` out to take the checkpoint's, or pass --ignore {name} to take yours.",
            )


def check_sizes(
    description: SelfDescription, *, num_classes: int | None, in_chans: int, img_size: tuple[int, int] | None
) -> None:
    """Raise :class:`CheckpointError` if the weights' shapes contradict what the checkpoint says of itself.

    Args:
        description: what the checkpoint says of itself.
        num_classes, in_chans, img_size: the sizes of the weights; ``None`` to skip a size, because the weights do not
            determine it or because it does not matter.
    """
    told = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size}
    for name, value in told.items():
        stated = description.get(name)
        if stated is None or value is None or same_value(stated, value):
            continue
        if not (is_image_size(stated) if name == "img_size" else type(stated) is int):
            raise CheckpointError(
                f"The checkpoint's `{description.where(name)}` is {shown(stated)}, which is not a size.",
                f"Correct it there, or pass --ignore {name} to take the size of the weights ({_short(value)}).",
            )
        remedy = f"Check that this is the right file, or pass --ignore {name} to take the size of the weights."
        if name == "img_size":
            height, width = stated
            remedy = (
                f"Pass --img-size {height} {width} to resample the position embedding to that size as timm does, or "
                "--ignore img_size to take the weights' own."
            )
        raise CheckpointError(
            f"The checkpoint says `{name}` {_short(stated)} ({description.where(name)}), but the weights have "
            f"{_short(value)}.",
            remedy,
        )


def is_image_size(value: Any) -> bool:
    """Whether it is (height, width) in pixels."""
    return isinstance(value, tuple) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def check_folder(folder: SelfDescription, weights: SelfDescription) -> None:
    """Raise :class:`CheckpointError` if a folder's ``config.json`` and its file of weights say different things."""
    cfg = folder.pretrained_cfg
    for name, value in weights.data.items():
        if cfg.get(name) and not same_value(cfg[name], value):
            raise CheckpointError(
                f"The folder says `{name}` {_short(cfg[name])} in {folder.where('pretrained_cfg')}, but its weights "
                f"file says {_short(value)} in `{weights.where(name)}`.",
                f"Give the right one with --data-config, and pass --ignore {name}.",
            )


def same_value(one: Any, other: Any) -> bool:
    """Whether two settings are the same; lists and tuples of the same numbers are."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        longest = max(len(one), len(other))
        # One number for all channels is the same as that number for each.
        one, other = (list(side) * longest if len(side) == 1 else list(side) for side in (one, other))
        return one == other
    return bool(one == other)


# ------------------------------------------------------------------------------------------------------------
# Reading.


def _as_mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    return {str(name): one for name, one in value.items()} if isinstance(value, Mapping) else {}


def _of_configuration(content: Mapping[Any, Any]) -> Iterator[tuple[str, Statement]]:
    """What the top level of a file states, beside the weights."""
    for name in ("architecture", "arch"):
        if isinstance(content.get(name), str):
            yield "architecture", Statement(content[name], name)
    yield from _of_model_args(_as_mapping(content.get("model_args")), "model_args.")
    if isinstance(content.get("pretrained_cfg"), Mapping):
        cfg = _readable_cfg(_as_mapping(content["pretrained_cfg"]))
        yield "pretrained_cfg", Statement(cfg, "pretrained_cfg")
        if isinstance(cfg.get("architecture"), str):
            yield "architecture", Statement(cfg["architecture"], "pretrained_cfg.architecture")
    if isinstance(content.get("label_names"), (list, tuple, dict)):
        yield "label_names", Statement(content["label_names"], "label_names")


def _of_hyperparameters(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Statement]]:
    """What Lightning saved, by timm's names: at the top level of its hyperparameters, or in a mapping there."""
    nested = {
        f"{name}.": _as_mapping(value)
        for name, value in parameters.items()
        if name not in ("model_kwargs", "model_args") and _as_mapping(value)
    }
    for place, values in {"": parameters, **nested}.items():
        prefix = f"hyper_parameters.{place}"
        yield from _of_arguments(values, prefix)
        yield from _of_model_args(_as_mapping(values.get("model_args")), f"{prefix}model_args.")
        alone = {name: values[name] for name in _OF_THE_MODEL if name in values and name != "global_pool"}
        yield from _of_model_args(alone, prefix)


#: What scripts of BEiT's kind mean by ``imagenet_default_mean_and_std``: mean and std.
_IMAGENET = {
    True: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    False: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _of_arguments(arguments: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Statement]]:
    """The statements in the arguments of timm's training script, or in others with the same names, but for ``None``.

    timm also treats empty and zero values of the preprocessing as not given, except for ``mean`` and ``std``.
    """
    for name in _ARCHITECTURE:
        if isinstance(arguments.get(name), str) and arguments[name]:
            yield "architecture", Statement(arguments[name], prefix + name)
    for name in ("gp", "global_pool"):
        pool = arguments.get(name)
        if isinstance(pool, bool):  # MAE's script: the mean of the patches, or not
            pool = "avg" if pool else "token"
        if isinstance(pool, str):
            yield "global_pool", Statement(pool, prefix + name, of_model=True)
    for name in ("in_chans", "chans", "num_classes", "img_size"):
        if arguments.get(name) is not None:
            yield _size(name, arguments[name], prefix + name)
    yield from _of_input_size(arguments.get("input_size"), prefix)
    yield from _of_model_args(_as_mapping(arguments.get("model_kwargs")), f"{prefix}model_kwargs.")
    for name in DATA:
        value = _readable(arguments.get(name))
        if value is not None and (value or name in ("mean", "std")):
            yield name, Statement(value, prefix + name)
    default = arguments.get("imagenet_default_mean_and_std")
    if isinstance(default, bool) and arguments.get("mean") is None:
        for name, value in zip(("mean", "std"), _IMAGENET[default], strict=True):
            yield name, Statement(value, f"{prefix}imagenet_default_mean_and_std")
    for name in ("class_map", "input_img_mode"):
        if isinstance(arguments.get(name), str) and arguments[name]:
            yield name, Statement(arguments[name], prefix + name)


def _readable(value: Any) -> Any:
    """A value made of text, numbers of ordinary size, lists and mappings; :class:`Unreadable` for any other."""
    most = left = _MOST_NAMES if _are_names(value) else _MOST_VALUES

    def unreadable(value: Any, depth: int) -> Unreadable | None:
        nonlocal left
        left -= 1
        if left < 0:
            return Unreadable(f"has more than {most:,} values")
        if value is None or isinstance(value, (bool, str)):
            return None
        if isinstance(value, (int, float)):
            ordinary = abs(value) < 1e300 or value != value
            return None if ordinary else Unreadable("is too large a number")
        if not isinstance(value, (list, tuple, Mapping)):
            return Unreadable(f"is a {type(value).__name__}, which vitconv does not read")
        if depth > 4 and value:
            return Unreadable("is nested too deeply")
        inner = value.values() if isinstance(value, Mapping) else value
        found = (unreadable(one, depth + 1) for one in inner)
        return next((one for one in found if one is not None), None)

    return unreadable(value, 0) or value


def _are_names(value: Any) -> bool:
    """Whether it is a list of plain strings, or a mapping to them: class names, or their descriptions."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and all(type(one) is str for one in value)


def _readable_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A ``pretrained_cfg`` of readable values; its ``input_size`` is (channels, height, width)."""
    values = {name: _readable(value) for name, value in cfg.items()}
    size = values.get("input_size")
    bounded = _bounded(tuple(size[-2:])) if isinstance(size, (list, tuple)) else size
    if isinstance(bounded, Unreadable):
        values["input_size"] = bounded
    return values


def _bounded(size: Any) -> Any:
    """A value as it is; :class:`Unreadable` for a (height, width) that no image may have."""
    if is_image_size(size) and size[0] * size[1] > MOST_PIXELS:
        return Unreadable(f"has more than the {MOST_PIXELS:,} pixels that an image may have")
    return size


def _of_input_size(value: Any, prefix: str) -> Iterator[tuple[str, Statement]]:
    """``input_size``: channels, height and width for timm, the side of a square for some other scripts."""
    where = f"{prefix}input_size"
    if isinstance(value, (list, tuple)) and len(value) == 3:
        yield "in_chans", Statement(value[0], where)
        yield _size("img_size", tuple(value[1:]), where)
    elif value is not None:
        yield _size("img_size", value, where)


def _of_model_args(arguments: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Statement]]:
    for name, value in arguments.items():
        where = prefix + name
        if value is None or name in _OF_LOADING:  # `None` is timm's default
            continue
        if name in _OF_ANOTHER_MODEL:
            if value:
                yield name, Statement(Unreadable("changes the model in a way that vitconv does not read"), where)
        elif name == "model_name":
            yield "architecture", Statement(value, where)
        else:
            name, statement = (
                _size(name, value, where) if name in SIZES else (name, Statement(_readable(value), where))
            )
            yield name, replace(statement, of_model=True)


def _size(name: str, value: Any, where: str) -> tuple[str, Statement]:
    """A size by its name in :data:`SIZES`; ``img_size`` as (height, width), of one number those of a square.

    A value that is not a size stays as it is: the check against the weights refuses it.
    """
    value = _readable(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if name == "img_size" and type(value) is int:
        value = (value, value)
    elif name == "img_size" and isinstance(value, list):
        value = tuple(value)
    if name == "img_size":
        value = _bounded(value)
    return "in_chans" if name == "chans" else name, Statement(value, where)


def _merged(found: list[tuple[str, Statement]], ignore: Collection[str]) -> dict[str, Statement]:
    """The statements by name; of an ignored name, any.

    Raises:
        CheckpointError: two contradict each other.
    """
    merged: dict[str, Statement] = {}
    for name, statement in found:
        if name == "architecture":
            value = statement.value
            value = _without_source(value) if isinstance(value, str) else Unreadable("is not a name")
            statement = replace(statement, value=value)
        before = merged.get(name)
        if before is None or _refines(name, statement.value, before.value):
            merged[name] = statement
        elif (
            name not in ignore
            and not same_value(before.value, statement.value)
            and not _refines(name, before.value, statement.value)
        ):
            raise CheckpointError(
                f"The checkpoint says `{name}` {_short(before.value)} in `{before.where}` and "
                f"{_short(statement.value)} in `{statement.where}`.",
                f"Give the right one and pass --ignore {name}.",
            )
    return merged


def _refines(name: str, value: Any, other: Any) -> bool:
    """Whether an architecture's name is another one with its tag."""
    both = isinstance(value, str) and isinstance(other, str)
    return name == "architecture" and both and "." in value and base_name(value) == other


def _without_source(name: str) -> str:
    """An architecture's name without its prefix and revision on the Hub."""
    prefix = next((prefix for prefix in _TIMM_ON_THE_HUB if name.startswith(prefix)), "")
    return name.removeprefix(prefix).partition("@")[0] if prefix else name
