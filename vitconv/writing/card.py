"""The model card of a converted folder: how it was made, how close it came, how to load it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from vitconv import __version__
from vitconv.mapping import WRAPPER, family_for
from vitconv.mapping.family import is_classifier
from vitconv.mapping.summary import summarise_rewrites
from vitconv.mapping.wrapper import WARNING
from vitconv.markdown import code, escape
from vitconv.models.data_config import makes_pixels
from vitconv.models.images import MODES
from vitconv.models.pixels import always_shifted
from vitconv.models.processors import PROCESSOR_FILE, TIMM_PROCESSOR_FILE, processor_config

if TYPE_CHECKING:
    from vitconv.architecture import AnyArchitecture
    from vitconv.mapping import Family
    from vitconv.mapping.rewrites import Made
    from vitconv.models.data_config import DataConfig
    from vitconv.parity.comparison import Comparison
    from vitconv.parity.verification import Verification

CARD_FILE = "README.md"


def model_card(
    source: str,
    timm_name: str | None,
    architecture: AnyArchitecture,
    target: str | None,
    labels: tuple[str, ...],
    made: tuple[Made, ...],
    data: DataConfig,
    warnings: tuple[str, ...],
    verification: Verification | None,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Write the card, with the metadata that the Hub reads: https://huggingface.co/docs/hub/model-cards

    Args:
        license: the identifier of the weights' license, where it is known.
        base_model: the model on the Hub that the weights are from: ``org/name``.
    """
    family = family_for(architecture, target)
    sections = [
        _metadata(family, architecture, license, base_model),
        f"# {escape(timm_name or 'A timm Vision Transformer')}, as {family.class_name(architecture)}",
        f"Converted from the timm weights {code(source)} by vitconv {__version__}.",
        WARNING if family is WRAPPER else "",
        _loading(family, architecture, data),
        _auto_model(family, architecture),
        _head_code(family, architecture),
        _timm_pixels(family, architecture, data),
        _preprocessing(data, tuple(warning for warning in warnings if warning != WARNING)),
        _classes(labels),
        _changes(made),
        _proof(verification),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(family: Family, architecture: AnyArchitecture, license: str | None, base_model: str | None) -> str:
    task = "image-classification" if is_classifier(family.class_name(architecture)) else "image-feature-extraction"
    lines = [
        "---",
        *([f"license: {json.dumps(license)}"] if license else []),  # YAML reads no, null and 1.0 as other types
        *([f"base_model: {json.dumps(base_model)}"] if base_model else []),
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in ("vision", family.tag, "timm", "vitconv")),
        "---",
    ]
    return "\n".join(lines)


def _auto_model(family: Family, architecture: AnyArchitecture) -> str:
    """What `AutoModel`, which ignores the head, makes of a classifier that is not of one of its own classes."""
    if not architecture.classifier or family.code_module:
        return ""
    if family.class_name(architecture).endswith("Model"):
        return ""
    if not family.random_in_auto_model:
        return "`AutoModel` loads this model without its head."
    return (
        f"Do not load it with `AutoModel`, which leaves out the head and adds {family.random_in_auto_model} "
        "with random weights."
    )


def _loading(family: Family, architecture: AnyArchitecture, data: DataConfig) -> str:
    if not makes_pixels(data):
        return f"## Load it\n\n{_code(family, architecture, '', '', _OWN_PIXELS.format(*_shape(data)))}"
    if family is WRAPPER:
        load = "AutoImageProcessor.from_pretrained(folder)  # timm's own transform"
        inputs = f'processor({_OPEN}.convert("{MODES[data.num_channels]}"), return_tensors="pt")'
        return f"## Load it\n\n{_NEEDS_TIMM}\n\n{_code(family, architecture, 'AutoImageProcessor', load, inputs)}"
    if processor_config(data) is None:
        return f"## Load it\n\n{_NEEDS_TIMM}\n\n{_timm_code(family, architecture, data)}"
    comment = "see below where they are not timm's pixels" if always_shifted(data) else "timm's pixels, bit for bit"
    image = _OPEN + (f'.convert("{MODES[data.num_channels]}")' if data.num_channels == 1 else "")
    code = _code(
        family,
        architecture,
        "AutoImageProcessor",
        f'AutoImageProcessor.from_pretrained(folder, backend="pil")  # {comment}',
        f'processor({image}, return_tensors="pt")',
    )
    return f"## Load it\n\n{code}"


