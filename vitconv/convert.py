"""The public functions: convert a state dict, a model or a checkpoint, or inspect one before."""

from __future__ import annotations

import copy
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitconv import mapping
from vitconv.architecture import AnyArchitecture, Architecture, WrappedArchitecture, plain_facts
from vitconv.checkpoints.checkpoint import (
    CONFIG_FILE,
    HUB_PREFIX,
    PARITY_FILE,
    Source,
    check_checksums,
    open_source,
    refuse_optimized,
    widest_dtype,
)
from vitconv.checkpoints.description import (
    DATA,
    SelfDescription,
)
from vitconv.checkpoints.digests import fingerprint
from vitconv.checkpoints.labels import check_labels, read_labels
from vitconv.checkpoints.license import check_license, stated_license
from vitconv.checkpoints.tensorfile import StoredTensor, dtype_name, map_tensors, write_weights
from vitconv.errors import (
    ArchitectureError,
    CheckpointError,
    InputError,
    ParityError,
    VitconvError,
    WeightsError,
    brief,
    first_few,
    shown,
)
from vitconv.files import Watch, absent, check_reachable, sha256, write_json
from vitconv.mapping.plan import Plan, check_tensors, convert_tensors, shapes_of
from vitconv.mapping.rewrites import Made
from vitconv.mapping.summary import rewritten, summarise_architecture, summarise_rewrites
from vitconv.markdown import code, escape, prose, table
from vitconv.models.data_config import DataConfig
from vitconv.models.huggingface import HEAD_FILE, build_model, installed_dialect, make_config
from vitconv.models.images import load_image, sample_image
from vitconv.models.processors import PROCESSOR_FILE, TIMM_PROCESSOR_FILE, processor_config, timm_processor_config
from vitconv.models.timm import (
    describe_regularisation,
    from_timm,
    in_usual_modes,
    make_buffers,
    regularisation,
)
from vitconv.models.timm_state import patch_embedding
from vitconv.models.wrapper import is_wrapper, wrapper_config
from vitconv.parity.comparison import compare_on_noise, one_at_a_time
from vitconv.parity.verification import Verification, load_weights, verify_folder
from vitconv.parity.wrapper import verify_wrapper
from vitconv.revert import Reversion, revert_checkpoint, to_timm
from vitconv.source import Identified, Inspection, SourceOptions, facts, identify, sized, timm_reference
from vitconv.writing.card import CARD_FILE, loading_lines, model_card
from vitconv.writing.record import ConversionRecord, conversion_record, read_record
from vitconv.writing.staging import check_destination, staged_folder

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = [
    "Conversion",
    "Inspection",
    "Reversion",
    "convert_checkpoint",
    "convert_state_dict",
    "inspect",
    "inspect_checkpoint",
    "load_timm",
    "read_weights",
    "revert_checkpoint",
    "to_huggingface",
    "to_timm",
    "verify_checkpoint",
]

DTYPES = ("float32", "float16", "bfloat16", "float64")
#: Of an image's tokens, how many a conversion compares in float64 where float32 is equal bit for bit with all of them.
FLOAT64_TOKENS = 32


