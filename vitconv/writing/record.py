"""``parity.json``: what was converted, by which versions, and how close the two models came.

Schema 2 calls a stage's measured value ``error``; schema 1 called it ``badness``. What is read back from a record has
the same names in both.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import __version__
from vitconv.checkpoints.checkpoint import PARITY_FILE, read_json
from vitconv.checkpoints.labels import check_labels
from vitconv.errors import CheckpointError, InputError

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


@dataclass(frozen=True)
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


def conversion_record(
    opened: Identified, labels: tuple[str, ...], verification: Verification | None, hashes: Mapping[Path, str]
) -> dict[str, Any]:
    """The contents of ``parity.json`` in a Transformers folder.

    Args:
        opened: the source.
        labels: the class names that were written.
        verification: ``None`` if it was switched off.
        hashes: the SHA-256 of the source's files, as far as they are known.
    """
    inspection = opened.inspection
    versions = {name: importlib.metadata.version(name) for name in ("timm", "transformers", "torch", "safetensors")}
    return {
        "schema": SCHEMA,
        "source": [
            {"file": file.name, "bytes": file.stat().st_size, "sha256": hashes.get(file)}
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
    try:
        height, width = content["image_size"]
        return ConversionRecord(
            architecture=content["architecture"] and str(content["architecture"]),
            target=content.get("target"),
            image_size=(int(height), int(width)),
            data=dict(content["preprocessing"]["given"] or {}) or None,
            labels=check_labels(content["labels"]) if content["labels"] else None,
            ema=bool(content["ema"]),
            ignore=tuple(map(str, content.get("ignore", ()))),
            headless=bool(content.get("headless", False)),
            files=tuple(
                SourceFile(str(file["file"]), int(file["bytes"]), file["sha256"] and str(file["sha256"]))
                for file in content["source"]
            ),
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise CheckpointError(
            f"'{path}' is not a record that vitconv has written.", "Restore the file, or remove it."
        ) from error


def recorded_architecture(folder: Path) -> str | None:
    """timm's name of the architecture that a folder was made from; ``None`` if ``parity.json`` does not say.

    Raises:
        CheckpointError: the file is not JSON, or a newer vitconv has written it.
    """
    path = folder / PARITY_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    _check_schema(content, path)
    name = content.get("architecture")
    return name if isinstance(name, str) else None


def _check_schema(content: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`CheckpointError` for a record of a newer vitconv: its names may mean something else."""
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"'{path}' has schema {schema}, and this vitconv reads schemas up to {SCHEMA}.",
            "Install a newer vitconv, or remove the file.",
        )
