"""Open checkpoints: files in torch's format or safetensors, folders, and models on the Hub."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import pickle
import re
import shlex
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from vitconv.checkpoints.pickled import Pickled, scan
from vitconv.checkpoints.tensorfile import (
    INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    dtype_name,
    is_tensor,
    itemsize,
    load_tensors,
    map_tensors,
    read_header,
)
from vitconv.errors import CheckpointError, brief, first_few
from vitconv.files import Watch, check_name, check_reachable, read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG_FILE = "config.json"
PARITY_FILE = "parity.json"
#: In the folders that `vitconv optimize` writes.
OPTIMIZATION_FILE = "optimization.json"
#: In any folder for which `vitconv calibrate` was run.
CALIBRATION_FILE = "calibration.json"
#: Weights in torch's format in a folder: one file, or the index of several.
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
_log = logging.getLogger(__name__)
#: How the names of weights files usually end.
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors")
HUB_PREFIX = re.compile(r"hf[-_]hub:")

#: Bytes of a zip's table of contents: enough for a hundred thousand records.
_LONGEST_TABLE = 10_000_000
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_SAVE_INSTEAD = "Save the weights with torch.save(model.state_dict(), path) and pass that file."
_AGAIN = "Copy or download the file again."


@dataclass(frozen=True, repr=False)
class Source:
    """An opened checkpoint: its content, and where it comes from.

    Attributes:
        content: what the weights file holds: tensors by name, perhaps within wrappers.
        files: the files that hold the weights.
        watch: tells whether one of them has changed since before it was opened: the tensors are read later, from where
            they were found, and in another file there would be other bytes.
        config: the ``config.json`` beside the weights; ``None`` if there is none.
        records: for a file in torch's zip format, where the bytes of its tensors are: start -> length.
        notes: where it comes from, in sentences for people.
    """

    content: Mapping[Any, Any]
    files: tuple[Path, ...]
    watch: Watch
    config: Path | None = None
    records: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Source({brief(str(self.files[0]))}, {len(self.content)} entries)"

    def tensors(self, content: Mapping[Any, Any], *, integers: bool = False) -> dict[str, StoredTensor | Tensor]:
        """Part of the content as floating-point tensors by name: :class:`StoredTensor` wherever that is possible.

        Args:
            content: the part of ``self.content`` to read; it must hold only tensors.
            integers: accept int64 tensors, too.

        Raises:
            CheckpointError: it is empty, or holds anything but such tensors.
        """
        where = os.fspath(self.files[0] if len(self.files) == 1 else self.files[0].parent)
        found = _only_tensors(content, where, (*_FLOATS, "int64") if integers else _FLOATS)
        return {name: self._located(name, tensor) for name, tensor in found.items()}

    def _located(self, name: str, tensor: StoredTensor | Tensor) -> StoredTensor | Tensor:
        """Where a tensor on ``meta`` is in its file; a tensor with data, with conjugation and negation applied."""
        if isinstance(tensor, StoredTensor):
            return tensor
        if not tensor.is_meta:
            return tensor.resolve_conj().resolve_neg()
        storage: Any = tensor.untyped_storage()
        start: int = storage._checkpoint_offset
        first, size = int(tensor.storage_offset()) * tensor.itemsize, tensor.numel() * tensor.itemsize
        if start not in self.records or first + size > self.records[start]:
            raise _damaged(self.files[0], f"`{name}` reaches beyond its bytes in the file")
        if tensor.is_contiguous() and not tensor.is_neg():
            return StoredTensor(self.files[0], start + first, dtype_name(tensor), tuple(tensor.shape))
        # Such as a convolution in channels-last order: torch views its bytes as they lie.
        whole = StoredTensor(self.files[0], start, "uint8", (self.records[start],))
        # Mapped: a file may have many such views of one large storage.
        stored = map_tensors({name: whole})[name].view(tensor.dtype)
        try:
            stored = stored.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        except RuntimeError as error:
            raise _damaged(self.files[0], f"`{name}` reaches beyond its bytes in the file") from error
        # A view of a complex tensor's conjugate is marked as negated: the file has its values with the other sign.
        return stored.neg() if tensor.is_neg() else stored


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a file of weights, a folder as timm saves it for the Hub, or such a folder on the Hub.

    Args:
        path: a weights file, or the index of several; a folder with ``config.json`` and weights, perhaps sharded; or
            ``"hf-hub:org/name"``, perhaps with ``@revision``.

    Raises:
        CheckpointError: the file or folder does not exist, is damaged, or does not hold a dictionary.
    """
    if HUB_PREFIX.match(str(path)):
        from vitconv.checkpoints.hub import download

        folder = download(HUB_PREFIX.sub("", str(path)))
        note = f"The checkpoint is {path} at revision {folder.name}."
        return replace(_open_folder(folder), notes=(note,))
    path = Path(path)
    check_name(path, CheckpointError)
    if os.path.isdir(path):  # `Path.is_dir` raises an error if the name is too long
        return _open_folder(path)
    if path.name in (INDEX_FILE, TORCH_INDEX_FILE) and os.path.isfile(path):
        return _open_folder(path.parent, path.name)
    return _read_file(path)


