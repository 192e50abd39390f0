"""The command ``benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vitconv.cli.options import AsJson, Device, Quiet
from vitconv.cli.output import print_json, print_notes, print_rich, printable, show_counted_steps
from vitconv.cli.process import attentive, end_in_order, errors_for_people

if TYPE_CHECKING:
    from rich.table import Table

    from vitconv.optimization.benchmark import Table as Rows


#: The columns that are no numbers.
_WORDS = ("model", "runtime", "device")


def benchmark(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL", help="Folders with a classification head; the others are compared with the first."
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            metavar="IMAGES",
            help="Images to measure on: a CSV file with a column `path`, a folder, or one image. Four are taken.",
        ),
    ],
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="How often each model has its turn.")
    ] = 10,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast models are beside each other, what memory they take, and how large they are.

    Each model runs in a process of its own, and they take turns. Give the float32 model first: the others are compared
    with it.
    """
    with errors_for_people(as_json=as_json), show_counted_steps(quiet) as (on_step, on_progress):
        from vitconv.optimization import benchmark_models

        end_in_order()
        done = benchmark_models(
            models,
            images,
            rounds=rounds,
            device=device,
            on_step=attentive(on_step),
            on_progress=attentive(on_progress),
        )
    print_notes(done.notes, quiet=quiet)
    if as_json:
        print_json(done.to_json())
        return
    if not quiet:
        for rows in (done.speed, done.costs):
            print_rich(as_table(rows))
            typer.echo()
        for fact in done.facts:
            typer.echo(printable(fact))
    typer.echo(printable(done.conclusion))


def as_table(rows: Rows) -> Table:
    """Rows of text as a table that fits 80 columns: a long name takes several lines, a number is never broken."""
    from rich.table import Column, Table

    headings, cells = rows
    columns = [
        Column(
            heading if "\n" in heading else f"\n{heading}",
            justify="left" if heading in _WORDS else "right",
            overflow="fold",
            no_wrap=heading not in _WORDS,
        )
        for heading in headings
    ]
    table = Table(*columns, box=None, pad_edge=False)
    for row in cells:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table
