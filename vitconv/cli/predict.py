"""The commands that use a converted folder: ``predict``, ``evaluate`` and ``report``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.markup import escape

from vitconv.cli.options import (
    PROCESSOR_HELP,
    Architecture,
    AsJson,
    DataConfigFile,
    Device,
    Ignore,
    Processor,
    Quiet,
    Verbose,
    one_of,
)
from vitconv.cli.output import (
    print_json,
    print_notes,
    print_rich,
    print_text,
    print_warnings,
    printable,
    show_count,
    show_counted_steps,
)
from vitconv.cli.process import attentive, end_in_order, errors_for_people
from vitconv.errors import VitconvError
from vitconv.evaluation import LABELS_FROM, LabelsFrom
from vitconv.inference import ENGINES, EngineName
from vitconv.models.processors import PROCESSORS, ProcessorName

_IMAGES = "A CSV file with a column `path`, relative to the file's folder; a folder of images; or one image."
_KEPT = "What has been written is kept: run it again to go on."

MaxErrors = Annotated[
    int, typer.Option(metavar="N", min=0, help="How many images may be missing or broken before it is an error.")
]


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted folder, with a classification head.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help=_IMAGES)],
    destination: Annotated[
        Path | None,
        typer.Argument(
            metavar="DST", help="The folder for the predictions in Parquet; without one, they are printed."
        ),
    ] = None,
    engine: Annotated[
        EngineName, one_of(ENGINES, "Run on this machine, or as a Ray Data pipeline on many: docs/scale.md.")
    ] = "local",
    processor: Processor = "transformers",
    batch_size: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Images that the model takes at once; 1 GiB of pixels at most."),
    ] = 8,
    device: Device = "auto",
    max_errors: MaxErrors = 0,
    check_content: Annotated[
        bool,
        typer.Option(
            "--check-content", help="Tell by the SHA-256 of each image, not its size and time, what is done."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace predictions of other weights, images or settings in DST.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Predict the class of every image in a list; a run that was cut off goes on where it stopped."""

    folders = [destination] if destination else []
    with errors_for_people(lambda: _what_is_kept(folders), as_json=as_json), ExitStack() as stack:
        from vitconv.inference import predict

        end_in_order()
        folder = destination or Path(stack.enter_context(TemporaryDirectory()))
        with show_count("Predicting", quiet) as on_progress:
            done = predict(
                model,
                images,
                folder,
                engine=engine,
                processor=processor,
                batch_size=batch_size,
                device=device,
                max_errors=max_errors,
                check_content=check_content,
                overwrite=overwrite,
                on_progress=attentive(on_progress),
            )
        from vitconv.inference.answers import NOT_CALIBRATED
        from vitconv.inference.predictions import read_predictions

        rows = None if destination else read_predictions(folder).rows.to_pylist()
    if as_json:
        print_json(asdict(done) | ({"destination": str(destination)} if rows is None else {"predictions": rows}))
        return
    if rows is not None:
        _print_answers(rows, calibrated=done.reliable is not None)
        if done.reliable is None:
            print_notes((NOT_CALIBRATED,), quiet=quiet)
        return
    found = f", {done.found:,} of them by an earlier run" if done.found else ""
    typer.echo(f"{printable(folder)}: {done.rows:,} images on {done.device}{found}; {done.errors:,} could not be read")
    if done.reliable is None:
        print_notes((NOT_CALIBRATED,), quiet=quiet)
    else:
        typer.echo(f"{done.reliable:,} of {done.rows - done.errors:,} answers are reliable")


def _what_is_kept(folders: Iterable[Path]) -> str:
    """What an interrupt leaves in folders of predictions, in a sentence."""
    from vitconv.inference.predictions import parts

    return _KEPT if any(map(parts, folders)) else "Nothing was written."


