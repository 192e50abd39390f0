"""Several recipes beside each other and beside float32: how fast, how large, how many other answers; and which to use.

>>> ladder = Ladder.of(made, benchmark_models(["roofs", *folders], "held-out"))  # doctest: +SKIP
>>> ladder.conclusion  # doctest: +SKIP
'Use onnx-int8: 2.6 × as fast as float32 at batch 1 (25.0 ms instead of 64.7) and 2.2 × at batch 8, 26 % of its size,
the same answer on 600 of 600 images. Below 0.50 % of all images change theirs, with 95 % confidence.'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitconv.errors import InputError, VitconvError
from vitconv.evaluation.words import image_count
from vitconv.files import new_file, write_json
from vitconv.markdown import escape
from vitconv.markdown import table as markdown_table
from vitconv.optimization.benchmark import CLEARLY, Benchmark, Variant
from vitconv.optimization.benchmark_process import BATCH
from vitconv.optimization.gate import Figures, Limits
from vitconv.optimization.optimization import GateError, Optimization
from vitconv.optimization.words import figure, size_beside, times


@dataclass(frozen=True)
class Rung:
    """One recipe.

    Attributes:
        name: of the recipe.
        exact: whether it computes in float32: then its logits are the same but for rounding, and the share of all
            images that change their answer is not estimated.
        figures: how much its answers changed; ``None`` if it could not be made.
        nbytes: the size of the model's files; ``None`` without a folder.
        speed: what the benchmark measured; ``None`` without a folder.
        refused: why there is no folder; empty if there is one.
    """

    name: str
    exact: bool = False
    figures: Figures | None = None
    nbytes: int | None = None
    speed: Variant | None = None
    refused: str = ""


@dataclass(frozen=True, repr=False)
class Ladder:
    """The recipes that were tried on a model.

    Attributes:
        float32: what the benchmark measured of the model itself.
        nbytes: the size of its weights.
        rungs: the recipes, as they were tried.
        limits: what the recipes had to keep to.
        benchmark: all that was measured.
    """

    float32: Variant
    nbytes: int
    rungs: tuple[Rung, ...]
    limits: Limits
    benchmark: Benchmark

    @classmethod
    def of(
        cls,
        made: Sequence[Optimization],
        benchmark: Benchmark,
        *,
        refused: Mapping[str, VitconvError] | None = None,
        limits: Limits | None = None,
    ) -> Ladder:
        """Put together what ``optimize`` made or refused and what ``benchmark_models`` measured.

        Args:
            made: the folders, of one model.
            benchmark: of that model, first, and of all the folders.
            refused: the errors of other recipes, by name.
            limits: what the recipes had to keep to.

        Raises:
            InputError: the benchmark lacks a folder.
        """
        first, *others = benchmark.variants
        measured = {Path(one.folder).resolve(): one for one in others}
        rungs = []
        for one in made:
            speed = measured.get(one.folder.resolve())
            if speed is None:
                raise InputError(f"'{one.folder}' was not benchmarked.", "Benchmark the model and all that was made.")
            rungs.append(Rung(one.recipe.name, one.recipe.exact, one.figures, one.nbytes, speed))
        for name, error in (refused or {}).items():
            figures = error.figures if isinstance(error, GateError) else None
            rungs.append(Rung(name, figures=figures, refused=error.problem))
        nbytes = made[0].nbytes_before if made else first.folder_bytes
        return cls(first, nbytes, tuple(rungs), limits or Limits(), benchmark)

    @property
    def passed(self) -> list[Rung]:
        """The recipes that have a folder, the fastest at batch 1 first."""
        return sorted((one for one in self.rungs if one.speed), key=_latency)

    @property
    def best(self) -> Rung | None:
        """The recipe to use: the fastest at batch 1 of those that passed, if it is clearly faster than float32."""
        first = next(iter(self.passed), None)
        return first if first and self.float32.p50_ms / _latency(first) >= CLEARLY else None

    @property
    def conclusion(self) -> str:
        """Which to use, in a sentence or two."""
        found = self._found()
        return f"The machine was busy, so measure again: {found}" if self.benchmark.machine.busy else found

    def _found(self) -> str:
        if not self.passed:
            return "Keep float32: no recipe has passed."
        first = self.passed[0]
        faster = times(self.float32.p50_ms / _latency(first))
        if self.best is None:
            return f"Keep float32: no recipe is clearly faster here. The nearest, {first.name}, is {faster} × as fast."
        found = first.figures
        assert found and first.nbytes and first.speed
        batch = times(first.speed.images_per_second / self.float32.images_per_second)
        speed = f"{figure(_latency(first))} ms instead of {figure(self.float32.p50_ms)}"
        sure = (
            "It computes in float32: its logits are the same but for rounding."
            if first.exact
            else f"Below {at_most(found.bound)} of all images change theirs, with 95 % confidence."
        )
        return (
            f"Use {first.name}: {faster} × as fast as float32 at batch 1 ({speed}) and {batch} × at batch {BATCH}, "
            f"{size_beside(first.nbytes / self.nbytes)}, the same answer on {found.images - found.changed:,} of "
            f"{image_count(found.images)}. {sure}"
        )

    @property
    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings, and a row of text for float32 and each recipe: those that passed, then the refused ones.

        ``×`` is the ratio to float32.
        """
        headings = (
            *("recipe", "ms at batch 1", "×", f"images/s at batch {BATCH}", "×", "MB"),
            *("keep their answer", "change at most", "largest |Δ logit|"),
        )
        rows: list[tuple[str, ...]] = [("float32", *self._speed(self.float32), _megabytes(self.nbytes), "", "", "")]
        for one in (*self.passed, *self._refused):
            size = "" if one.nbytes is None else _megabytes(one.nbytes)
            name = f"{one.name} (refused)" if one.refused else one.name
            rows.append((name, *self._speed(one.speed), size, *_changes(one)))
        return headings, rows

    @property
    def _refused(self) -> list[Rung]:
        return [one for one in self.rungs if not one.speed]

    def _speed(self, one: Variant | None) -> tuple[str, str, str, str]:
        if one is None:
            return "", "", "", ""
        latency, batch = self.float32.p50_ms / one.p50_ms, one.images_per_second / self.float32.images_per_second
        return figure(one.p50_ms), times(latency), figure(one.images_per_second), times(batch)

    def markdown(self) -> str:
        """The conclusion, the table, why recipes were refused, and how it was measured, in Markdown."""
        headings, rows = self.table
        lines = [f"- {escape(one.name)} was refused. {escape(one.refused)}" for one in self._refused]
        lines += [f"- {escape(fact)}" for fact in self.benchmark.facts]
        lines += [f"- Note: {escape(note)}" for note in self.benchmark.notes]
        cells = [[escape(cell) for cell in row] for row in rows]
        return "\n\n".join(
            [f"**{escape(self.conclusion)}**", markdown_table(list(map(escape, headings)), cells), "\n".join(lines)]
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        best = self.best
        return {
            "schema": 1,
            "conclusion": self.conclusion,
            "best": best.name if best else None,
            "limits": asdict(self.limits),
            "nbytes": self.nbytes,
            "recipes": [
                {
                    "name": one.name,
                    "exact": one.exact,
                    "nbytes": one.nbytes,
                    "refused": one.refused,
                    "figures": one.figures and asdict(one.figures),
                }
                for one in self.rungs
            ],
            "benchmark": self.benchmark.to_json(),
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` into a file.

        Raises:
            DestinationError: it cannot be written.
        """
        with new_file(path) as file:
            write_json(self.to_json(), file)

    def __repr__(self) -> str:
        return f"Ladder({len(self.rungs)} recipes: {self.conclusion})"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def at_most(share: float) -> str:
    """A share in percent with two decimals, rounded up: it is a bound.

    >>> at_most(0.00498), at_most(0.00501), at_most(0.0688)
    ('0.50 %', '0.51 %', '6.88 %')
    """
    return f"{math.ceil(round(share * 1e4, 6)) / 100:.2f} %"


def _latency(one: Rung) -> float:
    assert one.speed is not None
    return one.speed.p50_ms


def _megabytes(nbytes: int) -> str:
    return figure(nbytes / 1e6)


def _changes(one: Rung) -> tuple[str, str, str]:
    found = one.figures
    if found is None:
        return "", "", ""
    kept = f"{found.images - found.changed:,} of {found.images:,}"
    difference = f"{found.largest_difference:.2g}".replace("e-0", "e-")
    return kept, "" if one.exact else at_most(found.bound), difference
