"""Run a timm model and its Transformers twin on the same pixels and say where, and by how much, they differ.

The criterion is float64, where rounding is about 1e-16 and a real error is not: a right conversion differs by
1e-13 of the values' scale or less, a wrong epsilon or activation by 1e-4. In float32 the two run the same sums in
the same order on most CPUs, so that the results are usually equal bit for bit; where a kernel adds in another
order they differ by rounding, and LayerScale folded into weights rounds once more.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitconv.errors import ParityError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: The largest |Δ| allowed, as a share of the stage's largest value, by dtype.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


@dataclass(frozen=True)
class Stage:
    """How far two models are apart after one stage of the computation.

    Attributes:
        name: ``"embeddings"``, ``"blocks.0"``…, ``"norm"``, and ``"logits"`` or ``"features"``.
        max_abs: the largest |Δ|.
        mean_abs: the mean |Δ|.
        scale: the largest absolute value in the timm model.
    """

    name: str
    max_abs: float
    mean_abs: float
    scale: float

    @property
    def relative(self) -> float:
        """``max_abs`` as a share of ``scale``."""
        return self.max_abs / self.scale if self.scale else self.max_abs


@dataclass(frozen=True)
class Comparison:
    """All stages in one dtype."""

    dtype: str
    stages: tuple[Stage, ...]
    same_answer: bool

    @property
    def same_bits(self) -> bool:
        """Whether every stage is equal bit for bit."""
        return all(stage.max_abs == 0 for stage in self.stages)

    @property
    def tolerance(self) -> float:
        """The largest relative difference that rounding explains in this dtype."""
        return TOLERANCE[self.dtype]

    @property
    def diverges_at(self) -> Stage | None:
        """The first stage beyond the tolerance (NaN is beyond it)."""
        return next((stage for stage in self.stages if not stage.relative <= self.tolerance), None)


@dataclass(frozen=True)
class Parity:
    """How far a timm model and a Transformers model are apart, stage by stage and dtype by dtype."""

    comparisons: tuple[Comparison, ...]

    @property
    def matches(self) -> bool:
        """Whether every stage is within tolerance in every dtype."""
        return all(comparison.diverges_at is None for comparison in self.comparisons)

    def __getitem__(self, dtype: str) -> Comparison:
        return next(comparison for comparison in self.comparisons if comparison.dtype == dtype)

    def assert_match(self) -> None:
        """Raise :class:`~vitconv.errors.ParityError`, naming the first stage that diverges, unless they match."""
        for comparison in self.comparisons:
            stage = comparison.diverges_at
            if stage is not None:
                raise ParityError(
                    f"The models diverge at `{stage.name}` in {comparison.dtype}: |Δ| is {stage.relative:.1e} of the "
                    f"values' scale, and rounding explains {comparison.tolerance:.0e}.",
                    "Do not use the converted model; report the architecture and this message.",
                )

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, for JSON."""
        return {
            comparison.dtype: {
                "tolerance": comparison.tolerance,
                "matches": comparison.diverges_at is None,
                "same_bits": comparison.same_bits,
                "same_answer": comparison.same_answer,
                "stages": [
                    {"name": s.name, "max_abs": s.max_abs, "mean_abs": s.mean_abs, "scale": s.scale}
                    for s in comparison.stages
                ],
            }
            for comparison in self.comparisons
        }


def compare(
    timm_model: nn.Module,
    hf_model: PreTrainedModel,
    pixel_values: Tensor,
    *,
    dtypes: tuple[str, ...] = ("float64", "float32"),
    device: str | torch.device = "cpu",
) -> Parity:
    """Compare the two models stage by stage on one batch of pixels.

    Both run their ordinary ``forward`` in evaluation mode, side by side, and each stage is compared as soon as
    both have reached it, so that only one stage's values are held. The models come back in the dtype, mode and on
    the device they came in.

    Args:
        timm_model: a ``timm`` VisionTransformer.
        hf_model: ``ViTForImageClassification`` or ``ViTModel``.
        pixel_values: shape (batch, channels, height, width), normalised.
        dtypes: what to compute in; ``"float64"`` and ``"float32"``.
        device: where to compute.
    """
    import torch

    comparisons = []
    for dtype in dtypes:
        with _moved(timm_model, dtype, device), _moved(hf_model, dtype, device), torch.no_grad():
            pixels = pixel_values.to(device=device, dtype=getattr(torch, dtype))
            comparisons.append(_run(timm_model, hf_model, pixels, dtype))
    return Parity(tuple(comparisons))


