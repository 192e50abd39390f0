"""From a converted folder and images to the report, in one step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitconv.checkpoints.checkpoint import HUB_PREFIX
from vitconv.convert import Origin, open_origin
from vitconv.errors import DestinationError, InputError, ParityError, shown
from vitconv.evaluation import LabelsFrom
from vitconv.evaluation.about import describe
from vitconv.evaluation.destination import PREDICTIONS, TIMM, check_report_folder, report_folder
from vitconv.evaluation.evaluation import Evaluation, evaluate
from vitconv.evaluation.outcomes import check_answers, prepared_by
from vitconv.evaluation.plots import save_pictures
from vitconv.evaluation.reporting import report
from vitconv.evaluation.thresholds import default_thresholds
from vitconv.inference.batch_prediction import predict, predict_timm
from vitconv.inference.pixels import why_timm_pixels
from vitconv.inference.predictions import read_predictions
from vitconv.inference.runtime import read_info
from vitconv.models.processors import ProcessorName
from vitconv.source import SourceOptions


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
            and the rows in ``predictions`` and ``timm``. It is a new or empty folder, or that of an earlier report,
            which is replaced. An interrupted run continues where it stopped.
        source: the timm checkpoint: its timm model is run over the same images, with timm's own pixels.
        options: what is given beside the source; what is not, the folder's ``parity.json`` states. What was ignored
            at the conversion must be repeated.
        expected: answers from elsewhere, instead of ``source``: see :func:`vitconv.evaluation.evaluate`.
        labels_from, thresholds: as for :func:`vitconv.evaluation.evaluate`; without thresholds, an optimised folder is
            judged by the limits that it was made with.
        processor: what makes the pixels, as for :func:`vitconv.inference.predict`; by default Transformers' processor,
            or timm's if there is something to compare with, and with the other no image could be compared.
        batch_size, device, max_errors, on_progress: as for :func:`vitconv.inference.predict`.
        on_step: called with what is being done, in a few words.

    Raises:
        VitconvError: what :func:`vitconv.inference.predict`, :func:`run_timm` and
            :func:`vitconv.evaluation.evaluate` raise; or both a source and expected answers are given.
        DestinationError: the destination holds anything else or what is read, lies in the folder of the images, or
            another evaluation is writing to it.
    """
    if source is not None and expected is not None:
        raise InputError(
            "There are two things to compare with: a source and expected answers.", "Pass only one of them."
        )
    folder, options = Path(destination), options or SourceOptions()
    check_report_folder(folder, images, _inputs(model, source, expected, options))
    classes = read_info(model).classes
    # Whatever is wrong with the inputs is said before anything is replaced.
    check_answers(images, expected, classes, labels_from)
    origin = None if source is None else _open_origin(source, model, classes, options)
    compares = source is not None or expected is not None
    reason = ""
    if compares and not processor and (expected is None or prepared_by(expected) == "timm"):
        reason = why_timm_pixels(Path(model))
    processor = "timm" if reason else processor or "transformers"
    run: dict[str, Any] = {"batch_size": batch_size, "device": device, "max_errors": max_errors, "overwrite": True}
    run["on_progress"] = on_progress
    with report_folder(folder):
        on_step("Running the converted model" + (" with timm's pixels" if reason else ""))
        runs = {PREDICTIONS: predict(model, images, folder / PREDICTIONS, processor=processor, judge=False, **run).run}
        if source is not None and origin is not None:
            on_step("Running the timm model")
            expected = folder / TIMM
            runs[TIMM] = predict_timm(
                source, images, expected, classes=classes, options=origin.opened.options, **run
            ).run
        on_step("Writing the report")
        about = describe(model, images, folder / PREDICTIONS, expected)
        if reason:
            about["pixels"] = f"timm's own, with which every image can be compared. {reason}"
        evaluation = evaluate(
            folder / PREDICTIONS,
            images,
            expected=expected,
            thresholds=thresholds,
            defaults=default_thresholds(model),
            labels_from=labels_from,
            about=about,
            warnings=_caveats(origin) if origin else (),
        )
        for name, fingerprint in runs.items():
            _check_run(folder / name, fingerprint)
        evaluation.save(folder, folder / "metrics.json")
        save_pictures(evaluation, folder)
        report(folder, folder)
    return evaluation


