"""Open the checkpoints people have, and write a Transformers folder that appears whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.errors import CheckpointError, DestinationError, first_few

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

#: Bytes: a cache line, and what torch's own allocator aligns to on a CPU.
_ALIGNMENT = 64
_SAFETENSORS_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

_SAVE_INSTEAD = "Save the weights with torch.save(model.state_dict(), path) and pass that file."


@dataclass(frozen=True)
class Source:
    """An opened checkpoint, as far as a file can tell.

    Attributes:
        content: what the weights' file holds: tensors by name, perhaps within wrappers.
        files: the files that hold the weights.
        architecture: the timm name, if a ``config.json`` lies beside the weights.
        model_args: the arguments that the model was built with, from there.
        labels: the class names, from there.
        data: timm's ``pretrained_cfg``, from there.
    """

    content: Mapping[Any, Any]
    files: tuple[Path, ...]
    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    data: Mapping[str, Any] | None = None


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a file of weights, or a folder as timm saves it for the Hub (``config.json`` and weights, perhaps sharded).

    Raises:
        CheckpointError: there is no such file or folder, or it is damaged, or it holds no dictionary.
    """
    path = Path(path)
    if not path.is_dir():
        return Source(_read_mapping(path), (path,))
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).exists() else {}
    if "model_type" in config:
        raise CheckpointError(f"'{path}' is a Transformers folder already.", "Pass a timm checkpoint.")
    names = config.get("label_names")
    content, files = _read_folder(path)
    return Source(
        content,
        files,
        architecture=config.get("architecture"),
        model_args=config.get("model_args") or {},
        labels=tuple(names) if isinstance(names, list) else None,
        data=config.get("pretrained_cfg"),
    )


