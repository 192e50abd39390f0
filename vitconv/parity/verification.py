"""Prove a converted folder against the timm model it was made from.

Logits cannot see everything: softmax cancels a wrong key bias, and a mistake in one weight may be lost in rounding.
So the proof has four parts, and all must hold:

* **the settings**: ``config.json`` says what timm's modules do, names the classes, and has no setting that vitconv
  would not write; nor has ``preprocessor_config.json``;
* **the bytes**: every tensor in the file, read back, and every parameter that Transformers loads, equals bit for bit
  what the plan moves, or a rewrite makes, of the source; and joined back into timm's tensors they are the source;
* **the pixels**: the image processors in the folder make timm's pixels of an image file;
* **the numbers**: both models compute the same, stage by stage (:mod:`vitconv.parity.comparison`).

Not looked at: other files in the folder (the model card, the figures in ``parity.json``, code); versions of
Transformers other than the installed one; backends of the image processor other than PIL's; and what the code around
the model does, such as ``transformers.pipeline``, which turns photos by their EXIF orientation and for a model of one
class answers with a sigmoid.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitconv import mapping
from vitconv.architecture import AnyArchitecture, Architecture, Shapes
from vitconv.checkpoints.checkpoint import (
    CONFIG_FILE,
    TORCH_FILE,
    TORCH_INDEX_FILE,
    read_state_dict,
    widest_dtype,
)
from vitconv.checkpoints.tensorfile import INDEX_FILE, WEIGHTS_FILE
from vitconv.errors import ParityError, VitconvError, first_few
from vitconv.files import read_json, write_json
from vitconv.mapping.plan import convert_tensors, make_plan, shapes_of
from vitconv.mapping.rewrites import Made
from vitconv.markdown import escape, prose
from vitconv.models.data_config import DataConfig, makes_pixels
from vitconv.models.huggingface import (
    build_model,
    class_named,
    installed_dialect,
    load_config,
    load_folder,
    make_config,
    shown,
)
from vitconv.models.pixels import (
    known_difference,
    probe_images,
    probe_pixels,
    process,
    timm_pixels,
    without_transparency,
)
from vitconv.models.processors import (
    PROCESSOR_FILE,
    TIMM_PROCESSOR_FILE,
    load_processor,
    obstacle,
    processor_config,
    processor_file,
)
from vitconv.models.timm import make_buffers
from vitconv.parity.comparison import Parity, compare

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from rich.console import Console, ConsoleOptions, RenderResult
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor


@dataclass(frozen=True)
class ElementCount:
    """Where every element of the source went, and where every element of the target came from.

    Attributes:
        source: elements in the source.
        moved: of them, those that are in the target unchanged, except for a cast.
        folded: of them, those that a rewrite combined with others.
        target: elements in the target.
        made: of them, those that a rewrite computed, from folded ones or as constants.
        cast_to: the dtype that moved elements were cast to; ``None`` if they are equal bit for bit.
    """

    source: int
    moved: int
    folded: int
    target: int
    made: int
    cast_to: str | None

    @property
    def exactness(self) -> str:
        """How exactly the moved elements were kept, for people."""
        return f"cast to {self.cast_to}" if self.cast_to else "bit for bit"

    @property
    def moved_only(self) -> bool:
        """Whether every element is in the target bit for bit, and nothing else is."""
        return self.folded == self.made == 0 and self.cast_to is None


@dataclass(frozen=True, repr=False)
class Verification:
    """What was found.

    Attributes:
        elements: how many elements were moved, folded and made.
        same_pixels: whether the written image processor makes timm's pixels bit for bit of every image verified on;
            ``None`` if there is no processor. Where it is false, ``pixel_notes`` has the reasons, each of which
            :func:`vitconv.models.pixels.known_difference` explains: any other difference is a failure.
        pixel_notes: sentences.
        parity: how close the numbers came.
        warnings: what the numbers could not show, in sentences.
        same_pixels_timm_processor: whether ``timm_processor.json``, which runs timm's own transform, makes timm's
            pixels bit for bit of every image verified on: never false, as any difference is a failure. ``None`` if
            the folder does not have it: there is none for images of other than 1 or 3 channels, and earlier versions
            of vitconv wrote none.
        compared: what was compared, where that is not every stage of two models; empty where it is.
    """

    elements: ElementCount
    same_pixels: bool | None
    pixel_notes: tuple[str, ...]
    parity: Parity
    warnings: tuple[str, ...] = ()
    same_pixels_timm_processor: bool | None = None
    compared: str = ""

    def __repr__(self) -> str:
        return f"Verification({self.elements.moved:,} elements {self.elements.exactness}, {self.parity!r})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(f"bytes: {self.bytes_line}")
        yield Text(f"pixels: {self.pixels_line}")
        yield self.parity

    def _repr_markdown_(self) -> str:
        """The three results for notebooks."""
        parts = [
            f"**bytes**: {escape(self.bytes_line)}",
            f"**pixels**: {escape(self.pixels_line)}",
            *(f"**Warning:** {prose(warning)}" for warning in self.warnings),
            self.parity._repr_markdown_(),
        ]
        return "\n\n".join(parts)

    @property
    def verdict(self) -> str:
        """The dtypes that were compared and how close they came, in a few words."""
        return ", ".join(comparison.title for comparison in self.parity.comparisons)

    @property
    def facts(self) -> list[str]:
        """What was proved, in lines for people: the bytes, the pixels, and each dtype."""
        outcomes = [comparison.outcome for comparison in self.parity.comparisons]
        return [f"bytes: {self.bytes_line}", f"pixels: {self.pixels_line}", *outcomes]

    @property
    def bytes_line(self) -> str:
        """How many elements were moved and folded, for people."""
        count = self.elements
        return (
            f"{count.moved:,} of {count.source:,} elements moved {count.exactness}, "
            f"{count.folded:,} folded into others"
        )

    @property
    def pixels_line(self) -> str:
        """How the image processors compare with timm's transform, for people."""
        if self.same_pixels is None and self.same_pixels_timm_processor is None:
            return "no image processor to compare"
        if self.same_pixels:
            return "equal bit for bit"
        notes = " ".join(self.pixel_notes) if self.pixel_notes else f"no {PROCESSOR_FILE}."
        with_timm = f" With {TIMM_PROCESSOR_FILE} equal bit for bit." if self.same_pixels_timm_processor else ""
        return f"{notes}{with_timm}"

    def to_dict(self) -> dict[str, Any]:
        """All results as plain data, for JSON."""
        return {
            "elements": asdict(self.elements),
            "same_pixels": self.same_pixels,
            "pixel_notes": list(self.pixel_notes),
            "same_pixels_timm_processor": self.same_pixels_timm_processor,
            "warnings": list(self.warnings),
            **({"compared": self.compared} if self.compared else {}),
            "parity": self.parity.to_dict(),
        }


