"""Build and load Transformers models, whichever transformers is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.checkpoints.checkpoint import CONFIG_FILE, read_state_dict
from vitconv.errors import CheckpointError, ParityError, VitconvError, WeightsError, first_few
from vitconv.files import MOST_TEXT, check_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


def build_model(config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """The model that ``config.architectures`` names, in evaluation mode.

    Args:
        config: a configuration that names its class.
        tensors: its parameters, in the installed transformers' own names; they are taken, not copied.
    """
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    _make_buffers(model)
    return model.eval()


def make_config(content: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration object of a ``config.json``'s contents."""
    import transformers

    return transformers.CONFIG_MAPPING[content["model_type"]](
        **{name: value for name, value in content.items() if name != "model_type"}
    )


def _make_buffers(model: PreTrainedModel) -> None:
    """Give a model that was built without weights the constants that no file holds, such as rotary frequencies.

    They are those of a model of one block.
    """
    missing = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not missing:
        return
    content = model.config.to_dict()
    for part in (content, content.get("vision_config", {})):
        part["num_hidden_layers"] = 1
        for which in ("stage_names", "out_features", "out_indices"):  # of all blocks
            part.pop(which, None)
    buffers = dict(type(model)(type(model.config).from_dict(content)).named_buffers())
    for name in missing:
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._buffers[leaf] = buffers[name]


def load_config(folder: Path) -> PreTrainedConfig:
    """Load a folder's ``config.json``.

    Raises:
        CheckpointError: it is missing, or the class is not one that vitconv converts to.
        ParityError: it has a setting that changes what Transformers loads, or in which form it returns the outputs.
    """
    import transformers

    for file in sorted(folder.glob("*.json")):  # whichever of them Transformers reads
        check_file(file, "file", most=MOST_TEXT, error=CheckpointError)
    _refuse_many_labels(folder)
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each configuration class raises its own kinds of errors
        raise CheckpointError(f"'{folder}' has no config.json that Transformers can read.", _CONVERT) from error
    names = config.architectures
    if not isinstance(names, list) or len(names) != 1 or str(names[0]) not in mapping.CLASSES:
        raise CheckpointError(f"'{folder}' was not written by vitconv: its architecture is {shown(names)}.", _CONVERT)
    cls = getattr(transformers, names[0], None)
    if cls is None or not isinstance(config, cls.config_class):
        raise CheckpointError(
            f"The config.json in '{folder}' names {names[0]}, but its `model_type` '{config.model_type}' belongs to "
            "another class or to a newer transformers.",
            _CONVERT,
        )
    labels = config.id2label
    if (
        not isinstance(labels, dict)
        or sorted(labels) != list(range(len(labels)))
        or not all(isinstance(name, str) for name in labels.values())
    ):
        raise CheckpointError(
            f"`id2label` in the config.json in '{folder}' does not name the classes 0, 1, 2….", _CONVERT
        )
    _refuse_settings(config)
    return config


def _refuse_many_labels(folder: Path) -> None:
    """Raise :class:`CheckpointError` for so many classes that Transformers would need gigabytes for their names."""
    try:
        parts = [json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, RecursionError):
        return  # Transformers reports it
    while parts:
        part = parts.pop()
        if not isinstance(part, dict):
            continue
        count = part.get("num_labels")
        if isinstance(count, (int, float)) and count > _MOST_LABELS:
            raise CheckpointError(f"`num_labels` in the config.json in '{folder}' is {shown(count)}.", _CONVERT)
        parts += part.values()


#: More classes than any model has: the largest of timm's have some 22 thousand.
_MOST_LABELS = 10**6

_CONVERT = "Pass a folder that `vitconv convert` has written."


def _refuse_settings(config: PreTrainedConfig) -> None:
    """Raise :class:`ParityError` for a setting that keeps a model from running, or changes the form of its output."""
    import torch

    for name, usual in (
        ("quantization_config", (None,)),
        ("is_heterogeneous", (False,)),  # `per_layer_config`: layers that differ from each other
        ("return_dict", (True,)),
        ("output_hidden_states", (None, False, True)),
        ("output_attentions", (None, False, True)),
        ("dtype", (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)),
    ):
        found = getattr(config, name, usual[0])
        if found not in usual:
            what = "per_layer_config" if name == "is_heterogeneous" else name  # as the file calls it
            raise ParityError(
                f"`{what}` in config.json is {shown(found)}, with which Transformers does not load or run the model "
                "as it was trained.",
                "Remove this setting, or convert the source again.",
                stage="config",
            )
    for name in _SIZES:
        found = getattr(getattr(config, "vision_config", config), name, 1)
        if found is None and name == "intermediate_size":
            continue  # in some families it follows from the width
        sides = found if isinstance(found, (list, tuple)) and len(found) == 2 else [found]
        if not all(type(side) is int and side > 0 for side in sides):
            raise ParityError(
                f"`{name}` in config.json is {shown(found)}, which is not a size.",
                "Correct this setting, or convert the source again.",
                stage="config",
            )


_SIZES = (
    *("image_size", "patch_size", "num_channels", "hidden_size"),
    *("num_hidden_layers", "num_attention_heads", "intermediate_size"),
)


