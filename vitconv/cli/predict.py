"""The commands that use a converted folder: ``predict`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import one_of
from vitconv.cli.output import printable, show_count
from vitconv.cli.process import errors_for_people
from vitconv.errors import VitconvError
from vitconv.inference import ENGINES, EngineName
from vitconv.models.processors import PROCESSORS, ProcessorName


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted folder, with a classification head.")],
    images: Annotated[
        Path, typer.Argument(metavar="CSV", help="The list of images: a column `path`, relative to the file's folder.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the predictions, in Parquet.")],
    engine: Annotated[
        EngineName, one_of(ENGINES, "Run on this machine, or as a Ray Data pipeline on many: docs/scale.md.")
    ] = "local",
    processor: Annotated[
        ProcessorName,
        one_of(PROCESSORS, "What makes the pixels: MODEL's preprocessor_config.json, or its timm_processor.json."),
    ] = "transformers",
    batch_size: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Images that the model takes at once; 1 GiB of pixels at most."),
    ] = 8,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda…")] = "auto",
    max_errors: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many images may be missing or broken before it is an error.")
    ] = 0,
    check_content: Annotated[
        bool,
        typer.Option(
            "--check-content", help="Tell by the SHA-256 of each image, not its size and time, what is done."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace predictions of other weights, images or settings in DST.")
    ] = False,
) -> None:
    """Predict the class of every image in a list; a run that was cut off goes on where it stopped."""

    def what_is_kept() -> str:
        from vitconv.inference.predictions import parts

        kept = "What has been written is kept: run it again to go on."
        return kept if parts(destination) else "Nothing was written."

    with (
        errors_for_people(what_is_kept),
        show_count("Predicting") as on_progress,
    ):
        from vitconv.inference import predict

        done = predict(
            model,
            images,
            destination,
            engine=engine,
            processor=processor,
            batch_size=batch_size,
            device=device,
            max_errors=max_errors,
            check_content=check_content,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    found = f", {done.found:,} of them by an earlier run" if done.found else ""
    typer.echo(
        f"{printable(destination)}: {done.rows:,} images on {done.device}{found}; {done.errors:,} could not be read"
    )


def report(
    evaluation: Annotated[Path, typer.Argument(metavar="EVALUATION", help="The folder with evaluation.json.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder for index.html and report.md.")],
    last: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The metrics of an earlier run, to say what changed.")
    ] = None,
    verification: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `vitconv verify --json` printed, to show beside it.")
    ] = None,
) -> None:
    """Write the report on an evaluation, and fail if a threshold is missed."""
    with errors_for_people():
        from vitconv.evaluation import report

        missed = report(evaluation, destination, last=last, verification=verification)
        page = destination / "index.html"
        if missed:
            raise VitconvError(" ".join(missed), f"{page} shows it.")
    typer.echo(f"{printable(page)}: passed")