def _open_folder(path: Path, weights: str | None = None) -> Source:
    refuse_optimized(path, "Pass the timm weights that its model was converted from.")
    config = read_json(path / CONFIG_FILE) if os.path.exists(path / CONFIG_FILE) else {}
    if "model_type" in config:
        raise CheckpointError(
            f"'{path}' is a Transformers folder already.",
            "Load it with `from_pretrained`, or pass timm weights; `vitconv revert` makes a timm folder of it.",
        )
    if os.path.exists(path / "adapter_config.json"):
        raise CheckpointError(
            f"'{path}' is a PEFT adapter, not a model.", "Merge it into its model with `merge_and_unload()` first."
        )
    return replace(_read_folder(path, weights), config=path / CONFIG_FILE if config else None)


def is_optimized(folder: Path) -> bool:
    """Whether a folder says that `vitconv optimize` has written it; also where its record cannot be read."""
    return os.path.lexists(folder / OPTIMIZATION_FILE)


def refuse_optimized(folder: Path, remedy: str) -> None:
    """Raise :class:`CheckpointError` if a folder says that `vitconv optimize` has written it.

    Its numbers are not those of the checkpoint, and are not meant to be.
    """
    if is_optimized(folder):
        raise CheckpointError(
            f"'{folder}' is an optimised folder, whose answers are near those of the model that it was made from: its "
            f"{OPTIMIZATION_FILE} says how near.",
            remedy,
        )


def _read_folder(path: Path, weights: str | None = None) -> Source:
    """Read the weights in a folder: the file ``weights``, or the first file found, safetensors before pickles."""
    known = (WEIGHTS_FILE, INDEX_FILE, TORCH_FILE, TORCH_INDEX_FILE)
    name = weights or next((name for name in known if os.path.exists(path / name)), None)
    if name is None:
        _refuse_distributed(path)
        weights_in_it = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        raise CheckpointError(
            f"The folder '{path}' holds none of {', '.join(known)}.",
            f"Pass the weights file inside it: {first_few(weights_in_it)}."
            if weights_in_it
            else "Pass the file of weights, or the folder that holds it.",
        )
    if name in (INDEX_FILE, TORCH_INDEX_FILE):
        return _read_shards(path / name)
    return _read_file(path / name)


def _refuse_distributed(path: Path) -> None:
    """Refuse a folder as ``torch.distributed.checkpoint`` (FSDP, torchtitan, Lightning) writes it."""
    if os.path.exists(path / ".metadata") or any(path.glob("*.distcp")):
        target = shlex.quote(f"{path.resolve().name or 'weights'}.pth")
        raise CheckpointError(
            f"'{path}' is a sharded checkpoint of torch.distributed.checkpoint.",
            "Join it into one file and pass that: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{shlex.quote(os.fspath(path))} {target}",
        )


