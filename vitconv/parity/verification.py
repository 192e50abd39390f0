"""Prove a converted folder against the timm model it was made from.

Logits cannot see everything: softmax cancels a wrong key bias, and a mistake in one weight may be lost in rounding.
So the proof has four parts, and all must hold:

* **the settings**: ``config.json`` says what timm's modules do, names the classes, and has no setting that vitconv
  would not write; nor has ``preprocessor_config.json``;
* **the bytes**: every tensor in the file, read back, and every parameter that Transformers loads, equals bit for bit
  what the plan moves, or a rewrite makes, of the source; and joined back into timm's tensors they are the source;
* **the pixels**: the image processors in the folder make timm's pixels of an image file;
* **the numbers**: the timm model and its twin compute the same, stage by stage (:mod:`vitconv.parity.comparison`).

Not looked at: other files in the folder (the model card, the figures in ``parity.json``, adapters, code); versions of
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
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.architecture import Architecture, Shapes
from vitconv.checkpoints.checkpoint import read_state_dict
from vitconv.errors import ParityError, VitconvError, first_few
from vitconv.files import write_json
from vitconv.mapping.plan import convert_tensors, make_plan, shapes_of, widest_dtype
from vitconv.mapping.rewrites import Made
from vitconv.models.huggingface import build_model, installed_dialect, load_config, load_folder, make_config, shown
from vitconv.models.preprocessing import (
    PROCESSOR_FILE,
    TIMM_PROCESSOR_FILE,
    DataConfig,
    known_difference,
    load_processor,
    makes_pixels,
    obstacle,
    probe_pixels,
    process,
    processor_config,
    processor_file,
    timm_pixels,
    without_transparency,
)
from vitconv.models.timm import make_buffers
from vitconv.parity.comparison import Parity, compare

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn
    from transformers import PreTrainedConfig
    from transformers.image_processing_utils import BaseImageProcessor


@dataclass(frozen=True)
class Account:
    """Where every element of the source went, and where every element of the target came from.

    Attributes:
        source: elements in the source.
        moved: of them, those that are in the target as they were, but for a cast.
        folded: of them, those that a rewrite worked into others.
        target: elements in the target.
        made: of them, those that a rewrite made, from folded ones or as constants.
        cast_to: the dtype that moved elements were cast to; ``None`` if they are equal bit for bit.
    """

    source: int
    moved: int
    folded: int
    target: int
    made: int
    cast_to: str | None

    @property
    def how(self) -> str:
        """How the moved elements are there, for people."""
        return f"cast to {self.cast_to}" if self.cast_to else "bit for bit"


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        account: the bookkeeping of elements.
        same_pixels: whether the written image processor makes timm's pixels bit for bit of every image verified on;
            ``None`` if there is no processor. Where it is false, ``pixel_notes`` has the reasons, each of which
            :func:`vitconv.models.preprocessing.known_difference` explains: any other difference is a failure.
        pixel_notes: sentences.
        parity: how close the numbers came.
        warnings: what the numbers could not show, in sentences.
        same_pixels_timm_processor: whether ``timm_processor.json``, which runs timm's own transform, makes timm's
            pixels bit for bit of every image verified on: never false, as any difference is a failure. ``None`` if
            the folder does not have it: there is none for images of other than 1 or 3 channels, and earlier versions
            of vitconv wrote none.
    """

    account: Account
    same_pixels: bool | None
    pixel_notes: tuple[str, ...]
    parity: Parity
    warnings: tuple[str, ...] = ()
    same_pixels_timm_processor: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, for JSON."""
        return {
            "elements": asdict(self.account),
            "same_pixels": self.same_pixels,
            "pixel_notes": list(self.pixel_notes),
            "same_pixels_timm_processor": self.same_pixels_timm_processor,
            "warnings": list(self.warnings),
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
    say: Callable[[str], None] = lambda step: None,
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
        probes: also run pixels that no photo has: see :func:`vitconv.models.preprocessing.probe_pixels`.
        dtypes: what to compare in; always in float64, and by default in what is stored.
        device: where to compute.
        tokens: how many tokens are enough in float64 where float32, with all of them, is equal bit for bit at every
            stage, nothing was rewritten or cast, and the blocks treat all tokens alike; ``None`` to take all always.
            Left out it cannot be: float32's rounding hides an epsilon that is wrong by a hundred-thousandth.
        say: called with a few words at the beginning of each step.
    """
    import torch
    import transformers

    say("Reading the folder back")
    written = read_state_dict(folder)
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Comparing bytes leaves Python free to import Transformers meanwhile, which takes longer.
        bookkeeping = beside.submit(check_source, state_dict, architecture, written, target)
        counted = beside.submit(not_finite, state_dict)
        config = load_config(folder)
        check_config(config, architecture, labels, target)
        getattr(transformers, config.architectures[0])
        account, infinite = bookkeeping.result(), counted.result()
    model = load_folder(folder)
    # Of several dtypes in a file, Transformers loads all into the widest, which loses nothing.
    loaded = convert_tensors(state_dict, architecture, installed_dialect(), widest_dtype(written), target)
    check_bytes(loaded, model.state_dict())
    del loaded

    say("Comparing the pixels")
    check_processor(folder, data)
    pixels, same_pixels, notes = pixels_for(folder, data, images)
    same_pixels_timm_processor = check_timm_processor(folder, data, images)
    if probes:
        pixels = torch.cat([pixels, probe_pixels(data)])

    timm_model.load_state_dict(dict(state_dict), strict=True, assign=True)
    make_buffers(timm_model)
    named = [dtype for dtype in dtypes if dtype != "float64"] or [_natural_dtype(_only_dtype(written))]
    natural = Parity(())
    for dtype in named:
        say(f"Comparing the models in {dtype}")
        natural += compare(timm_model, model, pixels, dtypes=[dtype], device=device)
    say("Comparing the models in float64")
    moved_only = account.folded == account.made == 0 and account.cast_to is None
    enough = tokens and named == ["float32"] and moved_only and treats_tokens_alike(architecture)
    if enough and same_everywhere(natural):
        exact = compare(timm_model, model, pixels, dtypes=["float64"], device=device, tokens=tokens)
    else:
        exact = _compare_anew(timm_model, model.config, state_dict, architecture, target, pixels, device)
    parity = exact + natural
    parity.assert_match()
    warnings = (*infinite, *not_shown(parity))
    return Verification(account, same_pixels, notes, parity, warnings, same_pixels_timm_processor)


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


