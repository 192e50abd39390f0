"""A model's folder gets a ``calibration.json``: from then on its answers say how far they may be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitconv import __version__
from vitconv.calibration.figures import Figures, Seen, measure
from vitconv.calibration.fitting import (
    auroc,
    fewest,
    fit_temperature,
    least_probability,
    odd_scores,
    order_statistic,
    percentiles,
)
from vitconv.calibration.images import FEWEST_OF_A_CLASS, FIT, JUDGE, PARTS, SET, deal, write_odd_images
from vitconv.checkpoints.checkpoint import CALIBRATION_FILE
from vitconv.errors import InputError, first_few, shown
from vitconv.evaluation.outcomes import read_labels
from vitconv.evaluation.words import image_count, percent
from vitconv.files import new_file, no_scratch, real_path, write_json
from vitconv.inference.answers import softmax
from vitconv.inference.batch_prediction import check_batch
from vitconv.inference.certainty import SCHEMA, Certainty, identity, seal
from vitconv.inference.images import FITTED, Batches, ImageList, digest_of_all, image_digests, read_images
from vitconv.inference.local import LocalEngine
from vitconv.inference.pixels import Preprocessor, open_preprocessor
from vitconv.inference.predictions import not_finite
from vitconv.inference.runtime import ModelInfo, opener, read_info, wanted_device
from vitconv.inference.watch import watch_model
from vitconv.models.processors import ProcessorName

#: The share of known images that may be said to be unlike those of the calibration.
FLAGGED = 0.05
#: A larger coverage would take more than a hundred thousand images.
MOST_COVERAGE = 0.9999
#: Fewer odd images neither choose a score nor judge it: half of them do each.
FEWEST_ODD = 20
#: The most odd images that are made of known ones for each of the two. More would only take time.
_MOST_MADE = 300
#: From here on the smallest log loss is that of equal probabilities: no larger temperature is tried.
_TELLS_NOTHING = math.exp(9.9)
_MORE = "Pass more images, as the model will meet them; none of them may have been used in training."


@dataclass(frozen=True)
class Calibration:
    """What was found out, and written.

    Attributes:
        folder: the model's.
        certainty: what is applied to its answers.
        figures: what it is worth, on the images that judge.
        fitted, set: the number of images that fitted, and that set the limits.
        made: whether the odd images were made of the known ones.
        notes: what to know, a sentence each.
    """

    folder: Path
    certainty: Certainty
    figures: Figures
    fitted: int
    set: int
    made: bool
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """What was found on the images that judge, in sentences for people."""
        return self.figures.sentences(self.certainty.coverage)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it, but for the matrices."""
        return {
            "model": str(self.folder),
            "temperature": self.certainty.temperature,
            "coverage": self.certainty.coverage,
            "least_probability": self.certainty.least,
            "score": self.certainty.oddness.score,
            "images": {"fitted": self.fitted, "set": self.set, "judged": self.figures.images},
            "odd_images_made": self.made,
            "figures": asdict(self.figures),
            "notes": list(self.notes),
        }


