"""The command that writes a model repository for NVIDIA Triton: ``triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import AsJson, Processor, Quiet, Verbose, one_of
from vitconv.cli.output import print_done, print_json, printable, show_steps
from vitconv.cli.process import attentive, end_in_order, errors_for_people
from vitconv.serving.triton.configuration import BACKENDS, BackendName


def triton(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted folder, with a classification head.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The new folder: the model repository.")],
    backend: Annotated[
        BackendName,
        one_of(BACKENDS, "What runs the model: vitconv, or Triton's backend for the file of an optimised folder."),
    ] = "python",
    processor: Processor = "transformers",
    device: Annotated[
        str, typer.Option(help="What the server has: cpu, cuda, or auto for what MODEL was made for, else cpu.")
    ] = "auto",
    archive: Annotated[bool, typer.Option("--zip", help="Also write DST.zip, to move it.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model repository for NVIDIA Triton: image bytes in, logits and labels out."""
    with errors_for_people(as_json=as_json), show_steps(quiet) as on_step:
        from vitconv.serving.triton.store import write_store

        end_in_order()
        done = write_store(
            model,
            destination,
            backend=backend,
            device=device,
            processor=processor,
            archive=archive,
            on_step=attentive(on_step),
        )
    if as_json:
        print_json(done.to_dict())
        return
    print_done(
        f"{printable(destination)}: a model repository for Triton's backend {done.backend}, on {done.hardware}",
        [f"The server's Python needs: {', '.join(done.requirements)}"],
        ["Its README.md has the command that serves it; docs/triton.md has the rest."],
    )
