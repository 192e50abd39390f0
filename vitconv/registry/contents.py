"""What is registered of a folder: its files, and what its records say in figures. No MLflow here."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vitconv import __version__
from vitconv.checkpoints.checkpoint import CALIBRATION_FILE, CONFIG_FILE, PARITY_FILE, is_optimized
from vitconv.errors import CheckpointError, InputError, shown
from vitconv.files import is_unicode, read_json, sha256
from vitconv.inference import certainty, optimized
from vitconv.inference.runtime import ModelInfo, read_info
from vitconv.writing.record import read_record

#: What the figures of calibration.json are called where they stand alone.
_PLAIN = {
    "calibration_before": "calibration_error_before",
    "calibration_after": "calibration_error",
    "covered": "coverage",
    "odd_auroc": "auroc",
}
_IN_ADDRESSES = "\\#?%"
#: What was tried, not what came of it.
_NOT_LOGGED = ("scores",)


@dataclass(frozen=True)
class Contents:
    """A folder that vitconv can read, and what is logged of it.

    Attributes:
        info: what the folder says of its model.
        files: the SHA-256 of each of its files, by its path relative to the folder.
        params: what it is, in words.
        metrics: the figures of its records, by names such as ``"calibration/auroc"``.
        notes: what to know, a sentence each.
    """

    info: ModelInfo
    files: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()


def read_contents(folder: str | Path) -> Contents:
    """What is registered of a folder.

    Raises:
        CheckpointError, ParityError: it is not a folder that vitconv writes, is damaged, or a record was edited or
            belongs to another model.
        InputError: its model has no classes, a package that runs it is missing, or a file in it cannot be registered.
    """
    info = read_info(folder)
    made = read_record(info.folder)
    certainty.read_certainty(info)  # an edited one, or another model's, is refused
    parity: Mapping[str, Any] = {}
    notes = []
    if (info.folder / PARITY_FILE).exists():
        parity = read_json(info.folder / PARITY_FILE)
        verified = _verified(parity, info)
        unproved = _UNPROVED[verified]
    else:
        verified = "unknown"
        unproved = f"The folder has no {PARITY_FILE}: nothing says what it was made from."
    recipe: str = ""
    gate: Mapping[str, Any] = {}
    if is_optimized(info.folder):
        artefact, gate = optimized.read_record(info.folder)
        recipe = artefact.recipe
        verified = ""  # it is the gate that has judged it
    elif verified != "yes":
        notes.append(unproved)
    config = read_json(info.folder / CONFIG_FILE)
    params = {
        "class": str(config["architectures"][0]),
        "architecture": made.architecture or "",
        "runtime": info.runtime,
        "recipe": recipe,
        "device": info.device,
        "verified": verified,
        "classes": str(len(info.classes)),
        "input": "x".join(map(str, info.input_shape)),
        "fingerprint": info.fingerprint,
        "vitconv": __version__,
    }
    metrics = {**dict(_of_parity(parity)), **dict(_of_gate(gate))}
    if (info.folder / CALIBRATION_FILE).exists():
        metrics |= dict(_of_calibration(certainty.read_record(info.folder / CALIBRATION_FILE)))
    return Contents(
        info,
        read_files(info.folder),
        {name: value for name, value in params.items() if value},
        {name: value for name, value in metrics.items() if math.isfinite(value)},
        tuple(notes),
    )


_UNPROVED = {
    "yes": "",
    "no": "The conversion was not verified.",
    "unknown": f"An earlier vitconv has written {PARITY_FILE}: it does not say which files were verified.",
}


def _verified(parity: Mapping[str, Any], info: ModelInfo) -> str:
    """Whether a folder is as it was verified: ``"yes"``, ``"no"`` or ``"unknown"``.

    Raises:
        CheckpointError: its weights or configurations are others: trained further, edited, or of another folder.
    """
    if parity.get("verified") is not True:
        return "no"
    if "fingerprint" not in parity:
        return "unknown"
    if parity["fingerprint"] != info.fingerprint:
        raise CheckpointError(
            f"'{info.folder / PARITY_FILE}' is the proof of another model: not of these weights and configurations.",
            "Convert the source again, or remove the file.",
        )
    return "yes"


def read_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path relative to it, but for hidden ones.

    Raises:
        InputError: there is a pipe, a device, or a link to a folder, or a name is not UTF-8.
        CheckpointError: a file cannot be read.
    """
    found = {}
    for path in sorted(_paths(folder)):
        name = path.relative_to(folder).as_posix()
        if not fits(name):
            raise InputError(f"The file {shown(name)} in '{folder}' has a name that cannot be kept.", "Rename it.")
        try:
            found[name] = sha256(path)
        except OSError as error:
            raise CheckpointError(
                f"'{path}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
            ) from error
    return found


def _paths(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if not os.path.isdir(entry):
            yield entry
        elif entry.is_symlink():
            raise InputError(f"'{entry}' is a link to a folder.", "Put a copy of the folder in its place.")
        else:
            yield from _paths(entry)


def fits(name: Any) -> bool:
    """Whether it is the path of a file inside a folder, of printable characters, and not hidden.

    MLflow reads some of them as parts of an address.
    """
    if not isinstance(name, str) or not name.isprintable() or not is_unicode(name):
        return False
    if any(character in name for character in _IN_ADDRESSES):
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and "/".join(parts) == name and not any(part.startswith(".") for part in parts)


def digest(files: Mapping[str, str]) -> str:
    """One SHA-256 of all files, by their names."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def _of_parity(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """How far the two models were apart, in each precision that was compared."""
    comparisons = record.get("parity")
    for dtype, comparison in comparisons.items() if isinstance(comparisons, dict) else ():
        stages = comparison.get("stages") if isinstance(comparison, dict) else None
        stages = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
        differences = [number for stage in stages if (number := _number(stage.get("max_abs"))) is not None]
        if differences and fits(dtype):
            yield f"parity/{dtype}_largest_difference", max(differences)
            if stages[-1].get("name") == "logits":
                yield f"parity/{dtype}_logits_difference", differences[-1]


def _of_gate(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """How much the answers changed from float32's, and the size of the files."""
    for name in ("nbytes_before", "nbytes"):
        values = record.get("model", {}) if name == "nbytes_before" else record
        if (number := _number(values.get("nbytes"))) is not None:
            yield f"optimization/{name}", number
    for name, value in record.get("figures", {}).items():
        if (number := _number(value)) is not None:
            yield f"optimization/{name}", number


def _of_calibration(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """How far the answers may be believed."""
    if (number := _number(record.get("temperature"))) is not None:
        yield "calibration/temperature", number
    if (number := _number(record.get("coverage"))) is not None:
        yield "calibration/coverage_asked", number
    for name, value in record.get("figures", {}).items():
        if name in _NOT_LOGGED:
            continue
        if isinstance(value, dict):  # a share: so many of so many
            hits, count = _number(value.get("hits")), _number(value.get("count"))
            value = hits / count if hits is not None and count else None
        if (number := _number(value)) is not None:
            yield f"calibration/{_PLAIN.get(name, name)}", number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
