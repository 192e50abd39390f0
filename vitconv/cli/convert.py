"""The commands that convert: ``convert``, ``inspect`` and ``revert``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import (
    Architecture,
    AsJson,
    DataConfigFile,
    Head,
    Headless,
    Ignore,
    Image,
    ImageSize,
    NoEMA,
    NoVerify,
    Overwrite,
    Quiet,
    Source,
    Target,
    Verbose,
    complete_architecture,
    one_of,
)
from vitconv.cli.output import print_done, print_json, print_moves, print_notes, print_warnings, show_steps
from vitconv.cli.process import errors_for_people, without_garbage_collection
from vitconv.convert import DTYPES
from vitconv.mapping import target_for
from vitconv.revert import DROPPABLE


def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The Transformers folder to write.")],
    arch: Architecture = None,
    target: Target = None,
    head: Head = "native",
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Class names: a file with one per line, or JSON; or the folder of the training images, whose "
            "subfolders are the classes.",
        ),
    ] = None,
    image: Image = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEMA = False,
    ignore: Ignore = None,
    headless: Headless = False,
    dtype: Annotated[str | None, one_of(DTYPES, "The dtype to store, instead of the source's.")] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The license for the model card, such as apache-2.0, if SRC states none."),
    ] = None,
    no_verify: NoVerify = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert timm weights to a Transformers folder, and prove it before it appears."""
    with errors_for_people(as_json=as_json), without_garbage_collection(), show_steps(quiet) as on_step:
        from vitconv.convert import convert_checkpoint

        done = convert_checkpoint(
            source,
            destination,
            architecture=arch,
            target=target_for(target, head),
            labels=labels,
            image=image,
            image_size=img_size,
            data=data_config,
            ema=not no_ema,
            ignore=ignore or (),
            headless=headless,
            dtype=dtype,
            license=license,
            verify=not no_verify,
            overwrite=overwrite,
            on_step=on_step,
        )
    print_notes(done.notes, quiet=quiet)
    print_warnings(done.warnings)
    if as_json:
        print_json(done.to_dict())
        return
    proved = "and proved" if done.verification else "but not verified (--no-verify)"
    headline = f"{done.destination}: converted {proved}"
    if quiet:
        print_done(headline)
        return
    folder, original = shlex.quote(str(destination)), shlex.quote(str(source))
    following = f"evaluate {folder} photos --source {original}" if done.labels else f"verify {original} {folder}"
    following += "".join(f" --ignore {shlex.quote(name)}" for name in ignore or ())
    then = ["load it:", *(f"  {line}" for line in done.loading_lines), "next:", f"  vitconv {following}"]
    print_done(headline, done.facts, then)


def inspect(
    source: Source,
    arch: Architecture = None,
    target: Target = None,
    head: Head = "native",
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEMA = False,
    ignore: Ignore = None,
    headless: Headless = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a conversion would do, without doing it: the architecture, every move, what would be refused."""
    with errors_for_people(as_json=as_json), without_garbage_collection(), show_steps(quiet) as on_step:
        from vitconv.convert import inspect_checkpoint

        on_step("Reading the checkpoint")
        found = inspect_checkpoint(
            source,
            arch,
            target=target_for(target, head),
            image_size=img_size,
            data=data_config,
            ema=not no_ema,
            ignore=ignore or (),
            headless=headless,
        )
    print_notes(found.notes, quiet=quiet)
    print_warnings(found.warnings)
    if as_json:
        print_json(found.to_dict())
        return
    moves = found.plan.moves
    total = f"{len({move.source for move in moves})} tensors become {len(moves)}; none is refused."
    if not quiet:
        print_moves((tensor, place, "x".join(map(str, shape))) for tensor, place, shape in found.plan.table())
    print_done(f"{source}: {total}", [] if quiet else found.facts)


def revert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with a Transformers model.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The timm folder to write.")],
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="The timm architecture, instead of the one that SRC records or that fits with the fewest changes.",
            autocompletion=complete_architecture,
        ),
    ] = None,
    drop: Annotated[
        list[str] | None, one_of(DROPPABLE, "Leave out a part that timm does not have; may be given several times.")
    ] = None,
    image: Image = None,
    no_verify: NoVerify = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a Transformers folder back to one that timm loads, and prove it before it appears."""
    with errors_for_people(as_json=as_json), without_garbage_collection(), show_steps(quiet) as on_step:
        from vitconv.convert import revert_checkpoint

        done = revert_checkpoint(
            source,
            destination,
            architecture=arch,
            drop=drop or (),
            image=image,
            verify=not no_verify,
            overwrite=overwrite,
            on_step=on_step,
        )
    print_notes(done.notes, quiet=quiet)
    if as_json:
        print_json(done.to_dict())
        return
    proved = "and proved" if done.parity else "but not verified (--no-verify)"
    headline = f"{done.destination}: converted back {proved}"
    if quiet:
        print_done(headline)
        return
    print_done(headline, done.facts, ["load it:", f"  {done.loading_line}"])
