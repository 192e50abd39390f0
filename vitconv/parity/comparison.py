"""Run a timm model and its Transformers model on the same pixels and measure where, and by how much, they differ.

How large a difference may be is in :mod:`vitconv.parity.criteria`.

The blocks may be given a few tokens of the picture instead of all, where they treat every token alike: each of those
tokens still meets every weight and setting of theirs, and the criterion stays. The embeddings are compared in full.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vitconv.errors import ArchitectureError, InputError, ParityError, VitconvError, how_to_install
from vitconv.mapping import CLASSES
from vitconv.markdown import table
from vitconv.models.huggingface import installed_dialect
from vitconv.models.timm import check_is_model, read
from vitconv.parity.criteria import CRITERIA, DTYPES, ROUNDINGS_OF_TWO, Criterion
from vitconv.parity.lockstep import Staged, in_step

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from rich.console import Console, ConsoleOptions, RenderResult
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from vitconv.architecture import Architecture


#: Where a logarithmic axis of differences has the band for those that are 0: from, to. No difference is so small.
EQUAL = (1e-20, 1e-18)


_COMPARING = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread compares models, or reads one to convert it.

    While they are compared, models have hooks, and parameters of another dtype: two threads with the same model would
    wait for each other for ever, or take what is only there for the moment.
    """
    with _COMPARING:
        yield


@dataclass(frozen=True)
class Stage:
    """How far two models are apart after one stage of the computation.

    Attributes:
        name: ``"embeddings"``, ``"blocks.0"``…, ``"norm"``, and ``"logits"`` or ``"features"``.
        max_abs, mean_abs: the largest and the mean |Δ| between the two models.
        scale: what ``max_abs`` is compared with: see :mod:`vitconv.parity.criteria`.
        cosine: of the two models' values, all of them as one vector; 1 means the same direction.
        error: what the criterion measures. In float64 and float32 ``max_abs / scale``; in low precision the
            converted model's mean distance from the float64 reference, divided by the original's.
        limit: the largest ``error`` allowed.
        finite: the share of the values that are neither NaN nor infinite. The other values must be the same in both
            models, and the other attributes leave them out.
    """

    name: str
    max_abs: float
    mean_abs: float
    scale: float
    cosine: float
    error: float
    limit: float
    finite: float = 1.0

    @property
    def relative(self) -> float:
        """``max_abs`` as a share of ``scale``."""
        return self.max_abs / self.scale if self.scale else self.max_abs

    @property
    def cells(self) -> tuple[str, ...]:
        """The name and the rounded numbers, as a row of a table."""
        numbers = (self.max_abs, self.mean_abs, self.scale, 1 - self.cosine, self.error, self.limit)
        return (self.name, *(f"{number:.2g}" for number in numbers))

    @property
    def within(self) -> bool:
        """Whether the criterion holds; never for NaN."""
        return self.error <= self.limit


