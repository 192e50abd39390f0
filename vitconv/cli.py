"""The command line: words in, a verb of :mod:`vitconv.convert` called, words out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vitconv import __version__
from vitconv.errors import VitconvError
from vitconv.mapping import class_name
from vitconv.plan import collapse

if TYPE_CHECKING:
    from vitconv.architecture import Architecture
    from vitconv.convert import Conversion, Inspection
    from vitconv.simplify import Made

app = typer.Typer(
    name="vitconv",
    help="Turn timm Vision Transformer checkpoints into Transformers models that compute the same numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Arch = Annotated[
    str | None, typer.Option("--arch", metavar="NAME", help="The timm architecture, such as vit_base_patch16_384.")
]
ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option("--img-size", metavar="H W", help="Height and width in pixels, where the weights leave them open."),
]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="The file of timm weights: .pth or .safetensors.")]


class Dtype(str, Enum):
    """What ``--dtype`` takes."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float64 = "float64"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitconv {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn timm Vision Transformer checkpoints into Transformers models that compute the same numbers."""


@app.command()
def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The Transformers folder to write.")],
    arch: Arch = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names: one per line, or JSON.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image to verify on, instead of a built-in one.")
    ] = None,
    img_size: ImageSize = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The dtype to store, instead of the source's.")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write without running the two models.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder named DST.")] = False,
) -> None:
    """Convert timm weights to a Transformers folder, and prove it before it appears."""
    with _errors_for_people(), _progress() as say:
        from vitconv.convert import convert_checkpoint

        done = convert_checkpoint(
            source,
            destination,
            architecture=arch,
            labels=labels,
            image=image,
            image_size=img_size,
            dtype=dtype.value if dtype else None,
            verify=not no_verify,
            overwrite=overwrite,
            say=say,
        )
    _show_conversion(done)


@app.command()
def inspect(source: Source, arch: Arch = None, img_size: ImageSize = None) -> None:
    """Show what a conversion would do, without doing it: the architecture, every move, what would be refused."""
    with _errors_for_people(), _progress() as say:
        from vitconv.convert import inspect as look

        say("Reading the checkpoint")
        found = look(source, arch, image_size=img_size)
    _show_inspection(found)


def _show_conversion(done: Conversion) -> None:
    typer.echo(f"{done.destination}: {_facts(done.architecture)}")
    for line in _made_lines(done.made):
        typer.echo(f"  {line}")
    for comparison in done.verification.parity.comparisons if done.verification else ():
        last = comparison.stages[-1]
        bits = "bit for bit equal" if comparison.same_bits else f"|Δ| ≤ {last.relative:.0e} of their scale"
        typer.echo(f"  {comparison.dtype}: {last.name} {bits}")
    if done.verification is None:
        typer.echo("  not verified (--no-verify)")
    elif done.verification.same_pixels is not None:
        same = done.verification.same_pixels
        typer.echo("  pixels: " + ("bit for bit equal" if same else "the crop begins one pixel earlier than timm's"))
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _show_inspection(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    typer.echo(_facts(found.architecture))
    for line in _made_lines(found.made):
        typer.echo(line)
    table = Table("timm", "Transformers (in files)", "shape", box=None, pad_edge=False)
    for source, target, shape in found.plan.table():
        table.add_row(*map(escape, (source, target, "x".join(map(str, shape)))))
    # Piped output is for other programs: no wrapping there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    typer.echo(
        f"{len({move.source for move in found.plan.moves})} tensors become {len(found.plan.moves)}; none is refused."
    )
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _facts(a: Architecture) -> str:
    head = f"{a.num_labels} classes" if a.classifier else "no head"
    return (
        f"{class_name(a)}, width {a.hidden_size}, {a.num_hidden_layers} blocks, {a.num_attention_heads} heads, "
        f"patch {a.patch_size[0]}x{a.patch_size[1]}, image {a.image_size[0]}x{a.image_size[1]}, "
        f"{a.num_channels} channels, {head}, {a.hidden_act}, eps {a.layer_norm_eps:g}"
    )


def _made_lines(made: tuple[Made, ...]) -> list[str]:
    """One line for each way tensors are made: how, and which."""
    by_how: dict[str, list[str]] = {}
    for tensor in made:
        by_how.setdefault(tensor.how, []).append(tensor.tensor)
    return [f"{', '.join(collapse(names))}: {how}" for how, names in by_how.items()]


@contextmanager
def _errors_for_people() -> Iterator[None]:
    """Turn our exceptions into two lines on stderr and exit code 1."""
    try:
        yield
    except VitconvError as error:
        typer.echo(f"error: {_printable(error.problem)}\n{_printable(error.remedy)}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("error: Interrupted.\nNothing was written.", err=True)
        raise typer.Exit(1) from None


def _printable(text: str) -> str:
    """Control characters in a name could command the terminal: show them escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A function that shows the current step on stderr: a spinner on a terminal, a line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("Starting") as status:
            yield lambda step: status.update(f"{step}…")
    else:
        yield lambda step: typer.echo(f"{step}…", err=True)
