"""Predictions aligned with expected and true labels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitconv.errors import InputError, count_classes, first_few
from vitconv.evaluation import LabelsFrom
from vitconv.inference.answers import softmax
from vitconv.inference.images import ImageList, read_header, read_images, read_table
from vitconv.inference.predictions import Predictions, read_predictions

T = TypeVar("T")


def require(values: T | None) -> T:
    """Return the values; for callers that have checked that they are not ``None``.

    Raises:
        ValueError: they are ``None``.
    """
    if values is None:
        raise ValueError("There are no such values.")
    return values


@dataclass(frozen=True, repr=False)
class Outcomes:
    """Predictions aligned with expected and true labels, in the order of the list; classes are indices, -1 for none.

    Attributes:
        classes: the names of the model's classes.
        folder: what relative paths start from.
        paths: as in the list.
        errors: path and reason of every image that could not be read.
        predicted: the model's answers; -1 where the image could not be read.
        probabilities: float64, (images, classes); NaN where the image could not be read.
        logits: float32, likewise.
        labels: the true classes; ``None`` if none is known.
        expected: the answers to compare with, timm's; ``None`` without any.
        expected_logits: float64, (images, classes), NaN where there are none; ``None`` without any.
        notes: how timm is known to prepare an image differently, in a sentence; ``None`` for other images.
        splits: what each image was used for, such as ``fit``; ``None`` where the list does not say.
        warnings: why the names of subfolders are no labels, where most would expect them to be.
    """

    classes: tuple[str, ...]
    folder: Path
    paths: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    expected: NDArray[np.int64] | None
    expected_logits: NDArray[np.float64] | None
    notes: tuple[str | None, ...]
    splits: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        classes = count_classes(len(self.classes))
        return f"Outcomes({len(self.paths):,} images, {classes}, {len(self.errors):,} unreadable)"

    def name(self, number: int) -> str | None:
        """The name of a class by its index; ``None`` for -1."""
        return self.classes[number] if number >= 0 else None

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which images have an expected answer, but other pixels than timm's for a known reason."""
        return self._expected & np.array([note is not None for note in self.notes], bool)

    @cached_property
    def compared(self) -> NDArray[np.bool_]:
        """Which images are compared with an expected answer: all that have one, but those that are :attr:`known`."""
        return self._expected & ~self.known

    @property
    def _expected(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.paths), bool) if self.expected is None else self.expected >= 0

    @cached_property
    def differences(self) -> NDArray[np.float64] | None:
        """The absolute differences of the logits, (images, classes); NaN where there is no logit."""
        return None if self.expected_logits is None else np.abs(self.logits - self.expected_logits)

    def largest_difference(self, which: NDArray[np.bool_]) -> tuple[int, int] | None:
        """The image and the class of the largest difference among these images; ``None`` where there is none."""
        if self.differences is None:
            return None
        largest = np.where(which, np.fmax.reduce(self.differences, axis=1), np.nan)  # NaN only if all are NaN
        if not np.isfinite(largest).any():
            return None
        image = int(np.nanargmax(largest))
        return image, int(np.nanargmax(self.differences[image]))

    @property
    def disagreeing(self) -> NDArray[np.int64]:
        """The indices of the compared images whose answer is not the expected one."""
        if self.expected is None:
            return np.array([], np.int64)
        return np.flatnonzero(self.compared & (self.predicted != self.expected))


def read_outcomes(
    predictions: str | Path, images: str | Path, expected: str | Path | None, labels_from: LabelsFrom | None = None
) -> Outcomes:
    """Read the three files and align them: see :func:`vitconv.evaluation.evaluate`.

    Raises:
        InputError: a file is invalid, the predictions belong to another list, or a class is unknown.
    """
    made, listed = read_predictions(predictions), read_images(images)
    _check_same_list(made, listed, predictions, images)
    labels = _labels(listed, images, made.classes, labels_from)
    answers = _read_expected(expected, made.classes) if expected else None
    if expected and prepared_by(expected) == made.run.settings.get("processor"):  # then no image has other pixels
        nothing = pa.nulls(len(made.rows), pa.string())
        made = replace(made, rows=made.rows.set_column(made.rows.column_names.index("note"), "note", nothing))
    outcomes = _align(made, replace(listed, labels=labels), answers, str(images))
    if labels_from is None and labels is None:
        outcomes = replace(outcomes, warnings=_why_no_labels(listed, made.classes))
    return outcomes


def read_labels(images: str | Path, classes: tuple[str, ...]) -> tuple[ImageList, NDArray[np.int64] | None]:
    """A list of images with its labels, for what needs them, before any model has run.

    Args:
        images: see :func:`vitconv.inference.images.read_images`; the names of subfolders are labels.
        classes: the names of the model's classes.

    Returns:
        The list; and the indices of the true classes, -1 where none is known, or ``None`` if no label is.

    Raises:
        InputError: the list cannot be read, or a label is not a class of the model.
    """
    listed = read_images(images)
    if listed.labels is None:
        return listed, None
    labels = _numbers(listed.labels, classes, _labels_in(images))
    return listed, labels if (labels >= 0).any() else None


