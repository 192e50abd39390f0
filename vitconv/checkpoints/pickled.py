"""Look into a pickle without opening it: what it would make, and whether torch can safely be let at it.

A pickle is a program: opening it runs it. ``pickletools`` lists its instructions without following them. Here they
are followed for their shape only: what would be a dictionary becomes its keys and values, everything else the name of
what would be called. Nothing is imported and nothing is called.

torch's own reader (``weights_only=True``) runs no code of the file's, but it does what the file says: it makes
bytearrays of any size, tensors that reach beyond their bytes, and nests tuples until Python's stack overflows. A file
that does such things has a :attr:`Pickled.problem`, and torch never sees it. The rule is that whatever torch would
follow is followed here in the same way; so what cannot be followed is a problem, too.
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

#: What torch opens itself, near enough for words.
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
#: Levels of nesting: Python hashes and frees nested objects by recursion, and some of torch's without a limit.
_DEEPEST = 100
#: Objects that calls are given, all together; what comes again by reference counts again.
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
#: Makes tensors without bytes of the file's: of any size, and of whatever the memory holds.
_OUT_OF_NOTHING = re.compile(r"torch\.(\w+\.)*(\w*Tensor|\w+Storage)")
_REBUILDS = re.compile(r"torch\._utils\._rebuild_(q?tensor|tensor_v[23])")
#: torch's format before 1.6 is several pickles: this number, a version, facts on the machine, and then the content.
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Pickled:
    """What a pickle would make.

    Attributes:
        unsafe: the classes and functions it names that torch does not open, in its order.
        protocol: of pickling; torch opens 2 only.
        weights: the expression that takes what can be kept out of ``c``, the opened content; ``"c"`` if that cannot
            be told.
        storages: the bytes that it says each of its storages has, by key.
        foreign: it has instructions that torch's reader of weights does not follow.
        problem: why torch must not open it, to go behind the name of the file; ``""`` if it may.
    """

    unsafe: tuple[str, ...] = ()
    protocol: int = 0
    weights: str = "c"
    storages: Mapping[str, int] = field(default_factory=dict)
    foreign: bool = False
    problem: str = ""


class _ProblemError(Exception):
    """Why torch must not open a pickle."""


@dataclass(eq=False, slots=True)
class _Made:
    """An object that would be made: by calling what, with which entries and what other parts.

    Attributes:
        by: what is called; ``None`` for what pickles have instructions for.
        kind: the instruction that makes it.
        depth: levels of objects below it.
        size: objects within it, each as often as it is reached.
        inside: it is a part of another.
        nbytes: of a storage.
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
        """Whether it is a plain tuple, which nothing changes any more."""
        return self.kind in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")

    def has(self, wanted: str) -> bool:
        """Whether one of its entries has this key."""
        return any(isinstance(key, str) and key == wanted for key, _ in self.entries)


def scan(path: Path) -> Pickled:
    """Look into a file of torch's, or a bare pickle.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it is no zip, though it begins like one.
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
        except Exception as error:  # a hostile pickle can break off anywhere, or have any order of instructions
            problem = "its pickle cannot be followed"
            # Where pickletools reads a name, it takes ASCII only; of such a name there is nothing that torch makes.
            walk.foreign |= isinstance(error, UnicodeDecodeError) and error.encoding == "ascii"
    unsafe = tuple(dict.fromkeys(name for name in walk.named if not _is_safe(name)))
    return Pickled(unsafe, walk.protocol, weights, walk.storages, walk.foreign, problem)


def _in_zip(path: Path) -> bytes:
    """The pickle in a zip of torch's: in the folder of the first entry, as torch finds it."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        name = entries[0].filename.partition("/")[0] + "/data.pkl" if entries else ""
        entry = next((entry for entry in entries if entry.filename.casefold() == name.casefold()), None)
        if entry is None:
            raise zipfile.BadZipFile(f"there is no '{name}'")
        entry.CRC = None  # type: ignore[assignment]  # torch can be told not to compute it
        with archive.open(entry) as file:
            return file.read(_LONGEST)  # of one that is longer, the end is missing