@dataclass(frozen=True, repr=False)
class Conversion:
    """A finished conversion.

    Attributes:
        destination: the Transformers folder.
        architecture, target, plan, made, data, warnings, notes: as in :class:`Inspection`.
        labels: the class names written, in order.
        verification: how close the two models came; ``None`` if it was switched off.
    """

    destination: Path
    architecture: AnyArchitecture
    target: str | None
    plan: Plan
    made: tuple[Made, ...]
    labels: tuple[str, ...]
    data: DataConfig
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    verification: Verification | None

    @property
    def class_name(self) -> str:
        """The Transformers class to load the folder with."""
        return mapping.class_name(self.architecture, self.target)

    @property
    def output_expression(self) -> str:
        """The attribute of the model's output that holds what timm returns: ``"logits"``, ``"pooler_output"``…"""
        return mapping.family_for(self.architecture, self.target).output_expression(self.architecture)

    @property
    def loading_lines(self) -> list[str]:
        """The lines of Python that load the folder."""
        return loading_lines(self.architecture, self.target, self.data, os.fspath(self.destination))

    @property
    def facts(self) -> list[str]:
        """What was converted, how, and what was proved: ``name: value``, for people."""
        return [
            *facts(self.architecture, self.target, self.data, self.made),
            *(self.verification.facts if self.verification else ()),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The conversion as plain data, for JSON."""
        return {
            "destination": os.fspath(self.destination),
            "class_name": self.class_name,
            "output_expression": self.output_expression,
            "architecture": plain_facts(self.architecture),
            "target": self.target,
            "labels": list(self.labels),
            "preprocessing": asdict(self.data),
            "rewritten": rewritten(self.made),
            "load": self.loading_lines,
            "verification": self.verification.to_dict() if self.verification else None,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        verified = self.verification.verdict if self.verification else "not verified"
        return f"Conversion({brief(str(self.destination))}, {self.class_name}, {verified})"

    def _repr_markdown_(self) -> str:
        """What was converted and what was proved, for notebooks."""
        rewrites = [(code(names), escape(how)) for names, how in summarise_rewrites(self.made)]
        parts = [
            f"**{escape(self.destination)}**: {escape(summarise_architecture(self.architecture, self.target))}",
            f"preprocessing: {escape(self.data.values)}: {escape(self.data.origin)}",
            *(f"Note: {prose(note)}" for note in self.notes),
            *(f"**Warning:** {prose(warning)}" for warning in self.warnings),
            *([table(("rewritten before it was moved", "how"), rewrites)] if rewrites else []),
            self.verification._repr_markdown_() if self.verification else "not verified",
        ]
        return "\n\n".join(parts)


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    architecture: Architecture | nn.Module | str,
    *,
    layout: Literal["module", "hub"] = "module",
    target: str | None = None,
) -> dict[str, Tensor]:
    """Convert a timm state dict to Transformers' names.

    The tensors are views of the input's memory, except those that a rewrite of :mod:`vitconv.mapping.rewrites` makes.
    The input is not changed.

    Args:
        state_dict: timm's names, as ``model.state_dict()`` gives them; in any of :data:`DTYPES`, on any device.
        architecture: an :class:`~vitconv.architecture.Architecture`, a timm model, or a timm name. With a name,
            the classes, channels and image size are read from the weights.
        layout: ``"module"`` for ``load_state_dict(strict=True)`` into the installed transformers' model,
            ``"hub"`` for the names in files, which every transformers reads.
        target: Transformers' name of the family to convert to, such as ``"dinov2"``; by default the simplest that
            computes the same. ``"head_code"``: Transformers' vision model, and timm's head in a file of code that the
            folder holds (``modeling_vitconv.py``).

    Raises:
        ArchitectureError: no Transformers class can express the architecture.
        WeightsError: tensors are missing, unknown, of another shape, or not dense floating-point weights.

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
    _refuse_wrapper(target)
    if layout not in ("module", "hub"):
        raise InputError(f"There is no layout '{layout}'.", "Choose 'module' or 'hub'.")
    _check_state_dict(state_dict)
    if not isinstance(architecture, Architecture):
        shapes = shapes_of(state_dict)
        if isinstance(architecture, str):
            architecture, _ = sized(timm_reference(architecture, SelfDescription()).architecture, shapes, None)
        else:
            architecture = from_timm(architecture)
        check_tensors(mapping.timm_shapes(architecture), shapes)
    dialect = "hub" if layout == "hub" else installed_dialect()
    # safetensors writes a tensor's memory, in which values that are only marked as negated have the other sign.
    state_dict = {name: tensor.resolve_neg() for name, tensor in state_dict.items()}
    return convert_tensors(state_dict, architecture, dialect, target=target)


def _refuse_wrapper(target: str | None) -> None:
    if target == mapping.WRAPPER.name:
        raise InputError(
            f"The target '{target}' is a folder that builds timm's model: there is nothing to convert in memory.",
            "Write the folder with `convert_checkpoint`, or keep the timm model.",
        )


def _check_state_dict(state_dict: Mapping[str, Tensor]) -> None:
    """Raise :class:`WeightsError` unless it is a mapping of names to dense floating-point tensors."""
    import torch

    remedy = "Pass a state dict as timm's model.state_dict() gives it."
    if not isinstance(state_dict, Mapping):
        raise WeightsError(f"The state dict is of type {type(state_dict).__name__}, not a mapping.", remedy)
    for name, tensor in state_dict.items():
        if not isinstance(name, str):
            raise WeightsError(f"The name {shown(name)} in the state dict is not a string.", remedy)
        if not isinstance(tensor, torch.Tensor):
            raise WeightsError(f"`{name}` in the state dict is of type {type(tensor).__name__}, not a tensor.", remedy)
        if tensor.layout != torch.strided or dtype_name(tensor) not in DTYPES:
            layout = str(tensor.layout).removeprefix("torch.")
            raise WeightsError(
                f"`{name}` in the state dict is not a dense floating-point tensor: its dtype is {dtype_name(tensor)}, "
                f"its layout {layout}.",
                f"Convert it to one of {', '.join(DTYPES)} first; for a sparse tensor use `.to_dense()`.",
            )


@one_at_a_time()
def to_huggingface(timm_model: nn.Module, *, target: str | None = None, verify: bool = True) -> PreTrainedModel:
    """Build the Transformers model that computes the same as a timm model, with copied weights (same dtype, device and
    mode).

    For a plain model that is ``ViTForImageClassification``, or without a head ``ViTModel``, whose ``pooler_output`` is
    what timm returns; docs/coverage.md lists what it is for each of timm's architectures.

    Args:
        timm_model: any of timm's Vision Transformers.
        target: as for :func:`convert_state_dict`.
        verify: run both models on an image of noise, in float32 and where the timm model is, and raise unless they
            agree. Weights on ``meta`` hold no numbers, so a model with any of them is not verified.

    Warns:
        UserWarning: the timm model has dropout or stochastic depth, which the converted model does not have.

    Raises:
        ArchitectureError: no Transformers class can express the model, or it does not run.
        InputError: it is no timm model, or what compiles, spreads, averages or adapts one.
        WeightsError: weights were removed, added or reshaped, so that they contradict the rest, or are not dense
            floating-point weights.
        ParityError: the built model computes something else; the message names the stage.

    Example:
        >>> import timm
        >>> from vitconv.convert import to_huggingface
        >>> type(to_huggingface(timm.create_model("deit_tiny_patch16_224"))).__name__
        'ViTForImageClassification'
    """
    import torch

    _refuse_wrapper(target)
    architecture = from_timm(timm_model)
    state_dict = timm_model.state_dict()
    _check_state_dict(state_dict)
    check_tensors(mapping.timm_shapes(architecture), shapes_of(state_dict))
    sentence = describe_regularisation(regularisation(timm_model))
    if sentence:
        warnings.warn(sentence, stacklevel=3)  # the decorator's call is between
    kind = _device(timm_model).type
    with ExitStack() as stack:
        # The caller's contexts would make constants on `meta`, or the rewrites' products in bfloat16.
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu" if kind == "meta" else kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))  # what is made in it cannot be trained
        stack.enter_context(torch.random.fork_rng(devices=[]))  # Transformers draws weights that are replaced at once
        tensors = convert_tensors(state_dict, architecture, installed_dialect(), target=target)
        config = make_config(mapping.config(architecture, target=target))
        model = build_model(config, {name: tensor.detach().clone() for name, tensor in tensors.items()})
        if verify and not any(parameter.is_meta for parameter in timm_model.parameters()):
            _verify_twin(timm_model, model, architecture, target)
    return model.train(timm_model.training)


def _device(timm_model: Any) -> torch.device:
    """Where a timm model computes."""
    return patch_embedding(timm_model).proj.weight.device


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
        # Constants and folded weights are rounded differently in the two models, which float32 would show. Two models
        # that are made from the same weights in float32 do not differ in this.
        timm_model = copy.deepcopy(timm_model).float()
        module: Any
        for module in timm_model.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        tensors = convert_tensors(timm_model.state_dict(), architecture, installed_dialect(), target=target)
        hf_model = build_model(hf_model.config, tensors)
    compare_on_noise(timm_model, hf_model, architecture, _device(timm_model)).assert_match()


def read_weights(
    source: str | os.PathLike[str],
    architecture: nn.Module | str | None = None,
    *,
    ema: bool = True,
    ignore: Collection[str] = (),
    headless: bool = False,
) -> Mapping[str, Tensor]:
    """Read the state dict of a timm model, in timm's names, from a checkpoint of any supported form.

    Args:
        source, architecture, ema, headless, ignore: as for :func:`convert_checkpoint`.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    options = SourceOptions(architecture, ema=ema, ignore=ignore, headless=headless)
    opened = identify(source, options)
    with opened.source.watch.unchanged("they were read"):
        return opened.state_dict


@in_usual_modes()
def load_timm(
    source: str | os.PathLike[str],
    architecture: nn.Module | str | None = None,
    *,
    target: str | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool = True,
    ignore: Collection[str] = (),
    headless: bool = False,
) -> nn.Module:
    """Build timm's own model of a checkpoint and load the weights. A conversion is compared with this model.

    Args:
        source, architecture, target, image_size, ema, ignore, headless: as for :func:`convert_checkpoint`. A model
            that no class of Transformers computes is built for the target ``"timm_wrapper"`` only.

    Returns:
        the timm model in evaluation mode, on the CPU, in the dtype of the weights.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    options = SourceOptions(architecture, image_size, target=target, ema=ema, ignore=ignore, headless=headless)
    opened = identify(source, options)
    model = opened.timm_model()
    with opened.source.watch.unchanged("they were read"):
        # Copies: two tensors in an old pickle may share their memory.
        load_weights(model, {name: tensor.clone() for name, tensor in opened.state_dict.items()})
    make_buffers(model)
    return model.eval()


def inspect_checkpoint(
    source: str | os.PathLike[str],
    architecture: nn.Module | str | None = None,
    *,
    target: str | None = None,
    image_size: tuple[int, int] | None = None,
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ema: bool = True,
    ignore: Collection[str] = (),
    headless: bool = False,
) -> Inspection:
    """Find out what converting ``source`` would do. Only names and shapes are read, and nothing is written.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    options = SourceOptions(architecture, image_size, data, target, ema, ignore, headless)
    return identify(source, options).inspection


#: The former name.
inspect = inspect_checkpoint


@in_usual_modes()
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
    ignore: Collection[str] = (),
    headless: bool = False,
    dtype: str | None = None,
    license: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Convert a file of timm weights to a Transformers folder and prove, before it appears, that it is right.

    The number of classes and channels and the image size are read from the weights.

    Args:
        source: a file with the weights of a timm Vision Transformer (torch's format or safetensors, with any name,
            wrapped by a training script or not), a folder as timm saves it for the Hub, or such a folder's name
            on the Hub: ``"hf-hub:org/name"``.
        destination: the folder to write; it appears complete or not at all.
        architecture: the timm name, or a timm model; by default what the checkpoint names (in its
            ``config.json``, ``arch``, ``args`` or ``hyper_parameters``), or the only architecture of timm's that the
            weights fit.
        target: Transformers' name of the family to convert to, such as ``"dinov2"``; by default the simplest that
            computes the same. ``"head_code"``: Transformers' vision model, and timm's head in a file of code that the
            folder holds (``modeling_vitconv.py``). ``"timm_wrapper"``: a folder in which Transformers runs timm's own
            model, for any of timm's Vision Transformers.
        labels: class names, in order or with their indices (``{"a": 0, "b": 1}``), or a file of them (one per line, or
            JSON); by default what the checkpoint says.
        image: an image file to verify on; by default a built-in picture.
        image_size: (height, width), if the weights do not determine it; another size resamples the position
            embedding with timm's own routine.
        data: how images are prepared for the model, if neither the checkpoint nor timm's pretrained tag has the right
            settings: a mapping with any of timm's ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
            ``crop_mode``, or a JSON file.
        ema: take the exponential moving average of the weights where the checkpoint holds both.
        ignore: names of settings in the checkpoint that are wrong and must not be used, such as ``"architecture"``,
            ``"mean"`` or ``"global_pool"``: see :mod:`vitconv.checkpoints.description`.
        headless: convert without a head. Tensors that look like a head are left out and named in a note. By default,
            a model without a head is refused if the checkpoint holds such tensors.
        dtype: the dtype to store, ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"float64"``; by default the
            source's.
        license: the identifier of the weights' license for the model card, such as ``"apache-2.0"``; by default what
            the source states, if anything.
        verify: run both models on the image and refuse to write if they disagree. Without, a safetensors file is
            copied by the kernel, and neither torch nor timm is imported where the catalogue knows the architecture.
        overwrite: replace a model folder that has the destination's name.
        on_step: called with a few words at the beginning of each step.

    Raises:
        VitconvError: with the reason, and nothing written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"There is no dtype '{dtype}' to store.", f"Choose one of {', '.join(DTYPES)}.")
    named = [path for path in (labels, image, data) if isinstance(path, (str, os.PathLike))]
    local = None if HUB_PREFIX.match(str(source)) else source
    check_destination(destination, overwrite=overwrite, source=local, inputs=named)
    names = _read_names(labels)
    picture = load_image(os.fspath(image)) if image else None
    license = None if license is None else check_license(license)
    on_step("Reading the checkpoint")
    opened = identify(source, SourceOptions(architecture, image_size, data, target, ema, ignore, headless))
    check_destination(destination, overwrite=overwrite, inputs=opened.source.files)  # an index's, the Hub's cache's
    inspection, known = opened.inspection, opened.inspection.architecture
    names = _labels_for(names, known, labels) if names else opened.labels() or _labels_for(None, known)

    unchanged = opened.source.watch.unchanged("they were converted")
    with staged_folder(destination, overwrite=overwrite) as folder, unchanged:
        on_step("Writing the folder")
        verification: Verification | None = None
        hashes: dict[Path, str] = {}
        if verify:
            verification, hashes = _write_and_prove(folder, opened, names, dtype, picture or sample_image(), on_step)
        else:  # the kernel copies the bytes, so that there is no chance to hash them
            _write(folder, opened, names, dtype)
        warnings = (
            *inspection.warnings,
            *_other_labels(opened, names),
            *(verification.warnings if verification else ()),
        )
        verified = fingerprint(folder) if verification else None
        write_json(conversion_record(opened, names, verification, hashes, verified), folder / PARITY_FILE)
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
            license or stated_license(opened.source.config),
            None if local else HUB_PREFIX.sub("", str(source)).partition("@")[0],
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
        notes=(*inspection.notes, *_of_names(names)),
        verification=verification,
    )


@in_usual_modes()
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
    ignore: Collection[str] | None = None,
    headless: bool | None = None,
    dtypes: Sequence[str] = (),
    device: str = "cpu",
    on_step: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Prove an existing Transformers folder against the timm weights it was made from.

    Besides the images, the models run on pixels that no photo has: noise, black, white, a checkerboard.

    Args:
        source: the timm weights, as for :func:`convert_checkpoint`.
        folder: the Transformers folder.
        architecture: the timm name, or a timm model; by default the name recorded in the folder's ``parity.json``.
        labels: class names, or a file of them; by default as recorded in ``parity.json``, if the source does not name
            other ones.
        images: image files to verify on; by default a built-in picture.
        image_size, data, ema, ignore, headless: as for :func:`convert_checkpoint`; by default as recorded in
            ``parity.json``. What was ignored at the conversion must be repeated.
        dtypes: what to compare in besides float64: any of :data:`vitconv.parity.comparison.DTYPES`; by default what
            is stored.
        device: where to compute: ``"cpu"``, ``"cuda"``…
        on_step: called with a few words at the beginning of each step.

    Returns:
        what was found; its warnings name what only ``parity.json`` states: class names, preprocessing, image size, and
        which weights count.

    Raises:
        ParityError: the folder is not what the source makes of it; the message names the tensor or the stage.
        VitconvError: the source, the folder, or an image cannot be read.
    """
    folder = Path(folder)
    refuse_optimized(
        folder, "Pass the converted folder that it was made from, or compare the two with `vitconv evaluate`."
    )
    check_reachable(folder / CONFIG_FILE)
    if not os.path.isfile(folder / CONFIG_FILE):
        raise CheckpointError(
            absent(folder / CONFIG_FILE), "Pass the source first, and then the folder that was converted from it."
        )
    pictures = [load_image(os.fspath(image)) for image in images] or [sample_image()]
    watch = Watch(folder, folder.iterdir)  # before anything in it is read
    on_step("Reading the checkpoint")
    origin = open_origin(
        source,
        folder,
        architecture=architecture,
        labels=labels,
        image_size=image_size,
        data=data,
        ema=ema,
        ignore=ignore,
        headless=headless,
    )
    opened = origin.opened
    try:
        with watch.unchanged("they were compared"), opened.source.watch.unchanged("they were compared"):
            for file in opened.source.files:
                check_checksums(file)
            verification = _prove(opened)(
                folder,
                opened.state_dict,
                opened.timm_model(),
                opened.inspection.architecture,
                opened.inspection.data,
                pictures,
                labels=origin.labels,
                probes=True,
                dtypes=dtypes,
                device=device,
                on_step=on_step,
            )
    except ParityError as error:
        if error.stage not in ("config", "labels", "bytes"):
            raise
        if image_size and error.problem.startswith("`image_size` in config.json is "):
            raise ParityError(
                error.problem, "Leave the image size out (--img-size), or convert the source with it.", stage="config"
            ) from error.__cause__
        raise _of_another_source(error, folder, origin.recorded, opened.source) or error from error.__cause__
    unproved = (f"{what}: {remedy}." for what, remedy in origin.unproved)
    return replace(verification, warnings=(*unproved, *verification.warnings))


@dataclass(frozen=True, repr=False)
class Origin:
    """The source of a folder, opened as the folder's record says that it was converted.

    Attributes:
        opened: the source.
        recorded: what the folder's ``parity.json`` says.
        labels: the class names that the folder must have: those given, recorded, or stated by the source; ``None`` if
            there are none.
        unproved: what only the record states, in words, and which option of ``vitconv verify`` would state it.
    """

    opened: Identified
    recorded: ConversionRecord
    labels: tuple[str, ...] | None
    unproved: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"Origin({self.opened!r}, {len(self.labels or ())} labels)"


def open_origin(
    source: str | os.PathLike[str],
    folder: Path,
    *,
    architecture: nn.Module | str | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] | None = None,
    data: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ema: bool | None = None,
    ignore: Collection[str] | None = None,
    headless: bool | None = None,
) -> Origin:
    """Open the source of a folder. What is not given is taken from the record, unless the source contradicts it.

    Args:
        source, folder, architecture, labels, image_size, data, ema, ignore, headless: as for
            :func:`verify_checkpoint`.

    Raises:
        ParityError: the record contradicts the source, or the folder was made from another one.
        VitconvError: the source or the record cannot be read.
    """
    recorded = read_record(folder)
    names = _read_names(labels) or recorded.labels
    options = SourceOptions(
        architecture or recorded.architecture,
        image_size or recorded.image_size,
        data or recorded.data,
        mapping.WRAPPER.name if is_wrapper(folder) else recorded.target,
        recorded.ema if ema is None else ema,
        recorded.ignore if ignore is None else ignore,
        recorded.headless if headless is None else headless,
    )
    try:
        opened = identify(source, options)
    except (ArchitectureError, CheckpointError, WeightsError, InputError) as error:
        other = _of_another_source(error, folder, recorded, open_source(source))
        raise other or _of_the_record(error, folder, recorded, options) or error from None
    if labels is not None:
        names = _labels_for(names, opened.inspection.architecture, labels)
    _refuse_contradicting_record(folder, recorded, opened, labels=labels is None, ignore=ignore is None)
    unproved = (
        *_only_recorded(recorded, opened, labels=labels is None, data=not data),
        *_weights_only_recorded(recorded, opened, image_size=image_size, ema=ema, headless=headless),
    )
    return Origin(opened, recorded, names or opened.labels(), unproved)


