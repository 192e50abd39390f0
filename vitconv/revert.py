"""Convert a Transformers model back to the timm model that computes the same.

Any folder that Transformers loads is accepted, whoever wrote it. The configuration determines the architecture: it is
the one in the catalogue that converts to the same configuration when it is given the same sizes.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.architecture import AnyArchitecture, Architecture, check_image_size, plain_facts
from vitconv.checkpoints.checkpoint import CONFIG_FILE, PARITY_FILE, refuse_optimized
from vitconv.errors import ArchitectureError, CheckpointError, InputError, ParityError, WeightsError, brief, first_few
from vitconv.files import Watch, absent, check_reachable, write_json
from vitconv.mapping import Family
from vitconv.mapping.plan import make_plan, shapes_of
from vitconv.mapping.rewrites import FOLD_LAYER_SCALE, Rewrite, Rewritten
from vitconv.markdown import escape, prose
from vitconv.models.catalogue import entries
from vitconv.models.data_config import DataConfig, data_config, makes_pixels, tag_config
from vitconv.models.huggingface import installed_dialect, load_folder, load_for_timm
from vitconv.models.images import load_image, sample_image
from vitconv.models.pixels import probe_images, probe_pixels, timm_pixels
from vitconv.models.processors import (
    PROCESSOR_FILE,
    from_processor,
    load_any_processor,
    processor_file,
    timm_data_config,
)
from vitconv.models.timm import ACTIVATIONS, arguments, build_timm, from_timm, in_usual_modes, make_buffers
from vitconv.models.wrapper import is_wrapper, read_wrapped
from vitconv.parity.comparison import Parity, compare, compare_on_noise, compare_outputs, one_at_a_time
from vitconv.parity.verification import check_bytes, check_timm_processor, pixels_for, usual_dtype
from vitconv.writing.record import recorded_architecture, reversion_record
from vitconv.writing.staging import check_apart, check_destination, staged_folder

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

#: Parts of Transformers models that timm's models do not have: a component of the tensors' names, and what it is.
DROPPABLE = {part: what for family in mapping.FAMILIES for part, what in family.droppable.items()}


@dataclass(frozen=True, repr=False)
class Reversion:
    """A finished conversion back to timm.

    Attributes:
        destination: the folder for timm, as timm itself saves one for the Hub.
        architecture: what the timm model is.
        timm_name: timm's name of it.
        model_args: what it is built with, beside the name.
        dropped: what was left out, of :data:`DROPPABLE`.
        data: how timm will prepare an image.
        parity: how close the two models came; ``None`` if it was switched off.
        notes: sentences on what the folder does not hold, or holds in another form.
    """

    destination: Path
    architecture: AnyArchitecture
    timm_name: str
    model_args: Mapping[str, Any]
    dropped: tuple[str, ...]
    data: DataConfig
    parity: Parity | None
    notes: tuple[str, ...]

    @property
    def loading_line(self) -> str:
        """The Python that loads the folder."""
        return f"timm.create_model({json.dumps(f'local-dir:{self.destination}', ensure_ascii=False)}, pretrained=True)"

    @property
    def facts(self) -> list[str]:
        """What was converted and what was proved: ``name: value``, for people."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.model_args.items())
        return [
            f"model: timm's {self.timm_name}" + (f" with {arguments}" if arguments else ""),
            f"preprocessing: {self.data.values}: {self.data.origin}",
            *([f"left out: {', '.join(self.dropped)}"] if self.dropped else []),
            *(comparison.outcome for comparison in (self.parity.comparisons if self.parity else ())),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The conversion as plain data, for JSON."""
        return {
            "destination": os.fspath(self.destination),
            "timm_name": self.timm_name,
            "model_args": dict(self.model_args),
            "dropped": list(self.dropped),
            "architecture": plain_facts(self.architecture),
            "preprocessing": asdict(self.data),
            "load": self.loading_line,
            "parity": self.parity.to_dict() if self.parity else None,
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        parity = repr(self.parity) if self.parity else "not verified"
        return f"Reversion({brief(str(self.destination))}, timm's {self.timm_name}, {parity})"

    def _repr_markdown_(self) -> str:
        """What was converted and what was proved, for notebooks."""
        parts = [
            f"**{escape(self.destination)}**",
            *map(escape, self.facts),
            *(f"Note: {prose(note)}" for note in self.notes),
            self.parity._repr_markdown_() if self.parity else "not verified",
        ]
        return "\n\n".join(parts)


@in_usual_modes()
@one_at_a_time()
def to_timm(
    hf_model: PreTrainedModel, *, architecture: str | None = None, drop: Collection[str] = (), verify: bool = True
) -> nn.Module:
    """Build the timm twin of a Transformers model, with weights of its own (same dtype, device and mode).

    Args:
        hf_model: a model of any class that vitconv converts to, wherever it comes from.
        architecture: timm's name; by default the one of timm's that becomes this model with the fewest changes.
        drop: parts that may be left out because timm does not have them: any of :data:`DROPPABLE`.
        verify: run both models on an image of noise, in float32 and where the Transformers model is, and raise unless
            they agree. Weights on ``meta`` hold no numbers, so a model with any of them is not verified.

    Raises:
        ArchitectureError: no timm architecture computes the same, or the model does not run.
        WeightsError: the model has a part that timm does not have, and that is not in ``drop``.
        ParityError: the timm model computes something else, as where the Transformers model was edited after it was
            built; the message names the stage.

    Example:
        >>> import timm
        >>> from vitconv.convert import to_huggingface, to_timm
        >>> model = timm.create_model("deit_tiny_patch16_224", num_classes=3)
        >>> type(to_timm(to_huggingface(model))).__name__
        'VisionTransformer'
    """
    check_drop(drop)
    found = _revert(hf_model, architecture, drop, any_epsilon=True)
    if verify and not any(parameter.is_meta for parameter in hf_model.parameters()):
        _verify_twin(found, hf_model, drop)
    return found.model


def _verify_twin(found: _Found, hf_model: PreTrainedModel, drop: Collection[str]) -> None:
    """Compare both models on an image of noise in float32; neither is changed.

    Raises:
        ArchitectureError: a model does not run on an image of its size.
        ParityError: they differ.
    """
    import torch

    device, timm_model = next(hf_model.parameters()).device, found.model
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in hf_model.parameters()):
        # Constants and folded weights are rounded differently in the two models: see `to_huggingface`.
        hf_model = copy.deepcopy(hf_model).float()
        timm_model = _revert(hf_model, found.name, drop, any_epsilon=True).model
    compare_on_noise(timm_model, hf_model, found.architecture, device).assert_match()


@in_usual_modes()
def revert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    drop: Collection[str] = (),
    image: str | os.PathLike[str] | None = None,
    verify: bool = True,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Reversion:
    """Write a folder that ``timm.create_model("local-dir:…", pretrained=True)`` loads, and prove it before it appears.

    Args:
        source: a folder with a Transformers model: ``config.json``, weights and, for the preprocessing,
            ``preprocessor_config.json``.
        destination: the folder to write; it appears whole or not at all.
        architecture: timm's name; by default as recorded in ``parity.json``, else the one that fits best.
        drop: parts that may be left out because timm does not have them: any of :data:`DROPPABLE`.
        image: an image file to verify on; by default a built-in picture.
        verify: load the folder with timm, run both models and refuse to write if they disagree.
        overwrite: replace a model folder that has the destination's name.
        on_step: called with a few words at the beginning of each step.

    Raises:
        VitconvError: with the reason, and nothing written.
    """
    source = Path(source)
    check_drop(drop)
    check_destination(destination, overwrite=overwrite, source=source, inputs=[image] if image else [])
    picture = load_image(Path(image)) if image else sample_image()
    refuse_optimized(source, "Pass the converted folder that it was made from.")
    check_reachable(source / CONFIG_FILE)
    if not os.path.isfile(source / CONFIG_FILE):
        raise CheckpointError(absent(source / CONFIG_FILE), "Pass a folder with a Transformers model.")
    check_apart(destination, [source])
    watch = Watch(source, source.iterdir)  # before anything in it is read
    on_step("Reading the folder")
    if is_wrapper(source):
        return _unwrap(
            source, destination, architecture, picture, watch, verify=verify, overwrite=overwrite, on_step=on_step
        )
    with watch.unchanged("they were read"):
        hf_model, extra = load_for_timm(source, pooler="pooler" not in drop)
    family = _family(hf_model)
    dropped = _allowed(family, extra, drop)
    recorded = recorded_architecture(source) if architecture is None else None
    if recorded is not None and not _facts(recorded, family):
        recorded = None  # only without its head, which no folder for timm says
    try:
        found = _revert(hf_model, architecture or recorded, drop, any_epsilon=False)
    except ArchitectureError as error:
        if recorded is None:
            raise
        raise ArchitectureError(
            f"'{source / PARITY_FILE}' records the architecture '{recorded}', and the folder holds another model. "
            f"{error.problem}",
            "Name the architecture with --arch, restore the file, or remove it.",
        ) from error
    except WeightsError:
        if recorded is None:
            raise
        # What was folded may have another architecture's form.
        found = _revert(hf_model, None, drop, any_epsilon=False)
    processor, data, notes = _data(source, found)

    unchanged = watch.unchanged("they were converted back")
    with staged_folder(destination, overwrite=overwrite) as folder, unchanged:
        on_step("Writing the folder")
        _write(folder, found, hf_model.config, data)
        parity = None
        if verify:
            on_step("Comparing the models")
            parity, differences = _prove(folder, found, hf_model, processor, data, picture)
            notes = (*notes, *differences)
            write_json(reversion_record(found.name, parity), folder / PARITY_FILE)
    return Reversion(
        Path(destination),
        found.architecture,
        found.name,
        found.model_args,
        (*dropped, *found.dropped),
        data,
        parity,
        (*notes, *found.folded),
    )


def _unwrap(
    source: Path,
    destination: str | os.PathLike[str],
    architecture: str | None,
    picture: Image,
    watch: Watch,
    *,
    verify: bool,
    overwrite: bool,
    on_step: Callable[[str], None],
) -> Reversion:
    """Write the timm model in a folder for ``TimmWrapper``: it is taken out as it is."""
    import torch

    with watch.unchanged("they were read"):
        wrapper = load_folder(source)
    inside, data = read_wrapped(wrapper.timm_model), timm_data_config(source, CONFIG_FILE)
    if architecture is not None and architecture.partition(".")[0] != inside.name:
        raise ArchitectureError(
            f"The architecture given is '{architecture}', but '{source}' holds timm's {inside.name}.",
            "Leave --arch out.",
        )
    if data is None:
        raise CheckpointError(
            f"The `pretrained_cfg` in '{source / CONFIG_FILE}' does not say how images are prepared.",
            "Restore the file, or convert the checkpoint again.",
        )
    data = replace(data, origin=f"the folder's {CONFIG_FILE}")
    found = _Found(inside.name, inside, inside.model_args, wrapper.timm_model, (), ())
    unchanged = watch.unchanged("they were converted back")
    with staged_folder(destination, overwrite=overwrite) as folder, unchanged:
        on_step("Writing the folder")
        _write(folder, found, wrapper.config, data)
        parity = None
        if verify:
            on_step("Comparing the models")
            loaded = _loaded(folder, found)
            check_timm_processor(source, data, [picture], CONFIG_FILE)
            pixels = probe_pixels(data)[:1]
            if makes_pixels(data):
                pixels = torch.cat([timm_pixels(picture, data)[None], pixels])
            dtype = usual_dtype(next(wrapper.parameters()).dtype)
            parity = compare_outputs(loaded, wrapper, pixels, dtypes=["float64", dtype])
            parity.assert_match()
            write_json(reversion_record(found.name, parity), folder / PARITY_FILE)
    return Reversion(Path(destination), inside, inside.name, inside.model_args, (), data, parity, ())


def check_drop(drop: Collection[str]) -> None:
    """Raise :class:`~vitconv.errors.InputError` unless all are parts that can be dropped."""
    unknown = [name for name in drop if name not in DROPPABLE]
    if unknown:
        raise InputError(f"There is no part '{unknown[0]}' to drop.", f"Choose from {', '.join(DROPPABLE)}.")


@dataclass(frozen=True)
class _Found:
    """A timm model that computes what a Transformers model does.

    ``folded`` holds sentences on tensors that are not plain copies of the Transformers model's.
    """

    name: str
    architecture: Any
    model_args: Mapping[str, Any]
    model: Any
    dropped: tuple[str, ...]
    folded: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    name: str
    architecture: Architecture
    model_args: Mapping[str, Any]
    rank: tuple[Any, ...]


def _revert(hf_model: PreTrainedModel, name: str | None, drop: Collection[str], *, any_epsilon: bool) -> _Found:
    family = _family(hf_model)
    _check_activation(hf_model)
    tensors, notes = family.before_revert(hf_model.state_dict())
    parts = [_part(family, tensor) for tensor in tensors]
    dropped = tuple(dict.fromkeys(part for part in parts if part is not None and part in drop))
    if (
        getattr(hf_model, "pooler", None)
        and "pooler" not in drop
        and getattr(hf_model.config, "pooler_act", "linear") != "linear"
    ):
        raise _part_error(family, "pooler.dense.weight")
    errors: list[WeightsError] = []
    for candidate in _candidates(family, hf_model, name, any_epsilon):
        try:
            state_dict = _timm_tensors(family, candidate.architecture, tensors, drop)
        except (
            WeightsError
        ) as error:  # a tensor that should be constant is not: another architecture may have a place for it
            errors.append(error)
            continue
        model = _build(candidate, any_epsilon)
        if model is None:
            continue
        model.load_state_dict({key: value.detach().clone() for key, value in state_dict.items()}, assign=True)
        make_buffers(model)
        dtypes = {parameter.dtype for parameter in model.parameters()}
        if len(dtypes) == 1:
            model.to(dtypes.pop())
        model.train(hf_model.training)
        return _Found(candidate.name, candidate.architecture, candidate.model_args, model, dropped, tuple(notes))
    if errors:
        raise errors[0]
    raise _no_architecture(family, hf_model, name)


def _build(candidate: _Candidate, any_epsilon: bool) -> nn.Module | None:
    """timm's model of the candidate; ``None`` if its arguments build no model, or a different one."""
    try:
        model = build_timm(candidate.name, **candidate.model_args)
        if any_epsilon:
            _set_epsilon(model, candidate.architecture.layer_norm_eps)
        return model if from_timm(model) == candidate.architecture else None
    except ArchitectureError:
        return None


def _set_epsilon(model: Any, epsilon: float) -> None:
    """Give the norms of a timm model another epsilon, those that share one (SAM's neck has its own)."""
    own = from_timm(model).layer_norm_eps
    for module in model.modules():
        if getattr(module, "eps", None) == own:
            module.eps = epsilon


def _no_architecture(family: Family, hf_model: PreTrainedModel, name: str | None) -> ArchitectureError:
    other = next(_candidates(family, hf_model, name, any_epsilon=True), None)
    epsilon = other and other.architecture.layer_norm_eps
    own = other and entries()[other.name].architecture.layer_norm_eps  # type: ignore[union-attr]
    if other is not None and own != epsilon:
        return ArchitectureError(
            f"The norms' epsilon is {epsilon:g}, that of timm's {other.name} is {own:g}, and a config.json of timm's "
            "cannot say another.",
            f"If the weights were trained with {own:g} (as Google's ViT was), correct it in the folder's config.json; "
            "or use `vitconv.convert.to_timm`, which sets it in memory.",
        )
    which = f"timm's {name} does not compute" if name else "No architecture of timm's computes"
    return ArchitectureError(
        f"{which} what this {type(hf_model).__name__} computes, with its configuration.",
        "Name another architecture with --arch; `vitconv models` lists what can be converted back."
        if name
        else "Keep this model in Transformers.",
    )


def _family(hf_model: PreTrainedModel) -> Family:
    name = type(hf_model).__name__
    if name in mapping.WRAPPER.classes:
        raise ArchitectureError(f"A {name} holds the timm model as it is.", "Take it: `hf_model.timm_model`.")
    if name not in mapping.CLASSES:
        raise ArchitectureError(
            f"vitconv knows no way back from {name}.", f"It knows one from {', '.join(mapping.CLASSES)}."
        )
    return mapping.CLASSES[name]


# ------------------------------------------------------------------------------------------------------------
# Which architecture.


def _settings(hf_model: PreTrainedModel) -> PreTrainedConfig:
    return _family(hf_model).vision_config(hf_model.config)


def _candidates(
    family: Family, hf_model: PreTrainedModel, name: str | None, any_epsilon: bool
) -> Iterator[_Candidate]:
    """timm's architectures that become this model, those that need the fewest arguments first."""
    found = []
    base = name.partition(".")[0] if name else None
    if base and not _facts(base, family):
        build_timm(base)  # says so if timm does not know it
        raise ArchitectureError(f"'{base}' does not convert, so there is no way back to it.", "Name another one.")
    for entry in entries().values():
        facts = _facts(entry.name, family)
        if facts is None or base not in (None, entry.name):
            continue
        known = facts if base or family.code_module else _pooled(facts, family)  # `timm_head` says how it pools
        sized = _sized(known, family, hf_model, any_epsilon)
        if family.obstacles(sized) or not _same_settings(family, sized, hf_model):
            continue
        more = arguments(facts, sized)
        chosen = ("img_size", "num_classes", "in_chans")
        rank = (
            len([argument for argument in more if argument not in chosen]),
            ("moved", "made", "folded").index(family.exactness(sized)),
            sized.image_size != facts.image_size,
            not entry.name.startswith("vit_"),
            len(entry.name),
            entry.name,
        )
        found.append(_Candidate(entry.name, sized, more, rank))
    yield from sorted(found, key=lambda candidate: candidate.rank)


def _facts(name: str, family: Family) -> Architecture | None:
    """What an architecture of timm's is; ``None`` if nothing of its kind becomes a model of this family."""
    entry = entries().get(name.partition(".")[0])
    if entry is None:
        return None
    return entry.facts if family.code_module else entry.architecture  # with timm's head, more convert


def _pooled(known: Architecture, family: Family) -> Architecture:
    """Where nothing says how a model's tokens are pooled, as the Transformers model itself does."""
    by_token = replace(known, global_pool="token")
    return (
        by_token if not family.obstacles(by_token) and family.output_expression(by_token) == "pooler_output" else known
    )


def _sized(known: Architecture, family: Family, hf_model: PreTrainedModel, any_epsilon: bool) -> Architecture:
    """An architecture of timm's with the sizes that a Transformers model has."""
    config = _settings(hf_model)
    check_image_size(_pair(config.image_size))
    sized = replace(
        known,
        image_size=_pair(config.image_size),
        patch_size=_pair(config.patch_size),
        num_channels=config.num_channels,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        hidden_act=_activation(family, config),
        num_labels=family.num_labels(type(hf_model).__name__, hf_model.config),
        # Folded tensors stay folded.
        layer_scale=known.layer_scale
        and not any(rewrite.apply is FOLD_LAYER_SCALE.apply for rewrite in family.rewrites),
        # Unless the family's configuration says otherwise:
        rope_theta=0.0,
        position_grid=(),
    )
    if any_epsilon:
        sized = replace(sized, layer_norm_eps=getattr(config, family.epsilon))
    return replace(sized, **family.from_config(known, config))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _same_settings(family: Family, architecture: Architecture, hf_model: PreTrainedModel) -> bool:
    """Whether the architecture converts to this configuration, ignoring settings that matter only in training."""
    if family.class_name(architecture) != type(hf_model).__name__:
        return False
    expected = family.config(architecture)
    config = _settings(hf_model)
    return architecture.hidden_act == _activation(family, config) and all(
        _same(family, name, value, getattr(config, name, None))
        for name, value in expected.get("vision_config", expected).items()
        if name != "hidden_act" and not re.search("drop|mask_token", name)  # those matter in training only
    )


def _same(family: Family, name: str, expected: Any, found: Any) -> bool:
    if name in ("image_size", "patch_size"):
        return _pair(expected) == _pair(found)
    if name in family.decisive:
        return family.decisive[name](expected) == family.decisive[name](found)
    return (list(found) if isinstance(found, tuple) else found) == expected


#: Transformers' other names of the same functions: the same formula, perhaps rounded elsewhere. Those that only come
#: near are not among them: `gelu_fast` rounds a constant to ten digits, `gelu_10` and `relu6` cut off.
_ALIASES = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "swish": "silu",
}


