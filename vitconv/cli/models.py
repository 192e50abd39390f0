"""The command that lists: ``models``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from vitconv.cli.options import AsJson, Target
from vitconv.cli.output import print_json, print_names, print_rich
from vitconv.cli.process import errors_for_people
from vitconv.mapping.wrapper import WAY_OUT
from vitconv.models.catalogue import by_refusal, entries, verdicts


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only those with such a name: a pattern such as 'vit_base*', or a part."),
    ] = None,
    target: Target = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="List those that no class of Transformers computes, by the reason.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List timm's Vision Transformers: what each becomes and how exactly, or why it is refused."""
    from rich.table import Column, Table

    with errors_for_people(as_json=as_json):
        asked = verdicts(target, name)
    found = [verdict for verdict in asked if (verdict.refusal is not None) == refused]
    if as_json:
        print_json([verdict.to_dict() for verdict in found])
        return
    if refused:
        typer.echo(f"No native class computes these. {WAY_OUT}")
        for reason, names in by_refusal(found).items():
            print_names(f"{len(names)}: {reason}", names)
    elif found:
        table = Table(
            *(Column(heading, overflow="fold") for heading in ("timm", "Transformers")),
            Column("exactness", no_wrap=True),
            Column("with 7 classes", overflow="fold"),
            box=None,
            pad_edge=False,
        )
        for verdict in found:
            own = verdict.own_head.class_name if verdict.own_head.class_name != verdict.class_name else "the same"
            own += f" ({verdict.own_head.option})" if verdict.own_head.option else ""
            table.add_row(*(escape(cell or "") for cell in (verdict.name, verdict.class_name, verdict.exactness, own)))
        print_rich(table)
    what = "are refused" if refused else "convert" + (f" to '{target}'" if target else "")
    of = f"timm's {len(entries())} Vision Transformers" if name is None else f"the {len(asked)} with such a name"
    typer.echo(f"{len(found)} of {of} {what}." + (" --refused says why not." if name and not found else ""))
