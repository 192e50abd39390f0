"""Pickles that try to run code when they are opened, one for each way that a pickle has.

Every payload would create the folder ``trap``. Opcodes: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping

MAGIC = 0x1950A86A20F9469CFC6C  # torch's older format begins with it


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL, a tuple of arguments, REDUCE."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def code(trap: str) -> str:
    return f"__import__('os').mkdir({trap!r})"


#: How each payload gets at ``os.mkdir``; given the trap's path.
PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda trap: b"\x80\x02" + call("os", "mkdir", text(trap)) + b".",
    "REDUCE posix": lambda trap: b"\x80\x02" + call("posix", "mkdir", text(trap)) + b".",
    "REDUCE eval": lambda trap: b"\x80\x02" + call("builtins", "eval", text(code(trap))) + b".",
    "REDUCE exec": lambda trap: b"\x80\x02" + call("builtins", "exec", text(code(trap))) + b".",
    "REDUCE getattr": lambda trap: (
        b"\x80\x02"
        + b"cbuiltins\ngetattr\n("
        + call("builtins", "__import__", text("os"))
        + text("mkdir")
        + b"tR("
        + text(trap)
        + b"tR."
    ),
    "REDUCE subprocess": lambda trap: b"\x80\x02csubprocess\nPopen\n(]" + text("mkdir") + b"a" + text(trap) + b"atR.",
    "REDUCE nested pickle": lambda trap: (
        b"\x80\x02"
        + call("_codecs", "encode", text("x"))
        + b"0"
        + call("pickle", "loads", b"C" + bytes([len(p := b"cos\nmkdir\n(" + text(trap) + b"tR.")]) + p)
        + b"."
    ),
    "REDUCE torch.load": lambda trap: b"\x80\x02" + call("torch.serialization", "load", text(trap)) + b".",
    "REDUCE torch.hub": lambda trap: b"\x80\x02" + call("torch.hub", "load", text(trap), text("x")) + b".",
    "REDUCE numpy": lambda trap: (
        b"\x80\x02" + call("numpy.testing._private.utils", "runstring", text(code(trap))) + b"."
    ),
    "STACK_GLOBAL": lambda trap: b"\x80\x04" + short("os") + short("mkdir") + b"\x93(" + text(trap) + b"tR.",
    "STACK_GLOBAL dotted": lambda trap: (
        b"\x80\x04" + short("torch") + short("serialization.os.mkdir") + b"\x93(" + text(trap) + b"tR."
    ),
    "STACK_GLOBAL of an allowed class": lambda trap: (
        b"\x80\x04" + short("argparse") + short("Namespace.__init__.__globals__") + b"\x93."
    ),
    "INST": lambda trap: b"\x80\x02(" + text(trap) + b"ios\nmkdir\n.",
    "OBJ": lambda trap: b"\x80\x02(cos\nmkdir\n" + text(trap) + b"o.",
    "NEWOBJ": lambda trap: b"\x80\x02csubprocess\nPopen\n(]" + text("mkdir") + b"a" + text(trap) + b"at\x81.",
    "NEWOBJ_EX": lambda trap: b"\x80\x04csubprocess\nPopen\n(" + text(trap) + b"t}\x92.",
    "BUILD": lambda trap: (
        b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + b"cos\nmkdir\nsb" + text(trap) + b"b."
    ),
    "BUILD of a class": lambda trap: b"\x80\x02cos\n_Environ\n)\x81" + text(trap) + b"b.",
    "EXT1": lambda trap: b"\x80\x02\x82\x01(" + text(trap) + b"tR.",
    "EXT4": lambda trap: b"\x80\x02\x84\x01\x00\x00\x00(" + text(trap) + b"tR.",
    "PERSID": lambda trap: b"\x80\x02P" + trap.encode() + b"\n.",
    "BINPERSID": lambda trap: b"\x80\x02(" + text("storage") + b"cos\nmkdir\n" + text(trap) + b"tQ.",
    "in a dictionary": lambda trap: b"\x80\x02}" + text("w") + call("os", "mkdir", text(trap)) + b"s.",
    "as a key": lambda trap: b"\x80\x02}" + call("os", "mkdir", text(trap)) + b"Ks.",
    "in a Namespace": lambda trap: (
        b"\x80\x02cargparse\nNamespace\n)\x81}" + text("model") + call("os", "mkdir", text(trap)) + b"sb."
    ),
    "copyreg": lambda trap: b"\x80\x02ccopyreg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR.",
}

#: Pickles that only crash or swell.
BROKEN: dict[str, bytes] = {
    "an empty stack": b"\x80\x02.",
    "a missing mark": b"\x80\x02t.",
    "an unknown opcode": b"\x80\x02\xff.",
    "no end": b"\x80\x02}",
    "a bytearray of a terabyte": b"\x80\x02"
    + call("builtins", "bytearray", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    + b".",
    "a tensor of a terabyte": b"\x80\x02"
    + call("torch", "FloatTensor", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    + b".",
    "a string of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "a list": b"\x80\x02].",
    "a number": b"\x80\x02K\x01.",
    "a list within itself": b"\x80\x02]q\x00h\x00a.",
    "lists in lists": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
    "odd keys": b"\x80\x02}(K\x01K\x02NK\x03K\x04K\x05\x86K\x06C\x01xK\x07u.",
    "a dictionary within itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
}


def billion_laughs(levels: int = 30) -> bytes:
    """Each dictionary holds the one below ten times: 10^30 entries in a kilobyte."""
    pickled = b"\x80\x02}q\x00"
    for level in range(levels):
        index = bytes([level])
        pickled += b"}(" + b"".join(text(str(i)) + b"h" + index for i in range(10)) + b"uq" + bytes([level + 1])
    return pickled + b"."


def as_zip(
    pickled: bytes,
    records: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    byteorder: bytes = b"little",
) -> bytes:
    """As ``torch.save`` writes it today."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", byteorder)
        for name, content in (records or {}).items():
            archive.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


