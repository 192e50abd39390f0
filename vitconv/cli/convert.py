"""The commands that convert: ``convert``, ``inspect`` and ``revert``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vitconv.cli.options import (
    Architecture,
    DataConfigFile,
    Headless,
    Ignore,
    Image,
    ImageSize,
    NoEMA,
    NoVerify,
    Overwrite,
    Source,
    Target,
    complete_architecture,
    one_of,
)
from vitconv.cli.output import print_notes, print_rich, print_warnings, printable, show_steps
from vitconv.cli.process import errors_for_people, without_garbage_collection
from vitconv.convert import DTYPES
from vitconv.mapping.summary import summarise_architecture, summarise_rewrites
from vitconv.revert import DROPPABLE

if TYPE_CHECKING:
    from vitconv.mapping.rewrites import Made
    from vitconv.models.data_config import DataConfig
    from vitconv.parity.comparison import Parity


def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The Transformers folder to write.")],
    arch: Architecture = None,
    target: Target = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names: one per line, or JSON.")] = None,
    image: Image = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEMA = False,
    ignore: Ignore = None,
    headless: Headless = False,
    dtype: Annotated[str | None, one_of(DTYPES, "The dtype to store, instead of the source's.")] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The license for the model card, such as apache-2.0, if SRC states none."),
    ] = None,
    no_verify: NoVerify = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert timm weights to a Transformers folder, and prove it before it appears."""
    with errors_for_people(), without_garbage_collection(), show_steps() as on_step:
        from vitconv.convert import convert_checkpoint

        done = convert_checkpoint(
            source,
            destination,
            architecture=arch,
            target=target,
            labels=labels,
            image=image,
            image_size=img_size,
            data=data_config,
            ema=not no_ema,
            ignore=ignore or (),
            headless=headless,
            dtype=dtype,
            license=license,
            verify=not no_verify,
            overwrite=overwrite,
            on_step=on_step,
        )
    typer.echo(f"{printable(done.destination)}: {summarise_architecture(done.architecture, done.target)}")
    for line in _rewrites(done.made):
        typer.echo(f"  {line}")
    _print_parity(done.verification.parity if done.verification else None)
    if done.verification is not None:
        typer.echo(f"  pixels: {done.verification.pixels_line}")
    typer.echo(f"  {_preprocessing(done.data)}")
    print_notes(done.notes)
    print_warnings(done.warnings)


def inspect(
    source: Source,
    arch: Architecture = None,
    target: Target = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEMA = False,
    ignore: Ignore = None,
    headless: Headless = False,
) -> None:
    """Show what a conversion would do, without doing it: the architecture, every move, what would be refused."""
    from rich.table import Table

    with errors_for_people(), without_garbage_collection(), show_steps() as on_step:
        from vitconv.convert import inspect_checkpoint

        on_step("Reading the checkpoint")
        found = inspect_checkpoint(
            source,
            arch,
            target=target,
            image_size=img_size,
            data=data_config,
            ema=not no_ema,
            ignore=ignore or (),
            headless=headless,
        )
    print_notes(found.notes)
    typer.echo(summarise_architecture(found.architecture, found.target))
    typer.echo(_preprocessing(found.data))
    for line in _rewrites(found.made):
        typer.echo(line)
    table = Table("timm", "Transformers (in files)", "shape", box=None, pad_edge=False)
    for tensor, place, shape in found.plan.table():
        table.add_row(*map(escape, (tensor, place, "x".join(map(str, shape)))))
    print_rich(table)
    moves = found.plan.moves
    typer.echo(f"{len({move.source for move in moves})} tensors become {len(moves)}; none is refused.")
    print_warnings(found.warnings)


def revert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with a Transformers model.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The timm folder to write.")],
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="The timm architecture, instead of the one that SRC records or that fits with the fewest changes.",
            autocompletion=complete_architecture,
        ),
    ] = None,
    drop: Annotated[
        list[str] | None, one_of(DROPPABLE, "Leave out a part that timm does not have; may be given several times.")
    ] = None,
    image: Image = None,
    no_verify: NoVerify = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert a Transformers folder back to one that timm loads, and prove it before it appears."""
    with errors_for_people(), without_garbage_collection(), show_steps() as on_step:
        from vitconv.convert import revert_checkpoint

        done = revert_checkpoint(
            source,
            destination,
            architecture=arch,
            drop=drop or (),
            image=image,
            verify=not no_verify,
            overwrite=overwrite,
            on_step=on_step,
        )
    arguments = ", ".join(f"{name}={value!r}" for name, value in done.model_args.items())
    typer.echo(f"{printable(done.destination)}: timm's {done.timm_name}" + (f" with {arguments}" if arguments else ""))
    if done.dropped:
        typer.echo(f"  left out: {', '.join(done.dropped)}")
    _print_parity(done.parity)
    typer.echo(f'  load it with timm.create_model("local-dir:{printable(done.destination)}", pretrained=True)')
    print_notes(done.notes)


def _rewrites(made: Iterable[Made]) -> list[str]:
    """One line for each way in which tensors are made."""
    return [f"{names}: {how}" for names, how in summarise_rewrites(made)]


def _preprocessing(data: DataConfig) -> str:
    return printable(f"preprocessing: {data.values}: {data.origin}")


def _print_parity(parity: Parity | None) -> None:
    """A line for each dtype: how close the models came at the last stage."""
    for comparison in parity.comparisons if parity else ():
        last = comparison.stages[-1]
        bits = "equal bit for bit" if comparison.same_bits else f"|Δ| ≤ {last.relative:.0e} of their scale"
        part = f", with {comparison.tokens} tokens of the picture" if comparison.tokens else ""
        typer.echo(f"  {comparison.dtype}: {last.name} {bits}{part}")
    if parity is None:
        typer.echo("  not verified (--no-verify)")