def _read_shards(index: Path) -> Source:
    """Read the files that an index lists, and check that each tensor is in the file that the index says."""
    path = index.parent
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(
            f"`weight_map` in '{index}' does not map tensors to file names.", "Download the folder again."
        )
    files = sorted(set(shards.values()))
    outside = [name for name in files if Path(name).name != name or name in ("", ".", "..") or "\0" in name]
    if outside:
        raise CheckpointError(
            f"'{index}' names files outside of its folder: {first_few(outside)}.", "Do not use this checkpoint."
        )
    content: dict[str, Any] = {}
    watch = Watch(path, lambda: [path / name for name in files])
    for name in files:
        shard = _read_file(path / name)
        for tensor, value in shard.content.items():
            if tensor in content or shards.get(tensor) != name:
                raise CheckpointError(
                    f"'{path / name}' holds `{tensor}`, which the index does not list for this file.",
                    "Download the folder again.",
                )
            if not is_tensor(value):
                raise CheckpointError(
                    f"`{tensor}` in '{path / name}' is a {type(value).__name__}, not a tensor.", _SAVE_INSTEAD
                )
            # A tensor on `meta` does not say which file it is from, so it is located here. Tensors that are not
            # weights are kept as they are: `Source.tensors` refuses them if the model needs them.
            weight = not _is_unusual(value) and dtype_name(value) in (*_FLOATS, "int64")
            content[tensor] = shard._located(tensor, value) if weight else value
    missing = [name for name in shards if name not in content]
    if missing:
        raise CheckpointError(
            f"Tensors that '{index}' lists are not in its files: {first_few(missing)}.",
            "Download the folder again.",
        )
    return Source(content, tuple(path / name for name in files), watch)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file that holds only tensors by name, or the weights in a folder, perhaps sharded.

    Raises:
        CheckpointError: the file does not exist, is damaged, or holds something else.
    """
    path = Path(path)
    source = _read_folder(path) if os.path.isdir(path) else open_source(path)
    for file in source.files:
        check_checksums(file)
    return load_tensors(source.tensors(source.content, integers=True))


def _read_file(path: Path) -> Source:
    """Read a file of weights, recognised by its content: torch's (zip or older pickle) or safetensors.

    Pickles are opened with ``weights_only=True``: nothing in them is executed.
    """
    check_reachable(path)
    if "\0" in os.fspath(path) or not os.path.exists(path):
        name = re.fullmatch(r"(?:https?:/+(?:www\.)?huggingface\.co/)?([\w.-]+/[\w.-]+)/?", str(path))
        on_hub = f"; a model on the Hub is hf-hub:{name[1]}" if name and path.suffix not in _SUFFIXES else ""
        raise CheckpointError(f"There is no file '{path}'.", f"Check the path of the checkpoint{on_hub}.")
    if not os.path.isfile(path):
        raise CheckpointError(f"'{path}' is not a file.", "Pass the file of weights.")
    if path.name == ".metadata" or path.suffix == ".distcp":
        _refuse_distributed(path.parent)
    records: Mapping[int, int] = {}
    watch = Watch(path, lambda: [path])
    try:
        with path.open("rb") as file:
            start = file.read(16)
        kind = _format_of(start)
        _log.info("reading '%s': %s, %s bytes", path, kind or "no checkpoint", f"{path.stat().st_size:,}")
        if kind == "safetensors":
            content: Any = read_header(path)
        elif kind == "zip":
            records, lengths = _check_zip(path)
            content = _read_torch(path, lengths)
        elif kind == "pickle":
            content = _read_torch(path, None)
        else:
            raise CheckpointError(
                f"'{path}' is not a checkpoint: it is neither torch's format nor safetensors.", _SAVE_INSTEAD
            )
    except OSError as error:
        raise CheckpointError(
            f"'{path}' cannot be read: {error.strerror or error}.", "Check the file and its permissions."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}, not a state dict.", _SAVE_INSTEAD)
    return Source(content, (path,), watch, records=records)


def _format_of(start: bytes) -> Literal["safetensors", "zip", "pickle"] | None:
    """The format of a file of weights, by its first 16 bytes."""
    # A header's length may happen to look like a zip's or a pickle's first bytes; a brace after it decides.
    if start[8:9] == b"{":
        return "safetensors"
    if start[:2] == b"PK":
        return "zip"
    return "pickle" if start[:1] == b"\x80" else None


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"'{path}' is damaged or incomplete: {how}.", _AGAIN)


def _compressed(where: str | Path) -> CheckpointError:
    return CheckpointError(
        f"'{where}' holds sparse or quantised tensors.", "Pass the checkpoint as it was before it was compressed."
    )


def _check_zip(path: Path) -> tuple[dict[int, int], dict[str, int]]:
    """Check before torch reads it that a zip is as torch writes it: nothing in it is compressed or overlaps.

    So it cannot grow in memory. Python and torch must also see the same content: torch's own zip reader finds the
    table of contents in another way than Python's, and ignores case in names.

    Returns where the bytes of each entry are, start -> length, and the length of each tensor's bytes by its key.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = _table_start(file, size)
            if size - start > _LONGEST_TABLE:
                raise _damaged(path, f"its table of contents has more than {_LONGEST_TABLE:,} bytes")
            archive = zipfile.ZipFile(file)
            entries = archive.infolist()
            if archive.start_dir != start:
                raise _damaged(path, "its table of contents is not where it should be")
            _refuse_other_archives(path, [entry.filename for entry in entries])
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _damaged(path, "its records are compressed, which torch never does")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise _damaged(path, "its records claim more bytes than the file has")
            names = {entry.filename.casefold() for entry in entries}
            if len(names) != len(entries) or any(entry.filename != entry.orig_filename for entry in entries):
                raise _damaged(path, "several of its records have the same name")
            if any(_is_misspelt(entry.filename) for entry in entries):
                raise _damaged(path, "a record's name has capital letters, which only torch would overlook")
            records = {_data_start(file, entry): entry.file_size for entry in entries}
            # What is read at once; the tensors' bytes are left to :func:`check_checksums`.
            read_at_once = [entry for entry in entries if not _is_tensor_data(entry)]
            for entry in read_at_once:
                archive.open(entry).close()  # compares the entry's own header with the table of contents
            _compare_checksums(path, file, entries, read_at_once)
    # RuntimeError is what zipfile raises for an entry that is encrypted.
    except (zipfile.BadZipFile, RuntimeError, ValueError, struct.error, OverflowError, EOFError) as error:
        raise _damaged(path, "its table of contents cannot be read") from error
    folder = entries[0].filename.partition("/")[0] + "/data/" if entries else ""
    return records, {entry.filename.removeprefix(folder): entry.file_size for entry in entries}