def _activation(family: Family, config: PreTrainedConfig) -> str:
    """The activation that the model computes, by the name under which vitconv knows it."""
    name = family.hidden_act(config)
    return _ALIASES.get(name, name)


def _check_activation(hf_model: PreTrainedModel) -> None:
    activation = _activation(_family(hf_model), _settings(hf_model))
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"The activation of this {type(hf_model).__name__} is '{activation}' (`hidden_act`), which none of timm's "
            "Vision Transformers computes.",
            f"Keep this model in Transformers; there is a way back from {', '.join([*ACTIVATIONS, *_ALIASES])}.",
        )


# ------------------------------------------------------------------------------------------------------------
# The tensors.


def _timm_tensors(
    family: Family, architecture: Architecture, tensors: Mapping[str, Tensor], drop: Collection[str]
) -> dict[str, Tensor]:
    """The state dict of the architecture's timm model.

    Raises:
        WeightsError: the tensors have something that the architecture has no place for.
    """
    simple, steps = _forward(family, architecture)
    shapes = shapes_of(simple.state_dict)
    plan = make_plan(family, simple.architecture, shapes, installed_dialect())
    wanted = {move.target: move.shape for move in plan.moves}
    present = {name: tensor for name, tensor in tensors.items() if name in wanted}
    for name in tensors.keys() - wanted.keys():
        if _part(family, name) not in drop:
            raise _part_error(family, name)
    for name, shape in wanted.items():
        part = _part(family, name)
        if part is not None and (part in drop or name not in present):
            present[name] = _nothing(shape, next(iter(tensors.values())))
    misshapen = [name for name, shape in wanted.items() if name not in present or tuple(present[name].shape) != shape]
    if misshapen:
        raise WeightsError(
            f"The tensors of the model are not those of its configuration: {first_few(misshapen)}.",
            "Check that the folder is whole.",
        )
    result = plan.revert(present)
    for rewrite, before in reversed(steps):
        result = rewrite.undo(result, before)
    return result


