"""What was evaluated, for the header of the report: the model, its checkpoint, the images, the versions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitconv import __version__
from vitconv.errors import InputError, first_few
from vitconv.inference.predictions import read_predictions
from vitconv.inference.runtime import read_info
from vitconv.models.huggingface import load_config
from vitconv.writing.record import SourceFile, read_record


def describe(
    model: str | Path, images: str | Path, predictions: str | Path, *, compared_with: str = "nothing"
) -> dict[str, str]:
    """What the report tells of the model and of the run, by name.

    Args:
        model: the folder that was run.
        images: the images, as they were given.
        predictions: the folder that :func:`vitconv.inference.predict` wrote.
        compared_with: what the answers are compared with, for people.

    Raises:
        CheckpointError: it is not a folder that vitconv writes, or a file cannot be read.
        InputError: the predictions were made with another model, or cannot be read.
    """
    folder = Path(model)
    settings = read_predictions(predictions).run.settings
    fingerprint = read_info(folder).fingerprint
    if settings.get("model") != fingerprint:
        raise InputError(
            f"The predictions in '{predictions}' were not made with the model in '{model}' as it is now.",
            "Run `vitconv predict` again.",
        )
    record = read_record(folder)
    classes = load_config(folder).architectures[0]
    return {
        "model": str(model),
        "model's SHA-256": f"{fingerprint[:16]}…",
        "class": f"{classes}, from timm's {record.architecture}" if record.architecture else classes,
        "checkpoint": first_few(map(_name, record.files)) if record.files else "unknown",
        "images": str(images),
        "compared with": compared_with,
        "predicted on": _run(settings),
        "versions": _versions({"vitconv": __version__, **settings.get("versions", {})}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _name(file: SourceFile) -> str:
    return f"{file.file} (SHA-256 {file.sha256[:16]}…)" if file.sha256 else file.file


def _run(settings: Mapping[str, Any]) -> str:
    pixels = {"transformers": "Transformers' pixels", "timm": "timm's pixels"}.get(settings["processor"], "")
    return f"{settings['device']}, {settings['batch_size']} images at a time, {pixels}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