def _table_start(file: BinaryIO, size: int) -> int:
    """Where a zip's table of contents begins, as its last bytes say; the file's size if they do not say it.

    torch writes no comment at the end of the file, so the position of these bytes is known.
    """
    file.seek(max(size - 98, 0))
    end = file.read()
    if end[-42:-38] != b"PK\6\7":
        return int.from_bytes(end[-6:-2], "little") if end[-22:-18] == b"PK\5\6" else size
    # The 64-bit record of the end, and where that record is.
    follows = end[:4] == b"PK\6\6" and int.from_bytes(end[-34:-26], "little") == size - 98
    return int.from_bytes(end[48:56], "little") if follows else size


def check_checksums(path: Path, stopped: Callable[[], bool] = lambda: False) -> None:
    """Compare every byte of a file in torch's zip format with the checksums (CRC-32) in it; torch itself does not.

    Other formats have no checksums, and neither have files saved after
    ``torch.serialization.set_crc32_options(False)``: they pass unchecked.

    Args:
        path: a file that :func:`open_source` has read.
        stopped: called before each record; reading stops when it returns true.

    Raises:
        CheckpointError: the bytes do not match a checksum.
    """
    with path.open("rb") as file:
        if _format_of(file.read(16)) == "zip":
            entries = zipfile.ZipFile(file).infolist()
            _compare_checksums(path, file, entries, entries, stopped)


