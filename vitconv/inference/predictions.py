"""Predictions on disk: a folder of Parquet files, each a part of the list, each written whole or not at all.

Every file says in its metadata of which run it is part: which weights, which images, in which batches, on which
kind of device. A run that was cut off goes on behind the parts that it finds of itself, whichever engine wrote them.
A seal, the SHA-256 of rows and metadata, tells a part that was edited.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from vitconv.errors import DestinationError, InputError, first_few
from vitconv.files import new_file, open_file, sha256_of, unwritable
from vitconv.inference.answers import NOT_CALIBRATED, softmax
from vitconv.models.images import MOST_BYTES

if TYPE_CHECKING:
    from vitconv.inference.certainty import Judgement

#: The columns. ``row`` is the row's number in the list of images, from 0. Of an image that could not be read,
#: ``error`` says why and the others are null; ``probability`` is the softmax, in float64, of the largest logit.
#: ``note`` says how timm is known to prepare the image differently; it is null for most images. The last four say how
#: far the answer may be believed: see :class:`.answers.Answer`; of a model that is not calibrated, only ``why_not``.
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("path", pa.string()),
        ("class", pa.string()),
        ("probability", pa.float64()),
        ("logits", pa.list_(pa.float32())),
        ("error", pa.string()),
        ("note", pa.string()),
        ("calibrated_probability", pa.float64()),
        ("prediction_set", pa.list_(pa.string())),
        ("reliable", pa.bool_()),
        ("why_not", pa.string()),
    ]
)
#: Those that are null of a model that is not calibrated.
_CALIBRATED = ("calibrated_probability", "prediction_set", "reliable")
_PART = "part-{:08}.parquet"
#: A part, or what a killed writer left: see :func:`vitconv.files.new_file`.
_WRITTEN = re.compile(r"part-\d{8}\.parquet|\.part-\d{8}\.[a-z0-9_]{8}\.vitconv-new\.parquet")
_KEY, _SETTINGS, _CLASSES, _SEAL = b"vitconv.key", b"vitconv.settings", b"vitconv.classes", b"vitconv.seal"
#: Where a file has Arrow's own description of its columns. It may name types that a library such as Ray has
#: registered, whose code pyarrow then runs. The files here have none: the types of Parquet are enough.
_ARROW = b"ARROW:schema"
#: The most bytes of a part, in the file and in memory: its rows are 256, or those of one batch.
MOST_PART = 2**30


@dataclass(frozen=True)
class Run:
    """What makes predictions what they are: equal runs give equal rows, to the bit.

    Attributes:
        settings: plain data: the model's and the code's SHA-256, the batch size, the kind of device, the versions…
        classes: the names of the model's classes.
    """

    settings: dict[str, Any]
    classes: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """The same for equal runs only."""
        return _fingerprint([self.settings, self.classes])

    def key(self, paths: Sequence[str | Path], folder: Path = Path()) -> str:
        """The same only for equal runs on the same images in the same state: their sizes, times and permissions.

        With the setting ``check_content``, the state is their contents, whatever their times.

        Args:
            paths: as they are in the list, which is how the rows have them: ``a.png`` and ``./a.png`` differ.
            folder: where relative ones start.
        """
        look = _content if self.settings.get("check_content") else _stat
        return _fingerprint([self.fingerprint, [(str(path), look(folder / path)) for path in paths]])


def _fingerprint(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stat(file: Path) -> tuple[str, int, int, int]:
    try:
        stat = file.stat()
        name = os.path.realpath(file) if file.is_symlink() else str(file)  # a link may lead elsewhere the next time
    except (OSError, ValueError):
        return str(file), -1, -1, -1
    return name, stat.st_size, stat.st_mtime_ns, stat.st_mode


def _content(file: Path) -> tuple[str, str] | tuple[str, int, int, int]:
    """A file's SHA-256; of what is not read as an image either, what :func:`_stat` says."""
    try:
        with open_file(file) as stream:
            if 0 < os.fstat(stream.fileno()).st_size <= MOST_BYTES:
                return str(file), sha256_of(stream)
    except (OSError, ValueError):  # when the image is read, it is said
        pass
    return _stat(file)


