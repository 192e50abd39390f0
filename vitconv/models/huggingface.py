"""Build and load Transformers models, whichever transformers is installed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.architecture import check_image_size
from vitconv.checkpoints.checkpoint import CONFIG_FILE, read_state_dict
from vitconv.errors import CheckpointError, ParityError, VitconvError, WeightsError, count_classes, first_few, shown
from vitconv.files import MOST_TEXT, absent, check_file, check_name, check_reachable, read_json, sha256
from vitconv.mapping.family import is_classifier
from vitconv.mapping.plan import shapes_of
from vitconv.mapping.timm_head import HEAD_MODULE, POOLINGS, auto_map_of
from vitconv.models.wrapper import check_size, check_wrapper

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

    with torch.device("meta"):
        model = class_named(config.architectures[0])(config)
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    _make_buffers(model)
    return model.eval()


def class_named(name: str) -> Any:
    """The class of this name: one of Transformers', or vitconv's own copy of one in a folder's file of code.

    ``None`` if the installed Transformers does not have it.
    """
    if mapping.LOADED_CLASSES[name].code_module:
        from vitconv.models import modeling_vitconv

        return getattr(modeling_vitconv, name, None)
    import transformers

    return getattr(transformers, name, None)


#: The file of code that a folder with timm's head holds. vitconv never runs the folder's file: it uses this one.
HEAD_FILE = Path(__file__).with_name(f"{HEAD_MODULE}.py")
#: The SHA-256 of that file in earlier versions of vitconv: whoever changes it after a release adds that release's.
_EARLIER_HEADS: tuple[str, ...] = ()


_DISTRUST = "Do not load this folder with trust_remote_code=True. Convert the source again."


def _check_head(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` if a folder has code that vitconv did not write.

    vitconv does not run it, but would vouch for a folder that computes something else for those who trust it.

    Args:
        folder: the folder.
        name: the class that its configuration names.
        content: the contents of its ``config.json``.

    Raises:
        CheckpointError: it has other code.
        ParityError: it tells the code something that no conversion writes.
    """
    family, auto_map = mapping.LOADED_CLASSES[name], content.get("auto_map")
    file = folder / HEAD_FILE.name
    expected = auto_map_of(name) if family.code_module else None
    if auto_map != expected:
        raise CheckpointError(
            f"`auto_map` in the config.json in '{folder}' is {shown(auto_map)} instead of {expected}.", _DISTRUST
        )
    for other in sorted(folder.glob("*.json")):
        if other.name != CONFIG_FILE:
            _check_names_no_code(other)
    if expected is None:
        return
    if not file.is_file():
        raise CheckpointError(f"'{folder}' has no {file.name}, which its class {name} is in.", _DISTRUST)
    check_file(file, "file", most=MOST_TEXT, error=CheckpointError)
    if file.read_bytes() != HEAD_FILE.read_bytes() and sha256(file) not in _EARLIER_HEADS:
        raise CheckpointError(f"'{file}' is not a file that vitconv wrote.", _DISTRUST)
    _check_head_settings(content.get("timm_head"))


def _check_names_no_code(file: Path) -> None:
    """Raise :class:`CheckpointError` if a file has a setting by which Transformers finds code, however deep in it.

    Processors and tokenizers are loaded by it, too. A file that is not JSON names nothing: Transformers cannot read it
    either.
    """
    found: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(name for name, value in pairs if name in ("auto_map", "custom_pipelines") and value is not None)
        return dict(pairs)

    try:
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=keep)
    except (OSError, ValueError):
        return
    except RecursionError as error:  # how deep is too deep depends on the caller, so Transformers may read it
        raise CheckpointError(f"'{file}' is nested too deeply.", "Restore the file, or remove it.") from error
    if found:
        raise CheckpointError(f"`{found[0]}` in '{file}' names code, which no conversion writes.", _DISTRUST)


def _check_head_settings(head: Any) -> None:
    """Raise :class:`ParityError` unless ``timm_head`` is what the code understands; its sizes are checked before."""
    if not isinstance(head, dict):
        raise _wrong_head("timm_head", head)
    epsilon, by_attention = head.get("norm_eps"), head.get("pooling") == "attention"
    right = {
        "pooling": head.get("pooling") in POOLINGS,
        "first_patch": head.get("first_patch") is not None,
        "num_features": head.get("num_features") is not None,
        "norm_eps": not by_attention if epsilon is None else type(epsilon) in (int, float) and 0 < epsilon < math.inf,
        "intermediate_size": not by_attention or head.get("intermediate_size") is not None,
    }
    for name, is_right in right.items():
        if not is_right:
            raise _wrong_head(f"timm_head.{name}", head.get(name))


