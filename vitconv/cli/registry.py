"""The commands of the model registry: ``register`` and ``fetch``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import AsJson, Classifier, Overwrite, Quiet, Verbose
from vitconv.cli.output import print_done, print_json, print_notes, printable, show_counted_steps
from vitconv.cli.process import attentive, end_in_order, errors_for_people


def register(
    model: Classifier,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name in the registry; by default the folder's.")
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(metavar="ALIAS", help="What this version is to be found by; it moves here from any other."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Put a model into MLflow's registry, with its records and figures: docs/registry.md.

    MLFLOW_TRACKING_URI names the server; without it, the registry is mlflow.db and mlruns in the current folder.
    """
    with (
        errors_for_people(lambda: _INTERRUPTED, as_json=as_json),
        show_counted_steps(quiet) as (on_step, on_progress),
    ):
        from vitconv.registry import register

        end_in_order()
        done = register(model, name=name, alias=alias, on_step=attentive(on_step), on_progress=attentive(on_progress))
    if as_json:
        print_json(done.to_dict())
        return
    print_notes(done.notes, quiet=quiet)
    which = f"{done.name}@{done.alias}" if done.alias else f"{done.name}/{done.version}"
    before = "" if done.new else ", which has the same files as before"
    print_done(
        f"{printable(model)}: version {done.version} of {done.name}{before}",
        [
            f"Registry: {done.registry}",
            f"URI: {done.uri}",
            f"Run: {done.run_id}, with {len(done.metrics)} metrics",
        ],
        [f"vitconv fetch {shlex.quote(which)} DST"],
    )


_INTERRUPTED = "No version without its files is registered. Run it again to be sure that there is one."


def fetch(
    which: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="What was registered; or NAME/VERSION.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The new folder.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Load a model back from MLflow's registry, byte for byte: docs/registry.md.

    MLFLOW_TRACKING_URI names the server, as for `vitconv register`.
    """
    found = re.fullmatch(r"(?:models:/)?([^@/]+)(?:@([^@/]+)|/([0-9]{1,18}))", which)
    if not found:
        raise typer.BadParameter(f"'{which}' is no NAME@ALIAS, nor NAME/VERSION.", param_hint="'NAME@ALIAS'")
    # It may end at any moment: only the unfinished folder is open, and downloads are not waited for.
    with errors_for_people(as_json=as_json), show_counted_steps(quiet) as (on_step, on_progress):
        from vitconv.registry import fetch

        done = fetch(
            found[1],
            found[2] or int(found[3]),
            destination,
            overwrite=overwrite,
            on_step=attentive(on_step),
            on_progress=attentive(on_progress),
        )
    if as_json:
        print_json(done.to_dict())
        return
    print_done(
        f"{printable(destination)}: version {done.version} of {done.name}, {done.files} files as registered",
        [f"Registry: {done.registry}", f"Fingerprint: {done.fingerprint}"],
        [f"vitconv predict {shlex.quote(str(destination))} IMAGES"],
    )