def not_finite(path: str) -> str:
    """The error of an image of which the model's logits are not finite."""
    return f"The model's logits of '{path}' are not finite."


def make_rows(
    start: int,
    paths: Sequence[str],
    logits: NDArray[np.float32],
    errors: Sequence[str | None],
    classes: Sequence[str],
    notes: Sequence[str | None] | None = None,
    judge: Callable[[NDArray[np.float32]], Judgement] | None = None,
) -> pa.Table:
    """The rows of consecutive images.

    Args:
        start: the first row's number.
        paths: the images, as the list has them.
        logits: (images, classes); of an image with an error, anything. Logits that are not finite are an error, too.
        errors: for each image, what is wrong with it, or ``None``.
        classes: the names of the classes.
        notes: for each image, how timm is known to prepare it differently, or ``None``; by default of no image.
        judge: says of logits how far the answers may be believed; ``None`` if the model is not calibrated.
    """
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
    errors = [
        not_finite(path) if error is None and not fine else error
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
        "note": pa.array(notes or [None] * len(paths), pa.string()),
        **_judged(logits, best, unreadable, classes, judge),
    }
    return pa.table(columns, SCHEMA)


def _judged(
    logits: NDArray[np.float32],
    best: NDArray[np.int64],
    unreadable: NDArray[np.bool_],
    classes: Sequence[str],
    judge: Callable[[NDArray[np.float32]], Judgement] | None,
) -> dict[str, pa.Array]:
    """The columns that say how far each answer may be believed."""
    count = len(logits)
    if judge is None:
        columns = {name: pa.nulls(count, SCHEMA.field(name).type) for name in _CALIBRATED}
        return columns | {"why_not": pa.array([NOT_CALIBRATED] * count, pa.string(), mask=unreadable)}
    judged = judge(logits)
    readable = [None if lost else image for image, lost in enumerate(unreadable)]
    sets = [None if image is None else judged.names(image, classes) for image in readable]
    reasons = [None if image is None else judged.why_not(image, classes) for image in readable]
    return {
        "calibrated_probability": pa.array(judged.probabilities[np.arange(count), best], mask=unreadable),
        "prediction_set": pa.array(sets, pa.list_(pa.string())),
        "reliable": pa.array(judged.reliable, mask=unreadable),
        "why_not": pa.array(reasons, pa.string()),
    }


