"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from vitconv import __version__
from vitconv.cli import convert, models, predict, verify

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
    predict.evaluate,
    predict.report,
):
    app.command()(_command)