def check_answers(
    images: str | Path, expected: str | Path | None, classes: tuple[str, ...], labels_from: LabelsFrom | None
) -> None:
    """Raise what :func:`read_outcomes` would of labels and expected answers, before any model has run.

    Args:
        images, expected, labels_from: see :func:`vitconv.evaluation.evaluate`.
        classes: the names of the model's classes.

    Raises:
        InputError: the list or the expected answers cannot be read, or name a class that the model does not have.
    """
    labels = _labels(read_images(images), images, classes, labels_from)
    if labels is not None:
        _numbers(labels, classes, _labels_in(images))
    if expected:
        _read_expected(expected, classes)


def prepared_by(expected: str | Path) -> str:
    """Whose pixels the model saw that gave the expected answers: ``"timm"``, also if a file does not say."""
    return read_predictions(expected).run.settings.get("processor", "timm") if Path(expected).is_dir() else "timm"


def _labels(
    listed: ImageList, images: str | Path, classes: tuple[str, ...], labels_from: LabelsFrom | None
) -> pa.ChunkedArray | None:
    """The labels, if they are wanted and can be: without a wish, subfolders count if all are named as classes."""
    if labels_from == "nothing":
        return None
    if labels_from == "folders":
        if not listed.by_folder:
            raise InputError(
                f"'{images}' has no subfolders with images, whose names could be labels.",
                "Pass a folder with a subfolder for each class.",
            )
        return listed.labels
    if listed.by_folder and not pc.all(pc.is_in(pc.drop_null(listed.labels), value_set=pa.array(classes))).as_py():
        return None
    return listed.labels


def _why_no_labels(listed: ImageList, classes: tuple[str, ...]) -> tuple[str, ...]:
    """A sentence, if some subfolders are named as classes and others are not, or if the classes have no names at all.

    One of the names may be mistaken, or the labels were forgotten at the conversion.
    """
    names = [] if listed.labels is None else pc.unique(pc.drop_null(listed.labels)).to_pylist()
    if names and listed.by_folder and all(re.fullmatch(r"LABEL_\d+", name) for name in classes):
        return (
            "The names of the subfolders are not taken as labels, because the classes of the model have no names: "
            f"they are {first_few(classes)}. Convert it again with --labels FILE, or pass --labels-from nothing.",
        )
    others = [name for name in names if name not in classes]
    alike = _alike(others, classes)
    if not others or (len(others) == len(names) and not alike):
        return ()
    return (
        "The names of the subfolders are not taken as labels: not all of them are classes of the model "
        f"({first_few(others)}{alike}). Rename or move them, or pass --labels-from nothing.",
    )


def _alike(names: Iterable[str], classes: tuple[str, ...]) -> str:
    """For people: which name is another than a class, and looks the same; empty if none does.

    Unicode has two ways to write é, and the names of files on a Mac often have the other one.
    """
    known = {unicodedata.normalize("NFC", name): name for name in classes}
    for name in names:
        found = known.get(unicodedata.normalize("NFC", name), name)
        if found != name:
            return f": {ascii(name)}, which looks like the class {ascii(found)}"
    return ""


def _check_same_list(made: Predictions, listed: ImageList, predictions: str | Path, images: str | Path) -> None:
    if not made.rows["path"].combine_chunks().equals(listed.paths.combine_chunks()):
        raise InputError(
            f"The predictions in '{predictions}' ({len(made.rows)} rows) do not belong to the list '{images}' "
            f"({len(listed)} rows).",
            "Run `vitconv predict` again. An interrupted run continues where it stopped.",
        )


@dataclass(frozen=True)
class _Expected:
    """Answers to compare with: their paths, the indices of their classes (-1: none), and logits where known."""

    paths: pa.ChunkedArray
    classes: NDArray[np.int64]
    logits: NDArray[np.float64] | None


