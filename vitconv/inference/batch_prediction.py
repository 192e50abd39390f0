"""Predict the classes of a list of images with a converted folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

import vitconv
from vitconv.errors import InputError, VitconvError, check_flag, shown
from vitconv.files import Watch, real_path, sha256
from vitconv.inference import EngineName
from vitconv.inference.certainty import Certainty, read_certainty
from vitconv.inference.images import Batches, BatchOutput, read_images
from vitconv.inference.local import LocalEngine
from vitconv.inference.pixels import Preprocessor, open_preprocessor
from vitconv.inference.predictions import Parts, Run, make_rows
from vitconv.inference.ray import RayEngine
from vitconv.inference.runtime import ModelInfo, Runtime, opener, read_info, wanted_device
from vitconv.inference.timm import TimmRuntime, read_timm_info
from vitconv.inference.watch import watch_model
from vitconv.models.processors import ProcessorName
from vitconv.source import SourceOptions, identify

#: The approximate number of rows in a file. An interrupted run repeats at most so many.
ROWS_PER_PART = 256

#: The maximum number of bytes of a batch's float32 pixels. Several batches are in memory at once.
MOST_BATCH = 2**30


class Engine(Protocol):
    """Runs a model over batches, on one machine or many.

    Attributes:
        device: the device that it computes on: ``"cpu"``, ``"cuda"``…
    """

    device: str

    def run(
        self, open_runtime: Callable[[str], Runtime], batches: Batches, todo: Sequence[int]
    ) -> Iterator[BatchOutput]:
        """Yield the outputs of the batches with these indices, in this order.

        Args:
            open_runtime: opens the model on a device; it can be pickled.
            batches: the list, cut into batches.
            todo: the indices of the batches.
        """


_ENGINES: dict[str, Callable[[str], Engine]] = {"local": LocalEngine, "ray": RayEngine}


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        rows: the number of images in the list, which is the number of rows.
        errors: the number of images that could not be read.
        found: the number of rows that an earlier run had written.
        device: the device that the model ran on.
        run: what made the rows, as a SHA-256: :attr:`.predictions.Run.fingerprint`.
        reliable: the number of reliable answers; ``None`` if the model is not calibrated.
    """

    rows: int
    errors: int
    found: int
    device: str
    run: str
    reliable: int | None = None


def predict(
    model: str | Path,
    images: str | Path,
    destination: str | Path,
    *,
    engine: EngineName = "local",
    processor: ProcessorName = "transformers",
    batch_size: int = 8,
    device: str = "auto",
    max_errors: int = 0,
    check_content: bool = False,
    overwrite: bool = False,
    judge: bool = True,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, rows: None,
) -> Summary:
    """Predict the class of every image, and write a row for each: see :data:`.predictions.SCHEMA`.

    An interrupted run continues where it stopped if it is started again with the same arguments. The rows do not
    depend on the engine, or on whether other images can be read.

    Args:
        model: a folder that vitconv wrote, with a classification head.
        images: a CSV file, a folder of images, or one image: see :func:`.images.read_images`.
        destination: the folder for the Parquet files.
        engine: ``"local"``, or ``"ray"`` for a Ray Data pipeline: see docs/scale.md.
        processor: what prepares the images: ``"transformers"`` for the folder's ``preprocessor_config.json``, or
            ``"timm"`` for its ``timm_processor.json``, which runs timm's own transform and needs timm.
        batch_size: the number of images in a batch. Its pixels may take up to ``MOST_BATCH`` bytes, which is 605
            images of 384x384.
        device: ``"auto"`` for a GPU if there is one, ``"cpu"``, ``"cuda"``…
        max_errors: how many images may be missing or broken before the run ends with an error.
        check_content: whether to detect changed images by their SHA-256 instead of their size, time and permissions.
            One ``destination`` cannot mix both methods.
        overwrite: whether predictions of other weights, images or settings may be replaced in ``destination``.
        judge: whether to say how far each answer may be believed, where the model is calibrated.
        on_progress: called with the number of images done, of unreadable ones among them, and of images in the list.

    Raises:
        CheckpointError, ParityError: the folder was not written by vitconv, lacks weights, changes during the run, or
            its calibration is damaged or of another model.
        InputError: the list or an argument is invalid, the model has no classes, the folder lacks the processor, timm
            is needed but not installed, or too many images cannot be read.
        DestinationError: the destination holds something else, or cannot be written.
    """
    if engine not in _ENGINES:
        raise InputError(f"There is no engine '{engine}'.", f"Choose one of {', '.join(_ENGINES)}.")
    folder = real_path(model)
    watch = watch_model(folder)  # before anything in it is read
    info = read_info(folder)
    check_batch(batch_size, info)
    certainty = read_certainty(info, processor) if judge else None
    opened = _Opened(info, open_preprocessor(info, processor), opener(info), watch, certainty=certainty)
    runner = _ENGINES[engine](wanted_device(info, device))
    return _predict(opened, images, destination, runner, batch_size, max_errors, check_content, overwrite, on_progress)


