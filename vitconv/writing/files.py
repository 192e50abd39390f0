"""Where results are written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitconv.writing.staging import umask, unwritable


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a file to write, which takes the name ``path`` when the block ends well, so that it is whole or not there.

    An old file of this name is replaced, not written into: that would change others with it, as what DVC has recorded
    is a hard link to its cache. The file lies beside ``path`` and has its suffix; a kill leaves it there, hidden.

    Raises:
        DestinationError: it cannot be written, or the folder cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
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
