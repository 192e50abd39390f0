"""The options that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitconv.cli.output import log_to_stderr
from vitconv.mapping import HEADS, TARGETS, HeadName
from vitconv.models.catalogue import entries
from vitconv.models.processors import PROCESSORS, ProcessorName


def one_of(names: Iterable[str], help: str) -> Any:
    """An option whose value is one of these names, which the shell completes."""
    names = tuple(names)

    def parse(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"'{value}' is not one of {', '.join(map(repr, names))}.")
        return value

    return typer.Option(
        parser=parse, metavar=f"<{'|'.join(names)}>", help=help, autocompletion=_starting(lambda: names)
    )


def _starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def complete_architecture(incomplete: str) -> list[str]:
    """The architectures that convert, for the shell."""
    return [name for name, entry in entries().items() if entry.architecture and name.startswith(incomplete)]


Architecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="The timm architecture, such as vit_base_patch16_384; not needed where the checkpoint names it.",
        autocompletion=complete_architecture,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="The family of Transformers models, such as dinov2, instead of the plainest that computes the same; or "
        "timm_wrapper, for any model: timm inside Transformers.",
        autocompletion=_starting(lambda: TARGETS),
    ),
]
Head = Annotated[
    HeadName,
    one_of(
        HEADS,
        "Where Transformers has the vision model but no classifier that pools as timm does: `code` adds the head in a "
        "file of code, which Transformers runs with trust_remote_code=True.",
    ),
]
ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--img-size",
        metavar="H W",
        help="Height and width in pixels: where the weights leave them open, or to resample `pos_embed`.",
    ),
]
DataConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="JSON with mean, std, interpolation, crop_pct or crop_mode, if not those of timm's tag."
    ),
]
NoEMA = Annotated[
    bool, typer.Option("--no-ema", help="Take the trained weights, where the checkpoint also holds their EMA.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Do not believe what the checkpoint says of NAME: architecture, mean…; may be given several times.",
    ),
]
Headless = Annotated[
    bool,
    typer.Option(
        "--headless", help="Take the model without a head; whatever looks like one is left out, and named in a note."
    ),
]
Source = Annotated[
    Path,
    typer.Argument(metavar="SRC", help="The timm weights: hf-hub:org/name, a file, or a folder with config.json."),
]

Classifier = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A folder with a classification head, converted or optimised.")
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda…")]
PROCESSOR_HELP = "What makes the pixels: MODEL's preprocessor_config.json, or its timm_processor.json."
Processor = Annotated[ProcessorName, one_of(PROCESSORS, PROCESSOR_HELP)]

Image = Annotated[Path | None, typer.Option(metavar="FILE", help="The image to verify on, instead of a built-in one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only warnings, errors and a line on the result.")]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Say what is read from where.", callback=log_to_stderr, expose_value=False),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Write without running the two models.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder named DST.")]
