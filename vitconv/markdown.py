"""Text of other people in Markdown: a class, a path or an error is shown exactly as it is.

vitconv writes Markdown that people open: model cards, reports, tables in notebooks. There, a name that is not escaped
could become a heading, a row of a table, a remote picture or a script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A backslash takes the meaning from any punctuation: https://spec.commonmark.org/0.31.2/#backslash-escapes
# What has no meaning where it stands, as in max_logit_difference or 0.5, stays, for those who read the file itself.
_SPECIAL = re.compile(
    r"""
      [\\`*<>\[\]|&~$@^=#]          # also what GitHub and Jupyter add: tables, ~~strike~~, $formulas$, @names
    | (?<![^\W_])_ | _(?![^\W_])    # inside of a word, it emphasises nothing
    | :(?=//) | (?<=www)\.          # addresses become links by themselves
    | ^[+:-]                        # lists
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def escape(text: object) -> str:
    """The text, on one line, for any place in Markdown where text may stand: a paragraph, a list or a table.

    >>> print(escape("<b>*oak*</b> | max_logit_difference 0.5"))
    \\<b\\>\\*oak\\*\\</b\\> \\| max_logit_difference 0.5
    """
    return _NUMBERED.sub(r"\1\\\2", _SPECIAL.sub(r"\\\g<0>", _one_line(str(text))))


def code(text: object) -> str:
    """The text, on one line, as code: not in a table, which a ``|`` would end.

    >>> print(code("a `b`"))
    `` a `b` ``
    """
    line = _one_line(str(text))
    if not line:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line}{space}{fence}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already: escape other people's text before.

    >>> print(table(["name", "shape"], [["`head.bias`", "7"]]))
    | name | shape |
    |---|---|
    | `head.bias` | 7 |
    """
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def visible(text: object) -> str:
    """The text on one line, for HTML as well, where it is still to be escaped: white space as single spaces, and what
    is not printable, such as what turns the direction of a line, as U+FFFD.
    """
    return _one_line(str(text))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)