def _other_labels(opened: Identified, names: Sequence[str]) -> list[str]:
    """A warning if the checkpoint itself names other classes than those written, or contradicts itself about them."""
    try:
        own = opened.labels()
    except InputError as error:
        return [f"{error.problem} The labels given were taken."]
    if own is None or own == tuple(names):
        return []
    given, stated = next(pair for pair in zip_longest(names, own) if pair[0] != pair[1])
    return [f"The labels given name a class {shown(given)} that the checkpoint names {shown(stated)}."]


def _refuse_contradicting_record(
    folder: Path, recorded: ConversionRecord, opened: Identified, *, labels: bool, ignore: bool
) -> None:
    """Raise :class:`ParityError` if the folder's record contradicts what the source says of itself.

    Anybody can edit the record, so it decides nothing against the source.

    Args:
        labels, ignore: whether they were taken from the record.
    """
    own = opened.labels() if labels and recorded.labels else None
    if own is not None and own != recorded.labels:
        one, other = next(pair for pair in zip_longest(recorded.labels or (), own) if pair[0] != pair[1])
        raise ParityError(
            f"The {PARITY_FILE} in '{folder}' names a class {shown(one)} that the checkpoint names {shown(other)}.",
            "Pass the right names with --labels FILE.",
            stage="labels",
        )
    if ignore and recorded.ignore:
        names = first_few([f"`{name}`" for name in recorded.ignore])
        raise ParityError(
            f"The {PARITY_FILE} in '{folder}' says that what the checkpoint states of {names} was ignored.",
            f"If that is right, repeat it: {' '.join(f'--ignore {name}' for name in recorded.ignore)}.",
            stage="config",
        )


