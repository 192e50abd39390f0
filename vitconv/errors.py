"""vitconv's errors: one sentence says what is wrong, and one says what to do."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

#: The longest sentence in an error. It has room for several paths: Linux allows 4096 bytes for each.
MOST_CHARACTERS = 20_000
_LONG_NAME = re.compile(r"`([^`]{200})[^`]+`")


class VitconvError(Exception):
    """The base of every error vitconv raises on purpose.

    Attributes:
        problem: one sentence on what is wrong, naming the key, file or module.
        remedy: one sentence on what to do.

    Names from a file can have any length: text in backticks is cut at 200 characters, and a sentence at
    :data:`MOST_CHARACTERS`.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        problem, remedy = (
            text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
            for text in (_LONG_NAME.sub(r"`\1…`", text) for text in (problem, remedy))
        )
        super().__init__(f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy


class ArchitectureError(VitconvError):
    """The architecture is unknown, or no class in Transformers computes the same."""


class CheckpointError(VitconvError):
    """The source is not a checkpoint that vitconv can open."""


class WeightsError(VitconvError):
    """The tensors contradict the architecture: missing, unknown or of another shape."""


class InputError(VitconvError):
    """A label file, an image or an option does not fit the model."""


class DestinationError(VitconvError):
    """The destination cannot be written, or holds something that would be lost."""


class ParityError(VitconvError):
    """A converted model does not match its source.

    Attributes:
        stage: where they differ: ``"config"``, ``"labels"``, ``"bytes"``, ``"loading"``, ``"pixels"``, or the stage of
            the computation, ``"embeddings"`` to ``"logits"``.
    """

    def __init__(self, problem: str, remedy: str, stage: str) -> None:
        super().__init__(problem, remedy)
        self.stage = stage


def in_traceback(text: str) -> VitconvError | None:
    """vitconv's error at the end of another process's traceback, found in its output; ``None`` if there is none."""
    found = re.findall(r"\bvitconv\.errors\.\w+: (.+)\n(.+)", text)
    return VitconvError(*found[-1]) if found else None


def how_to_install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml: from the clone, since no index of packages has vitconv.

    >>> how_to_install("evaluate")
    "pip install -e '.[evaluate]' in vitconv's clone"
    """
    return f"pip install -e '.[{extra}]' in vitconv's clone"


def first_few(names: Iterable[str], limit: int = 4) -> str:
    """Join the first ``limit`` names, none of them longer than a line, and count the rest.

    >>> first_few(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = [name if len(name) <= 100 else f"{name[:100]}…" for name in names]
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def count_classes(number: int) -> str:
    """A number of classes in words.

    >>> count_classes(1), count_classes(21841)
    ('1 class', '21,841 classes')
    """
    return f"{number:,} class{'' if number == 1 else 'es'}"


def shown(value: object) -> str:
    """Any value as Python writes it, shortened where it is longer than a line.

    >>> shown([1, "a"])
    "[1, 'a']"
    """
    try:
        text = (_BRIEF.repr if isinstance(value, (list, dict)) else repr)(value)  # lists from YAML may be huge
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ):  # such as an integer with more digits than Python writes, or a class with a broken `__repr__`
        return f"a value of the type {type(value).__name__} that cannot be written"
    return text if len(text) <= 100 else f"{text[:100]}…"


def check_flag(name: str, value: object) -> None:
    """Raise :class:`InputError` unless a value is true or false: a text such as ``"no"`` would count as true."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {shown(value)}.", "Pass True or False.")


def brief(text: str) -> str:
    """A text as Python writes it, with the middle left out where it is long: for a repr that fits a line.

    >>> brief("roofs")
    "'roofs'"
    """
    return _SHORT.repr(text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 3, 200, 200, 200
