"""How fast models are beside each other: in one run, on one machine, on the same images.

A time alone says little: it changes with the machine, with what else runs on it, and from minute to minute. A ratio
says more, if both models were timed side by side. So each model is opened in a process of its own
(:mod:`vitconv.optimization.benchmark_process`), and the models take turns: in each round, each has one, in a random
order, while the others wait. What slows the machine for a while then slows all of them.

In a turn, a model computes

* **batch 1**: each of a few images by itself. Its time is the latency: what somebody who sends one image waits for. It
  is told by its median (p50), and by the time that nine in ten stay below (p90);
* **batch 8**: eight images at once. It is told as images a second, the median of the rounds: the throughput;
* **from the file**: from the bytes of an image's file to its logits, decoding and preprocessing included. A model may
  be five times faster, and its users gain little, because decoding a large photo takes longer than the model.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vitconv import __version__
from vitconv.errors import CheckpointError, InputError
from vitconv.files import new_file, write_json
from vitconv.inference.images import read_images
from vitconv.inference.machine import cores, instructions
from vitconv.inference.runtime import ModelInfo, choose_device, opener, read_info, wanted_device
from vitconv.markdown import escape
from vitconv.markdown import table as markdown_table
from vitconv.models.images import load_image
from vitconv.optimization.benchmark_process import BATCH, ModelProcess, Opened, Turn, Work
from vitconv.optimization.words import figure, size_beside, times

#: How many images of the list are taken, evenly spread over it: each turn computes each of them.
IMAGES = 4
#: The order of the turns is random, and the same in every run. With this seed, the first rounds of two and of three
#: models differ.
_SEED = 3
#: Seconds between two turns. The threads of some libraries go on for up to a fifth of a second, waiting for work.
_PAUSE = 0.2
#: The share of the machine's cores that other processes may use without a note.
_QUIET = 0.05
#: How many times as fast a model must be for the conclusion to call it faster.
CLEARLY = 1.05

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True)
class Variant:
    """What was measured of one model.

    Attributes:
        name: of its folder, with as many folders above it as tell it from the others.
        folder: where it is, absolute.
        runtime: the name of the runtime that ran it.
        versions: of the packages that its logits depend on, by name.
        settings: what else they depend on, such as the precision that it computes in.
        device: where it computed.
        processor: which image processor made the pixels: ``"transformers"`` or ``"timm"``.
        threads: how many torch computed with. Other runtimes have threads of their own.
        cores: how many cores computed a batch of 8, on average, whatever the threads were called.
        p50_ms, p90_ms: milliseconds of the model alone for one image.
        images_per_second: of the model alone at batch 8, the median of the rounds.
        from_file_p50_ms, from_file_p90_ms: milliseconds from the bytes of an image's file to its logits.
        load_seconds: what opening the model took. Imports are not in it, because the process had opened the model
            before; so its files were in the page cache, too. vitconv's reading of the files to check that they have
            not changed is in it.
        peak_bytes: the largest memory of its process, with the interpreter, the libraries and the images, without the
            memory of a GPU. That the model was opened twice adds up to a tenth.
        folder_bytes: the sizes of all files in the folder.
    """

    name: str
    folder: str
    runtime: str
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    device: str
    processor: str
    threads: int
    cores: float
    p50_ms: float
    p90_ms: float
    images_per_second: float
    from_file_p50_ms: float
    from_file_p90_ms: float
    load_seconds: float
    peak_bytes: int
    folder_bytes: int


@dataclass(frozen=True)
class Ratios:
    """A variant beside the first one of the same run.

    Attributes:
        latency: how many times as fast it is at batch 1, by the medians.
        throughput: how many times as many images a second it computes at batch 8.
        from_file: how many times as fast it is from the file on, by the medians.
        size: how many times as large its folder is.
    """

    latency: float
    throughput: float
    from_file: float
    size: float


@dataclass(frozen=True)
class Machine:
    """What the models ran on.

    Attributes:
        processor: what it calls itself.
        cores: how many of its cores this process may use.
        instructions: the instruction sets that matter for neural networks, by torch's names. An int8 model may be
            *slower* than a float32 one where there is neither VNNI nor AMX.
        gpu: the name of the GPU, if one computed.
        others: how many cores other processes used meanwhile, on average.
        all_cores: how many cores the machine has.
    """

    processor: str
    cores: int
    instructions: tuple[str, ...]
    gpu: str | None
    others: float
    all_cores: int

    @property
    def busy(self) -> bool:
        """Whether other processes used so much of it that the times are too long."""
        return self.others > _QUIET * self.all_cores


@dataclass(frozen=True, repr=False)
class Benchmark:
    """The result of a benchmark.

    Attributes:
        variants: in the order given; the first is what the others are compared with.
        machine: what they ran on.
        images: the paths of the images.
        megapixels: of an image, the median. Decoding takes time in proportion to it.
        rounds: how many turns each model had.
        notes: what to know before the figures are believed, a sentence each.
    """

    variants: tuple[Variant, ...]
    machine: Machine
    images: tuple[str, ...]
    megapixels: float
    rounds: int
    notes: tuple[str, ...] = ()

    def ratios(self, variant: Variant) -> Ratios:
        """A variant beside the first one."""
        first = self.variants[0]
        return Ratios(
            latency=first.p50_ms / variant.p50_ms,
            throughput=variant.images_per_second / first.images_per_second,
            from_file=first.from_file_p50_ms / variant.from_file_p50_ms,
            size=variant.folder_bytes / first.folder_bytes,
        )

    @property
    def conclusion(self) -> str:
        """The variant with the shortest latency beside the first one, in a sentence."""
        return f"On a busy machine, {self._found()}" if self.machine.busy else self._found()

    def _found(self) -> str:
        first, *others = self.variants
        if not others:
            return (
                f"{first.name} takes {figure(first.p50_ms)} ms for an image at batch 1 "
                f"({figure(first.from_file_p50_ms)} ms from the file on), and computes "
                f"{figure(first.images_per_second)} images a second at batch {BATCH}."
            )
        best = min(others, key=lambda variant: variant.p50_ms)
        found = self.ratios(best)
        if found.latency < 1 / CLEARLY:
            return (
                f"{first.name} is the fastest at batch 1: {best.name}, the next, is {times(found.latency)} × as fast."
            )
        if found.latency < CLEARLY:
            return f"No model is clearly faster than {first.name} at batch 1, and {best.name} is as fast."
        return (
            f"{best.name} is {times(found.latency)} × as fast as {first.name} at batch 1 "
            f"({times(found.from_file)} × from the file on), {times(found.throughput)} × at batch {BATCH}, and "
            f"{size_beside(found.size)}."
        )

    @property
    def speed(self) -> Table:
        """How fast the variants are: headings, some of two lines, and a row of text for each.

        ``×`` is the ratio to the first variant.
        """
        headings = (
            *("model", "batch 1\np50 ms", "p90 ms", "×"),
            *(f"batch {BATCH}\nimages/s", "×", "from file\np50 ms", "p90 ms", "×"),
        )
        rows: list[tuple[str, ...]] = []
        for one in self.variants:
            found = self.ratios(one)
            model = (figure(one.p50_ms), figure(one.p90_ms), times(found.latency))
            batch = (figure(one.images_per_second), times(found.throughput))
            whole = (figure(one.from_file_p50_ms), figure(one.from_file_p90_ms), times(found.from_file))
            rows.append((one.name, *model, *batch, *whole))
        return headings, rows

    @property
    def costs(self) -> Table:
        """What the variants take: headings, and a row of text for each. A megabyte (MB) is a million bytes."""
        headings = ("model", "runtime", "device", "load\ns", "memory\nMB", "files\nMB", "cores")
        rows: list[tuple[str, ...]] = [
            (
                *(one.name, one.runtime, one.device, figure(one.load_seconds)),
                *(figure(one.peak_bytes / 1e6), figure(one.folder_bytes / 1e6), f"{one.cores:.1f}"),
            )
            for one in self.variants
        ]
        return headings, rows

    @property
    def facts(self) -> list[str]:
        """How it was measured, in lines for people: ``name: value``."""
        where = f"{self.machine.processor}, {self.machine.cores} cores ({', '.join(self.machine.instructions)})"
        threads = ", ".join(str(n) for n in sorted({one.threads for one in self.variants}))
        return [
            f"machine: {where}" + (f"; {self.machine.gpu}" if self.machine.gpu else ""),
            f"measured: {self.rounds} rounds, {len(self.images)} images of {figure(self.megapixels)} megapixels, "
            f"torch with {threads} threads",
        ]

    def to_json(self) -> dict[str, Any]:
        """The result as plain data for JSON."""
        return {
            "schema": 1,
            "conclusion": self.conclusion,
            "notes": list(self.notes),
            "machine": asdict(self.machine) | {"busy": self.machine.busy},
            "images": list(self.images),
            "megapixels": self.megapixels,
            "rounds": self.rounds,
            "versions": {"vitconv": __version__, "torch": version("torch")},
            "variants": [asdict(one) | {"ratios": asdict(self.ratios(one))} for one in self.variants],
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` into a file.

        Raises:
            DestinationError: it cannot be written.
        """
        with new_file(path) as file:
            write_json(self.to_json(), file)

    def markdown(self) -> str:
        """The conclusion, the two tables, how it was measured and the notes, in Markdown."""
        tables = (
            markdown_table(
                [" ".join(one.split()) for one in headings], [[escape(cell) for cell in row] for row in rows]
            )
            for headings, rows in (self.speed, self.costs)
        )
        lines = [f"- {escape(fact)}" for fact in self.facts] + [f"- Note: {escape(note)}" for note in self.notes]
        return "\n\n".join([f"**{escape(self.conclusion)}**", *tables, "\n".join(lines)])

    def __repr__(self) -> str:
        count = len(self.variants)
        return f"Benchmark({count} model{'s' * (count > 1)}, {self.rounds} rounds: {self.conclusion})"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def benchmark_models(
    models: Sequence[str | Path],
    images: str | Path,
    *,
    rounds: int = 10,
    device: str = "auto",
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, total: None,
) -> Benchmark:
    """Measure how fast models are beside each other.

    Args:
        models: folders that :func:`vitconv.inference.open_model` opens. The others are compared with the first: the
            float32 one, usually. Different models may be compared; a note says so.
        images: which images there are, as :func:`vitconv.inference.images.read_images` takes them: a CSV file, a
            folder, or one image. :data:`IMAGES` of them are taken.
        rounds: how many turns each model has. A turn takes as long as some twenty images, and a second at least.
        device: as :func:`vitconv.inference.open_model` takes it.
        on_step: called when a step begins, with its name.
        on_progress: called with the numbers of turns done, failed and in all.

    Raises:
        CheckpointError, ParityError: a folder is none that vitconv writes.
        InputError: fewer than one round, no model, a model without a head, or an image that cannot be read.
        VitconvError: a model cannot be opened or run, its process was killed, or there is too little memory.
    """
    if rounds < 1:
        raise InputError(f"{rounds} rounds measure nothing.", "Measure in at least one round.")
    if not models:
        raise InputError("There is no model to benchmark.", "Name at least one folder.")
    import torch

    on_step("Reading the folders and images")
    infos = [read_info(folder) for folder in models]
    sizes = [folder_bytes(info.folder) for info in infos]
    names = unique_names([info.folder for info in infos])
    files = _choose_images(images)
    photos, megapixels = zip(*map(_read, files), strict=True)
    devices = [choose_device(wanted_device(info, device), torch.cuda.device_count()) for info in infos]
    with ExitStack() as stack:
        processes, opened = [], []
        for info, name, place in zip(infos, names, devices, strict=True):
            on_step(f"Loading {name}")
            process = stack.enter_context(ModelProcess(name))
            opened.append(process.open(Work(opener(info), place, photos)))
            processes.append(process)
        on_step("Measuring")
        watch = _Watch()
        turns = _take_turns(processes, rounds, on_progress)
        others = watch.others()
    variants = tuple(
        _variant(info, name, place, size, *measured)
        for info, name, place, size, *measured in zip(infos, names, devices, sizes, opened, turns, strict=True)
    )
    machine = _machine(devices, others)
    paths = tuple(map(str, files))
    notes = tuple(_notes(infos, variants, machine))
    return Benchmark(variants, machine, paths, statistics.median(megapixels), rounds, notes)