@dataclass(frozen=True, repr=False)
class Comparison:
    """All stages in one dtype.

    Attributes:
        dtype: one of :data:`DTYPES`.
        tokens: how many tokens of an image went through the blocks; ``None`` for all.
        stages: in the order of the computation.
        top1, topk: the share of the batch with the same best class, and with the same best ``k`` as a set
            (k is 5, or the number of classes if that is less); 1 for a model without classes.
    """

    dtype: str
    stages: tuple[Stage, ...]
    top1: float
    topk: float
    tokens: int | None = None

    def __repr__(self) -> str:
        return f"Comparison({self.title}, {len(self.stages)} stages)"

    @property
    def criterion(self) -> Criterion:
        """What counts as equal in this dtype."""
        return CRITERIA[self.dtype]

    @property
    def same_bits(self) -> bool:
        """Whether every stage is equal bit for bit."""
        return all(stage.max_abs == 0 for stage in self.stages)

    @property
    def verdict(self) -> str:
        """Equal bit for bit, within the criterion, or where not, in a few words."""
        if self.diverges_at:
            return f"diverges at {self.diverges_at.name}"
        return "equal bit for bit" if self.same_bits else "within its criterion"

    @property
    def outcome(self) -> str:
        """How close the models came at the last stage, in a line for people."""
        last = self.stages[-1]
        bits = "equal bit for bit" if self.same_bits else f"|Δ| ≤ {last.relative:.0e} of their scale"
        return f"{self.dtype}: {last.name} {bits}{self.of_tokens}"

    @property
    def of_tokens(self) -> str:
        """How many tokens were compared, if not all, as the end of a line."""
        return f", with {self.tokens} tokens of the picture" if self.tokens else ""

    @property
    def title(self) -> str:
        """The dtype and the verdict, as the title of a table."""
        return f"{self.dtype}: {self.verdict}"

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns of a table whose rows are :attr:`Stage.cells`."""
        return ("stage", "max |Δ|", "mean |Δ|", "scale", "1 - cosine", self.criterion.error_name, "limit")

    @property
    def agreement(self) -> str:
        """How often both models choose the same classes, in a few words."""
        return f"same best class: {self.top1:.0%} of the batch, same best five: {self.topk:.0%}"

    @property
    def diverges_at(self) -> Stage | None:
        """The first stage that breaks its criterion."""
        return next((stage for stage in self.stages if not stage.within), None)


@dataclass(frozen=True, repr=False)
class Parity:
    """How far a timm model and a Transformers model are apart, dtype by dtype and stage by stage.

    It is a table with ``rich.print`` and in a notebook, a figure with :meth:`plot`, and JSON with :meth:`to_dict`.
    """

    comparisons: tuple[Comparison, ...]

    @property
    def matches(self) -> bool:
        """Whether every stage meets its criterion in every dtype."""
        return all(comparison.diverges_at is None for comparison in self.comparisons)

    def __getitem__(self, dtype: str) -> Comparison:
        return {comparison.dtype: comparison for comparison in self.comparisons}[dtype]

    def __add__(self, other: Parity) -> Parity:
        return Parity(self.comparisons + other.comparisons)

    def assert_match(self) -> None:
        """Raise :class:`~vitconv.errors.ParityError`, naming the first stage that diverges, unless they match."""
        for comparison in self.comparisons:
            stage = comparison.diverges_at
            if stage is None:
                continue
            reason = comparison.criterion.explain(stage.error, stage.limit)
            raise ParityError(
                f"The models diverge at `{stage.name}` in {comparison.dtype}: {reason}.",
                "Do not use the converted model; report the architecture and this message.",
                stage=stage.name,
            )

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data, for JSON."""
        return {
            comparison.dtype: {
                "matches": comparison.diverges_at is None,
                "same_bits": comparison.same_bits,
                "top1": comparison.top1,
                "topk": comparison.topk,
                "tokens": comparison.tokens,
                "stages": [asdict(stage) for stage in comparison.stages],
            }
            for comparison in self.comparisons
        }

    def __repr__(self) -> str:
        return f"Parity({', '.join(f'{c.dtype}: {c.verdict}' for c in self.comparisons)})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        for comparison in self.comparisons:
            table = Table(title=comparison.title, title_justify="left", box=None, pad_edge=False)
            for heading in comparison.headings:
                table.add_column(heading, justify="left" if heading == "stage" else "right")
            for stage in comparison.stages:
                table.add_row(*stage.cells, style=None if stage.within else "red")
            yield table
            yield f"{comparison.agreement}\n"

    def _repr_markdown_(self) -> str:
        """The same tables, for notebooks; a stage that breaks its criterion is in bold."""
        parts = []
        for comparison in self.comparisons:
            rows = [s.cells if s.within else tuple(f"**{cell}**" for cell in s.cells) for s in comparison.stages]
            headings = [heading.replace("|", "&#124;") for heading in comparison.headings]
            parts += [f"**{comparison.title}{comparison.of_tokens}**", table(headings, rows), comparison.agreement]
        return "\n\n".join(parts)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the largest relative |Δ| by stage on a logarithmic axis, a line for each dtype (needs matplotlib).

        A stage without any difference has no logarithm: its point lies in the band "equal" below the axis, where each
        dtype has a line of its own.

        Raises:
            InputError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "matplotlib":
                raise  # matplotlib is installed, and a package that it needs is missing
            raise InputError(
                "Drawing needs matplotlib, which is not installed.", f"Install it with {how_to_install('plot')}."
            ) from error

        with plt.style.context("vitconv.figures"):
            stages = max((len(comparison.stages) for comparison in self.comparisons), default=0)
            axes = axes or plt.subplots(figsize=(max(5.2, 1.7 + 0.18 * stages), 3.8))[1]  # each has a name below
            bottom, top = EQUAL
            colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
            for place, comparison in enumerate(self.comparisons):
                share = (place + 1) / (len(self.comparisons) + 1)
                equal = top ** (1 - share) * bottom**share
                heights = [max(stage.relative, top) if stage.max_abs else equal for stage in comparison.stages]
                names = [stage.name for stage in comparison.stages]
                # Also where two lines cross or coincide, the mark of each is seen.
                color, size = colors[place % len(colors)], 5 if place else 10
                (line,) = axes.plot(names, heights, color=color, markersize=size, label=comparison.dtype)
                line.set(marker="osD^v"[place % 5], markerfacecolor=color if place else "none")
                if not comparison.criterion.uses_reference:
                    limits = [stage.limit for stage in comparison.stages]
                    axes.plot(names, limits, color=color, linestyle=":", linewidth=1)
            axes.axhspan(bottom, top, color=colors[2], alpha=0.15, linewidth=0)
            axes.set(yscale="log", ylim=(bottom, 10), ylabel="largest |Δ| / scale")
            axes.set_yticks(
                [(bottom * top) ** 0.5, *(10.0**power for power in range(-16, 1, 4))],
                ["equal (Δ = 0)", *(f"1e{power}" if power else "1" for power in range(-16, 1, 4))],
            )
            axes.minorticks_off()
            axes.tick_params(axis="x", rotation=90)
            axes.legend(title="dotted: the limit")
        return axes


