"""Tensors as ranges of bytes in files: reading where they lie, and writing them without looking at them.

A conversion moves no numbers, so it need not load any. A :class:`StoredTensor` says where a tensor's bytes are; its
rows are a smaller range of the same bytes; and writing it is a copy from file to file. Nothing here imports torch,
until :func:`load_tensors` or :func:`map_tensors` is asked for tensors to compute with.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vitconv.errors import CheckpointError
from vitconv.files import RepeatedKeyError, parse_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: What the format calls each dtype, what torch calls it, and its bytes. No weights of a ViT have another dtype.
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
}
#: What else safetensors stores.
_OTHER_DTYPES = ("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4")
_NAMES = {torch_name: name for name, (torch_name, _) in _DTYPES.items()}
_SIZES = dict(_DTYPES.values())

#: Bytes: no checkpoint of a ViT has a longer header, and 25 MB of hostile JSON still parse in a second.
_LONGEST_HEADER = 25_000_000
#: Bytes: a cache line, and what torch's own allocator aligns to on a CPU.
_ALIGNMENT = 64
#: Bytes: the kernel copies a page to a page fast, and parts of two pages slower than a read and a write.
_PAGE = 4096
#: Bytes: large enough that calls cost nothing, small enough to stay in a cache between read and write.
_BUFFER = 1 << 20
#: Bytes: what one call writes. For more the kernel looks for larger pieces of memory, which take it longer to find.
_WRITE = 1 << 18
#: Bytes: larger weights are cut into files of at most this size.
SHARD_SIZE = 5_000_000_000

_AGAIN = "Copy or download the file again."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, row-major.

    Attributes:
        file: the file.
        start: where its first byte is in the file.
        dtype: by torch's name, such as ``"float32"``.
        shape: the length of each dimension.
    """

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * _SIZES[self.dtype]

    def __getitem__(self, rows: slice) -> StoredTensor:
        """Some of its rows, as torch would slice them: in the same file, without a copy."""
        first, stop, _ = rows.indices(self.shape[0])
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        return replace(self, start=self.start + first * row, shape=(max(stop - first, 0), *self.shape[1:]))

    def reshape(self, shape: tuple[int, ...]) -> StoredTensor:
        """The same elements in another shape of the same size."""
        return replace(self, shape=shape)


def is_tensor(value: Any) -> bool:
    """Whether a value is a :class:`StoredTensor` or a tensor of torch's, by its type: a file may hold anything.

    If torch is not imported, nothing can be a tensor of torch's.
    """
    return isinstance(value, (StoredTensor, getattr(sys.modules.get("torch"), "Tensor", StoredTensor)))


