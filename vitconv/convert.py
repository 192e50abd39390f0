"""The public verbs: convert a state dict, a model or a checkpoint, and look before converting."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitconv import __version__, mapping
from vitconv.architecture import Architecture, Shapes, build_timm, describe_shapes, fit_to_weights, from_timm
from vitconv.card import CARD_FILE, model_card
from vitconv.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Source,
    check_destination,
    only_tensors,
    open_source,
    read_json,
    staged_folder,
    write_json,
    write_weights,
)
from vitconv.errors import ArchitectureError, CheckpointError, InputError
from vitconv.huggingface import build_model, installed_dialect
from vitconv.labels import check_labels, read_labels
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
)
from vitconv.simplify import Made, simplify
from vitconv.unwrap import unwrap
from vitconv.verify import Verification, verify_folder

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PARITY_FILE = "parity.json"
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Inspection:
    """What a conversion would do, before it does it.

    Attributes:
        architecture: as read from timm and the weights.
        plan: the moves into the Hub layout.
        made: the tensors that are made from others (or from nothing) before the moves.
        data: how timm prepares an image for the model.
        warnings: what the converted folder will not be able to do, in sentences.
        notes: how the model was found in the checkpoint, in sentences.
    """

    architecture: Architecture
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
        architecture, plan, made, data, warnings, notes: as in :class:`Inspection`.
        labels: the class names written, in order.
        verification: how close the two models came; ``None`` if it was switched off.
    """

    destination: Path
    architecture: Architecture
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
        architecture = _sized(_timm_model(architecture, {}), architecture, shapes, None)
        check_tensors(mapping.timm_shapes(architecture), shapes)
    return convert_tensors(state_dict, architecture, "hub" if layout == "hub" else installed_dialect())


