"""Safetensors files with wrong or dangerous headers."""

from __future__ import annotations

import json
from typing import Any


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header: bytes, or something to write as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: Any = 0, end: Any = 4, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


_ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

#: What is wrong -> the file. None of them may be opened.
DAMAGED: dict[str, bytes] = {
    "a header of 2^63 bytes": file({"a": entry()}, bytes(4), 2**63),
    "a header of 2^64 - 1 bytes": file({"a": entry()}, bytes(4), 2**64 - 1),
    "a header longer than the file": file({"a": entry()}, b"", 1000),
    "a header of nothing": file(b"", b"{}", 0),
    "a list for a header": file(b"{]", b""),
    "a header that is no object": file(b'{"a"', b""),
    "overlapping offsets": file({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
    "the same bytes twice": file({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
    "a hole": file({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "a hole in front": file({"a": entry(4, 8)}, bytes(8)),
    "bytes left over": file({"a": entry(0, 4)}, bytes(9)),
    "offsets past the end": file({"a": entry(0, 4), "b": entry(4, 8)}, bytes(4)),
    "offsets backwards": file({"a": entry(4, 0)}, bytes(4)),
    "negative offsets": file({"a": entry(-4, 0)}, bytes(4)),
    "offsets that are no integers": file({"a": entry(0.0, 4.0)}, bytes(4)),
    "offsets that are true and false": file({"a": entry(False, 4)}, bytes(4)),
    "three offsets": file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
    "no offsets": file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "offsets of 30 digits": file({"a": entry(0, 10**30)}, bytes(4)),
    "offsets of 5000 digits": file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}", bytes(4)
    ),
    "too many bytes for the shape": file({"a": entry(0, 8)}, bytes(8)),
    "too few bytes for the shape": file({"a": entry(0, 4, (2,))}, bytes(4)),
    "a wrong dtype size": file({"a": entry(0, 4, (1,), "F64")}, bytes(4)),
    "an unknown dtype": file({"a": entry(dtype="F31")}, bytes(4)),
    "a dtype that is no text": file({"a": entry(dtype=["F32"])}, bytes(4)),
    "a negative shape": file({"a": entry(shape=(-1, -1))}, bytes(4)),
    "a shape that is no list": file({"a": entry(shape="1")}, bytes(4)),
    "a shape that overflows": file({"a": entry(0, 0, (2**61, 2**61, 0))}, bytes(4)),
    "a shape of a thousand dimensions": file({"a": entry(shape=(1,) * 1000)}, bytes(4)),
    "an entry that is no object": file({"a": 1}, bytes(4)),
    "an entry with more": file({"a": {**entry(), "code": "x"}}, bytes(4)),
    "a name twice": file(b'{"a":' + _ONE + b',"a":' + _ONE + b"}", bytes(4)),
    "a key of an entry twice": file(b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "deep lists": file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep objects": file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "invalid UTF-8": file(b'{"\xff\xfe":' + _ONE + b"}", bytes(4)),
    "a lone surrogate": file(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    "NaN for a number": file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "JSON and more": file(b'{"a":' + _ONE + b"} {}", bytes(4)),
}


def many_keys(count: int) -> bytes:
    """A header of so many empty tensors."""
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    return file(f"{{{entries}}}".encode())