@one_at_a_time()
def compare(
    timm_model: nn.Module,
    hf_model: PreTrainedModel,
    pixel_values: Tensor,
    *,
    dtypes: Sequence[str] = ("float64", "float32"),
    device: str | torch.device = "cpu",
    tokens: int | None = None,
) -> Parity:
    """Compare the two models stage by stage on one batch of pixels.

    Both run their ordinary ``forward`` in evaluation mode, in step, and each stage is compared as soon as both have
    reached it: no more than one stage's values are held. Afterwards the models have the dtype, mode and device that
    they had before. In low precision a float64 copy of the timm model runs along as the reference.

    Some layers compute in float32 whatever the dtype; in float64 they are made to compute in float64, too: see
    :mod:`vitconv.parity.float64`.

    Args:
        timm_model: a ``timm`` VisionTransformer.
        hf_model: ``ViTForImageClassification`` or ``ViTModel``.
        pixel_values: shape (batch, channels, height, width), normalised.
        dtypes: any of :data:`DTYPES`; ``"tf32"`` is float32 on a GPU with TF32 matrix products. In float64, a twin
            with folded weights differs by their rounding to the dtype that it was made in: compare the two in that
            dtype, or make the twin of ``timm_model.double()``.
        device: where to compute.
        tokens: how many tokens of each image to send through the blocks, evenly spread over the picture and with all
            that stand before its patches; ``None`` for all. Only for models whose blocks treat all tokens alike:
            :func:`vitconv.parity.verification.treats_tokens_alike`.

    Raises:
        InputError: no dtype is given, or an unknown one; there is no such device, or TF32 is asked for without a GPU;
            the pixels are not a batch of finite numbers; or one is none of the models.
        ParityError: the two models do not have the same stages.

    Example:
        >>> import timm, torch
        >>> from vitconv.convert import to_huggingface
        >>> model = timm.create_model("vit_tiny_patch16_224")
        >>> compare(model, to_huggingface(model), torch.randn(1, 3, 224, 224), dtypes=["float64"]).matches
        True
    """
    unknown = [dtype for dtype in dtypes if dtype not in DTYPES]
    if unknown or not dtypes:
        what = f"There is no dtype '{unknown[0]}'" if unknown else "No dtype is given"
        raise InputError(f"{what} to compare in.", f"Choose from {', '.join(DTYPES)}.")
    check_is_model(timm_model)
    if type(hf_model).__name__ not in CLASSES:
        raise InputError(
            f"vitconv does not compare a {type(hf_model).__name__}.",
            f"Pass one of {', '.join(CLASSES)}: of one that is compiled or wrapped, the model inside.",
        )
    if not hf_model.config.return_dict:
        raise InputError(
            f"The {type(hf_model).__name__} returns a tuple, as `return_dict` in its configuration is False.",
            "Set `model.config.return_dict = True`.",
        )
    _check_pixels(pixel_values)
    check_device(str(device))
    return Parity(tuple(_compare(timm_model, hf_model, pixel_values, dtype, str(device), tokens) for dtype in dtypes))