class Parts:
    """The Parquet files of a folder while they are written.

    Args:
        folder: it is made; of what another run left in it, :meth:`remove_old` removes what this one will not write.
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
            unsupported = [name for name in others if not _WRITTEN.fullmatch(name)]
            unsupported += [path.name for path in self._folder.glob("part-*") if path.exists() and not path.is_file()]
            if unsupported:
                raise DestinationError(
                    f"'{self._folder}' holds other files than predictions ({first_few(unsupported)}).", _OTHER
                )
            if not overwrite and any(name.startswith("part-") for name in others):
                raise self._of_another_run(others[-1])
            self._old = {self._folder / name: _stat(self._folder / name) for name in others}
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def find(self, part: int, key: str, paths: Sequence[str]) -> pa.Table | None:
        """The rows of a part, if it is there whole and has this key.

        One with another key goes with :meth:`remove_old`, before the first part is written.

        Args:
            part: its number.
            key: what it should have: :meth:`Run.key`.
            paths: of its images. A part of the same run on the same images, which have changed, is always replaced.

        Raises:
            DestinationError: it is of another run or list, and may not be replaced.
        """
        file = self._folder / _PART.format(part)
        with self._locked():
            try:
                found = _read(file)
            except FileNotFoundError:
                return None
            except _NoPartError as error:
                if not self._overwrite:
                    raise DestinationError(f"'{file}' {error}.", "Delete it, or pass --overwrite.") from error
                found = None
            except OSError as error:
                if error.errno:  # of the system's: it may be whole
                    raise unwritable(self._folder, error) from error
                self._check_may_replace(file, error)
                found = None
            except pa.ArrowException as error:
                self._check_may_replace(file, error)
                found = None
            if found is not None and found.key == key:
                return found.rows
            if found is not None and not self._is_mine(found, paths) and not self._overwrite:
                raise self._of_another_run(file.name)
            self._old[file] = _stat(file)
        return None

    def remove_old(self) -> None:
        """Remove the parts that :meth:`find` did not take, and those of another run.

        Raises:
            DestinationError: they cannot be removed.
        """
        with self._locked():
            for file, stat in self._old.items():
                try:
                    if _stat(file) == stat:  # else another process has written it meanwhile
                        file.unlink(missing_ok=True)
                except OSError as error:
                    raise unwritable(self._folder, error) from error
        self._old = {}

    def _check_may_replace(self, file: Path, error: Exception) -> None:
        """Raise :class:`DestinationError` unless it may be replaced: parts are written whole, so it is not one."""
        if not self._overwrite:
            raise DestinationError(f"'{file}' is not a Parquet file.", "Delete it, or pass --overwrite.") from error

    def write(self, part: int, table: pa.Table, key: str) -> None:
        """Write a part, whole or not at all.

        Raises:
            DestinationError: it cannot be written, or another run has written it since :meth:`find` looked for it.
        """
        # Without a colon, which only names have here, these do not look like what is refused in a file.
        classes = json.dumps(list(self._run.classes)).replace(":", "\\u003a")
        settings = json.dumps(json.dumps(self._run.settings)).replace(":", "\\u003a")
        metadata = {_KEY: key.encode(), _SETTINGS: settings.encode(), _CLASSES: classes.encode()}
        target = self._folder / _PART.format(part)
        with self._locked(), new_file(target) as file:
            # Logits hardly repeat. Statistics would put paths where _ARROW is looked for.
            options = {"use_dictionary": _REPEATING, "write_statistics": False, "store_schema": False}
            with file.open("wb") as stream, parquet.ParquetWriter(stream, table.schema, **options) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata(metadata | {_SEAL: _seal(table, metadata)})
            _add_digest(file)
            self._check_free(target, key, table["path"].to_pylist())

    def _check_free(self, file: Path, key: str, paths: Sequence[str]) -> None:
        """Raise :class:`DestinationError` if there is a part, unless it is one of the same run on the same images."""
        try:
            found = _read(file)
        except FileNotFoundError:
            return
        except (pa.ArrowException, _NoPartError):
            found = None
        if found is None or (found.key != key and not self._is_mine(found, paths)):
            raise DestinationError(
                f"Another run has written '{file}' meanwhile.",
                "Wait until it has ended, or choose another destination.",
            )

    def _is_mine(self, found: _Part, paths: Sequence[str]) -> bool:
        return found.run == self._run and found.rows["path"].to_pylist() == list(paths)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other runs from looking at the folder's parts, and writing them; some file systems lock no folders."""
        try:
            descriptor = os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _of_another_run(self, name: str) -> DestinationError:
        return DestinationError(
            f"'{self._folder}' holds predictions of other weights, images or settings ({name}).",
            "Choose another destination, or pass --overwrite.",
        )


_OTHER = "Choose another destination, or remove it yourself."
#: Parquet's name of the texts in the lists of a column.
_SET = "prediction_set.list.element"
#: The columns of few different values.
_REPEATING = ["class", "error", "note", _SET, "why_not"]