def _compare_anew(
    timm_model: nn.Module,
    config: PreTrainedConfig,
    state_dict: Mapping[str, Tensor],
    architecture: Architecture,
    target: str | None,
    pixels: Tensor,
    device: str,
) -> Parity:
    """Compare in float64 with a twin made anew of the source's weights in float64.

    The folder's weights may be rounded, by a cast or a fold; in float64 nothing is.
    """
    # Both models look at the same float64 values: they take most of the memory.
    in_float64 = {name: tensor.double() for name, tensor in state_dict.items()}
    timm_model.load_state_dict(in_float64, strict=True, assign=True)
    twin = build_model(config, convert_tensors(in_float64, architecture, installed_dialect(), target=target))
    try:
        return compare(timm_model, twin, pixels, dtypes=["float64"], device=device)
    finally:
        timm_model.load_state_dict(dict(state_dict), strict=True, assign=True)


def not_finite(state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
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
        "have diverged. They are converted as they are; where they reach, the numbers prove nothing.",
    )


def not_shown(parity: Parity) -> tuple[str, ...]:
    """A warning for each dtype in which values are NaN or infinite, in both models, from some stage on."""
    stages = {
        comparison.dtype: stage
        for comparison in reversed(parity.comparisons)
        for stage in reversed(comparison.stages)
        if stage.finite < 1
    }
    return tuple(
        f"In {dtype}, {1 - stage.finite:.2%} of the values at `{stage.name}` are NaN or infinite in both models: from "
        "there on the numbers prove less."
        for dtype, stage in stages.items()
    )


def check_source(
    state_dict: Mapping[str, Tensor],
    architecture: Architecture,
    written: Mapping[str, Tensor],
    target: str | None = None,
) -> Account:
    """The bytes against the source, there and back, and the account of every element.

    Raises:
        ParityError: a tensor is not what the source makes of it.
    """
    stored = _only_dtype(written)
    check_bytes(convert_tensors(state_dict, architecture, "hub", stored, target), written)
    family = mapping.family_for(architecture, target)
    simple = family.simplify(state_dict, architecture)
    plan = make_plan(family, simple.architecture, shapes_of(simple.state_dict), "hub")
    touched = {name for made in simple.made for name in (made.tensor, *made.sources)}
    untouched = {name: tensor if stored is None else tensor.to(stored) for name, tensor in state_dict.items()}
    back = plan.revert(written)
    check_bytes(
        {name: tensor for name, tensor in untouched.items() if name not in touched},
        {name: tensor for name, tensor in back.items() if name not in touched},
    )
    cast = stored is not None and any(tensor.dtype != stored for tensor in state_dict.values())
    return account_for(shapes_of(state_dict), shapes_of(written), simple.made, stored if cast else None)


