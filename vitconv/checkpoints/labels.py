"""Read the class names that go into ``config.json``."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

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
        InputError: the file does not exist, has neither format, or contradicts itself; or timm and torchvision do not
            make the same classes, in the same order, of a folder.
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
    where = f"The label file '{path}'"
    labels = _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _from_text(text, where)
    return check_labels(labels, where)


def _from_text(text: str, where: str) -> list[str]:
    names = [line.strip() for line in text.strip().splitlines()]
    # But "0,5 mm" has a decimal comma.
    numbered = [re.match(rf"{number}\s*[,;\t](?!\d)", name) for number, name in enumerate(names)]
    if numbered and all(numbered):
        raise InputError(f"{where} begins each line with the class's number: {shown(names[0])}.", _FORMATS)
    return names


def _from_subfolders(folder: Path) -> list[str]:
    """The names of the subfolders, in the order in which timm and torchvision number the classes.

    To timm, every folder below that holds an image itself is a class of that folder's own name, and numbers in names
    are sorted by their value (``timm.data.readers.reader_image_folder.find_images_and_targets``). To torchvision, the
    classes are the subfolders, in plain order, and each needs an image (``torchvision.datasets.ImageFolder``).
    """
    from timm.data import get_img_extensions  # here: timm takes seconds to import
    from timm.utils import natural_key

    subfolders, with_images = _subfolders_and_image_folders(folder, tuple(get_img_extensions()))
    write = "write the names into a file, one a line, in the order of the model's classes."
    if not subfolders:
        raise InputError(f"The folder '{folder}' has no subfolders, which would name the classes.", _FORMATS)
    if "" in with_images:
        raise InputError(
            f"The folder '{folder}' has images beside its subfolders, which timm takes for one more class.",
            f"Move them away, or {write}",
        )
    empty = next((name for name in subfolders if not with_images.get(name)), None)
    if empty is not None:
        raise InputError(
            f"The subfolder {shown(empty)} of '{folder}' has no image that timm reads "
            f"({', '.join(get_img_extensions())}): timm and torchvision number no such class.",
            f"Remove the subfolder if it is none of the classes, or {write}",
        )
    classes = set().union(*with_images.values())
    if classes != set(subfolders):
        other = min(classes ^ set(subfolders))
        reader = "timm" if other in classes else "torchvision"
        raise InputError(
            f"The subfolders of '{folder}' have subfolders with images, so its classes are not clear: {shown(other)} "
            f"is a class for {reader} only.",
            f"Pass the folder whose subfolders hold the images themselves, such as its 'train', or {write}",
        )
    try:
        natural = sorted(reversed(subfolders), key=natural_key)  # reversed: names that are equal for timm show, too
    except ValueError as error:  # a superscript two is a digit, and no number
        raise InputError(f"timm cannot number the subfolders of '{folder}': {error}.", f"W{write[1:]}") from error
    if subfolders != natural:
        one, other = next(pair for pair in zip(natural, subfolders, strict=True) if pair[0] != pair[1])
        raise InputError(
            f"The order of the subfolders of '{folder}' is not clear: where timm has {shown(one)}, torchvision has "
            f"{shown(other)}.",
            f"W{write[1:]}",
        )
    return subfolders


def _subfolders_and_image_folders(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[str], dict[str, set[str]]]:
    """The names of the subfolders, sorted; and for each, the names of the folders in it (or itself) with images.

    The entry ``""`` is there if the folder itself has images.
    """

    def refuse(error: OSError) -> NoReturn:
        raise InputError(
            f"The folder '{error.filename}' cannot be read: {error.strerror}.", "Check its permissions."
        ) from error

    subfolders: list[str] = []
    with_images: dict[str, set[str]] = {}
    seen: set[tuple[object, ...]] = set()
    for root, inside, files in os.walk(folder, followlinks=True, onerror=refuse):
        parts = Path(root).relative_to(folder).parts
        if not parts:
            subfolders = sorted(inside)
        if any(os.path.splitext(file)[1].lower() in suffixes for file in files):
            with_images.setdefault(parts[0] if parts else "", set()).add(parts[-1] if parts else "")
        # A link may lead back up: each folder is walked once under each of its names.
        try:
            ways = {name: (*parts[:1], name, *_identity(os.path.join(root, name))) for name in inside}
        except OSError as error:
            refuse(error)
        inside[:] = [name for name in inside if ways[name] not in seen]
        seen.update(ways.values())
    return subfolders, with_images


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def check_labels(labels: Iterable[Any], where: str = "The list of labels") -> tuple[str, ...]:
    """The labels as a tuple, after checking that they are printable and different.

    Args:
        labels: in order, or with their indices as :func:`in_order` takes them.
        where: what they are, for people.

    Raises:
        InputError: one is empty or not text, or occurs twice; or they have no order.
    """
    if not isinstance(labels, Iterable):
        raise InputError(f"{where} is {shown(labels)}.", "Pass the names of the classes, or a file of them.")
    if isinstance(labels, (set, frozenset)):
        raise InputError(f"{where} is a set, which has no order.", "Pass the names in the order of the classes.")
    names = tuple(in_order(labels, where) if isinstance(labels, Mapping) else labels)
    if not names:
        raise InputError(f"{where} is empty.", _FORMATS)
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{where} gives class number {number} the name {shown(name)}, which is empty or not text.", _FORMATS
            )
        if not name.isprintable():
            character = next(one for one in name if not one.isprintable())
            raise InputError(
                f"{where} has a name with characters that are not seen, or not text: {shown(name)}.",
                f"Leave out {ascii(character)} of class number {number}, or write a space or another name instead, "
                "and call folders and labels of images so, too.",
            )
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
            return _from_text(text, where)
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