def _only_recorded(
    recorded: ConversionRecord, opened: Identified, *, labels: bool, data: bool
) -> list[tuple[str, str]]:
    """What was taken from the folder's own record, because nothing else states it: :attr:`Origin.unproved`.

    Args:
        labels, data: whether they were not given.
    """
    found, description = [], opened.description
    unnamed = _labels_for(None, opened.inspection.architecture)
    if labels and unnamed and recorded.labels != unnamed and opened.labels() is None:
        found.append(("The class names are not proved, as the source does not state them", "pass --labels FILE"))
    stated = {**description.pretrained_cfg, **description.data}
    taken = {name: value for name, value in (recorded.data or {}).items() if name in DATA and not stated.get(name)}
    if data and taken:
        listed = ", ".join(f"`{name}` {shown(value)}" for name, value in taken.items())
        what = f"The preprocessing {listed} is only stated by the folder's own {PARITY_FILE}"
        found.append((what, "pass --data-config FILE"))
    return found


def _weights_only_recorded(
    recorded: ConversionRecord,
    opened: Identified,
    *,
    image_size: tuple[int, int] | None,
    ema: bool | None,
    headless: bool | None,
) -> list[tuple[str, str]]:
    """Which weights count, and at what size, where nothing but the folder's own record states it.

    Args:
        recorded, opened: the record and the source.
        image_size, ema, headless: as given; ``None`` if not.
    """
    taken = {}
    if image_size is None and recorded.image_size not in (None, opened.own_image_size):
        height, width = recorded.image_size
        taken[f"--img-size {height} {width}"] = f"The image size {height}x{width}"
    if ema is None and not recorded.ema:
        taken["--no-ema"] = "That the trained weights count, not their EMA,"
    if headless is None and recorded.headless:
        taken["--headless"] = "That the model has no head"
    return [
        (f"{what} is only stated by the folder's own {PARITY_FILE}", f"pass {option} if it is right")
        for option, what in taken.items()
    ]