def loading_lines(architecture: AnyArchitecture, target: str | None, data: DataConfig, folder: str) -> list[str]:
    """The lines of Python that load a folder: the import, the model, and the image processor if there is one."""
    family = family_for(architecture, target)
    auto, trust = _auto_class(family, architecture), _trust(family)
    where = json.dumps(folder, ensure_ascii=False)
    if not makes_pixels(data):
        return [f"from transformers import {auto}", f"model = {auto}.from_pretrained({where}{trust})"]
    if target == WRAPPER.name:
        processor, option = "AutoImageProcessor", ""
    elif processor_config(data) is None:
        processor, option = "TimmWrapperImageProcessor", f'image_processor_filename="{TIMM_PROCESSOR_FILE}"'
    else:
        processor, option = "AutoImageProcessor", 'backend="pil"'
    return [
        f"from transformers import {', '.join(sorted((auto, processor), key=str.lower))}",
        f"model = {auto}.from_pretrained({where}{trust})",
        f"processor = {processor}.from_pretrained({', '.join(filter(None, [where, option]))})",
    ]


def _trust(family: Family) -> str:
    """The argument with which Transformers runs the folder's code, if it has any."""
    return ", trust_remote_code=True" if family.code_module else ""


def _head_code(family: Family, architecture: AnyArchitecture) -> str:
    if not family.code_module:
        return ""
    kind, part = ("classifier", "head") if architecture.classifier else ("class", "pooling")
    return (
        f"Transformers has no {kind} that pools as this model does. The {part} is in `{family.code_module}.py`, "
        "which Transformers runs only with `trust_remote_code=True`: read it before. "
        "`AutoModel.from_pretrained(folder)` loads the vision model alone, and runs no code of this folder."
    )


def _auto_class(family: Family, architecture: AnyArchitecture) -> str:
    name = family.class_name(architecture)
    if name.endswith("ForImageClassification"):
        return "AutoModelForImageClassification"
    return "AutoModel" if family.code_module else name


def _timm_pixels(family: Family, architecture: AnyArchitecture, data: DataConfig) -> str:
    """The section on ``timm_processor.json``, where it is not the only processor, which :func:`_loading` shows."""
    if family is WRAPPER or processor_config(data) is None:
        return ""
    differences = []
    if always_shifted(data):
        differences.append("Transformers begins the crop of every image one pixel earlier than timm.")
    elif data.crop_mode != "squash":
        differences.append(
            "Where the margin around the centre crop is 3, 7, 11… pixels (3 modulo 4) in height or width, "
            "Transformers begins the crop one pixel earlier than timm."
        )
    if data.num_channels == 3:
        differences.append("Where an image has transparency, Transformers blends it with white, and timm drops it.")
    text = f"`{TIMM_PROCESSOR_FILE}` runs timm's own transform, and makes timm's pixels of every image. {_NEEDS_TIMM}"
    if differences:
        text = f"`{PROCESSOR_FILE}` does not make timm's pixels of every image. {' '.join(differences)} {text}"
    return f"## timm's pixels for every image (needs timm)\n\n{text}\n\n{_timm_code(family, architecture, data)}"


_OPEN = 'Image.open("photo.jpg")'
_NEEDS_TIMM = "It needs timm (`pip install timm`). It does not convert images to the model's channels: do that before."
_OWN_PIXELS = '{{"pixel_values": torch.zeros(1, {}, {}, {})}}  # your pixels, normalised as below'


def _timm_code(family: Family, architecture: AnyArchitecture, data: DataConfig) -> str:
    load = f'TimmWrapperImageProcessor.from_pretrained(folder, image_processor_filename="{TIMM_PROCESSOR_FILE}")'
    image = f'{_OPEN}.convert("{MODES[data.num_channels]}")'
    return _code(family, architecture, "TimmWrapperImageProcessor", load, f'processor({image}, return_tensors="pt")')


def _code(family: Family, architecture: AnyArchitecture, processor: str, load: str, inputs: str) -> str:
    """An example that runs as it is, from the folder and a photo to what the timm model returns.

    Args:
        processor: the class to import from Transformers; empty for a model that no image file fits.
        load: the expression that loads the processor.
        inputs: the expression that makes the model's inputs.
    """
    auto, expression = _auto_class(family, architecture), family.output_expression(architecture)
    what = "logits" if architecture.classifier else "features"
    names = ", ".join(sorted(filter(None, [auto, processor]), key=str.lower))
    lines = [
        "from PIL import Image" if processor else "import torch",
        f"from transformers import {names}",
        "",
        'folder = "path/to/this/folder"',
        *([f"processor = {load}"] if processor else []),
        f"model = {auto}.from_pretrained(folder{_trust(family)})",
        f"inputs = {inputs}",
        f"{what} = model(**inputs).{expression}  # what the timm model returns",
    ]
    return "\n".join(["```python", *lines, "```"])