@dataclass(frozen=True)
class Predictions:
    """Predictions read back.

    Attributes:
        rows: a table with the columns of :data:`SCHEMA`, in the order of the list.
        run: what made them.
    """

    rows: pa.Table
    run: Run

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.run.classes

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
    """Read what :func:`vitconv.inference.predict` wrote.

    Raises:
        InputError: there is no such folder, it holds something else, or parts of several runs, or rows are missing.
    """
    files = parts(folder)
    if not files:
        raise InputError(f"There are no predictions in '{folder}'.", _PREDICT)
    found = []
    for file in files:
        try:
            found.append(_read(file))
        except _NoPartError as error:
            raise InputError(
                f"The predictions in '{folder}' cannot be read: '{file}' {error}.",
                "Delete it and run `vitconv predict` again, which writes it anew.",
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"The predictions in '{folder}' cannot be read: {error}", _PREDICT) from error
    if any(part.run != found[0].run for part in found):
        raise InputError(f"The predictions in '{folder}' are of several runs.", _PREDICT)
    rows = pa.concat_tables(part.rows for part in found)
    if not np.array_equal(rows["row"].to_numpy(), np.arange(len(rows))):
        raise InputError(f"The predictions in '{folder}' lack rows.", _PREDICT)
    return Predictions(rows, found[0].run)


@dataclass(frozen=True)
class _Part:
    """A part read back: its rows, and what its metadata says."""

    rows: pa.Table
    key: str
    run: Run


class _NoPartError(Exception):
    """What is wrong with a Parquet file, in words that follow its name."""


def _read(file: Path) -> _Part:
    """A part, opened here: of a path, pyarrow takes ``~`` for a home, ``a:b`` for a URI, and ``a=b`` for data.

    Raises:
        OSError, pa.ArrowException: there is no such file, it is no regular one, or it is none of Parquet's.
        _NoPartError: it is another one than :meth:`Parts.write` writes, or its content is not what that wrote.
    """
    with open_file(file) as stream:
        if os.fstat(stream.fileno()).st_size > MOST_PART:
            raise _NoPartError(_OTHERS)
        data = stream.read() or b""
    footer = _footer(data)  # before pyarrow sees any of it
    if _ARROW in footer or (footer and not data.endswith(_digest(footer) + footer + data[-8:])):
        raise _NoPartError(_OTHERS)
    try:
        content = parquet.ParquetFile(pa.BufferReader(data))
        columns, metadata = _columns(content.schema_arrow), content.metadata.metadata or {}
    except UnicodeDecodeError as error:  # of the names of columns
        raise _NoPartError(_OTHERS) from error
    if columns != _columns(SCHEMA) or not {_KEY, _SETTINGS, _CLASSES, _SEAL} <= metadata.keys():
        raise _NoPartError(_OTHERS)
    try:
        rows = _read_rows(data)
    except KeyError as error:  # a column of another name within
        raise _NoPartError(_OTHERS) from error
    try:
        if _seal(rows, metadata) != metadata[_SEAL]:
            raise _NoPartError(_EDITED)
        run = Run(json.loads(json.loads(metadata[_SETTINGS])), tuple(json.loads(metadata[_CLASSES])))
        json.dumps([run.settings, run.classes], ensure_ascii=False).encode()  # JSON can hold what UTF-8 cannot
        part = _Part(rows, metadata[_KEY].decode(), run)
    except (ValueError, TypeError, RecursionError) as error:  # such as of a path that is not UTF-8
        raise _NoPartError(_EDITED) from error
    if not _is_sound(part):
        raise _NoPartError(_EDITED)
    return part


_OTHERS = "was not written by this version of vitconv, or is damaged"
_EDITED = "has been edited since it was written"


def _footer(data: bytes) -> bytes:
    """A Parquet file's description of itself, not yet decoded: the last 8 bytes are its length and ``PAR1``."""
    end = max(0, len(data) - 8)
    return data[max(0, end - int.from_bytes(data[end : end + 4], "little")) : end]


def _digest(footer: bytes) -> bytes:
    return hashlib.sha256(footer).digest()


def _add_digest(file: Path) -> None:
    """Write the footer's digest before it, where no reader of Parquet looks.

    pyarrow 26 ends the process with SIGABRT over some footers of which a bit has flipped: it does not catch what its
    C++ throws over sizes that contradict each other.
    """
    data = file.read_bytes()
    footer = _footer(data)
    place = len(data) - len(footer) - 8
    file.write_bytes(data[:place] + _digest(footer) + data[place:])


