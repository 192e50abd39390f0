"""Read the class names that go into ``config.json``."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitconv.errors import InputError, shown
from vitconv.files import MOST_TEXT, RepeatedKeyError, check_file, parse_json, repeated_key

_log = logging.getLogger(__name__)
_FORMATS = 'Write one class per line, or JSON: ["a", "b"], {"0": "a", "1": "b"} or {"a": 0, "b": 1}.'
#: A text may begin with a class in brackets, such as "[unused]". In broken JSON, they quote something or do not close.
_CLASS_IN_BRACKETS = re.compile(r"""\[[^]"'\n]+\]|\{[^}"'\n]+\}""")


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Read class names in the order of their indices, from text (one per line) or JSON (a list or a mapping).

    A folder of images, such as that of the training images, names the classes by its subfolders.

    Raises:
        InputError: the file does not exist, has neither format, or contradicts itself; or a folder's subfolders have
            no order that all training scripts share.
    """
    path = Path(path)
    _log.info("reading '%s'", path)
    if os.path.isdir(path):  # of a path that cannot be, too
        return check_labels(_from_subfolders(path), f"The folder '{path}'")
    check_file(path, "label file", most=MOST_TEXT)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"There is no label file '{path}'.", "Check the path of the label file.") from error
    except (OSError, ValueError) as error:  # bytes that are not UTF-8, or a path with a NUL
        raise InputError(f"The label file '{path}' is not readable text.", _FORMATS) from error
    labels = _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _from_text(text)
    return check_labels(labels, f"The label file '{path}'")


def _from_text(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _from_subfolders(folder: Path) -> list[str]:
    """The names of the subfolders, in the order in which timm and torchvision number the classes.

    timm sorts numbers in names by their value, and ignores case (``timm.utils.misc.natural_key``).
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"The folder '{folder}' cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    natural = sorted(reversed(names), key=_natural_key)  # reversed: names that are the same for timm show, too
    if names != natural:
        one, other = next(pair for pair in zip(natural, names, strict=True) if pair[0] != pair[1])
        raise InputError(
            f"The order of the subfolders of '{folder}' is not clear: where timm has {shown(one)}, torchvision has "
            f"{shown(other)}.",
            "Write the names into a file, one a line, in the order of the model's classes.",
        )
    return names


def _natural_key(name: str) -> list[int | str]:
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name.lower()))]


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
    where = f"The label file '{path}'"
    try:
        content = parse_json(text)
    except RepeatedKeyError as error:
        raise repeated_key(where, error) from error
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() != ".json" and _CLASS_IN_BRACKETS.match(text.lstrip()):
            return _from_text(text)
        raise InputError(f"{where} is not valid JSON.", _FORMATS) from error
    if isinstance(content, list):
        return content
    if not isinstance(content.get("id2label"), dict):
        return in_order(content, where)
    names = check_labels(in_order(content["id2label"], where), where)  # a Transformers config.json
    _check_reverse(names, content.get("label2id"), where)
    return list(names)


def _check_reverse(names: Sequence[str], numbers: Any, where: str) -> None:
    """Raise :class:`InputError` if a ``label2id`` is not the reverse of ``id2label``."""
    if numbers is None:
        return
    remedy = "Correct the file, or remove its `label2id`."
    if not isinstance(numbers, dict):
        raise InputError(f"{where} contradicts itself: its `label2id` is {shown(numbers)}, no mapping.", remedy)
    by_number = {str(number): name for number, name in enumerate(names)}
    for name, number in numbers.items():
        if by_number.get(str(number)) != name:
            raise InputError(
                f"{where} contradicts itself: its `label2id` calls {shown(name)} {shown(number)}, and its `id2label` "
                "does not.",
                remedy,
            )
    missing = next((name for name in names if name not in numbers), None)
    if missing is not None:
        raise InputError(f"{where} contradicts itself: its `label2id` leaves out {shown(missing)}.", remedy)


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