def unique_names(folders: Sequence[Path]) -> list[str]:
    """What to call the models in these folders: the folder's name, with the folders above it where two are equal.

    >>> unique_names([Path("/a/roofs"), Path("/a/fast/onnx"), Path("/b/onnx"), Path("/b/onnx")])
    ['roofs', 'fast/onnx', 'b/onnx', 'b/onnx (2)']
    """
    names: list[str] = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        parts = range(1, len(folder.parts) + 1)
        lengths = (n for n in parts if all(other.parts[-n:] != folder.parts[-n:] for other in others))
        name = "/".join(folder.parts[-next(lengths, len(folder.parts)) :])
        earlier = folders[: len(names)].count(folder)
        names.append(f"{name} ({earlier + 1})" if earlier else name)
    return names


def folder_bytes(folder: Path) -> int:
    """The sizes of all files in a folder; of links, those of the files that they lead to.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError as error:
        raise CheckpointError(
            f"'{error.filename}' cannot be read: {error.strerror}.", "Check the file and its permissions."
        ) from error


def _choose_images(images: str | Path) -> list[Path]:
    """A few files, evenly spread over the list."""
    found = read_images(images)
    rows = sorted({number * len(found) // IMAGES for number in range(IMAGES)})
    return [found.folder / found.slice(range(row, row + 1))[0] for row in rows]


def _read(file: Path) -> tuple[bytes, float]:
    """The content of an image's file, and its megapixels."""
    image = load_image(file)
    return file.read_bytes(), image.width * image.height / 1e6


