"""Look into a pickle without opening it: which Python objects it names, and where in it the weights are.

A pickle is a program: opening it runs it. ``pickletools`` lists its instructions without following them. Here they
are followed for their shape only: what would be a dictionary becomes its keys and values, everything else the name of
what would be called. Nothing is imported and nothing is called. Only the wording of a refusal depends on this page.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
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
#: Bytes: the pickle of a checkpoint has names and sizes only. That of a ViT of a billion parameters has less.
_LONGEST = 1_000_000
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
    """

    unsafe: tuple[str, ...] = ()
    protocol: int = 0
    weights: str = "c"


@dataclass(eq=False)
class _Made:
    """An object that would be made: by calling what, with which entries and what other parts."""

    by: str | None = None
    entries: list[tuple[Any, Any]] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)

    def has(self, wanted: str) -> bool:
        """Whether one of its entries has this key."""
        return any(isinstance(key, str) and key == wanted for key, _ in self.entries)


def scan(path: Path) -> Pickled | None:
    """Look into a file of torch's, or a bare pickle; ``None`` if it is too large or broken."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                with zipfile.ZipFile(path) as archive:
                    entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
                    if entry.file_size > _LONGEST:
                        return None
                    entry.CRC = None  # type: ignore[assignment]  # torch can be told not to compute it
                    content = archive.read(entry)
            else:
                file.seek(0)
                content = file.read(_LONGEST)
        stream = io.BytesIO(content)
        named: list[str] = []
        made, protocol = _follow(stream, named)
        for _ in range(3 if made == _MAGIC else 0):
            made, protocol = _follow(stream, named)
        return Pickled(tuple(dict.fromkeys(name for name in named if not _is_safe(name))), protocol, _weights(made))
    except Exception:  # a hostile pickle can break off anywhere, or have any order of instructions
        return None


def _is_safe(name: str) -> bool:
    return _SAFE.fullmatch(name) is not None


def _follow(stream: BinaryIO, named: list[str]) -> tuple[Any, int]:
    """What one pickle would make, and its protocol; the names of all classes and functions are added to ``named``."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    protocol = 0
    for opcode, argument, _ in pickletools.genops(stream):
        before = opcode.stack_before
        if opcode.name == "PROTO":
            protocol = argument
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
            stack += [_result(opcode.name, argument, taken, marked, named)] * len(opcode.stack_after)
    return stack[-1], protocol


def _result(name: str, argument: Any, taken: list[Any], marked: list[Any], named: list[str]) -> Any:
    """What an instruction leaves: given its argument, what it takes from the stack, and what up to a mark."""
    if name in ("SETITEM", "SETITEMS", "DICT"):
        target, pairs = (taken[0] if taken else _Made()), [*taken[1:], *marked]
        target.entries += zip(pairs[::2], pairs[1::2], strict=True)
        return target
    if name in ("APPEND", "APPENDS", "ADDITEMS", "BUILD"):
        taken[0].parts += [*taken[1:], *marked]
        return taken[0]
    if name in ("GLOBAL", "INST", "STACK_GLOBAL"):
        words = taken if name == "STACK_GLOBAL" else argument.split(" ", 1)
        named.append(".".join(words))
        return _Made(named[-1], parts=marked)
    if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
        called, *arguments = [*taken, *marked]
        return _Made(called.by, parts=arguments)
    if name in ("NONE", "NEWTRUE", "NEWFALSE"):
        return None
    if taken or marked or argument is None:
        return taken[0] if name == "DUP" else _Made(parts=[*taken, *marked])
    return argument


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