def _compare_checksums(
    path: Path,
    file: BinaryIO,
    entries: Sequence[zipfile.ZipInfo],
    chosen: Sequence[zipfile.ZipInfo],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    if not any(entry.CRC for entry in entries):
        return  # torch was told not to compute them, and writes zeros
    for entry in chosen:
        if stopped():
            return
        file.seek(_data_start(file, entry))
        found, left = 0, entry.file_size
        while left and (chunk := file.read(min(left, 1 << 20))):
            found, left = zlib.crc32(chunk, found), left - len(chunk)
        if found != entry.CRC:
            raise _damaged(path, f"the bytes of its record '{entry.filename}' do not match their checksum")


def _is_tensor_data(entry: zipfile.ZipInfo) -> bool:
    return "/data/" in entry.filename


def _refuse_other_archives(path: Path, names: list[str]) -> None:
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"'{path}' is a NumPy archive, the format of the original JAX models.",
            "Load it into the timm model with `model.load_pretrained(path)`, and save that model's state_dict().",
        )
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"'{path}' is a TorchScript model, not a state dict.", _SAVE_INSTEAD)


def _data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its header, whose length depends on the name and extra fields in it."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + name + extra


def _read_torch(path: Path, lengths: Mapping[str, int] | None) -> Any:
    """Read a file with torch, after checking that this is safe.

    Args:
        path: a zip, or a file in torch's older format.
        lengths: for a zip, the number of bytes of each storage in the file; ``None`` for the older format.
    """
    try:
        found = scan(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged(path, "it has no `data.pkl`") from error
    if found.unsupported or (found.problem and found.unsafe):
        raise _refused_pickle(path, "", found)
    if found.problem:
        raise _damaged(path, found.problem)
    short = [key for key, size in found.storages.items() if lengths is not None and size > lengths.get(key, -1)]
    if short:
        raise _damaged(path, f"its storage {first_few(short, 1)} reaches beyond its bytes in the file")
    import torch

    # On `meta`, torch only notes where each tensor is in the file. Bytes in another order have to be swapped by torch.
    try:
        find = lengths is not None and hasattr(torch.UntypedStorage, "_checkpoint_offset") and _has_native_bytes(path)
        # timm's training script saves its arguments; a Namespace only holds values. By a path that ends in
        # .safetensors, torch.load would read safetensors; an open file has no name.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]), _quietly():
            content = torch.load(file, map_location="meta" if find else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error), found) from error
    except NotImplementedError as error:  # a tensor that cannot be on `meta`
        raise _compressed(path) from error
    except Exception as error:  # a hostile pickle can make torch's reader raise anything
        raise _damaged(path, "torch cannot read it") from error
    _refuse_disguised(path, content)
    return content


def _refuse_disguised(path: Path, content: Any) -> None:
    """Refuse dictionaries and tensors that have an attribute in the place of a method.

    A pickle can replace the ``items`` of an ``OrderedDict``, or the ``stride`` of a tensor. The object then misreports
    what it holds.
    """
    import torch

    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, (dict, list, tuple, argparse.Namespace, torch.Tensor)) or id(value) in seen:
            continue
        seen.add(id(value))
        own = dict(getattr(value, "__dict__", {}))
        hidden = sorted(str(name) for name in own if name in dir(type(value)))
        if hidden:
            raise CheckpointError(
                f"'{path}' holds a {type(value).__name__} whose `{first_few(hidden, 1)}` is replaced: it can "
                "misreport its content.",
                "Do not use this checkpoint.",
            )
        waiting += own.values()
        if isinstance(value, dict):
            waiting += dict.values(value)
        elif isinstance(value, (list, tuple)):
            waiting += value


#: How an error of torch's names the object that it refused to create.
_UNSAFE = re.compile(r"GLOBAL (.*?) (?:was not an allowed global|whose module)")
#: Functions that run commands or read other files: no checkpoint needs them.
_HOSTILE = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|runpy|socket|shutil)\.|(builtins\.)?(eval|exec|compile|__import__)$"
)