def _take_turns(
    processes: Sequence[ModelProcess], rounds: int, on_progress: Callable[[int, int, int], None]
) -> list[list[Turn]]:
    """Measure all models in each round, in a random order, one at a time."""
    turns: list[list[Turn]] = [[] for _ in processes]
    total, order = rounds * len(processes), random.Random(_SEED)
    for done in range(rounds):
        numbers = order.sample(range(len(processes)), len(processes))
        for place, number in enumerate(numbers, 1):
            time.sleep(_PAUSE)
            turns[number].append(processes[number].turn())
            on_progress(done * len(processes) + place, 0, total)
    return turns


class _Watch:
    """Measures from now on how many cores other processes use."""

    def __init__(self) -> None:
        self._start = self._now()

    def others(self) -> float:
        """Cores that others used since then, on average. What a hypervisor took (steal) is theirs, too."""
        took, everything, ours = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return max(0.0, (everything - ours) / took)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """The time, what all processes have computed, and what this one and those that it started have; in seconds."""
        import psutil

        now = psutil.cpu_times()
        # Guests' time is in the users' already.
        fields = ("user", "nice", "system", "irq", "softirq", "steal")
        everything = sum(getattr(now, name, 0.0) for name in fields)
        me = psutil.Process()
        ours = sum(sum(process.cpu_times()[:4]) for process in (me, *me.children(recursive=True)))
        return time.monotonic(), everything, ours


