"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from vitconv import __version__
from vitconv.cli import (
    benchmark,
    calibrate,
    convert,
    models,
    optimize,
    predict,
    registry,
    serve,
    triton,
    verify,
    worker,
)
from vitconv.cli.help import Command, Group

app = typer.Typer(
    name="vitconv",
    cls=Group,
    help="Turn timm Vision Transformer checkpoints into Transformers models that compute the same numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes take a third of a terminal's width
    context_settings={"help_option_names": ["-h", "--help"]},
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


# Each with what the list of the commands says of it, in a line of 80 columns.
for _command, _short in (
    (convert.convert, "Convert timm weights to a Transformers folder, and prove it."),
    (convert.inspect, "Show what a conversion would do, and write nothing."),
    (verify.verify, "Prove a Transformers folder against its timm weights."),
    (convert.revert, "Convert a Transformers folder back to timm, and prove it."),
    (models.models, "List what each of timm's Vision Transformers becomes."),
    (predict.predict, "Predict the class of every image in a list or folder."),
    (predict.evaluate, "Run a model over images, compare it, and write a report."),
    (optimize.optimize, "Make a faster folder, with the proof of what it changed."),
    (benchmark.benchmark, "Measure how fast models are beside each other."),
    (calibrate.calibrate, "Find out how certain a model's answers are."),
    (registry.register, "Put a model into MLflow's registry."),
    (registry.fetch, "Load a model back from MLflow's registry."),
    (serve.serve, "Answer images over HTTP."),
    (worker.worker, "Answer the images of a queue: Kafka or Pub/Sub."),
    (triton.triton, "Write a model repository for NVIDIA Triton."),
    (predict.report, "Write the report of an evaluation again."),
):
    app.command(cls=Command, short_help=_short)(_command)
