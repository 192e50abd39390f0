"""The step from a folder and a list of images to predictions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa

import vitconv
from vitconv.checkpoints.checkpoint import PARITY_FILE, read_state_dict
from vitconv.errors import CheckpointError, InputError, VitconvError, shown
from vitconv.files import sha256
from vitconv.inference.images import Answer, Batches, read_images
from vitconv.inference.local import LocalEngine
from vitconv.inference.predictions import Parts, Run, make_rows
from vitconv.inference.ray import RayEngine
from vitconv.inference.runtime import Classifier, read_classifier
from vitconv.models.preprocessing import ProcessorName, load_processor

EngineName = Literal["local", "ray"]

#: About as many rows are in a file: what a run that is cut off has to do again at most.
ROWS_PER_PART = 256

#: The most bytes of the pixels of a batch, in float32: some of them are in memory at once, prepared or on their way.
MOST_BATCH = 2**30


class Engine(Protocol):
    """What runs a model over batches, on one machine or many.

    Attributes:
        device: where it computes: ``"cpu"``, ``"cuda"``…
    """

    device: str

    def run(self, model: Classifier, batches: Batches, todo: Sequence[int]) -> Iterator[Answer]:
        """The answers to the batches of these numbers, in this order."""


_ENGINES: dict[str, Callable[[str], Engine]] = {"local": LocalEngine, "ray": RayEngine}


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        rows: images in the list, and rows that are written.
        errors: of them, those that could not be read.
        found: of them, those that an earlier run had done.
        device: where the model ran.
    """

    rows: int
    errors: int
    found: int
    device: str


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
    advance: Callable[[int, int, int], None] = lambda done, errors, rows: None,
) -> Summary:
    """Predict the class of every image in a list, and write a row for each: see :data:`.predictions.SCHEMA`.

    A run that was cut off, by whatever, goes on where it stopped when it is started again with the same arguments. The
    rows do not depend on the engine, nor on which images cannot be read.

    Args:
        model: a folder that vitconv wrote, with a classification head.
        images: a CSV file: see :func:`.images.read_images`.
        destination: the folder for the Parquet files.
        engine: ``"local"``, or ``"ray"`` for a Ray Data pipeline: see docs/scale.md.
        processor: what makes the pixels: ``"transformers"`` for the folder's ``preprocessor_config.json``, ``"timm"``
            for its ``timm_processor.json``, which runs timm's own transform and needs timm.
        batch_size: images that the model takes at once; their pixels may take :data:`MOST_BATCH` bytes, which are 605
            images of 384x384.
        device: ``"auto"`` for a GPU where there is one, ``"cpu"``, ``"cuda"``…
        max_errors: how many images may be missing or broken before the run ends with an error.
        check_content: whether what an earlier run has done is told by the SHA-256 of each image, instead of its size,
            time and permissions. Both kinds are not mixed in ``destination``.
        overwrite: whether predictions of other weights, images or settings may be replaced in ``destination``.
        advance: called with the number of images done, how many of them could not be read, and the length of the list.

    Raises:
        CheckpointError, ParityError: the folder is none that vitconv wrote, or lacks weights.
        InputError: the list, or an argument, is not what it should be; the model has no classes; the folder does not
            have the processor, or timm is not installed; or too many images cannot be read.
        DestinationError: the destination holds something else, or cannot be written.
    """
    if engine not in _ENGINES:
        raise InputError(f"There is no engine '{engine}'.", f"Choose one of {', '.join(_ENGINES)}.")
    if batch_size < 1:
        raise InputError(f"A batch of {shown(batch_size)} images cannot be.", "Choose a batch size of 1 or more.")
    classifier = read_classifier(model)
    _check_batch(batch_size, classifier)
    read_state_dict(classifier.folder)  # its files are whole, before a cluster is started for them
    batches = Batches(read_images(images), batch_size, load_processor(classifier.folder, processor), classifier.shape)
    runner = _ENGINES[engine](device)
    facts = _facts(classifier, processor, batch_size, runner.device)
    facts |= {"check_content": check_content, "folder": str(batches.images.folder)}  # what relative paths start from
    run = Run(facts, classifier.classes)
    cut = _cut(len(batches), batch_size)
    parts = Parts(destination, run, len(cut), overwrite=overwrite)
    count = _Count(len(batches.images), max_errors, advance)

    keys, todo = [], []
    for number, part in enumerate(cut):
        paths = batches.images.slice(range(batches.rows(part[0]).start, batches.rows(part[-1]).stop))
        keys.append(run.key([batches.images.folder / path for path in paths]))
        rows = parts.find(number, keys[-1], paths)
        if rows is None:
            todo.append(number)
        else:
            count.add(rows)
            count.check()
    found = count.done
    answers = runner.run(classifier, batches, [batch for number in todo for batch in cut[number]])
    for number in todo:
        tables = []
        for answer in islice(answers, len(cut[number])):
            tables.append(_rows(answer, batches, classifier.classes))
            count.add(tables[-1])
        rows = pa.concat_tables(tables)
        if rows["row"].to_pylist() != [row for batch in cut[number] for row in batches.rows(batch)]:
            raise VitconvError(f"The engine '{engine}' lost rows of part {number}, or their order.", "Report this.")
        parts.write(number, rows, keys[number])
        count.check()
    return Summary(count.done, count.errors, found, runner.device)


