"""The public verbs: convert a state dict, a model or a checkpoint, and look before converting."""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitconv import __version__, catalogue, mapping, resize
from vitconv.architecture import Architecture, Shapes, describe_shapes, fit_to_weights
from vitconv.card import CARD_FILE, model_card
from vitconv.checkpoint import CONFIG_FILE, HUB_PREFIX, PARITY_FILE, Source, open_source, read_json, sha256, write_json
from vitconv.destination import check_destination, staged_folder
from vitconv.errors import ArchitectureError, CheckpointError, InputError, VitconvError, first_few
from vitconv.huggingface import build_model, installed_dialect, make_config
from vitconv.labels import check_labels, read_labels
from vitconv.parity import compare
from vitconv.plan import Plan, check_names, check_tensors, convert_tensors, make_plan, shapes_of, widest_dtype
from vitconv.preprocess import (
    PROCESSOR_FILE,
    DataConfig,
    data_config,
    load_image,
    obstacle,
    processor_config,
    read_data_config,
    sample_image,
    tag_config,
)
from vitconv.revert import Reversion, revert_checkpoint, to_timm
from vitconv.simplify import Made
from vitconv.tensorfile import StoredTensor, dtype_name, load_tensors, write_weights
from vitconv.timm_models import build_timm, describe_regularisation, from_timm, regularisation
from vitconv.unwrap import unwrap
from vitconv.verify import Verification, verify_folder

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = [
    "Conversion",
    "Inspection",
    "Reversion",
    "convert_checkpoint",
    "convert_state_dict",
    "inspect",
    "read_weights",
    "revert_checkpoint",
    "to_huggingface",
    "to_timm",
    "verify_checkpoint",
]

DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Inspection:
    """What a conversion would do, before it does it.

    Attributes:
        architecture: as read from timm and the weights.
        target: the family that was asked for; ``None`` for the plainest that computes the same.
        plan: the moves into the Hub layout.
        made: the tensors that are made from others (or from nothing) before the moves.
        data: how timm prepares an image for the model.
        warnings: what the converted folder will not be able to do, in sentences.
        notes: how the model was found in the checkpoint, in sentences.
    """

    architecture: Architecture
    target: str | None
    plan: Plan
    made: tuple[Made, ...]
    data: DataConfig
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        destination: the Transformers folder.
        architecture, target, plan, made, data, warnings, notes: as in :class:`Inspection`.
        labels: the class names written, in order.
        verification: how close the two models came; ``None`` if it was switched off.
    """

    destination: Path
    architecture: Architecture
    target: str | None
    plan: Plan
    made: tuple[Made, ...]
    labels: tuple[str, ...]
    data: DataConfig
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    verification: Verification | None


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    architecture: Architecture | nn.Module | str,
    *,
    layout: Literal["module", "hub"] = "module",
    target: str | None = None,
) -> dict[str, Tensor]:
    """Convert a timm state dict to Transformers' names.

    The tensors are views of the input's memory, except those that a rewrite of :mod:`vitconv.simplify` makes;
    the input itself is left as it is.

    Args:
        state_dict: timm's names, as ``model.state_dict()`` gives them; any dtypes, any device.
        architecture: an :class:`~vitconv.architecture.Architecture`, a timm model, or a timm name. Of a name
            the classes, channels and image size are read from the weights.
        layout: ``"module"`` for ``load_state_dict(strict=True)`` into the installed transformers' model,
            ``"hub"`` for the names in files, which every transformers reads.
        target: Transformers' name of the family to convert to, such as ``"dinov2"``; by default the plainest that
            computes the same.

    Raises:
        ArchitectureError: no Transformers class can express the architecture.
        WeightsError: tensors are missing, unknown or of another shape.

    Example:
        >>> import timm
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from vitconv.convert import convert_state_dict
        >>> timm_model = timm.create_model("vit_tiny_patch16_224", num_classes=7)
        >>> config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768,
        ...                    layer_norm_eps=1e-6, num_labels=7)
        >>> model = ViTForImageClassification(config)
        >>> model.load_state_dict(convert_state_dict(timm_model.state_dict(), timm_model))
        <All keys matched successfully>
    """
    if layout not in ("module", "hub"):
        raise InputError(f"There is no layout '{layout}'.", "Choose 'module' or 'hub'.")
    if not isinstance(architecture, Architecture):
        shapes = shapes_of(state_dict)
        if isinstance(architecture, str):
            architecture, _ = _sized(_facts(architecture, {}).architecture, shapes, None)
        else:
            architecture = from_timm(architecture)
        check_tensors(mapping.timm_shapes(architecture), shapes)
    dialect = "hub" if layout == "hub" else installed_dialect()
    return convert_tensors(state_dict, architecture, dialect, target=target)


def to_huggingface(timm_model: nn.Module, *, target: str | None = None, verify: bool = True) -> PreTrainedModel:
    """Build the Transformers twin of a timm model, with weights of its own (same dtype, device and mode).

    For a plain model that is ``ViTForImageClassification``, or without a head ``ViTModel``, whose ``pooler_output`` is
    what timm returns; docs/coverage.md lists what it is for each of timm's architectures.

    Args:
        timm_model: any of timm's Vision Transformers.
        target: as for :func:`convert_state_dict`.
        verify: run both models on an image of noise, in float32 and where the timm model is, and raise unless they
            agree. Weights on ``meta`` hold no numbers: a model with any of them is converted without.

    Warns:
        UserWarning: the timm model has dropout or stochastic depth, which the twin has not.

    Raises:
        ArchitectureError: no Transformers class can express the model, or it does not run.
        WeightsError: weights were taken out, added or reshaped, so that they contradict the rest.
        ParityError: the twin computes something else; the message names the stage.

    Example:
        >>> import timm
        >>> from vitconv.convert import to_huggingface
        >>> type(to_huggingface(timm.create_model("deit_tiny_patch16_224"))).__name__
        'ViTForImageClassification'
    """
    import torch

    architecture = from_timm(timm_model)
    state_dict = timm_model.state_dict()
    check_tensors(mapping.timm_shapes(architecture), shapes_of(state_dict))
    sentence = describe_regularisation(regularisation(timm_model))
    if sentence:
        warnings.warn(sentence, stacklevel=2)
    kind = timm_model.patch_embed.proj.weight.device.type
    with ExitStack() as stack:
        # Whatever is on around the call: it would make constants on `meta`, or the rewrites' products in bfloat16.
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu" if kind == "meta" else kind, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))  # Transformers draws weights that are replaced at once
        tensors = convert_tensors(state_dict, architecture, installed_dialect(), target=target)
        config = make_config(mapping.config(architecture, target=target))
        model = build_model(config, {name: tensor.detach().clone() for name, tensor in tensors.items()})
        if verify and not any(parameter.is_meta for parameter in timm_model.parameters()):
            _verify_twin(timm_model, model, architecture, target)
    return model.train(timm_model.training)


def _verify_twin(
    timm_model: nn.Module, hf_model: PreTrainedModel, architecture: Architecture, target: str | None
) -> None:
    """Compare both models on an image of noise in float32; neither is changed.

    Raises:
        ArchitectureError: a model does not run on an image of its size.
        ParityError: they differ.
    """
    import torch

    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in timm_model.parameters()):
        # Constants, and weights that are folded, are rounded in each model, which float32 would show: not so in two
        # models that are made of the same weights in float32.
        timm_model = copy.deepcopy(timm_model).float()
        for module in timm_model.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        tensors = convert_tensors(timm_model.state_dict(), architecture, installed_dialect(), target=target)
        hf_model = build_model(hf_model.config, tensors)
    device = timm_model.patch_embed.proj.weight.device
    shape = (1, architecture.num_channels, *architecture.image_size)
    pixels = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    try:
        parity = compare(timm_model, hf_model, pixels, dtypes=("float32",), device=str(device))
    except VitconvError:
        raise
    except Exception as error:  # whatever a model that was edited raises
        raise ArchitectureError(
            f"The models cannot be compared, as one does not run: {type(error).__name__}: {str(error)[:200]}.",
            "Run the timm model on an image of its size; where it does run, pass verify=False and compare yourself.",
        ) from error
    parity.assert_match()


def read_weights(
    source: str | os.PathLike[str], architecture: nn.Module | str | None = None, *, ema: bool = True
) -> Mapping[str, Tensor]:
    """Read the state dict of a timm model, in timm's names, out of whatever the checkpoint wraps around it.

    Args:
        source, architecture, ema: as for :func:`convert_checkpoint`.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    return _open(source, architecture, None, None, ema).state_dict


