"""Predict the classes of a list of images with a converted folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa

import vitconv
from vitconv.errors import CheckpointError, InputError, VitconvError, shown
from vitconv.files import sha256
from vitconv.inference import EngineName
from vitconv.inference.images import Batches, BatchOutput, read_images
from vitconv.inference.local import LocalEngine
from vitconv.inference.pixels import Preprocessor, open_preprocessor
from vitconv.inference.predictions import Parts, Run, make_rows
from vitconv.inference.ray import RayEngine
from vitconv.inference.runtime import ModelInfo, Runtime, opener, read_info
from vitconv.inference.timm import TimmRuntime, read_timm_info
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
    """

    rows: int
    errors: int
    found: int
    device: str
    run: str


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
        on_progress: called with the number of images done, of unreadable ones among them, and of images in the list.

    Raises:
        CheckpointError, ParityError: the folder was not written by vitconv, lacks weights, or changes during the run.
        InputError: the list or an argument is invalid, the model has no classes, the folder lacks the processor, timm
            is needed but not installed, or too many images cannot be read.
        DestinationError: the destination holds something else, or cannot be written.
    """
    if engine not in _ENGINES:
        raise InputError(f"There is no engine '{engine}'.", f"Choose one of {', '.join(_ENGINES)}.")
    folder = Path(model).resolve()
    watch = _Watch(folder, folder.iterdir)  # before anything in it is read
    _check_positive(batch_size)
    info = read_info(folder)
    _check_batch(batch_size, info)
    opened = _Opened(info, open_preprocessor(info, processor), opener(info), watch)
    runner = _ENGINES[engine](device)
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
    _check_positive(batch_size)
    options = options or SourceOptions()
    found = identify(source, options)
    watch = _Watch(source, lambda: found.source.files)
    digests = [sha256(file) for file in found.source.files]
    info, preprocessor = read_timm_info(source, found, classes, digests)
    _check_batch(batch_size, info)
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
    """

    info: ModelInfo
    preprocessor: Preprocessor
    open_runtime: Callable[[str], Runtime]
    watch: _Watch
    settings: Mapping[str, object] = field(default_factory=dict)


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
    info = model.info
    batches = Batches(read_images(images), batch_size, model.preprocessor)
    settings = _settings(info, model.preprocessor, batch_size, runner.device)
    settings |= {"check_content": check_content, "folder": str(batches.images.folder)}  # where relative paths start
    settings |= model.settings
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
            tables.append(_rows(output, batches, info.classes))
            count.add(tables[-1])
        rows = pa.concat_tables(tables)
        if rows["row"].to_pylist() != [row for batch in cut[number] for row in batches.rows(batch)]:
            raise VitconvError(f"The engine lost rows of part {number}, or their order.", "Report this.")
        model.watch.check()
        parts.write(number, rows, keys[number])
        count.check()
    return Summary(count.done, count.errors, found, runner.device, run.fingerprint)


def _check_positive(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(
            f"batch_size must be at least 1, got {shown(batch_size)}.", "Choose a batch size of 1 or more."
        )


class _Watch:
    """Tells whether files have changed since it was made.

    Args:
        name: what they are of, for people.
        list_files: lists them; a folder may have others later.
    """

    def __init__(self, name: str | Path, list_files: Callable[[], Iterable[Path]]) -> None:
        self._name, self._list_files = name, list_files
        self._before = self._state()

    def check(self) -> None:
        """Raise :class:`CheckpointError` if a file was written or replaced."""
        if self._state() != self._before:
            raise CheckpointError(
                f"The files in '{self._name}' have changed while the model ran.",
                "Run it again when nothing else writes to it.",
            )

    def _state(self) -> dict[str, tuple[int, int, int, int]]:
        """What changes when a file is written or replaced: device, inode, size and time, by its name."""
        found = {}
        try:
            for file in self._list_files():
                if file.is_file():
                    stat = file.stat()
                    found[file.name] = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except OSError:  # no folder, or one that is being replaced: whoever reads it says so
            return {}
        return found


def _check_batch(size: int, model: ModelInfo) -> None:
    """Raise :class:`InputError` if the pixels of a batch take too much memory.

    It has this size whatever the length of the list: the rows depend on it.
    """
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


def _rows(output: BatchOutput, batches: Batches, classes: Sequence[str]) -> pa.Table:
    rows = batches.rows(output.batch)
    return make_rows(
        rows.start, batches.images.slice(rows), output.logits[: len(rows)], output.errors, classes, output.notes
    )


class _Count:
    """Counts rows and errors, reports them, and ends the run if there are too many errors."""

    def __init__(self, total: int, max_errors: int, on_progress: Callable[[int, int, int], None]) -> None:
        self.done, self.errors = 0, 0
        self._total, self._max_errors, self._on_progress = total, max_errors, on_progress
        self._first: list[str] = []

    def add(self, rows: pa.Table) -> None:
        self.done += len(rows)
        errors = rows["error"].drop_null()
        self.errors += len(errors)
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