def calibrate(
    model: str | Path,
    images: str | Path,
    *,
    odd: str | Path | None = None,
    coverage: float = 0.9,
    processor: ProcessorName = "transformers",
    batch_size: int = 8,
    device: str = "auto",
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, rows: None,
) -> Calibration:
    """Find out how far a model's answers may be believed, and write it into the model's folder.

    A third of the images of each class fits the temperature and the scores of oddness, a third sets the limits of the
    prediction sets and of oddness, and a third judges what came of it. Which does what depends on their contents
    alone.

    Args:
        model: a folder with a classification head, as vitconv writes it, converted or optimised. Its
            ``calibration.json`` appears whole, or stays as it was; nothing else changes.
        images: labelled images as the model will meet them, on which it was not trained: a CSV file with the columns
            ``path`` and ``label``, or a folder with a subfolder for each class.
        odd: images of the kind that the model is not for; their labels do not matter. By default they are made of the
            others: blurred, under noise, and zoomed into.
        coverage: the share of images whose prediction set is to have the true class.
        processor, batch_size, device, on_progress: as for :func:`vitconv.inference.predict`.
        on_step: called with what is being done, in a few words.

    Raises:
        CheckpointError, ParityError: it is not a folder that vitconv writes, lacks weights, or changes meanwhile.
        InputError: there are too few images, of a class or at all; an image has no label, or two; it cannot be read;
            the model has one class; or an argument does not fit.
        DestinationError: the folder cannot be written, or the odd images in the system's temporary folder.
    """
    _check_coverage(coverage)
    folder = real_path(model)
    watch = watch_model(folder)  # before anything in it is read
    info = read_info(folder)
    if len(info.classes) < 2:
        raise InputError(
            f"The model in '{info.folder}' has one class, and so one answer.", "Calibrate a model of several classes."
        )
    check_batch(batch_size, info)
    known = _known(images, info, coverage)
    others = None if odd is None else _odd(odd, images, known.digests)
    with TemporaryDirectory(prefix="vitconv-") as scratch:
        run = _Run(info, open_preprocessor(info, processor), LocalEngine(wanted_device(info, device)), batch_size)
        on_step("Running the model over the images")
        seen = run.over(known.listed, on_progress).where(known.rows)
        on_step("Running the model over odd images")
        if others is None:
            made = [_made(known, part, Path(scratch, str(part)), info.input_shape) for part in (FIT, JUDGE)]
            choose, judge = (run.over(read_images(folder), on_progress) for folder in made)
        else:
            choose, judge = map(run.over(others.listed, on_progress).where, others.halves)
    on_step("Fitting, and judging what was fitted")
    fit, limits, last = (known.parts == part for part in (FIT, SET, JUDGE))
    certainty, scores = _certainty(seen, known.labels, fit, limits, choose, coverage)
    figures = measure(certainty, seen.where(last), known.labels[last], judge, info.classes, scores)
    notes = (*known.notes, *_of_temperature(certainty.temperature), *figures.warnings(coverage))
    result = Calibration(info.folder, certainty, figures, int(fit.sum()), int(limits.sum()), odd is None, notes)
    watch.check()
    _write(result, info, known, others, processor)
    return result


def _of_temperature(temperature: float) -> list[str]:
    """A note where the best that can be said of each answer is next to nothing."""
    if temperature < _TELLS_NOTHING:
        return []
    return [f"The logits tell next to nothing of these images: the temperature is {temperature:,.0f}."]


@dataclass(frozen=True)
class _Known:
    """The images with a label, each content once.

    Attributes:
        listed: all images of the list.
        rows: which of them these are, in the order of their digests.
        labels, digests, parts: of these, in this order.
        notes: what was left out.
    """

    listed: ImageList
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    digests: list[str]
    parts: NDArray[np.int64]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Odd:
    """Odd images that were given: the rows that choose a score and those that judge it, and their SHA-256."""

    listed: ImageList
    halves: tuple[NDArray[np.int64], NDArray[np.int64]]
    digests: list[str]


@dataclass(frozen=True)
class _Run:
    """A model that is ready to be run over images.

    Attributes:
        info: what its folder says of it.
        preprocessor: makes its pixels.
        engine: runs it.
        batch_size: the number of images in a batch.
    """

    info: ModelInfo
    preprocessor: Preprocessor
    engine: LocalEngine
    batch_size: int

    def over(self, listed: ImageList, on_progress: Callable[[int, int, int], None]) -> Seen:
        """The logits and the appearance of these images.

        Raises:
            InputError: an image cannot be read, or its logits are not finite.
        """
        batches = Batches(listed, self.batch_size, self.preprocessor, look=True)
        logits, appearance = [], []
        for output in self.engine.run(opener(self.info), batches, range(len(batches))):
            rows = batches.rows(output.batch)
            paths = listed.slice(rows)
            own = output.logits[: len(rows)]
            errors = [
                error or (None if np.isfinite(one).all() else not_finite(path))
                for error, one, path in zip(output.errors, own, paths, strict=True)
            ]
            if any(errors):
                raise InputError(
                    f"The model cannot be calibrated on all images: {next(filter(None, errors))}",
                    "Repair them, or take them off the list.",
                )
            logits.append(own)
            appearance.append(np.asarray(output.appearance)[: len(rows)])
            on_progress(rows.stop, 0, len(listed))
        return Seen(np.concatenate(logits), np.concatenate(appearance))


