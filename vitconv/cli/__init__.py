"""The command line: it reads the arguments, calls a function of the library, and prints the result.

Exit codes: 0 done; 1 refused or failed, with one ``error: …`` line on stderr and one on what to do; 2 wrong usage;
130 interrupted with Ctrl-C; 143 ended with SIGTERM.
"""

from __future__ import annotations

from typing import Annotated

import typer

from vitconv import __version__
from vitconv.cli import convert, models, predict, process, verify

app = typer.Typer(
    name="vitconv",
    help="Turn timm Vision Transformer checkpoints into Transformers models that compute the same numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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


for _command in (
    convert.convert,
    convert.inspect,
    verify.verify,
    convert.revert,
    models.models,
    predict.predict,
    predict.report,
):
    app.command()(_command)


def run(command: typer.Typer = app) -> None:
    """Run a command as a process of its own; ``vitconv`` is the default."""
    process.run_process(command)