def _of_the_record(
    error: VitconvError, folder: Path, recorded: ConversionRecord, options: SourceOptions
) -> ParityError | None:
    """An error that names what the folder's record says, if that is what does not fit the source; else ``None``."""
    if isinstance(error, CheckpointError):
        return None  # it is the source itself that cannot be read
    if isinstance(error, InputError) and options.data is not recorded.data:
        return None  # it is the data configuration that was given now
    used: dict[str, tuple[Any, Any]] = {
        "given": (options.data, recorded.data),
        "target": (options.target, recorded.target),
        "ignore": (options.ignore, recorded.ignore),
    }
    if isinstance(error, InputError):
        used["image_size"] = (options.image_size, recorded.image_size)
    else:
        used["architecture"] = (options.architecture, recorded.architecture)
    said = [f"`{name}` {shown(value)}" for name, (value, record) in used.items() if value and value is record]
    if not said:
        return None
    return ParityError(
        f"The {PARITY_FILE} in '{folder}' records {', '.join(said)}, and with that the source is refused. "
        f"{error.problem}",
        f"If that is not how the folder was made, give what is right, or restore {PARITY_FILE}. {error.remedy}",
        stage="config",
    )


def _of_another_source(
    error: VitconvError, folder: Path, recorded: ConversionRecord, source: Source
) -> ParityError | None:
    """An error if a folder's record says that it was made from other files; else ``None``.

    The same weights may be in another file, so other files alone are not an error.

    Args:
        error: why the folder does not fit the source.
        folder: the folder.
        recorded: how it was made.
        source: what was given.
    """
    before = recorded.files
    if not before:
        return None
    digests = [file.sha256 for file in before]
    sizes = [file.stat().st_size for file in source.files]
    if all(digests):
        now = [sha256(file) for file in source.files]
        same = sorted(now) == sorted(map(str, digests))
        recorded_as, given = f"SHA-256 {str(digests[0])[:12]}…", f"SHA-256 {now[0][:12]}…"
    else:
        same = sorted(sizes) == sorted(file.bytes for file in before)
        recorded_as, given = f"{before[0].bytes:,} bytes", f"{sizes[0]:,} bytes"
    if same:
        return None
    return ParityError(
        f"'{folder}' was not made from '{source.files[0]}': its {PARITY_FILE} records '{before[0].file}' with "
        f"{recorded_as}, and this file has {given}. {error.problem}",
        "Pass the weights that the folder was made from, or convert these to another folder.",
        stage=getattr(error, "stage", "bytes"),
    )


