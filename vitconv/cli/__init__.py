"""The command line: words in, a verb of :mod:`vitconv.convert` called, words out.

Exit codes: 0 done; 1 refused or failed, with one ``error: …`` line on stderr and one on what to do; 2 wrong usage;
130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vitconv import __version__
from vitconv.errors import VitconvError
from vitconv.mapping import FAMILIES, class_name
from vitconv.mapping.plan import collapse
from vitconv.models.catalogue import entries, verdicts
from vitconv.models.preprocessing import PROCESSOR_FILE, TIMM_PROCESSOR_FILE

if TYPE_CHECKING:
    from vitconv.architecture import Architecture
    from vitconv.convert import Conversion, Inspection
    from vitconv.mapping.rewrites import Made
    from vitconv.models.preprocessing import DataConfig
    from vitconv.parity.comparison import Parity
    from vitconv.parity.verification import Verification

app = typer.Typer(
    name="vitconv",
    help="Turn timm Vision Transformer checkpoints into Transformers models that compute the same numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


#: Whether nothing is left to do when a command is done: no threads, no processes, no files.
_ends_at_once = False
#: Whether SIGTERM has come.
_told_to_end = False


def _terminate(number: int, frame: object) -> None:
    """End as at Ctrl-C, where the system asks for it (SIGTERM), as containers and batch systems do."""
    global _told_to_end
    _told_to_end = True
    raise KeyboardInterrupt


def run(command: typer.Typer = app) -> None:
    """A command as a process of its own.

    Taking down what importing torch, timm and Transformers built takes Python 1.5 s, of which nobody has anything: the
    commands that leave nothing open end without.
    """
    signal.signal(signal.SIGTERM, _terminate)  # so that what is half written is removed
    try:
        command()
    except SystemExit as end:
        if not _ends_at_once or not isinstance(end.code, (int, type(None))):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    except BaseException:  # where Transformers imports its modules, it makes an error of its own of the signal's
        if not _told_to_end:
            raise
        typer.echo("error: Terminated.", err=True)
        sys.exit(143)


def _complete(incomplete: str) -> list[str]:
    """The architectures that convert, for the shell."""
    return [name for name, entry in entries().items() if entry.architecture and name.startswith(incomplete)]


Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="The timm architecture, such as vit_base_patch16_384; not needed where the checkpoint names it.",
        autocompletion=_complete,
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="The family of Transformers models, such as dinov2, instead of the plainest that computes the same.",
        autocompletion=lambda incomplete: [family.name for family in FAMILIES if family.name.startswith(incomplete)],
    ),
]
ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--img-size",
        metavar="H W",
        help="Height and width in pixels: where the weights leave them open, or to resample `pos_embed`.",
    ),
]
DataConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="JSON with mean, std, interpolation, crop_pct or crop_mode, if not those of timm's tag."
    ),
]
NoEma = Annotated[
    bool, typer.Option("--no-ema", help="Take the trained weights, where the checkpoint also holds their EMA.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Do not believe what the checkpoint says of NAME: architecture, mean…; may be given several times.",
    ),
]
Headless = Annotated[
    bool,
    typer.Option(
        "--headless", help="Take the model without a head; whatever looks like one is left out, and named in a note."
    ),
]
Source = Annotated[
    Path,
    typer.Argument(metavar="SRC", help="The timm weights: a file, a folder with config.json, or hf-hub:org/name."),
]


class Engine(str, Enum):
    """What ``predict --engine`` takes."""

    local = "local"
    ray = "ray"


class Processor(str, Enum):
    """What ``predict --processor`` takes."""

    transformers = "transformers"
    timm = "timm"


class CompareDtype(str, Enum):
    """What ``verify --dtype`` takes."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    tf32 = "tf32"


class Part(str, Enum):
    """What ``revert --drop`` takes."""

    pooler = "pooler"
    mask_token = "mask_token"
    decoder = "decoder"