def _check_coverage(coverage: float) -> None:
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)) or not 0 < coverage <= MOST_COVERAGE:
        raise InputError(
            f"The coverage is {shown(coverage)}.",
            f"Choose a share above 0 and not above {MOST_COVERAGE}, such as 0.9.",
        )


def _known(images: str | Path, info: ModelInfo, coverage: float) -> _Known:
    """The images that calibrate, dealt to the three parts.

    Raises:
        InputError: they are too few, or their labels do not serve.
    """
    listed, labels = read_labels(images, info.classes)
    if labels is None:
        raise InputError(
            f"The images in '{images}' have no labels.",
            "Pass a CSV file with the columns 'path' and 'label', or a folder with a subfolder for each class.",
        )
    fitted = np.isin(listed.splits.to_pylist(), FITTED) if listed.splits is not None else np.zeros(len(listed), bool)
    rows = np.flatnonzero((labels >= 0) & ~fitted)
    paths = listed.paths.to_pylist()
    digests = image_digests(listed.folder, [paths[row] for row in rows], images)
    first: dict[str, int] = {}
    for row, digest in zip(rows, digests, strict=True):
        other = first.setdefault(digest, int(row))
        if labels[other] != labels[row]:
            raise InputError(
                f"'{paths[other]}' and '{paths[row]}' in '{images}' are the same image, labelled "
                f"'{info.classes[labels[other]]}' and '{info.classes[labels[row]]}'.",
                "Remove one of them, or correct its label.",
            )
    notes = []
    if fitted.any():
        notes.append(f"{image_count(int(fitted.sum()))} that the model was fitted on had no part in it.")
    if unlabelled := int(((labels < 0) & ~fitted).sum()):
        notes.append(f"{image_count(unlabelled)} without a label had no part in it.")
    if len(first) < len(rows):
        notes.append(f"Of {image_count(len(rows))}, {len(first):,} are different, and each of them counts once.")
    digests = sorted(first)  # whatever the list's order
    chosen = np.array([first[digest] for digest in digests])
    _check_enough(labels[chosen], images, info.classes, coverage)
    parts = deal(labels[chosen], digests)
    return _Known(listed, chosen, labels[chosen], digests, parts, tuple(notes))