def _variant(info: ModelInfo, name: str, device: str, size: int, opened: Opened, turns: Sequence[Turn]) -> Variant:
    model = 1000 * np.array([seconds for turn in turns for seconds in turn.model])
    whole = 1000 * np.array([seconds for turn in turns for seconds in turn.whole])
    return Variant(
        name=name,
        folder=str(info.folder),
        runtime=info.runtime,
        versions=dict(info.versions),
        settings=dict(info.settings),
        device=device,
        processor=opened.processor,
        threads=opened.threads,
        cores=statistics.median(turn.cores for turn in turns),
        p50_ms=float(np.percentile(model, 50)),
        p90_ms=float(np.percentile(model, 90)),
        images_per_second=statistics.median(BATCH / statistics.median(turn.batch) for turn in turns),
        from_file_p50_ms=float(np.percentile(whole, 50)),
        from_file_p90_ms=float(np.percentile(whole, 90)),
        load_seconds=opened.load_seconds,
        peak_bytes=max(turn.peak_bytes for turn in turns),
        folder_bytes=size,
    )


def _machine(devices: Sequence[str], others: float) -> Machine:
    import psutil
    import torch

    known = torch.cpu.get_capabilities()
    name = str(known.get("cpu_name") or known.get("architecture") or "unknown processor")
    gpus = [device for device in devices if device.startswith("cuda")]
    gpu = torch.cuda.get_device_name(gpus[0]) if gpus else None
    return Machine(name, cores(), instructions(), gpu, others, psutil.cpu_count() or 1)


def _notes(infos: Sequence[ModelInfo], variants: Sequence[Variant], machine: Machine) -> list[str]:
    notes = []
    shapes = {one.name: "x".join(map(str, info.input_shape)) for one, info in zip(variants, infos, strict=True)}
    for what, values in (
        ("take inputs of different shapes", shapes),
        ("ran on different devices", {one.name: one.device for one in variants}),
        ("have different image processors", {one.name: one.processor for one in variants}),
    ):
        if len(Counter(values.values())) > 1:
            each = ", ".join(f"{name} {value}" for name, value in values.items())
            notes.append(f"The models {what}: {each}.")
    if len({info.classes for info in infos}) > 1:
        notes.append("The models do not have the same classes: only their speed is compared, not what they answer.")
    if machine.busy:
        notes.append(
            f"The machine was busy: other processes used {machine.others:.2f} of its {machine.all_cores} cores. The "
            "times are too long, and the ratios uncertain; run it again on a quiet machine."
        )
    return notes
