"""The public verbs: convert a state dict, a model or a checkpoint, and look before converting."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitconv import __version__, catalogue, mapping, resize
from vitconv.architecture import Architecture, Shapes, describe_shapes, fit_to_weights
from vitconv.card import CARD_FILE, model_card
from vitconv.checkpoint import CONFIG_FILE, HUB_PREFIX, PARITY_FILE, Source, open_source, read_json, sha256, write_json
from vitconv.description import (
    DATA,
    SIZES,
    SelfDescription,
    check_architecture,
    check_data,
    check_sizes,
    describe,
    describe_folder,
    is_image_size,
    same_value,
    together,
)
from vitconv.destination import check_destination, staged_folder
from vitconv.errors import (
    ArchitectureError,
    CheckpointError,
    InputError,
    ParityError,
    VitconvError,
    WeightsError,
    first_few,
)
from vitconv.huggingface import build_model, installed_dialect, make_config
from vitconv.labels import check_labels, in_order, read_labels
from vitconv.parity import compare
from vitconv.plan import Plan, check_names, check_tensors, convert_tensors, make_plan, shapes_of, widest_dtype
from vitconv.preprocess import (
    PROCESSOR_FILE,
    TIMM_PROCESSOR_FILE,
    DataConfig,
    data_config,
    load_image,
    missing_processor,
    processor_config,
    read_data_config,
    sample_image,
    tag_config,
    timm_processor_config,
)
from vitconv.revert import Reversion, revert_checkpoint, to_timm
from vitconv.simplify import Made
from vitconv.tensorfile import StoredTensor, dtype_name, load_tensors, write_weights
from vitconv.timm_models import (
    build_timm,
    describe_regularisation,
    from_timm,
    known_name,
    make_buffers,
    read_config,
    regularisation,
)
from vitconv.unwrap import unwrap
from vitconv.verify import Verification, verify_folder

if TYPE_CHECKING:
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

    @property
    def class_name(self) -> str:
        """The Transformers class to load the folder with."""
        return mapping.class_name(self.architecture, self.target)

    @property
    def answer(self) -> str:
        """Where in the model's output is what timm returns, as Python: ``"logits"``, ``"pooler_output"``…"""
        return mapping.family_for(self.architecture, self.target).answer(self.architecture)


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
            architecture, _ = _sized(_facts(architecture, SelfDescription()).architecture, shapes, None)
        else:
            architecture = from_timm(architecture)
        check_tensors(mapping.timm_shapes(architecture), shapes)
    dialect = "hub" if layout == "hub" else installed_dialect()
    # Others write a tensor's memory as it is, where values that are only marked as negated have the other sign.
    state_dict = {name: tensor.resolve_neg() for name, tensor in state_dict.items()}
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
    source: str | os.PathLike[str],
    architecture: nn.Module | str | None = None,
    *,
    ema: bool = True,
    ignore: Collection[str] = (),
    headless: bool = False,
) -> Mapping[str, Tensor]:
    """Read the state dict of a timm model, in timm's names, out of whatever the checkpoint wraps around it.

    Args:
        source, architecture, ema, headless, ignore: as for :func:`convert_checkpoint`.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    return _open(source, architecture, None, None, ema, ignore=ignore, headless=headless).state_dict


def load_timm(
    source: str | os.PathLike[str],
    architecture: nn.Module | str | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    ema: bool = True,
    ignore: Collection[str] = (),
    headless: bool = False,
) -> nn.Module:
    """Build timm's own model of a checkpoint and load the weights into it: what a conversion is compared with.

    Args:
        source, architecture, image_size, ema, ignore, headless: as for :func:`convert_checkpoint`.

    Returns:
        the timm model in evaluation mode, on the CPU, in the dtype of the weights.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    opened = _open(source, architecture, image_size, None, ema, ignore=ignore, headless=headless)
    model = opened.witness()
    # Copies, which are aligned in memory as torch's kernels like it, and do not hold the file open.
    tensors = {name: tensor.clone() for name, tensor in opened.state_dict.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    make_buffers(model)
    return model.eval()


def inspect(
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
    """Say what converting ``source`` would do; read names and shapes, write nothing.

    Raises:
        VitconvError: what :func:`convert_checkpoint` would refuse, for the same reason.
    """
    return _open(source, architecture, image_size, data, ema, target, ignore, headless).inspection


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
        architecture: the timm name, or a timm model; by default what the checkpoint says of itself (its
            ``config.json``, ``arch``, ``args`` or ``hyper_parameters``), or the only architecture of timm's that the
            weights fit.
        target: Transformers' name of the family to convert to, such as ``"dinov2"``; by default the plainest that
            computes the same.
        labels: class names, or a file of them (one per line, or JSON); by default what the checkpoint says.
        image: an image file to verify on; by default a built-in picture.
        image_size: (height, width), where the weights leave it open; another one than theirs resamples the position
            embedding with timm's own routine.
        data: how the model wants its images prepared, where neither the checkpoint nor timm's pretrained tag says it
            right: a mapping with any of timm's ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``,
            or a JSON file.
        ema: take the exponential moving average of the weights where the checkpoint holds both.
        ignore: names of what the checkpoint says of itself and is not to be believed, such as ``"architecture"``,
            ``"mean"`` or ``"global_pool"``: see :mod:`vitconv.description`.
        headless: convert without a head. A model that has none is otherwise refused where the checkpoint holds
            something that looks like its head; so, it is left out, and named in a note.
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
    opened = _open(source, architecture, image_size, data, ema, target, ignore, headless)
    inspection, known = opened.inspection, opened.inspection.architecture
    names = _fitting_labels(names or opened.labels(), known)

    with staged_folder(destination, overwrite=overwrite) as folder:
        say("Writing the folder")
        verification, hashes = None, {}
        if verify:
            verification, hashes = _write_and_prove(folder, opened, names, dtype, picture or sample_image(), say)
        else:  # a kernel's copy does not show the bytes to anyone, so there is no hash
            _write(folder, opened, names, dtype)
        warnings = (*inspection.warnings, *(verification.warnings if verification else ()))
        write_json(_record(opened, names, verification, hashes), folder / PARITY_FILE)
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
    ignore: Collection[str] | None = None,
    headless: bool | None = None,
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
        image_size, data, ema, ignore, headless: as for :func:`convert_checkpoint`; by default as recorded in
            ``parity.json``.
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
    headless = recorded.get("headless", False) if headless is None else headless
    say("Reading the checkpoint")
    ignore = recorded.get("ignore", ()) if ignore is None else ignore
    try:
        opened = _open(source, architecture, image_size, data, ema, recorded.get("target"), ignore, headless)
    except (ArchitectureError, CheckpointError, WeightsError, InputError) as error:
        raise _of_another_source(error, folder, recorded, open_source(source)) or error from None
    try:
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
    except ParityError as error:
        if error.stage not in ("config", "labels", "bytes"):
            raise
        raise _of_another_source(error, folder, recorded, opened.source) or error from error.__cause__


def _of_another_source(
    error: VitconvError, folder: Path, recorded: Mapping[str, Any], source: Source
) -> ParityError | None:
    """Where a folder's record says that it was made from other files, an error that says so; else ``None``.

    The same weights may be in another file, so that other files alone are no error.

    Args:
        error: why the folder does not fit the source.
        folder: the folder.
        recorded: what :func:`_recorded` says of it.
        source: what was given.
    """
    before = recorded.get("files") or []
    digests = [file.get("sha256") for file in before]
    if digests and all(digests):
        now = [sha256(file) for file in source.files]
        if sorted(now) == sorted(digests):
            return None
        how = f"SHA-256 {digests[0][:12]}…", f"{now[0][:12]}…"
    else:
        sizes = [file.stat().st_size for file in source.files]
        if not before or sorted(sizes) == sorted(file["bytes"] for file in before):
            return None
        how = f"{before[0]['bytes']:,} bytes", f"{sizes[0]:,} bytes"
    return ParityError(
        f"'{folder}' was not made from '{source.files[0]}': its {PARITY_FILE} records '{before[0]['file']}' with "
        f"{how[0]}, and this file has {how[1]}. {error.problem}",
        "Pass the weights that the folder was made from, or convert these to a folder of their own.",
        stage=getattr(error, "stage", "bytes"),
    )


@dataclass(frozen=True)
class _Opened:
    """A source, understood: its weights, what they are the weights of, and what will be done.

    Attributes:
        description: what it says of itself, as far as it is not ignored.
        tensors: the weights in timm's names, in their file wherever possible.
        timm_name: what timm calls the architecture; ``None`` if a model was given.
        build: gives timm's model of the architecture, without weights.
    """

    source: Source
    description: SelfDescription
    tensors: Mapping[str, StoredTensor | Tensor]
    timm_name: str | None
    build: Callable[[], nn.Module]
    ema: bool
    ignore: tuple[str, ...]
    headless: bool
    inspection: Inspection

    @functools.cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights to compute with."""
        return load_tensors(self.tensors)

    def labels(self) -> tuple[str, ...] | None:
        """The class names that the source itself gives."""
        stated = self.description.get("label_names")
        if stated is not None:
            where = f"The checkpoint's `{self.description.where('label_names')}`"
            return check_labels(in_order(stated, where) if isinstance(stated, dict) else stated, where)
        # By its name alone: what a checkpoint names elsewhere is not opened.
        class_map = self.class_map
        return read_labels(class_map) if class_map is not None and class_map.is_file() else None

    @property
    def class_map(self) -> Path | None:
        """The file of class names that the checkpoint was trained with, if it lies beside it."""
        stated = self.description.get("class_map")
        name = Path(str(stated or "")).name
        return self.source.files[0].parent / name if name.endswith(".txt") else None

    def with_class_map_noted(self) -> _Opened:
        """The same, with a note on the class names that the checkpoint was trained with."""
        stated = self.description.get("class_map")
        if stated is None or "label_names" in self.description.statements:
            return self
        found = self.class_map is not None and self.class_map.is_file()
        note = (
            f"The class names are those of {self.class_map}, which the checkpoint names (`class_map`)."
            if found
            else f"The checkpoint was trained with the class names in '{stated}' (`class_map`): pass --labels."
        )
        inspection = replace(self.inspection, notes=(*self.inspection.notes, note))
        return replace(self, inspection=inspection)

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
    """What is known of a timm architecture before the weights are looked at.

    Attributes:
        architecture: as timm builds it, with its own sizes.
        tag: how it wants its images prepared: :func:`vitconv.preprocess.tag_config`.
        input_size: (height, width) that timm prepares images to for a model that takes any; ``None`` for others.
    """

    architecture: Architecture
    tag: Mapping[str, Any]
    input_size: tuple[int, int] | None = None


def _facts(architecture: nn.Module | str, description: SelfDescription) -> _Facts:
    """From the catalogue, which needs no torch; else from timm, with the arguments that the checkpoint states."""
    if not isinstance(architecture, str):
        return _Facts(from_timm(architecture), tag_config(architecture.pretrained_cfg))
    cfg, arguments = description.get("pretrained_cfg"), description.model_args
    known = catalogue.look_up(architecture) if cfg is None and not arguments else None
    if known is not None:
        return _Facts(known.architecture, known.data)
    model = _build(architecture, description, {})
    dynamic = arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False
    input_size = tuple(model.pretrained_cfg["input_size"][-2:]) if dynamic else None
    return _Facts(from_timm(model), tag_config(model.pretrained_cfg), input_size)


def _build(name: str, description: SelfDescription, sizes: Mapping[str, Any]) -> nn.Module:
    """timm's model, without weights, with what the checkpoint states; other ``sizes`` go before the stated ones."""
    stated = {size: description.get(size) for size in SIZES if size in description.statements}
    arguments = {**description.model_args, **stated, **sizes}
    return build_timm(name, pretrained_cfg=description.get("pretrained_cfg"), **arguments)


def _own_description(source: Source, ignore: Collection[str]) -> tuple[SelfDescription, list[str]]:
    """What the source says of itself, but for what is to be ignored, and notes on what is not timm's."""
    description = describe(source.content)
    if source.config is not None:
        config = read_json(source.config)
        if "architecture" in config:
            name, cfg, arguments = read_config(source.config.parent)
            own = describe_folder(name, cfg, arguments, file=source.config.name)
        else:
            own = describe(config)
        description = together(own, description)
    description = description.without(ignore)
    stated = description.get("architecture")
    if stated is None:
        return description, []
    known = stated if catalogue.look_up(stated) else known_name(stated)
    if known is None:
        note = f"The checkpoint says `{description.where('architecture')}` '{stated}', which is no name of timm's."
        return description.without(["architecture"]), [note]
    return description.stating("architecture", known), []


def _check_module(model: nn.Module, description: SelfDescription) -> None:
    """Raise :class:`ArchitectureError` if the checkpoint says that its weights are of another model than this one."""
    stated = description.get("architecture")
    if stated is None:
        pool = description.get("global_pool")
        if pool is not None and pool != model.global_pool:
            raise ArchitectureError(
                f"The model given pools by '{model.global_pool}', but the checkpoint says '{pool}' "
                f"(`{description.where('global_pool')}`).",
                "Give a model that was built so, or ignore=['global_pool'].",
            )
        return
    described, given = from_timm(_build(stated, description, {})), from_timm(model)
    free = {"image_size": given.image_size, "num_labels": given.num_labels, "num_channels": given.num_channels}
    differing = [name for name, value in asdict(replace(described, **free)).items() if value != asdict(given)[name]]
    if differing:
        raise ArchitectureError(
            f"The checkpoint says '{stated}' (`{description.where('architecture')}`), from which the model given "
            f"differs in {first_few(differing)}.",
            "Give the model that the weights were trained as, or ignore=['architecture'].",
        )


def _check_tag(given: str, facts: _Facts, description: SelfDescription) -> None:
    """Raise :class:`ArchitectureError` if the tag given prepares images otherwise than the checkpoint says."""
    if "." not in given or not description.statements.keys() & {"architecture", "pretrained_cfg"}:
        return
    bare = description.without([name for name in ("pretrained_cfg",) if name in description.statements])
    wanted = {**_facts(given, SelfDescription()).tag, **bare.data}
    stated = facts.tag if "pretrained_cfg" in description.statements else None
    if stated is None:
        stated = _facts(description.get("architecture"), SelfDescription()).tag
    where = "pretrained_cfg" if "pretrained_cfg" in description.statements else "architecture"
    for name, value in {**stated, **bare.data}.items():
        if name in DATA and not same_value(value, wanted[name]):
            raise ArchitectureError(
                f"The tag of '{given}' says `{name}` {wanted[name]}, but the checkpoint says {value} "
                f"(`{description.where(where)}`).",
                f"Leave the tag out to take the checkpoint's, or pass --ignore {where} to take the tag's.",
            )


def _open(
    path: str | os.PathLike[str],
    architecture: nn.Module | str | None,
    image_size: tuple[int, int] | None,
    given: Mapping[str, Any] | str | os.PathLike[str] | None,
    ema: bool,
    target: str | None = None,
    ignore: Collection[str] = (),
    headless: bool = False,
) -> _Opened:
    source = open_source(path)
    description, more = _own_description(source, ignore)
    notes = [*source.notes, *more]
    if description.statements:
        notes.append(f"The checkpoint says of itself: {description}.")
    wanted = architecture or description.get("architecture")
    if wanted is None:
        wanted, note = _only_candidate(source, image_size, ema, headless)
        notes.append(note)
    elif isinstance(architecture, str):
        wanted = check_architecture(known_or_same(architecture), description)
    elif architecture is not None:
        _check_module(architecture, description)
    facts = _facts(wanted, description)
    if isinstance(architecture, str):
        _check_tag(architecture, facts, description)
    if "pretrained_cfg" in description.statements:
        # timm builds a folder's model at these sizes, and resamples or re-initialises what does not fit.
        built = facts.architecture
        sizes = {"num_classes": built.num_labels, "in_chans": built.num_channels, "img_size": built.image_size}
        description = description.filled(sizes, description.where("pretrained_cfg"), ignore)

    def build(**sizes: Any) -> nn.Module:
        return _build(wanted, description, sizes) if isinstance(wanted, str) else copy.deepcopy(wanted)

    names = set(mapping.timm_shapes(replace(facts.architecture, num_labels=1)))
    respell = functools.partial(_respell, source, build)
    unwrapped = unwrap(source.content, names, ema=ema, headless=headless, respell=respell)
    notes += unwrapped.notes
    tensors = source.tensors(unwrapped.tensors)
    trained = known = facts.architecture
    if isinstance(wanted, str):
        trained, known = _sized(facts.architecture, shapes_of(tensors), image_size, description.get("img_size"))
    check_tensors(mapping.timm_shapes(trained), shapes_of(tensors))
    check_sizes(
        description,
        num_classes=None if headless else trained.num_labels,
        in_chans=trained.num_channels,
        img_size=None if image_size else trained.image_size,
    )
    _check_dynamic(facts, description, trained, image_size)
    notes += _shape_note(facts.architecture, shapes_of(tensors), trained) if image_size else []
    if known != trained:
        tensors = resize.resample(load_tensors(tensors), trained, known)
        notes.append(resize.describe(trained, known))
    rates = {} if isinstance(wanted, str) else regularisation(wanted)
    notes += filter(None, [describe_regularisation({**description.rates, **rates})])

    if isinstance(given, (str, os.PathLike)):
        given = read_data_config(given)
    check_data(given or {}, description)
    data = data_config(facts.tag, known, given, stated=description)
    warnings = _assumed(architecture, facts.architecture, known, data) if not description.statements else []
    sizes = {"num_classes": known.num_labels, "in_chans": known.num_channels, "img_size": known.image_size}
    opened = _Opened(
        source,
        description,
        tensors,
        wanted if isinstance(wanted, str) else None,
        functools.partial(build, **sizes),
        ema,
        tuple(ignore),
        headless,
        _inspect(tensors, known, target, data, warnings, notes),
    )
    return opened.with_class_map_noted()


def known_or_same(name: str) -> str:
    """The name that timm has today for an architecture; a name that it does not know stays, to be refused as given."""
    return name if catalogue.look_up(name) else known_name(name) or name


def _check_dynamic(
    facts: _Facts, description: SelfDescription, trained: Architecture, image_size: tuple[int, int] | None
) -> None:
    """Raise :class:`CheckpointError` where timm feeds a model that takes any size with another one than its own."""
    if facts.input_size is None or image_size is not None:
        return
    stated = description.statements.get("img_size")
    fed = facts.input_size if stated is None or stated.of_model else stated.value
    if fed == trained.image_size:
        return
    raise CheckpointError(
        f"The model takes images of any size (`dynamic_img_size`): timm feeds it {fed[0]}x{fed[1]}, and its positions "
        f"are those of {trained.image_size[0]}x{trained.image_size[1]}. A converted model has one size.",
        "Name the one you want with --img-size H W: timm resamples the positions for it, and so does vitconv.",
    )


def _assumed(given: nn.Module | str | None, named: Architecture, known: Architecture, data: DataConfig) -> list[str]:
    """A warning where the preprocessing rests on nothing but a name, which is of another size or other classes."""
    if not isinstance(given, str) or data.given:
        return []
    differing = []
    if named.image_size != known.image_size:
        differing.append("{}x{} images (these weights: {}x{})".format(*named.image_size, *known.image_size))
    if named.num_labels != known.num_labels:
        differing.append(f"{named.num_labels} classes (these weights: {known.num_labels})")
    if not differing:
        return []
    return [
        f"The preprocessing is an assumption: nothing in the checkpoint tells it, and it is that of timm's {given}, a "
        f"model for {' and '.join(differing)}: {data.values}. If the weights were trained with another, pass it with "
        "--data-config."
    ]


def _only_candidate(source: Source, image_size: tuple[int, int] | None, ema: bool, headless: bool) -> tuple[str, str]:
    """The architecture of timm's that the weights fit, and a note that says so.

    Raises:
        ArchitectureError: there is none, or there are several that compute different numbers.
    """
    shapes = shapes_of(unwrap(source.content, None, ema=ema, headless=headless).tensors)
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
            f"The architecture is not given, and the weights fit {len(found)} of timm's that compute or prepare "
            f"images differently: {listed}.",
            "Name the one that the weights were trained as, with --arch NAME; a name's own image size is no proof.",
        )
    same = f" ({first_few(names[1:])} would be the same)" if names[1:] else ""
    return names[0], f"The weights fit one architecture of timm's, {names[0]}{same}: it was taken."


def _respell(source: Source, build: Callable[[], nn.Module], tensors: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Rename tensors of an older spelling with timm's own filter; ``None`` if it would do more than rename."""
    from timm.models import vision_transformer

    model = build()
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
    architecture: Architecture, shapes: Shapes, image_size: tuple[int, int] | None, stated: Any = None
) -> tuple[Architecture, Architecture]:
    """The architecture at the sizes that the weights were trained for, and at those that are wanted.

    Args:
        architecture: with timm's own sizes.
        shapes: of the weights.
        image_size: the wanted one; by default the weights'.
        stated: the image size that the checkpoint states, for weights that leave it open.
    """
    # First what tensors there are, then what their sizes tell.
    check_names(mapping.timm_shapes(replace(architecture, num_labels=int("head.weight" in shapes))), shapes)
    for size in (image_size, stated if is_image_size(stated) else None):
        if size is not None:
            with suppress(InputError):
                trained = fit_to_weights(architecture, shapes, size)
                return trained, trained if image_size is None else replace(trained, image_size=image_size)
    trained = fit_to_weights(architecture, shapes)
    if image_size is None:
        return trained, trained
    wanted = replace(trained, image_size=(int(image_size[0]), int(image_size[1])))
    if min(wanted.grid) < 1:
        fit_to_weights(architecture, shapes, image_size)  # says what is wrong with it
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
    warnings: Sequence[str],
    notes: Sequence[str],
) -> Inspection:
    made: tuple[Made, ...] = ()
    shapes, simple = shapes_of(tensors), architecture
    family = mapping.family_for(architecture, target)
    if not family.is_simple(architecture):
        simplified = family.simplify(load_tensors(tensors), architecture)
        made, shapes, simple = simplified.made, shapes_of(simplified.state_dict), simplified.architecture
    warnings = [*filter(None, [missing_processor(data)]), *warnings]
    plan = make_plan(family, simple, shapes)
    return Inspection(architecture, target, plan, made, data, tuple(warnings), tuple(notes))


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
    timm_processor = timm_processor_config(inspection.data, opened.timm_name)
    if timm_processor:
        write_json(timm_processor, folder / TIMM_PROCESSOR_FILE)


