"""What an optimised folder says of itself: ``optimization.json``, which `vitconv optimize` writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vitconv.checkpoints.checkpoint import CONFIG_FILE, OPTIMIZATION_FILE, is_optimized
from vitconv.errors import (
    CheckpointError,
    InputError,
    ParityError,
    VitconvError,
    first_few,
    how_to_install,
    shown,
)
from vitconv.files import check_file, is_unicode, read_json, sha256, write_json
from vitconv.inference.machine import instructions
from vitconv.models.huggingface import HEAD_FILE, first_line
from vitconv.models.processors import PROCESSOR_FILE, TIMM_PROCESSOR_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.runtime import ModelInfo

#: The form of the file; a later one may add to it.
SCHEMA = 1
#: What describes a model besides its weights.
DESCRIPTION = (CONFIG_FILE, PROCESSOR_FILE, TIMM_PROCESSOR_FILE, HEAD_FILE.name)
#: The most bytes of ``optimization.json``, and the most texts in one of its lists, and of the characters of each. What
#: recipes write is less than a tenth of that.
_MOST_RECORD, _MOST_TEXTS, _MOST_CHARACTERS = 2**20, 100, 1000
_AGAIN = "Run `vitconv optimize` again."


@dataclass(frozen=True)
class Artefact:
    """The part of ``optimization.json`` that decides how the folder is run.

    Attributes:
        recipe: what made it, a name in :data:`vitconv.optimization.RECIPES`.
        runtime: what runs it, a name in :data:`vitconv.inference.RUNTIMES`, or ``"transformers"``.
        file: the model's file, relative to the folder.
        output: which of its outputs are the logits.
        settings: what else decides the numbers, such as the precision.
        device: the only kind of device that it runs on, ``"cpu"`` or ``"cuda"``; empty for any.
        instructions: the processor's instruction sets without which it would fail or be wrong.
        files: the SHA-256 of every file that decides the numbers, by its path relative to the folder.
        model: the fingerprint of the model that it was made from.
    """

    recipe: str
    runtime: str
    file: str
    output: str = "logits"
    settings: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    instructions: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    model: str = ""


def runtime_of(folder: Path) -> str:
    """The runtime that an optimised folder wants; empty for any other folder."""
    return read_artefact(folder).runtime if is_optimized(folder) else ""


def read_artefact(folder: Path) -> Artefact:
    """How an optimised folder is run.

    Raises:
        CheckpointError: its ``optimization.json`` is damaged, was edited, or a later vitconv has written it.
    """
    return read_record(folder)[0]


def read_record(folder: Path) -> tuple[Artefact, dict[str, Any]]:
    """An optimised folder's ``optimization.json``: how it is run, and all that the file says, as it is.

    Raises:
        CheckpointError: as :func:`read_artefact`.
    """
    path = folder / OPTIMIZATION_FILE
    content = read_json(path, _MOST_RECORD)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"'{path}' has the schema {shown(content.get('schema'))}, and this vitconv reads {SCHEMA}.",
            "Install the vitconv that wrote it, or run `vitconv optimize` again.",
        )
    if content.pop("seal", None) != _seal(content):
        raise CheckpointError(f"'{path}' has been edited since `vitconv optimize` wrote it.", _AGAIN)
    values = content.get("artefact")
    values = values if isinstance(values, dict) else {}
    for name, fits in _FIELDS.items():
        if not fits(values.get(name)):
            raise CheckpointError(
                f"'{path}' is not a record that vitconv has written: its `{name}` is {shown(values.get(name))}.",
                _AGAIN,
            )
    found = {name: values[name] for name in _FIELDS}
    return Artefact(**{**found, "instructions": tuple(found["instructions"])}), content


def read_info(folder: Path, packages: Sequence[str]) -> ModelInfo:
    """What an optimised folder says of its model, after checking that its files are those that were judged.

    Args:
        folder: as `vitconv optimize` writes it.
        packages: the names of the modules that run it.

    Raises:
        CheckpointError: it was changed, or `vitconv optimize` has not written it.
        InputError: a package is not installed.
    """
    from vitconv.inference.runtime import ModelInfo
    from vitconv.inference.transformers import read_classes_and_shape

    artefact = read_artefact(folder)
    check_files(folder, artefact)
    classes, shape = read_classes_and_shape(folder)
    versions = {name: _version(name, artefact) for name in packages}
    decides = {name: getattr(artefact, name) for name in ("runtime", "file", "output", "settings", "files")}
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return ModelInfo(
        artefact.runtime, folder, classes, shape, fingerprint, versions, dict(artefact.settings), artefact.device
    )


def _version(package: str, artefact: Artefact) -> str:
    """The version of an installed package, whichever distribution it comes from: onnxruntime has several."""
    try:
        return version(package)
    except PackageNotFoundError:
        for distribution in packages_distributions().get(package, ()):
            return version(distribution)
    raise InputError(
        f"A model of the recipe {artefact.recipe} is run by {package}, which is not installed.",
        f"Install it with {how_to_install(_EXTRAS[package]) if package in _EXTRAS else f'pip install {package}'}.",
    )


#: The extras of pyproject.toml that install a package.
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_CHARACTERS and is_unicode(value)


def _is_inside(value: Any) -> bool:
    """Whether it is the path of a file inside the folder."""
    path = PurePosixPath(value) if _is_text(value) and "\0" not in value else PurePosixPath("/")
    return not path.is_absolute() and ".." not in path.parts and path.name != ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and _are_few_texts([*value, *value.values()], 2 * _MOST_TEXTS)


def _are_few_texts(value: Any, most: int = _MOST_TEXTS) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(_is_text, value))


_FIELDS = {
    **dict.fromkeys(("recipe", "runtime", "output", "device", "model"), _is_text),
    "file": _is_inside,
    "settings": _are_texts,
    "instructions": _are_few_texts,
    "files": lambda value: _are_texts(value) and all(map(_is_inside, value)) and bool(value),
}


def check_files(folder: Path, artefact: Artefact) -> None:
    """Raise :class:`CheckpointError` unless the folder holds the files that were judged, byte by byte.

    An artefact of other weights, or another configuration, would run and give other answers without a word.
    """
    if artefact.file not in artefact.files:
        raise CheckpointError(f"'{folder / OPTIMIZATION_FILE}' does not state the SHA-256 of {artefact.file}.", _AGAIN)
    for name in DESCRIPTION:
        if (folder / name).exists() and name not in artefact.files:
            raise CheckpointError(
                f"'{folder / name}' was not there when `vitconv optimize` judged the model.", "Remove it."
            )
    _refuse_others(folder, artefact)
    for name, expected in artefact.files.items():
        check_file(folder / name, "file", error=CheckpointError)
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise CheckpointError(
                f"'{folder / name}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
            ) from error
        if found != expected:
            raise CheckpointError(
                f"'{folder / name}' is not the file that `vitconv optimize` wrote and judged.", _AGAIN
            )


def _refuse_others(folder: Path, artefact: Artefact) -> None:
    """Raise :class:`CheckpointError` for a file beside the model's that the record does not list.

    A model in ONNX may have its weights in any file of its own folder or below, and OpenVINO reads ONNX, too.
    """
    if artefact.runtime not in _READ_OTHERS:
        return
    place = (folder / artefact.file).parent
    if place == folder:
        raise CheckpointError(
            f"'{folder / OPTIMIZATION_FILE}' names the model's file {artefact.file}, in no folder of its own.",
            _AGAIN,
        )
    for path in place.rglob("*"):
        folders_only = path.is_dir() and not path.is_symlink()
        if not folders_only and path.relative_to(folder).as_posix() not in artefact.files:
            raise CheckpointError(
                f"'{path}' was not there when `vitconv optimize` judged the model, which may read it.", "Remove it."
            )


#: The runtimes that read more files than the one that they are given.
_READ_OTHERS = ("onnxruntime", "openvino", "tensorrt")


def check_machine(folder: Path, artefact: Artefact, device: str) -> None:
    """Raise an error if the folder cannot be run here, or would give other numbers.

    Raises:
        InputError: it runs on another device, or needs instructions that the processor does not have.
    """
    kind = device.partition(":")[0]
    if artefact.device and kind != artefact.device:
        raise InputError(
            f"The model in '{folder}' runs on '{artefact.device}' only: its recipe is {artefact.recipe}.",
            f"Choose this device, or another recipe for '{kind}'.",
        )
    missing = [name for name in artefact.instructions if name not in instructions()]
    if missing:
        raise InputError(
            f"The model in '{folder}' was made for processors with {first_few(artefact.instructions)}, and this one "
            f"has no {first_few(missing)}: it would fail, or give other answers.",
            "Run `vitconv optimize` on this machine, or choose another recipe.",
        )


@contextmanager
def loading(library: str, file: Path) -> Iterator[None]:
    """Raise :class:`CheckpointError` where a library cannot load a file: their errors have no common class."""
    try:
        yield
    except VitconvError:
        raise
    except Exception as error:
        raise CheckpointError(f"{library} cannot load '{file}': {first_line(error)}", _INSTALLED) from error


@contextmanager
def running(library: str, info: ModelInfo) -> Iterator[None]:
    """Raise :class:`ParityError` where a library cannot run a model, but for a device's want of memory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ParityError(
            f"{library} cannot run the model in '{info.folder}': {first_line(error)}", _INSTALLED, stage="loading"
        ) from error


_INSTALLED = "Run `vitconv optimize` again with the installed version."


def check_logits(logits: Any, pixels: NDArray[np.float32], info: ModelInfo) -> NDArray[np.float32]:
    """The logits that a runtime has given, if they can be those of these pixels.

    Raises:
        ParityError: they are not a number for each image and class.
    """
    expected = (len(pixels), len(info.classes))
    found = f"{logits.dtype} of shape {logits.shape}" if hasattr(logits, "dtype") else type(logits).__name__
    if found != f"float32 of shape {expected}":
        raise ParityError(
            f"The model in '{info.folder}' gives {found} instead of float32 of shape {expected}.",
            _AGAIN,
            stage="logits",
        )
    return logits


def write_record(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``optimization.json`` with a seal, which tells an edited file; it keeps out no one who means harm."""
    write_json({**content, "seal": _seal(content)}, folder / OPTIMIZATION_FILE)


def _seal(content: Mapping[str, Any]) -> str:
    """The SHA-256 of what the file says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_json(artefact: Artefact) -> dict[str, Any]:
    """The artefact as :func:`read_artefact` reads it."""
    return json.loads(json.dumps({name: getattr(artefact, name) for name in _FIELDS}))
