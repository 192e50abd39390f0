"""Put any text into Markdown, so that a class, a path or an error is shown exactly as it is.

vitconv writes Markdown that people open: model cards, reports, tables in notebooks. A name that is not escaped could
become a heading, a row of a table, a remote picture or a script there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A backslash escapes any punctuation: https://spec.commonmark.org/0.31.2/#backslash-escapes
# Punctuation without a meaning in its place, as in max_logit_difference or 0.5, is not escaped, so that the source of
# the file stays readable.
# A formula begins with a dollar or a backslash. Pages with MathJax, such as Jupyter's, look for it in the text that
# they show, where an escape is gone; but not in code. The spaces, which no page shows, keep GitHub from seeing one in
# `$`.
_SPECIAL = re.compile(
    r"""
      (?P<formula>[\\$]+)
    | [`*<>\[\]|&~@^=#]            # also what GitHub and Jupyter add: tables, ~~strike~~, @names
    | (?<![^\W_])_ | _(?![^\W_])    # inside a word, it does not emphasise
    | :(?=//) | (?<=www)\.          # addresses become links
    | ^[+:-]                        # lists
    """,
    re.VERBOSE | re.IGNORECASE,
)
# A cell of numbers: empty, one number (perhaps in bold) or a range, such as "1.2e-16", "100 %" or "0.9 to 1".
_NUMBER = r"-?(?:[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?|nan|inf)(?: ?%)?"
_NUMBERS = re.compile(rf"(?:{_NUMBER}(?: to {_NUMBER})?|\*\*{_NUMBER}\*\*)?")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")
# An option of a command, in escaped text. Beside a backslash or a backtick, it is part of something else.
_OPTION = re.compile(r"(?<![\w`\\-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w`\\-])")


def escape(text: object) -> str:
    """The text, on one line, for any place in Markdown that takes text: a paragraph, a list or a table.

    >>> print(escape("<b>*oak*</b> | max_logit_difference 0.5"))
    \\<b\\>\\*oak\\*\\</b\\> \\| max_logit_difference 0.5
    >>> print(escape("$oak$"))
    `` $ ``oak`` $ ``
    """
    return _NUMBERED.sub(r"\1\\\2", _SPECIAL.sub(_escaped, _one_line(str(text))))


def _escaped(found: re.Match[str]) -> str:
    return f"`` {found[0]} ``" if found["formula"] else f"\\{found[0]}"


def prose(text: object) -> str:
    """Text of vitconv's own, with its options as code, which the pages of notebooks do not break after a hyphen.

    >>> print(prose("Pass --data-config FILE, or <none>."))
    Pass `--data-config` FILE, or \\<none\\>.
    """
    return _OPTION.sub(r"`\g<0>`", escape(text))


def code(text: object) -> str:
    """The text, on one line, as code. Not for tables, where a ``|`` would end the cell.

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
    """A table whose cells are Markdown already: escape any text before. Columns of numbers are aligned to the right.

    >>> print(table(["name", "elements"], [["`head.bias`", "7"]]))
    | name | elements |
    |---|--:|
    | `head.bias` | 7 |
    """
    rows = [*rows]
    columns = zip(*rows, strict=True) if rows else [()] * len(headings)
    marks = ["--:|" if any(column) and all(map(_NUMBERS.fullmatch, column)) else "---|" for column in columns]
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, *rows)]
    return "\n".join([lines[0], "|" + "".join(marks), *lines[1:]])


def visible(text: object) -> str:
    """The text on one line, with each run of white space as one space and each unprintable character as U+FFFD.

    Such a character could, for example, change the direction of the line. The result is not escaped for HTML.
    """
    return _one_line(str(text))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)
