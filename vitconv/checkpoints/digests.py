"""Digests of the pipeline's inputs, and of a folder.

DVC cannot depend on a file that may be absent, or on a model on the Hub. So a stage that always runs writes the
SHA-256 of the files that each parameter names. The other stages depend on what it writes: they run again only if that
changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from vitconv.checkpoints.checkpoint import (
    CALIBRATION_FILE,
    HUB_PREFIX,
    OPTIMIZATION_FILE,
    PARITY_FILE,
    TORCH_INDEX_FILE,
)
from vitconv.checkpoints.tensorfile import INDEX_FILE
from vitconv.errors import CheckpointError, InputError
from vitconv.files import new_file, sha256, write_json


def digest(value: str | None) -> dict[str, str]:
    """The SHA-256 of every file that a parameter names, by its path within the folder; empty for no value.

    Args:
        value: a file, a folder, ``hf-hub:org/name``, or nothing. The index of several files stands for its folder.

    Raises:
        InputError: there is no such file, or it cannot be read.
        CheckpointError: the Hub has no such model, or cannot be reached.
    """
    if not value:
        return {}
    if HUB_PREFIX.match(value):
        from vitconv.checkpoints.hub import download

        path = download(HUB_PREFIX.sub("", value))
    else:
        path = Path(value).parent if Path(value).name in (INDEX_FILE, TORCH_INDEX_FILE) else Path(value)
    try:
        if path.is_dir():
            return {str(file.relative_to(path)): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
        if path.is_file():
            return {path.name: sha256(path)}
    except OSError as error:
        raise InputError(f"'{value}' cannot be read: {error.strerror or error}.", _CORRECT) from error
    raise InputError(f"There is no file '{value}'.", _CORRECT)


_CORRECT = "Correct the path in params.yaml, or leave it empty if it is optional."


def write_digests(values: Mapping[str, str | None], destination: str | os.PathLike[str]) -> None:
    """Write a file for each parameter: ``NAME.json``.

    Args:
        values: what each parameter names, by the parameter's name.
        destination: a folder.

    Raises:
        InputError: a parameter names no file that can be read.
        CheckpointError: the Hub has no such model, or cannot be reached.
    """
    for name, value in values.items():
        found = digest(value)
        with new_file(Path(destination) / f"{name}.json") as file:
            write_json(found, file)


def fingerprint(folder: Path) -> str:
    """One SHA-256 of the weight files and the configurations of a Transformers folder.

    The records of how they were made, and of what was found out about them, decide no logit; nor do hidden files, such
    as a record that is being written.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
    files = [file for file in files if not file.name.startswith(".")]
    try:
        digests = {file.name: sha256(file) for file in files if file.name not in _RECORDS and file.is_file()}
    except OSError as error:
        raise CheckpointError(
            f"'{error.filename}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
        ) from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


_RECORDS = (PARITY_FILE, OPTIMIZATION_FILE, CALIBRATION_FILE)