def compare_on_noise(
    timm_model: nn.Module, hf_model: PreTrainedModel, architecture: Architecture, device: str | torch.device
) -> Parity:
    """Compare models in memory, in float32, on an image of noise of the architecture's size.

    Raises:
        ArchitectureError: a model does not run on it.
    """
    import torch

    shape = (1, architecture.num_channels, *architecture.image_size)
    pixels = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    try:
        return compare(timm_model, hf_model, pixels, dtypes=("float32",), device=str(device))
    except VitconvError:
        raise
    except Exception as error:  # a model that was edited may raise anything
        raise ArchitectureError(
            f"The models cannot be compared, because one does not run: {type(error).__name__}: {str(error)[:200]}.",
            "Check that your model runs on an image of its size. If it does, pass verify=False.",
        ) from error


def _check_pixels(pixels: Tensor) -> None:
    """Raise :class:`InputError` for pixels that show nothing: of NaN, both models make NaN, whatever they compute."""
    import torch

    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or not pixels.numel() or pixels.is_meta:
        what = f"of shape {tuple(pixels.shape)}" if isinstance(pixels, torch.Tensor) else f"a {type(pixels).__name__}"
        raise InputError(
            f"The pixels are {what}, not a batch of images.", "Pass a tensor of (batch, channels, height, width)."
        )
    if not pixels.isfinite().all():
        raise InputError("The pixels are not finite: both models make NaN of them.", "Check how they are made.")


def check_device(device: str) -> None:
    """Raise :class:`InputError` if there is no such device here, or it computes nothing, as torch's ``meta``."""
    import torch

    try:
        (torch.ones(1, device=device) + 1).item()
    except Exception as error:  # torch has no common one: some kinds of devices look for a module of their own
        raise InputError(
            f"There is no device '{device}' here.", "Compute on 'cpu', or on a device that exists."
        ) from error


def _compare(
    timm_model: Any, hf_model: PreTrainedModel, pixels: Tensor, dtype: str, device: str, tokens: int | None
) -> Comparison:
    criterion = CRITERIA[dtype]
    run = functools.partial(_run, timm_model, hf_model, pixels, dtype, device, tokens)
    found = run(with_reference=criterion.uses_reference)
    if criterion.accumulates and found.diverges_at is not None:
        return run(with_reference=True)  # is it more than what the timm model itself is off?
    return found


def _run(
    timm_model: Any,
    hf_model: PreTrainedModel,
    pixels: Tensor,
    dtype: str,
    device: str,
    tokens: int | None,
    *,
    with_reference: bool,
) -> Comparison:
    import torch

    kind, criterion = _kind(dtype, device), CRITERIA[dtype]
    architecture, family = read(timm_model), CLASSES[type(hf_model).__name__]
    if family.class_name(architecture) != type(hf_model).__name__:
        raise ParityError(
            f"The timm model converts to {family.class_name(architecture)}, and the other is a "
            f"{type(hf_model).__name__}.",
            "Compare two models of the same architecture.",
            stage="output",
        )
    with ExitStack() as stack:
        stack.enter_context(_tf32(dtype == "tf32"))
        reference = copy.deepcopy(timm_model) if with_reference else None
        runs = [] if reference is None else [(reference, torch.float64, _stages(reference, "blocks", "norm"))]
        runs.append((timm_model, kind, _stages(timm_model, "blocks", "norm")))
        runs.append((hf_model, kind, _stages(hf_model, *family.stages(architecture, installed_dialect()))))
        for model, model_dtype, modules in runs:
            stack.enter_context(_moved(model, modules.blocks, model_dtype, device))
        choose = functools.partial(_spread, count=tokens, prefix=timm_model.num_prefix_tokens) if tokens else None
        # Where one norms before the pooling and the other after it, the norms see other tokens: the rest is compared.
        both_norm = all(modules.norm is not None for _, _, modules in runs)
        staged = [
            _staged(model, modules, pixels.to(device=device, dtype=model_dtype), both_norm, choose)
            for model, model_dtype, modules in runs
        ]
        stages: list[Stage] = []
        for names, values in in_step(staged):
            if len(set(names)) > 1:
                raise ParityError(
                    f"One model is at `{names[0]}` where the other is at `{names[-1]}`.",
                    "Compare two models of the same depth and kind.",
                    stage=names[0],
                )
            if names[0] == "output":
                *references, output = values
                values = [*references, family.output(architecture, output)]
                is_logits = family.output_expression(architecture) == family.logits
                stages.append(measure_stage("logits" if is_logits else "features", values, criterion, stages))
            else:
                *references, actual = values
                if actual.ndim > references[-1].ndim:  # patches in rows and columns
                    actual = actual.flatten(1, 2)
                values = [*references, actual[:, family.placeholders(architecture) :]]
                if tokens and not stages and tokens >= values[0].shape[1]:
                    tokens = None  # that is all of them
                stages.append(measure_stage(names[0], values, criterion, stages))
    return Comparison(dtype, tuple(stages), *_agreement(values[-2], values[-1], stages[-1].name), tokens)