def as_legacy(pickled: bytes, records: Mapping[str, bytes] | None = None) -> bytes:
    """As ``torch.save`` wrote it before 1.6; the records are of float32, and no storage is a view."""
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    storages = pickle.dumps(list(records or {}), 2)
    storages += b"".join(struct.pack("<q", len(data) // 4) + data for data in (records or {}).values())
    return b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, info)) + pickled.replace(b"tQ", b"NtQ") + storages


def tensor(key: str, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 4) -> bytes:
    """The opcodes of one float32 tensor on the storage ``key``."""

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    flags = b"\x89" + call("collections", "OrderedDict")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + numbers(size)
        + numbers(stride)
        + flags
        + b"tR"
    )


def dictionary(tensors: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + opcodes for name, opcodes in tensors.items()) + b"u."


def integer(value: int) -> bytes:
    """LONG1."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def get(index: int) -> bytes:
    """LONG_BINGET."""
    return b"j" + struct.pack("<I", index)


def put(index: int) -> bytes:
    """LONG_BINPUT."""
    return b"r" + struct.pack("<I", index)


def _chain(levels: int) -> bytes:
    """Lists each of which gets the next when it is itself already a part of the one before."""
    links = (get(level) + b"]" + put(level + 1) + b"a" for level in range(levels))
    return b"(]" + put(0) + b"".join(links) + b"t"


def _doubled(levels: int) -> bytes:
    """A tuple of two tuples of two tuples…: 2^levels in all."""
    return b"(" + b")" + put(0) + b"".join(get(i) + get(i) + b"\x86" + put(i + 1) for i in range(levels)) + b"t"


def _of_type(levels: int, number: bytes = b"K\x00") -> bytes:
    """A size within a size within a size…: a subclass of tuple."""
    return b"ctorch\nSize\n" * levels + b"(" + number + b"t\x85R" + b"\x85\x85R" * (levels - 1)


def _attribute(levels: int) -> bytes:
    """Tensors that have one another for an attribute."""
    inner = b"N"
    for _ in range(levels):
        inner = (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch.nn.parameter\nParameter\nctorch.nn.parameter\nParameter\n)}"
            + text("a")
            + inner
            + b"stR"
        )
    return inner


_LARGE = integer(4 * 10**9)
_MANY = b"](" + b"K\x01" * 400_000 + b"e" + put(0)
_TEXT = text("x" * 10_000_000) + put(0)

#: Objects that torch's reader would make, to the harm of who opens them. Each stands for a value beside the weights.
SWELLING: dict[str, bytes] = {
    "tuples in tuples": b")" + b"\x85" * 300_000,
    "lists in lists": b"]" * 300_000 + b"a" * 299_999,
    "dictionaries in dictionaries": (b"}" + text("a")) * 100_000 + b"N" + b"s" * 100_000,
    "lists that grow inside of others": _chain(100_000),
    "tensors that are attributes of tensors": _attribute(3_000),
    "a key of tuples in tuples": b"}(" + b")" + b"\x85" * 300_000 + b"Nu",
    "a key of 2^40 tuples": b"}(" + _doubled(40) + b"Nu",
    "a set of 2^40 tuples": call("builtins", "set", b"](" + _doubled(40) + b"e"),
    "a counter of 2^40 tuples": call("collections", "Counter", b"](" + _doubled(40) + b"e"),
    "pairs of 2^40 tuples": call("collections", "OrderedDict", b"](" + _doubled(40) + b"N\x86e"),
    "keys with the same hash": b"}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(1, 60_000)) + b"u",
    "complex keys": b"}("
    + b"".join(call("builtins", "complex", integer(i * 1000003), integer(-i)) + b"N" for i in range(1, 2_000))
    + b"u",
    "a bytearray": call("builtins", "bytearray", _LARGE),
    "a bytearray made by a tensor's function": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        b"cbuiltins\nbytearray\n",
        b"ctorch\nTensor\n",
        _LARGE + b"\x85",
        b"}",
    ),
    "arguments that are no tuple": b"cbuiltins\nbytearray\n}" + _LARGE + b"NsR",
    "a tensor of no file": call("torch", "FloatTensor", integer(1000)),
    "a new tensor of no file": b"ctorch\nFloatTensor\n" + integer(1000) + b"\x85\x81",
    "a storage of no file": call("torch.storage", "UntypedStorage", integer(10**6)),
    "a text encoded again and again": b"](" + _TEXT + call("_codecs", "encode", get(0), text("latin1")) * 1000 + b"e",
    "a text in a slow encoding": call("_codecs", "encode", text("\u00e4\u1234" * 10_000), text("punycode")),
    "a list copied again and again": b"](" + _MANY + call("builtins", "set", get(0)) * 10_000 + b"e",
    "more objects than a checkpoint has": b"](" + b"N" * 1_100_000 + b"e",
    "a memo without end": b"](" + b"N" + b"r\xff\xff\xff\x7f" + b"j\xff\xff\xff\x7e" + b"e",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 1 << 40),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40),
    "a frame": b"\x95" + struct.pack("<Q", 1 << 62),
}


def _state(key: str, value: bytes) -> bytes:
    return b"}" + text(key) + value + b"s"


#: Objects that would not say what they hold: given the opcodes of a tensor.
DISGUISED: dict[str, Callable[[bytes], bytes]] = {
    "a dictionary's items": lambda tensor: (
        call("collections", "OrderedDict") + _state("items", b"ccollections\nOrderedDict\n") + b"b"
    ),
    "a dictionary's get": lambda tensor: call("collections", "OrderedDict") + _state("get", b"K\x01") + b"b",
    "a tensor's stride": lambda tensor: call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch.nn.parameter\nParameter\n",
        b"(" + tensor + b"\x89" + call("collections", "OrderedDict") + b"t",
        _state("stride", b"ctorch\nSize\n"),
    ),
    "a parameter's size": lambda tensor: call(
        "torch._utils",
        "_rebuild_parameter_with_state",
        tensor,
        b"\x89",
        call("collections", "OrderedDict"),
        _state("numel", b"ctorch\nSize\n"),
    ),
    "a tensor built from outside": lambda tensor: tensor + b"(" + tensor + b"tb",
}
