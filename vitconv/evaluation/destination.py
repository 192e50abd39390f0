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
    made, marked = not folder.exists(), (folder / MARK).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        _lock(lock, folder)
        try:
            _clear(folder, lock)
            yield
        finally:
            with suppress(OSError):
                _remove_empty(folder, made, marked)
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path) -> None:
    """Lock the folder as long as this process lives; some file systems lock no files."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not os.path.exists(folder / MARK)  # a run that wrote nothing has just removed it
    except OSError as error:
        taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    if taken:
        raise DestinationError(f"Another evaluation is writing to '{folder}'.", f"Wait until it has ended. {_OTHER}")


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