def _shape(data: DataConfig) -> tuple[int, int, int]:
    return data.num_channels, *data.image_size


def _preprocessing(data: DataConfig, warnings: tuple[str, ...]) -> str:
    text = (
        f"Images of {data.image_size[0]} × {data.image_size[1]} pixels, {data.interpolation}, "
        f"crop {data.crop_pct:g} ({data.crop_mode}), mean {_numbers(data.mean)}, std {_numbers(data.std)}: "
        f"from {data.origin.replace('`', '')}."
    )
    return "\n\n".join(["## Preprocessing", *map(escape, (text, *warnings))])


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _classes(labels: tuple[str, ...]) -> str:
    if not labels or labels[0] == "LABEL_0":
        return ""
    return (
        f"## Classes\n\n{escape(', '.join(labels))}"
        if len(labels) <= 100
        else f"## Classes\n\n{len(labels)}: see config.json."
    )


def _changes(made: tuple[Made, ...]) -> str:
    if not made:
        return ""
    lines = [f"- {code(names)}: {escape(how)}" for names, how in summarise_rewrites(made)]
    text = "The class of Transformers has these tensors in another form than timm, or in addition:"
    return "\n".join(["## What was rewritten", "", text, "", *lines])


def _proof(verification: Verification | None) -> str:
    if verification is None:
        return "## Proof\n\nNot verified: the conversion ran with `--no-verify`."
    elements = verification.elements
    lines = [
        "## Proof",
        "",
        f"Of {elements.source:,} elements of the source {elements.moved:,} are in this folder, {elements.exactness},"
        + f" and {elements.folded:,} were folded into others. The two models on the same pixels:",
        "",
        "| computed in | largest difference at any stage | at the end | same best class |",
        "|---|---|---|---|",
        *map(_line, verification.parity.comparisons),
        "",
        *filter(None, map(_tokens_note, verification.parity.comparisons)),
        *([] if verification.compared else [_picture(verification.parity["float64"]), ""]),
        f"Compared were {verification.compared}. The numbers are in `parity.json`."
        if verification.compared
        else "The numbers of every stage are in `parity.json`.",
    ]
    return "\n".join(lines)


#: The picture's axis begins below the smallest difference of two float64 numbers of one scale, 1e-16.
_AXIS_BEGINS = 1e-18
_AXIS_LENGTH = 40


def _picture(comparison: Comparison) -> str:
    """The largest relative difference of each stage beside its limit, as text: a card on the Hub shows it as it is."""
    stages = comparison.stages
    width = max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        share = math.log(max(stage.relative, _AXIS_BEGINS) / _AXIS_BEGINS) / math.log(stage.limit / _AXIS_BEGINS)
        bar = "█" * min(math.ceil(share * _AXIS_LENGTH), _AXIS_LENGTH)
        drawn = "= equal bit for bit" if stage.max_abs == 0 else f"{bar:{_AXIS_LENGTH}}|  {stage.relative:.1e}"
        lines.append(f"{stage.name:{width}}  {drawn}")
    text = (
        f"Stage by stage in {comparison.dtype}: the largest difference as a share of the scale. The logarithmic axis "
        f"goes from {_AXIS_BEGINS:g} to the limit, {stages[-1].limit:g}."
    )
    return "\n".join([text, "", "```text", *lines, "```"])


def _tokens_note(comparison: Comparison) -> str:
    if comparison.tokens is None:
        return ""
    return (
        f"In {comparison.dtype} {comparison.tokens} tokens of the picture went through the blocks: in float32, with "
        "all of them, every value at every stage is equal bit for bit.\n"
    )


def _line(comparison: Comparison) -> str:
    worst = max(comparison.stages, key=lambda stage: stage.relative)
    last = comparison.stages[-1]
    figures = ["none" if stage.max_abs == 0 else f"{stage.relative:.1e} of the scale" for stage in (worst, last)]
    return f"| {comparison.dtype} | {figures[0]} | {figures[1]} | {comparison.top1:.0%} |"
