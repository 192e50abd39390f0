"""Write a store: the model repository that Triton reads, with all that it needs to run in another place."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any, cast, get_args

import vitconv
from vitconv.checkpoints.checkpoint import CALIBRATION_FILE, OPTIMIZATION_FILE, PARITY_FILE, is_optimized
from vitconv.errors import CheckpointError, DestinationError, InputError
from vitconv.files import check_file, new_file, sha256
from vitconv.inference.certainty import Certainty, read_certainty
from vitconv.inference.optimized import DESCRIPTION, Artefact, read_artefact
from vitconv.inference.pixels import Preprocessor, open_preprocessor
from vitconv.inference.runtime import ModelInfo, choose_device, read_info, wanted_device
from vitconv.inference.trusted import check_trusted
from vitconv.models.processors import ProcessorName
from vitconv.serving.probe import sample_file
from vitconv.serving.tensors import MODEL, PREPROCESS, VIT
from vitconv.serving.triton.configuration import (
    BACKENDS,
    FOLDER,
    LABELS,
    STATE,
    STUB_TIMEOUT,
    WARMUP_IMAGE,
    BackendName,
    Hardware,
    Served,
    as_text,
    configurations,
)
from vitconv.writing.card import CARD_FILE
from vitconv.writing.staging import staged_folder

#: The oldest of NVIDIA's containers with a Python that vitconv runs on has the version 24.11.
CONTAINER = "nvcr.io/nvidia/tritonserver:26.04-py3"
REQUIREMENTS = "requirements.txt"
#: What vitconv imports to run a model, whatever runs it.
_PACKAGES = ("torch", "torchvision", "transformers", "safetensors", "huggingface_hub", "pillow", "numpy")
#: The runtimes of files that run their own code when they are loaded.
_PROGRAMS = ("torchscript", "aotinductor")
_TEMPLATES = Path(__file__).with_name("templates")
_VERSION = "1"


@dataclass(frozen=True)
class Store:
    """A store that was written.

    Attributes:
        folder: the model repository.
        archive: the same as a zip file; ``None`` without one.
        info: what the model's folder says of it.
        backend: what runs the model in Triton.
        hardware: what it runs on.
        requirements: the Python packages that the server needs, as pip reads them.
    """

    folder: Path
    archive: Path | None
    info: ModelInfo
    backend: BackendName
    hardware: Hardware
    requirements: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What was written, for programs."""
        return {
            "folder": str(self.folder),
            "archive": self.archive and str(self.archive),
            "fingerprint": self.info.fingerprint,
            "backend": self.backend,
            "hardware": self.hardware,
            "requirements": list(self.requirements),
        }