def verify_folder(
    folder: Path,
    state_dict: Mapping[str, Tensor],
    timm_model: nn.Module,
    architecture: Architecture,
    data: DataConfig,
    images: Sequence[Image],
    *,
    target: str | None = None,
    labels: Sequence[str] | None = None,
    probes: bool = False,
    dtypes: Sequence[str] = (),
    device: str = "cpu",
    tokens: int | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Prove ``folder``, or raise :class:`~vitconv.errors.ParityError` naming what differs.

    Args:
        folder: the Transformers folder.
        state_dict: the source, in timm's names.
        timm_model: timm's own model of the architecture; it takes the source's weights.
        architecture: what the weights were converted as.
        data: how timm prepares an image.
        images: any pictures.
        target: the family of Transformers models that was converted to, where it is not the first that can be.
        labels: the class names that should be in ``config.json``; ``None`` to take them as they are.
        probes: also run pixels that no photo has: see :func:`vitconv.models.pixels.probe_pixels`; and compare
            the pixels of ``timm_processor.json`` for images of every kind of shape.
        dtypes: what to compare in; always in float64, and by default in what is stored.
        device: where to compute.
        tokens: how many tokens are enough in float64 where float32, with all of them, is equal bit for bit at every
            stage, nothing was rewritten or cast, and the blocks treat all tokens alike; ``None`` to always take all.
            float64 is never left out: float32's rounding hides an epsilon that is wrong by a hundred-thousandth.
        on_step: called with a few words at the beginning of each step.
    """
    on_step("Reading the folder back")
    check_files(folder)
    written = read_state_dict(folder)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Comparing bytes leaves Python free to import Transformers meanwhile, which takes longer.
        comparing = pool.submit(verify_bytes, written, state_dict, architecture, target)
        counting = pool.submit(nonfinite_weights, state_dict)
        verify_settings(folder, architecture, labels, target)
        elements, weight_warnings = comparing.result(), counting.result()
    model = load_folder(folder)
    verify_loaded(model, written, state_dict, architecture, target)

    on_step("Comparing the pixels")
    pixels = verify_pixels(folder, data, images, probes=probes)
    parity = verify_numbers(
        model,
        timm_model,
        state_dict,
        architecture,
        _with_probes(pixels.values, data) if probes else pixels.values,
        target=target,
        dtypes=[dtype for dtype in dtypes if dtype != "float64"] or [usual_dtype(_only_dtype(written))],
        device=device,
        tokens=tokens if elements.moved_only else None,
        on_step=on_step,
    )
    return Verification(
        elements=elements,
        same_pixels=pixels.same,
        pixel_notes=pixels.notes,
        parity=parity,
        warnings=(*weight_warnings, *nonfinite_values(parity)),
        same_pixels_timm_processor=pixels.same_timm_processor,
    )


def verify_settings(
    folder: Path, architecture: Architecture, labels: Sequence[str] | None, target: str | None
) -> None:
    """The first part of the proof: ``config.json`` says what timm's modules do.

    The settings of the image processor are checked with the pixels.

    Raises:
        CheckpointError: Transformers cannot read ``config.json``.
        ParityError: a setting is wrong, or vitconv would not write it.
    """
    config = load_config(folder)
    check_config(config, architecture, labels, target)
    class_named(config.architectures[0])  # imports the class, while another thread compares the bytes


def verify_loaded(
    model: PreTrainedModel,
    written: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    architecture: AnyArchitecture,
    target: str | None,
) -> None:
    """The rest of the second part: every parameter that Transformers loads is what the source makes of it.

    Raises:
        ParityError: a parameter is another.
    """
    # If a file has several dtypes, Transformers loads all tensors in the widest, which loses nothing.
    check_bytes(
        convert_tensors(state_dict, architecture, installed_dialect(), widest_dtype(written), target),
        model.state_dict(),
    )


class ComparedPixels(NamedTuple):
    """The models' input, and how the folder's image processors compare with timm's transform.

    Attributes:
        values: timm's pixels, shape (batch, channels, height, width).
        same, notes, same_timm_processor: as in :class:`Verification`.
    """

    values: Tensor
    same: bool | None
    notes: tuple[str, ...]
    same_timm_processor: bool | None


def verify_pixels(folder: Path, data: DataConfig, images: Sequence[Image], *, probes: bool) -> ComparedPixels:
    """The third part of the proof: the image processors in the folder make timm's pixels of the images.

    Args:
        probes: whether ``timm_processor.json`` is also compared on generated images of several shapes.

    Raises:
        ParityError: they make other pixels, and no known difference explains it.
        InputError: Transformers cannot read an image processor.
    """
    check_processor(folder, data)
    more_images = probe_images(data) if probes and makes_pixels(data) else []
    pixels, same, notes = pixels_for(folder, data, images)
    return ComparedPixels(pixels, same, notes, check_timm_processor(folder, data, [*images, *more_images]))


def _with_probes(pixels: Tensor, data: DataConfig) -> Tensor:
    import torch

    return torch.cat([pixels, probe_pixels(data)])


def verify_numbers(
    model: PreTrainedModel,
    timm_model: nn.Module,
    state_dict: Mapping[str, Tensor],
    architecture: Architecture,
    pixels: Tensor,
    *,
    target: str | None,
    dtypes: Sequence[str],
    device: str,
    tokens: int | None,
    on_step: Callable[[str], None],
) -> Parity:
    """The fourth part of the proof: both models compute the same, stage by stage, in these dtypes and in float64.

    Args:
        model: as Transformers loads it from the folder.
        tokens: how many are enough in float64, if every value in float32 is equal bit for bit and the blocks treat
            all tokens alike; ``None`` to always take all.

    Raises:
        ParityError: they differ by more than the criterion allows.
    """
    load_weights(timm_model, state_dict)
    make_buffers(timm_model)
    parity = Parity(())
    for dtype in dtypes:
        on_step(f"Comparing the models in {dtype}")
        parity += compare(timm_model, model, pixels, dtypes=[dtype], device=device)
    on_step("Comparing the models in float64")
    if tokens and list(dtypes) == ["float32"] and treats_tokens_alike(architecture) and same_everywhere(parity):
        exact = compare(timm_model, model, pixels, dtypes=["float64"], device=device, tokens=tokens)
    else:
        exact = _compare_in_float64(timm_model, model.config, state_dict, architecture, target, pixels, device)
    parity = exact + parity
    parity.assert_match()
    return parity


def load_weights(timm_model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Give timm's model the source's weights, in the order of memory in which timm computes with them.

    Only what lies in another order is copied. A file may hold a convolution channels-last. timm copies it into its own
    order; a model that takes it as it is sums in another order on some processors, and its last bits differ.
    """
    weights = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    timm_model.load_state_dict(weights, strict=True, assign=True)


def treats_tokens_alike(architecture: Architecture) -> bool:
    """Whether the blocks compute the same of a token wherever it is in the picture: only ``pos_embed`` tells."""
    a = architecture
    return not (
        a.relative_position
        or a.relative_network
        or a.axis_positions
        or a.window_size
        or a.neck_channels
        or a.rope_theta
    )


def same_everywhere(parity: Parity) -> bool:
    """Whether every value at every stage is a number, and the same in both models bit for bit."""
    return all(
        comparison.same_bits and all(stage.finite == 1 for stage in comparison.stages)
        for comparison in parity.comparisons
    )


def _compare_in_float64(
    timm_model: nn.Module,
    config: PreTrainedConfig,
    state_dict: Mapping[str, Tensor],
    architecture: Architecture,
    target: str | None,
    pixels: Tensor,
    device: str,
) -> Parity:
    """Compare in float64, with a Transformers model that is built from the source's weights in float64.

    The folder's weights may be rounded, by a cast or a fold; in float64 nothing is.
    """
    # Both models look at the same float64 values: they take most of the memory.
    in_float64 = {name: tensor.double() for name, tensor in state_dict.items()}
    timm_model.load_state_dict(in_float64, strict=True, assign=True)
    twin = build_model(config, convert_tensors(in_float64, architecture, installed_dialect(), target=target))
    try:
        return compare(timm_model, twin, pixels, dtypes=["float64"], device=device)
    finally:
        load_weights(timm_model, state_dict)


def nonfinite_weights(state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A warning that counts the elements that are NaN or infinite, if there are any."""
    import torch

    # A sum is finite only if all its terms are, and much faster than looking at each.
    counts = {
        name: int(torch.isfinite(tensor).logical_not().sum())
        for name, tensor in state_dict.items()
        if not torch.isfinite(tensor.sum())
    }
    bad = [name for name, count in counts.items() if count]
    if not bad:
        return ()
    return (
        f"{sum(counts.values())} elements of the weights are NaN or infinite, in {first_few(bad)}: the training may "
        "have diverged. They are converted unchanged. Values that depend on them prove nothing.",
    )


def nonfinite_values(parity: Parity) -> tuple[str, ...]:
    """A warning for each dtype in which values are NaN or infinite, in both models, from some stage on."""
    stages = {
        comparison.dtype: stage
        for comparison in reversed(parity.comparisons)
        for stage in reversed(comparison.stages)
        if stage.finite < 1
    }
    return tuple(
        f"In {dtype}, {1 - stage.finite:.2%} of the values at `{stage.name}` are NaN or infinite in both models: from "
        "this stage on the comparison proves less."
        for dtype, stage in stages.items()
    )


def verify_bytes(
    written: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    architecture: AnyArchitecture,
    target: str | None = None,
) -> ElementCount:
    """The second part of the proof: the file's tensors are what the source makes of them, and give the source back.

    Raises:
        ParityError: a tensor is not what the source makes of it.
    """
    stored = _only_dtype(written)
    check_bytes(convert_tensors(state_dict, architecture, "hub", stored, target), written)
    family = mapping.family_for(architecture, target)
    simple = family.rewrite(state_dict, architecture)
    plan = make_plan(family, simple.architecture, shapes_of(simple.state_dict), "hub")
    touched = {name for made in simple.made for name in (made.tensor, *made.sources)}
    untouched = {
        name: tensor if stored is None or not tensor.is_floating_point() else tensor.to(stored)
        for name, tensor in state_dict.items()
    }
    back = plan.revert(written)
    check_bytes(
        {name: tensor for name, tensor in untouched.items() if name not in touched},
        {name: tensor for name, tensor in back.items() if name not in touched},
    )
    cast = any(tensor.dtype != untouched[name].dtype for name, tensor in state_dict.items())
    return count_elements(shapes_of(state_dict), shapes_of(written), simple.made, stored if cast else None)


def count_elements(
    source: Shapes, target: Shapes, made: Sequence[Made], cast_to: torch.dtype | None = None
) -> ElementCount:
    """Count the elements.

    Raises:
        ParityError: the counts do not add up.
    """
    touched = {name for record in made for name in record.sources}
    total, goal = (sum(map(math.prod, shapes.values())) for shapes in (source, target))
    folded = sum(math.prod(shape) for name, shape in source.items() if name in touched)
    moved = sum(math.prod(shape) for name, shape in source.items() if name not in touched)
    if moved + folded != total or moved > goal:
        raise ParityError(
            f"The elements do not add up: {total} in the source, {moved} moved, {folded} folded, {goal} written.",
            "Report this as a bug in vitconv.",
            stage="bytes",
        )
    dtype = None if cast_to is None else str(cast_to).removeprefix("torch.")
    return ElementCount(source=total, moved=moved, folded=folded, target=goal, made=goal - moved, cast_to=dtype)


def check_bytes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise :class:`~vitconv.errors.ParityError` unless both hold the same tensors, bit for bit."""
    differing = [
        name
        for name in {**expected, **found}
        if name not in expected or name not in found or not _same_bits(expected[name], found[name])
    ]
    if differing:
        raise ParityError(
            f"{len(differing)} of {len(expected)} tensors differ from what the source makes of them: "
            f"{first_few(differing)}.",
            _OTHERS if 2 * len(differing) > len(expected) else _AGAIN,
            stage="bytes",
        )


def check_config(
    config: PreTrainedConfig, architecture: Architecture, labels: Sequence[str] | None, target: str | None = None
) -> None:
    """Raise :class:`~vitconv.errors.ParityError` unless the configuration says what the timm model does.

    Every setting counts, also those that change only what ``transformers.pipeline`` returns, such as ``problem_type``:
    what Transformers makes of the folder's configuration must be what it makes of the one that vitconv writes. A
    setting that neither vitconv nor Transformers knows is refused, as nobody can say what it changes.

    Args:
        config: the folder's.
        architecture: the timm model's.
        labels: the class names in order; ``None`` if any will do.
    """
    expected = mapping.config(architecture, tuple(labels) if labels else None, target)
    whole = make_config(expected)
    for name in ("id2label", "label2id", "auto_map"):
        expected.pop(name, None)
    for name, value in expected.items():
        found = _plain(getattr(config, name, None), value)
        if found != value:
            raise ParityError(
                f"`{name}` in config.json is {shown(found)} instead of {value!r}.", _AGAIN, stage="config"
            )
    by_index = {int(index): label for index, label in config.id2label.items()}
    if len(by_index) != architecture.num_labels:
        raise ParityError(
            f"The labels in config.json are not those of the classes: it names {len(by_index)}, and the weights have "
            f"{architecture.num_labels}.",
            _OTHERS,
            stage="labels",
        )
    indices = list(range(architecture.num_labels))
    other = [index for index, label in enumerate(labels or ()) if by_index.get(index, label) != label]
    if labels and other:
        raise ParityError(
            f"The labels in config.json are not those of the classes: it names class {other[0]} "
            f"{shown(by_index[other[0]])} instead of {shown(labels[other[0]])}.",
            "Convert the source again with these labels, or pass those that the folder was made with (--labels FILE).",
            stage="labels",
        )
    if sorted(by_index) != indices or config.label2id != {v: k for k, v in by_index.items()}:
        raise ParityError("The labels in config.json are not those of the classes.", _AGAIN, stage="labels")
    if config._attn_implementation is not None:
        raise _unsupported_setting("attn_implementation", config._attn_implementation)
    compare_settings(config.to_dict(), whole.to_dict(), "")


#: Settings that change no number, or that are compared elsewhere: the labels above, the dtype with the bytes.
_ELSEWHERE = {
    *("transformers_version", "_name_or_path", "name_or_path", "initializer_range", "initializer_factor"),
    *("id2label", "label2id", "dtype", "torch_dtype"),
    "auto_map",  # load_config has checked it, and Transformers changes it
}


def compare_settings(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """All settings as Transformers has read them; ``where`` is the nested configuration that they are in."""
    for name in {**expected, **found}:
        if name in _ELSEWHERE:
            continue
        one, other = found.get(name), expected.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            compare_settings(one, other, f"{where}{name}.")
        elif one != other and name in expected:
            raise ParityError(
                f"`{where}{name}` in config.json is {shown(one)} instead of {shown(other)}.",
                "Correct or remove this setting, or convert the source again.",
                stage="config",
            )
        elif one != other:
            raise _unsupported_setting(f"{where}{name}", one)


def _unsupported_setting(name: str, value: Any) -> ParityError:
    return ParityError(
        f"config.json has a setting `{name}` ({shown(value)}) that no conversion writes; it may change what the model "
        "returns, or keep it from loading.",
        "Remove this setting, or convert the source again.",
        stage="config",
    )


def check_files(folder: Path) -> None:
    """Raise :class:`~vitconv.errors.ParityError` for weights beside those that are compared, or two dtypes for them.

    Which of several files is read depends on the reader, and its version.
    """
    present = [name for name in _WEIGHTS if (folder / name).exists()]
    if len(present) > 1:
        raise ParityError(
            f"The folder has weights in several forms, {' and '.join(present)}: only {present[0]} would be compared.",
            f"Remove all but {present[0]}.",
            stage="bytes",
        )
    content = read_json(folder / CONFIG_FILE)
    one, other = (content.get(name) for name in ("dtype", "torch_dtype"))
    if one is not None and other is not None and one != other:
        raise ParityError(
            f"`torch_dtype` in config.json is {shown(other)}, and `dtype` is {shown(one)}: which of them counts "
            "depends on the version of Transformers.",
            "Remove `torch_dtype`.",
            stage="config",
        )


_WEIGHTS = (WEIGHTS_FILE, INDEX_FILE, TORCH_FILE, TORCH_INDEX_FILE, "tf_model.h5", "flax_model.msgpack")


def check_processor(folder: Path, data: DataConfig) -> None:
    """Raise :class:`~vitconv.errors.ParityError` unless the image processor has the settings that vitconv writes.

    Pixels of a few images cannot show all of them: an RGB image does not tell whether others are converted to RGB.

    Args:
        folder: with the image processor, if there is one for such a model.
        data: how timm prepares an image.
    """
    expected, file = processor_config(data), processor_file(folder)
    if file is None:
        return
    if expected is None:
        raise ParityError(
            f"The folder has a `{file}`, but no image processor does what timm's transform does. {obstacle(data)}",
            "Remove the file: with it, Transformers prepares images in another way than timm.",
            stage="pixels",
        )
    found = _processor_settings(folder)
    with tempfile.TemporaryDirectory() as ours:
        write_json(expected, Path(ours) / PROCESSOR_FILE)
        whole = _processor_settings(ours)
    for name in {**whole, **found}:
        if found.get(name) != whole.get(name):
            raise ParityError(
                f"`{PROCESSOR_FILE}` does not make the pixels that timm's transform makes of every image: `{name}` is "
                f"{shown(found.get(name))} instead of {shown(whole.get(name))}.",
                "Correct this setting, or convert the source again; if timm's data configuration is not the tag's, "
                "give it.",
                stage="pixels",
            )


def _processor_settings(folder: str | Path) -> dict[str, Any]:
    """All settings of a folder's image processor as Transformers has read them, defaults included."""
    settings = load_processor(folder).to_dict()
    # Transformers writes down for which of its backends a class was loaded.
    settings["image_processor_type"] = re.sub("(Fast|Pil)$", "", str(settings.get("image_processor_type")))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _plain(found: Any, expected: Any) -> Any:
    """A setting in the form in which it is written; of a nested configuration, the settings that are expected."""
    if isinstance(expected, dict) and not isinstance(found, dict):
        return {name: _plain(getattr(found, name, None), value) for name, value in expected.items()}
    return list(found) if isinstance(found, tuple) else found


_AGAIN = "Convert the source again. If the error remains, report the architecture and this message."
_OTHERS = (
    "The folder was made from other weights, or with another dtype. Pass the weights that it was made from, or "
    "convert these to another folder."
)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in dtype, shape and every bit: NaN equals itself, and -0 differs from 0."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    # Values that are only marked as negated are in memory with the other sign.
    one, other = (tensor.resolve_conj().resolve_neg() for tensor in (one, other))
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))


def _only_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """The dtype of all the tensors; ``None`` if they have several, which a cast would not leave."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def usual_dtype(stored: torch.dtype | None) -> str:
    """The dtype in which people compute with weights of this dtype; ``None`` stands for several dtypes."""
    name = str(stored).removeprefix("torch.")
    return name if name in ("float16", "bfloat16") else "float32"


def pixels_for(
    folder: Path | None,
    data: DataConfig,
    images: Sequence[Image],
    *,
    processor: BaseImageProcessor | None = None,
    file: str = PROCESSOR_FILE,
) -> tuple[Tensor, bool | None, tuple[str, ...]]:
    """The models' input as timm makes it of the images, whether the folder makes the same, and if not, why.

    Shape (batch, channels, height, width). Without a format for images of so many channels, noise. Where there is a
    known difference, it must be the only one: without it, the pixels must be equal bit for bit.

    Args:
        folder: with the image processor; ``None`` to make timm's pixels only.
        data: how timm prepares an image.
        images: any pictures.
        processor: the image processor, instead of one in a folder.
        file: where it is from, for people.

    Raises:
        ParityError: the folder makes other pixels, and no known difference explains it.
        InputError: Transformers cannot read the image processor, or takes it from another file.
    """
    import torch

    if not makes_pixels(data):
        return probe_pixels(data)[:1], None, ()
    pixels = torch.stack([timm_pixels(image, data) for image in images])
    if processor is None:
        if folder is None or processor_config(data) is None:
            return pixels, None, ()
        if not (folder / PROCESSOR_FILE).exists():
            raise ParityError(f"The folder has no `{PROCESSOR_FILE}`.", _AGAIN, stage="pixels")
        processor = load_processor(folder)
    notes = []
    for image, expected in zip(images, pixels, strict=True):
        if _makes(expected, image, processor, data, file):
            continue
        reason = known_difference(image, data)
        opaque = without_transparency(image, data)
        if reason is None or not _makes(timm_pixels(opaque, data, early_crop=True), opaque, processor, data, file):
            raise _other_pixels(file, image)
        notes.append(reason)
    return pixels, not notes, tuple(dict.fromkeys(notes))


def check_timm_processor(
    folder: Path, data: DataConfig, images: Sequence[Image], file: str = TIMM_PROCESSOR_FILE
) -> bool | None:
    """Whether ``timm_processor.json`` makes timm's pixels of the images, bit for bit: ``True``, or an error.

    There are no known differences: it runs timm's own transform. ``None`` if the folder does not have it. ``file`` is
    where its settings are.

    Raises:
        ParityError: it makes other pixels.
        InputError: Transformers cannot read it.
    """
    if not (folder / file).exists() or not makes_pixels(data):
        return None
    processor = load_processor(folder, "timm")
    for image in images:
        if not _makes(timm_pixels(image, data), image, processor, data, file):
            raise _other_pixels(file, image)
    return True


def _makes(expected: Tensor, image: Image, processor: BaseImageProcessor, data: DataConfig, file: str) -> bool:
    """Whether a processor, which is in this file, makes these pixels of the image, bit for bit."""
    import torch

    try:
        return torch.equal(expected[None], process(image, processor, data.num_channels))
    except VitconvError:
        raise
    except Exception as error:  # a file edited by hand may make a processor fail in any way
        raise ParityError(
            f"The image processor in `{file}` fails: {type(error).__name__}: {error}",
            _AGAIN,
            stage="pixels",
        ) from error


def _other_pixels(file: str, image: Image) -> ParityError:
    import torch

    remedy, dtype = "Convert the source again; if timm's data configuration is not the tag's, give it.", torch.float32
    if torch.get_default_dtype() != dtype:  # torchvision's ToTensor computes in it
        remedy = f"Call torch.set_default_dtype({dtype}) first: timm's transform makes other pixels with another one."
    return ParityError(
        f"The image processor in `{file}` does not make the pixels that timm's transform makes "
        f"of an image of {image.width}x{image.height}.",
        remedy,
        stage="pixels",
    )
