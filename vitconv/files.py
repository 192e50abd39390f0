"""The files that people name: only regular ones are opened. A pipe would be waited for, a device has no end."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from vitconv.errors import InputError, VitconvError

#: The most bytes of a file of text: some ten times the class names of any model. More is a mistaken path.
MOST_TEXT = 2**26

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Where there is such a flag: do not wait for a pipe's other end, take no terminal, leave the bytes as they are.
_FLAGS = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
_OPEN = sum(getattr(os, name, 0) for name in _FLAGS) | os.O_RDONLY


class NoRegularFileError(OSError):
    """A path leads to a pipe, a socket or a device; ``strerror`` says to which."""


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
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
    """Raise ``error`` if a path leads to a pipe, a socket or a device, or a file of more than so many bytes.

    What is missing, a folder, or unreadable passes: whoever opens it says so. Of the system's own files, such as
    /proc/kmsg, which say that they are empty and may have no end, none passes that is not.

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
    except (OSError, ValueError):
        return
    if stat.S_ISREG(status.st_mode) and not status.st_size and not _is_empty(path):
        raise error(
            f"The {what} '{path}' is a file of the system's, without a size.",
            "Write its content to a file, and pass that.",
        )
    if most is not None and stat.S_ISREG(status.st_mode) and status.st_size > most:
        raise error(
            f"The {what} '{path}' has {status.st_size:,} bytes; the most are {most:,}.", "Check the path of the file."
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