def _check_enough(labels: NDArray[np.int64], images: str | Path, classes: tuple[str, ...], coverage: float) -> None:
    """Raise :class:`InputError` if the images are too few: of a class, or for what is to be promised."""
    counts = np.bincount(labels, minlength=len(classes))
    if absent := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise InputError(
            f"'{images}' has no image of {first_few(absent)}: what is not seen cannot be calibrated.",
            "Pass images of every class of the model.",
        )
    if few := [name for name, count in zip(classes, counts, strict=True) if count < FEWEST_OF_A_CLASS]:
        raise InputError(f"'{images}' has fewer than {FEWEST_OF_A_CLASS} different images of {first_few(few)}.", _MORE)
    setting = int(sum(-(-(count - SET) // PARTS) for count in counts))  # as deal() deals them
    needed = max(fewest(coverage), fewest(1 - FLAGGED))
    if setting < needed:
        raise InputError(
            f"'{images}' has {image_count(len(labels))}, of which {setting} set the limits: a coverage of "
            f"{percent(coverage)}, and at most {percent(FLAGGED)} of known images said to be unlike, need {needed}.",
            f"Pass {PARTS * needed + len(classes):,} images or more, as the model will meet them; none of them "
            "may have been used in training.",
        )


def _odd(odd: str | Path, images: str | Path, known: list[str]) -> _Odd:
    """The odd images that were given, each content once, dealt to the two that need some by their contents.

    Raises:
        InputError: they are too few, or one of them is also among the others.
    """
    listed = read_images(odd)
    paths = listed.slice(range(len(listed)))
    found = {digest: row for row, digest in enumerate(image_digests(listed.folder, paths, odd))}
    if both := sorted(paths[found[digest]] for digest in set(known) & found.keys()):
        raise InputError(
            f"{image_count(len(both))} in '{odd}' {'is' if len(both) == 1 else 'are'} also in '{images}' "
            f"({first_few(both)}): an image is either odd or not.",
            "Take them off one of the two lists.",
        )
    if len(found) < FEWEST_ODD:
        raise InputError(
            f"'{odd}' has {image_count(len(found))}: too few to choose a score by, and to judge it by others.",
            f"Pass at least {FEWEST_ODD} different ones, or none: then they are made of the others.",
        )
    digests = sorted(found)
    return _Odd(
        listed, (np.array([found[it] for it in digests[::2]]), np.array([found[it] for it in digests[1::2]])), digests
    )


def _made(known: _Known, part: int, folder: Path, shape: tuple[int, int, int]) -> Path:
    """A folder of odd images, made of those of a part.

    Raises:
        DestinationError: they cannot be written.
    """
    chosen = np.flatnonzero(known.parts == part)[:_MOST_MADE]
    files = [known.listed.folder / known.listed.paths[int(known.rows[image])].as_py() for image in chosen]
    try:
        write_odd_images(files, [known.digests[image] for image in chosen], folder, shape)
    except OSError as error:  # of reading them, load_image raises its own
        raise no_scratch("The odd images that are made of the others", error) from error
    return folder


def _certainty(
    seen: Seen,
    labels: NDArray[np.int64],
    fit: NDArray[np.bool_],
    limits: NDArray[np.bool_],
    odd: Seen,
    coverage: float,
) -> tuple[Certainty, Mapping[str, float]]:
    """Fit on some images, and set the limits by others; and how well each score tells the odd images from these."""
    fitting, setting = seen.where(fit), seen.where(limits)
    temperature = fit_temperature(fitting.logits, labels[fit])
    probabilities = softmax(setting.logits.astype(np.float64) / temperature)
    least = least_probability(probabilities, labels[limits], coverage)
    candidates = odd_scores(*fitting, labels[fit])
    scores = {name: auroc(one.scores(*setting), one.scores(*odd)) for name, one in candidates.items()}
    best = candidates[max(scores, key=lambda name: scores[name])]
    usual = best.scores(*setting)
    oddness = replace(best, limit=order_statistic(usual, 1 - FLAGGED), percentiles=percentiles(usual))
    return Certainty(temperature, coverage, least, oddness), scores


def _write(result: Calibration, info: ModelInfo, known: _Known, odd: _Odd | None, processor: ProcessorName) -> None:
    """Write ``calibration.json``."""
    images = {"images": len(known.digests), "sha256": digest_of_all(known.digests), "fitted": result.fitted}
    images |= {"set": result.set, "judged": result.figures.images}
    content = {
        "schema": SCHEMA,
        "vitconv": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": info.folder.name, **identity(info)},
        "versions": dict(info.versions),
        "processor": processor,
        "images": images,
        "odd_images": odd and {"images": len(odd.digests), "sha256": digest_of_all(odd.digests)},
        **result.certainty.to_dict(),
        "figures": asdict(result.figures),
        "notes": list(result.notes),
    }
    with new_file(info.folder / CALIBRATION_FILE) as file:
        write_json({**content, "seal": seal(content)}, file)