def _read_folder(path: Path) -> tuple[Mapping[Any, Any], tuple[Path, ...]]:
    for name in (WEIGHTS_FILE, "pytorch_model.bin"):
        if (path / name).exists():
            return _read_mapping(path / name), (path / name,)
    index = path / f"{WEIGHTS_FILE}.index.json"
    if not index.exists():
        raise CheckpointError(
            f"The folder '{path}' holds neither {WEIGHTS_FILE} nor {index.name} nor pytorch_model.bin.",
            "Pass the file of weights inside it.",
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"'{index}' has no `weight_map` of file names.", "Download the folder again.")
    files = sorted(set(shards.values()))
    outside = [name for name in files if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(
            f"'{index}' names files outside of its folder: {first_few(outside)}.", "Do not use this checkpoint."
        )
    content: dict[str, Any] = {}
    for name in files:
        for tensor, value in _read_mapping(path / name).items():
            if tensor in content or shards.get(tensor) != name:
                raise CheckpointError(
                    f"'{path / name}' holds `{tensor}`, which the index does not place there.",
                    "Download the folder again.",
                )
            content[tensor] = value
    missing = [name for name in shards if name not in content]
    if missing:
        raise CheckpointError(
            f"The shards of '{path}' lack tensors that the index names: {first_few(missing)}.",
            "Download the folder again.",
        )
    return content, tuple(path / name for name in files)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Open a file that holds tensors by name and nothing else.

    The tensors are views of the memory-mapped file wherever its format allows.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds something else.
    """
    return only_tensors(_read_mapping(Path(path)), os.fspath(path))


def _read_mapping(path: Path) -> Mapping[Any, Any]:
    """Read a file of weights, recognised by its content: torch's (zip or older pickle) or safetensors.

    Pickles are opened with ``weights_only=True``: nothing in them is executed.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file '{path}'.", "Check the path of the checkpoint.")
    if path.is_dir():
        raise CheckpointError(f"'{path}' is a folder.", "Pass the file of weights inside it.")
    try:
        with path.open("rb") as file:
            start = file.read(16)
        # A header's length may happen to look like a zip's or a pickle's first bytes; a brace after it decides.
        safetensors = start[8:9] == b"{" or start[:1] not in (b"P", b"\x80")
        content = _read_safetensors(path, start) if safetensors else _read_torch(path, start)
    except OSError as error:
        raise CheckpointError(
            f"'{path}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}, not a state dict.", _SAVE_INSTEAD)
    return content


def _read_torch(path: Path, start: bytes) -> Any:
    import torch

    # By a path that ends so, torch.load would read safetensors; an open file it cannot map.
    misnamed = path.suffix == ".safetensors"
    try:
        # timm's training script saves its arguments; a Namespace only holds values.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                file if misnamed else path,
                map_location="cpu",
                weights_only=True,
                mmap=start[:2] == b"PK" and not misnamed,
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' holds Python objects, not only tensors; opening them could run code, so vitconv does not.",
            _SAVE_INSTEAD,
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' is damaged or incomplete: torch cannot read it.", "Copy or download the file again."
        ) from error


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    if start[8:9] != b"{":
        raise CheckpointError(
            f"'{path}' is not a checkpoint: it is neither torch's format nor safetensors.", _SAVE_INSTEAD
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(
            f"'{path}' is a damaged or incomplete safetensors file.", "Copy or download the file again."
        ) from error


def only_tensors(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """The content as plain floating-point tensors by name.

    Raises:
        CheckpointError: it holds anything else, or nothing.
    """
    import torch

    content = {str(name): value for name, value in content.items()}
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not content:
        raise CheckpointError(
            f"'{where}' is not a plain state dict: "
            + (f"{first_few(others)} {'is' if len(others) == 1 else 'are'} no tensors." if others else "it is empty."),
            _SAVE_INSTEAD,
        )
    unusual = [name for name, tensor in content.items() if tensor.layout != torch.strided or tensor.is_quantized]
    if unusual:
        raise CheckpointError(
            f"'{where}' holds sparse or quantised tensors ({first_few(unusual)}).",
            "Pass the checkpoint as it was before it was compressed.",
        )
    exotic = [name for name, tensor in content.items() if _dtype(tensor) not in _SAFETENSORS_DTYPES]
    if exotic:
        raise CheckpointError(
            f"'{where}' holds tensors that are no floating-point weights ({first_few(exotic)} is "
            f"{_dtype(content[exotic[0]])}).",
            _SAVE_INSTEAD,
        )
    return {name: tensor.detach() for name, tensor in content.items()}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@contextmanager
def staged_folder(destination: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``destination`` that takes its name when the block ends well.

    If the block raises, the folder is removed and ``destination`` is as it was.

    Raises:
        DestinationError: the destination exists (and ``overwrite`` is false, or it is no model folder), or
            cannot be written.
    """
    destination = Path(os.path.abspath(destination))
    check_destination(destination, overwrite=overwrite)
    if "\0" in str(destination):
        raise DestinationError("The destination's name has a NUL character.", "Choose another destination.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".vitconv", dir=destination.parent))
    except OSError as error:
        raise _unwritable(destination, error) from error
    try:
        # mkdtemp makes a private folder; the finished one is as open as any other new folder.
        staging.chmod(0o777 & ~_umask())
        yield staging
        _swap(staging, destination)
    except OSError as error:
        raise _unwritable(destination, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(
    destination: str | os.PathLike[str], *, overwrite: bool = False, source: str | os.PathLike[str] | None = None
) -> None:
    """Raise :class:`DestinationError` if writing ``destination`` would lose anything.

    ``overwrite`` allows to replace a folder that holds nothing but what a conversion writes, and not ``source``.
    """
    path = Path(destination)
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise DestinationError(f"'{path}' exists already.", "Choose another destination, or pass --overwrite.")
    if not path.is_dir() or path.is_symlink():
        raise DestinationError(f"'{path}' is not a folder, so it is not overwritten.", _KEEP)
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _WRITTEN or not entry.is_file())
    if foreign:
        raise DestinationError(
            f"'{path}' holds what no conversion writes ({first_few(foreign)}), so it is not overwritten.", _KEEP
        )
    if source is not None and Path(source).resolve().is_relative_to(path.resolve()):
        raise DestinationError(f"'{path}' holds the source, so it is not overwritten.", _KEEP)


_KEEP = "Choose another destination, or remove it yourself."
#: What a conversion may leave in a folder, and the Hub's own file.
_WRITTEN = frozenset(
    {CONFIG_FILE, WEIGHTS_FILE, "preprocessor_config.json", "parity.json", "README.md", ".gitattributes"}
)


def _swap(staging: Path, destination: Path) -> None:
    if not os.path.lexists(destination):
        staging.rename(destination)
        return
    old = staging.with_name(f"{staging.name}.old")
    destination.rename(old)
    staging.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(destination: Path, error: OSError) -> DestinationError:
    return DestinationError(
        f"'{destination}' cannot be written: {error.strerror or error}.", "Check the disk and the permissions."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with every tensor aligned that can be.

    Matrix kernels choose their order of summation by the alignment of their operands, and weights are used where
    the file is mapped: a tensor that begins in the middle of a cache line can give logits that differ in the last
    bit from the same tensor elsewhere. ``safetensors.save_file`` sorts by name, so that a head's bias of 7 floats
    shifts all that follow. Here the sizes that would shift others come last, and the header is padded.

    Format: https://github.com/huggingface/safetensors#format
    """
    import torch

    sized = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    order = sorted(sized, key=lambda name: (sized[name].nbytes % _ALIGNMENT != 0, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + sized[name].nbytes
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[_dtype(sized[name])],
            "shape": list(sized[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(sized[name].reshape(-1).view(torch.uint8).numpy().data)


def write_json(content: Any, path: Path) -> None:
    """Write JSON for people and diffs: indented, keys in the order given, UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is not readable JSON.", "Restore the file, or remove it.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' is no JSON object.", "Restore the file, or remove it.")
    return content