def _wrong_head(name: str, value: object) -> ParityError:
    return ParityError(
        f"`{name}` in config.json is {shown(value)}, which no conversion writes.",
        "Correct this setting, or convert the source again.",
        stage="config",
    )


def make_config(content: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration object of a ``config.json``'s contents."""
    import transformers

    return transformers.CONFIG_MAPPING[content["model_type"]](
        **{name: value for name, value in content.items() if name != "model_type"}
    )


def _make_buffers(model: PreTrainedModel) -> None:
    """Give a model that was built without weights the constants that no file holds, such as rotary frequencies.

    They are those of a model of one block; in the blocks, all have the same.
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
        model.get_submodule(path)._buffers[leaf] = buffers[re.sub(r"\.[0-9]+\.", ".0.", name)].clone()


def load_config(folder: Path) -> PreTrainedConfig:
    """Load a folder's ``config.json``.

    Raises:
        CheckpointError: it is missing, or the class is not one that vitconv converts to.
        ParityError: it has a setting that changes what Transformers loads, or in which form it returns the outputs.
    """
    import transformers

    content = _read_config(folder)
    if content.get("model_type") == mapping.WRAPPER.name:
        check_wrapper(folder, content)
    else:
        _check_labels(content)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each configuration class raises its own kinds of errors
        raise CheckpointError(
            f"'{folder}' has no config.json that Transformers can read: {first_line(error)}", _CONVERT
        ) from error
    names = config.architectures
    if not isinstance(names, list) or len(names) != 1 or str(names[0]) not in mapping.LOADED_CLASSES:
        raise CheckpointError(f"'{folder}' was not written by vitconv: its architecture is {shown(names)}.", _CONVERT)
    cls = class_named(names[0])
    if cls is None or not isinstance(config, cls.config_class):
        raise CheckpointError(
            f"The config.json in '{folder}' names {names[0]}, but its `model_type` '{config.model_type}' belongs to "
            "another class or to a newer transformers.",
            _CONVERT,
        )
    _refuse_settings(config)
    _check_head(folder, names[0], content)
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    """The contents of a folder's ``config.json``, before Transformers makes anything of its sizes.

    Raises:
        CheckpointError: it is no JSON object, or too large; or with it, Transformers loads more than this model.
        ParityError: a size in it is none, or larger than that of any model; or Transformers would load other code.
        InputError: its images are too large.
    """
    check_name(folder, CheckpointError)
    check_reachable(folder / CONFIG_FILE)
    for file in sorted(folder.glob("*.json")):  # whichever of them Transformers reads
        check_file(file, "file", most=MOST_TEXT, error=CheckpointError)
    if (folder / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"'{folder}' has an {ADAPTER_FILE}: where PEFT is installed, Transformers adds that adapter to the model.",
            "Merge it into the model with `merge_and_unload()`, or remove it.",
        )
    if not (folder / CONFIG_FILE).exists():
        raise CheckpointError(absent(folder / CONFIG_FILE), _CONVERT)
    content = read_json(folder / CONFIG_FILE)
    parts: list[Any] = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            for name, value in part.items():
                _check_code(name, value, nested=part is not content)
                _check_size(name, value)
            parts += [value for name, value in part.items() if name not in ("id2label", "label2id")]
    return content


_BACKENDS = (None, "eager", "sdpa")  # Transformers' own code
#: The settings by which Transformers loads other code, also from the Hub, or computes otherwise; and what may be set.
_CODE: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), _BACKENDS),
    **dict.fromkeys(
        ("experts_implementation", "_experts_implementation", "_experts_implementation_internal"), (None,)
    ),
    **dict.fromkeys(("use_kernels", "allow_all_kernels"), (None, False)),
    **dict.fromkeys(("kernel_config", "quantization_config", "fusion_config", "distributed_config"), (None,)),
    **dict.fromkeys(("backbone", "backbone_kwargs"), (None,)),  # the name of one in timm or on the Hub
    "configuration_files": (None,),  # with it, Transformers reads another file, which is not checked
    "custom_pipelines": (None,),  # with it, pipelines run code of the folder where they are told to trust it
}


def _check_code(name: str, value: object, *, nested: bool) -> None:
    """Raise :class:`ParityError` for a setting with which Transformers loads other code than its own.

    A whole configuration may have one: :func:`_check_head`.
    """
    if value not in _CODE.get(name, (value,)) or (nested and name == "auto_map" and value is not None):
        raise _not_as_trained(name, value)


def _not_as_trained(name: str, value: object) -> ParityError:
    return ParityError(
        f"`{name}` in config.json is {shown(value)}, with which Transformers does not load or run the model as it was "
        "trained.",
        "Remove this setting, or convert the source again.",
        stage="config",
    )


#: With it, and with PEFT installed, Transformers loads an adapter into the model.
ADAPTER_FILE = "adapter_config.json"

_IMAGES = ("image_size", "pretrain_image_size")
#: The settings that are sizes, and the most of each: some ten times what any model has, so that a configuration and a
#: model without weights are made in no time. The weights' own sizes are the bound after that: :func:`_check_weights`.
_SIZES = {
    **dict.fromkeys((*_IMAGES, "max_img_size", "patch_size"), 10**5),
    **dict.fromkeys(("hidden_size", "intermediate_size"), 10**6),
    **{name: 10**6 for family in mapping.FAMILIES for name in family.widths},
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 10**4),
    **dict.fromkeys(("num_channels", "num_labels", "num_features"), 10**6),
}
#: These may be 0, where there is none.
_COUNTS = {
    name: 10**5 for family in mapping.FAMILIES for name in ("num_register_tokens", "first_patch", *family.counts)
}


def _check_size(name: str, value: Any) -> None:
    """Raise :class:`ParityError` for a setting that should be a size, or two, and is none; of images, as all do."""
    most = _SIZES.get(name, _COUNTS.get(name))
    if most is None or value is None:
        return
    sides = value if isinstance(value, list) and len(value) == 2 and name in (*_IMAGES, "patch_size") else [value]
    least = 0 if name in _COUNTS or name == "num_labels" else 1
    if not all(type(side) is int and least <= side <= most for side in sides):
        raise ParityError(
            f"`{name}` in config.json is {shown(value)}, which is not a size.",
            "Correct this setting, or convert the source again.",
            stage="config",
        )
    if name in _IMAGES:
        check_image_size((sides[0], sides[-1]))


def _check_weights(folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`CheckpointError` for sizes that the weights do not have, before Transformers makes room for them.

    Args:
        folder: whose they are, for people.
        content: the contents of its ``config.json``.
        tensors: the weights.
    """
    largest = max((side for tensor in tensors.values() for side in tensor.shape), default=0)
    parts = (content, content.get("vision_config"), content.get("timm_head"))
    settings = {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
    for name in (*_SIZES, *_COUNTS):
        value = settings.get(name)
        most = len(tensors) if name == "num_hidden_layers" else largest
        if name in _IMAGES or value is None or max(value if isinstance(value, list) else [value]) <= most:
            continue
        found = f"are {most} tensors" if name == "num_hidden_layers" else f"have no side larger than {most}"
        raise CheckpointError(
            f"`{name}` in the config.json in '{folder}' is {shown(value)}, and its weights {found}.",
            "Check that the folder is whole.",
        )
    side, patch = (settings.get(name) or usual for name, usual in (("max_img_size", 2048), ("patch_size", 16)))
    if content.get("model_type") == "radio" and type(patch) is int and (side // patch) ** 2 > largest:
        raise CheckpointError(
            f"By the `max_img_size` in the config.json in '{folder}', {side}, the model has {(side // patch) ** 2:,} "
            f"positions, and its weights have no side larger than {largest}.",
            "Check that the folder is whole.",
        )


def _check_labels(content: Mapping[str, Any]) -> None:
    """Raise :class:`ParityError` unless ``config.json`` says one thing of the classes' names, and of each.

    Transformers would take one of two that it says, and of ``num_labels`` drop all names. A name may stand for several
    classes, as in ImageNet's.
    """
    names, numbers, count = (content.get(name) for name in ("id2label", "label2id", "num_labels"))
    if names is None:  # Transformers' default: two classes
        names = {str(number): f"LABEL_{number}" for number in range(2 if count is None else count)}
    if not isinstance(names, dict):
        raise _contradiction(f"`id2label` is {shown(names)}, no mapping")
    missing = next((number for number in range(len(names)) if str(number) not in names), None)
    if missing is not None:
        odd = first_few(sorted(names.keys() - {str(number) for number in range(len(names))}))
        raise _contradiction(
            f"`id2label` names {count_classes(len(names))}, but none by the number {missing}; it has {odd}"
        )
    for number, name in names.items():
        if not isinstance(name, str):
            raise _contradiction(f"`id2label` calls the class {number} {shown(name)}, which is no text")
    if count is not None and count != len(names):
        raise _contradiction(f"`num_labels` is {count}, and `id2label` names {count_classes(len(names))}")
    if numbers is None:
        return
    if not isinstance(numbers, dict):
        raise _contradiction(f"`label2id` is {shown(numbers)}, no mapping")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, str)) or names.get(str(number)) != name:
            raise _contradiction(f"`label2id` calls '{name[:100]}' {shown(number)}, and `id2label` does not")
    for number, name in names.items():
        if name not in numbers:
            raise _contradiction(f"`id2label` calls the class {number} '{name[:100]}', and `label2id` does not")


def _contradiction(what: str) -> ParityError:
    return ParityError(
        f"The labels in config.json are not those of the classes: {what}.",
        'Write `id2label` as {"0": …, "1": …}, one name a class, and `label2id` as its reverse, or leave that out.',
        stage="labels",
    )


_CONVERT = "Pass a folder that `vitconv convert` has written."


def _refuse_settings(config: PreTrainedConfig) -> None:
    """Raise :class:`ParityError` for a setting that keeps a model from running, or changes the form of its output."""
    import torch
    import transformers

    for name, usual in (
        ("transformers_weights", (None,)),  # another file than the usual
        ("is_heterogeneous", (False,)),  # `per_layer_config`: layers that differ from each other
        ("return_dict", (True,)),
        ("output_hidden_states", (None, False, True)),
        ("output_attentions", (None, False, True)),
        ("dtype", (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)),
    ):
        found = getattr(config, name, usual[0])
        if found not in usual:
            what = "per_layer_config" if name == "is_heterogeneous" else name  # as the file calls it
            raise _not_as_trained(what, found)
    part = getattr(config, "vision_config", config)
    if not isinstance(part, transformers.PreTrainedConfig):  # of a family without one, it is what the file says
        raise _not_as_trained("vision_config", part)
    for name in _SIZES:
        found = getattr(part, name, 1)
        if found is not None or name not in _MAY_FOLLOW:
            _check_size(name, list(found) if isinstance(found, tuple) else 0 if found is None else found)


#: In some families, these follow from the width, or from the names of the classes.
_MAY_FOLLOW = ("intermediate_size", "mlp_dim", "num_labels")


#: Transformers would map the weights' file. What is written into it later would change the model, and where it is cut
#: short, as saving begins, a look would end the process (SIGBUS), even before Transformers has returned.
_LOADING = {"output_loading_info": True, "ignore_mismatched_sizes": True, "disable_mmap": True}


def load_folder(folder: Path) -> PreTrainedModel:
    """Load a folder with ``from_pretrained``, and refuse what Transformers only warns about.

    Raises:
        ParityError: Transformers cannot load it; or weights are missing, unexpected or misshapen.
        WeightsError: it rounds the weights, or some are stored twice.
    """

    config = load_config(folder)
    stored = _stored(folder)
    content = read_json(folder / CONFIG_FILE)
    _check_weights(folder, content, stored)
    cls = class_named(config.architectures[0])
    if config.model_type == mapping.WRAPPER.name:
        check_size(folder, content, shapes_of(stored))
        # By the classes that its card names; what they make of it is one of the wrapper's, by its `model_type`.
        import transformers

        cls = transformers.AutoModelForImageClassification if is_classifier(cls.__name__) else transformers.AutoModel
    try:
        with quiet():
            model, info = cls.from_pretrained(folder, **_LOADING)
    except Exception as error:  # which of its settings it cannot follow, Transformers finds out in many ways
        raise ParityError(
            f"Transformers cannot load '{folder}': {first_line(error)}", _CONVERT_AGAIN, stage="loading"
        ) from error
    info["mismatched_keys"] = _misshapen(info)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ParityError(
                f"Transformers reports {what.replace('_', ' ')} in the folder: {first_few(info[what])}.",
                _CONVERT_AGAIN,
                stage="loading",
            )
    _check_once(folder, stored, info["unexpected_keys"], model)
    _check_stored_dtype(folder, stored, model)
    _hold(model)
    return model.eval()


def _stored(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder, without their values: these would be another copy while Transformers loads them."""
    return {name: tensor.to("meta") for name, tensor in read_state_dict(folder).items()}


def _hold(model: PreTrainedModel) -> None:
    """Copy the weights into memory that torch aligned, in the usual order: else, the last bits of logits may differ.

    A file in torch's format may hold a convolution channels-last, which safetensors does not write. The copy also
    parts the weights from a ``.bin`` file, which Transformers maps all the same.
    """
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


_CONVERT_AGAIN = "Convert the source again. If the error remains, report the architecture and this message."


def _misshapen(info: Mapping[str, Any]) -> list[str]:
    """The tensors that Transformers found in another shape than its model has, each with both."""
    return [
        f"{name} ({list(stored)} instead of {list(expected)})" for name, stored, expected in info["mismatched_keys"]
    ]


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
        WeightsError: weights are missing or misshapen, or Transformers rounds them.
        ParityError: it has a setting with which no model runs, or its weights are quantised.
    """
    import transformers

    content = _read_config(folder)
    stored = _stored(folder)  # strictly, before anything else opens the file
    _check_weights(folder, content, stored)
    if is_classifier(str(content.get("architectures"))):  # others have names of no classes
        _check_labels(content)
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
        _check_head(folder, names[0], content)
        options = {}
        if names[0] == "ViTModel":  # which creates a pooler with random weights if the file has none
            options["add_pooling_layer"] = pooler and any(".pooler." in f".{name}" for name in stored)
        with quiet():
            model, info = class_named(names[0]).from_pretrained(
                folder, config=config, dtype="auto", **_LOADING, **options
            )
    except VitconvError:
        raise
    except Exception as error:  # each configuration class raises its own kinds of errors
        raise CheckpointError(
            f"Transformers cannot load '{folder}': {first_line(error)}", "Check that the folder is complete."
        ) from error
    if info["missing_keys"]:
        raise WeightsError(
            f"Weights that the configuration names are missing in the folder: {first_few(info['missing_keys'])}.",
            "Check that the folder is complete.",
        )
    if info["mismatched_keys"]:
        raise WeightsError(
            f"The folder's weights have other shapes than its configuration says: {first_few(_misshapen(info))}.",
            f"Check its {CONFIG_FILE}.",
        )
    _check_once(folder, stored, info["unexpected_keys"], model)
    _check_stored_dtype(folder, stored, model)
    _hold(model)
    return model.eval(), sorted(info["unexpected_keys"])


def _check_once(folder: Path, stored: Mapping[str, Tensor], unexpected: Collection[str], model: Any) -> None:
    """Raise :class:`WeightsError` if a tensor is stored twice, as Transformers takes one of the two in silence.

    That can be: it reads the names of its earlier versions, too, and those without the model's prefix.
    """
    found = sum(not name.endswith("position_ids") for name in stored) - len(
        unexpected
    )  # constants of earlier versions
    if found > len(model.state_dict()):
        raise WeightsError(
            f"The weights in '{folder}' hold {found} tensors of the model, which has {len(model.state_dict())}: some "
            "are there twice, under the names of two versions of Transformers.",
            "Load the model with the Transformers that wrote it, and save it again.",
        )


def _check_stored_dtype(folder: Path, stored: Mapping[str, Tensor], model: Any) -> None:
    """Raise :class:`WeightsError` if Transformers rounds the weights as it loads them, to the dtype in config.json."""
    import torch

    loaded = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    for name, tensor in stored.items():
        lossy = [dtype for dtype in loaded if torch.promote_types(dtype, tensor.dtype) != dtype]
        if tensor.is_floating_point() and lossy:
            kept, rounded = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, lossy[0]))
            raise WeightsError(
                f"`{name}` in '{folder}' is stored as {kept}, and Transformers rounds it to {rounded}, the `dtype` in "
                f"its {CONFIG_FILE}.",
                f'Write "dtype": "{kept}" into {CONFIG_FILE}, or save the model again in the dtype that you want.',
            )


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
def quiet() -> Iterator[None]:
    """Without Transformers' progress bars and reports: commands show their own, and vitconv raises errors instead."""
    from transformers.utils import logging

    was_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()
