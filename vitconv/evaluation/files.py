"""Where results are written."""

from pathlib import Path

from vitconv.errors import DestinationError


def new_file(path: str | Path) -> Path:
    """The path, for a new file: without the old one, in a folder that is there.

    Writing into the old file would change others with it: what DVC has recorded is a hard link to its cache.

    Raises:
        DestinationError: it cannot be removed, or the folder cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DestinationError(
            f"'{path}' cannot be written: {error.strerror or error}.", "Check the disk and the permissions."
        ) from error
    return path