class Dtype(str, Enum):
    """What ``convert --dtype`` takes."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float64 = "float64"


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


@app.command()
def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The Transformers folder to write.")],
    arch: Arch = None,
    target: TargetOption = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names: one per line, or JSON.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image to verify on, instead of a built-in one.")
    ] = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEma = False,
    ignore: Ignore = None,
    headless: Headless = False,
    dtype: Annotated[Dtype | None, typer.Option(help="The dtype to store, instead of the source's.")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write without running the two models.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder named DST.")] = False,
) -> None:
    """Convert timm weights to a Transformers folder, and prove it before it appears."""
    with errors_for_people(), _progress() as say, _uncollected():
        from vitconv.convert import convert_checkpoint

        done = convert_checkpoint(
            source,
            destination,
            architecture=arch,
            target=target,
            labels=labels,
            image=image,
            image_size=img_size,
            data=data_config,
            ema=not no_ema,
            ignore=ignore or (),
            headless=headless,
            dtype=dtype.value if dtype else None,
            verify=not no_verify,
            overwrite=overwrite,
            say=say,
        )
    _show_conversion(done)


@app.command()
def inspect(
    source: Source,
    arch: Arch = None,
    target: TargetOption = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    no_ema: NoEma = False,
    ignore: Ignore = None,
    headless: Headless = False,
) -> None:
    """Show what a conversion would do, without doing it: the architecture, every move, what would be refused."""
    with errors_for_people(), _progress() as say:
        from vitconv.convert import inspect as look

        say("Reading the checkpoint")
        found = look(
            source,
            arch,
            target=target,
            image_size=img_size,
            data=data_config,
            ema=not no_ema,
            ignore=ignore or (),
            headless=headless,
        )
    _show_inspection(found)


@app.command()
def verify(
    source: Source,
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The Transformers folder that was made from it.")],
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="The timm architecture, if DST does not record it.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names that DST should have, if not those it records.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An image to verify on; may be given several times.")
    ] = None,
    img_size: ImageSize = None,
    data_config: DataConfigFile = None,
    ignore: Ignore = None,
    headless: Headless = False,
    dtype: Annotated[
        list[CompareDtype] | None,
        typer.Option(help="Compare in this dtype besides float64; may be given several times."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1…")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Prove an existing Transformers folder against the timm weights it was made from."""
    with errors_for_people(), _progress() as say, _uncollected():
        from vitconv.convert import verify_checkpoint

        found = verify_checkpoint(
            source,
            folder,
            architecture=arch,
            labels=labels,
            images=image or (),
            image_size=img_size,
            data=data_config,
            ignore=ignore,
            headless=headless or None,  # not said: as DST records it
            dtypes=[one.value for one in dtype or ()],
            device=device,
            say=say,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show_verification(found)


@app.command()
def revert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with a Transformers model.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The timm folder to write.")],
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="The timm architecture, instead of the one that SRC records or that fits with the fewest changes.",
            autocompletion=_complete,
        ),
    ] = None,
    drop: Annotated[
        list[Part] | None, typer.Option(help="Leave a part out that timm has not; may be given several times.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image to verify on, instead of a built-in one.")
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write without running the two models.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder named DST.")] = False,
) -> None:
    """Convert a Transformers folder back to one that timm loads, and prove it before it appears."""
    with errors_for_people(), _progress() as say:
        from vitconv.convert import revert_checkpoint

        done = revert_checkpoint(
            source,
            destination,
            architecture=arch,
            drop=[part.value for part in drop or ()],
            image=image,
            verify=not no_verify,
            overwrite=overwrite,
            say=say,
        )
    arguments = ", ".join(f"{name}={value!r}" for name, value in done.model_args.items())
    typer.echo(
        f"{_printable(done.destination)}: timm's {done.timm_name}" + (f" with {arguments}" if arguments else "")
    )
    if done.dropped:
        typer.echo(f"  left out: {', '.join(done.dropped)}")
    _show_figures(done.parity)
    typer.echo(f'  load it with timm.create_model("local-dir:{_printable(done.destination)}", pretrained=True)')
    for note in done.notes:
        typer.echo(f"note: {_printable(note)}", err=True)