def _check_batch(size: int, model: Classifier) -> None:
    """Raise :class:`InputError` if the pixels of a batch take too much memory.

    It has this size whatever the length of the list: the rows depend on it.
    """
    most = MOST_BATCH // (4 * math.prod(model.shape))
    if not most:
        raise InputError(
            f"The model in '{model.folder}' takes images of shape {shown(list(model.shape))}, too large for a batch.",
            "Check the sizes in its config.json.",
        )
    if size > most:
        raise InputError(
            f"A batch of {shown(size)} images takes too much memory: {most:,} images of shape "
            f"{shown(list(model.shape))} have {MOST_BATCH:,} bytes.",
            f"Choose a batch size of {most:,} or less.",
        )


def _facts(model: Classifier, processor: ProcessorName, batch_size: int, device: str) -> dict[str, object]:
    """What else the logits depend on, besides the images."""
    packages = ["torch", "transformers", "pillow", "numpy"] + (["timm", "torchvision"] if processor == "timm" else [])
    files = sorted(file for file in model.folder.iterdir() if file.suffix in (".json", ".safetensors"))
    try:
        digests = {file.name: sha256(file) for file in files if file.name != PARITY_FILE and file.is_file()}
    except OSError as error:
        raise CheckpointError(
            f"'{error.filename}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
        ) from error
    return {
        "files": digests,
        "processor": processor,
        "batch_size": batch_size,
        "device": device.partition(":")[0],
        "code": _code(),
        "versions": {name: version(name) for name in packages},
    }


def _code() -> str:
    """One SHA-256 of all of vitconv's: whatever is mended in it, nothing old is taken for new."""
    package = Path(vitconv.__file__).parent
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))).hexdigest()


def _cut(batches: int, batch_size: int) -> list[range]:
    """The batches of each part."""
    step = max(1, ROWS_PER_PART // batch_size)
    return [range(start, min(start + step, batches)) for start in range(0, batches, step)]


def _rows(answer: Answer, batches: Batches, classes: Sequence[str]) -> pa.Table:
    rows = batches.rows(answer.batch)
    return make_rows(rows.start, batches.images.slice(rows), answer.logits[: len(rows)], answer.errors, classes)


class _Count:
    """Counts rows and errors, tells of them, and ends the run at too many errors."""

    def __init__(self, total: int, max_errors: int, advance: Callable[[int, int, int], None]) -> None:
        self.done, self.errors = 0, 0
        self._total, self._max_errors, self._advance = total, max_errors, advance
        self._first: list[str] = []

    def add(self, rows: pa.Table) -> None:
        self.done += len(rows)
        errors = rows["error"].drop_null()
        self.errors += len(errors)
        self._first += errors[: 3 - len(self._first)].to_pylist()
        self._advance(self.done, self.errors, self._total)

    def check(self) -> None:
        """Raise :class:`InputError` at too many errors."""
        if self.errors > self._max_errors:
            raise InputError(
                f"{self.errors:,} of the first {self.done:,} images cannot be read; {self._max_errors:,} may. "
                f"{' '.join(self._first)}",
                "Mend them, take them off the list, or allow more; what is done is kept.",
            )
