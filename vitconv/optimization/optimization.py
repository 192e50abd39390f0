"""A converted folder becomes a faster one, which appears only if its answers are near enough to float32's."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitconv import __version__
from vitconv.checkpoints.checkpoint import is_optimized
from vitconv.errors import InputError, VitconvError, first_few, how_to_install, shown
from vitconv.evaluation.outcomes import Outcomes, read_outcomes, require
from vitconv.evaluation.words import image_count
from vitconv.files import check_name, no_scratch, real_path, sha256
from vitconv.inference.batch_prediction import predict
from vitconv.inference.images import digest_of_all, image_digests, read_images
from vitconv.inference.machine import instructions
from vitconv.inference.optimized import DESCRIPTION, SCHEMA, Artefact, to_json, write_record
from vitconv.inference.pixels import open_preprocessor
from vitconv.inference.predictions import not_finite
from vitconv.inference.runtime import ModelInfo, read_info
from vitconv.inference.trusted import trust
from vitconv.inference.watch import watch_model
from vitconv.mapping import LOADED_CLASSES
from vitconv.models.huggingface import first_line, load_folder
from vitconv.optimization.card import write_card
from vitconv.optimization.gate import Figures, Limits, compare, failures
from vitconv.optimization.recipes import RECIPES
from vitconv.optimization.recipes.recipe import Calibration, Recipe, Write, Written, first
from vitconv.optimization.recipes.weights import save
from vitconv.writing.staging import check_apart, check_destination, staged_folder

#: Fewer images do not set the ranges of int8 numbers. NNCF takes 300 by default.
FEWEST_CALIBRATION = 24


class GateError(VitconvError):
    """The optimised model's answers are too far from float32's, or too few images were tried to know.

    Attributes:
        figures: what was found.
    """

    def __init__(self, problem: str, remedy: str, figures: Figures) -> None:
        super().__init__(problem, remedy)
        self.figures = figures


@dataclass(frozen=True)
class Optimization:
    """What was made.

    Attributes:
        folder: where it is.
        recipe: what made it.
        figures: how much the answers changed.
        nbytes_before, nbytes: the size of the model's files, of the folder that was given and of the new one.
        notes: what to know, a sentence each.
    """

    folder: Path
    recipe: Recipe
    figures: Figures
    nbytes_before: int
    nbytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "destination": str(self.folder),
            "recipe": self.recipe.name,
            "nbytes_before": self.nbytes_before,
            "nbytes": self.nbytes,
            "figures": asdict(self.figures),
            "notes": list(self.notes),
        }

    def sentence(self) -> str:
        """What came of it, in a sentence."""
        found = self.figures
        bound = "" if self.recipe.exact else f"; below {found.bound:.2%} of all images change, with 95 % confidence"
        return f"{found.kept}{bound}; {self.nbytes / 1e6:,.1f} MB of {self.nbytes_before / 1e6:,.1f}."


def optimize(
    model: str | Path,
    destination: str | Path,
    *,
    recipe: str,
    images: str | Path,
    calibration: str | Path | None = None,
    reference: str | Path | None = None,
    limits: Limits | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, rows: None,
) -> Optimization:
    """Make a faster folder of a converted one, and prove how much its answers changed.

    Args:
        model: the converted folder, with a classification head.
        destination: the new folder. It appears whole, and only if the model passes: see :class:`.gate.Limits`.
        recipe: a name in :data:`vitconv.optimization.RECIPES`.
        images: what the two models are compared on: a CSV file, perhaps with labels, a folder, or one image. They
            should be as the model will meet them, and it must not have been trained on them.
        calibration: images for the recipes that set the ranges of integers by them; none of them may be among the
            others.
        reference: a folder for the float32 model's predictions, which are kept there for the next recipe; by default
            they are computed anew. Predictions of another run in it are replaced only with ``overwrite``.
        limits: what is little enough.
        batch_size: of the predictions.
        overwrite: whether a model folder may be replaced.
        on_step, on_progress: as for :func:`vitconv.evaluation.evaluate_model`.

    Raises:
        GateError: the model does not pass. Nothing is written.
        InputError: an argument does not fit, or a package is missing.
        VitconvError: the model cannot be read, exported or run, or the destination cannot be written.
    """
    limits, plan = Limits() if limits is None else limits, find_recipe(recipe)
    if not isinstance(limits, Limits):
        raise InputError(f"limits is {shown(limits)}.", "Pass vitconv.optimization.Limits(…).")
    limits.check()
    folder = real_path(model)
    for path in (folder, destination):
        check_name(path, InputError)
    if is_optimized(folder):
        raise InputError(f"'{model}' is an optimised folder.", "Pass the converted folder that it was made from.")
    watch = watch_model(folder)  # before anything in it is read
    info = read_info(folder)
    if len(info.classes) == 1 and not plan.exact:
        *names, last = (one.name for one in RECIPES.values() if one.exact)
        raise InputError(
            f"The model in '{folder}' has one class, and so one answer: it stays, whatever {plan.name} makes of "
            "the logit.",
            f"Choose a recipe that computes in float32: {', '.join(names)} or {last}.",
        )
    read = [path for path in (model, images, calibration, reference) if path is not None]
    check_destination(destination, overwrite=overwrite, inputs=read)
    check_apart(destination, read)
    notes = check_machine(plan)
    data = _calibration(plan, calibration, images, info)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="vitconv-")))
        before = scratch / "before" if reference is None else Path(reference)
        on_step("Running the model in float32")
        run: dict[str, Any] = {"batch_size": batch_size, "judge": False, "on_progress": on_progress}
        predict(_float32(folder, info, scratch), images, before, overwrite=overwrite, **run)
        outcomes = read_outcomes(before, images, None)  # what is wrong with the images or labels is said at once
        if not plan.exact:
            check_answers(outcomes)
        rows, repeated = _different(outcomes, images)
        with staged_folder(destination, overwrite=overwrite) as staging:
            for number, write in enumerate(filter(None, (plan.write, plan.careful))):
                on_step(f"Writing {plan.name}{', with more of it in float' if number else ''}")
                artefact = _write(plan, write, folder, info, staging, data)
                on_step(f"Running {plan.name}")
                after = scratch / f"after-{number}"
                # Logits that are not finite are for the gate to report, not images that cannot be read.
                predict(staging, images, after, max_errors=len(outcomes.paths), **run)
                outcomes = read_outcomes(after, images, before)
                figures = judge(outcomes, rows)
                missed = failures(figures, limits, exact=plan.exact)
                if not missed:
                    break
            else:
                raise GateError(" ".join((*missed, *repeated)), _remedy(plan, figures, limits, missed), figures)
            watch.check("it was optimised")
            nbytes = sum(map(_size, _files(staging, artefact)))
            result = Optimization(Path(destination), plan, figures, _weights(folder), nbytes, (*notes, *repeated))
            _record(staging, artefact, result, info, limits, outcomes, data, careful=number > 0)
            write_card(staging, result, info.folder.name, Path(destination).name, artefact)
        return result


def find_recipe(name: str) -> Recipe:
    """The recipe of a name, whose GPU is there and whose packages are installed.

    Raises:
        InputError: there is none, or no GPU for it, or a package is missing.
    """
    if name not in RECIPES:
        raise InputError(f"There is no recipe '{name}'.", f"Choose one of {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    _check_gpu(recipe)  # without one, no package helps
    missing = [package for package in recipe.packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"The recipe {name} needs packages that are not installed: {first_few(missing)}.",
            f"Install them with {_how(recipe, missing)}.",
        )
    return recipe


def _how(recipe: Recipe, missing: list[str]) -> str:
    return how_to_install(recipe.extra) if recipe.extra else f"pip install {' '.join(missing)}"


def _check_gpu(recipe: Recipe) -> None:
    import torch

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"The recipe {recipe.name} needs a CUDA GPU to be made and judged, and there is none.",
            f"Run it where there is one, or choose another recipe: {', '.join(_on_cpu())}.",
        )


def check_machine(recipe: Recipe) -> tuple[str, ...]:
    """Raise :class:`InputError` where a recipe's result would be of no use; notes where it is slow."""
    if not _runs_here(recipe):
        raise InputError(
            f"The recipe {recipe.name} needs a processor with {' or '.join(recipe.instructions)}, which this one does "
            f"not have: {recipe.without}.",
            "Choose another recipe, such as openvino.",
        )
    if recipe.fast_with and not first(recipe.fast_with, instructions()):
        return (
            f"This processor has none of {', '.join(recipe.fast_with)}, so {recipe.name} may be slower than float32: "
            "measure it with `vitconv benchmark`.",
        )
    return ()