class _Beginning:
    """As much of a file as can be a pickle: of an older one, the tensors' bytes follow."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _LONGEST

    def read(self, count: int) -> bytes:
        """The next bytes, fewer where there are no more."""
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
    """Follows pickles one after another, and keeps what it meets in them."""

    def __init__(self, stream: Any) -> None:
        self.named: list[str] = []
        self.protocol = 0
        self.storages: dict[str, int] = {}
        self.foreign = False
        self._stream = stream
        self._instructions = 0
        self._late = 0
        self._given = 0
        self._odd_keys = 0

    def pickle(self) -> Any:
        """What the next pickle would make."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[Any, Any] = {}
        instructions: Any = pickletools.genops(self._stream)
        for opcode, argument, _ in instructions:
            self._instructions += 1
            if self._instructions > _MOST_INSTRUCTIONS:
                raise _ProblemError("it describes more objects than any Vision Transformer has")
            before = opcode.stack_before
            self.foreign = self.foreign or opcode.name not in _FOLLOWED_BY_TORCH
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
        """What an instruction leaves: given its argument, what it takes from the stack, and what up to a mark."""
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
            if not self.foreign:
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
        """Account for objects that become parts of another."""
        depth = 1 + max((part.depth for part in added if isinstance(part, _Made)), default=0) if added else 0
        # What already holds the target was measured without them. Each such addition makes all of it deeper at most
        # by its own depth.
        self._late += depth if target.inside else 0
        target.depth = max(target.depth, depth)
        if target.depth + self._late > _DEEPEST:
            raise _ProblemError("it nests objects more deeply than any checkpoint does")
        target.size = min(target.size + sum(map(_size, added)), 2 * _MOST_GIVEN)
        for part in added:
            if isinstance(part, _Made):
                part.inside = True
        return target

    def _check_keys(self, keys: list[Any]) -> None:
        for key in keys:
            if isinstance(key, int) and abs(key) >= 1 << 64:
                raise _ProblemError("it has a number of more than 64 bits for a key")
            self._odd_keys += isinstance(key, _Made)
            if self._odd_keys > _MOST_ODD_KEYS or _size(key) > _LARGEST_KEY and isinstance(key, _Made):
                raise _ProblemError("it has keys that are neither names nor numbers")

    def _give(self, values: list[Any]) -> None:
        self._given += sum(map(_size, values))
        if self._given > _MOST_GIVEN:
            raise _ProblemError("it copies more objects than any Vision Transformer has")

    def _check_state(self, by: str | None, state: list[Any]) -> None:
        self._give(state)
        if by is not None and _is_safe(by) and by not in ("collections.OrderedDict", "argparse.Namespace"):
            raise _ProblemError(f"it sets the parts of a {by}, which no checkpoint does")

    def _check_call(self, by: str, given: Any) -> None:
        """Check a call, given its tuple of arguments."""
        if not given.is_tuple:
            raise _ProblemError("it calls something with other than a tuple of arguments")
        arguments = given.parts
        self._give(arguments)
        if _OUT_OF_NOTHING.fullmatch(by):
            raise _ProblemError(f"it makes a {by} that has no bytes in the file")
        if by == "builtins.bytearray" and any(isinstance(value, int) for value in arguments):
            raise _ProblemError("it makes a bytearray of any size")
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
        """A storage, by what torch writes instead of it: what it is, its class, key, place and number of elements."""
        what, made_by, key, _, numel, *view = identity.parts
        element = _STORAGES[made_by.by.rpartition(".")[2].removesuffix("Storage")]
        whole = view in ([], [None])
        if what != "storage" or not isinstance(key, str) or type(numel) is not int or numel < 0 or not whole:
            raise _ProblemError("it refers to bytes in a way that torch does not")
        if self.storages.setdefault(key, numel * element) != numel * element:
            raise _ProblemError(f"its storage `{key}` has two sizes")
        return _Made(kind="BINPERSID", parts=[identity], nbytes=numel * element)


def _size(value: Any) -> int:
    """How many objects a value is made of; a text counts by its length."""
    if isinstance(value, _Made):
        return value.size
    return 1 + len(value) // 8 if isinstance(value, (str, bytes)) else 1


def _check_extent(by: str, storage: _Made, offset: Any, size: _Made, stride: _Made, *others: Any) -> None:
    """Check that a tensor lies in its storage: torch would make the storage larger, of what the memory holds."""
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
        raise _ProblemError("a tensor in it has elements beyond the bytes that the file has for it")


def _numbers(value: _Made) -> list[int]:
    """The numbers in a tuple, or a ``torch.Size`` of one."""
    if value.by == "torch.Size":
        value = value.parts[0].parts[0]
    if not value.is_tuple or not all(type(number) is int for number in value.parts):
        raise _ProblemError("it has a tensor of an impossible shape")
    return value.parts


def _weights(content: Any) -> str:
    """The expression that takes out of ``c``, the content, what torch opens by itself, and the weights among it."""
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
    # Whatever else may say something of the model stays beside the weights.
    told = [key for key, value, tensors in kept if not tensors and isinstance(value, (str, _Made))]
    if len(models) == 1 and not weights:
        return _written("c[{}].state_dict()", models)
    if models or not weights:
        return "c"
    if len(weights) == 1 and not told:
        return _written("c[{}]", weights)
    return _written("{{k: v for k, v in c.items() if k not in ({},)}}", dropped)


def _written(expression: str, keys: list[Any]) -> str:
    """The expression with the keys in it; ``"c"`` where they are none, too many, or not plain words."""
    plain = all(isinstance(key, str) and key.isidentifier() and len(key) < 60 for key in keys)
    return expression.format(", ".join(map(repr, keys))) if plain and 0 < len(keys) < 9 else "c"


def _is_module(value: Any) -> bool:
    """Whether it would be a ``torch.nn.Module``: an object that is given its parts by these names."""
    state = value.parts[-1] if isinstance(value, _Made) and value.parts else None
    return isinstance(state, _Made) and state.has("_modules")


def _inside(value: Any, seen: set[int]) -> Iterator[_Made]:
    """Everything that would be made for a value, itself included, but for what was met before."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Made) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += [*value.parts, *(part for entry in value.entries for part in entry)]