def to_huggingface(timm_model: nn.Module) -> PreTrainedModel:
    """Build the Transformers twin of a timm model, with weights of its own (same dtype, device and mode).

    Returns ``ViTForImageClassification``, or for a headless model ``ViTModel``, whose ``pooler_output`` is what
    timm returns.

    Raises:
        ArchitectureError: no Transformers class can express the model.

    Example:
        >>> import timm
        >>> from vitconv.convert import to_huggingface
        >>> type(to_huggingface(timm.create_model("deit_tiny_patch16_224"))).__name__
        'ViTForImageClassification'
    """
    import transformers

    architecture = from_timm(timm_model)
    tensors = convert_state_dict(timm_model.state_dict(), architecture)
    config = transformers.ViTConfig(**mapping.config(architecture))
    model = build_model(config, {name: tensor.detach().clone() for name, tensor in tensors.items()})
    return model.train(timm_model.training)


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
    image_size: tuple[int, int] | None = None,
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ema: bool = True,
) -> Inspection:
    """Say what converting ``source`` would do; read names and shapes, write nothing.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    return _open(source, architecture, image_size, data, ema).inspection


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    architecture: nn.Module | str | None = None,
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
            name, wrapped by a training script or not), or a folder as timm saves it for the Hub.
        destination: the folder to write; it appears whole or not at all.
        architecture: the timm name, or a timm model; by default what a folder's ``config.json`` says.
        labels: class names, or a file of them (one per line, or JSON); by default what ``config.json`` says.
        image: an image file to verify on; by default a built-in picture.
        image_size: (height, width), where the weights leave it open.
        data: how the model wants its images prepared, where that is not what timm's pretrained tag says: a mapping
            with any of timm's ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``, or a JSON file.
        ema: take the exponential moving average of the weights where the checkpoint holds both.
        dtype: the dtype to store, ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"float64"``; by default the
            source's.
        verify: run both models on the image and refuse to write if they disagree.
        overwrite: replace a model folder that has the destination's name.
        say: called with a few words at the beginning of each step.

    Raises:
        VitconvError: with the reason, and nothing written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"There is no dtype '{dtype}' to store.", f"Choose one of {', '.join(DTYPES)}.")
    check_destination(destination, overwrite=overwrite, source=source)
    names = _read_names(labels)
    picture = load_image(image) if image else sample_image()
    say("Reading the checkpoint")
    opened = _open(source, architecture, image_size, data, ema)
    inspection, known = opened.inspection, opened.inspection.architecture
    names = _fitting_labels(names or opened.source.labels, known)

    with staged_folder(destination, overwrite=overwrite) as folder:
        say("Writing the folder")
        _write(folder, opened.state_dict, inspection, names, dtype)
        verification = None
        if verify:
            verification = verify_folder(
                folder, opened.state_dict, opened.witness(), known, inspection.data, [picture], labels=names, say=say
            )
        write_json(_record(opened, names, verification), folder / PARITY_FILE)
        card = model_card(
            opened.source.files[0].name,
            opened.timm_name,
            known,
            names,
            inspection.made,
            inspection.data,
            inspection.warnings,
            verification,
        )
        (folder / CARD_FILE).write_text(str(card), encoding="utf-8")
    return Conversion(
        destination=Path(destination),
        architecture=known,
        plan=inspection.plan,
        made=inspection.made,
        labels=names,
        data=inspection.data,
        warnings=inspection.warnings,
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
    opened = _open(source, architecture, image_size, data, ema)
    return verify_folder(
        folder,
        opened.state_dict,
        opened.witness(),
        opened.inspection.architecture,
        opened.inspection.data,
        pictures,
        labels=names or opened.source.labels,
        probes=True,
        dtypes=dtypes,
        device=device,
        say=say,
    )


@dataclass(frozen=True)
class _Opened:
    """A source, understood: its weights, what they are the weights of, and what will be done."""

    source: Source
    state_dict: Mapping[str, Tensor]
    timm_name: str | None
    timm_model: nn.Module
    ema: bool
    inspection: Inspection

    def witness(self) -> nn.Module:
        """A timm model that may take the source's weights: the caller's own keeps its weights."""
        return copy.deepcopy(self.timm_model) if self.timm_name is None else self.timm_model


def _open(
    path: str | os.PathLike[str],
    architecture: nn.Module | str | None,
    image_size: tuple[int, int] | None,
    given: Mapping[str, Any] | str | os.PathLike[str] | None,
    ema: bool,
) -> _Opened:
    source = open_source(path)
    wanted = architecture or source.architecture
    if wanted is None:
        told = describe_shapes(shapes_of(unwrap(source.content, None, ema=ema).tensors))
        raise ArchitectureError(
            "The architecture is not given, and weights do not tell their heads, epsilon or activation"
            + (f"; their shapes tell: {told}." if told else "."),
            "Name the timm architecture, as in --arch vit_base_patch16_384.",
        )
    arguments = source.model_args if wanted == source.architecture else {}
    model = _timm_model(wanted, arguments)
    known = from_timm(model)
    unwrapped = unwrap(source.content, set(mapping.timm_shapes(replace(known, num_labels=1))), ema=ema)
    state_dict = only_tensors(unwrapped.tensors, os.fspath(path))
    shapes = shapes_of(state_dict)
    known = _sized(model, wanted, shapes, image_size)
    check_tensors(mapping.timm_shapes(known), shapes)
    if isinstance(wanted, str):
        sizes = {"num_classes": known.num_labels, "in_chans": known.num_channels, "img_size": known.image_size}
        model = _timm_model(wanted, {**arguments, **sizes})
    if isinstance(given, (str, os.PathLike)):
        given = read_data_config(given)
    inspection = _inspect(state_dict, known, data_config(model, known, given, own=source.data), unwrapped.notes)
    return _Opened(source, state_dict, wanted if isinstance(wanted, str) else None, model, ema, inspection)


def _timm_model(architecture: nn.Module | str, arguments: Mapping[str, Any]) -> nn.Module:
    return build_timm(architecture, **arguments) if isinstance(architecture, str) else architecture


def _sized(
    model: nn.Module, architecture: nn.Module | str, shapes: Shapes, image_size: tuple[int, int] | None
) -> Architecture:
    """The model's architecture; of a name, at the sizes that the weights tell."""
    known = from_timm(model)
    if not isinstance(architecture, str):
        return known
    # First what tensors there are, then what their sizes tell.
    check_names(mapping.timm_shapes(replace(known, num_labels=int("head.weight" in shapes))), shapes)
    return fit_to_weights(known, shapes, image_size)


def _inspect(
    state_dict: Mapping[str, Tensor], architecture: Architecture, data: DataConfig, notes: tuple[str, ...]
) -> Inspection:
    simple = simplify(state_dict, architecture)
    plan = make_plan(simple.architecture, shapes_of(simple.state_dict))
    reason = obstacle(data)
    warnings = (f"No {PROCESSOR_FILE}: {reason}",) if reason else ()
    return Inspection(architecture, plan, simple.made, data, warnings, notes)


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


def _write(
    folder: Path, state_dict: Mapping[str, Tensor], inspection: Inspection, labels: tuple[str, ...], dtype: str | None
) -> None:
    import torch

    wanted = getattr(torch, dtype) if dtype else None
    tensors = convert_tensors(state_dict, inspection.architecture, "hub", wanted)
    stored = str(widest_dtype(tensors)).removeprefix("torch.")
    config = mapping.config(inspection.architecture, labels) | {"dtype": stored}
    write_json(config, folder / CONFIG_FILE)
    write_weights(tensors, folder / WEIGHTS_FILE)
    processor = processor_config(inspection.data)
    if processor:
        write_json(processor, folder / PROCESSOR_FILE)


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
        "source": [
            {"file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)} for file in opened.source.files
        ],
        "notes": list(inspection.notes),
        "ema": opened.ema,
        "versions": {"vitconv": __version__, **versions},
        "architecture": opened.timm_name,
        "image_size": list(inspection.architecture.image_size),
        "labels": list(labels),
        "preprocessing": asdict(inspection.data),
        "made": [asdict(made) for made in inspection.made],
        "verified": verification is not None,
        **(verification.to_dict() if verification else {}),
    }


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