def _runs_here(recipe: Recipe) -> bool:
    """Whether the processor has the instructions that the recipe needs."""
    return not recipe.instructions or bool(first(recipe.instructions, instructions()))


def _on_cpu() -> list[str]:
    return [recipe.name for recipe in RECIPES.values() if recipe.device != "cuda"]


def judge(outcomes: Outcomes, rows: NDArray[np.int64]) -> Figures:
    """Compare the optimised model's predictions with the float32 model's.

    Args:
        outcomes: the predictions, with the float32 model's as the expected answers.
        rows: the indices of the images that count.

    Raises:
        InputError: an image could be read before and cannot be read any more.
    """
    unreadable = [path for path, error in outcomes.errors if error != not_finite(path)]
    if unreadable:
        raise InputError(
            f"Images that were read cannot be read any more: {first_few(unreadable)}.",
            "Run it again when nothing else writes to them.",
        )
    before, labels = require(outcomes.expected_logits)[rows], outcomes.labels
    after = outcomes.logits[rows].astype(np.float64)
    return compare(before, after, None if labels is None else labels[rows], outcomes.classes)


def _different(outcomes: Outcomes, images: str | Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The indices of images with different contents; and a sentence if others repeat them, which proves nothing."""
    total = len(outcomes.paths)
    rows = np.sort(np.unique(image_digests(outcomes.folder, outcomes.paths, images), return_index=True)[1])
    if len(rows) == total:
        return rows, ()
    return rows, (f"Of {image_count(total)}, {len(rows):,} are different, and each of them counts once.",)


def check_answers(outcomes: Outcomes) -> None:
    """Raise :class:`InputError` if all images get the same answer: a model that always gives it would keep it, too."""
    answers = np.unique(outcomes.predicted)
    if len(answers) == 1:
        raise InputError(
            f"The model answers '{outcomes.name(int(answers[0]))}' to every image, so they cannot show whether its "
            "answers are kept.",
            "Pass images of several classes.",
        )


def _calibration(
    plan: Recipe, calibration: str | Path | None, images: str | Path, info: ModelInfo
) -> Calibration | None:
    """The images that set the ranges of integers.

    Raises:
        InputError: the recipe needs them and there are none, or too few, or of one class only; or one of them is among
            the images that judge; or the recipe has no use for them.
    """
    if not plan.calibrates:
        if calibration is not None:
            raise InputError(f"The recipe {plan.name} needs no calibration images.", "Leave them out.")
        return None
    if calibration is None:
        raise InputError(
            f"The recipe {plan.name} needs calibration images, which set the ranges of its integers.",
            "Pass some with --calibration: a folder or a list, of images as the model will meet them. None of them "
            "may be among those that judge the result.",
        )
    listed = read_images(calibration)
    paths = listed.slice(range(len(listed)))
    found = dict(zip(image_digests(listed.folder, paths, calibration), paths, strict=True))
    if len(found) < FEWEST_CALIBRATION:
        raise InputError(
            f"'{calibration}' has {image_count(len(found))}: too few to set the ranges of integers by.",
            f"Pass at least {FEWEST_CALIBRATION} different ones, better 300.",
        )
    names = [] if listed.labels is None else [name for name in pc.unique(listed.labels).to_pylist() if name]
    if len(names) == 1:
        raise InputError(
            f"All images in '{calibration}' are labelled '{names[0]}': the ranges would be of this class only.",
            "Pass images of all classes.",
        )
    judging = read_images(images)
    judged = set(image_digests(judging.folder, judging.slice(range(len(judging))), images))
    both = sorted(path for digest, path in found.items() if digest in judged)
    if both:
        raise InputError(
            f"{image_count(len(both))} in '{calibration}' {'is' if len(both) == 1 else 'are'} also in '{images}' "
            f"({first_few(both)}): what an image has set, it cannot judge.",
            "Take them off one of the two lists.",
        )
    return Calibration(listed, open_preprocessor(info))


def _float32(folder: Path, info: ModelInfo, scratch: Path) -> Path:
    """The folder itself, or a copy with its weights in float32: what an optimised model is compared with.

    Raises:
        DestinationError: the copy cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    model = load_folder(folder)
    if model.dtype == torch.float32:
        return folder
    copy = scratch / "float32"
    try:
        copy.mkdir()
        _copy_description(folder, copy)
        save(model.float(), copy)
    except (OSError, SafetensorError) as error:  # the latter holds the system's error, such as a full disk, as text
        raise no_scratch("A copy of the model in float32", error) from error
    return copy


def _write(
    plan: Recipe, write: Write, folder: Path, info: ModelInfo, staging: Path, data: Calibration | None
) -> Artefact:
    """Write the model and its description into an empty folder, so that it can be run."""
    for entry in staging.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _copy_description(folder, staging)
    model = load_folder(folder).float()
    output = LOADED_CLASSES[type(model).__name__].logits
    try:
        written = write(model, staging, data)
    except (VitconvError, MemoryError):
        raise
    except Exception as error:  # exporters and quantisers raise what they please
        if isinstance(error, OSError) and error.errno:
            raise
        _raise_of_the_disk(error, staging, _weights(folder))
        raise VitconvError(
            f"The recipe {plan.name} cannot be applied to this {type(model).__name__}: {type(error).__name__}: "
            f"{first_line(error)}",
            "Choose another recipe, or report this with the model's config.json.",
        ) from error
    described = [staging / name for name in (*DESCRIPTION, *written.others) if (staging / name).is_file()]
    artefact = Artefact(
        recipe=plan.name,
        runtime=plan.runtime,
        file=written.file,
        output=output,
        settings=dict(written.settings),
        device=plan.device,
        instructions=_bound_to(plan, written),
        files={file.relative_to(staging).as_posix(): sha256(file) for file in (staging / written.file, *described)},
        model=info.fingerprint,
    )
    write_record({"schema": SCHEMA, "artefact": to_json(artefact)}, staging)
    if plan.code:
        trust(staging / written.file)
    return artefact


def _raise_of_the_disk(error: Exception, folder: Path, size: int) -> None:
    """Raise the system's error if an exporter failed because no file of this size could be written.

    Libraries in other languages hold that error only as text, or not at all.
    """
    text = f"{error} {error.__cause__}"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(number) in text or f"os error {number}" in text:
            raise OSError(number, os.strerror(number)) from error
    with (folder / ".room").open("wb") as room:
        for _ in range(-(-size // 2**20)):
            room.write(bytes(2**20))


def _bound_to(plan: Recipe, written: Written) -> tuple[str, ...]:
    """The instruction sets that a processor must have to run the result, and get the numbers that were judged."""
    if plan.bound:
        return instructions()
    found = first(plan.instructions, instructions())
    return tuple(dict.fromkeys(filter(None, (found, *written.instructions))))


def _copy_description(folder: Path, destination: Path) -> None:
    for name in DESCRIPTION:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, destination / name)


def _files(folder: Path, artefact: Artefact) -> list[Path]:
    """The files of the model itself."""
    return [folder / name for name in artefact.files if name not in DESCRIPTION]


def _size(file: Path) -> int:
    return file.stat().st_size


def _weights(folder: Path) -> int:
    """The bytes of a converted folder's weights."""
    return sum(_size(file) for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))


def _record(
    staging: Path,
    artefact: Artefact,
    result: Optimization,
    info: ModelInfo,
    limits: Limits,
    outcomes: Outcomes,
    data: Calibration | None,
    *,
    careful: bool,
) -> None:
    """Write ``optimization.json``: what is needed to run the folder, and how it was made and judged."""
    made = read_info(staging)
    content: Mapping[str, Any] = {
        "schema": SCHEMA,
        "artefact": to_json(artefact),
        "vitconv": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": info.folder.name, "fingerprint": info.fingerprint, "nbytes": result.nbytes_before},
        "nbytes": result.nbytes,
        "careful": careful,
        "versions": {**info.versions, **made.versions, **_recipe_versions(result.recipe)},
        "instructions": list(instructions()),
        "images": _described(outcomes.folder, list(outcomes.paths)),
        "calibration": data and _described(data.images.folder, data.images.slice(range(len(data.images)))),
        "exact": result.recipe.exact,
        "figures": asdict(result.figures),
        "limits": asdict(limits),
        "notes": list(result.notes),
    }
    write_record(content, staging)


def _recipe_versions(recipe: Recipe) -> dict[str, str]:
    found = {}
    for name in recipe.packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a distribution of another name
            continue
    return found


def _described(folder: Path, paths: list[str]) -> dict[str, Any]:
    """How many images there are, and one SHA-256 of them all, whatever their order."""
    digests = [sha256(folder / path) for path in paths if (folder / path).is_file()]
    return {"images": len(paths), "sha256": digest_of_all(digests)}


def _remedy(plan: Recipe, figures: Figures, limits: Limits, missed: Sequence[str]) -> str:
    """What to do about a model that does not pass."""
    if plan.exact:
        return "Keep the converted folder, and report this with its config.json. Nothing was written."
    if len(missed) == 1 and not figures.changed and figures.bound > limits.disagreement:
        return (
            f"Pass more images, or say what is enough: --max-disagreement {figures.bound + 0.0005:.3f}. Nothing was "
            "written."
        )
    coarser = ("onnx-int8", "openvino-int8", "torchao-float8")
    others = ("openvino-bf16", "bfloat16", "onnx") if plan.name in coarser else ("openvino", "onnx")
    possible = [name for name in others if _runs_here(RECIPES[name])]
    return f"Choose a recipe that changes less, such as {' or '.join(possible)}. Nothing was written."
