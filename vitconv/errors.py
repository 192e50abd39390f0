"""What can go wrong, each as one sentence on what is wrong and one on what to do about it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

#: More than a sentence with a few paths has, of which Linux opens none above 4096 bytes.
MOST_CHARACTERS = 20_000
_LONG_NAME = re.compile(r"`([^`]{200})[^`]+`")


class VitconvError(Exception):
    """The base of every error vitconv raises on purpose.

    Attributes:
        problem: one sentence on what is wrong, naming the key, file or module.
        remedy: one sentence on what to do.

    A name in somebody's file may have any length: what stands in backticks is cut at a line's, and all of it at
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
    """The architecture is unknown, or no Transformers class computes what it computes."""


class CheckpointError(VitconvError):
    """The source is not a checkpoint that vitconv can open."""


class WeightsError(VitconvError):
    """The tensors contradict the architecture: missing, unknown or of another shape."""


class InputError(VitconvError):
    """A label file, an image or an option does not fit the model."""


class DestinationError(VitconvError):
    """The destination cannot be written, or holds something that would be lost."""


class ParityError(VitconvError):
    """A converted model is not what its source makes of it.

    Attributes:
        stage: where: ``"config"``, ``"labels"``, ``"bytes"``, ``"loading"``, ``"pixels"``, or the stage of the
            computation, ``"embeddings"`` to ``"logits"``.
    """

    def __init__(self, problem: str, remedy: str, stage: str) -> None:
        super().__init__(problem, remedy)
        self.stage = stage


def in_traceback(text: str) -> VitconvError | None:
    """The error of vitconv's at the end of another process's traceback, in whatever is written around it."""
    found = re.findall(r"\bvitconv\.errors\.\w+: (.+)\n(.+)", text)
    return VitconvError(*found[-1]) if found else None


def first_few(names: Iterable[str], limit: int = 4) -> str:
    """Join the first ``limit`` names, none of them longer than a line, and count the rest.

    >>> first_few(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = [name if len(name) <= 100 else f"{name[:100]}…" for name in names]
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def shown(value: object) -> str:
    """Any value as Python writes it, shortened where it is longer than a line.

    >>> shown([1, "a"])
    "[1, 'a']"
    """
    try:
        text = (_BRIEF.repr if isinstance(value, (list, dict)) else repr)(value)  # of YAML, these may be immense
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as of an integer of more digits than Python writes, or of somebody else's class
        return f"a value of the type {type(value).__name__} that cannot be written"
    return text if len(text) <= 100 else f"{text[:100]}…"


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 3, 200, 200, 200