def _refused_pickle(path: Path, message: str, found: Pickled) -> CheckpointError:
    """The error for a pickle that torch refuses: which objects it holds, and how to save its weights if trusted."""
    by_torch = _UNSAFE.search(message)
    unsafe = list(dict.fromkeys([*([by_torch[1]] if by_torch else []), *found.unsafe]))
    problem = f"'{path}' holds Python objects, not only tensors"
    if unsafe:
        problem += f": {first_few(f'`{name}`' for name in unsafe)}"
    problem += "; vitconv does not open them, because that could run code."
    if not unsafe and found.protocol <= 2:
        return CheckpointError(problem, _SAVE_INSTEAD)
    if any(_HOSTILE.match(name) for name in unsafe):
        return CheckpointError(
            problem, "Do not open this file: no checkpoint needs these objects. Get the weights from elsewhere."
        )
    if not unsafe:
        problem = (
            f"'{path}' is a pickle of protocol {found.protocol}; torch can open only protocol 2 without running it."
        )
    code = (
        f"import torch; c = torch.load({os.fspath(path)!r}, weights_only=False); "
        f"torch.save({found.weights}, 'weights.pth')"
    )
    quoted = f'"{code}"' if not set(code) & set('"$`\\!') else shlex.quote(code)
    return CheckpointError(
        problem, f"{_SAVE_INSTEAD[:-1]}; or, only if you trust where it comes from: python -c {quoted}"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress torch's warnings about the format: what matters is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_misspelt(name: str) -> bool:
    """Whether torch takes a record for one of its own only because it ignores case."""
    own = name.partition("/")[2]
    lower = own.lower()
    return own != lower and (lower in ("byteorder", "version", "data.pkl") or lower.startswith(("data/", ".")))


def _has_native_bytes(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith("/byteorder")]
        for entry in entries:
            entry.CRC = None  # type: ignore[assignment]  # compared before, unless the file has none
        orders = [archive.read(entry) for entry in entries]
    return all(order == sys.byteorder.encode() for order in orders)


def _only_tensors(content: Mapping[Any, Any], where: str, dtypes: Collection[str]) -> dict[str, StoredTensor | Tensor]:
    named = {str(name): value for name, value in content.items()}
    others = [name for name, value in named.items() if not is_tensor(value)]
    if others or not named:
        raise CheckpointError(
            f"'{where}' is not a plain state dict: "
            + (
                f"{first_few(others)} {'is not a tensor' if len(others) == 1 else 'are not tensors'}."
                if others
                else "it is empty."
            ),
            _SAVE_INSTEAD,
        )
    if any(map(_is_unusual, named.values())):
        raise _compressed(where)
    exotic = [name for name, tensor in named.items() if dtype_name(tensor) not in dtypes]
    if exotic:
        raise CheckpointError(
            f"'{where}' holds tensors that are none of {', '.join(dtypes)} ({first_few(exotic, 2)}: "
            f"{dtype_name(named[exotic[0]])}).",
            "Pass the checkpoint as it was before it was compressed, or save its weights in one of these dtypes.",
        )
    expanded = [name for name, tensor in named.items() if _is_expanded(tensor)]
    if expanded:
        raise CheckpointError(
            f"'{where}' holds tensors whose elements share memory, as `expand()` makes them ({first_few(expanded)}).",
            "Save them with `.clone()`.",
        )
    return {name: tensor if isinstance(tensor, StoredTensor) else tensor.detach() for name, tensor in named.items()}


def _is_unusual(tensor: StoredTensor | Tensor) -> bool:
    if isinstance(tensor, StoredTensor):
        return False
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):  # a subclass can change what operations do
        return True
    return str(tensor.layout) != "torch.strided" or tensor.is_quantized


def _is_expanded(tensor: StoredTensor | Tensor) -> bool:
    """Whether elements share memory: such a tensor can have any size with hardly any bytes."""
    if isinstance(tensor, StoredTensor):
        return False
    size = itemsize(dtype_name(tensor)) or 1
    return tensor.numel() * size > tensor.untyped_storage().nbytes() or any(
        stride == 0 and length > 1 for stride, length in zip(tensor.stride(), tensor.shape, strict=True)
    )


def widest_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The smallest dtype that holds the values of all floating-point tensors among these."""
    import torch

    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return functools.reduce(torch.promote_types, dtypes)