def shown(value: object) -> str:
    """A value from a file for people, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def load_folder(folder: Path) -> PreTrainedModel:
    """Load a folder with ``from_pretrained``, and refuse what Transformers only warns about.

    Raises:
        ParityError: Transformers cannot load it; or weights are missing, unexpected or misshapen.
    """
    import transformers

    config = load_config(folder)
    _check_depth(folder, config, len(read_state_dict(folder)))
    cls = getattr(transformers, config.architectures[0])
    try:
        with _quiet():
            model, info = cls.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # Transformers raises many kinds of errors for settings that it does not support
        raise ParityError(
            f"Transformers cannot load '{folder}': {first_line(error)}", _CONVERT_AGAIN, stage="loading"
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ParityError(
                f"Transformers reports {what.replace('_', ' ')} in the folder: {first_few(map(str, info[what]))}.",
                _CONVERT_AGAIN,
                stage="loading",
            )
    return model.eval()


_CONVERT_AGAIN = "Convert the source again. If the error remains, report the architecture and this message."


def _check_depth(folder: Path, config: PreTrainedConfig, tensors: int) -> None:
    """Raise :class:`CheckpointError` for more layers than tensors, before Transformers builds them all."""
    depth = getattr(getattr(config, "vision_config", config), "num_hidden_layers", 0)
    if depth > tensors:
        raise CheckpointError(
            f"The config.json in '{folder}' asks for {depth} layers, but the folder has only {tensors} tensors.",
            "Check that the folder is complete.",
        )


def first_line(error: Exception) -> str:
    """What an exception of another library says, not longer than a line or two."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


def load_for_timm(folder: Path, *, pooler: bool) -> tuple[PreTrainedModel, list[str]]:
    """Load any folder of a class that vitconv converts to timm; of a masked autoencoder, the encoder.

    Args:
        folder: with ``config.json`` and weights.
        pooler: load a ViT's pooler, if the file has one.

    Returns:
        the model, and the names of the tensors in its file that Transformers leaves out.

    Raises:
        CheckpointError: Transformers cannot load it, or it is of another class.
        WeightsError: weights are missing or misshapen.
        ParityError: it has a setting with which no model runs, or its weights are quantised.
    """
    import transformers

    stored = read_state_dict(folder)  # strictly, before anything else opens the file
    try:
        # Without the last argument, Transformers asks on the terminal if the folder has its own code.
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type in _ENCODERS:
            config = _encoder_config(config)
        _by_name(config)
        _refuse_settings(config)
        names = [name for name in config.architectures or [] if name in mapping.CLASSES]
        if not names:
            raise CheckpointError(
                f"'{folder}' holds {first_few(config.architectures or ['no named class'])}, which cannot be "
                "converted to timm.",
                f"Pass one of {', '.join(mapping.CLASSES)}.",
            )
        _check_depth(folder, config, len(stored))
        options = {}
        if names[0] == "ViTModel":  # which creates a pooler with random weights if the file has none
            options["add_pooling_layer"] = pooler and any(".pooler." in f".{name}" for name in stored)
        with _quiet():
            model, info = getattr(transformers, names[0]).from_pretrained(
                folder, config=config, dtype="auto", output_loading_info=True, **options
            )
    except VitconvError:
        raise
    except Exception as error:  # each configuration class raises its own kinds of errors
        raise CheckpointError(
            f"Transformers cannot load '{folder}': {first_line(error)}", "Check that the folder is complete."
        ) from error
    lost = [*info["missing_keys"], *map(str, info["mismatched_keys"])]
    if lost:
        raise WeightsError(
            f"Weights that the configuration names are missing in the folder: {first_few(lost)}.",
            "Check that the folder is complete.",
        )
    return model.eval(), sorted(info["unexpected_keys"])


def _by_name(config: PreTrainedConfig) -> None:
    """Have the model return its outputs by name and no others, computed as Transformers does by default.

    None of that changes what it computes, and an attention backend may not be installed here.
    """
    for part in (config, getattr(config, "vision_config", None)):
        if part is not None:
            part.output_attentions = part.output_hidden_states = False
            part.return_dict = True
            part._attn_implementation = None


#: Model types whose encoder is a plain ViT, beside other parts.
_ENCODERS = ("vit_mae", "vit_msn")


def _encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    import transformers

    plain = transformers.ViTConfig()
    content = {name: value for name, value in config.to_dict().items() if name in plain.to_dict()}
    content |= {"architectures": ["ViTModel"], "model_type": "vit"}
    return transformers.ViTConfig.from_dict(content)


@cache
def installed_dialect() -> mapping.Dialect:
    """What the installed transformers calls a ViT's parameters in memory: 5.x renamed them, files kept theirs.

    Raises:
        VitconvError: vitconv does not know the names in this transformers.
    """
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1))
    names = set(model.state_dict())
    if "layers.0.attention.q_proj.weight" in names:
        return "transformers5"
    if "encoder.layer.0.attention.attention.query.weight" in names:
        return "hub"
    raise VitconvError(
        f"transformers {transformers.__version__} names ViT's parameters in a way that vitconv does not know.",
        "Install a version that vitconv was tested with: see its requirements.txt.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' progress bars and reports: commands show their own, and vitconv raises errors instead."""
    from transformers.utils import logging

    was_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()
