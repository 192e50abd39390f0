"""Ladders of figures that are given, without a model."""

from __future__ import annotations

from pathlib import Path

from vitconv.optimization.benchmark import Benchmark, Machine, Variant
from vitconv.optimization.gate import Figures, Limits, upper_bound
from vitconv.optimization.ladder import Ladder
from vitconv.optimization.optimization import Optimization
from vitconv.optimization.recipes import RECIPES

NBYTES = 344_000_000


def figures(images: int = 600, changed: int = 0, difference: float = 0.02) -> Figures:
    return Figures(images, changed, upper_bound(changed, images), 7, difference, difference / 2, 5.0, 0.999, 0.0)


def variant(name: str, milliseconds: float) -> Variant:
    return Variant(
        *(name, f"/models/{name}", "a runtime", {}, {}, "cpu", "transformers", 2, 1.9),
        *(milliseconds, 1.1 * milliseconds, 2000 / milliseconds, milliseconds + 20, milliseconds + 30),
        *(1.0, 10**9, NBYTES + 10_000),
    )


def made(name: str, found: Figures | None = None, nbytes: int = NBYTES // 4) -> Optimization:
    return Optimization(Path("/models", name), RECIPES[name], found or figures(), NBYTES, nbytes)


def measured(*times: tuple[str, float], others: float = 0.0) -> Benchmark:
    machine = Machine("Intel Xeon", 2, ("avx2", "avx512_vnni"), None, others, 2)
    return Benchmark(tuple(variant(*one) for one in times), machine, ("a.png", "b.png"), 0.2, 10)


def ladder(times: dict[str, float], *, refused=None, disagreement=0.01, others=0.0, **found: Figures) -> Ladder:
    """Of milliseconds by recipe, ``float32`` among them; ``found`` has figures by recipe, with _ for each -."""
    names = [name for name in times if name != "float32"]
    folders = [made(name, found.get(name.replace("-", "_"))) for name in names]
    benchmark = measured(("float32", times["float32"]), *((name, times[name]) for name in names), others=others)
    return Ladder.of(folders, benchmark, refused=refused, limits=Limits(disagreement=disagreement))