def inspect(
    source: str | os.PathLike[str],
    architecture: nn.Module | str | None,
    *,
    target: str | None = None,
    image_size: tuple[int, int] | None = None,
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ema: bool = True,
) -> Inspection:
    """Say what converting ``source`` would do; read names and shapes, write nothing.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    return _open(source, architecture, image_size, data, ema, target).inspection


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    architecture: nn.Module | str | None = None,
    target: str | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    image: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] | None = None,
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ema: bool = True,
    dtype: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Convert a file of timm weights to a Transformers folder and prove, before it appears, that it is right.

    The number of classes and channels and the image size are read from the weights.

    Args:
        source: a file with the weights of a timm Vision Transformer (torch's format or safetensors, whatever its
            name, wrapped by a training script or not), a folder as timm saves it for the Hub, or such a folder's name
            on the Hub: ``"hf-hub:org/name"``.
        destination: the folder to write; it appears whole or not at all.
        architecture: the timm name, or a timm model; by default what a folder's ``config.json`` says, or the only
            architecture of timm's that the weights fit.
        target: Transformers' name of the family to convert to, such as ``"dinov2"``; by default the plainest that
            computes the same.
        labels: class names, or a file of them (one per line, or JSON); by default what ``config.json`` says.
        image: an image file to verify on; by default a built-in picture.
        image_size: (height, width), where the weights leave it open; another one than theirs resamples the position
            embedding with timm's own routine.
        data: how the model wants its images prepared, where that is not what timm's pretrained tag says: a mapping
            with any of timm's ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``, or a JSON file.
        ema: take the exponential moving average of the weights where the checkpoint holds both.
        dtype: the dtype to store, ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"float64"``; by default the
            source's.
        verify: run both models on the image and refuse to write if they disagree. Without, a safetensors file is
            copied by the kernel, and neither torch nor timm is imported where the catalogue knows the architecture.
        overwrite: replace a model folder that has the destination's name.
        say: called with a few words at the beginning of each step.

    Raises:
        VitconvError: with the reason, and nothing written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"There is no dtype '{dtype}' to store.", f"Choose one of {', '.join(DTYPES)}.")
    check_destination(destination, overwrite=overwrite, source=None if HUB_PREFIX.match(str(source)) else source)
    names = _read_names(labels)
    picture = load_image(image) if image else None
    say("Reading the checkpoint")
    opened = _open(source, architecture, image_size, data, ema, target)
    inspection, known = opened.inspection, opened.inspection.architecture
    names = _fitting_labels(names or opened.labels(), known)

    with staged_folder(destination, overwrite=overwrite) as folder:
        say("Writing the folder")
        _write(folder, opened, names, dtype)
        verification = None
        if verify:
            verification = verify_folder(
                folder,
                opened.state_dict,
                opened.witness(),
                known,
                inspection.data,
                [picture or sample_image()],
                target=target,
                labels=names,
                say=say,
            )
        warnings = (*inspection.warnings, *(verification.warnings if verification else ()))
        write_json(_record(opened, names, verification), folder / PARITY_FILE)
        card = model_card(
            opened.source.files[0].name,
            opened.timm_name,
            known,
            target,
            names,
            inspection.made,
            inspection.data,
            warnings,
            verification,
        )
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return Conversion(
        destination=Path(destination),
        architecture=known,
        target=target,
        plan=inspection.plan,
        made=inspection.made,
        labels=names,
        data=inspection.data,
        warnings=warnings,
        notes=inspection.notes,
        verification=verification,
    )


def verify_checkpoint(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    architecture: nn.Module | str | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    image_size: tuple[int, int] | None = None,
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ema: bool | None = None,
    dtypes: Sequence[str] = (),
    device: str = "cpu",
    say: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Prove an existing Transformers folder against the timm weights it was made from.

    Besides the images, the models run on pixels that no photo has: noise, black, white, a checkerboard.

    Args:
        source: the timm weights, as for :func:`convert_checkpoint`.
        folder: the Transformers folder.
        architecture: the timm name, or a timm model; by default the name recorded in the folder's ``parity.json``.
        labels: class names, or a file of them; by default as recorded in ``parity.json``.
        images: image files to verify on; by default a built-in picture.
        image_size, data, ema: as for :func:`convert_checkpoint`; by default as recorded in ``parity.json``.
        dtypes: what to compare in besides float64: any of :data:`vitconv.parity.DTYPES`; by default what is stored.
        device: where to compute: ``"cpu"``, ``"cuda"``…
        say: called with a few words at the beginning of each step.

    Raises:
        ParityError: the folder is not what the source makes of it; the message names the tensor or the stage.
        VitconvError: the source, the folder, or an image cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"'{folder}' is not a model's folder: it has no {CONFIG_FILE}.", "Check its path.")
    recorded = _recorded(folder)
    architecture = architecture or recorded.get("architecture")
    image_size = image_size or recorded.get("image_size")
    data = data or recorded.get("given")
    names = _read_names(labels) or recorded.get("labels")
    pictures = [load_image(image) for image in images] or [sample_image()]
    ema = recorded.get("ema", True) if ema is None else ema
    say("Reading the checkpoint")
    opened = _open(source, architecture, image_size, data, ema, recorded.get("target"))
    return verify_folder(
        folder,
        opened.state_dict,
        opened.witness(),
        opened.inspection.architecture,
        opened.inspection.data,
        pictures,
        target=opened.inspection.target,
        labels=names or opened.labels(),
        probes=True,
        dtypes=dtypes,
        device=device,
        say=say,
    )


@dataclass(frozen=True)
class _Opened:
    """A source, understood: its weights, what they are the weights of, and what will be done.

    Attributes:
        tensors: the weights in timm's names, in their file wherever possible.
        timm_name: what timm calls the architecture; ``None`` if a model was given.
        build: gives timm's model of the architecture, without weights.
    """

    source: Source
    tensors: Mapping[str, StoredTensor | Tensor]
    timm_name: str | None
    build: Callable[[], nn.Module]
    ema: bool
    inspection: Inspection

    @functools.cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights to compute with."""
        return load_tensors(self.tensors)

    def labels(self) -> tuple[str, ...] | None:
        """The class names that the source's own ``config.json`` gives."""
        return None if self.source.labels is None else check_labels(self.source.labels, "The source's config.json")

    def witness(self) -> nn.Module:
        """A timm model that may take the source's weights, and computes what they are converted as."""
        model = self.build()
        built, known = from_timm(model), self.inspection.architecture
        if built != known:
            differing = [name for name, value in asdict(built).items() if value != asdict(known)[name]]
            raise ArchitectureError(
                f"The installed timm builds '{self.timm_name}' with another {first_few(differing)} than expected.",
                "Report this as a bug in vitconv, with your version of timm.",
            )
        return model


