"""Identify a source: from its files, what they say of themselves and what was given, to a plan for its tensors.

The steps: open the files, read what they say of themselves, identify the architecture by that and by what was given,
find the tensors by timm's names, set the architecture's sizes by them, and plan the conversion. A contradiction is an
error that names both sides.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.architecture import (
    HEADS,
    AnyArchitecture,
    Architecture,
    Shapes,
    WrappedArchitecture,
    check_image_size,
    describe_shapes,
    fit_to_weights,
    plain_facts,
)
from vitconv.checkpoints.checkpoint import Source, open_source
from vitconv.checkpoints.description import (
    DATA,
    SIZES,
    SelfDescription,
    base_name,
    check_architecture,
    check_data,
    check_folder,
    check_sizes,
    describe,
    describe_folder,
    is_image_size,
    same_value,
    together,
)
from vitconv.checkpoints.labels import check_labels, read_labels
from vitconv.checkpoints.tensorfile import StoredTensor, load_tensors, map_tensors
from vitconv.checkpoints.unwrap import unwrap
from vitconv.errors import (
    ArchitectureError,
    CheckpointError,
    InputError,
    VitconvError,
    check_flag,
    count_classes,
    first_few,
    shown,
)
from vitconv.files import read_json
from vitconv.mapping.plan import Plan, check_names, check_tensors, make_plan, shapes_of
from vitconv.mapping.rewrites import Made
from vitconv.mapping.summary import rewritten, summarise_architecture, summarise_rewrites
from vitconv.mapping.wrapper import WARNING, WRAPPER
from vitconv.markdown import code, escape, prose, table
from vitconv.models import catalogue, position_embedding
from vitconv.models.data_config import DataConfig, data_config, makes_pixels, read_data_config, tag_config
from vitconv.models.images import MODES
from vitconv.models.processors import missing_processor, obstacle
from vitconv.models.timm import (
    build_timm,
    describe_regularisation,
    from_timm,
    known_name,
    read_config,
    regularisation,
)
from vitconv.models.wrapper import read_wrapped, sized_wrapped

if TYPE_CHECKING:
    from torch import Tensor, nn


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceOptions:
    """What is given beside a source: :func:`vitconv.convert.convert_checkpoint` says what each is."""

    architecture: nn.Module | str | None = None
    image_size: tuple[int, int] | None = None
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None
    target: str | None = None
    ema: bool = True
    ignore: Collection[str] = ()
    headless: bool = False

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for a value of another type."""
        check_flag("ema", self.ema)
        check_flag("headless", self.headless)
        size = self.image_size
        if size is not None and not (isinstance(size, (tuple, list)) and len(size) == 2 and all(map(_is_whole, size))):
            raise InputError(f"image_size is {shown(size)}.", "Pass (height, width), such as (224, 224).")
        if isinstance(self.ignore, str) or not isinstance(self.ignore, Collection):
            raise InputError(f"ignore is {shown(self.ignore)}.", "Pass a list of names, such as ['mean'].")

    @property
    def read(self) -> Callable[[nn.Module], AnyArchitecture]:
        """What reads the architecture of a timm model, for the target."""
        return read_wrapped if self.target == WRAPPER.name else from_timm


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def facts(architecture: AnyArchitecture, target: str | None, data: DataConfig, made: tuple[Made, ...]) -> list[str]:
    """What is converted and how: ``name: value``, for people."""
    return [
        f"model: {summarise_architecture(architecture, target)}",
        f"preprocessing: {data.values}: {data.origin}",
        *(f"{names}: {how}" for names, how in summarise_rewrites(made)),
    ]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What a conversion would do, before it does it.

    Attributes:
        architecture: as read from timm and the weights; for the target ``"timm_wrapper"``, by name and arguments only.
        target: the family that was given; ``None`` for the simplest one that computes the same.
        plan: the moves into the Hub layout.
        made: the tensors that are made from others (or from nothing) before the moves.
        data: how timm prepares an image for the model.
        warnings: what the converted folder lacks, and what had to be assumed, in sentences.
        notes: what the checkpoint says of itself and how the model was found in it, in sentences.
    """

    architecture: AnyArchitecture
    target: str | None
    plan: Plan
    made: tuple[Made, ...]
    data: DataConfig
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def facts(self) -> list[str]:
        """What would be converted and how: ``name: value``, for people."""
        return facts(self.architecture, self.target, self.data, self.made)

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain data, for JSON: ``moves`` has every tensor and what it becomes."""
        return {
            "class_name": mapping.class_name(self.architecture, self.target),
            "architecture": plain_facts(self.architecture),
            "target": self.target,
            "preprocessing": asdict(self.data),
            "rewritten": rewritten(self.made),
            "moves": [asdict(move) for move in self.plan.moves],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        return f"Inspection({summarise_architecture(self.architecture, self.target)})"

    def _repr_markdown_(self) -> str:
        """What would be converted and how, for notebooks."""
        rewrites = [(code(names), escape(how)) for names, how in summarise_rewrites(self.made)]
        parts = [
            f"**{escape(summarise_architecture(self.architecture, self.target))}**",
            f"preprocessing: {escape(self.data.values)}: {escape(self.data.origin)}",
            *(f"Note: {prose(note)}" for note in self.notes),
            *(f"**Warning:** {prose(warning)}" for warning in self.warnings),
            self.plan._repr_markdown_(),
            *([table(("rewritten before it is moved", "how"), rewrites)] if rewrites else []),
        ]
        return "\n\n".join(parts)


@dataclass(frozen=True, repr=False)
class Identified:
    """An identified source: its weights, the architecture they belong to, and the plan.

    Attributes:
        source: the opened files.
        description: what it says of itself, without what is ignored.
        tensors: the weights in timm's names, in their file wherever possible.
        timm_name: what timm calls the architecture; ``None`` if a model was given.
        build: gives timm's model of the architecture, without weights.
        options: what was given.
        inspection: what a conversion will do.
        own_image_size: (height, width) that the source alone gives; ``None`` if it leaves the size open.
    """

    source: Source
    description: SelfDescription
    tensors: Mapping[str, StoredTensor | Tensor]
    timm_name: str | None
    build: Callable[[], nn.Module]
    options: SourceOptions
    inspection: Inspection
    own_image_size: tuple[int, int] | None

    def __repr__(self) -> str:
        return f"Identified({self.source!r}, {self.timm_name or 'a timm model that was given'})"

    @functools.cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights to compute with, in memory: what lies in another order in its file is a mapped view of it."""
        return {name: tensor.contiguous() for name, tensor in load_tensors(self.tensors).items()}

    def labels(self) -> tuple[str, ...] | None:
        """The class names that the source itself gives.

        Raises:
            InputError: they cannot be read, do not fit the weights, or differ between two places.
        """
        stated, class_map = self.description.get("label_names"), _class_map(self.source, self.description)
        found: dict[str, tuple[str, ...]] = {}
        if not self.inspection.architecture.num_labels:
            return None  # the head was left out
        if stated is not None:
            where = f"The checkpoint's `{self.description.where('label_names')}`"
            found["label_names"] = self._names_in("label_names", functools.partial(_ordered, stated, where))
        if class_map is not None:
            found["class_map"] = self._names_in("class_map", functools.partial(read_labels, class_map))
        if len(found) == 2 and found["label_names"] != found["class_map"]:
            pairs = zip(found["label_names"], found["class_map"], strict=True)
            index, (one, other) = next((index, pair) for index, pair in enumerate(pairs) if pair[0] != pair[1])
            raise InputError(
                f"The checkpoint names class {index} {shown(one)} in `{self.description.where('label_names')}` and "
                f"{shown(other)} in {class_map} (`{self.description.where('class_map')}`).",
                "Pass --ignore label_names or --ignore class_map to take the other one's, or the right ones with "
                "--labels FILE.",
            )
        return next(iter(found.values()), None)

    def _names_in(self, name: str, read: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """The class names of one place, one for each class of the weights."""
        count = self.inspection.architecture.num_labels
        remedy = f"Pass the right ones with --labels FILE, or --ignore {name} to have none."
        try:
            names = read()
        except InputError as error:
            raise InputError(error.problem, remedy) from error
        if len(names) != count:
            raise InputError(
                f"The checkpoint names {count_classes(len(names))} (`{self.description.where(name)}`), but the "
                f"weights have {count}.",
                remedy,
            )
        return names

    def timm_model(self) -> nn.Module:
        """A timm model of the identified architecture, without the source's weights.

        Raises:
            ArchitectureError: the installed timm builds another architecture by this name.
        """
        model = self.build()
        built, known = self.options.read(model), self.inspection.architecture
        if built != known:
            differing = [name for name, value in asdict(built).items() if value != asdict(known)[name]]
            raise ArchitectureError(
                f"The installed timm builds '{self.timm_name}' with a different {first_few(differing)} than expected.",
                "Report this as a bug in vitconv, with your version of timm.",
            )
        return model


def identify(path: str | os.PathLike[str], options: SourceOptions) -> Identified:
    """Identify a source. Names and shapes are read, and only those tensors that have to be computed with.

    Raises:
        VitconvError: it cannot be read or converted, or what it says of itself contradicts its weights or what was
            given.
    """
    if options.image_size is not None:
        check_image_size(options.image_size)
    source = open_source(path)
    description, notes = _own_description(source, options.ignore)
    wanted, note = _architecture(source, options, description)
    reference = timm_reference(wanted, description, options.read)
    if not description.statements.keys() & {"architecture", "pretrained_cfg"}:
        reference = replace(reference, input_size=None)  # nothing states the image size that timm used
    if isinstance(options.architecture, str):
        _check_tag(options.architecture, reference, description, options.read)
    description = _with_sizes_of_timm(description, reference, options.ignore)

    def build(**sizes: Any) -> nn.Module:
        return _build(wanted, description, sizes) if isinstance(wanted, str) else copy.deepcopy(wanted)

    names = set(mapping.timm_shapes(replace(reference.architecture, num_labels=1)))
    respell = functools.partial(_respell, source, build)
    unwrapped = unwrap(source.content, names, ema=options.ema, headless=options.headless, respell=respell)
    # Of the models that convert, none holds integers; some others count the batches of their batch norms.
    counts = options.target == WRAPPER.name
    tensors: Mapping[str, StoredTensor | Tensor] = source.tensors(unwrapped.tensors, integers=counts)
    trained, known = _trained_and_wanted(wanted, reference, tensors, description, options, build)
    own_size = _own_image_size(wanted, reference, tensors, description, options, build) if options.image_size else None
    sizing = _shape_note(reference.architecture, shapes_of(tensors), trained) if options.image_size else []
    if known != trained:
        tensors = position_embedding.resample(load_tensors(tensors), trained, known)
        check_tensors(mapping.timm_shapes(known), shapes_of(tensors))
        sizing.append(position_embedding.describe(trained, known))
    if known.any_size:
        sizing.append(
            "timm's model takes images of any size, and is converted for {}x{}: name another size with --img-size "
            "H W.".format(*known.image_size)
        )
    rates = {} if isinstance(wanted, str) else regularisation(wanted)
    training = describe_regularisation({**description.rates, **rates})

    name = wanted if isinstance(wanted, str) else type(wanted).__name__
    _log.info("architecture: %s, %s", name, _why(options, note))
    _log.info("weights: %d tensors, %s", len(tensors), "; ".join(unwrapped.notes) or "at the top of the file")
    _check_mode(description, known)
    data = _data(reference, known, description, options.data)
    _log.info("preprocessing: %s: %s", data.values, data.origin)
    return Identified(
        source,
        description,
        tensors,
        wanted if isinstance(wanted, str) else None,
        functools.partial(build, **_sizes(known)),
        options,
        _inspect(
            tensors,
            known,
            options.target,
            data,
            _assumed(options.architecture, reference.architecture, known, data, description),
            [*source.notes, *notes, *note, *unwrapped.notes, *sizing, *filter(None, [training])]
            + _class_names_note(source, description),
        ),
        own_size if options.image_size else known.image_size,
    )


def _why(options: SourceOptions, note: list[str]) -> str:
    """Where the architecture is from, for the log."""
    if options.architecture is not None:
        return "as given"
    return "the only one that the weights fit" if note else "as the checkpoint says"


def _architecture(
    source: Source, options: SourceOptions, description: SelfDescription
) -> tuple[nn.Module | str, list[str]]:
    """The architecture that is given, stated, or the only one that fits; and a note in the last case.

    Raises:
        ArchitectureError: the given one contradicts the stated one; or none is known.
    """
    given = options.architecture
    if isinstance(given, str):
        # A name that timm does not know is kept, so that the error shows it as it was given.
        return check_architecture(_name_of_today(given) or given, description), []
    if given is not None:
        _check_module(given, description, options.read)
        return given, []
    stated = description.get("architecture")
    if stated is not None:
        return stated, []
    name, note = _only_candidate(source, options)
    return name, [note]


def _with_sizes_of_timm(
    description: SelfDescription, reference: TimmReference, ignore: Collection[str]
) -> SelfDescription:
    """A folder's description with the sizes that timm builds its model at, for those that are not stated.

    Weights of other sizes timm would resample, or replace at random: either is a contradiction.
    """
    if "pretrained_cfg" not in description.statements:
        return description
    where = f"{description.where('pretrained_cfg')}, as timm builds it"
    return description.filled(_sizes(reference.architecture), where, ignore)


def _sizes(a: AnyArchitecture) -> dict[str, Any]:
    """The sizes by the names of timm's arguments: :data:`vitconv.checkpoints.description.SIZES`."""
    return {"num_classes": a.num_labels, "in_chans": a.num_channels, "img_size": a.image_size}


def _trained_and_wanted(
    wanted: nn.Module | str,
    reference: TimmReference,
    tensors: Mapping[str, StoredTensor | Tensor],
    description: SelfDescription,
    options: SourceOptions,
    build: Callable[..., nn.Module],
) -> tuple[AnyArchitecture, AnyArchitecture]:
    """The architecture at the sizes of the weights, and at the sizes asked for; contradictions are errors."""
    shapes, trained = shapes_of(tensors), reference.architecture
    known, stated = trained, _fed_size(reference, description)
    if isinstance(wanted, str) and isinstance(trained, WrappedArchitecture):
        trained, known = sized_wrapped(trained, shapes, options.image_size, stated, build)
    elif isinstance(wanted, str):
        trained, known = sized(trained, shapes, options.image_size, stated)
    check_tensors(mapping.timm_shapes(trained), shapes)
    check_sizes(
        description,
        num_classes=None if options.headless else trained.num_labels,
        in_chans=trained.num_channels,
        # A model for any size may take images of another size than it was built for: see `_check_dynamic`.
        img_size=None if options.image_size or reference.input_size else trained.image_size,
    )
    _check_dynamic(reference, description, trained, options.image_size)
    return trained, known


def _own_image_size(
    wanted: nn.Module | str,
    reference: TimmReference,
    tensors: Mapping[str, StoredTensor | Tensor],
    description: SelfDescription,
    options: SourceOptions,
    build: Callable[..., nn.Module],
) -> tuple[int, int] | None:
    """The image size without a given one; ``None`` if the source leaves it open or contradicts itself about it."""
    alone = replace(options, image_size=None)
    with suppress(VitconvError):
        return _trained_and_wanted(wanted, reference, tensors, description, alone, build)[1].image_size
    return None


def _check_mode(description: SelfDescription, known: AnyArchitecture) -> None:
    """Raise :class:`CheckpointError` if images were converted to another colour mode than the channels imply."""
    mode = description.get("input_img_mode")
    if mode is not None and mode != MODES.get(known.num_channels):
        raise CheckpointError(
            f"The model was trained on images converted to {shown(mode)} (`{description.where('input_img_mode')}`), "
            "and no image processor of Transformers does that.",
            "Pass --ignore input_img_mode if you convert the images yourself.",
        )


def _data(
    reference: TimmReference,
    known: AnyArchitecture,
    description: SelfDescription,
    given: Mapping[str, Any] | str | os.PathLike[str] | None,
) -> DataConfig:
    if isinstance(given, (str, os.PathLike)):
        given = read_data_config(given)
    check_data(given or {}, description)
    return data_config(reference.tag, known, given, stated=description)


def _ordered(names: Any, where: str) -> tuple[str, ...]:
    return check_labels(names, where)


def _class_map(source: Source, description: SelfDescription) -> Path | None:
    """The file of class names that the checkpoint was trained with, if one of that name lies beside it.

    Only the name is used: a checkpoint cannot make vitconv open files in other folders.
    """
    name = Path(str(description.get("class_map") or "")).name
    path = source.files[0].parent / name
    return path if name.endswith(".txt") and len(os.fsencode(name)) < 256 and path.is_file() else None


def _class_names_note(source: Source, description: SelfDescription) -> list[str]:
    """A note on where class names are that the checkpoint refers to but does not hold."""
    stated = description.get("class_map")
    if stated is None or "label_names" in description.statements:
        return []
    found = _class_map(source, description)
    if found is not None:
        return [f"The class names are those of {found}, which the checkpoint names (`class_map`)."]
    return [f"The checkpoint was trained with the class names in {shown(stated)} (`class_map`): pass --labels."]


@dataclass(frozen=True)
class TimmReference:
    """What is known of a timm architecture before the weights are looked at.

    Attributes:
        architecture: as timm builds it, with its own sizes: an :data:`~vitconv.architecture.AnyArchitecture`.
        tag: how it wants its images prepared: :func:`vitconv.models.data_config.tag_config`.
        input_size: (height, width) that timm prepares images to for a model that takes any; ``None`` for others.
    """

    architecture: Any
    tag: Mapping[str, Any]
    input_size: tuple[int, int] | None = None


def timm_reference(
    architecture: nn.Module | str,
    description: SelfDescription,
    read: Callable[[nn.Module], AnyArchitecture] = from_timm,
) -> TimmReference:
    """From the catalogue, which needs no torch; else from timm, with the arguments that the checkpoint states."""
    if not isinstance(architecture, str):
        # It has the size that it was built with.
        return replace(_reference_of_model(architecture, read), input_size=None)
    cfg, arguments = description.get("pretrained_cfg"), description.model_args
    in_catalogue = cfg is None and not arguments and read is from_timm
    known = catalogue.look_up(architecture) if in_catalogue else None
    if known is not None:
        return TimmReference(known.architecture, known.data)
    model: Any = _build(architecture, description, {})
    try:
        return _reference_of_model(model, read)
    except ArchitectureError:
        # Without its head it may convert. Whether there is one, the weights tell, which are judged later.
        with suppress(ArchitectureError):
            reference = _reference_of_model(_build(architecture, description, {"num_classes": 0}), read)
            return replace(reference, architecture=replace(reference.architecture, num_labels=model.num_classes))
        raise


def _reference_of_model(model: nn.Module, read: Callable[[nn.Module], AnyArchitecture]) -> TimmReference:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    # The patch embedding of a model for any size does not check the size.
    dynamic = not getattr(getattr(model, "patch_embed", None), "strict_img_size", True)
    fed = tuple((cfg.get("input_size") or ())[-2:])
    known = read(model)
    any_size = dynamic or known.any_size
    return TimmReference(known, tag_config(cfg), fed if any_size and is_image_size(fed) else None)


def _build(name: str, description: SelfDescription, sizes: Mapping[str, Any]) -> nn.Module:
    """timm's model without weights, with the arguments that the checkpoint states; ``sizes`` override stated ones."""
    stated = {size: description.get(size) for size in SIZES if size in description.statements}
    arguments = {**description.model_args, **stated, **sizes}
    return build_timm(name, pretrained_cfg=description.get("pretrained_cfg"), **arguments)


def _name_of_today(name: str) -> str | None:
    """timm's current name for an architecture; ``None`` if it has none. Only an outdated name needs timm imported."""
    return name if catalogue.look_up(name) else known_name(name)


def _names(description: SelfDescription) -> set[str]:
    """Every name that a description states."""
    return {*description.statements, *description.pretrained_cfg}


def _own_description(source: Source, ignore: Collection[str]) -> tuple[SelfDescription, list[str]]:
    """What the source says of itself, without what is ignored, and notes for people on it."""
    description = describe(source.content, ignore)
    if source.config is not None:
        config = read_json(source.config)
        if "architecture" in config:
            name, cfg, arguments = read_config(source.config.parent)
            own = describe_folder(name, cfg, arguments, file=source.config.name, ignore=ignore)
        else:
            own = describe(config, ignore)
        check_folder(own.without(set(ignore) & _names(own)), description.without(set(ignore) & _names(description)))
        description = together(own, description, ignore=ignore)
    description = description.without(ignore)
    description.check_readable()
    said = [f"The checkpoint says of itself: {description}."] if str(description) else []  # labels are not listed
    stated = description.get("architecture")
    if stated is None:
        return description, said
    if "pretrained_cfg" in description.statements:
        stated = base_name(stated)  # its tag does not matter then
    known = _name_of_today(stated)
    if known is None:
        note = (
            f"The checkpoint says `{description.where('architecture')}` {shown(stated)}, which is not "
            "a timm architecture."
        )
        return description.without(["architecture"]), [*said, note]
    return description.stating("architecture", known), said


def _only_candidate(source: Source, options: SourceOptions) -> tuple[str, str]:
    """The timm architecture that the weights fit, and a note about it.

    Raises:
        ArchitectureError: there is none, or there are several that compute different numbers.
    """
    shapes = shapes_of(unwrap(source.content, None, ema=options.ema, headless=options.headless).tensors)
    found = catalogue.candidates(shapes, options.image_size)
    if not found:
        told = describe_shapes(shapes)
        raise ArchitectureError(
            "The architecture is not given, and no timm architecture that converts to a class of Transformers as timm "
            "lists it has tensors with these names and shapes" + (f"; the tensors show: {told}." if told else "."),
            "Name the timm architecture, as in --arch vit_base_patch16_384: one that converts with --head code or "
            "--target timm_wrapper only is never guessed.",
        )
    names = [candidate.name for candidate in found]
    differing = catalogue.differences(found)
    if differing:
        listed = "; ".join(f"{name} ({how})" for name, how in differing.items())
        raise ArchitectureError(
            f"The architecture is not given, and the weights fit {len(found)} timm architectures, which compute or "
            f"prepare images differently. They are: {listed}.",
            "Pass the name of the one that the weights were trained with: --arch NAME. The image size in a name "
            "proves nothing.",
        )
    same = f" ({first_few(names[1:])} would be the same)" if names[1:] else ""
    return names[0], f"The weights fit one timm architecture, {names[0]}{same}, which was used."


def _check_module(
    model: nn.Module, description: SelfDescription, read: Callable[[nn.Module], AnyArchitecture]
) -> None:
    """Raise :class:`ArchitectureError` if the checkpoint says that its weights are of another model than this one."""
    stated = description.get("architecture")
    if stated is None:
        pool = description.get("global_pool")
        if pool is not None and pool != model.global_pool:
            raise ArchitectureError(
                f"The model given pools by '{model.global_pool}', but the checkpoint says '{pool}' "
                f"(`{description.where('global_pool')}`).",
                "Pass a model with that pooling, or ignore=['global_pool'].",
            )
        return
    reference, given = timm_reference(stated, description, read), read(model)
    described, facts_given = _fixed_facts(reference.architecture), _fixed_facts(given)
    differing = [name for name in {**described, **facts_given} if described.get(name) != facts_given.get(name)]
    if differing:
        raise ArchitectureError(
            f"The checkpoint says '{stated}' (`{description.where('architecture')}`), but the model given "
            f"differs from it in {first_few(differing)}.",
            "Give the model that the weights were trained with, or ignore=['architecture'].",
        )
    _check_preprocessing("The model given", _reference_of_model(model, read).tag, reference.tag, description)


def _fixed_facts(a: AnyArchitecture) -> dict[str, Any]:
    """The facts on an architecture that do not depend on the sizes of the weights."""
    found = plain_facts(a)
    if isinstance(a, WrappedArchitecture):
        found |= {name: value for name, value in a.model_args.items() if name not in SIZES}
    free = ("image_size", "num_labels", "num_channels", "grid", "model_args")
    return {name: value for name, value in found.items() if name not in free}


def _check_tag(
    given: str,
    reference: TimmReference,
    description: SelfDescription,
    read: Callable[[nn.Module], AnyArchitecture],
) -> None:
    """Raise :class:`ArchitectureError` if the tag given prepares images otherwise than the checkpoint says."""
    if "." not in given or not description.statements.keys() & {"architecture", "pretrained_cfg"}:
        return
    stated = reference.tag
    if "pretrained_cfg" not in description.statements:
        stated = timm_reference(description.get("architecture"), SelfDescription(), read).tag
    tag = timm_reference(given, SelfDescription(), read).tag
    _check_preprocessing(f"The tag of '{given}'", tag, stated, description)


def _check_preprocessing(
    who: str, given: Mapping[str, Any], stated: Mapping[str, Any], description: SelfDescription
) -> None:
    """Raise :class:`ArchitectureError` if what is given prepares images otherwise than the checkpoint's own tag."""
    where = "pretrained_cfg" if "pretrained_cfg" in description.statements else "architecture"
    for name in DATA:
        if name not in description.data and not same_value(given[name], stated[name]):
            raise ArchitectureError(
                f"{who} says `{name}` {given[name]}, but the checkpoint says {stated[name]} "
                f"(`{description.where(where)}`).",
                f"Leave it out to take the checkpoint's, or pass --ignore {where} to take the given one's.",
            )


def _fed_size(reference: TimmReference, description: SelfDescription) -> Any:
    """(height, width) that timm prepares images to; ``None`` if the checkpoint does not state it."""
    stated = description.statements.get("img_size")
    if reference.input_size is not None and (stated is None or stated.of_model):
        return reference.input_size
    return None if stated is None else stated.value


def _check_dynamic(
    reference: TimmReference,
    description: SelfDescription,
    trained: AnyArchitecture,
    image_size: tuple[int, int] | None,
) -> None:
    """Raise :class:`CheckpointError` if timm gives a model for any size images of another size than its positions.

    The positions of a NaFlexVit have no size: there it must be the size that the model was built with.
    """
    fed, any_size = _fed_size(reference, description), reference.architecture.any_size
    other = reference.architecture.image_size if any_size else trained.image_size
    if reference.input_size is None or image_size is not None or fed == other:
        return
    how = "`NaFlexVit`" if any_size else "`dynamic_img_size`"
    what = "it was built for" if any_size else "its positions are those of"
    raise CheckpointError(
        f"The model takes images of any size ({how}): timm gives it {fed[0]}x{fed[1]}, but {what} "
        f"{other[0]}x{other[1]}. A converted model has one size.",
        "Name the one you want with --img-size H W: timm resamples the positions for it, and so does vitconv.",
    )


def _assumed(
    given: nn.Module | str | None,
    named: AnyArchitecture,
    known: AnyArchitecture,
    data: DataConfig,
    description: SelfDescription,
) -> list[str]:
    """A warning if only a name tells the preprocessing, and its model has another image size or other classes."""
    told = description.statements.keys()
    if not isinstance(given, str) or data.given or told & {"architecture", "pretrained_cfg"} or told >= set(DATA):
        return []
    differing = []
    if named.image_size != known.image_size:
        differing.append("{}x{} images (these weights: {}x{})".format(*named.image_size, *known.image_size))
    if named.num_labels != known.num_labels:
        differing.append(f"{count_classes(named.num_labels)} (these weights: {known.num_labels})")
    if not differing:
        return []
    return [
        f"The preprocessing is an assumption: the checkpoint does not state it, and it is that of timm's {given}, a "
        f"model for {' and '.join(differing)}: {data.values}. If the weights were trained with another, pass it with "
        "--data-config."
    ]


def _respell(source: Source, build: Callable[[], nn.Module], tensors: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Rename tensors that have older names with timm's own filter; ``None`` if it would do more than rename."""
    from timm.models import vision_transformer

    model: Any = build()
    filter_fn = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", vision_transformer.checkpoint_filter_fn
    )
    # Without a position embedding to compare with, the filter does not resample the checkpoint's.
    model.pos_embed = None
    try:
        old = map_tensors(source.tensors(tensors))
        options = {"adapt_layer_scale": True} if filter_fn is vision_transformer.checkpoint_filter_fn else {}
        new = filter_fn(dict(old), model, **options)
    except (VitconvError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, AssertionError):
        return None
    places = {tensor.data_ptr() for tensor in new.values()}
    lost = [name for name, tensor in old.items() if tensor.data_ptr() not in places and name != "mask_token"]
    made = places - {tensor.data_ptr() for tensor in old.values()}
    return None if lost or made else new


def sized(
    architecture: Architecture, shapes: Shapes, image_size: tuple[int, int] | None, stated: Any = None
) -> tuple[Architecture, Architecture]:
    """The architecture at the sizes that the weights were trained for, and at the sizes asked for.

    Args:
        architecture: with timm's own sizes.
        shapes: of the weights.
        image_size: the wanted one; by default the weights'.
        stated: the image size that the checkpoint states, for weights that leave it open.
    """
    # First check the names of the tensors, then their sizes.
    headed = any(name in shapes for name in HEADS)
    check_names(mapping.timm_shapes(replace(architecture, num_labels=int(headed))), shapes)
    if image_size is not None:
        with suppress(InputError):
            trained = fit_to_weights(architecture, shapes, image_size)
            return trained, trained
    try:
        trained = fit_to_weights(architecture, shapes, stated if is_image_size(stated) else None)
    except InputError:  # the weights have another size than is stated: use only the weights
        trained = fit_to_weights(architecture, shapes)
    if image_size is None:
        return trained, trained
    wanted = replace(trained, image_size=(int(image_size[0]), int(image_size[1])))
    if min(wanted.grid) < 1 or wanted.any_size:
        fit_to_weights(architecture, shapes, image_size)  # raises the error that says what is wrong
    return trained, wanted


def _shape_note(architecture: AnyArchitecture, shapes: Shapes, taken: AnyArchitecture) -> list[str]:
    """A note if the given image size was taken as that of the training, although the weights alone suggest another."""
    if isinstance(architecture, WrappedArchitecture) or not architecture.position_embedding or architecture.any_size:
        return []  # then the weights do not tell the image size
    try:
        told = fit_to_weights(architecture, shapes)
    except InputError:
        return []
    if told.image_size == taken.image_size:
        return []
    return [
        f"The weights have as many patches as {taken.image_size[0]}x{taken.image_size[1]} images, which was taken as "
        f"the size of the training; `pos_embed` was not resampled from {told.image_size[0]}x{told.image_size[1]}."
    ]


def _inspect(
    tensors: Mapping[str, StoredTensor | Tensor],
    architecture: AnyArchitecture,
    target: str | None,
    data: DataConfig,
    warnings: Sequence[str],
    notes: Sequence[str],
) -> Inspection:
    made: tuple[Made, ...] = ()
    shapes, simple = shapes_of(tensors), architecture
    family = mapping.family_for(architecture, target)
    if not family.is_pure_rename(architecture):
        simplified = family.rewrite(map_tensors(tensors), architecture)
        made, shapes, simple = simplified.made, shapes_of(simplified.state_dict), simplified.architecture
    if family is WRAPPER:
        missing = None if makes_pixels(data) else f"No image processor: {obstacle(data)}"
        warnings = [WARNING, *warnings]
    else:
        missing = missing_processor(data)
    warnings = [*filter(None, [missing]), *warnings]
    plan = make_plan(family, simple, shapes)
    return Inspection(architecture, target, plan, made, data, tuple(warnings), tuple(notes))