@app.command()
def models(
    target: TargetOption = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="List those that no class of Transformers computes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """List timm's Vision Transformers: what each becomes and how exactly, or why it is refused."""
    from rich.table import Table

    with errors_for_people():
        all_verdicts = verdicts(target)
    found = [verdict for verdict in all_verdicts if (verdict.refusal is not None) == refused]
    if as_json:
        typer.echo(json.dumps([asdict(verdict) for verdict in found], indent=2))
        return
    table = Table(
        "timm", "why not" if refused else "Transformers", *([] if refused else ["exactness"]), box=None, pad_edge=False
    )
    for verdict in found:
        cells = [verdict.refusal] if refused else [verdict.class_name, verdict.exactness]
        table.add_row(verdict.name, *map(escape, cells))
    _print(table)
    what = "are refused" if refused else "convert" + (f" to '{target}'" if target else "")
    typer.echo(f"{len(found)} of timm's {len(all_verdicts)} Vision Transformers {what}.")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted folder, with a classification head.")],
    images: Annotated[
        Path, typer.Argument(metavar="CSV", help="The list of images: a column `path`, relative to the file's folder.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the predictions, in Parquet.")],
    engine: Annotated[
        Engine, typer.Option(help="Run on this machine, or as a Ray Data pipeline on many: docs/scale.md.")
    ] = Engine.local,
    processor: Annotated[
        Processor,
        typer.Option(help="What makes the pixels: MODEL's preprocessor_config.json, or its timm_processor.json."),
    ] = Processor.transformers,
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
        _counter("Predicting") as on_progress,
    ):
        from vitconv.inference import predict

        done = predict(
            model,
            images,
            destination,
            engine=engine.value,
            processor=processor.value,
            batch_size=batch_size,
            device=device,
            max_errors=max_errors,
            check_content=check_content,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    found = f", {done.found:,} of them by an earlier run" if done.found else ""
    typer.echo(
        f"{_printable(destination)}: {done.rows:,} images on {done.device}{found}; {done.errors:,} could not be read"
    )


@app.command()
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
    typer.echo(f"{_printable(page)}: passed")


def _show_verification(found: Verification) -> None:
    account = found.account
    typer.echo(
        f"bytes: of {account.source:,} elements {account.moved:,} moved {account.how}, "
        f"{account.folded:,} folded into others"
    )
    typer.echo(_pixel_line(found))
    _print(found.parity)


def _pixel_line(found: Verification) -> str:
    if found.same_pixels is None and found.same_pixels_timm_processor is None:
        return "pixels: no image processor to compare"
    if found.same_pixels:
        return "pixels: equal bit for bit"
    notes = " ".join(found.pixel_notes) if found.pixel_notes else f"no {PROCESSOR_FILE}."
    with_timm = f" With {TIMM_PROCESSOR_FILE} equal bit for bit." if found.same_pixels_timm_processor else ""
    return f"pixels: {notes}{with_timm}"


def _print(renderable: object) -> None:
    """Print something of rich's; piped output is for other programs, and is not wrapped."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(renderable)


def _show_conversion(done: Conversion) -> None:
    typer.echo(f"{_printable(done.destination)}: {_facts(done.architecture, done.target)}")
    for line in _made_lines(done.made):
        typer.echo(f"  {line}")
    _show_figures(done.verification.parity if done.verification else None)
    if done.verification is not None:
        typer.echo(f"  {_pixel_line(done.verification)}")
    typer.echo(f"  {_preprocessing(done.data)}")
    _show_notes(done)
    for warning in done.warnings:
        typer.echo(f"warning: {_printable(warning)}", err=True)


def _show_figures(parity: Parity | None) -> None:
    for comparison in parity.comparisons if parity else ():
        last = comparison.stages[-1]
        bits = "equal bit for bit" if comparison.same_bits else f"|Δ| ≤ {last.relative:.0e} of their scale"
        part = f", with {comparison.tokens} tokens of the picture" if comparison.tokens else ""
        typer.echo(f"  {comparison.dtype}: {last.name} {bits}{part}")
    if parity is None:
        typer.echo("  not verified (--no-verify)")


def _show_inspection(found: Inspection) -> None:
    from rich.table import Table

    _show_notes(found)
    typer.echo(_facts(found.architecture, found.target))
    typer.echo(_preprocessing(found.data))
    for line in _made_lines(found.made):
        typer.echo(line)
    table = Table("timm", "Transformers (in files)", "shape", box=None, pad_edge=False)
    for source, target, shape in found.plan.table():
        table.add_row(*map(escape, (source, target, "x".join(map(str, shape)))))
    _print(table)
    typer.echo(
        f"{len({move.source for move in found.plan.moves})} tensors become {len(found.plan.moves)}; none is refused."
    )
    for warning in found.warnings:
        typer.echo(f"warning: {_printable(warning)}", err=True)


def _show_notes(found: Conversion | Inspection) -> None:
    for note in found.notes:
        typer.echo(f"note: {_printable(note)}", err=True)


def _facts(a: Architecture, target: str | None) -> str:
    head = f"{a.num_labels} classes" if a.classifier else "no head"
    return (
        f"{class_name(a, target)}, width {a.hidden_size}, {a.num_hidden_layers} blocks, "
        f"{a.num_attention_heads} heads, patch {a.patch_size[0]}x{a.patch_size[1]}, "
        f"image {a.image_size[0]}x{a.image_size[1]}, "
        f"{a.num_channels} channels, {head}, {a.hidden_act}, eps {a.layer_norm_eps:g}"
    )


def _preprocessing(data: DataConfig) -> str:
    return _printable(f"preprocessing: {data.values}: {data.origin}")


def _made_lines(made: tuple[Made, ...]) -> list[str]:
    """One line for each way tensors are made: how, and which."""
    by_how: dict[str, list[str]] = {}
    for tensor in made:
        by_how.setdefault(tensor.how, []).append(tensor.tensor)
    return [f"{', '.join(collapse(names))}: {how}" for how, names in by_how.items()]


@contextmanager
def errors_for_people(interrupted: Callable[[], str] = lambda: "Nothing was written.") -> Iterator[None]:
    """Turn our exceptions into two lines on stderr and exit code 1.

    An interrupt (Ctrl-C) becomes 130 and being asked to end (SIGTERM) 143, as in shells.

    Args:
        interrupted: gives a sentence on what an interrupt leaves behind.
    """
    try:
        yield
    except (VitconvError, KeyboardInterrupt) as error:
        if isinstance(error, VitconvError) and not _told_to_end:
            typer.echo(f"error: {_printable(error.problem)}\n{_printable(error.remedy)}", err=True)
            raise typer.Exit(1) from None
        typer.echo(f"error: {'Terminated' if _told_to_end else 'Interrupted'}.\n{interrupted()}", err=True)
        raise typer.Exit(143 if _told_to_end else 130) from None
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):  # which may meet any line that imports something
            raise
        typer.echo(f"error: {error.strerror}.\nRaise the limit (ulimit -n), and run it again.", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for cycles among objects.

    Importing torch, timm and Transformers makes millions of objects that stay, and searching them again and again as
    they become more takes a tenth of the imports' time.
    """
    global _ends_at_once
    enabled = gc.isenabled()
    gc.disable()
    _ends_at_once = True
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _printable(text: str | Path) -> str:
    """Control characters in a name could command the terminal, and bytes that are not UTF-8, in Python half a
    character, cannot be written: show them escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A function that shows the current step on stderr: a spinner on a terminal, a line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("Starting") as status:
            yield lambda step: status.update(f"{step}…")
    else:
        yield lambda step: typer.echo(f"{step}…", err=True)


@contextmanager
def _counter(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A function that shows on stderr how many are done, with how many errors, of how many: a bar, or now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = time.monotonic()

    def text(errors: int) -> str:
        return f"{what}, {errors:,} unreadable" if errors else what

    def now_and_then(done: int, errors: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown > 10:
            shown = time.monotonic()
            typer.echo(f"{text(errors)}: {done:,} of {total:,}…", err=True)

    if not console.is_terminal:
        yield now_and_then
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, errors, total: bar.update(task, completed=done, total=total, description=text(errors))