def _read_expected(path: str | Path, classes: tuple[str, ...]) -> _Expected:
    if Path(path).is_dir():
        other = read_predictions(path)
        if set(other.classes) != set(classes):
            raise InputError(f"The expected answers in '{path}' are of other classes.", _same_classes(classes))
        order = [other.classes.index(name) for name in classes]
        numbers = _numbers(other.rows["class"], classes, f"The expected answers in '{path}'")
        return _Expected(other.rows["path"], numbers, other.logits()[:, order].astype(np.float64))
    what = "file of expected answers"
    columns = read_header(path, what, "class")
    if "class" not in columns:
        raise InputError(
            f"The expected answers '{path}' have no column 'class'.",
            f"Write the class of each path in a column 'class'. {_same_classes(classes)}",
        )
    others = set(columns) - {"path", "class"}
    if others and others != set(classes):
        raise InputError(
            f"The expected answers '{path}' have logits of other classes than the model: "
            f"{first_few(sorted(others ^ set(classes)))}.",
            _same_classes(classes),
        )
    table = read_table(path, what, columns)
    if not len(table):
        raise InputError(
            f"The expected answers '{path}' have no row.", "Write a row for each image, or leave the file out."
        )
    if pc.count_distinct(table["path"]).as_py() != len(table):
        raise InputError(f"The expected answers '{path}' name an image more than once.", "Remove the repeated rows.")
    numbers = _numbers(table["class"], classes, f"The expected answers '{path}'")
    if not others:
        return _Expected(table["path"], numbers, None)
    try:
        if any(
            pa.types.is_boolean(table[name].type) for name in classes
        ):  # pyarrow would convert true and false to 1 and 0
            raise ValueError("true or false.")
        logits = np.stack([table[name].cast(pa.float64()).to_numpy() for name in classes], axis=1)
        if not (np.abs(logits) <= np.finfo(np.float32).max).all():  # a model's logits are finite; NaN fails this, too
            raise ValueError("not all of them are finite in float32.")
    except (ValueError, pa.ArrowException) as error:
        raise InputError(
            f"The expected answers '{path}' have logits that are not numbers: {error}",
            "Write a number in every column of a class, or leave these columns out.",
        ) from error
    known = np.flatnonzero(numbers >= 0)
    wrong = known[logits[known, numbers[known]] < logits[known].max(axis=1)]
    if len(wrong):
        image, best = table["path"][int(wrong[0])].as_py(), classes[logits[wrong[0]].argmax()]
        raise InputError(
            f"The expected answers '{path}' contradict themselves: the class of '{image}' is "
            f"'{classes[numbers[wrong[0]]]}', but its largest logit is that of '{best}'.",
            "Correct the row, or leave the columns with logits out.",
        )
    return _Expected(table["path"], numbers, logits)


def _labels_in(images: str | Path) -> str:
    return f"The labels in '{images}'"


def _same_classes(classes: tuple[str, ...]) -> str:
    return f"Use the names in the model's config.json: {first_few(classes)}."


def _numbers(names: pa.ChunkedArray, classes: tuple[str, ...], where: str) -> NDArray[np.int64]:
    """The indices of classes by their names; -1 for null and empty names."""
    numbers = pc.index_in(names, value_set=pa.array(classes))
    unknown = pc.and_(pc.is_null(numbers), pc.not_equal(pc.fill_null(names, ""), ""))
    if pc.any(unknown).as_py():
        name = names.filter(unknown)[0].as_py()
        raise InputError(
            f"{where} name a class that the model does not have: '{name}'{_alike([name], classes)}.",
            _same_classes(classes),
        )
    return pc.fill_null(numbers, -1).to_numpy().astype(np.int64)


def _align(made: Predictions, listed: ImageList, expected: _Expected | None, images: str) -> Outcomes:
    """Bring the expected answers into the order of the list."""
    logits = made.logits()
    readable = ~np.isnan(logits).any(axis=1)
    probabilities = np.full(logits.shape, np.nan)
    probabilities[readable] = softmax(logits[readable])
    labels = None
    if listed.labels is not None:
        labels = _numbers(listed.labels, made.classes, _labels_in(images))
    classes = values = None
    if expected is not None:
        places = pc.index_in(made.rows["path"], value_set=expected.paths.combine_chunks())
        known = pc.is_valid(places).to_numpy()
        places = pc.fill_null(places, 0).to_numpy()
        classes = np.where(known, expected.classes[places], -1)
        if (classes < 0).all() and known.any() and made.rows["error"].null_count == 0:
            raise InputError(
                f"No image in '{images}' could be read, so there is nothing to compare.",
                "Check the images: the rows of the predictions say what is wrong with each.",
            )
        if (classes < 0).all():
            raise InputError(
                f"No expected answer has the path of an image in '{images}'.",
                "Use the same paths in both files, and write a class for each.",
            )
        if expected.logits is not None:
            values = np.where(known[:, None], expected.logits[places], np.nan)
    unreadable = made.rows.filter(pc.is_valid(made.rows["error"]))
    return Outcomes(
        classes=made.classes,
        folder=listed.folder,
        paths=tuple(made.rows["path"].to_pylist()),
        errors=tuple(zip(unreadable["path"].to_pylist(), unreadable["error"].to_pylist(), strict=True)),
        predicted=_numbers(made.rows["class"], made.classes, "The predictions"),
        probabilities=probabilities,
        logits=logits,
        labels=labels if labels is not None and (labels >= 0).any() else None,
        expected=classes,
        expected_logits=values,
        notes=tuple(made.rows["note"].to_pylist()),
        splits=None if listed.splits is None else tuple(listed.splits.to_pylist()),
    )
