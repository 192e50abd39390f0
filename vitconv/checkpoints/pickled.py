"""Look into a pickle without opening it: what it would create, and whether torch can open it safely.

A pickle is a program: opening it runs it. ``pickletools`` lists its instructions without following them. Here they
are followed to learn the structure of the result: a dictionary becomes its keys and values, and every other object the
name of what would be called to create it. Nothing is imported and nothing is called.

torch's own reader (``weights_only=True``) runs no code of the file's, but it does what the file says: it makes
bytearrays of any size, tensors that reach beyond their bytes, and nests tuples until Python's stack overflows. A file
that does such things has a :attr:`Pickled.problem`, and torch never opens it. Every instruction that torch would
follow is followed here in the same way. A pickle with an instruction that cannot be followed has a problem, too.
"""

from __future__ import annotations

import _compat_pickle
import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

#: What torch creates with ``weights_only=True``, approximately: torch itself has the last word.
_SAFE = re.compile(
    r"torch\.(_utils\._rebuild_\w+|\w+Storage|storage\.\w+Storage|_tensor\.\w+|nn\.parameter\.Parameter|Size|device|Tensor"
    r"|serialization\._get_layout|b?float\d+\w*|u?int\d+|bool|complex\d+|q\w+)"
    r"|collections\.(OrderedDict|Counter)|argparse\.Namespace|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|complex|bytearray)"
)
#: Bytes and instructions: the pickle of a checkpoint has names and sizes only. That of a ViT of a billion parameters
#: has a hundredth of both, with its optimizer.
_LONGEST = 64_000_000
_MOST_INSTRUCTIONS = 1_000_000
#: Levels of nesting: Python hashes and frees nested objects by recursion, in some of torch's code without a limit.
_DEEPEST = 100
#: Objects in the arguments of all calls together; what is repeated by reference counts each time.
_MOST_GIVEN = 10_000_000
#: Keys that are neither text nor numbers, and the objects in one: their hashes can be made to collide.
_MOST_ODD_KEYS, _LARGEST_KEY = 1000, 50
#: What torch's reader of weights follows.
_FOLLOWED_BY_TORCH = frozenset(
    (
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *(
            "BINUNICODE",
            "SHORT_BINSTRING",
            "EMPTY_TUPLE",
            "TUPLE",
            "TUPLE1",
            "TUPLE2",
            "TUPLE3",
            "EMPTY_LIST",
            "APPEND",
        ),
        *("APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "BINGET", "LONG_BINGET", "BINPUT"),
        *("LONG_BINPUT", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
    )
)
#: Bytes of an element by the name of its storage.
_STORAGES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
#: Calls that create tensors without bytes from the file: of any size, and filled with what was in memory.
_OUT_OF_NOTHING = re.compile(r"torch\.(\w+\.)*(\w*Tensor|\w+Storage)")
_REBUILDS = re.compile(r"torch\._utils\._rebuild_(q?tensor|tensor_v[23])")
#: torch's format before 1.6 is several pickles: this number, a version, facts on the machine, and then the content.
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Pickled:
    """What a pickle would create.

    Attributes:
        unsafe: the classes and functions it names that torch does not open, in its order.
        protocol: of pickling; torch opens 2 only.
        weights: a Python expression for the part of ``c``, the opened content, that can be kept; ``"c"`` if that
            is not known.
        storages: the bytes that it says each of its storages has, by key.
        unsupported: whether it has instructions that torch's reader of weights does not follow.
        problem: why torch must not open it, for the end of a sentence; ``""`` if torch may open it.
    """

    unsafe: tuple[str, ...] = ()
    protocol: int = 0
    weights: str = "c"
    storages: Mapping[str, int] = field(default_factory=dict)
    unsupported: bool = False
    problem: str = ""


class _ProblemError(Exception):
    """Why torch must not open a pickle."""


@dataclass(eq=False, slots=True)
class _Made:
    """An object that the pickle would create.

    Attributes:
        by: the name of what is called to create it; ``None`` if a pickle instruction creates it.
        entries: keys and values, of a dictionary.
        parts: everything else that it is created from or given later.
        kind: the instruction that creates it.
        depth: levels of objects below it.
        size: the number of objects within it; a repeated one counts each time.
        inside: whether it is a part of another object.
        nbytes: for a storage, its size in bytes.
    """

    by: str | None = None
    entries: list[tuple[Any, Any]] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)
    kind: str = ""
    depth: int = 0
    size: int = 1
    inside: bool = False
    nbytes: int = -1

    @property
    def is_tuple(self) -> bool:
        """Whether it is a plain tuple, which cannot change later."""
        return self.kind in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")

    def has(self, wanted: str) -> bool:
        """Whether one of its entries has this key."""
        return any(isinstance(key, str) and key == wanted for key, _ in self.entries)


def scan(path: Path) -> Pickled:
    """Look into a file in torch's format, or a bare pickle.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it begins like a zip, but is none.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        walk = _Walk(io.BytesIO(_in_zip(path)) if zipped else _Beginning(file))
        weights, problem = "c", ""
        try:
            made = walk.pickle()
            if made == _MAGIC:
                walk.pickle(), walk.pickle()
                made = walk.pickle()
                protocol = walk.protocol
                walk.pickle()  # the keys of the storages
                walk.protocol = protocol
            weights = _weights(made)
        except _ProblemError as error:
            problem = str(error)
        except Exception as error:  # a hostile pickle can end anywhere, or have its instructions in any order
            problem = "its pickle cannot be followed"
            # pickletools reads names as ASCII only. torch creates nothing that has another name.
            walk.unsupported |= isinstance(error, UnicodeDecodeError) and error.encoding == "ascii"
    unsafe = tuple(dict.fromkeys(name for name in walk.named if not _is_safe(name)))
    return Pickled(unsafe, walk.protocol, weights, walk.storages, walk.unsupported, problem)


def _in_zip(path: Path) -> bytes:
    """The pickle in a zip in torch's format: in the folder of the first entry, where torch looks for it."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        name = entries[0].filename.partition("/")[0] + "/data.pkl" if entries else ""
        entry = next((entry for entry in entries if entry.filename.casefold() == name.casefold()), None)
        if entry is None:
            raise zipfile.BadZipFile(f"there is no '{name}'")
        entry.CRC = None  # type: ignore[assignment]  # torch can be told not to compute it
        with archive.open(entry) as file:
            return file.read(_LONGEST)  # a longer one is cut off, and so refused


class _Beginning:
    """The beginning of a file, no longer than a pickle may be. In older files, the tensors' bytes follow it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _LONGEST

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end."""
        return self._counted(self._file.read(min(count, self._left)))

    def readline(self) -> bytes:
        """The next line."""
        return self._counted(self._file.readline(self._left))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def _is_safe(name: str) -> bool:
    return _SAFE.fullmatch(name) is not None


class _Walk:
    """Follows pickles one after another, and records the names and storages in them."""

    def __init__(self, stream: Any) -> None:
        self.named: list[str] = []
        self.protocol = 0
        self.storages: dict[str, int] = {}
        self.unsupported = False
        self._stream = stream
        self._instructions = 0
        self._late = 0
        self._given = 0
        self._odd_keys = 0

    def pickle(self) -> Any:
        """What the next pickle would create."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[Any, Any] = {}
        instructions: Any = pickletools.genops(self._stream)
        for opcode, argument, _ in instructions:
            self._instructions += 1
            if self._instructions > _MOST_INSTRUCTIONS:
                raise _ProblemError(f"its pickle has more than {_MOST_INSTRUCTIONS:,} instructions")
            before = opcode.stack_before
            self.unsupported = self.unsupported or opcode.name not in _FOLLOWED_BY_TORCH
            if opcode.name == "PROTO":
                self.protocol = argument
            elif opcode.name == "MARK":
                marks.append(len(stack))
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif opcode.name != "STOP":
                marked: list[Any] = []
                if pickletools.markobject in before:
                    start = marks.pop()
                    marked = stack[start:]
                    del stack[start:]
                    before = before[: before.index(pickletools.markobject)]
                taken = stack[len(stack) - len(before) :]
                del stack[len(stack) - len(before) :]
                stack += [self._result(opcode.name, argument, taken, marked)] * len(opcode.stack_after)
        return stack[-1]

    def _result(self, name: str, argument: Any, taken: list[Any], marked: list[Any]) -> Any:
        """What an instruction puts on the stack, given its argument and what it takes from the stack."""
        if name in ("SETITEM", "SETITEMS", "DICT"):
            target, pairs = (taken[0] if taken else _Made()), [*taken[1:], *marked]
            target.entries.extend(zip(pairs[::2], pairs[1::2], strict=True))
            self._check_keys(pairs[::2])
            return self._put(target, pairs)
        if name in ("APPEND", "APPENDS", "ADDITEMS", "BUILD"):
            target, added = taken[0], [*taken[1:], *marked]
            target.parts += added
            if name == "BUILD":
                self._check_state(target.by, added)
            return self._put(target, added)
        if name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            words = taken if name == "STACK_GLOBAL" else argument.split(" ", 1)
            module = _compat_pickle.IMPORT_MAPPING.get(words[0], words[0])
            self.named.append(".".join((module, *words[1:])))
            return _Made(self.named[-1], parts=marked)
        if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
            called, *arguments = [*taken, *marked]
            if not self.unsupported:
                self._check_call(called.by, arguments[0])
            return self._put(_Made(called.by, parts=arguments), arguments)
        if name in ("NONE", "NEWTRUE", "NEWFALSE"):
            return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
        if name == "BINPERSID":
            return self._storage(taken[0])
        if taken or marked or argument is None:
            inside = [*taken, *marked]
            return taken[0] if name == "DUP" else self._put(_Made(parts=inside, kind=name), inside)
        return argument

    def _put(self, target: _Made, added: list[Any]) -> _Made:
        """Count objects that become parts of another."""
        depth = 1 + max((part.depth for part in added if isinstance(part, _Made)), default=0) if added else 0
        # Objects that already hold the target were measured without the added ones. Such an addition makes them
        # deeper by at most its own depth.
        self._late += depth if target.inside else 0
        target.depth = max(target.depth, depth)
        if target.depth + self._late > _DEEPEST:
            raise _ProblemError("it nests objects too deeply")
        target.size = min(target.size + sum(map(_size, added)), 2 * _MOST_GIVEN)
        for part in added:
            if isinstance(part, _Made):
                part.inside = True
        return target

    def _check_keys(self, keys: list[Any]) -> None:
        for key in keys:
            if isinstance(key, int) and abs(key) >= 1 << 64:
                raise _ProblemError("it has a key that is a number of more than 64 bits")
            self._odd_keys += isinstance(key, _Made)
            if self._odd_keys > _MOST_ODD_KEYS or _size(key) > _LARGEST_KEY and isinstance(key, _Made):
                raise _ProblemError("it has too many or too large keys that are neither text nor numbers")

    def _give(self, values: list[Any]) -> None:
        self._given += sum(map(_size, values))
        if self._given > _MOST_GIVEN:
            raise _ProblemError(f"it copies more than {_MOST_GIVEN:,} objects")

    def _check_state(self, by: str | None, state: list[Any]) -> None:
        self._give(state)
        if by is not None and _is_safe(by) and by not in ("collections.OrderedDict", "argparse.Namespace"):
            raise _ProblemError(f"it sets attributes of a {by}, which no checkpoint does")

    def _check_call(self, by: str, given: Any) -> None:
        """Check a call, given its tuple of arguments."""
        if not given.is_tuple:
            raise _ProblemError("it makes a call whose arguments are not a tuple")
        arguments = given.parts
        self._give(arguments)
        if _OUT_OF_NOTHING.fullmatch(by):
            raise _ProblemError(f"it creates a {by} without bytes in the file")
        if by == "builtins.bytearray" and any(isinstance(value, int) for value in arguments):
            raise _ProblemError("it creates a bytearray from a size instead of bytes")
        if by == "_codecs.encode" and any(value not in ("latin1", "utf-8", "ascii") for value in arguments[1:]):
            raise _ProblemError("it encodes text in an unusual way")
        if by in ("builtins.set", "collections.Counter", "collections.OrderedDict"):
            for one in arguments:
                parts = one.parts if isinstance(one, _Made) else []
                if by == "collections.OrderedDict":  # of pairs
                    parts = [part.parts[0] for part in parts]
                self._check_keys(parts)
        if by == "torch._tensor._rebuild_from_type_v2":  # calls the first with the third
            self._check_call(arguments[0].by, arguments[2])
        if _REBUILDS.fullmatch(by):
            _check_extent(by, *arguments)

    def _storage(self, identity: Any) -> _Made:
        """A storage, from torch's tuple for it: ``"storage"``, class, key, device and number of elements."""
        what, made_by, key, _, numel, *view = identity.parts
        element = _STORAGES[made_by.by.rpartition(".")[2].removesuffix("Storage")]
        whole = view in ([], [None])
        if what != "storage" or not isinstance(key, str) or type(numel) is not int or numel < 0 or not whole:
            raise _ProblemError("it refers to a storage in a way that torch does not")
        if self.storages.setdefault(key, numel * element) != numel * element:
            raise _ProblemError(f"its storage `{key}` has two sizes")
        return _Made(kind="BINPERSID", parts=[identity], nbytes=numel * element)


def _size(value: Any) -> int:
    """The number of objects in a value; text counts by its length."""
    if isinstance(value, _Made):
        return value.size
    return 1 + len(value) // 8 if isinstance(value, (str, bytes)) else 1


def _check_extent(by: str, storage: _Made, offset: Any, size: _Made, stride: _Made, *others: Any) -> None:
    """Check that a tensor lies in its storage: torch would enlarge the storage with bytes from memory."""
    lengths, steps = _numbers(size), _numbers(stride)
    if storage.nbytes < 0 or len(lengths) != len(steps) or len(lengths) > 64 or min(0, offset, *lengths, *steps) < 0:
        raise _ProblemError("it has a tensor of an impossible shape")
    name = storage.parts[0].parts[1].by.rpartition(".")[2].removesuffix("Storage")
    element = _STORAGES[name]
    if by.endswith("_v3"):
        bits = re.search(r"\d+", others[2].by)
        element = max(int(bits[0]) // 8, 1) if bits else 1
    last = offset + sum((length - 1) * step for length, step in zip(lengths, steps, strict=True))
    if math.prod(lengths) and (last + 1) * element > storage.nbytes:
        raise _ProblemError("a tensor in it reaches beyond its bytes in the file")


def _numbers(value: _Made) -> list[int]:
    """The numbers in a tuple, or a ``torch.Size`` of one."""
    if value.by == "torch.Size":
        value = value.parts[0].parts[0]
    if not value.is_tuple or not all(type(number) is int for number in value.parts):
        raise _ProblemError("it has a tensor of an impossible shape")
    return value.parts


def _weights(content: Any) -> str:
    """A Python expression for the part of ``c``, the content, that torch can open, with the weights."""
    if not isinstance(content, _Made):
        return "c"
    if _is_module(content):
        return "c.state_dict()"
    kept, dropped, models = [], [], []
    seen: set[int] = set()
    for key, value in content.entries:
        if not isinstance(value, _Made) or id(value) in seen:
            kept.append((key, value, False))
            continue
        made = list(_inside(value, seen))
        tensors = any((part.by or "").startswith("torch._utils._rebuild") for part in made)
        unsafe = any(part.by is not None and not _is_safe(part.by) for part in made)
        optimizer = value.has("param_groups")
        if _is_module(value):
            models.append(key)
        elif not unsafe:
            kept.append((key, value, tensors and not optimizer))
        elif tensors and not optimizer:
            return "c"
        else:
            dropped.append(key)
    weights = [key for key, _, tensors in kept if tensors]
    # Other entries that may describe the model stay beside the weights.
    told = [key for key, value, tensors in kept if not tensors and isinstance(value, (str, _Made))]
    if len(models) == 1 and not weights:
        return _written("c[{}].state_dict()", models)
    if models or not weights:
        return "c"
    if len(weights) == 1 and not told:
        return _written("c[{}]", weights)
    return _written("{{k: v for k, v in c.items() if k not in ({},)}}", dropped)


def _written(expression: str, keys: list[Any]) -> str:
    """The expression with the keys in it; ``"c"`` if there are no keys, too many, or keys that are not plain words."""
    plain = all(isinstance(key, str) and key.isidentifier() and len(key) < 60 for key in keys)
    return expression.format(", ".join(map(repr, keys))) if plain and 0 < len(keys) < 9 else "c"


def _is_module(value: Any) -> bool:
    """Whether it would be a ``torch.nn.Module``: an object whose state has ``_modules``."""
    state = value.parts[-1] if isinstance(value, _Made) and value.parts else None
    return isinstance(state, _Made) and state.has("_modules")


def _inside(value: Any, seen: set[int]) -> Iterator[_Made]:
    """Every object in a value, itself included, that is not in ``seen`` yet."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Made) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += [*value.parts, *(part for entry in value.entries for part in entry)]
