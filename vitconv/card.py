"""The model card of a converted folder: how it was made, how close it came, how to load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitconv import __version__
from vitconv.mapping import family_for

if TYPE_CHECKING:
    from vitconv.architecture import Architecture
    from vitconv.mapping import Family
    from vitconv.parity import Comparison
    from vitconv.preprocess import DataConfig
    from vitconv.simplify import Made
    from vitconv.verify import Verification

CARD_FILE = "README.md"


def model_card(
    source: str,
    timm_name: str | None,
    architecture: Architecture,
    target: str | None,
    labels: tuple[str, ...],
    made: tuple[Made, ...],
    data: DataConfig,
    warnings: tuple[str, ...],
    verification: Verification | None,
) -> str:
    """Write the card, with the metadata that the Hub reads: https://huggingface.co/docs/hub/model-cards"""
    family = family_for(architecture, target)
    is_classifier = "ForImageClassification" in family.class_name(architecture)
    task = "image-classification" if is_classifier else "image-feature-extraction"
    sections = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\n"
        f"tags:\n- vision\n- {family.name}\n- timm\n- vitconv\n---",
        f"# {timm_name or 'A timm Vision Transformer'}, as {family.class_name(architecture)}",
        f"Converted from the timm weights `{source}` by vitconv {__version__}.",
        _loading(family, architecture),
        _preprocessing(data, warnings),
        _classes(labels),
        _changes(made),
        _proof(verification),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _loading(family: Family, architecture: Architecture) -> str:
    name, answer = family.class_name(architecture), family.answer(architecture)
    auto = "AutoModelForImageClassification" if name.endswith("ForImageClassification") else name
    what = "logits" if architecture.classifier else "features"
    answer = f"{what} = model(**inputs).{answer}  # what the timm model returns"
    return f"""## Load it

```python
from PIL import Image
from transformers import AutoImageProcessor, {auto}

folder = "path/to/this/folder"
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")  # timm's pixels, bit for bit
model = {auto}.from_pretrained(folder)
inputs = processor(Image.open("photo.jpg"), return_tensors="pt")
{answer}
```"""


def _preprocessing(data: DataConfig, warnings: tuple[str, ...]) -> str:
    text = (
        f"## Preprocessing\n\nImages of {data.image_size[0]} × {data.image_size[1]} pixels, {data.interpolation}, "
        f"crop {data.crop_pct:g} ({data.crop_mode}), mean {_numbers(data.mean)}, std {_numbers(data.std)}: "
        f"from {data.origin}."
    )
    return "\n\n".join([text, *warnings])


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _classes(labels: tuple[str, ...]) -> str:
    if not labels or labels[0] == "LABEL_0":
        return ""
    return (
        f"## Classes\n\n{', '.join(labels)}"
        if len(labels) <= 100
        else f"## Classes\n\n{len(labels)}: see config.json."
    )


def _changes(made: tuple[Made, ...]) -> str:
    if not made:
        return ""
    lines = [f"- {how}" for how in dict.fromkeys(record.how for record in made)]
    return "\n".join(
        ["## What was rewritten", "", "Transformers has no place for some of timm's tensors:", "", *lines]
    )


def _proof(verification: Verification | None) -> str:
    if verification is None:
        return "## Proof\n\nNot verified: the conversion was told not to (`--no-verify`)."
    account = verification.account
    lines = [
        "## Proof",
        "",
        f"Of {account.source:,} elements of the source {account.moved:,} are in this folder, {account.how},"
        + f" and {account.folded:,} were folded into others. The two models on the same pixels:",
        "",
        "| computed in | largest difference at any stage | at the end | same best class |",
        "|---|---|---|---|",
        *map(_line, verification.parity.comparisons),
        "",
        *filter(None, map(_tokens_note, verification.parity.comparisons)),
        "The figures of every stage are in `parity.json`.",
    ]
    return "\n".join(lines)


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
