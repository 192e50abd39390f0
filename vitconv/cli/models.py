"""The command that lists: ``models``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitconv.cli.options import AsJson, Target
from vitconv.cli.output import print_columns, print_json, print_names, print_text
from vitconv.cli.process import errors_for_people
from vitconv.mapping.wrapper import WAY_OUT
from vitconv.models.catalogue import WITH_HEAD_CODE, Verdict, by_refusal, entries, verdicts


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
    with errors_for_people(as_json=as_json):
        asked = verdicts(target, name)
    found = [verdict for verdict in asked if (verdict.refusal is not None) == refused]
    if as_json:
        print_json([verdict.to_dict() for verdict in found])
        return
    if refused:
        also = {verdict.name for verdict in found if verdict.own_head.option == WITH_HEAD_CODE}
        print_text(
            f"No class of Transformers computes these. {WAY_OUT}"
            + (f" Those marked ({WITH_HEAD_CODE}) convert with that option." if also else "")
        )
        for reason, names in by_refusal(found).items():
            print_names(
                f"{len(names)}: {reason}", [f"{name} ({WITH_HEAD_CODE})" if name in also else name for name in names]
            )
    elif found:
        rows = [(one.name, one.class_name or "", one.exactness, _with_own_head(one)) for one in found]
        print_columns(
            ("timm", "Transformers", "exactness", "with 7 classes"),
            rows,
            lambda name, becomes, exactness, own: f"{name}\n  → {becomes}, {exactness}\n  with 7 classes: {own}",
        )
    what = "are refused" if refused else "convert" + (f" to '{target}'" if target else "")
    of = f"timm's {len(entries())} Vision Transformers" if name is None else f"the {len(asked)} with such a name"
    typer.echo(f"{len(found)} of {of} {what}." + (" --refused says why not." if name and not found else ""))


def _with_own_head(verdict: Verdict) -> str:
    own = verdict.own_head
    if own.option:
        return own.option
    return "the same" if own.class_name == verdict.class_name else own.class_name