def write_store(
    model: str | Path,
    destination: str | Path,
    *,
    backend: BackendName = "python",
    device: str = "auto",
    processor: ProcessorName = "transformers",
    archive: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Store:
    """Write a model repository for Triton, which appears whole or not at all.

    Args:
        model: a folder with a classification head, as vitconv writes it, converted or optimised.
        destination: the new folder.
        backend: what runs the model: ``"python"`` for vitconv itself, which gives the numbers of `vitconv predict`, or
            the backend of Triton that reads the file of an optimised folder.
        device: what the server has: ``"cpu"``, ``"cuda"``, or ``"auto"`` for what the folder was made for, else a CPU.
        processor: what makes the pixels: see :func:`vitconv.inference.open_preprocessor`.
        archive: also write ``DESTINATION.zip``. The same input gives the same bytes.
        on_step: told what begins.

    Raises:
        CheckpointError, ParityError: it is not a folder that vitconv writes, or its file is a program that is not
            trusted.
        InputError: the model has no classes, it lacks the processor, or the backend or the device does not fit it.
        DestinationError: the destination exists, or cannot be written.
    """
    destination = Path(destination)
    zipped = Path(f"{destination}.zip") if archive else None
    for path in filter(None, (destination, zipped)):
        if os.path.lexists(path):
            raise DestinationError(f"'{path}' exists already.", "Choose another destination, or remove it.")
    on_step("Checking the model")
    info = read_info(model)
    image = sample_file()
    certainty = read_certainty(info, processor) if backend == "python" else None
    served = replace(_served(info, backend, device, processor, len(image)), calibrated=certainty is not None)
    described = configurations(served)
    preprocessor = open_preprocessor(info, processor)
    requirements = tuple(_requirements(info if backend == "python" else None, preprocessor))

    with staged_folder(destination) as staging:
        on_step("Writing the store")
        for name, configuration in described.items():
            (staging / name / _VERSION).mkdir(parents=True)
            (staging / name / "config.pbtxt").write_text(as_text(configuration), encoding="utf-8")
        for name in (MODEL, VIT):
            (staging / name / LABELS).write_text("".join(f"{one}\n" for one in info.classes), encoding="utf-8")
        # Triton wants a version of an ensemble, too, and git and object stores keep no empty folder.
        (staging / VIT / _VERSION / ".keep").touch()
        (staging / PREPROCESS / "warmup").mkdir()
        (staging / PREPROCESS / "warmup" / WARMUP_IMAGE).write_bytes(image)
        _write_code(PREPROCESS, staging / PREPROCESS / _VERSION)
        _copy(info.folder, DESCRIPTION, staging / PREPROCESS / _VERSION / FOLDER)
        if backend == "python":
            _write_code(MODEL, staging / MODEL / _VERSION)
            _copy_model(info, certainty, staging / MODEL / _VERSION)
        else:
            _copy_artefact(info.folder, read_artefact(info.folder), staging / MODEL / _VERSION)
        (staging / REQUIREMENTS).write_text("".join(f"{one}\n" for one in requirements), encoding="utf-8")
        (staging / CARD_FILE).write_text(_card(served), encoding="utf-8")
        if zipped:
            on_step("Writing the zip file")
            with new_file(zipped) as temporary:
                _zip(staging, temporary)
    return Store(destination, zipped, info, backend, served.hardware, requirements)


def _served(info: ModelInfo, backend: BackendName, device: str, processor: ProcessorName, warmup: int) -> Served:
    """What the store is to say of the model, if the backend and the device can run it."""
    wanted = BACKENDS[backend].runtime
    if wanted and info.runtime != wanted:
        fitting = ", ".join(name for name, one in BACKENDS.items() if one.runtime in ("", info.runtime))
        raise InputError(
            f"Triton's backend {backend} does not run the model in '{info.folder}', which is run by {info.runtime}.",
            f"Choose another backend: {fitting}. Or make another folder with `vitconv optimize`.",
        )
    hardware = cast(Hardware, choose_device(wanted_device(info, device), 0))
    if hardware not in get_args(Hardware):
        raise InputError(f"A store is for no device '{device}'.", "Choose auto, cpu or cuda.")
    if info.device not in ("", hardware):
        raise InputError(
            f"The model in '{info.folder}' runs on '{info.device}' only.",
            f"Choose this device, or make another folder for '{hardware}' with `vitconv optimize`.",
        )
    if info.runtime in _PROGRAMS:
        check_trusted(info.folder / read_artefact(info.folder).file)
    if not wanted:
        return Served(info, backend, hardware, processor, warmup)
    artefact, parameters = read_artefact(info.folder), {}
    if backend == "openvino":
        if artefact.settings.get("precision") != "bf16":
            raise InputError(
                "Triton's backend openvino has no setting for float32: on a processor with AMX it would compute in "
                "bfloat16.",
                "Choose the backend python, or a folder that openvino-bf16 or openvino-int8 made on a processor with "
                "avx512_bf16.",
            )
        parameters = {"HINT_BF16": "YES", "PERFORMANCE_HINT": "LATENCY"}
    file = Path(artefact.file).name
    return Served(info, backend, hardware, processor, warmup, file, artefact.output, parameters)


def _requirements(info: ModelInfo | None, preprocessor: Preprocessor) -> Iterable[str]:
    """The packages that the server's Python needs, in the versions that are here."""
    names = dict.fromkeys((*_PACKAGES, *preprocessor.versions, *(info.versions if info else ())))
    for name in names:
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # onnxruntime comes from several distributions
            found = importlib.metadata.distribution(importlib.metadata.packages_distributions()[name][0])
        yield f"{found.name}=={found.version.partition('+')[0]}"  # an index has no local versions, such as +cpu


def _write_code(name: str, version: Path) -> None:
    """Write a model's ``model.py``, with vitconv beside it."""
    shutil.copyfile(_TEMPLATES / f"{name}.py", version / "model.py")
    package = Path(vitconv.__file__).parent
    names = (str(file.relative_to(package)) for file in sorted(package.rglob("*")) if file.is_file())
    # Not by copytree, whose error lists every file.
    _copy(package, (name for name in names if "__pycache__" not in name), version / "vitconv")


def _copy(folder: Path, names: Iterable[str], destination: Path) -> None:
    """Copy those of a folder's files that exist."""
    for name in names:
        if (folder / name).exists():
            check_file(folder / name, "file", error=CheckpointError)
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, destination / name)