def _read_names(labels: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    return read_labels(os.fspath(labels)) if isinstance(labels, (str, os.PathLike)) else check_labels(labels)


def _of_names(names: Sequence[str]) -> list[str]:
    """A note where classes have no names but numbers."""
    if not names or names != _numbered(len(names)):
        return []
    return [f"The classes have no names: they are {first_few(names)}. --labels FILE names them, one a line, in order."]


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _labels_for(
    labels: Sequence[str] | None,
    architecture: AnyArchitecture,
    given: Sequence[str] | str | os.PathLike[str] | None = None,
) -> tuple[str, ...]:
    """Names for the classes: the labels, of which there must be as many, or ``LABEL_0``…

    Args:
        labels: ``None`` if there are none.
        architecture: of the weights.
        given: what the labels were read from, perhaps a file, for the error.
    """
    count = architecture.num_labels
    if labels is None:
        return _numbered(count)
    if len(labels) != count:
        where = "There are"
        if isinstance(given, (str, os.PathLike)):
            where = f"The folder '{given}' has" if os.path.isdir(given) else f"The label file '{given}' has"
        raise InputError(
            f"{where} {len(labels)} labels, but the weights have {count or 'no'} classes.",
            "Give one label per class, in the order of the classes." if count else "Leave the labels out.",
        )
    return tuple(labels)


def _write(folder: Path, opened: Identified, labels: tuple[str, ...], dtype: str | None) -> None:
    inspection = opened.inspection
    stored = {dtype_name(tensor) for tensor in opened.tensors.values()}
    family = mapping.family_for(inspection.architecture, inspection.target)
    if family.is_pure_rename(inspection.architecture) and dtype in (None, *(stored if len(stored) == 1 else ())):
        in_file: Any = opened.tensors  # not read into memory: each is only cut into its rows
        tensors = inspection.plan.apply(in_file)
    else:
        import torch

        wanted = getattr(torch, dtype) if dtype else None
        tensors = convert_tensors(opened.state_dict, inspection.architecture, "hub", wanted, inspection.target)
    if isinstance(inspection.architecture, WrappedArchitecture):
        config = wrapper_config(inspection.architecture, labels, inspection.data)
    else:
        config = mapping.config(inspection.architecture, labels, inspection.target)
    write_json(config | {"dtype": _widest(tensors)}, folder / CONFIG_FILE)
    write_weights(tensors, folder)
    if family is mapping.WRAPPER:
        return  # its image processor is in config.json
    if family.code_module:
        shutil.copyfile(HEAD_FILE, folder / HEAD_FILE.name)
    processor = processor_config(inspection.data)
    if processor:
        write_json(processor, folder / PROCESSOR_FILE)
    timm_processor = timm_processor_config(inspection.data, opened.timm_name)
    if timm_processor:
        write_json(timm_processor, folder / TIMM_PROCESSOR_FILE)


def _write_and_prove(
    folder: Path,
    opened: Identified,
    labels: tuple[str, ...],
    dtype: str | None,
    image: Image,
    on_step: Callable[[str], None],
) -> tuple[Verification, dict[Path, str]]:
    """Write the folder and verify it; also compare the checksums in the source's files, and hash them.

    Writing, comparing and hashing do not hold Python's lock. They run in another thread while this one imports timm
    and Transformers and reads the weights, which takes longer. Exceptions of that thread are raised here.
    """
    import torch  # noqa: F401  # before the other thread does: two should not import the same package at once

    stopping = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            writing = pool.submit(_write, folder, opened, labels, dtype)
            checking = [pool.submit(check_checksums, file, stopping.is_set) for file in opened.source.files]
            hashing = {file: pool.submit(sha256, file, stopping.is_set) for file in opened.source.files}
            timm_model, state_dict = opened.timm_model(), opened.state_dict
            for running in (writing, *checking):
                running.result()
            verification = _prove(opened, tokens=FLOAT64_TOKENS)(
                folder,
                state_dict,
                timm_model,
                opened.inspection.architecture,
                opened.inspection.data,
                [image],
                labels=labels,
                on_step=on_step,
            )
            return verification, {file: running.result() for file, running in hashing.items()}
        finally:
            stopping.set()


def _prove(opened: Identified, *, tokens: int | None = None) -> Callable[..., Verification]:
    """The proof of a folder: native models are compared stage by stage, wrapped ones by what they return.

    Args:
        tokens: as for :func:`vitconv.parity.verification.verify_folder`; of wrapped models, all are compared.
    """
    target = opened.inspection.target
    if target == mapping.WRAPPER.name:
        return verify_wrapper
    return partial(verify_folder, target=target, tokens=tokens)


def _widest(tensors: Mapping[str, StoredTensor | Tensor]) -> str:
    """The dtype that Transformers should load the tensors in."""
    stored = {dtype_name(tensor) for tensor in tensors.values()} - {"int64"}
    return stored.pop() if len(stored) == 1 else str(widest_dtype(map_tensors(tensors))).removeprefix("torch.")
