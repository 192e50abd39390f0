"""Read and write files safely.

Only regular files are opened: a pipe would block, and a device has no end. A new file appears whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vitconv.errors import CheckpointError, DestinationError, InputError, VitconvError, shown

_log = logging.getLogger(__name__)
#: The most bytes of a text file: ten times more than any model's class names. A larger file is a mistaken path.
MOST_TEXT = 2**26

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# If the system has them: do not wait for a pipe's other end, take no terminal, do not translate line ends.
_FLAGS = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
_OPEN = sum(getattr(os, name, 0) for name in _FLAGS) | os.O_RDONLY


class NoRegularFileError(OSError):
    """A path leads to a pipe, a socket or a device; ``strerror`` says which."""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file, or one that a symbolic link leads to, for reading its bytes.

    Raises:
        NoRegularFileError: it is a pipe, a socket or a device.
        OSError: there is no such file, it is a folder, or it cannot be opened.
    """
    _refuse_others(os.stat(path), path)  # a device may do something when it is opened
    descriptor = os.open(path, _OPEN)
    try:
        _refuse_others(os.fstat(descriptor), path)  # another one may have taken its place
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_file(
    path: str | os.PathLike[str], what: str, *, most: int | None = None, error: type[VitconvError] = InputError
) -> None:
    """Raise ``error`` if a path leads to a folder, a pipe, a socket or a device, or more than ``most`` bytes.

    A file that is missing or unreadable passes: opening it raises an error. System files such as /proc/kmsg have the
    size 0 and may be endless: they pass only if they are really empty.

    Args:
        path: what was named.
        what: what it should be, for people: ``"label file"``.
        most: the most bytes; ``None`` for any number.
        error: the class of the error.
    """
    try:
        status = os.stat(path)
        _refuse_others(status, path)
    except NoRegularFileError as found:
        raise error(
            f"The {what} '{path}' is {found.strerror}, not a file.", "Write its content to a file, and pass that."
        ) from found
    except IsADirectoryError as found:
        raise error(f"The {what} '{path}' is a folder, not a file.", "Pass a file.") from found
    except (OSError, ValueError):
        return
    if stat.S_ISREG(status.st_mode) and not status.st_size and not _is_empty(path):
        raise error(
            f"The {what} '{path}' is a system file without a size.",
            "Write its content to a file, and pass that.",
        )
    if most is not None and stat.S_ISREG(status.st_mode) and status.st_size > most:
        raise error(
            f"The {what} '{path}' has {status.st_size:,} bytes; at most {most:,} are allowed.",
            "Check the path of the file.",
        )


def _is_empty(path: str | os.PathLike[str]) -> bool:
    try:
        with open_file(path) as file:
            return file.raw.read(1) == b""  # None where there is nothing yet
    except OSError:
        return True


def _refuse_others(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise NoRegularFileError(errno.EINVAL, _KINDS.get(stat.S_IFMT(status.st_mode), "something else"), os.fspath(path))


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file to write, and rename it to ``path`` if the block succeeds: whole or not there.

    An old file at ``path`` is replaced, not written into: DVC may have linked it to its cache, and the cached file
    would change with it. The temporary file is hidden and beside ``path``, with its suffix; a kill leaves it there.

    Raises:
        DestinationError: it cannot be written, or the folder cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=f".vitconv-new{path.suffix}", dir=path.parent
        )
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~umask())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(destination: Path, error: OSError) -> DestinationError:
    """The error for a destination that cannot be written."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return DestinationError(
            f"'{destination}' cannot be written: a file is where a folder should be.", "Choose another destination."
        )
    return DestinationError(
        f"'{destination}' cannot be written: {error.strerror or error}.", "Check the disk and the permissions."
    )


def no_scratch(what: str, error: Exception) -> DestinationError:
    """The error for what cannot be written into the system's temporary folder; ``what`` begins its sentence."""
    return DestinationError(
        f"{what} cannot be written to '{tempfile.gettempdir()}': {getattr(error, 'strerror', None) or error}.",
        "Free space there, or set TMPDIR to another folder.",
    )


def umask() -> int:
    """This process's umask: temporary files are always private, and finished ones get the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(content: Any, path: Path) -> None:
    """Write JSON for people and diffs: indented, keys in the order given, UTF-8.

    A lone surrogate, which UTF-8 has not, becomes JSON's own escape.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON and the names of files may hold lone surrogates, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_name(path: str | os.PathLike[str], error: type[VitconvError]) -> None:
    """Raise ``error`` for a path that libraries in other languages cannot open: one that is not UTF-8."""
    try:
        whole = os.path.abspath(path)
    except FileNotFoundError:  # the working folder is gone
        whole = os.fspath(path)
    if not is_unicode(whole):
        raise error(
            f"The name of '{path}' is not UTF-8, or that of a folder that holds it; libraries that open it need that.",
            "Rename it, or choose another path.",
        )


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice; the error's text is the key, for people."""