def _copy_model(info: ModelInfo, certainty: Certainty | None, version: Path) -> None:
    """Copy what the model is made of, and make sure that the copy is the model that was read, and its calibration."""
    if is_optimized(info.folder):
        names = [*read_artefact(info.folder).files, OPTIMIZATION_FILE]
    else:
        names = [file.name for file in info.folder.iterdir() if file.suffix in (".json", ".safetensors", ".bin")]
    _copy(info.folder, sorted({*names, *DESCRIPTION, CARD_FILE, PARITY_FILE, CALIBRATION_FILE}), version / FOLDER)
    copied = read_info(version / FOLDER)
    found = read_certainty(copied)
    if copied.fingerprint != info.fingerprint or (found and found.digest) != (certainty and certainty.digest):
        raise _changed(info.folder)
    if info.runtime in _PROGRAMS:
        file = version / FOLDER / read_artefact(version / FOLDER).file
        known = version / STATE / "vitconv" / "trusted.txt"
        known.parent.mkdir(parents=True)
        known.write_text(f"{sha256(file)}\n", encoding="utf-8")


def _copy_artefact(folder: Path, artefact: Artefact, version: Path) -> None:
    """Copy the files that another backend reads: the model's, and those beside it."""
    place = Path(artefact.file).parent
    for name in artefact.files:
        if Path(name).parent == place and name not in DESCRIPTION and not name.endswith(".json"):
            shutil.copyfile(folder / name, version / Path(name).name)
            if sha256(version / Path(name).name) != artefact.files[name]:
                raise _changed(folder)


def _changed(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"The files in '{folder}' have changed while they were copied.",
        "Run it again when nothing else writes to the folder.",
    )


def _card(served: Served) -> str:
    answer = "its logits and probabilities" if served.backend == "python" else "its logits"
    answer += ", and how certain they are" if served.calibrated else ""
    command = container_command('"$PWD"', gpu=served.hardware == "cuda")
    text = (_TEMPLATES / CARD_FILE).read_text(encoding="utf-8")
    return Template(text).substitute(fingerprint=served.info.fingerprint, answer=answer, command=command)


def container_command(folder: str, *, gpu: bool) -> str:
    """The command that serves a store with NVIDIA's container, for a shell.

    Args:
        folder: the store, as the shell is to read it.
        gpu: whether the store is for GPUs.
    """
    return (
        f"docker run --rm{' --gpus=all' if gpu else ''} --shm-size=1g -p 127.0.0.1:8000-8002:8000-8002 "
        f"-v {folder}:/models:ro {CONTAINER} \\\n"
        f"    sh -c 'pip install --break-system-packages -r /models/{REQUIREMENTS} && "
        f"tritonserver --model-repository=/models --disable-auto-complete-config {STUB_TIMEOUT}'"
    )


def _zip(folder: Path, file: Path) -> None:
    """Write the folder's files into a zip file, in a fixed order and with fixed times: equal folders, equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            entry = zipfile.ZipInfo(f"{name}/" if path.is_dir() else name)  # its time is the first that zip knows
            entry.create_system, entry.external_attr = 3, (0o40755 if path.is_dir() else 0o100644) << 16
            if path.is_dir():
                archive.writestr(entry, b"")
                continue
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