def predict_timm(
    source: str | Path,
    images: str | Path,
    destination: str | Path,
    *,
    classes: Sequence[str],
    options: SourceOptions | None = None,
    batch_size: int = 8,
    device: str = "auto",
    max_errors: int = 0,
    check_content: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, rows: None,
) -> Summary:
    """Run the timm model of a checkpoint over images, with timm's own pixels: what a conversion is compared with.

    Nothing of the converted folder is used: the architecture, the weights and the preprocessing are read from the
    checkpoint. The rows are of the same form as those of :func:`predict`, so that the two can be compared.

    Args:
        source: the checkpoint, as :func:`vitconv.convert.convert_checkpoint` takes it.
        classes: the names of its classes, in the order of the logits.
        options: what is given beside the source, as for the conversion.
        images, destination, batch_size, device, max_errors, check_content, overwrite, on_progress: as for
            :func:`predict`.

    Raises:
        VitconvError: what :func:`predict` raises, and what the conversion of this source would.
    """
    options = options or SourceOptions()
    found = identify(source, options)
    watch = found.source.watch
    digests = [sha256(file) for file in found.source.files]
    info, preprocessor = read_timm_info(source, found, classes, digests)
    check_batch(batch_size, info)
    settings = {"source": str(source), "source_sha256": digests}
    opened = _Opened(info, preprocessor, partial(TimmRuntime, info, source, options), watch, settings)
    return _predict(
        opened, images, destination, LocalEngine(device), batch_size, max_errors, check_content, overwrite, on_progress
    )


@dataclass(frozen=True)
class _Opened:
    """A model that is ready to be run over images.

    Attributes:
        info: what is known of it.
        preprocessor: makes its pixels.
        open_runtime: opens it on a device.
        watch: tells whether its files have changed since they were read.
        settings: what else is written of the run.
        certainty: how far its answers may be believed; ``None`` if that is not known, or not asked for.
    """

    info: ModelInfo
    preprocessor: Preprocessor
    open_runtime: Callable[[str], Runtime]
    watch: Watch
    settings: Mapping[str, object] = field(default_factory=dict)
    certainty: Certainty | None = None


def _predict(
    model: _Opened,
    images: str | Path,
    destination: str | Path,
    runner: Engine,
    batch_size: int,
    max_errors: int,
    check_content: bool,
    overwrite: bool,
    on_progress: Callable[[int, int, int], None],
) -> Summary:
    check_flag("overwrite", overwrite)
    if not isinstance(max_errors, int) or max_errors < 0:
        raise InputError(f"max_errors is {shown(max_errors)}.", "Write an integer that is at least 0.")
    info = model.info
    batches = Batches(read_images(images), batch_size, model.preprocessor, look=model.certainty is not None)
    settings = _settings(info, model.preprocessor, batch_size, runner.device)
    settings |= {"check_content": check_content, "folder": str(batches.images.folder)}  # where relative paths start
    settings |= {"calibration": model.certainty and model.certainty.digest, **model.settings}
    run = Run(settings, info.classes)
    cut = _cut(len(batches), batch_size)
    parts = Parts(destination, run, len(cut), overwrite=overwrite)
    count = _Count(len(batches.images), max_errors, on_progress)

    keys, todo = [], []
    for number, part in enumerate(cut):
        paths = batches.images.slice(range(batches.rows(part[0]).start, batches.rows(part[-1]).stop))
        keys.append(run.key(paths, batches.images.folder))
        rows = parts.find(number, keys[-1], paths)
        if rows is None:
            todo.append(number)
        else:
            count.add(rows)
            count.check()
    found = count.done
    outputs = runner.run(model.open_runtime, batches, [batch for number in todo for batch in cut[number]])
    if todo:
        outputs = chain([next(outputs)], outputs)  # what cannot be run leaves the parts of another run alone
    parts.remove_old()
    for number in todo:
        tables = []
        for output in islice(outputs, len(cut[number])):
            tables.append(_rows(output, batches, model))
            count.add(tables[-1])
        rows = pa.concat_tables(tables)
        if rows["row"].to_pylist() != [row for batch in cut[number] for row in batches.rows(batch)]:
            raise VitconvError(f"The engine lost rows of part {number}, or their order.", "Report this.")
        model.watch.check()
        parts.write(number, rows, keys[number])
        count.check()
    reliable = None if model.certainty is None else count.reliable
    return Summary(count.done, count.errors, found, runner.device, run.fingerprint, reliable)