def dtype_name(tensor: StoredTensor | Tensor) -> str:
    """The dtype by torch's name, without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def itemsize(dtype: str) -> int | None:
    """Bytes of an element; ``None`` for a dtype that is not listed here."""
    return _SIZES.get(dtype)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a safetensors file, and check that they fill it: no gap, no overlap, nothing outside.

    Raises:
        CheckpointError: the file is damaged or hostile; the message says where.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            raise _damaged(path, f"its header should have {length} bytes, but the file has {size}")
        if length > _LONGEST_HEADER:
            raise _damaged(path, f"its header has {length:,} bytes, more than the {_LONGEST_HEADER:,} allowed")
        text = file.read(length)
    entries = _parse(path, text)
    tensors = {name: _locate(path, name, entry, 8 + length) for name, entry in entries.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != position:
            raise _damaged(path, f"the bytes of {_quoted(name)} do not begin where the tensor before it ends")
        position += tensor.nbytes
    if position != size:
        raise _damaged(path, f"its tensors end at byte {position} of {size}")
    return tensors


def _quoted(name: str) -> str:
    return f"`{name[:100]}…`" if len(name) > 100 else f"`{name}`"


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"'{path}' is a damaged or incomplete safetensors file: {how}.", _AGAIN)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text.decode("utf-8"))
        # Half of a surrogate pair can be escaped in JSON, but is not a character.
        json.dumps(header, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise _damaged(path, "its header is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _damaged(path, "its header is not JSON") from error
    except RepeatedKeyError as error:
        raise _damaged(path, f"its header has {error} twice") from error
    except RecursionError as error:
        raise _damaged(path, "its header is nested too deeply") from error
    except ValueError as error:
        raise _damaged(path, str(error)[:200]) from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata does not map names to text")
    return header


def _locate(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    def natural(values: Any) -> bool:
        return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"the entry of {_quoted(name)} does not consist of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype in _OTHER_DTYPES:
        raise CheckpointError(
            f"'{path}' holds {_quoted(name)} as {dtype}, which is no dtype of weights that vitconv reads.",
            "Pass the checkpoint as it was before it was compressed.",
        )
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _damaged(path, f"{_quoted(name)} has the unknown dtype {str(dtype)[:20]!r}")
    if not natural(shape) or len(shape) > 8 or not natural(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{_quoted(name)} has an impossible shape or offsets")
    tensor = StoredTensor(path, data + offsets[0], _DTYPES[dtype][0], tuple(shape))
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise _damaged(path, f"{_quoted(name)} has {offsets[1] - offsets[0]} bytes instead of {tensor.nbytes}")
    return tensor


def load_tensors(tensors: Mapping[str, StoredTensor | Tensor]) -> dict[str, Tensor]:
    """Read stored tensors into memory. Other tensors stay as they are.

    They are not mapped: who writes over a file, as training does with its last checkpoint, would change the tensors,
    and the process would end without a word (SIGBUS) where the file is shorter for a moment.

    Raises:
        CheckpointError: a file has become shorter.
    """
    import torch

    loaded = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, StoredTensor):
            content = torch.empty(tensor.nbytes, dtype=torch.uint8, device="cpu")  # whatever the caller's default is
            _fill(content.numpy().data, tensor.file, tensor.start)
            tensor = content.view(getattr(torch, tensor.dtype)).reshape(tensor.shape)
        loaded[name] = tensor
    return loaded


def map_tensors(tensors: Mapping[str, StoredTensor | Tensor]) -> dict[str, Tensor]:
    """Stored tensors in torch, memory-mapped: only what is read is loaded. Other tensors stay as they are.

    For a look at a few of them: :func:`load_tensors` says why. The mapping is private: writing to a tensor does not
    write to its file.
    """
    import torch

    maps: dict[Path, Any] = {}
    mapped = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, StoredTensor):
            if tensor.file not in maps:
                maps[tensor.file] = torch.UntypedStorage.from_file(
                    os.fspath(tensor.file), shared=False, nbytes=tensor.file.stat().st_size
                )
            part = maps[tensor.file][tensor.start : tensor.start + tensor.nbytes]
            stride = [math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
            empty = torch.empty(0, dtype=getattr(torch, tensor.dtype), device="cpu")
            tensor = empty.set_(part, 0, tensor.shape, stride)
        mapped[name] = tensor
    return mapped


def write_weights(tensors: Mapping[str, StoredTensor | Tensor], folder: Path) -> None:
    """Write ``model.safetensors`` into the folder, or several files and their index if it would be too large.

    Args:
        tensors: in the order in which to write them.
        folder: an existing one.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total <= SHARD_SIZE:
        _write_file(tensors, folder / WEIGHTS_FILE)
        return
    # The same cuts and the same names as Transformers' own `save_pretrained` makes.
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_SIZE,
    )
    for name, names in split.filename_to_tensors.items():
        _write_file({tensor: tensors[tensor] for tensor in names}, folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": split.tensor_to_filename}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(tensors: Mapping[str, StoredTensor | Tensor], path: Path) -> None:
    """Write a safetensors file, with every tensor aligned that can be.

    Matrix kernels choose their order of summation by the alignment of their operands, and weights are used where
    the file is mapped: a tensor that begins in the middle of a cache line can give logits that differ in the last
    bit from the same tensor elsewhere. ``safetensors.save_file`` sorts by name, so that a head's bias of 7 floats
    shifts all that follow. Here the sizes that would shift others come last, and the header is padded.
    """
    order = sorted(tensors, key=lambda name: tensors[name].nbytes % _ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[dtype_name(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        for piece in _read_ahead(_pieces([tensors[name] for name in order], file.tell())):
            if isinstance(piece, _Range):
                _copy_in_kernel(piece, file)
            else:
                _append(piece, file)


@dataclass(frozen=True)
class _Range:
    """Bytes of a file. Those ``in_place`` lie in their pages as they will in the target's."""

    file: Path
    start: int
    stop: int
    in_place: bool


def _pieces(tensors: Iterable[StoredTensor | Tensor], position: int) -> Iterator[_Range | Tensor]:
    """What to write in turn from this position on: tensors in memory, and ranges of files, neighbours joined.

    Ranges that the kernel cannot copy page by page are cut into buffers.
    """
    current: _Range | None = None
    for tensor in [*tensors, None]:
        if (
            isinstance(tensor, StoredTensor)
            and current
            and (current.file, current.stop) == (tensor.file, tensor.start)
        ):
            current = replace(current, stop=tensor.start + tensor.nbytes)
            continue
        if current is not None:
            yield from _cut(current)
            position += current.stop - current.start
            current = None
        if isinstance(tensor, StoredTensor):
            in_place = tensor.start % _PAGE == position % _PAGE
            current = _Range(tensor.file, tensor.start, tensor.start + tensor.nbytes, in_place)
        elif tensor is not None:
            yield tensor
            position += tensor.nbytes


def _cut(whole: _Range) -> Iterator[_Range]:
    if whole.in_place and hasattr(os, "copy_file_range"):
        yield whole
        return
    for start in range(whole.start, whole.stop, _BUFFER):
        yield replace(whole, start=start, stop=min(start + _BUFFER, whole.stop), in_place=False)


def _read_ahead(pieces: Iterable[_Range | Tensor]) -> Iterator[_Range | memoryview]:
    """The bytes of each piece, the next one read while the last is written; what the kernel copies stays a range."""
    buffers = [bytearray(_BUFFER), bytearray(_BUFFER)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        upcoming: Future[_Range | memoryview] | None = None
        for number, piece in enumerate(pieces):
            following = reader.submit(_read, piece, buffers[number % 2])
            if upcoming is not None:
                yield upcoming.result()
            upcoming = following
        if upcoming is not None:
            yield upcoming.result()


def _read(piece: _Range | Tensor, buffer: bytearray) -> _Range | memoryview:
    if not isinstance(piece, _Range):
        return _bytes_of(piece)
    if piece.in_place:
        return piece
    content = memoryview(buffer)[: piece.stop - piece.start]
    _fill(content, piece.file, piece.start)
    return content


def _fill(content: memoryview, path: Path, start: int) -> None:
    """Read bytes of a file from ``start`` on, as many as there is room for."""
    position = 0
    # Opened for each piece: a source may be of more files than a process may have open.
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while position < len(content):
            count = file.readinto(content[position:])
            if not count:
                raise _shrunk(path)
            position += count


def _copy_in_kernel(piece: _Range, target: BinaryIO) -> None:
    """Append a range of a file without its bytes passing through this process, where the file systems allow it."""
    target.flush()
    position = piece.start
    with piece.file.open("rb", buffering=0) as source:
        while position < piece.stop:
            try:
                count = os.copy_file_range(source.fileno(), target.fileno(), piece.stop - position, position)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                break
            if not count:
                raise _shrunk(piece.file)
            position += count
    target.seek(0, os.SEEK_END)
    for rest in _read_ahead(_cut(replace(piece, start=position, in_place=False))):
        _append(rest, target)  # type: ignore[arg-type]  # nothing is left to the kernel


def _append(content: memoryview, target: BinaryIO) -> None:
    for start in range(0, len(content), _WRITE):
        target.write(content[start : start + _WRITE])


def _shrunk(path: Path) -> CheckpointError:
    return CheckpointError(f"'{path}' became shorter while it was read.", _AGAIN)


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    # A view of a complex tensor's conjugate only marks its values as negated: its memory has them with the other sign.
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