@contextmanager
def _moved(model: nn.Module, dtype: str, device: str | torch.device) -> Iterator[None]:
    """The model in evaluation mode, in another dtype and place, and afterwards exactly as it was."""
    import torch

    before = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    training = model.training
    model.eval().to(device=device, dtype=getattr(torch, dtype))
    try:
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
        model.train(training)


def _run(timm_model: nn.Module, hf_model: PreTrainedModel, pixels: Tensor, dtype: str) -> Comparison:
    # The timm model runs in a thread of its own and waits in each hook until the other has come as far: two
    # ordinary forward passes in step, with no more than one stage's values waiting.
    reached: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    stages: list[Stage] = []
    timm_modules, hf_modules = _timm_stages(timm_model), _hf_stages(hf_model)
    # Where timm norms after the pooling, the two norms see different tokens and the answer alone is compared.
    shared = timm_modules.keys() & hf_modules.keys()

    def run_timm() -> None:
        import torch

        try:
            with torch.no_grad(), _hooked(timm_modules, shared, lambda name, value: reached.put((name, value))):
                reached.put(("output", timm_model(pixels)))
        except BaseException as error:
            reached.put(("error", error))

    def reference(expected: str) -> Tensor:
        name, value = reached.get()
        if name == "error":
            raise value
        if name != expected:
            raise ParityError(
                f"The timm model is at `{name}` where the other is at `{expected}`.",
                "Compare models of the same architecture.",
            )
        return value

    thread = threading.Thread(target=run_timm, daemon=True)
    thread.start()
    with _hooked(hf_modules, shared, lambda name, value: stages.append(_stage(name, reference(name), value))):
        output = hf_model(pixel_values=pixels)
    expected = reference("output")
    thread.join()
    actual, name = _answer(output, expected)
    stages.append(_stage(name, expected, actual))
    same_answer = bool((actual.argmax(-1) == expected.argmax(-1)).all())
    return Comparison(dtype, tuple(stages), same_answer)


def _answer(output: Any, expected: Tensor) -> tuple[Tensor, str]:
    """The part of a Transformers output that corresponds to what timm returns."""
    if "logits" in output:
        return output.logits, "logits"
    if expected.ndim == 3:  # timm's global_pool=''
        return output.last_hidden_state, "features"
    pooled = output.pooler_output
    return (output.last_hidden_state[:, 0] if pooled is None else pooled), "features"


def _timm_stages(model: nn.Module) -> dict[str, nn.Module]:
    # `norm_pre` is an identity in every convertible model: what it returns is what enters the first block.
    norm = {} if _is_identity(model.norm) else {"norm": model.norm}
    return {"embeddings": model.norm_pre} | _blocks(model.blocks) | norm


def _hf_stages(model: PreTrainedModel) -> dict[str, nn.Module]:
    base = model.base_model
    layers = base.layers if hasattr(base, "layers") else base.encoder.layer
    return {"embeddings": base.embeddings} | _blocks(layers) | {"norm": base.layernorm}


def _blocks(modules: Any) -> dict[str, nn.Module]:
    return {f"blocks.{i}": module for i, module in enumerate(modules)}


def _is_identity(module: nn.Module) -> bool:
    return type(module).__name__ == "Identity"


@contextmanager
def _hooked(modules: dict[str, nn.Module], names: Set[str], call: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: call(name, output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items() if name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stage(name: str, expected: Tensor, actual: Tensor) -> Stage:
    difference = (actual.double() - expected.double()).abs()
    return Stage(name, difference.max().item(), difference.mean().item(), expected.abs().max().item())