@dataclass(frozen=True)
class _Facts:
    """What is known of a timm architecture before the weights are looked at."""

    architecture: Architecture
    tag: Mapping[str, Any]


def _facts(architecture: nn.Module | str, arguments: Mapping[str, Any]) -> _Facts:
    """From the catalogue, which needs no torch; else from timm."""
    known = catalogue.look_up(architecture) if isinstance(architecture, str) and not arguments else None
    if known is not None:
        return _Facts(known.architecture, known.data)
    model = build_timm(architecture, **arguments) if isinstance(architecture, str) else architecture
    return _Facts(from_timm(model), tag_config(model.pretrained_cfg))


def _open(
    path: str | os.PathLike[str],
    architecture: nn.Module | str | None,
    image_size: tuple[int, int] | None,
    given: Mapping[str, Any] | str | os.PathLike[str] | None,
    ema: bool,
    target: str | None = None,
) -> _Opened:
    source = open_source(path)
    notes = list(source.notes)
    wanted = architecture or source.architecture
    if wanted is None:
        wanted, note = _only_candidate(source, image_size, ema)
        notes.append(note)
    arguments = dict(source.model_args) if wanted == source.architecture else {}
    facts = _facts(wanted, arguments)

    names = set(mapping.timm_shapes(replace(facts.architecture, num_labels=1)))
    respell = functools.partial(_respell, source, wanted, arguments)
    unwrapped = unwrap(source.content, names, ema=ema, respell=respell)
    notes += unwrapped.notes
    tensors = source.tensors(unwrapped.tensors)
    trained = known = facts.architecture
    if isinstance(wanted, str):
        trained, known = _sized(facts.architecture, shapes_of(tensors), image_size)
    check_tensors(mapping.timm_shapes(trained), shapes_of(tensors))
    notes += _shape_note(facts.architecture, shapes_of(tensors), trained) if image_size else []
    if known != trained:
        tensors = resize.resample(load_tensors(tensors), trained, known)
        notes.append(resize.describe(trained, known))

    def build() -> nn.Module:
        if not isinstance(wanted, str):
            return copy.deepcopy(wanted)
        sizes = {"num_classes": known.num_labels, "in_chans": known.num_channels, "img_size": known.image_size}
        return build_timm(wanted, **{**arguments, **sizes})

    rates = arguments if isinstance(wanted, str) else regularisation(wanted)
    # timm's training script saves its arguments beside the weights.
    script = vars(source.content["args"]) if isinstance(source.content.get("args"), argparse.Namespace) else {}
    notes += filter(None, [describe_regularisation({**script, **rates})])

    if isinstance(given, (str, os.PathLike)):
        given = read_data_config(given)
    data = data_config(facts.tag, known, given, own=source.data)
    return _Opened(
        source,
        tensors,
        wanted if isinstance(wanted, str) else None,
        build,
        ema,
        _inspect(tensors, known, target, data, notes),
    )