@one_at_a_time()
def compare_outputs(
    timm_model: nn.Module, wrapper: PreTrainedModel, pixels: Tensor, *, dtypes: Sequence[str], device: str = "cpu"
) -> Parity:
    """Compare what a timm model and a ``TimmWrapper`` return: both run the same code, so every bit must be equal.

    Raises:
        InputError: there is no such device, or TF32 is asked for without a GPU.
    """
    import torch

    check_device(device)
    comparisons = []
    for dtype in dtypes:
        kind = _kind(dtype, device)
        values = pixels.to(device=device, dtype=kind)
        with _tf32(dtype == "tf32"), torch.no_grad():
            with _moved(timm_model, [], kind, device):
                expected = timm_model(values)
            with _moved(wrapper, [], kind, device):
                output = wrapper(values)
        name, found = ("logits", output.logits) if "logits" in output else ("features", output.pooler_output)
        stage = measure_stage(name, [expected, found], Criterion(tolerance=0.0), [])
        comparisons.append(Comparison(dtype, (stage,), *_agreement(expected, found, name)))
    return Parity(tuple(comparisons))


def _kind(dtype: str, device: str) -> torch.dtype:
    """torch's dtype for one of :data:`DTYPES`."""
    import torch

    if dtype == "tf32" and not device.startswith("cuda"):
        raise InputError("TF32 is a mode of GPUs.", "Compare in float32, or on a GPU.")
    return torch.float32 if dtype == "tf32" else getattr(torch, dtype)


