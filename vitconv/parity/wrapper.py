"""Prove a folder in which Transformers runs timm's own model (``TimmWrapper``).

The parts are those of :mod:`vitconv.parity.verification`: the settings, the bytes, the pixels and the numbers. As both
models run the same code of timm's, nothing in between is compared, but every parameter and buffer is, and what they
return must be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.architecture import WrappedArchitecture
from vitconv.checkpoints.checkpoint import CONFIG_FILE, read_state_dict, widest_dtype
from vitconv.errors import ParityError, first_few
from vitconv.mapping.wrapper import WRAPPER
from vitconv.models.data_config import DataConfig, makes_pixels
from vitconv.models.huggingface import load_config, load_folder
from vitconv.models.pixels import probe_images, probe_pixels, timm_pixels
from vitconv.models.timm import make_buffers
from vitconv.models.wrapper import wrapper_config
from vitconv.parity.comparison import compare_outputs
from vitconv.parity.verification import (
    Verification,
    check_bytes,
    check_files,
    check_timm_processor,
    compare_settings,
    load_weights,
    nonfinite_values,
    nonfinite_weights,
    usual_dtype,
    verify_bytes,
    verify_loaded,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

COMPARED = (
    "config.json; every parameter and buffer of timm's model and of the timm model that Transformers builds from the "
    "folder; the pixels of the folder's image processor and timm's; what both models return for them and for noise"
)


def verify_wrapper(
    folder: Path,
    state_dict: Mapping[str, Tensor],
    timm_model: nn.Module,
    architecture: WrappedArchitecture,
    data: DataConfig,
    images: Sequence[Image],
    *,
    labels: Sequence[str] | None = None,
    probes: bool = False,
    dtypes: Sequence[str] = (),
    device: str = "cpu",
    on_step: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Prove ``folder``, or raise :class:`~vitconv.errors.ParityError` naming what differs.

    Args:
        folder, state_dict, timm_model, data, images, labels, dtypes, device, on_step: as for
            :func:`vitconv.parity.verification.verify_folder`.
        architecture: what the weights were converted as.
        probes: also compare the pixels of images of every kind of shape.
    """
    import torch

    on_step("Reading the folder back")
    check_files(folder)
    written = read_state_dict(folder)
    elements = verify_bytes(written, state_dict, architecture, WRAPPER.name)
    check_config(folder, architecture, data, labels)
    wrapper = load_folder(folder)
    verify_loaded(wrapper, written, state_dict, architecture, WRAPPER.name)
    # If the folder's weights are rounded, timm's model gets the same: bytes of both are compared above.
    widest = widest_dtype(written)
    rounded = {name: one.to(widest) if one.is_floating_point() else one for name, one in state_dict.items()}
    load_weights(timm_model, rounded)
    make_buffers(timm_model)
    timm_model.eval().to(widest)  # the constants, too
    check_buffers(timm_model, wrapper.timm_model)

    on_step("Comparing the pixels")
    shown = [*images, *(probe_images(data) if probes and makes_pixels(data) else [])]
    same_pixels = check_timm_processor(folder, data, shown, CONFIG_FILE)
    values = probe_pixels(data) if probes else probe_pixels(data)[:1]
    if makes_pixels(data):
        values = torch.cat([torch.stack([timm_pixels(image, data) for image in images]), values])
    chosen = dict.fromkeys(["float64", *(dtypes or (usual_dtype(widest), "float32"))])
    on_step(f"Comparing the models in {' and '.join(chosen)}")
    parity = compare_outputs(timm_model, wrapper, values, dtypes=list(chosen), device=device)
    parity.assert_match()
    return Verification(
        elements=elements,
        same_pixels=same_pixels,
        pixel_notes=(),
        parity=parity,
        warnings=(*nonfinite_weights(state_dict), *nonfinite_values(parity)),
        compared=COMPARED,
    )


def check_config(
    folder: Path, architecture: WrappedArchitecture, data: DataConfig, labels: Sequence[str] | None
) -> None:
    """Raise :class:`~vitconv.errors.ParityError` unless ``config.json`` says what a conversion writes.

    Args:
        labels: the class names in order; ``None`` if any will do.
    """
    config = load_config(folder)
    names = [config.id2label[index] for index in sorted(config.id2label)]
    expected = wrapper_config(architecture, labels if labels is not None else names, data)
    if labels is not None and names != list(labels):
        index = next(i for i in range(max(len(names), len(labels))) if names[i : i + 1] != list(labels[i : i + 1]))
        raise ParityError(
            f"The labels in config.json are not those of the classes: class {index} is "
            f"{first_few(map(repr, names[index : index + 1])) or 'missing'} instead of "
            f"{first_few(map(repr, labels[index : index + 1])) or 'none'}.",
            "Convert the source again with these labels, or pass those that the folder was made with (--labels FILE).",
            stage="labels",
        )
    whole: Any = type(config).from_dict(expected)
    compare_settings(config.to_dict(), whole.to_dict(), "")


def check_buffers(timm_model: nn.Module, wrapped: nn.Module) -> None:
    """Raise :class:`~vitconv.errors.ParityError` unless both have the same constants, also those in no file."""
    check_bytes(*(dict(model.named_buffers()) for model in (timm_model, wrapped)))