def _only_candidate(source: Source, image_size: tuple[int, int] | None, ema: bool) -> tuple[str, str]:
    """The architecture of timm's that the weights fit, and a note that says so.

    Raises:
        ArchitectureError: there is none, or there are several that compute different numbers.
    """
    shapes = shapes_of(unwrap(source.content, None, ema=ema).tensors)
    found = catalogue.candidates(shapes, image_size)
    if not found:
        told = describe_shapes(shapes)
        raise ArchitectureError(
            "The architecture is not given, and no convertible one of timm's has tensors of these names and shapes"
            + (f"; they tell: {told}." if told else "."),
            "Name the timm architecture, as in --arch vit_base_patch16_384.",
        )
    names = [candidate.name for candidate in found]
    differing = catalogue.differences(found)
    if differing:
        listed = "; ".join(f"{name} ({how})" for name, how in differing.items())
        raise ArchitectureError(
            f"The architecture is not given, and the weights fit {len(found)} of different numbers: {listed}.",
            f"Name the one that they were trained as, as in --arch {names[0]}.",
        )
    same = f" ({first_few(names[1:])} would be the same)" if names[1:] else ""
    return names[0], f"The weights fit one architecture of timm's, {names[0]}{same}: it was taken."


def _respell(
    source: Source, architecture: nn.Module | str, arguments: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Tensor] | None:
    """Rename tensors of an older spelling with timm's own filter; ``None`` if it would do more than rename."""
    from timm.models import vision_transformer

    model = build_timm(architecture, **arguments) if isinstance(architecture, str) else copy.deepcopy(architecture)
    filter_fn = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", vision_transformer.checkpoint_filter_fn
    )
    # Without a position embedding to compare with, the filter does not resample the checkpoint's.
    model.pos_embed = None
    try:
        old = load_tensors(source.tensors(tensors))
        options = {"adapt_layer_scale": True} if filter_fn is vision_transformer.checkpoint_filter_fn else {}
        new = filter_fn(dict(old), model, **options)
    except (VitconvError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, AssertionError):
        return None
    places = {tensor.data_ptr() for tensor in new.values()}
    lost = [name for name, tensor in old.items() if tensor.data_ptr() not in places and name != "mask_token"]
    made = places - {tensor.data_ptr() for tensor in old.values()}
    return None if lost or made else new


def _sized(
    architecture: Architecture, shapes: Shapes, image_size: tuple[int, int] | None
) -> tuple[Architecture, Architecture]:
    """The architecture at the sizes that the weights were trained for, and at those that are wanted."""
    # First what tensors there are, then what their sizes tell.
    check_names(mapping.timm_shapes(replace(architecture, num_labels=int("head.weight" in shapes))), shapes)
    if image_size is None:
        trained = fit_to_weights(architecture, shapes)
        return trained, trained
    try:
        trained = fit_to_weights(architecture, shapes, image_size)
        return trained, trained
    except InputError:
        trained = fit_to_weights(architecture, shapes)
        wanted = replace(trained, image_size=(int(image_size[0]), int(image_size[1])))
        if min(wanted.grid) < 1:
            raise
        return trained, wanted


def _shape_note(architecture: Architecture, shapes: Shapes, taken: Architecture) -> list[str]:
    """Say so where an image size was taken as the weights' own that they do not tell by themselves."""
    if not architecture.position_embedding:
        return []  # nothing depends on it
    try:
        told = fit_to_weights(architecture, shapes)
    except InputError:
        return []
    if told.image_size == taken.image_size:
        return []
    return [
        f"The weights have as many patches as {taken.image_size[0]}x{taken.image_size[1]} makes, so they were taken "
        f"to be trained at that size; `pos_embed` was not resampled from {told.image_size[0]}x{told.image_size[1]}."
    ]