def check_batch(size: int, model: ModelInfo) -> None:
    """Raise :class:`InputError` if it is no number of images, or if the pixels of a batch take too much memory.

    It has this size whatever the length of the list: the rows depend on it.
    """
    if type(size) is not int or size < 1:
        raise InputError(f"batch_size must be at least 1, got {shown(size)}.", "Choose an integer of 1 or more.")
    most = MOST_BATCH // (4 * math.prod(model.input_shape))
    if not most:
        raise InputError(
            f"The model in '{model.folder}' takes images of shape "
            f"{shown(list(model.input_shape))}, too large for a batch.",
            "Check the sizes in its config.json.",
        )
    if size > most:
        raise InputError(
            f"A batch of {shown(size)} images takes too much memory: {most:,} images of shape "
            f"{shown(list(model.input_shape))} have {MOST_BATCH:,} bytes.",
            f"Choose a batch size of {most:,} or less.",
        )


def _settings(info: ModelInfo, preprocessor: Preprocessor, batch_size: int, device: str) -> dict[str, object]:
    """The settings that affect the logits: predictions with other settings are not reused."""
    return {
        "model": info.fingerprint,
        "runtime": info.runtime,
        "runtime_settings": dict(info.settings),
        "processor": preprocessor.name,
        "batch_size": batch_size,
        "device": device.partition(":")[0],
        "code": _code(),
        "versions": {**info.versions, **preprocessor.versions},
    }


def _code() -> str:
    """The SHA-256 of vitconv's code: after any change in it, old predictions are not reused."""
    package = Path(vitconv.__file__).parent
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))).hexdigest()


def _cut(batches: int, batch_size: int) -> list[range]:
    """Split the batches into parts."""
    step = max(1, ROWS_PER_PART // batch_size)
    return [range(start, min(start + step, batches)) for start in range(0, batches, step)]


def _rows(output: BatchOutput, batches: Batches, model: _Opened) -> pa.Table:
    rows = batches.rows(output.batch)
    logits, paths = output.logits[: len(rows)], batches.images.slice(rows)
    judge = None
    if model.certainty is not None and output.appearance is not None:
        judge = partial(model.certainty.judge, appearance=output.appearance[: len(rows)])
    return make_rows(rows.start, paths, logits, output.errors, model.info.classes, output.notes, judge)


class _Count:
    """Counts rows, errors and reliable answers, reports them, and ends the run if there are too many errors."""

    def __init__(self, total: int, max_errors: int, on_progress: Callable[[int, int, int], None]) -> None:
        self.done, self.errors, self.reliable = 0, 0, 0
        self._total, self._max_errors, self._on_progress = total, max_errors, on_progress
        self._first: list[str] = []

    def add(self, rows: pa.Table) -> None:
        self.done += len(rows)
        errors = rows["error"].drop_null()
        self.errors += len(errors)
        self.reliable += pc.sum(rows["reliable"]).as_py() or 0
        self._first += errors[: 3 - len(self._first)].to_pylist()
        self._on_progress(self.done, self.errors, self._total)

    def check(self) -> None:
        """Raise :class:`InputError` if there are too many errors."""
        if self.errors > self._max_errors:
            first = "" if self.done == self._total else "the first "
            raise InputError(
                f"{self.errors:,} of {first}{self.done:,} images could not be read, and max_errors is "
                f"{self._max_errors:,}: {' '.join(self._first)}",
                "Repair them, remove them from the list, or allow more with --max-errors N.",
            )
