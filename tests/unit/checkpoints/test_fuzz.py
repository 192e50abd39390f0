"""Whatever a file holds, a conversion accounts for every byte or raises a VitconvError.

``make fuzz`` runs the same properties on many more cases, and adds bytes that coverage guides (``fuzz/``).
"""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hostile import headers, pickles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from vitconv.checkpoints.checkpoint import open_source
from vitconv.checkpoints.tensorfile import StoredTensor, read_header
from vitconv.checkpoints.unwrap import unwrap
from vitconv.errors import VitconvError

CASES = int(os.environ.get("VITCONV_FUZZ_CASES", "1000"))
often = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))

_numbers = st.integers(-2, 9) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]) | st.floats() | st.booleans()
_shapes = st.lists(st.integers(0, 3), max_size=3)
_junk = st.recursive(
    st.none() | st.booleans() | _numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_dtypes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "BOOL": 1, "F8_E4M3": 1}


@st.composite
def files(draw) -> bytes:
    """A valid safetensors file, in most cases then broken in a few places."""
    header, end = {}, 0
    for name in draw(st.lists(st.text(max_size=8), max_size=5, unique=True)):
        shape, dtype = draw(_shapes), draw(st.sampled_from(list(_dtypes)))
        size = _dtypes[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        header["__metadata__"] = {"format": "pt"}
    for name in draw(st.lists(st.sampled_from(sorted(header)), max_size=2)) if header else []:
        if isinstance(header[name], dict):
            header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(_junk)
    if header and draw(st.integers(0, 5)) == 0:
        header[draw(st.sampled_from(sorted(header)))] = draw(_junk)
    data = bytes(max(0, end + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 8]))))
    length = draw(st.sampled_from([None, None, None, None, 0, 2, 2**63]))
    text = bytearray(json.dumps(header).encode() + b" " * draw(st.integers(0, 9)))
    for position in draw(st.lists(st.integers(0, len(text) - 1), max_size=1)):
        text[position] = draw(st.integers(0, 255))
    return headers.file(bytes(text), data, length)


def check_file(path) -> bool:
    """Check the property, and return whether the file was accepted."""
    try:
        tensors = read_header(path)
    except VitconvError:
        return False
    position = None
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        assert position is None or tensor.start == position
        position = tensor.start + tensor.nbytes
    assert position in (None, path.stat().st_size)
    # What is accepted is read by safetensors itself, and says the same there.
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert tuple(file.get_slice(name).get_shape()) == tensor.shape
    return True


@pytest.mark.slow
@often
@given(files())
def test_every_byte_of_a_safetensors_file_is_accounted_for(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    check_file(path)


@often
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x20" + bytes(7) + b"{"])
)
def test_any_bytes_are_opened_or_refused(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(start + content)
    with contextlib.suppress(VitconvError):
        open_source(path)


_opcodes = st.sampled_from(
    [
        b"}",
        b")",
        b"(",
        b"t",
        b"s",
        b"u",
        b"a",
        b"]",
        b"0",
        b"2",
        b"q\x00",
        b"h\x00",
        b"K\x01",
        b"N",
        b"R",
        b"b",
        b"\x81",
    ]
    + [pickles.text("w"), pickles.tensor("0", (4,), (1,)), pickles.tensor("0", (2, 2), (2, 1))]
    + [pickles.tensor("0", (2, 2), (1, 2)), pickles.tensor("0", (3,), (0,)), pickles.tensor("0", (9,), (1,))]
    + [b"cargparse\nNamespace\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"]
)


@often
@given(st.lists(_opcodes, max_size=12), st.sampled_from([pickles.as_zip, pickles.as_legacy]))
def test_any_pickle_is_opened_or_refused(tmp_path_factory, opcodes, wrap):
    path = tmp_path_factory.getbasetemp() / "fuzz.pth"
    pickled = b"\x80\x02" + b"".join(opcodes) + b"."
    path.write_bytes(wrap(pickled, {"0": bytes(16)}) if wrap is pickles.as_zip else wrap(pickled))
    try:
        source = open_source(path)
        for tensor in source.tensors(source.content).values():
            assert tensor.nbytes <= 16
    except VitconvError:
        pass


_NAMES = ("cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "head.weight", "head.bias")
_TENSOR = StoredTensor(Path("fuzz"), 0, "float32", (2, 2))
_parts = st.sampled_from([*_NAMES, "lora_A", "mask_token", "module.", "ema.", "x.", "state_dict", "optimizer"])
_contents = st.recursive(
    st.dictionaries(
        st.lists(_parts, min_size=1, max_size=3).map("".join) | _junk.map(str), st.just(_TENSOR), max_size=8
    )
    | st.just({f"module.{name}": _TENSOR for name in _NAMES})
    | st.just(dict.fromkeys(_NAMES, _TENSOR))
    | st.just(dict.fromkeys(_NAMES[:3], _TENSOR)),
    lambda inner: st.dictionaries(_parts | st.integers() | st.none(), inner | _junk, max_size=4),
    max_leaves=6,
)


def tensor_paths(content, path=""):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from tensor_paths(value, f"{path}{key}.")
        elif value is _TENSOR:
            yield f"{path}{key}"


@often
@given(_contents, st.booleans(), st.booleans(), st.booleans())
def test_any_wrapper_is_undone_or_refused(content, ema, known, headless):
    try:
        found = unwrap(content, set(_NAMES) if known else None, ema=ema, headless=headless)
    except VitconvError:
        return
    assert found.tensors
    # A head that is anywhere in the file is not left out of a model without one, unless that was asked for.
    if not headless and set(found.tensors) == set(_NAMES[:3]):
        paths = [path for path in tensor_paths(content) if "optimizer" not in path and "mask_token" not in path]
        assert not [path for path in paths if f".{path}".endswith(".head.weight")]
    assert all(tensor is _TENSOR for tensor in found.tensors.values())