def _inspect(
    tensors: Mapping[str, StoredTensor | Tensor],
    architecture: Architecture,
    target: str | None,
    data: DataConfig,
    notes: Sequence[str],
) -> Inspection:
    made: tuple[Made, ...] = ()
    shapes, simple = shapes_of(tensors), architecture
    family = mapping.family_for(architecture, target)
    if not family.is_simple(architecture):
        simplified = family.simplify(load_tensors(tensors), architecture)
        made, shapes, simple = simplified.made, shapes_of(simplified.state_dict), simplified.architecture
    reason = obstacle(data)
    warnings = (f"No {PROCESSOR_FILE}: {reason}",) if reason else ()
    return Inspection(architecture, target, make_plan(family, simple, shapes), made, data, warnings, tuple(notes))


def _read_names(labels: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    return read_labels(labels) if isinstance(labels, (str, os.PathLike)) else check_labels(labels)


def _fitting_labels(labels: Sequence[str] | None, architecture: Architecture) -> tuple[str, ...]:
    count = architecture.num_labels
    if labels is None:
        return tuple(f"LABEL_{i}" for i in range(count))
    if len(labels) != count:
        raise InputError(
            f"There are {len(labels)} labels, but the weights have {count} classes.",
            "Give one label per class, in the order of the classes." if count else "Leave the labels out.",
        )
    return tuple(labels)


def _write(folder: Path, opened: _Opened, labels: tuple[str, ...], dtype: str | None) -> None:
    inspection = opened.inspection
    stored = {dtype_name(tensor) for tensor in opened.tensors.values()}
    family = mapping.family_for(inspection.architecture, inspection.target)
    if family.is_simple(inspection.architecture) and dtype in (None, *(stored if len(stored) == 1 else ())):
        tensors = inspection.plan.apply(opened.tensors)
    else:
        import torch

        wanted = getattr(torch, dtype) if dtype else None
        tensors = convert_tensors(opened.state_dict, inspection.architecture, "hub", wanted, inspection.target)
    config = mapping.config(inspection.architecture, labels, inspection.target) | {"dtype": _widest(tensors)}
    write_json(config, folder / CONFIG_FILE)
    write_weights(tensors, folder)
    processor = processor_config(inspection.data)
    if processor:
        write_json(processor, folder / PROCESSOR_FILE)


def _widest(tensors: Mapping[str, StoredTensor | Tensor]) -> str:
    """The dtype that Transformers should load the tensors in."""
    stored = {dtype_name(tensor) for tensor in tensors.values()} - {"int64"}
    return stored.pop() if len(stored) == 1 else str(widest_dtype(load_tensors(tensors))).removeprefix("torch.")


def _recorded(folder: Path) -> dict[str, Any]:
    """What ``parity.json`` says of how the folder was made; nothing, if there is none."""
    path = folder / PARITY_FILE
    if not path.exists():
        return {}
    content = read_json(path)
    try:
        height, width = content["image_size"]
        return {
            "architecture": content["architecture"] and str(content["architecture"]),
            "target": content.get("target"),
            "image_size": (int(height), int(width)),
            "given": dict(content["preprocessing"]["given"] or {}) or None,
            "labels": check_labels(content["labels"]) if content["labels"] else None,
            "ema": bool(content["ema"]),
        }
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise CheckpointError(
            f"'{path}' is not a record that vitconv has written.", "Restore the file, or remove it."
        ) from error


def _record(opened: _Opened, labels: tuple[str, ...], verification: Verification | None) -> dict[str, Any]:
    """The contents of ``parity.json``: what was converted, by which versions, and how close the models came."""
    inspection = opened.inspection
    versions = {name: importlib.metadata.version(name) for name in ("timm", "transformers", "torch", "safetensors")}
    return {
        "schema": 1,
        # A kernel's copy does not show the bytes to anyone: only what is verified is read.
        "source": [
            {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file) if verification else None}
            for file in opened.source.files
        ],
        "notes": list(inspection.notes),
        "ema": opened.ema,
        "versions": {"vitconv": __version__, **versions},
        "architecture": opened.timm_name,
        "target": inspection.target,
        "image_size": list(inspection.architecture.image_size),
        "labels": list(labels),
        "preprocessing": asdict(inspection.data),
        "made": [asdict(made) for made in inspection.made],
        "verified": verification is not None,
        **(verification.to_dict() if verification else {}),
    }
