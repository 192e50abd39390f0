"""``parity.json``: what was converted, by which versions, and how close the two models came.

Schema 2 calls a stage's measured value ``error``; schema 1 called it ``badness``. What is read back from a record has
the same names in both.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import __version__
from vitconv.architecture import MOST_PIXELS
from vitconv.checkpoints.checkpoint import PARITY_FILE
from vitconv.checkpoints.labels import check_labels
from vitconv.errors import CheckpointError, InputError, shown
from vitconv.files import is_unicode, read_json
from vitconv.models.catalogue import entries

if TYPE_CHECKING:
    from vitconv.parity.comparison import Parity
    from vitconv.parity.verification import Verification
    from vitconv.source import Identified

SCHEMA = 2


@dataclass(frozen=True)
class SourceFile:
    """A file that a folder was made from; ``sha256`` is ``None`` if the conversion was not verified."""

    file: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, repr=False)
class ConversionRecord:
    """How a folder was made, as far as its ``parity.json`` says so. The defaults stand for a folder without one.

    Attributes:
        architecture: timm's name; ``None`` if a model was given.
        target: the family that was asked for.
        image_size: (height, width).
        data: the preprocessing settings that were given.
        labels: the class names.
        ema, ignore, headless: as for :func:`vitconv.convert.convert_checkpoint`.
        files: what was converted.
    """

    architecture: str | None = None
    target: str | None = None
    image_size: tuple[int, int] | None = None
    data: dict[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    ema: bool = True
    ignore: tuple[str, ...] = ()
    headless: bool = False
    files: tuple[SourceFile, ...] = ()

    def __repr__(self) -> str:
        return f"ConversionRecord({self.architecture}, {len(self.labels or ())} labels, {len(self.files)} files)"


def conversion_record(
    opened: Identified,
    labels: tuple[str, ...],
    verification: Verification | None,
    hashes: Mapping[Path, str],
    verified: str | None,
) -> dict[str, Any]:
    """The contents of ``parity.json`` in a Transformers folder.

    Args:
        opened: the source.
        labels: the class names that were written.
        verification: ``None`` if it was switched off.
        hashes: the SHA-256 of the source's files, as far as they are known.
        verified: the fingerprint of the folder that was verified; ``None`` if none was.
    """
    inspection = opened.inspection
    versions = {name: importlib.metadata.version(name) for name in ("timm", "transformers", "torch", "safetensors")}
    return {
        "schema": SCHEMA,
        "source": [
            {"file": _as_text(file.name), "bytes": file.stat().st_size, "sha256": hashes.get(file)}
            for file in opened.source.files
        ],
        "notes": list(inspection.notes),
        "ema": opened.options.ema,
        "ignore": list(opened.options.ignore),
        "headless": opened.options.headless,
        "versions": {"vitconv": __version__, **versions},
        "architecture": opened.timm_name,
        "target": inspection.target,
        "image_size": list(inspection.architecture.image_size),
        "labels": list(labels),
        "preprocessing": asdict(inspection.data),
        "made": [asdict(made) for made in inspection.made],
        "verified": verification is not None,
        "fingerprint": verified,
        **(verification.to_dict() if verification else {}),
    }


def reversion_record(timm_name: str, parity: Parity) -> dict[str, Any]:
    """The contents of ``parity.json`` in a timm folder."""
    return {"schema": SCHEMA, "architecture": timm_name, "parity": parity.to_dict()}


def read_record(folder: Path) -> ConversionRecord:
    """How a Transformers folder was made.

    Raises:
        CheckpointError: there is a ``parity.json`` that no vitconv up to this one has written.
    """
    path = folder / PARITY_FILE
    if not path.exists():
        return ConversionRecord()
    content = read_json(path)
    _check_schema(content, path)
    preprocessing = content.get("preprocessing")
    given = preprocessing.get("given", ...) if isinstance(preprocessing, dict) else ...
    found = {"target": None, "ignore": [], "headless": False, **content, "given": given}  # earlier versions lack three
    for name, fits in _FIELDS.items():
        value = found.get(name, ...)
        if not fits(value):
            what = "is missing" if value is ... else f"is {shown(value)}"
            raise _not_a_record(path, f": its `{name}` {what}.")
    try:
        labels = check_labels(found["labels"]) if found["labels"] else None
    except InputError as error:
        raise _not_a_record(path, f". {error.problem}") from error
    return ConversionRecord(
        architecture=found["architecture"],
        target=found["target"],
        image_size=(found["image_size"][0], found["image_size"][1]),
        data=found["given"] or None,
        labels=labels,
        ema=found["ema"],
        ignore=tuple(found["ignore"]),
        headless=found["headless"],
        files=tuple(SourceFile(file["file"], file["bytes"], file["sha256"]) for file in found["source"]),
    )


def _not_a_record(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"'{path}' is not a record that vitconv has written{why}", "Restore the file, or remove it."
    )


def _as_text(name: str) -> str:
    """The name of a file, with U+FFFD for what is not UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and is_unicode(value)


def _are_sides(value: Any) -> bool:
    fits = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    return fits and value[0] * value[1] <= MOST_PIXELS


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_name(value.get("file"))
        and type(value.get("bytes")) is int
        and 0 <= value["bytes"] < 2**63
        and "sha256" in value
        and (value["sha256"] is None or _is_sha256(value["sha256"]))
    )


_LONGEST_NAME = 1000
#: What is read of ``parity.json``, and whether a value can be that: anybody may have edited the file.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "architecture": lambda value: value is None or _is_name(value),
    "target": lambda value: value is None or _is_name(value),
    "image_size": _are_sides,
    "given": lambda value: value is None or isinstance(value, dict),
    "labels": lambda value: isinstance(value, list),
    "ema": lambda value: isinstance(value, bool),
    "ignore": lambda value: isinstance(value, list) and all(map(_is_name, value)),
    "headless": lambda value: isinstance(value, bool),
    "source": lambda value: isinstance(value, list) and all(map(_is_file, value)),
}


def recorded_architecture(folder: Path) -> str | None:
    """timm's name of the architecture that a folder was made from; ``None`` if ``parity.json`` does not say.

    Raises:
        CheckpointError: the file is not JSON, a newer vitconv has written it, or it names no architecture of timm's.
    """
    path = folder / PARITY_FILE
    if not path.exists():
        return None
    content = read_json(path)
    _check_schema(content, path)
    name = content.get("architecture")
    if name is not None and not (isinstance(name, str) and name.partition(".")[0] in entries()):
        raise CheckpointError(
            f"'{path}' records the architecture {shown(name)}, which timm does not know.",
            "Name the architecture with --arch, restore the file, or remove it.",
        )
    return name


def _check_schema(content: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`CheckpointError` for a record of a newer vitconv: its names may mean something else."""
    schema = content.get("schema", 1)
    if type(schema) is not int or schema < 1:
        raise _not_a_record(path, f": its `schema` is {shown(schema)}.")
    if schema > SCHEMA:
        raise CheckpointError(
            f"'{path}' has schema {shown(schema)}, and this vitconv reads schemas up to {SCHEMA}.",
            "Install a newer vitconv, or remove the file.",
        )