def account_for(source: Shapes, target: Shapes, made: Sequence[Made], cast_to: torch.dtype | None = None) -> Account:
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
            f"Of {total} elements {moved} were moved and {folded} folded, into {goal}.",
            "Report this as a bug in vitconv.",
            stage="bytes",
        )
    dtype = None if cast_to is None else str(cast_to).removeprefix("torch.")
    return Account(source=total, moved=moved, folded=folded, target=goal, made=goal - moved, cast_to=dtype)


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

    Every setting counts, those too that change only what ``transformers.pipeline`` answers, such as ``problem_type``:
    what Transformers makes of the folder's configuration must be what it makes of the one that vitconv writes. A
    setting that neither vitconv nor Transformers knows is refused, as nobody can say what it changes.

    Args:
        config: the folder's.
        architecture: the timm model's.
        labels: the class names in order; ``None`` if any will do.
    """
    expected = mapping.config(architecture, tuple(labels) if labels else None, target)
    whole = make_config(expected)
    named = {name: expected.pop(name) for name in ("id2label", "label2id")}
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
    right = by_index == {int(index): label for index, label in named["id2label"].items()} if labels else True
    indices = list(range(architecture.num_labels))
    if sorted(by_index) != indices or not right or config.label2id != {v: k for k, v in by_index.items()}:
        raise ParityError("The labels in config.json are not those of the classes.", _AGAIN, stage="labels")
    if config._attn_implementation is not None:
        raise _foreign_setting("attn_implementation", config._attn_implementation)
    _compare_settings(config.to_dict(), whole.to_dict(), "")


#: Settings that change no number, or that are compared elsewhere: the labels above, the dtype with the bytes.
_ELSEWHERE = {
    *("transformers_version", "_name_or_path", "name_or_path", "initializer_range", "initializer_factor"),
    *("id2label", "label2id", "dtype", "torch_dtype"),
}


def _compare_settings(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """All settings as Transformers has read them; ``where`` is the nested configuration that they are in."""
    for name in {**expected, **found}:
        if name in _ELSEWHERE:
            continue
        one, other = found.get(name), expected.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            _compare_settings(one, other, f"{where}{name}.")
        elif one != other and name in expected:
            raise ParityError(
                f"`{where}{name}` in config.json is {shown(one)} instead of {shown(other)}.",
                "Correct or remove this setting, or convert the source again.",
                stage="config",
            )
        elif one != other:
            raise _foreign_setting(f"{where}{name}", one)


def _foreign_setting(name: str, value: Any) -> ParityError:
    return ParityError(
        f"config.json has a setting `{name}` ({shown(value)}) that no conversion writes; it may change what the model "
        "answers, or keep it from loading.",
        "Remove this setting, or convert the source again.",
        stage="config",
    )


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
            f"The folder has a `{file}`, and none does what timm's transform does. {obstacle(data)}",
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
    if isinstance(expected, dict):
        return {name: _plain(getattr(found, name, None), value) for name, value in expected.items()}
    return list(found) if isinstance(found, tuple) else found


_AGAIN = "Convert the source again; if it stays, report the architecture and this message."
_OTHERS = (
    "These are other weights than the folder was made from, or of another dtype: pass those that it was made from, or "
    "convert these to a folder of their own."
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


def _natural_dtype(stored: torch.dtype | None) -> str:
    """What people compute in with weights of this dtype."""
    name = str(stored).removeprefix("torch.")
    return name if name in ("float16", "bfloat16") else "float32"


def pixels_for(
    folder: Path | None, data: DataConfig, images: Sequence[Image], *, processor: BaseImageProcessor | None = None
) -> tuple[Tensor, bool | None, tuple[str, ...]]:
    """The models' input as timm makes it of the images, whether the folder makes the same, and if not, why.

    Shape (batch, channels, height, width). Without a format for images of so many channels, noise. Where there is a
    known difference, it must be the only one: without it, the pixels must be equal bit for bit.

    Args:
        folder: with the image processor; ``None`` to make timm's pixels only.
        data: how timm prepares an image.
        images: any pictures.
        processor: the image processor, instead of one in a folder.

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
        if _makes(expected, image, processor, data, PROCESSOR_FILE):
            continue
        reason = known_difference(image, data)
        opaque = without_transparency(image, data)
        if reason is None or not _makes(
            timm_pixels(opaque, data, early_crop=True), opaque, processor, data, PROCESSOR_FILE
        ):
            raise _other_pixels(PROCESSOR_FILE, image)
        notes.append(reason)
    return pixels, not notes, tuple(dict.fromkeys(notes))


def check_timm_processor(folder: Path, data: DataConfig, images: Sequence[Image]) -> bool | None:
    """Whether ``timm_processor.json`` makes timm's pixels of the images, bit for bit: ``True``, or an error.

    There are no known differences: it runs timm's own transform. ``None`` if the folder does not have it.

    Raises:
        ParityError: it makes other pixels.
        InputError: Transformers cannot read it.
    """
    if not (folder / TIMM_PROCESSOR_FILE).exists() or not makes_pixels(data):
        return None
    processor = load_processor(folder, "timm")
    for image in images:
        if not _makes(timm_pixels(image, data), image, processor, data, TIMM_PROCESSOR_FILE):
            raise _other_pixels(TIMM_PROCESSOR_FILE, image)
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
    return ParityError(
        f"The image processor in `{file}` does not make the pixels that timm's transform makes "
        f"of an image of {image.width}x{image.height}.",
        "Convert the source again; if timm's data configuration is not the tag's, give it.",
        stage="pixels",
    )
