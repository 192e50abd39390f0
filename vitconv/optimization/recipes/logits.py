"""The module that programs are made of: from pixels to logits, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitconv.errors import InputError
from vitconv.mapping import LOADED_CLASSES
from vitconv.optimization.recipes.quiet import without_noise
from vitconv.optimization.recipes.recipe import any_batch, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Logits(nn.Module):
    """A Transformers model with one input and one output, both in float32 whatever the model computes in."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._output = LOADED_CLASSES[type(model).__name__].logits
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Float32 (batch, channels, height, width) → float32 (batch, classes)."""
        return self.model(pixel_values=pixel_values.to(self.model.dtype))[self._output].float()


def compile_ahead(model: PreTrainedModel, file: Path) -> None:
    """Compile a model with AOTInductor for the processor or the GPU that it is on.

    Args:
        model: in any floating-point dtype.
        file: the package to write, ``.pt2``.

    Raises:
        InputError: there is no C++ compiler.
    """
    _check_compiler()
    pixels = {"pixel_values": sample(model)["pixel_values"].to(model.device)}
    settings: dict[str, Any] = {
        "freezing": True,  # weights are brought into the processor's order now, not at each call
        "cpp.dynamic_threads": True,  # else as many threads as this process has now, for ever
    }
    with without_noise(), torch.no_grad():
        program = torch.export.export(Logits(model), (), pixels, dynamic_shapes=any_batch())
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)


def _check_compiler() -> None:
    """Raise :class:`InputError` if AOTInductor has nothing to compile with."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError(
            "This recipe needs a C++ compiler, and none was found.",
            "Install one (apt install g++), or name yours in the environment variable CXX.",
        ) from None