def _forward(family: Family, architecture: Architecture) -> tuple[Rewritten, list[tuple[Rewrite, Architecture]]]:
    """The architecture's tensors after the family's rewrites, as shapes only, and the rewrites that were applied."""
    import torch

    shapes = mapping.timm_shapes(architecture)
    model = Rewritten({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, architecture)
    steps = []
    for rewrite in family.rewrites:
        if rewrite.needed(model.architecture):
            steps.append((rewrite, model.architecture))
            model = rewrite.apply(model)
    return model, steps


def _part(family: Family, name: str) -> str | None:
    """Which of the parts that may be dropped a tensor belongs to."""
    return next((piece for piece in name.split(".") if piece in family.droppable), None)


def _part_error(family: Family, name: str) -> WeightsError:
    part = _part(family, name)
    if part is None:
        return WeightsError(f"`{name}` has no place in timm.", "Name another architecture with --arch.")
    return WeightsError(
        f"The model has {family.droppable[part]} (`{name}`), which has no place in timm.",
        f"Leave it out with --drop {part}, if nothing uses it.",
    )


def _nothing(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The values with which a part does nothing: the identity for a linear layer, else zeros."""
    import torch

    if len(shape) == 2 and shape[0] == shape[1]:
        return torch.eye(*shape, dtype=like.dtype, device=like.device)
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


# ------------------------------------------------------------------------------------------------------------
# The folder.


def _allowed(family: Family, extra: Sequence[str], drop: Collection[str]) -> tuple[str, ...]:
    """The parts that the tensors Transformers did not load belong to; refused unless they may be dropped."""
    for name in extra:
        if _part(family, name) not in drop:
            raise _part_error(family, name)
    return tuple(dict.fromkeys(str(_part(family, name)) for name in extra))


def _data(source: Path, found: _Found) -> tuple[BaseImageProcessor | None, DataConfig, tuple[str, ...]]:
    """The folder's image processor, and how timm does what it does; without one, what the architecture's tag says.

    The processor is the one that Transformers itself loads, with the settings that its file leaves to the class. That
    timm does the same is shown by images of every kind of shape, whether or not the models are compared: the settings
    do not tell what a class does beside them.

    Raises:
        InputError: timm has no such transform.
        ParityError: what the settings say is not what the processor does.
    """
    file = processor_file(source)
    tag = tag_config(found.model.pretrained_cfg)
    if file is None:
        data = data_config(tag, found.architecture)
        return None, data, (f"No {PROCESSOR_FILE} in '{source}': the preprocessing is that of {data.origin}.",)
    processor = load_any_processor(source)
    given = from_processor(json.loads(processor.to_json_string()), found.architecture, file)
    data = data_config(tag, found.architecture, given)
    if makes_pixels(data):
        try:
            pixels_for(None, data, probe_images(data), processor=processor, file=file)
        except ParityError as error:
            raise ParityError(
                f"{error.problem} So timm has no transform that does what {file} does.",
                "Correct it, or remove it: then the architecture's own preprocessing is taken.",
                stage="pixels",
            ) from error
    return processor, data, ()


def _write(folder: Path, found: _Found, config: PreTrainedConfig, data: DataConfig) -> None:
    """Let timm itself write the folder."""
    from safetensors import SafetensorError
    from timm.models import save_for_hf

    labels = [config.id2label[i] for i in sorted(config.id2label)] if found.architecture.num_labels else []
    named = len(labels) == found.architecture.num_labels and labels != [f"LABEL_{i}" for i in range(len(labels))]
    cfg = found.model.pretrained_cfg
    found.model.pretrained_cfg = {
        "tag": "",
        "custom_load": False,
        "input_size": [data.num_channels, *data.image_size],
        "fixed_input_size": True,
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct,
        "crop_mode": data.crop_mode,
        "mean": list(data.mean),
        "std": list(data.std),
        "num_classes": found.architecture.num_labels,
        "pool_size": None,
        # timm would adapt a first convolution to other than three channels, which these weights are already.
        "first_conv": cfg.get("first_conv") if data.num_channels == 3 else None,
        "classifier": cfg.get("classifier"),
        "architecture": found.name,
    }
    try:
        save_for_hf(
            found.model,
            folder,
            model_config={"label_names": labels} if named and labels else None,
            model_args=dict(found.model_args),
            safe_serialization=True,
        )
    except SafetensorError as error:  # it holds the system's error, such as a full disk, only as text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _loaded(folder: Path, found: _Found) -> nn.Module:
    """The model that timm loads from the folder; its tensors are those that were found."""
    import timm

    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        raise ParityError(
            f"timm does not load the folder: {str(error)[:200]}", "Report this as a bug in vitconv.", stage="loading"
        ) from error
    loaded.to(next(found.model.parameters()).dtype)
    check_bytes(found.model.state_dict(), loaded.state_dict())
    return loaded


def _prove(
    folder: Path,
    found: _Found,
    hf_model: PreTrainedModel,
    processor: BaseImageProcessor | None,
    data: DataConfig,
    picture: Image,
) -> tuple[Parity, tuple[str, ...]]:
    """Load the folder as users do, and compare; also the known differences of the pixels, in sentences."""
    loaded, dtype = _loaded(folder, found), next(found.model.parameters()).dtype
    pixels, _, differences = pixels_for(None, data, [picture], processor=processor)
    # Under another name, an activation is the same function, rounded after each step of its formula: in 16 bits that
    # is farther from float64 than timm's, so that the two are compared where rounding is small.
    alias = _settings(hf_model).hidden_act in _ALIASES
    natural = "float32" if alias else usual_dtype(dtype)
    # What was folded is rounded once in the folder; in float64 it is not, so the timm model there is made anew.
    exact = loaded
    if found.folded:
        in_float64 = copy.deepcopy(hf_model).double()
        exact = _revert(in_float64, found.name, found.dropped, any_epsilon=False).model
        check_bytes(found.model.state_dict(), {name: tensor.to(dtype) for name, tensor in exact.state_dict().items()})
    parity = compare(exact, hf_model, pixels, dtypes=["float64"])
    parity += compare(loaded, hf_model, pixels, dtypes=[natural])
    parity.assert_match()
    return parity, differences