def _columns(schema: pa.Schema) -> list[tuple[str, pa.DataType, bool]]:
    """Also whether each may have nulls: of a column that says otherwise than its sizes, pyarrow ends the process."""
    return [(field.name, field.type, field.nullable) for field in schema]


def _read_rows(data: bytes) -> pa.Table:
    """All rows, little by little: a small file may become rows that no memory holds.

    A text that many rows have is kept once until it is known how large all of them are together.
    """
    texts = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
    content = parquet.ParquetFile(pa.BufferReader(data), read_dictionary=[*texts, _SET])
    groups = [content.metadata.row_group(number) for number in range(content.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    if sum(max(one.total_uncompressed_size, 4 * one.num_values) for one in columns) > MOST_PART:
        raise _NoPartError(_OTHERS)
    batches, size = [], 0
    for batch in content.iter_batches(256):
        batches.append(batch)
        size += batch.nbytes + sum(map(_size_of_texts, (*map(batch.column, texts), batch["prediction_set"].flatten())))
        if size > MOST_PART:
            raise _NoPartError(_OTHERS)
    return pa.Table.from_batches(batches, content.schema_arrow).cast(SCHEMA).combine_chunks()


def _size_of_texts(column: pa.DictionaryArray) -> int:
    """The bytes of all its rows, each with a text of its own."""
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _seal(rows: pa.Table, metadata: dict[bytes, bytes]) -> bytes:
    """The SHA-256 of a part: of each column which values are null, how long the others are, and their bytes."""
    sha = hashlib.sha256()
    for content in (metadata[_KEY], metadata[_SETTINGS], metadata[_CLASSES], len(rows).to_bytes(8, "little")):
        sha.update(len(content).to_bytes(8, "little") + content)
    for column in rows.columns:
        sha.update(column.is_valid().to_numpy().data)
        for values in _contents(column.drop_null().combine_chunks()):
            sha.update(values)
    return sha.hexdigest().encode()


def _contents(values: pa.Array) -> Iterator[bytes | memoryview]:
    """What a column without nulls holds: how long its values are, where they have a length, and their bytes.

    Raises:
        ValueError: a list in it has a null.
    """
    if pa.types.is_string(values.type):
        texts = [text.encode() for text in values.to_pylist()]
        yield np.array([len(text) for text in texts], np.int64).data
        yield b"".join(texts)
    elif pa.types.is_list(values.type):
        yield pc.list_value_length(values).to_numpy().data
        within = values.flatten()
        if pa.types.is_string(within.type) and within.null_count:
            raise ValueError("There is a null in a list of names.")
        yield from _contents(within)
    else:
        yield np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).data


def _is_sound(part: _Part) -> bool:
    """Whether every row has an error, or else finite logits for all classes and the class of the largest.

    What is said of how far an answer may be believed is of all such rows, or of none.
    """
    rows, classes = part.rows, part.run.classes
    if not classes or not all(isinstance(name, str) for name in classes) or not isinstance(part.run.settings, dict):
        return False
    if rows["row"].null_count or rows["path"].null_count:
        return False
    fine = rows.filter(pc.is_null(rows["error"]))
    for name in ("class", "probability", "logits"):
        if fine[name].null_count or rows[name].null_count != len(rows) - len(fine):
            return False
    lost = len(rows) - len(fine)
    nulls = {(fine[name].null_count, rows[name].null_count) for name in _CALIBRATED}
    if nulls not in ({(0, lost)}, {(len(fine), len(rows))}):
        return False
    if not pc.all(pc.is_in(fine["prediction_set"].combine_chunks().flatten(), pa.array(classes)), min_count=0).as_py():
        return False
    lists = fine["logits"].combine_chunks()
    if not pc.all(pc.equal(pc.list_value_length(lists), len(classes)), min_count=0).as_py():
        return False
    logits = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(classes))
    if not np.isfinite(logits).all():  # of a null within, this is NaN
        return False
    return fine["class"].to_pylist() == [classes[best] for best in logits.argmax(axis=1)]


_PREDICT = "Write them with `vitconv predict`; a run that was cut off goes on where it stopped."
