"""What was evaluated, for the header of the report: the model, its checkpoint, the images, the versions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitconv import __version__
from vitconv.checkpoints.checkpoint import is_optimized
from vitconv.errors import InputError, first_few
from vitconv.inference import optimized
from vitconv.inference.predictions import read_predictions
from vitconv.inference.runtime import read_info
from vitconv.inference.watch import unchanged
from vitconv.models.huggingface import load_config
from vitconv.writing.record import ConversionRecord, SourceFile, read_record


def describe(
    model: str | Path, images: str | Path, predictions: str | Path, expected: str | Path | None = None
) -> dict[str, str]:
    """What the report tells of the model and of the run, by name.

    Args:
        model: the folder that was run.
        images: the images, as they were given.
        predictions: the folder that :func:`vitconv.inference.predict` wrote.
        expected: the answers to compare with: a file, or a folder of predictions.

    Raises:
        CheckpointError: it is not a folder that vitconv writes, a file cannot be read, or one changes meanwhile.
        InputError: the predictions were made with another model, or cannot be read.
    """
    folder = Path(model)
    settings = read_predictions(predictions).run.settings
    with unchanged(folder, "they were read"):
        fingerprint = read_info(folder).fingerprint
        if settings.get("model") != fingerprint:
            raise InputError(
                f"The predictions in '{predictions}' were not made with the model in '{model}' as it is now.",
                "Run `vitconv predict` again.",
            )
        record = read_record(folder)
        classes = load_config(folder).architectures[0]
        checkpoint = {"checkpoint": first_few(map(_name, record.files)) if record.files else "unknown"}
        return {
            "model": str(model),
            "model's SHA-256": f"{fingerprint[:16]}…",
            "class": f"{classes}, from timm's {record.architecture}" if record.architecture else classes,
            **(_optimized(folder) if is_optimized(folder) else checkpoint),
            "images": str(images),
            "compared with": _compared_with(expected, record, folder),
            "predicted on": _run(settings),
            "versions": _versions({"vitconv": __version__, **dict(settings.get("versions") or {})}),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }


def _optimized(folder: Path) -> dict[str, str]:
    """What an optimised folder was made from, and how it is run."""
    artefact, record = optimized.read_record(folder)
    model = record.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    precision = artefact.settings.get("precision")
    runtime = f"run by {artefact.runtime}{f' in {precision}' if precision else ''}"
    return {
        "made from": f"{name or 'unknown'} (SHA-256 {artefact.model[:16]}…)",
        "recipe": f"{artefact.recipe}, {runtime}",
    }


def _compared_with(expected: str | Path | None, record: ConversionRecord, folder: Path) -> str:
    """What the answers are compared with; of a timm model also whether the folder was made from its file."""
    if expected is None:
        return "nothing"
    if not Path(expected).is_dir():
        return f"the answers in {expected}"
    settings = read_predictions(expected).run.settings
    if settings.get("runtime") != "timm":
        its_own = is_optimized(folder) and settings.get("model") == optimized.read_artefact(folder).model
        return f"the predictions in {expected}{', of the model that it was made from' if its_own else ''}"
    text = f"the timm model of {settings.get('source')}, run with timm's own pixels"
    known = {file.sha256 for file in record.files if file.sha256}
    given = settings.get("source_sha256")  # anything, in a part that was written anew
    if known and isinstance(given, list) and known.isdisjoint(map(str, given)):
        text += "; the model was converted from another file"
    return text


def _name(file: SourceFile) -> str:
    return f"{file.file} (SHA-256 {file.sha256[:16]}…)" if file.sha256 else file.file


def _run(settings: Mapping[str, Any]) -> str:
    pixels = "timm's" if settings.get("processor") == "timm" else "Transformers'"
    return f"{settings.get('device')}, {settings.get('batch_size')} images at a time, {pixels} pixels"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