def _print_answers(rows: list[dict[str, Any]], *, calibrated: bool) -> None:
    """A line for each image: its path, class and probability; and how far they may be believed, if that is known."""
    from rich.table import Column, Table

    table = Table(
        *(Column(name, overflow="fold") for name in ("image", "class")),
        Column("probability", justify="right", no_wrap=True),
        *((Column("calibrated", justify="right", no_wrap=True), Column("reliable", overflow="fold")) * calibrated),
        box=None,
        pad_edge=False,
    )
    for row in rows:
        cells = [row["path"], row["error"]]
        if row["error"] is None:
            cells[1:] = row["class"], _percent(row["probability"])
            if calibrated:
                cells += _percent(row["calibrated_probability"]), "yes" if row["reliable"] else f"no. {row['why_not']}"
        table.add_row(*(escape(printable(text)) for text in cells))
    print_rich(table)


def _percent(probability: float) -> str:
    """A probability in percent; no rounding makes it certain."""
    return f"{probability:.1%}" if probability < 0.9995 or probability == 1 else ">99.9%"


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that `vitconv convert` has written.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help=_IMAGES)],
    source: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="The timm checkpoint: its timm model is run, too, and compared with."),
    ] = None,
    arch: Architecture = None,
    data_config: DataConfigFile = None,
    ignore: Ignore = None,
    expected: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Answers from elsewhere to compare with, instead of --source.")
    ] = None,
    labels_from: Annotated[
        LabelsFrom | None,
        one_of(
            LABELS_FROM,
            "Take the labels from the names of the subfolders, which must be classes; or take none. By default they "
            "are labels where all of them are classes.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the report.")] = Path("evaluation"),
    processor: Annotated[
        ProcessorName | None,
        one_of(PROCESSORS, f"{PROCESSOR_HELP} By default the first, unless no image could be compared with it."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the model takes at once.")] = 8,
    device: Device = "auto",
    max_errors: MaxErrors = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a converted model over images, compare it with timm and with the labels, and write a report.

    IMAGES is a CSV file with the column `path` and, where known, `label`; a folder of images, perhaps with a subfolder
    for each class; or one image. Exit code 1 if a threshold is missed.
    """
    for name, value in (("--arch", arch), ("--data-config", data_config), ("--ignore", ignore)):
        if value and source is None:
            raise typer.BadParameter("It describes the checkpoint, so it needs --source SRC.", param_hint=f"'{name}'")

    def what_is_kept() -> str:
        from vitconv.evaluation.destination import PREDICTIONS, TIMM

        return _what_is_kept([out / PREDICTIONS, out / TIMM])

    with errors_for_people(what_is_kept, as_json=as_json), show_counted_steps(quiet) as (on_step, on_progress):
        from vitconv.evaluation import evaluate_model
        from vitconv.source import SourceOptions

        end_in_order()
        done = evaluate_model(
            model,
            images,
            out,
            source=source,
            options=SourceOptions(arch, data=data_config, ignore=ignore or ()),
            expected=expected,
            labels_from=labels_from,
            processor=processor,
            batch_size=batch_size,
            device=device,
            max_errors=max_errors,
            on_step=attentive(on_step),
            on_progress=attentive(on_progress),
        )
    print_warnings(done.warnings)
    page = out / "index.html"
    missed = " ".join(str(one) for one in done.thresholds if not one.passed)
    if as_json:
        print_json(
            done.summary()
            | {"report": str(page)}
            | ({"error": missed, "remedy": f"{page} shows it."} if missed else {})
        )
    if missed:
        with errors_for_people():
            raise VitconvError(missed, f"{page} shows it.")
    if as_json:
        return
    for line in () if quiet else done.sentences():
        if line not in done.warnings:
            print_text(line)
    _print_verdict(page, done.summary())


def _print_verdict(page: Path, summary: dict[str, Any]) -> None:
    """The last line on an evaluation: where the report is, and whether it says that the model passed."""
    from vitconv.evaluation.reporting import verdict

    typer.echo(f"{printable(page)}: {verdict(summary)[1].lower()}")


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
        from vitconv.files import read_json

        end_in_order()
        missed = report(evaluation, destination, last=last, verification=verification)
        page = destination / "index.html"
        if missed:
            raise VitconvError(" ".join(missed), f"{page} shows it.")
        _print_verdict(page, read_json(evaluation / "evaluation.json"))
