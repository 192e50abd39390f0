"""From a converted folder and images to the report, in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitconv.errors import InputError
from vitconv.evaluation import LabelsFrom
from vitconv.evaluation.about import describe
from vitconv.evaluation.evaluation import Evaluation, evaluate
from vitconv.evaluation.plots import save_pictures
from vitconv.evaluation.reporting import PAGES, report
from vitconv.inference.batch_prediction import predict, predict_timm
from vitconv.inference.pixels import why_timm_pixels
from vitconv.inference.runtime import read_info
from vitconv.models.processors import ProcessorName
from vitconv.source import SourceOptions
from vitconv.writing.record import ConversionRecord, read_record


def evaluate_model(
    model: str | Path,
    images: str | Path,
    destination: str | Path,
    *,
    source: str | Path | None = None,
    options: SourceOptions | None = None,
    expected: str | Path | None = None,
    labels_from: LabelsFrom | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    processor: ProcessorName | None = None,
    batch_size: int = 8,
    device: str = "auto",
    max_errors: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, rows: None,
) -> Evaluation:
    """Run a converted model over images, compare its answers, and write the report.

    Args:
        model: the folder.
        images: a CSV file, a folder of images, or one image: see :func:`vitconv.inference.images.read_images`.
        destination: gets ``index.html``, ``report.md``, ``evaluation.json``, ``metrics.json``, tables and pictures,
            and the rows in ``predictions`` and ``timm``. An interrupted run continues where it stopped.
        source: the timm checkpoint: its timm model is run over the same images, with timm's own pixels.
        options: what is given beside the source; what is not, the folder's ``parity.json`` states.
        expected: answers from elsewhere, instead of ``source``: see :func:`vitconv.evaluation.evaluate`.
        labels_from, thresholds: as for :func:`vitconv.evaluation.evaluate`.
        processor: what makes the pixels, as for :func:`vitconv.inference.predict`; by default Transformers' processor,
            or timm's if there is something to compare with, and with the other no image could be compared.
        batch_size, device, max_errors, on_progress: as for :func:`vitconv.inference.predict`.
        on_step: called with what is being done, in a few words.

    Raises:
        VitconvError: what :func:`vitconv.inference.predict` and :func:`vitconv.evaluation.evaluate` raise; or both a
            source and expected answers are given.
    """
    if source is not None and expected is not None:
        raise InputError(
            "There are two things to compare with: a source and expected answers.", "Pass only one of them."
        )
    folder = Path(destination)
    for page in PAGES:  # a page of an earlier run must not be taken for this one's
        with suppress(FileNotFoundError, NotADirectoryError):
            (folder / page).unlink()
    run: dict[str, Any] = {"batch_size": batch_size, "device": device, "max_errors": max_errors, "overwrite": True}
    reason = "" if processor or (source is None and expected is None) else why_timm_pixels(Path(model))
    processor = "timm" if reason else processor or "transformers"
    on_step("Running the converted model" + (" with timm's pixels" if reason else ""))
    predict(model, images, folder / "predictions", processor=processor, on_progress=on_progress, **run)
    if source is not None:
        on_step("Running the timm model")
        expected = folder / "timm"
        run_timm(source, model, images, expected, options=options, on_progress=on_progress, **run)
    on_step("Writing the report")
    about = describe(model, images, folder / "predictions", expected)
    if reason:
        about["pixels"] = f"timm's own, with which every image can be compared. {reason}"
    evaluation = evaluate(
        folder / "predictions",
        images,
        expected=expected,
        thresholds=thresholds,
        labels_from=labels_from,
        about=about,
    )
    evaluation.save(folder, folder / "metrics.json")
    save_pictures(evaluation, folder)
    report(folder, folder)
    return evaluation


def run_timm(
    source: str | Path,
    model: str | Path,
    images: str | Path,
    destination: str | Path,
    *,
    options: SourceOptions | None = None,
    **run: Any,
) -> None:
    """Run the timm model of a checkpoint over images, for the answers that a converted model is compared with.

    Args:
        source: the checkpoint.
        model: the folder that was converted from it; it names the classes, and states what ``options`` does not.
        images: as for :func:`evaluate_model`.
        destination: the folder for the rows.
        options: what is given beside the source.
        run: what else :func:`vitconv.inference.batch_prediction.predict_timm` takes.

    Raises:
        VitconvError: what :func:`vitconv.inference.batch_prediction.predict_timm` raises.
    """
    options = _options(options or SourceOptions(), read_record(Path(model)))
    predict_timm(source, images, destination, classes=read_info(model).classes, options=options, **run)


def _options(given: SourceOptions, recorded: ConversionRecord) -> SourceOptions:
    """What is given, and for the rest what the conversion was given."""
    return replace(
        given,
        architecture=given.architecture or recorded.architecture,
        target=given.target or recorded.target,
        image_size=given.image_size or recorded.image_size,
        data=given.data or recorded.data,
        ema=given.ema and recorded.ema,
        ignore=given.ignore or recorded.ignore,
        headless=given.headless or recorded.headless,
    )