def _inputs(
    model: str | Path, source: str | Path | None, expected: str | Path | None, options: SourceOptions
) -> list[str | Path]:
    """The files and folders that are read, besides the images."""
    local = None if source is None or HUB_PREFIX.match(str(source)) else source
    data = options.data if isinstance(options.data, (str, os.PathLike)) else None
    return [model, *(Path(path) for path in (local, expected, data) if path is not None)]


def _check_run(folder: Path, fingerprint: str) -> None:
    """Raise :class:`DestinationError` if the rows in a folder are of another run than the one that was judged.

    The report's folder is locked against other evaluations, but not against `vitconv predict`.
    """
    if read_predictions(folder).run.fingerprint != fingerprint:
        raise DestinationError(
            f"Another run has written '{folder}' meanwhile.", "Run it again when nothing else writes to the folder."
        )


def run_timm(
    source: str | Path,
    model: str | Path,
    images: str | Path,
    destination: str | Path,
    *,
    options: SourceOptions | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    **run: Any,
) -> tuple[str, ...]:
    """Run the timm model of a checkpoint over images, for the answers that a converted model is compared with.

    Args:
        source: the checkpoint.
        model: the folder that was converted from it; it names the classes, and states what ``options`` does not.
        images: as for :func:`evaluate_model`.
        destination: the folder for the rows.
        options: what is given beside the source. What was ignored at the conversion must be repeated.
        labels: the class names of the folder, or a file of them, where the checkpoint states other ones.
        run: what else :func:`vitconv.inference.batch_prediction.predict_timm` takes.

    Returns:
        sentences on what only the folder's record states.

    Raises:
        ParityError: the folder has other class names than the checkpoint, or its record contradicts it.
        VitconvError: what :func:`vitconv.inference.batch_prediction.predict_timm` raises.
    """
    classes = read_info(model).classes
    origin = _open_origin(source, model, classes, options or SourceOptions(), labels)
    predict_timm(source, images, destination, classes=classes, options=origin.opened.options, **run)
    return _caveats(origin)


def _caveats(origin: Origin) -> tuple[str, ...]:
    """What only the folder's record states, in sentences; but for the class names, which name both models' answers."""
    return tuple(f"{what}." for what, remedy in origin.unproved if "--labels" not in remedy)


def _open_origin(
    source: str | Path,
    model: str | Path,
    classes: tuple[str, ...],
    options: SourceOptions,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
) -> Origin:
    """Open the checkpoint as the folder was converted from it, and compare the names of the classes.

    Raises:
        ParityError: they differ, so that the answers of the two models cannot be compared by their names.
    """
    try:
        origin = open_origin(
            source,
            Path(model),
            architecture=options.architecture,
            labels=labels,
            image_size=options.image_size,
            data=options.data,
            ema=None if options.ema else False,
            ignore=options.ignore or None,
            headless=options.headless or None,
        )
    except ParityError as error:
        if error.stage != "labels":
            raise
        raise ParityError(error.problem, _NAMES, stage="labels") from None
    differing = [pair for pair in zip(classes, origin.labels or classes, strict=False) if pair[0] != pair[1]]
    if differing:
        one, other = map(shown, differing[0])
        stated = (
            "labels given name" if labels else "checkpoint names" if origin.opened.labels() else "parity.json names"
        )
        raise ParityError(
            f"The config.json in '{model}' names a class {one} that the {stated} {other}.", _NAMES, stage="labels"
        )
    return origin


_NAMES = (
    "Convert the checkpoint again. If its own names are wrong, pass --ignore label_names, or --ignore class_map if it "
    "states them there."
)
