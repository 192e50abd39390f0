"""Which images there are, and how they become batches of pixels."""

from __future__ import annotations

import codecs
import csv as python_csv
import errno
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from vitconv.errors import InputError, VitconvError, brief, shown
from vitconv.files import check_file, open_file, sha256
from vitconv.inference.appearance import describe
from vitconv.inference.pixels import Preprocessor
from vitconv.models.images import image_suffixes

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The names of the splits of a list whose images a model was fitted on.
FITTED = ("fit", "train")
#: How many ways of links may lead to one folder. All of them count, since each may be another class.
_MOST_WAYS = 1000


@dataclass(frozen=True, repr=False)
class ImageList:
    """Images to predict, and their true classes where they are known.

    Attributes:
        paths: as in the CSV file, or relative to the folder of images; a string a row.
        labels: the true classes; ``None`` where none is stated, null or empty where it is not known.
        folder: what relative paths start from: the CSV file's folder, or the folder of images.
        splits: what each image was used for, such as ``fit``; ``None`` without such a column.
        by_folder: whether the labels are the names of subfolders, which may also be something else than classes.
    """

    paths: pa.ChunkedArray
    labels: pa.ChunkedArray | None
    folder: Path
    splits: pa.ChunkedArray | None = None
    by_folder: bool = False

    def __repr__(self) -> str:
        labels = "without labels" if self.labels is None else "with labels"
        return f"ImageList({len(self):,} images, {labels}, {brief(str(self.folder))})"

    def __len__(self) -> int:
        return len(self.paths)

    def slice(self, rows: range) -> list[str]:
        """The paths of these rows."""
        return self.paths[rows.start : rows.stop].to_pylist()


def read_images(path: str | Path) -> ImageList:
    """Read which images there are.

    Args:
        path: a CSV file, of whose columns only ``path``, ``label`` and ``split`` are read; a folder, with all images
            in it and in its subfolders, whose names are their labels; or one image. An image is told by its suffix.
            Of a link to a list or to an image, the folder is the one that holds the link.

    Raises:
        InputError: there is no such file, it is not CSV, has no column ``path``, or a row has no path; or the folder
            has no images.
    """
    if os.path.isdir(path):
        return _read_folder(Path(path))
    if Path(path).suffix.lower() in image_suffixes():
        return _of_paths([Path(path).name], _folder_of(path))
    what = "list of images"
    columns = [name for name in read_header(path, what, "label") if name in ("path", "label", "split")]
    table = read_table(path, what, columns)
    paths = table["path"]
    if paths.null_count or pc.any(pc.equal(paths, "")).as_py():
        raise InputError(f"The list of images '{path}' has a row without a path.", _LIST)
    if not len(paths):
        raise InputError(f"The list of images '{path}' is empty.", _LIST)
    labels, splits = (table[name] if name in table.column_names else None for name in ("label", "split"))
    return ImageList(paths, labels, _folder_of(path), splits)


def image_digests(folder: Path, paths: Sequence[str], where: str | Path) -> list[str]:
    """The SHA-256 of each image's file.

    Args:
        folder: what relative paths start from.
        paths: of the images.
        where: what lists them, for errors.

    Raises:
        InputError: a file cannot be read.
    """
    found = []
    for path in paths:
        try:
            found.append(sha256(folder / path))
        except (OSError, ValueError) as error:  # ValueError: a NUL in its name
            reason = error.strerror if isinstance(error, OSError) else None
            raise InputError(
                f"The image '{path}' in '{where}' cannot be read: {reason or error}.",
                "Check it, or take it off the list.",
            ) from error
    return found


