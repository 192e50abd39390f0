"""The command that makes a faster folder: ``optimize``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from vitconv.cli.options import AsJson, Overwrite, Quiet, Verbose, one_of
from vitconv.cli.output import print_done, print_json, printable, show_counted_steps
from vitconv.cli.process import attentive, end_in_order, errors_for_people
from vitconv.optimization.recipes import RECIPES

_SHARE: dict[str, Any] = {"metavar": "SHARE", "min": 0.0, "max": 1.0}


def optimize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted folder, with a classification head.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The new folder.")],
    recipe: Annotated[str, one_of(RECIPES, "What to make: docs/optimize.md has what each does and needs.")],
    images: Annotated[
        Path,
        typer.Option(
            metavar="IMAGES",
            help="What the two models are compared on, unseen in training: a CSV file, a folder, or one image.",
        ),
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="IMAGES", help="Other images, for the recipes that set the ranges of int8 by them."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the float32 model's answers here, for the next recipe; others go only with --overwrite.",
        ),
    ] = None,
    max_disagreement: Annotated[
        float,
        typer.Option(**_SHARE, help="The share of all images that may get another answer, with 95 % confidence."),
    ] = 0.01,
    max_margin: Annotated[
        float,
        typer.Option(**_SHARE, help="How far float32's first class may lead where an answer changes, in probability."),
    ] = 0.2,
    min_cosine: Annotated[
        float, typer.Option(**_SHARE, help="The smallest cosine of the two models' logits, of any image.")
    ] = 0.99,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the models take at once.")] = 8,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a faster folder, which appears only if its answers are near enough to float32's."""
    with errors_for_people(as_json=as_json), show_counted_steps(quiet) as (on_step, on_progress):
        from vitconv.optimization import Limits, optimize

        end_in_order()
        done = optimize(
            model,
            destination,
            recipe=recipe,
            images=images,
            calibration=calibration,
            reference=reference,
            limits=Limits(disagreement=max_disagreement, margin=max_margin, cosine=min_cosine),
            batch_size=batch_size,
            overwrite=overwrite,
            on_step=attentive(on_step),
            on_progress=attentive(on_progress),
        )
    if as_json:
        print_json(done.to_dict())
        return
    print_done(
        f"{printable(destination)}: {done.recipe.name}, judged on {done.figures.images:,} images",
        [done.sentence(), *done.notes],
        [f"vitconv predict {shlex.quote(str(destination))} IMAGES"],
    )
