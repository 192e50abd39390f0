"""The command that finds out how far a model's answers may be believed: ``calibrate``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import AsJson, Classifier, Device, Processor, Quiet, Verbose
from vitconv.cli.output import print_done, print_json, print_notes, printable, show_counted_steps
from vitconv.cli.process import attentive, end_in_order, errors_for_people


def calibrate(
    model: Classifier,
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Labelled images, unseen in training: a CSV file with the columns `path` and `label`, or a folder "
            "with a subfolder for each class.",
        ),
    ],
    odd: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES", help="Images of what the model is not for; by default they are made of the others."
        ),
    ] = None,
    coverage: Annotated[
        float,
        typer.Option(metavar="SHARE", help="The share of images whose prediction set is to have the true class."),
    ] = 0.9,
    processor: Processor = "transformers",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the model takes at once.")] = 8,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find out how certain a model's answers are: docs/certainty.md.

    MODEL gets a calibration.json. From then on, each answer of `predict`, `serve` and Triton says how likely it is
    right, which classes may be right, and whether the image is unlike those that the model knows.
    """
    with errors_for_people(as_json=as_json), show_counted_steps(quiet) as (on_step, on_progress):
        from vitconv.calibration import calibrate

        end_in_order()
        done = calibrate(
            model,
            images,
            odd=odd,
            coverage=coverage,
            processor=processor,
            batch_size=batch_size,
            device=device,
            on_step=attentive(on_step),
            on_progress=attentive(on_progress),
        )
    if as_json:
        print_json(done.to_dict())
        return
    print_notes(done.notes, quiet=quiet)
    print_done(
        f"{printable(model)}: calibrated, and judged on {done.figures.images:,} other images",
        done.sentences(),
        [f"vitconv predict {shlex.quote(str(model))} IMAGES"],
    )
