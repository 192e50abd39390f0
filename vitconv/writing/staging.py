"""A folder that appears whole or not at all, whatever goes wrong while it is written."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitconv.errors import DestinationError, check_flag, first_few
from vitconv.files import check_name, umask, unwritable

#: What a conversion, an optimisation or a calibration may leave in a folder, also if it is killed, and the Hub's own
#: file.
_WRITTEN = re.compile(
    r"config\.json|preprocessor_config\.json|timm_processor\.json|parity\.json|README\.md|\.gitattributes"
    r"|modeling_vitconv\.py|optimization\.json|calibration\.json|\.calibration\.[^./]+\.vitconv-new\.json"
    r"|model(-[0-9]{5}-of-[0-9]{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|model\.pt2?"
    r"|onnx|onnx/model(_quantized|_fp16)?\.onnx(\.data)?|openvino|openvino/openvino_model\.(xml|bin)"
)
#: The folders in one that `vitconv optimize` has written, which hold its model.
MODEL_FOLDERS = ("onnx", "openvino")
_KEEP = "Choose another destination, or remove it yourself."


@contextmanager
def staged_folder(destination: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``destination`` that takes its name when the block ends well.

    If the block raises, the folder is removed and ``destination`` is as it was. If the process is killed, the folder
    stays, hidden and unlocked, until the next conversion to the same destination removes it.

    Raises:
        DestinationError: the destination exists (and ``overwrite`` is false, or it is no model folder), or
            cannot be written.
    """
    check_destination(destination, overwrite=overwrite)
    destination = _located(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging, lock = _new_staging(destination)
    except OSError as error:
        raise unwritable(destination, error) from error
    try:
        # The staged folder is private; the finished one is as open as any other new folder.
        mask = umask()
        staging.chmod(0o777 & ~mask)
        yield staging
        for file in filter(Path.is_file, staging.rglob("*")):  # some libraries make private files, too
            file.chmod(0o666 & ~mask)
        _publishing[destination] = _identity(staging)
        _publish(staging, destination, overwrite)
    except OSError as error:
        raise unwritable(destination, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _unfinished.discard(staging)
        if lock is not None:
            os.close(lock)


#: The folders that are being written.
_unfinished: set[Path] = set()
#: The destinations that staged folders were about to become, and the identity of each staged folder. A signal may come
#: between the renaming and the next step of Python, so only the destination itself tells whether it was renamed.
_publishing: dict[Path, tuple[int, int] | None] = {}


def discard_unfinished() -> None:
    """Remove the folders that are being written, as this process ends here and now."""
    for staging in _unfinished:
        shutil.rmtree(staging, ignore_errors=True)


def published() -> list[Path]:
    """The folders that this process has written, whole and under their names, since :func:`forget_published`."""
    return [folder for folder, identity in _publishing.items() if identity and _identity(folder) == identity]


def forget_published() -> None:
    """Begin the list of :func:`published` anew."""
    _publishing.clear()


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays the same of a folder when it is renamed; ``None`` if it is not there."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_destination(
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source: str | os.PathLike[str] | None = None,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Raise :class:`DestinationError` if writing ``destination`` would lose anything.

    Args:
        destination: the folder to write.
        overwrite: replace a folder that holds only files that a conversion writes, and none that is read.
        source: a file or folder that is read. Of a folder, the files that its links lead to are read, too.
        inputs: other files that are read.
    """
    path = Path(destination)
    check_flag("overwrite", overwrite)
    if "\0" in str(path):
        raise DestinationError("The destination's name has a NUL character.", "Choose another destination.")
    check_name(path, DestinationError)
    for parent in path.parents:
        if os.path.lexists(parent) and not os.path.isdir(parent):
            raise DestinationError(
                f"'{path}' cannot be written: '{parent}' is not a folder.", "Choose another destination."
            )
    place = _located(path)
    if not os.path.lexists(place):
        return
    if os.path.ismount(place):  # no other folder can take its name
        raise DestinationError(
            f"'{path}' is where a disk or a volume is mounted, and cannot be replaced.", "Choose a folder in it."
        )
    if not overwrite and place.is_file():
        raise DestinationError(
            f"'{path}' exists already, and is a file: a folder is written.", "Choose another destination."
        )
    if not overwrite and place.is_dir() and not place.is_symlink() and _others(place):
        raise DestinationError(
            f"'{path}' exists already, and holds files that no conversion writes ({first_few(_others(place))}).",
            "Choose another destination.",
        )
    if not overwrite:
        raise _exists(path)
    if not place.is_dir() or place.is_symlink():
        raise DestinationError(f"'{path}' is not a folder, so it is not overwritten.", _KEEP)
    others = _others(place)
    if others:
        raise DestinationError(
            f"'{path}' holds files that no conversion writes ({first_few(others)}), so it is not overwritten.", _KEEP
        )
    if source is not None and any(holds(place, file) for file in (Path(source), *_entries(Path(source)))):
        raise DestinationError(f"'{path}' holds the source, so it is not overwritten.", _KEEP)
    for file in inputs:
        if holds(place, Path(file)):
            raise DestinationError(f"'{path}' holds '{file}', which is read, so it is not overwritten.", _KEEP)


def check_apart(destination: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise :class:`DestinationError` if one of the files and folders that are read holds the destination, or lies in
    it."""
    for path in inputs:
        if holds(Path(destination), Path(path)):
            raise DestinationError(f"'{path}' lies in the destination '{destination}'.", "Choose another destination.")
        if Path(path).is_dir() and holds(Path(path), Path(destination)):
            raise DestinationError(
                f"The destination '{destination}' lies in '{path}', which is read.", "Choose another destination."
            )


def _others(folder: Path) -> list[str]:
    """The names of what no conversion writes."""
    found = {entry.relative_to(folder).as_posix(): entry for entry in folder.rglob("*")}
    return sorted(name for name, entry in found.items() if not _WRITTEN.fullmatch(name) or not _is_ours(name, entry))


def _is_ours(name: str, entry: Path) -> bool:
    """Whether it is a file, or one of the folders that hold an optimised model's files."""
    return (entry.is_dir() and not entry.is_symlink()) if name in MODEL_FOLDERS else entry.is_file()


def _located(destination: str | os.PathLike[str]) -> Path:
    """The absolute path of a destination, with the links before its last name followed as the system follows them.

    ``..`` after a link leads to the parent of the link's target, so it cannot be resolved by the names alone. A link
    as the last name is kept: it is the destination itself, and is not overwritten.
    """
    path = Path(destination)
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)


def holds(folder: Path, file: Path) -> bool:
    """Whether a file or a folder, or what it leads to by links, lies in a folder."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL: reading the file reports it
        return False


def _entries(source: Path) -> list[Path]:
    try:
        return list(source.iterdir())
    except (OSError, ValueError):  # not a folder, or not readable: reading it reports the error
        return []


def _exists(path: Path) -> DestinationError:
    return DestinationError(f"'{path}' exists already.", "Choose another destination, or pass --overwrite.")


def _new_staging(destination: Path) -> tuple[Path, int | None]:
    """A new hidden folder beside the destination, locked as long as this process lives; abandoned ones are removed."""
    parent = os.open(destination.parent, os.O_RDONLY)
    try:
        # Between making a folder and locking it, nobody else may take it for abandoned. Some network file systems
        # lock no folders: there nothing can be locked, so that nothing is taken for abandoned either.
        with suppress(OSError):
            fcntl.flock(parent, fcntl.LOCK_EX)
        # Of a long name the beginning is enough: file systems allow 255 bytes.
        prefix = "." + os.fsencode(destination.name)[:200].decode(errors="ignore") + "."
        for abandoned in destination.parent.glob(f"{glob.escape(prefix)}*.vitconv"):
            lock = _lock(abandoned)
            if lock is not None:
                shutil.rmtree(abandoned, ignore_errors=True)
                os.close(lock)
        staging = destination.parent / f"{prefix}{secrets.token_hex(8)}.vitconv"
        _unfinished.add(staging)  # before there is one, as a signal may come between any two steps
        staging.mkdir(mode=0o700)
        return staging, _lock(staging)
    finally:
        os.close(parent)


def _lock(folder: Path) -> int | None:
    """Lock a folder for the life of this process; ``None`` if another process has it, or it cannot be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


_NOREPLACE, _EXCHANGE = 1, 2


def _publish(staging: Path, destination: Path, overwrite: bool) -> None:
    """Give the staged folder its name, in one step that a kill cannot cut; what it replaces goes with staging."""
    try:
        _rename(staging, destination, _NOREPLACE)
        return
    except FileExistsError:
        if not overwrite:
            raise _exists(destination) from None
    # The destination may have changed since it was checked.
    check_destination(destination, overwrite=True)
    _rename(staging, destination, _EXCHANGE)


def _rename(staging: Path, destination: Path, flag: int) -> None:
    """Linux's renameat2, which Python does not have; elsewhere, or on file systems without it, plain renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD: paths as they are
        if libc.renameat2(here, os.fsencode(staging), here, os.fsencode(destination), flag) == 0:
            return
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(error, os.strerror(error))
    if flag == _EXCHANGE:
        old = staging.with_name(f"{staging.name}.old.vitconv")
        destination.rename(old)
        try:
            staging.rename(destination)
        except OSError:
            old.rename(destination)  # hidden, it would be taken for abandoned, and removed
            raise
        old.rename(staging)
    elif os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    else:
        staging.rename(destination)
