"""The command that lists: ``models``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from vitconv.cli.options import Target
from vitconv.cli.output import print_rich
from vitconv.cli.process import errors_for_people
from vitconv.models.catalogue import verdicts


def models(
    target: Target = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="List those that no class of Transformers computes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """List timm's Vision Transformers: what each becomes and how exactly, or why it is refused."""
    from rich.table import Table

    with errors_for_people():
        all_verdicts = verdicts(target)
    found = [verdict for verdict in all_verdicts if (verdict.refusal is not None) == refused]
    if as_json:
        typer.echo(json.dumps([asdict(verdict) for verdict in found], indent=2))
        return
    table = Table(
        "timm", "why not" if refused else "Transformers", *([] if refused else ["exactness"]), box=None, pad_edge=False
    )
    for verdict in found:
        cells = [verdict.refusal] if refused else [verdict.class_name, verdict.exactness]
        table.add_row(verdict.name, *(escape(cell or "") for cell in cells))
    print_rich(table)
    what = "are refused" if refused else "convert" + (f" to '{target}'" if target else "")
    typer.echo(f"{len(found)} of timm's {len(all_verdicts)} Vision Transformers {what}.")
