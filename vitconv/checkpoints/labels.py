"""Read the class names that go into ``config.json``."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitconv.errors import InputError
from vitconv.files import MOST_TEXT, check_file

_log = logging.getLogger(__name__)
_FORMATS = 'Write one class per line, or JSON: ["a", "b"], {"0": "a", "1": "b"} or {"a": 0, "b": 1}.'


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Read class names in the order of their indices, from text (one per line) or JSON (a list or a mapping).

    Raises:
        InputError: the file does not exist, or has neither format.
    """
    path = Path(path)
    _log.info("reading '%s'", path)
    check_file(path, "label file", most=MOST_TEXT)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"There is no label file '{path}'.", "Check the path of the label file.") from error
    except (OSError, ValueError) as error:  # bytes that are not UTF-8, or a path with a NUL
        raise InputError(f"The label file '{path}' is not readable text.", _FORMATS) from error
    if text.lstrip()[:1] in ("[", "{"):
        labels = _from_json(text, path)
    else:
        labels = [line.strip() for line in text.strip().splitlines()]
    return check_labels(labels, f"The label file '{path}'")


def check_labels(labels: Iterable[Any], where: str = "The list of labels") -> tuple[str, ...]:
    """The labels as a tuple, after checking that they are printable and different.

    Raises:
        InputError: one is empty or not text, or occurs twice.
    """
    names = tuple(labels)
    if not names or not all(isinstance(name, str) and name and name.isprintable() for name in names):
        raise InputError(f"{where} is empty, or has an empty or unprintable name.", _FORMATS)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"{where} names '{repeated[0]}' more than once.",
            "Give every class a different name: Transformers finds a class by its name.",
        )
    return names


def _from_json(text: str, path: Path) -> list[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The label file '{path}' is not valid JSON.", _FORMATS) from error
    if isinstance(content, list):
        return content
    if isinstance(content.get("id2label"), dict):  # a Transformers config.json
        content = content["id2label"]
    return in_order(content, f"The label file '{path}'")


def in_order(names: Mapping[Any, Any], where: str) -> list[Any]:
    """Class names in the order of their indices, of ``{"0": "a", "1": "b"}`` or ``{"a": 0, "b": 1}``.

    Raises:
        InputError: an index is missing.
    """
    by_index = {str(key): value for key, value in names.items()}
    if not all(key.isdecimal() for key in by_index):
        by_index = {str(value): key for key, value in names.items()}
    try:
        return [by_index[str(i)] for i in range(len(names))]
    except KeyError as error:
        raise InputError(f"{where} has no class number {error.args[0]}.", _FORMATS) from error
