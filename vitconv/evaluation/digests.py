"""What the pipeline reads, by its bytes: ``python -m vitconv.evaluation.digests params.yaml build/sources NAME…``

DVC has no dependency that may be absent, and none that is a model on the Hub. So a stage that always runs writes the
SHA-256 of what each parameter names, and the other stages depend on what it writes: where that has not changed, they
do not run again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from vitconv.checkpoint import HUB_PREFIX, TORCH_INDEX_FILE, sha256, write_json
from vitconv.errors import InputError, VitconvError
from vitconv.evaluation.files import new_file
from vitconv.tensorfile import INDEX_FILE


def digest(value: str | None) -> dict[str, str]:
    """The SHA-256 of every file that a parameter names, by its path within what is named; empty for nothing.

    Args:
        value: a file, a folder, ``hf-hub:org/name``, or nothing. Of an index of several files, all in its folder.

    Raises:
        InputError: there is no such file.
        CheckpointError: the Hub has no such model, or cannot be reached.
    """
    if not value:
        return {}
    if HUB_PREFIX.match(value):
        from vitconv.hub import download

        path = download(HUB_PREFIX.sub("", value))
    else:
        path = Path(value).parent if Path(value).name in (INDEX_FILE, TORCH_INDEX_FILE) else Path(value)
    if path.is_dir():
        return {str(file.relative_to(path)): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
    if not path.is_file():
        raise InputError(f"There is no file '{value}'.", "Correct it in params.yaml; what is optional may be empty.")
    return {path.name: sha256(path)}


def write_digests(parameters: str | os.PathLike[str], destination: str | os.PathLike[str], names: list[str]) -> None:
    """Write a file for each parameter: ``NAME.json``.

    Args:
        parameters: the YAML file.
        destination: a folder.
        names: of parameters.

    Raises:
        InputError: a parameter is missing, no text, or names no file.
    """
    values: dict[str, Any] = yaml.safe_load(Path(parameters).read_text(encoding="utf-8"))
    for name in names:
        if not isinstance(values.get(name), str | None):
            raise InputError(f"The parameter `{name}` is {values[name]!r}.", "Write a path, or leave it empty.")
        found = digest(values.get(name))
        write_json(found, new_file(Path(destination) / f"{name}.json"))


if __name__ == "__main__":
    try:
        write_digests(sys.argv[1], sys.argv[2], sys.argv[3:])
    except VitconvError as error:
        sys.exit(f"error: {error}")
