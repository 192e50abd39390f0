"""Predictions on disk: a folder of Parquet files, each a part of the list, each written whole or not at all.

Every file says in its metadata of which run it is part: which weights, which images, in which batches, on which
kind of device. A run that was cut off goes on behind the parts that it finds of itself, whichever engine wrote them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from vitconv.checkpoints.checkpoint import sha256_of
from vitconv.errors import DestinationError, InputError, first_few
from vitconv.files import open_file
from vitconv.models.images import MOST_BYTES
from vitconv.writing.files import new_file
from vitconv.writing.staging import unwritable

#: The columns. ``row`` is the row's number in the list of images, from 0. Of an image that could not be read,
#: ``error`` says why and the others are null; ``probability`` is the softmax, in float64, of the largest logit.
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("path", pa.string()),
        ("class", pa.string()),
        ("probability", pa.float64()),
        ("logits", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)
_PART = "part-{:08}.parquet"
_WRITTEN = re.compile(r"part-\d{8}\.parquet|\.part-\d{8}\..*")
_KEY, _RUN, _CLASSES = b"vitconv.key", b"vitconv.run", b"vitconv.classes"


@dataclass(frozen=True)
class Run:
    """What makes predictions what they are: equal runs give equal rows, to the bit.

    Attributes:
        facts: plain data: the model's and the code's SHA-256, the batch size, the kind of device, the versions…
        classes: the names of the model's classes.
    """

    facts: dict[str, Any]
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """The same for equal runs only."""
        return _fingerprint([self.facts, self.classes])

    def key(self, files: Sequence[Path]) -> str:
        """The same for equal runs on these image files as they are now only: their sizes, times and permissions.

        With the fact ``check_content``: their contents, whatever their times.
        """
        look = _content if self.facts.get("check_content") else _stat
        return _fingerprint([self.facts, self.classes, [look(file) for file in files]])


def _fingerprint(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stat(file: Path) -> tuple[str, int, int, int]:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return str(file), -1, -1, -1
    return str(file), stat.st_size, stat.st_mtime_ns, stat.st_mode


def _content(file: Path) -> tuple[str, str] | tuple[str, int, int, int]:
    """A file's SHA-256; of what is not read as an image either, what :func:`_stat` says."""
    try:
        with open_file(file) as stream:
            if 0 < os.fstat(stream.fileno()).st_size <= MOST_BYTES:
                return str(file), sha256_of(stream)
    except (OSError, ValueError):  # when the image is read, it is said
        pass
    return _stat(file)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities, in float64, of logits of shape (images, classes)."""
    from scipy.special import softmax

    return softmax(logits.astype(np.float64), axis=1)


def make_rows(
    start: int, paths: Sequence[str], logits: NDArray[np.float32], errors: Sequence[str | None], classes: Sequence[str]
) -> pa.Table:
    """The rows of consecutive images.

    Args:
        start: the first row's number.
        paths: the images, as the list has them.
        logits: (images, classes); of an image with an error, anything. Logits that are not finite are an error, too.
        errors: for each image, what is wrong with it, or ``None``.
        classes: the names of the classes.
    """
    finite = np.isfinite(logits).all(axis=1)
    errors = [
        f"The model's logits of '{path}' are not finite." if error is None and not fine else error
        for path, error, fine in zip(paths, errors, finite, strict=True)
    ]
    logits = np.where(finite[:, None], logits, 0)
    best = logits.argmax(axis=1)
    probabilities = softmax(logits)
    unreadable = np.array([error is not None for error in errors])
    columns = {
        "row": pa.array(range(start, start + len(paths)), pa.int64()),
        "path": pa.array(paths, pa.string()),
        "class": pa.array([classes[i] for i in best], pa.string(), mask=unreadable),
        "probability": pa.array(probabilities[np.arange(len(best)), best], mask=unreadable),
        "logits": pa.ListArray.from_arrays(
            np.arange(len(logits) + 1, dtype=np.int32) * logits.shape[1],
            np.ascontiguousarray(logits, np.float32).ravel(),
            mask=pa.array(unreadable),
        ),
        "error": pa.array(errors, pa.string()),
    }
    return pa.table(columns, SCHEMA)


class Parts:
    """The Parquet files of a folder while they are written.

    Args:
        folder: it is made; or of what another run left in it, the parts that this one will not write are removed.
        run: what will be written.
        count: how many parts there will be.
        overwrite: whether parts of another run may be replaced.

    Raises:
        DestinationError: it holds anything but predictions, more parts without ``overwrite``, or cannot be written.
    """

    def __init__(self, folder: str | Path, run: Run, count: int, *, overwrite: bool) -> None:
        self._folder, self._run, self._overwrite = Path(folder), run, overwrite
        names = {_PART.format(part) for part in range(count)}
        try:
            str(self._folder).encode()
        except UnicodeEncodeError as error:
            raise DestinationError(
                f"The name of '{self._folder}' is not UTF-8, which Parquet files need.",
                "Choose another destination.",
            ) from error
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            others = sorted({entry.name for entry in self._folder.iterdir()} - names)
            foreign = [name for name in others if not _WRITTEN.fullmatch(name)]
            foreign += [path.name for path in self._folder.glob("part-*") if path.exists() and not path.is_file()]
            if foreign:
                raise DestinationError(f"'{self._folder}' holds what is no prediction ({first_few(foreign)}).", _OTHER)
            if not overwrite and any(name.startswith("part-") for name in others):
                raise self._of_another_run(others[-1])
            for name in others:
                (self._folder / name).unlink()
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def find(self, part: int, key: str, paths: Sequence[str]) -> pa.Table | None:
        """The rows of a part, if it is there whole and has this key.

        One with another key is removed, so that what is there is of one run at any time.

        Args:
            part: its number.
            key: what it should have: :meth:`Run.key`.
            paths: of its images. A part of the same run on the same images, which have changed, is always replaced.

        Raises:
            DestinationError: it is of another run or list, and may not be replaced.
        """
        file = self._folder / _PART.format(part)
        try:
            table = _read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno:  # of the system's: it may be whole
                raise unwritable(self._folder, error) from error
            table = None
        except pa.ArrowException:
            table = None
        metadata = (table.schema.metadata or {}) if table is not None else {}
        if metadata.get(_KEY) == key.encode():
            return table
        same_run = metadata.get(_RUN) == self._run.fingerprint.encode()
        mine = table is None or (same_run and table["path"].to_pylist() == list(paths))
        if not mine and not self._overwrite:
            raise self._of_another_run(file.name)
        try:
            file.unlink()
        except OSError as error:
            raise unwritable(self._folder, error) from error
        return None

    def write(self, part: int, table: pa.Table, key: str) -> None:
        """Write a part, whole or not at all.

        Raises:
            DestinationError: it cannot be written.
        """
        classes = json.dumps(list(self._run.classes))
        table = table.replace_schema_metadata({_KEY: key, _RUN: self._run.fingerprint, _CLASSES: classes})
        with new_file(self._folder / _PART.format(part)) as file, file.open("wb") as stream:
            parquet.write_table(table, stream, use_dictionary=["class", "error"])  # logits hardly repeat

    def _of_another_run(self, name: str) -> DestinationError:
        return DestinationError(
            f"'{self._folder}' holds predictions of other weights, images or settings ({name}).",
            "Choose another destination, or pass --overwrite.",
        )


_OTHER = "Choose another destination, or remove it yourself."


@dataclass(frozen=True)
class Predictions:
    """Predictions read back.

    Attributes:
        rows: a table with the columns of :data:`SCHEMA`, in the order of the list.
        classes: the names of the classes, in the order of the logits.
    """

    rows: pa.Table
    classes: tuple[str, ...]

    def logits(self) -> NDArray[np.float32]:
        """Logits of shape (images, classes); NaN where an image could not be read."""
        column = self.rows["logits"].combine_chunks()
        result = np.full((len(self.rows), len(self.classes)), np.nan, np.float32)
        result[column.is_valid().to_numpy(zero_copy_only=False)] = (
            column.flatten().to_numpy().reshape(-1, len(self.classes))
        )
        return result


def parts(folder: str | Path) -> list[Path]:
    """The files that a run has written into a folder, in order; none where there is no such folder."""
    return sorted(Path(folder).glob("part-*.parquet"))


def read_predictions(folder: str | Path) -> Predictions:
    """Read what :func:`vitconv.inference.predict.predict` wrote.

    Raises:
        InputError: there is no such folder, it holds something else, or parts of several runs, or rows are missing.
    """
    files = parts(folder)
    if not files:
        raise InputError(f"There are no predictions in '{folder}'.", _PREDICT)
    try:
        tables = [_read(file) for file in files]
        metadata = [table.schema.metadata for table in tables]
        rows = pa.concat_tables(table.select(SCHEMA.names).cast(SCHEMA) for table in tables)
        runs, classes = {one[_RUN] for one in metadata}, json.loads(metadata[0][_CLASSES])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The predictions in '{folder}' cannot be read: {error}", _PREDICT) from error
    if len(runs) > 1:
        raise InputError(f"The predictions in '{folder}' are of several runs.", _PREDICT)
    if not np.array_equal(rows["row"].to_numpy(), np.arange(len(rows))):
        raise InputError(f"The predictions in '{folder}' lack rows.", _PREDICT)
    return Predictions(rows, tuple(classes))


def _read(file: Path) -> pa.Table:
    """A Parquet file, opened here: of a path, pyarrow takes ``~`` for a home, ``a:b`` for a URI, and ``a=b`` for data.

    Raises:
        OSError, pa.ArrowException: there is no such file, it is no regular one, or it is none of Parquet's.
    """
    with open_file(file) as stream:
        return parquet.read_table(stream)


_PREDICT = "Write them with `vitconv predict`; a run that was cut off goes on where it stopped."
