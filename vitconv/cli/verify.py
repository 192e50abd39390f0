"""The command that proves: ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import (
    AsJson,
    DataConfigFile,
    Headless,
    Ignore,
    ImageSize,
    NoEMA,
    Quiet,
    Source,
    Verbose,
    one_of,
)
from vitconv.cli.output import print_done, print_json, print_rich, print_warnings, show_steps
from vitconv.cli.process import errors_for_people, without_garbage_collection
from vitconv.parity.criteria import DTYPES


def verify(
    source: Source,
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The Transformers folder that was made from it.")],
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="The timm architecture, if DST does not record it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Class names of DST, as for convert, if SRC states others or none."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An image to verify on; may be given several times.")
    ] = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEMA = False,
    ignore: Ignore = None,
    headless: Headless = False,
    dtype: Annotated[
        list[str] | None,
        one_of(
            [dtype for dtype in DTYPES if dtype != "float64"],
            "Compare in this dtype besides float64; may be given several times.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1…")] = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prove an existing Transformers folder against the timm weights it was made from."""
    with errors_for_people(as_json=as_json), without_garbage_collection(), show_steps(quiet) as on_step:
        from vitconv.convert import verify_checkpoint

        found = verify_checkpoint(
            source,
            folder,
            architecture=arch,
            labels=labels,
            images=image or (),
            image_size=img_size,
            data=data_config,
            ema=False if no_ema else None,
            ignore=ignore,
            headless=headless or None,  # if not given, as DST records it
            dtypes=dtype or (),
            device=device,
            on_step=on_step,
        )
    print_warnings(found.warnings)
    if as_json:
        print_json(found.to_dict())
        return
    if not quiet:
        print_rich(found)
    print_done(f"{folder}: proved ({found.verdict})")
