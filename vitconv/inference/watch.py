"""Tell whether a model's files have changed while they were used: another process may replace its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vitconv.errors import CheckpointError
from vitconv.writing.staging import MODEL_FOLDERS


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


def watch_model(folder: Path) -> Watch:
    """Watch the files of a model's folder, from before anything in it is read."""
    return Watch(folder, partial(_model_files, folder))


@contextmanager
def unchanged(folder: Path, what: str) -> Iterator[None]:
    """Raise :class:`CheckpointError` if a file of a model's folder changes within the block.

    The files are read one after the other: of a folder that is replaced meanwhile, the names of one model and the
    weights of another. Whatever the block raises then, as a file is gone or is half written, is not what is wrong.
    """
    watch = watch_model(folder)
    try:
        yield
    except Exception as error:
        try:
            watch.check(what)
        except CheckpointError as changed:
            raise changed from error
        raise
    watch.check(what)


def _model_files(folder: Path) -> Iterator[Path]:
    """The files of a model's folder. Other folders in it are not the model's: predictions may be written there."""
    yield from folder.iterdir()
    for name in MODEL_FOLDERS:
        if (folder / name).is_dir():
            yield from (folder / name).iterdir()