def _write_and_prove(
    folder: Path,
    opened: _Opened,
    labels: tuple[str, ...],
    dtype: str | None,
    image: Image,
    say: Callable[[str], None],
) -> tuple[Verification, dict[Path, str]]:
    """Write the folder and verify it; also hash the source's files.

    Writing and hashing leave Python free: they run in a thread beside this one, which imports timm meanwhile and
    Transformers, for longer than they take. What goes wrong there is raised here.
    """
    import torch  # noqa: F401  # before the other thread does: two should not import the same package at once

    left = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as beside:
        try:
            writing = beside.submit(_write, folder, opened, labels, dtype)
            hashing = {file: beside.submit(sha256, file, left.is_set) for file in opened.source.files}
            witness = opened.witness()
            writing.result()
            verification = verify_folder(
                folder,
                opened.state_dict,
                witness,
                opened.inspection.architecture,
                opened.inspection.data,
                [image],
                target=opened.inspection.target,
                labels=labels,
                tokens=FLOAT64_TOKENS,
                say=say,
            )
            return verification, {file: running.result() for file, running in hashing.items()}
        finally:
            left.set()


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
            "ignore": tuple(map(str, content.get("ignore", ()))),
            "headless": bool(content.get("headless", False)),
            "files": [
                {
                    "file": str(file["file"]),
                    "bytes": int(file["bytes"]),
                    "sha256": file["sha256"] and str(file["sha256"]),
                }
                for file in content["source"]
            ],
        }
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise CheckpointError(
            f"'{path}' is not a record that vitconv has written.", "Restore the file, or remove it."
        ) from error


def _record(
    opened: _Opened, labels: tuple[str, ...], verification: Verification | None, hashes: Mapping[Path, str]
) -> dict[str, Any]:
    """The contents of ``parity.json``: what was converted, by which versions, and how close the models came."""
    inspection = opened.inspection
    versions = {name: importlib.metadata.version(name) for name in ("timm", "transformers", "torch", "safetensors")}
    return {
        "schema": 1,
        "source": [
            {"file": file.name, "bytes": file.stat().st_size, "sha256": hashes.get(file)}
            for file in opened.source.files
        ],
        "notes": list(inspection.notes),
        "ema": opened.ema,
        "ignore": list(opened.ignore),
        "headless": opened.headless,
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