def _spread(total: int, count: int, prefix: int) -> list[int]:
    """The positions of ``count`` of ``total`` tokens: evenly spread patches, after the ``prefix`` other tokens."""
    patches = total - prefix
    chosen = min(max(count - prefix, 1), patches)
    return [*range(prefix), *(prefix + patches * i // chosen for i in range(chosen))]


def measure_stage(name: str, values: list[Tensor], criterion: Criterion, before: Sequence[Stage]) -> Stage:
    """Measure how far the models are apart at one stage.

    Args:
        name: the stage.
        values: those of the float64 reference (if it runs along), the timm model and the converted model.
        criterion: how to measure the error.
        before: the stages before.

    Raises:
        ParityError: the values have different shapes.
    """
    import torch

    *reference, original, converted = (value.double() for value in values)
    if original.shape != converted.shape:
        raise ParityError(
            f"At `{name}` one model has shape {list(original.shape)}, the other {list(converted.shape)}.",
            "Compare two models of the same architecture.",
            stage=name,
        )
    finite = torch.stack([value.isfinite() for value in (*reference, original, converted)]).all(0)
    # NaN and infinities, which weights may hold, must be the same in both; the rest is measured.
    same = (original == converted) | (original.isnan() & converted.isnan())
    broken = not (finite | same).all().item()
    original, converted, *reference = (torch.where(finite, value, 0.0) for value in (original, converted, *reference))
    difference = (converted - original).abs()
    max_abs, scale = difference.max().item(), original.abs().max().item()
    if before:
        scale = max(scale, before[-1].scale / 100)
    limit = criterion.limit(len(before))
    if broken:
        max_abs = error = math.nan
    elif criterion.uses_reference:
        far = (converted - reference[0]).abs().mean().item()
        near = (original - reference[0]).abs().mean().item()
        # An original without any rounding leaves none to the converted model either.
        error = far / near if near else math.inf if far else 0.0
    else:
        error = max_abs / scale if scale else max_abs
        if reference and scale:
            limit = max(limit, ROUNDINGS_OF_TWO * (original - reference[0]).abs().max().item() / scale)
    mean_abs, cosine = difference.mean().item(), _cosine(original, converted)
    return Stage(name, max_abs, mean_abs, scale, cosine, error, limit, finite.double().mean().item())


def _cosine(one: Tensor, other: Tensor) -> float:
    """The cosine of the angle between two tensors, exactly 1 for equal ones: of unit vectors, 1 - |a - b|² / 2."""
    lengths = one.norm(), other.norm()
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return 1 - (one / lengths[0] - other / lengths[1]).square().sum().item() / 2


def _agreement(expected: Tensor, actual: Tensor, name: str) -> tuple[float, float]:
    if name != "logits":
        return 1.0, 1.0
    k = min(5, expected.shape[-1])
    one, other = (values.topk(k).indices for values in (expected, actual))
    top1 = (one[:, 0] == other[:, 0]).double().mean().item()
    topk = (one.sort().values == other.sort().values).all(-1).double().mean().item()
    return top1, topk


class _Stages(NamedTuple):
    """The modules whose values are compared; the norm is ``None`` where there is none."""

    blocks: list[nn.Module]
    norm: nn.Module | None


def _stages(model: Any, blocks: str, norm: str | None) -> _Stages:
    modules = dict(model.named_modules())
    found = modules.get(norm) if norm else None
    return _Stages(list(modules[blocks]), None if type(found).__name__ == "Identity" else found)


def _staged(
    model: nn.Module,
    modules: _Stages,
    pixels: Tensor,
    with_norm: bool,
    choose: Callable[[int], list[int]] | None = None,
) -> Staged:
    """The model's ordinary forward pass, announcing its stages: what enters the blocks, leaves each, and the norm.

    ``choose`` gets the number of tokens and returns the positions of those that go into the blocks.
    """
    import torch

    from vitconv.parity.float64 import float64_throughout

    def run(arrive: Callable[[str, Any], None]) -> Any:
        def after(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: arrive(name, output[0] if isinstance(output, tuple) else output)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tokens = args[0] if args else kwargs["hidden_states"]
            arrive("embeddings", tokens)
            if choose is None:
                return None
            few = tokens[:, choose(tokens.shape[1])]
            return ((few, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": few})

        blocks, norm = modules
        handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
        handles += [block.register_forward_hook(after(f"blocks.{i}")) for i, block in enumerate(blocks)]
        if with_norm and norm is not None:
            handles.append(norm.register_forward_hook(after("norm")))
        try:
            with torch.no_grad(), float64_throughout(model) if pixels.dtype == torch.float64 else nullcontext():
                return model(pixels)
        finally:
            for handle in handles:
                handle.remove()

    return run


@contextmanager
def _moved(model: nn.Module, blocks: Sequence[nn.Module], dtype: torch.dtype, device: str) -> Iterator[None]:
    """The model in evaluation mode, in another dtype and on another device, and afterwards exactly as it was.

    A block's parameters are there only while it computes: of a whole model in float64, the memory alone would take the
    operating system longer to find than the blocks take to compute with a few tokens.
    """

    def move(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = parameter.data.to(device=device, dtype=dtype)

    def enter(block: nn.Module, inputs: Any) -> None:
        move(block.parameters())

    def leave(block: nn.Module, inputs: Any, output: Any) -> None:
        for parameter in block.parameters():
            parameter.data = original[parameter]

    in_blocks = {parameter for block in blocks for parameter in block.parameters()}
    handles = []
    before = [(tensor, tensor.data, tensor.grad) for tensor in model.parameters()]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    training = {module: module.training for module in model.modules()}
    original = {tensor: data for tensor, data, _ in before}
    try:
        for tensor, _, _ in before:
            tensor.grad = None
        model.eval()
        move(parameter for parameter in model.parameters() if parameter not in in_blocks)
        for module, name, buffer in buffers:
            if buffer is not None:
                module._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else None)
        for block in blocks:
            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for tensor, data, grad in before:
            tensor.data, tensor.grad = data, grad
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Switch TF32 on or off for matrix products and convolutions (whose default is on), and back."""
    import torch

    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = wanted
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
