"""The folder of a report: which folders `vitconv evaluate` may write, and that one run at a time writes them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitconv.errors import DestinationError, first_few
from vitconv.evaluation.reporting import PAGES, PICTURES
from vitconv.files import unwritable
from vitconv.writing.staging import holds

#: A file in every folder that an evaluation has written. Other folders are not written into, unless they are empty.
#: A run locks it, so that no other run writes the folder at the same time.
MARK = ".vitconv-evaluation"
_MARK_TEXT = b"`vitconv evaluate` has written this folder. The next run replaces its report.\n"
#: The subfolders with the rows: of the converted model, and of the timm model.
PREDICTIONS, TIMM = "predictions", "timm"
#: What a report consists of, besides the rows.
_REPORT = (
    *PAGES,
    *("evaluation.json", "metrics.json", "classes.csv", "disagreements.csv"),
    *(f"{name}.png" for name in PICTURES),
)
_OTHER = "Choose another folder with --out DIR."


def check_report_folder(folder: Path, images: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise :class:`DestinationError` if a report in this folder would replace, or mix with, anything else.

    Args:
        folder: where the report is to be. It may be missing, empty, or one that an evaluation has written.
        images: the images. If they are a folder, the report's pictures must not become images of the next run.
        inputs: the other files and folders that are read.
    """
    for path in (images, *inputs):
        if holds(folder, Path(path)):
            raise DestinationError(f"The folder for the report, '{folder}', holds '{path}', which is read.", _OTHER)
    if Path(images).is_dir() and holds(Path(images), folder):
        raise DestinationError(
            f"The folder for the report, '{folder}', lies in the folder of the images, '{images}': its pictures would "
            "be taken for images.",
            _OTHER,
        )
    for rows in (folder / PREDICTIONS, folder / TIMM):
        if rows.is_symlink():  # the rows there are replaced, and those may be of another run
            raise DestinationError(
                f"'{rows}' is a link: the rows that it leads to would be replaced.", f"Remove the link. {_OTHER}"
            )
    try:
        others = [] if (folder / MARK).is_file() else sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(folder, error) from error
    if others:
        raise DestinationError(
            f"'{folder}' holds files that are not of an evaluation ({first_few(others)}), so no report is written "
            "there.",
            _OTHER,
        )


@contextmanager
def report_folder(folder: Path) -> Iterator[None]:
    """Own the folder of a report while the block runs. The report that an earlier run has left there is removed first.

    If the block writes nothing into a new folder, it is removed again.

    Raises:
        DestinationError: another run writes the folder, or it cannot be written.
    """
    lock, made, marked = _locked_mark(folder)
    _held.add(lock)
    try:
        try:
            _clear(folder, lock)
            yield
        finally:
            with suppress(OSError):
                _remove_empty(folder, made, marked)
    finally:
        _held.discard(lock)
        os.close(lock)


#: The marks that this process has locked.
_held: set[int] = set()


def _close_held() -> None:
    """A worker that is forked does not keep the lock: it may outlive a process that is killed."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_held)


def _locked_mark(folder: Path) -> tuple[int, bool, bool]:
    """The descriptor of the mark, locked; whether the folder is new, and whether it had a mark.

    A run that wrote nothing removes its mark, and perhaps the folder, as it ends. If this happens between the steps
    here, the lock is on a file that is gone: then they are tried again.
    """
    for _ in range(_TRIES):
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            folder.absolute()  # raises its own, if it is the working folder that is gone
            continue
        except OSError as error:
            gone = isinstance(error, FileExistsError) and all(map(_may_be_a_folder, (folder, *folder.parents)))
            if gone:  # after `mkdir` had found it, and before it had looked whether it was a folder
                continue
            raise unwritable(folder, error) from error
        try:
            if _lock(lock, folder):
                return lock, made, os.fstat(lock).st_size > 0  # an empty one was made just now
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    raise _taken(folder)


_TRIES = 10


def _may_be_a_folder(path: Path) -> bool:
    return path.is_dir() or not os.path.lexists(path)


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock the mark as long as this process lives, and say whether it still is the folder's.

    Some file systems lock no files: there, nothing is locked.

    Raises:
        DestinationError: another run has locked it, or it is another file of the user's, too.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _taken(folder) from error
    locked = os.fstat(descriptor)
    if locked.st_nlink > 1:
        raise DestinationError(
            f"'{folder / MARK}' is a hard link: to write it would change the file that it links to.", _OTHER
        )
    try:
        return os.path.samestat(locked, os.lstat(folder / MARK))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unwritable(folder, error) from error


def _taken(folder: Path) -> DestinationError:
    return DestinationError(f"Another evaluation is writing to '{folder}'.", f"Wait until it has ended. {_OTHER}")


def _clear(folder: Path, mark: int) -> None:
    """Remove the report of an earlier run, so that nothing of it is taken for this one's. Its rows stay."""
    try:
        os.pwrite(mark, _MARK_TEXT, 0)
        for name in _REPORT:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def _remove_empty(folder: Path, made: bool, marked: bool) -> None:
    """Remove the folders without rows; and the mark and the folder itself, if they are new and nothing was written."""
    for name in (PREDICTIONS, TIMM):
        with suppress(OSError):  # it has rows, or was not made
            (folder / name).rmdir()
    if not marked and os.listdir(folder) == [MARK]:
        (folder / MARK).unlink()
    if made:
        folder.rmdir()