def digest_of_all(digests: Sequence[str]) -> str:
    """One SHA-256 of images by those of their files, whatever their order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _folder_of(path: str | Path) -> Path:
    """The folder that holds a file, as the system finds it; where the file is a link, the folder of the link."""
    return Path(os.path.realpath(Path(path).absolute().parent))


def _read_folder(folder: Path) -> ImageList:
    """The images in a folder and its subfolders, sorted by name; hidden files and other files are left out."""
    found = sorted(_images_in(folder))
    if not found:
        raise InputError(
            f"The folder '{folder}' has no images.",
            f"Name a folder with images ({', '.join(_USUAL)}…), or a CSV file with their paths.",
        )
    listed = _of_paths(found, folder.resolve())
    labels = [name.partition("/")[0] if "/" in name else None for name in found]
    if not any(labels):
        return listed
    return replace(listed, labels=pa.chunked_array([pa.array(labels, pa.string())]), by_folder=True)


def _images_in(folder: Path) -> Iterator[str]:
    """The paths of the images, relative to the folder, with ``/`` between the names."""

    def stop(error: OSError) -> NoReturn:
        raise InputError(f"The folder '{error.filename}' cannot be read: {error.strerror}.", "Check its permissions.")

    suffixes = image_suffixes()
    visits: Counter[tuple[int, int]] = Counter()
    above: dict[str, frozenset[tuple[int, int]]] = {}  # of each folder to enter, those that it was reached through
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        status = os.stat(place)
        identity, through = (status.st_dev, status.st_ino), above.pop(place, frozenset())
        if identity in through:  # a link to a folder that holds it
            folders.clear()
            continue
        visits[identity] += 1
        if visits[identity] > _MOST_WAYS:  # links that fan out: each level doubles the ways
            raise InputError(
                f"Links lead to the folder '{Path(place).resolve()}' in more than {_MOST_WAYS:,} ways.",
                "Remove some of the links, or list the images in a CSV file.",
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        above |= {os.path.join(place, name): through | {identity} for name in folders}
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(place, name).relative_to(folder).as_posix()


def _of_paths(paths: list[str], folder: Path) -> ImageList:
    try:
        return ImageList(pa.chunked_array([pa.array(paths, pa.string())]), None, folder)
    except UnicodeEncodeError as error:
        name = next(path for path in paths if any("\ud800" <= c <= "\udfff" for c in path))
        raise InputError(f"The name of the image '{name}' is not UTF-8.", "Rename the file.") from error


def read_header(path: str | Path, what: str, other: str) -> list[str]:
    """The names of the columns of a CSV file with a column ``path``.

    Args:
        path: the file.
        what: what it should be, for people.
        other: the name of another column that is read where there is one.

    Raises:
        InputError: there is no such file, it is no regular file or too large, is not CSV, or has no column ``path``;
            or the name of a column differs from ``path`` or ``other`` in spaces or case alone.
    """
    check_file(path, what, most=MOST_TABLE)
    with _for_people(path, what), open_file(path) as file:
        head = (file.read(_MOST_ROW) or b"").removeprefix(codecs.BOM_UTF8)
        if len(head) == _MOST_ROW and b"\n" not in head and b"\r" not in head:
            raise ValueError(f"its header has more than {_MOST_ROW:,} bytes.")
        text = head.decode(errors="ignore" if len(head) == _MOST_ROW else "strict")  # cut within a character
        columns = next(filter(None, python_csv.reader(io.StringIO(text, newline=""))), None)
    if columns is None:
        raise InputError(f"The {what} '{path}' is not CSV that can be read: it has no header.", _LIST)
    for name in ("path", other):
        similar = [column for column in columns if column.strip().lower() == name]
        if similar and name not in columns:
            raise InputError(
                f"The {what} '{path}' has a column {similar[0]!r}, which is not read: its name is not '{name}'.",
                f"Rename it to '{name}', in lower case and without spaces.",
            )
    if "path" not in columns:
        line = text.lstrip("\r\n").splitlines()[0]
        if not line.replace("\t", " ").isprintable():
            raise InputError(f"The {what} '{path}' is not CSV that can be read: it is no text.", _LIST)
        mark = next((name for name, mark in _OTHER_MARKS.items() if "path" in map(str.strip, line.split(mark))), None)
        raise InputError(
            f"The {what} '{path}' has no column 'path': its header is {shown(line)}.",
            f"Separate the columns with commas, not with {mark}." if mark else _LIST,
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"The {what} '{path}' has two columns of the same name.", _LIST)
    return columns


def read_table(path: str | Path, what: str, columns: Sequence[str]) -> pa.Table:
    """Read columns of a CSV file; the names in ``path``, ``class`` and ``label`` stay as they are.

    Args:
        path: the file.
        what: what it should be, for people.
        columns: of :func:`read_header`, those to read: any other costs time and memory, too.

    Raises:
        InputError: there is no such file, or it is not CSV.
    """
    # An empty field is an empty string, and a class may be called "NA", "null" or "7".
    names = dict.fromkeys(("path", "class", "label", "split"), pa.string())
    with _for_people(path, what):
        table = csv.read_csv(
            Path(path).absolute(),  # because pyarrow takes a leading ~ for somebody's home
            read_options=csv.ReadOptions(block_size=_MOST_ROW),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=names, strings_can_be_null=False, include_columns=list(columns)
            ),
        )
        _check_quotes(path)
    return table.combine_chunks()


def _check_quotes(path: str | Path) -> None:
    """Raise csv.Error if a quotation mark has no other: pyarrow takes all lines that follow it for one field."""
    with open_file(path) as file:
        if any(b'"' in block for block in iter(partial(file.read, 2**20), b"")):
            file.seek(0)
            for _ in python_csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True):
                pass


@contextmanager
def _for_people(path: str | Path, what: str) -> Iterator[None]:
    """Raise :class:`InputError` for whatever goes wrong while a CSV file is read."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"There is no {what} '{path}'.", "Check the path of the file.") from error
    except UnicodeEncodeError as error:
        raise InputError(f"The name of the {what} '{path}' is not UTF-8.", "Rename the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The {what} '{path}' is not CSV that can be read: it is not UTF-8.", _LIST) from error
    except (OSError, ValueError, python_csv.Error, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        if "straddling" in reason:
            reason = f"it has a row of more than {_MOST_ROW:,} bytes, or a quotation mark without its other."
        elif "unexpected end of data" in reason:
            reason = "it has a quotation mark without its other."
        raise InputError(f"The {what} '{path}' is not CSV that can be read: {reason}", _LIST) from error


#: What separates the columns in files that are no CSV, for people.
_OTHER_MARKS = {"semicolons": ";", "tabs": "\t", "spaces": " ", "|": "|"}
#: The most bytes of a CSV file: of a list, some ten million images. It is read into memory.
MOST_TABLE = 2**30
#: The most bytes of a row: the logits of some hundred thousand classes. So many are parsed at once.
_MOST_ROW = 2**24
#: What most images are called, for people.
_USUAL = (".jpg", ".png", ".webp")
_LIST = "Write a CSV file with a header, and a column 'path' with a path in every row."


class Pixels(NamedTuple):
    """A batch that is ready for the model.

    Attributes:
        batch: the batch's number.
        values: float32, (batch_size, channels, height, width); zeros where an image cannot be read, and behind the
            last row of the list: so a batch always has the same shape, and a row always its place in it.
        errors: for each image, what is wrong with it, or ``None``.
        notes: for each image, how timm is known to prepare it differently, or ``None``.
        appearance: what each image looks like, (batch_size, numbers), if that is asked for.
    """

    batch: int
    values: NDArray[np.float32]
    errors: list[str | None]
    notes: list[str | None]
    appearance: NDArray[np.float64] | None = None


class BatchOutput(NamedTuple):
    """The model's output for a batch.

    Attributes:
        batch: the batch's number.
        logits: float32, (batch_size, classes); anything where there is an error, and behind the last row.
        errors, notes, appearance: as in :class:`Pixels`.
    """

    batch: int
    logits: NDArray[np.float32]
    errors: list[str | None]
    notes: list[str | None]
    appearance: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Batches:
    """The list cut into batches: ``batches[k]`` reads the rows from ``k * batch_size`` and prepares their pixels.

    What an image's logits are, to the last bit, may depend on the shape of the batch and on its place in it. Both are
    fixed here, whoever computes a batch, and whichever images cannot be read: that is why every engine gives the same.

    Attributes:
        images: the list.
        size: images in a batch.
        preprocessor: makes the pixels of an image.
        look: whether also to say what each image looks like: :func:`vitconv.inference.appearance.describe`.
    """

    images: ImageList
    size: int
    preprocessor: Preprocessor
    look: bool = False

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def rows(self, batch: int) -> range:
        """The rows of a batch."""
        return range(batch * self.size, min((batch + 1) * self.size, len(self.images)))

    def __getitem__(self, batch: int) -> Pixels:
        values = np.zeros((self.size, *self.preprocessor.shape), np.float32)
        paths = self.images.slice(self.rows(batch))
        found = [self._read(path, place) for path, place in zip(paths, values, strict=False)]
        appearance = describe(values) if self.look else None
        return Pixels(batch, values, [error for error, _ in found], [note for _, note in found], appearance)

    def _read(self, path: str, place: NDArray[np.float32]) -> tuple[str | None, str | None]:
        """Put an image's pixels into its place of the batch; return what is wrong with it, and the note on it."""
        file = self.images.folder / path
        try:
            place[:], note = self.preprocessor.prepare(file)
        except VitconvError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_THE_MACHINE:
                # Another time, the image may be there: a row that says otherwise would be found in every later run.
                reason = error.__cause__.strerror or error.__cause__
                raise InputError(f"{error.problem} {reason}.", _MACHINE) from error.__cause__
            return error.problem.replace(str(file), path), None
        except MemoryError:
            raise
        except Exception as error:  # Pillow and the processors have no common one, and one image must not end a run
            return f"'{path}' cannot be prepared: {type(error).__name__}: {error}", None
        return None, note


#: What the system says of itself, or of a disk or network behind it. All else that it says is of the file, and stays.
_OF_THE_MACHINE = {
    getattr(errno, name)
    for name in (
        *("EIO", "ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EINTR", "EBUSY", "ENOLCK", "EREMOTEIO", "ENODEV"),
        *("ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ESHUTDOWN", "EPIPE", "EPROTO", "ENOLINK", "ECOMM"),
        *("EACCES", "EPERM"),  # of another user: the image itself may be fine
        *("ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED"),
    )
    if hasattr(errno, name)
}
_MACHINE = (
    "Check the permissions, the disk or the network and run it again, to go on where it stopped; or take the image "
    "off the list."
)