def parse_json(text: str) -> Any:
    """What :func:`json.loads` gives, except that it takes the last value of a key that occurs twice without a word.

    Raises:
        RepeatedKeyError: an object has a key twice.
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    vitconv.files.RepeatedKeyError: 'a'
    """
    return json.loads(text, object_pairs_hook=_with_different_keys)


def _with_different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise RepeatedKeyError(shown(key))
        content[key] = value
    return content


def repeated_key(what: str, error: RepeatedKeyError, kind: type[VitconvError] = InputError) -> VitconvError:
    """The error for a JSON file that has a key twice; ``what`` begins its sentence: ``"The label file 'a.json'"``."""
    return kind(
        f"{what} has the key {error} twice in one JSON object.",
        "Remove one of the two: they may contradict each other.",
    )


def read_json(path: Path, most: int = MOST_TEXT) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        most: the most bytes.

    Raises:
        CheckpointError: the file is not one, or too large, or an object in it has a key twice.
    """
    _log.info("reading '%s'", path)
    check_file(path, "JSON file", most=most, error=CheckpointError)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except RepeatedKeyError as error:
        raise repeated_key(f"'{path}'", error, CheckpointError) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(absent(path), "Check the path.") from error
    except OSError as error:
        raise CheckpointError(
            f"'{path}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not readable JSON.", "Restore the file, or remove it.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' is not a JSON object.", "Restore the file, or remove it.")
    return content


def check_reachable(path: str | os.PathLike[str]) -> None:
    """Raise :class:`CheckpointError` if a folder on the way may not be entered: that does not mean that nothing is
    there."""
    try:
        os.stat(path)
    except PermissionError as error:
        raise CheckpointError(
            f"'{path}' cannot be reached: {error.strerror}.", "Check the permissions of the folders that hold it."
        ) from error
    except (OSError, ValueError):
        return


def absent(path: Path) -> str:
    """A sentence that says why there is no such file in a folder: which of the two is missing.

    >>> absent(Path("no such folder/config.json"))
    "There is no folder 'no such folder'."
    """
    folder = path.parent
    if os.path.isdir(folder):
        return f"'{folder}' has no {path.name}."
    return f"'{folder}' is a file, not a folder." if os.path.exists(folder) else f"There is no folder '{folder}'."


class Watch:
    """Tells whether files have changed since it was made.

    Args:
        name: what they are of, for people.
        list_files: lists them; a folder may have others later.
    """

    def __init__(self, name: str | Path, list_files: Callable[[], Iterable[Path]]) -> None:
        self._name, self._list_files = name, list_files
        self._before = self._state()

    def check(self, what: str = "the model ran") -> None:
        """Raise :class:`CheckpointError` if a file was written or replaced.

        Args:
            what: what was done meanwhile, for people.
        """
        if self._state() != self._before:
            raise CheckpointError(
                f"The files in '{self._name}' have changed while {what}.",
                "Run it again when nothing else writes to it.",
            )

    @contextmanager
    def unchanged(self, what: str) -> Iterator[None]:
        """Raise :class:`CheckpointError` if a file changes until the block ends; ``what`` as for :meth:`check`.

        Whatever the block raises then, as a file is gone or is half written, is not what is wrong.
        """
        try:
            yield
        except Exception as error:
            try:
                self.check(what)
            except CheckpointError as changed:
                raise changed from error
            raise
        self.check(what)

    def _state(self) -> dict[Path, tuple[int, ...]]:
        """What changes when a file is written or replaced: device, inode, size and times, by its path.

        Who writes a file may set back its own time, as `tar`, `rsync` and `cp -p` do, but not that of its status.
        """
        found: dict[Path, tuple[int, ...]] = {}
        try:
            for file in self._list_files():
                if file.is_file():
                    stat = file.stat()
                    found[file] = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError:  # no folder, or one that is being replaced: whoever reads it says so
            return {}
        return found


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path to which all links lead. Of links in a circle, one stays: opening it says what is wrong."""
    return Path(os.path.realpath(path))


def sha256(file: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """A file's SHA-256, in hexadecimal; only of what was read if ``stopped`` returns true.

    Raises:
        InputError: it is a pipe, a device, or a system file without a size that is not empty.
        OSError: it cannot be read.
    """
    check_file(file, "file")
    with open_file(file) as stream:
        return sha256_of(stream, stopped)


def sha256_of(stream: BinaryIO, stopped: Callable[[], bool] = lambda: False) -> str:
    """Like :func:`sha256`, for an open file."""
    digest = hashlib.sha256()
    while (chunk := stream.read(1 << 20)) and not stopped():
        digest.update(chunk)
    return digest.hexdigest()
