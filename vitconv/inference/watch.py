"""Tell whether a model's files have changed while they were used: another process may replace its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vitconv.files import Watch
from vitconv.writing.staging import MODEL_FOLDERS


def watch_model(folder: Path) -> Watch:
    """Watch the files of a model's folder, from before anything in it is read."""
    return Watch(folder, partial(_model_files, folder))


@contextmanager
def unchanged(folder: Path, what: str) -> Iterator[None]:
    """Raise :class:`CheckpointError` if a file of a model's folder changes within the block.

    The files are read one after the other: of a folder that is replaced meanwhile, the names of one model and the
    weights of another. Whatever the block raises then, as a file is gone or is half written, is not what is wrong.
    """
    with watch_model(folder).unchanged(what):
        yield


def _model_files(folder: Path) -> Iterator[Path]:
    """The files of a model's folder. Other folders in it are not the model's: predictions may be written there."""
    yield from folder.iterdir()
    for name in MODEL_FOLDERS:
        if (folder / name).is_dir():
            yield from (folder / name).iterdir()
