"""Which files with machine code may be loaded: those that this user has made here, or has put on the list.

A TorchScript file and an AOTInductor package are programs: loading one runs its code. So a folder from elsewhere could
do anything. `vitconv optimize` notes the SHA-256 of each that it makes in a list, a line each, in the user's own state
folder; no other is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from vitconv.errors import CheckpointError, DestinationError, InputError
from vitconv.files import check_file, open_file, sha256, unwritable


def trusted_list() -> Path:
    """The list: ``$XDG_STATE_HOME/vitconv/trusted.txt``, by default in ``~/.local/state``.

    Raises:
        InputError: the user has no home folder, such as a container's that has a number only.
    """
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise InputError(
            "There is no home folder for the list of the programs that may be loaded.",
            "Set HOME or XDG_STATE_HOME to a folder.",
        ) from error
    return Path(state, "vitconv", "trusted.txt")


def trust(file: Path) -> None:
    """Put a file on the list.

    Raises:
        DestinationError: the list cannot be written, or is no file.
    """
    place = trusted_list()
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_file(place, "list", error=DestinationError)
        with place.open("ab") as opened:
            known = place.read_bytes()  # people add lines, too, and may leave out the last one's end
            opened.write(b"\n" * (known[-1:] not in (b"", b"\n")) + f"{sha256(file)}\n".encode())
    except OSError as error:
        raise unwritable(place, error) from error


def check_trusted(file: Path) -> None:
    """Raise :class:`CheckpointError` unless a file is on the list."""
    digest, place = sha256(file), trusted_list()
    try:
        with open_file(place) as opened:
            known = opened.read().decode().split()
    except (OSError, UnicodeDecodeError):
        known = []
    if digest not in known:
        raise CheckpointError(
            f"'{file}' is a program, and was not made by this user on this machine: loading it would run its code.",
            f"If you trust who made it, add the line {digest} to '{place}'.",
        )
