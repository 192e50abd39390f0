"""timm's models: build one without weights, and read from its modules what it computes, by whitelist.

The facts are read from the modules, never from a name: a module or setting that this page does not know is a refusal.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.architecture import Architecture
from vitconv.errors import ArchitectureError, CheckpointError, InputError, VitconvError, first_few, shown
from vitconv.mapping.wrapper import WAY_OUT
from vitconv.models import catalogue
from vitconv.models.timm_state import NAFLEX, class_name, contradictions, patch_embedding

if TYPE_CHECKING:
    from torch import nn


def from_name(name: str) -> Architecture:
    """Read the architecture that timm builds for ``name``, such as ``"vit_base_patch16_384"``.

    Raises:
        ArchitectureError: timm does not know the name, or no Transformers class can express the model.
    """
    return from_timm(build_timm(name))


#: The most blocks: more than any Vision Transformer has. Building more would take minutes.
_DEEPEST = 1000


def build_timm(name: str, *, pretrained_cfg: Mapping[str, Any] | None = None, **overrides: Any) -> nn.Module:
    """Build timm's ``name`` without weights (on torch's ``meta`` device), in a fraction of a second.

    Args:
        name: perhaps with a tag.
        pretrained_cfg: as a folder's ``config.json`` has it, instead of the tag's.
        overrides: arguments of timm's model.

    Raises:
        ArchitectureError: timm does not know the name or its tag, or builds no model from the arguments.
    """
    import timm
    import torch

    if type(overrides.get("depth")) is int and overrides["depth"] > _DEEPEST:
        raise ArchitectureError(
            f"`depth` is {shown(overrides['depth'])}; at most {_DEEPEST:,} blocks are allowed.", "Correct `depth`."
        )
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = catalogue.similar_names(name)
        raise ArchitectureError(
            f"timm {timm.__version__} has no architecture named '{name}'.",
            (f"Did you mean {', '.join(close)}? " if close else "") + "`vitconv models` lists the names.",
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ArchitectureError(
            f"timm {timm.__version__} has no pretrained tag '{tag}' for '{base}'.",
            f"Use '{base}' alone" + (f", or one of its tags: {first_few(tags, 8)}." if tags else "."),
        )
    try:
        overrides.pop("device", None)  # where it was built; here it is built nowhere, so that it takes no memory
        with torch.device("meta"):
            cfg = None if pretrained_cfg is None else dict(pretrained_cfg)
            return timm.create_model(name, pretrained=False, pretrained_cfg=cfg, **overrides)
    except Exception as error:  # arguments come from files, and timm does not check them
        raise ArchitectureError(
            f"timm cannot build '{name}' with {first_few(overrides, 20) or 'its own settings'}: {str(error)[:200]}.",
            "Check the arguments; a folder's are in its config.json.",
        ) from error


def read_config(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What timm itself reads in a folder's ``config.json``: the architecture, ``pretrained_cfg`` and ``model_args``.

    Raises:
        CheckpointError: timm cannot read it.
    """
    from timm.models._hub import load_model_config_from_path

    try:
        cfg, name, arguments = load_model_config_from_path(folder)
        if not isinstance(name, str):
            raise TypeError(f"its architecture is {shown(name)}")
        return name, dict(cfg), dict(arguments or {})
    except Exception as error:  # timm does not check the content of the file
        raise CheckpointError(
            f"timm cannot read '{folder / 'config.json'}': {type(error).__name__}: {str(error)[:200]}.",
            "Correct the file, or pass the file of weights inside the folder with --arch NAME.",
        ) from error


def known_name(name: str) -> str | None:
    """The name that timm has today for an architecture, perhaps with a tag; ``None`` if it knows none of this name.

    >>> known_name("vit_base_patch16_224_in21k")  # of timm 0.4
    'vit_base_patch16_224.augreg_in21k'
    """
    import timm

    if not re.fullmatch(r"[\w.]+", name) or not timm.is_model(name.partition(".")[0]):
        return None
    if timm.list_models(name.partition(".")[0]):
        return name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns of the old name
        model: Any = build_timm(name)
    cfg = model.pretrained_cfg
    return ".".join(filter(None, (cfg["architecture"], cfg.get("tag"))))


@contextmanager
def in_usual_modes() -> Iterator[None]:
    """Leave the caller's ``torch.inference_mode`` and default device.

    Models made in that mode can neither be trained nor moved and compared, and files are read into the CPU's memory.
    """
    torch = sys.modules.get("torch")  # whoever has set them has imported it
    with torch.inference_mode(False) if torch else nullcontext(), torch.device("cpu") if torch else nullcontext():
        yield


def make_buffers(model: Any) -> None:
    """Give a model that was built without weights the constants that no state dict holds, such as rotary angles."""
    import torch

    for module in model.modules():
        missing = [
            name
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_meta and name in module._non_persistent_buffers_set
        ]
        for name in missing:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if missing:
            module.init_non_persistent_buffers()


#: What timm models are regularised with in training: timm's argument, that of its training script, and the name.
_REGULARISATION = (
    (("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop"), "dropout"),
    (("drop_path_rate", "drop_path"), "stochastic depth"),
    (("patch_drop_rate",), "patch dropout"),
)


def regularisation(model: Any) -> dict[str, float]:
    """The largest rates of the dropout, stochastic depth and patch dropout that a model has, by timm's arguments."""
    rates = {"drop_rate": 0.0, "drop_path_rate": 0.0, "patch_drop_rate": 0.0}
    for module in model.modules():
        name = class_name(module)
        if name == _DROPOUT:
            rates["drop_rate"] = max(rates["drop_rate"], module.p)
        elif name == "timm.DropPath":
            rates["drop_path_rate"] = max(rates["drop_path_rate"], round(module.drop_prob or 0.0, 6))
        elif name in _PATCH_DROP:
            rates["patch_drop_rate"] = max(rates["patch_drop_rate"], module.prob)
    return rates


def describe_regularisation(rates: Mapping[str, Any]) -> str | None:
    """A sentence on what the converted model will not do in training; ``None`` if timm did nothing of it.

    Args:
        rates: by the names of timm's arguments or of its training script; others are ignored.
    """
    used = []
    for names, what in _REGULARISATION:
        values = [rates.get(name) for name in names]
        rate = max((value for value in values if isinstance(value, (int, float)) and 0 <= value <= 1), default=0)
        if rate > 0:
            used.append(f"{what} (rate {rate:g})")
    if not used:
        return None
    return (
        f"The timm model was trained with {' and '.join(used)}, which the converted one does not do: it changes "
        "nothing in evaluation, but set it up again if you train on."
    )


# ------------------------------------------------------------------------------------------------------------
# Reading a model, by whitelist.

_LINEAR, _IDENTITY, _DROPOUT = "torch.nn.Linear", "torch.nn.Identity", "torch.nn.Dropout"
_LAYER_NORM, _RMS_NORM = ("timm.LayerNorm", "torch.nn.LayerNorm"), "timm.RmsNorm"
_NORM = (*_LAYER_NORM, _RMS_NORM)
#: By Transformers' name of an activation: timm's name, and the classes that compute it.
ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gelu": ("gelu", ("torch.nn.GELU", "timm.GELU")),
    "gelu_pytorch_tanh": ("gelu_tanh", ("timm.GELUTanh",)),
    "quick_gelu": ("quick_gelu", ("timm.QuickGELU",)),
    "silu": ("silu", ("torch.nn.SiLU",)),
    "relu": ("relu", ("torch.nn.ReLU",)),
}
_ACTIVATIONS = {class_name: name for name, (_, classes) in ACTIVATIONS.items() for class_name in classes}
_DROP_PATH = (_IDENTITY, "timm.DropPath")
_PATCH_DROP = ("timm.PatchDropout", "timm.PatchDropoutWithIndices")
_MLPS = {"timm.Mlp": "plain", "timm.GluMlp": "packed", "timm.SwiGLU": "gated"}

# Every module that a convertible model may have, and of which classes. Whatever is not listed is refused.
_STEM: dict[str, tuple[str, ...]] = {
    "patch_embed": ("timm.PatchEmbed",),
    "patch_embed.proj": ("torch.nn.Conv2d",),
    "patch_embed.norm": (_IDENTITY, _RMS_NORM),
    "pos_drop": (_DROPOUT,),
    "norm_pre": (_IDENTITY, *_LAYER_NORM),
    "blocks": ("torch.nn.Sequential",),
}
_BLOCK: dict[str, tuple[str, ...]] = {
    "blocks.{i}.norm1": _NORM,
    "blocks.{i}.attn.qkv": (_LINEAR,),
    "blocks.{i}.attn.q_norm": (_IDENTITY,),
    "blocks.{i}.attn.k_norm": (_IDENTITY,),
    "blocks.{i}.attn.attn_drop": (_DROPOUT,),
    "blocks.{i}.attn.norm": (_IDENTITY,),
    "blocks.{i}.attn.proj": (_LINEAR,),
    "blocks.{i}.attn.proj_drop": (_DROPOUT,),
    "blocks.{i}.drop_path1": _DROP_PATH,
    "blocks.{i}.norm2": _NORM,
    "blocks.{i}.mlp": tuple(_MLPS),
    "blocks.{i}.mlp.fc1": (_LINEAR,),
    "blocks.{i}.mlp.fc1_g": (_LINEAR,),
    "blocks.{i}.mlp.fc1_x": (_LINEAR,),
    "blocks.{i}.mlp.act": tuple(_ACTIVATIONS),
    "blocks.{i}.mlp.drop1": (_DROPOUT,),
    "blocks.{i}.mlp.norm": (_IDENTITY,),
    "blocks.{i}.mlp.fc2": (_LINEAR,),
    "blocks.{i}.mlp.drop2": (_DROPOUT,),
    "blocks.{i}.drop_path2": _DROP_PATH,
}
_HEAD: dict[str, tuple[str, ...]] = {
    "norm": (*_NORM, _IDENTITY),
    "fc_norm": (*_LAYER_NORM, _IDENTITY),
    "head_drop": (_DROPOUT,),
    "head": (_LINEAR, _IDENTITY),
}
# A ResNet in front of the patch convolution, as in timm's hybrids of the first Vision Transformers.
_CONVOLUTION, _RELU = ("timm.StdConv2dSame",), ("torch.nn.ReLU",)
_RESNET: dict[str, tuple[str, ...]] = {
    "patch_embed.backbone": ("timm.resnetv2.ResNetV2",),
    "patch_embed.backbone.stem": ("torch.nn.Sequential",),
    "patch_embed.backbone.stem.conv": _CONVOLUTION,
    "patch_embed.backbone.stem.norm": ("timm.GroupNormAct",),
    "patch_embed.backbone.stem.norm.drop": (_IDENTITY,),
    "patch_embed.backbone.stem.norm.act": _RELU,
    "patch_embed.backbone.stem.pool": ("timm.MaxPool2dSame",),
    "patch_embed.backbone.stages": ("torch.nn.Sequential",),
    "patch_embed.backbone.stages.{s}": ("timm.resnetv2.ResNetStage",),
    "patch_embed.backbone.stages.{s}.blocks": ("torch.nn.Sequential",),
    **{
        f"patch_embed.backbone.stages.{{s}}.blocks.{{j}}{part}": classes
        for part, classes in {
            "": ("timm.resnetv2.Bottleneck",),
            ".downsample": ("timm.resnetv2.DownsampleConv",),
            ".downsample.conv": _CONVOLUTION,
            ".downsample.norm": ("timm.GroupNormAct",),
            ".downsample.norm.drop": (_IDENTITY,),
            ".downsample.norm.act": (_IDENTITY,),
            **{f".conv{i}": _CONVOLUTION for i in (1, 2, 3)},
            **{f".norm{i}": ("timm.GroupNormAct",) for i in (1, 2, 3)},
            **{f".norm{i}.drop": (_IDENTITY,) for i in (1, 2, 3)},
            **{f".norm{i}.act": _RELU for i in (1, 2)},
            ".norm3.act": (_IDENTITY,),
            ".drop_path": _DROP_PATH,
            ".act3": _RELU,
        }.items()
    },
    "patch_embed.backbone.norm": (_IDENTITY,),
    "patch_embed.backbone.head": ("timm.ClassifierHead",),
    "patch_embed.backbone.head.global_pool": ("timm.SelectAdaptivePool2d",),
    "patch_embed.backbone.head.global_pool.pool": (_IDENTITY,),
    "patch_embed.backbone.head.global_pool.flatten": (_IDENTITY,),
    "patch_embed.backbone.head.drop": (_DROPOUT,),
    "patch_embed.backbone.head.fc": (_IDENTITY,),
    "patch_embed.backbone.head.flatten": (_IDENTITY,),
}
# Several attentions side by side, and behind them as many MLPs.
_BRANCHES: dict[str, tuple[str, ...]] = {
    f"blocks.{{i}}.{branches}{path}": classes
    for branches, part in (("attns", "attn"), ("ffns", "mlp"))
    for path, classes in {
        "": ("torch.nn.ModuleList",),
        ".{b}": ("torch.nn.Sequential",),
        ".{b}.norm": _LAYER_NORM,
        f".{{b}}.{part}": ("timm.Attention",) if part == "attn" else ("timm.Mlp",),
        ".{b}.ls": (_IDENTITY, "timm.LayerScale"),
        ".{b}.drop_path": _DROP_PATH,
        **{
            pattern.replace("blocks.{i}", ".{b}"): classes
            for pattern, classes in _BLOCK.items()
            if pattern.startswith(f"blocks.{{i}}.{part}.")
        },
    }.items()
}
_VISION_TRANSFORMER: dict[str, tuple[str, ...]] = {
    **_STEM,
    "patch_drop": (_IDENTITY, *_PATCH_DROP),
    "patch_embed": ("timm.PatchEmbed", "timm.HybridEmbed"),
    **_RESNET,
    **_BLOCK,
    "blocks.{i}": ("timm.Block", "timm.ParallelThingsBlock"),
    **_BRANCHES,
    "blocks.{i}.attn": ("timm.Attention",),
    "blocks.{i}.ls1": (_IDENTITY, "timm.LayerScale"),
    "blocks.{i}.ls2": (_IDENTITY, "timm.LayerScale"),
    **_HEAD,
    "attn_pool": ("timm.AttentionPoolLatent",),
    "attn_pool.q": (_LINEAR,),
    "attn_pool.kv": (_LINEAR,),
    "attn_pool.q_norm": (_IDENTITY,),
    "attn_pool.k_norm": (_IDENTITY,),
    "attn_pool.proj": (_LINEAR,),
    "attn_pool.proj_drop": (_DROPOUT,),
    "attn_pool.norm": _LAYER_NORM,
    "attn_pool.mlp": ("timm.Mlp",),
    "attn_pool.mlp.fc1": (_LINEAR,),
    "attn_pool.mlp.act": tuple(_ACTIVATIONS),
    "attn_pool.mlp.drop1": (_DROPOUT,),
    "attn_pool.mlp.norm": (_IDENTITY,),
    "attn_pool.mlp.fc2": (_LINEAR,),
    "attn_pool.mlp.drop2": (_DROPOUT,),
}
#: Perception Encoder's, and EVA-02's, which is set up otherwise.
_ROTARY_CAT = "timm.RotaryEmbeddingCat"
#: Where a network of relative positions may be: in each block, or one for all.
_RELATIVE = ("blocks.{i}.attn.rel_pos", "shared_rel_pos")
_RELATIVE_NETWORK: dict[str, tuple[str, ...]] = {
    "": ("timm.RelPosMlp",),
    ".bias_act": (_IDENTITY,),
    ".mlp": ("timm.Mlp",),
    ".mlp.fc1": (_LINEAR,),
    ".mlp.act": ("torch.nn.ReLU",),
    ".mlp.drop1": (_DROPOUT,),
    ".mlp.norm": (_IDENTITY,),
    ".mlp.fc2": (_LINEAR,),
    ".mlp.drop2": (_DROPOUT,),
}
_DESIGNS: dict[str, dict[str, tuple[str, ...]]] = {
    "timm.VisionTransformer": _VISION_TRANSFORMER,
    "timm.VisionTransformerDistilled": {**_VISION_TRANSFORMER, "head_dist": (_LINEAR, _IDENTITY)},
    NAFLEX: {
        **{path: classes for path, classes in _VISION_TRANSFORMER.items() if path not in _STEM},
        "embeds": ("timm.naflexvit.NaFlexEmbeds",),
        "embeds.proj": (_LINEAR,),
        "embeds.norm": (_IDENTITY,),
        "embeds.pos_drop": (_DROPOUT,),
        "norm_pre": _STEM["norm_pre"],
        "blocks": _STEM["blocks"],
    },
    "timm.eva.Eva": {
        **_STEM,
        "blocks": ("torch.nn.ModuleList",),
        **_BLOCK,
        "blocks.{i}": ("timm.eva.EvaBlock",),
        "blocks.{i}.attn": ("timm.eva.EvaAttention", "timm.AttentionRope"),
        "blocks.{i}.attn.q_proj": (_LINEAR,),
        "blocks.{i}.attn.k_proj": (_LINEAR,),
        "blocks.{i}.attn.v_proj": (_LINEAR,),
        "blocks.{i}.attn.q_norm": (_IDENTITY, _RMS_NORM),
        "blocks.{i}.attn.k_norm": (_IDENTITY, _RMS_NORM),
        "rope": ("timm.RotaryEmbeddingDinoV3", _ROTARY_CAT),
        **_HEAD,
    },
    "timm.vision_transformer_relpos.VisionTransformerRelPos": {
        **_STEM,
        "blocks": ("torch.nn.ModuleList",),
        **_BLOCK,
        "blocks.{i}": ("timm.vision_transformer_relpos.RelPosBlock",),
        "blocks.{i}.attn": ("timm.vision_transformer_relpos.RelPosAttention",),
        **{f"{where}{part}": classes for where in _RELATIVE for part, classes in _RELATIVE_NETWORK.items()},
        "blocks.{i}.ls1": (_IDENTITY, "timm.LayerScale"),
        "blocks.{i}.ls2": (_IDENTITY, "timm.LayerScale"),
        **_HEAD,
    },
    "timm.vision_transformer_sam.VisionTransformerSAM": {
        **_STEM,
        "patch_drop": (_IDENTITY,),
        **_BLOCK,
        "blocks.{i}": ("timm.vision_transformer_sam.Block",),
        "blocks.{i}.attn": ("timm.vision_transformer_sam.Attention",),
        "blocks.{i}.ls1": (_IDENTITY,),
        "blocks.{i}.ls2": (_IDENTITY,),
        "neck": ("torch.nn.Sequential",),
        "neck.0": ("torch.nn.Conv2d",),
        "neck.1": ("timm.LayerNorm2d",),
        "neck.2": ("torch.nn.Conv2d",),
        "neck.3": ("timm.LayerNorm2d",),
        "head": ("timm.ClassifierHead",),
        "head.global_pool": ("timm.SelectAdaptivePool2d",),
        "head.global_pool.pool": ("torch.nn.AdaptiveAvgPool2d", _IDENTITY),
        "head.global_pool.flatten": ("torch.nn.Flatten", _IDENTITY),
        "head.drop": (_DROPOUT,),
        "head.fc": (_LINEAR, _IDENTITY),
        "head.flatten": (_IDENTITY, "torch.nn.Flatten"),
    },
    "timm.beit.Beit": {
        **_STEM,
        "blocks": ("torch.nn.ModuleList",),
        **_BLOCK,
        "blocks.{i}": ("timm.beit.Block",),
        "blocks.{i}.attn": ("timm.beit.Attention",),
        **_HEAD,
    },
}

# What an unlisted module means, in the words of the field: (where, which class) -> the feature.
# Only the wording of a refusal depends on this table, never whether there is one.
_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("patch_embed", "", "another patch embedding than one convolution (`{path}`)"),
    ("patch_embed.norm", "", "a norm on the patches (`{path}`)"),
    ("embeds.proj", "", "another patch embedding than one linear layer (`{path}`)"),
    ("embeds.norm", "", "a norm on the patches (`{path}`)"),
    ("patch_embed.backbone", "FeatureListNet", "a ResNet with batch norms before the patches (`{path}`)"),
    ("patch_embed.backbone", "Sequential", "a ResNet without stages before the patches (`{path}`)"),
    ("patch_embed.backbone", "", "other convolutions before the patches than a ResNetV2's (`{path}`)"),
    ("norm_pre", "", "another norm before the blocks than LayerNorm (`{path}`)"),
    ("blocks.{i}", "DiffParallelScalingBlock", "parallel differential attention and MLP (`{path}`)"),
    ("blocks.{i}", "ParallelScalingBlock", "parallel attention and MLP (`{path}`)"),
    ("blocks.{i}", "ResPostBlock", "norms after attention and MLP (`{path}`)"),
    ("blocks.{i}", "EvaBlockPostNorm", "norms after attention and MLP (`{path}`)"),
    ("blocks.{i}.attn", "DiffAttention", "differential attention (`{path}`)"),
    ("blocks.{i}.attn.q_norm", "", "normalised queries (`{path}`)"),
    ("blocks.{i}.attn.k_norm", "", "normalised keys (`{path}`)"),
    ("blocks.{i}.attn.norm", "", "a norm after attention (`{path}`)"),
    ("blocks.{i}.attn.gate", "", "gated attention (`{path}`)"),
    ("blocks.{i}.mlp.norm", "", "a norm inside the MLP (`{path}`)"),
    ("blocks.{i}", "ResPostRelPosBlock", "norms after attention and MLP (`{path}`)"),
    ("blocks.{i}.attn.rel_pos", "", "relative positions of another kind than a small network's (`{path}`)"),
    ("shared_rel_pos", "", "relative positions of another kind than a small network's (`{path}`)"),
    ("neck", "", "another neck than SAM's two convolutions (`{path}`)"),
    ("rope", "RotaryEmbeddingMixed", "rotary positions that are learned (`{path}`)"),
    ("rope", "", "rotary positions of another kind than DINOv3's (`{path}`)"),
    ("fc_norm", "RmsNorm", "RMS norm after the pooling (`{path}`)"),
    ("attn_pool", "", "another attention pooling than SigLIP's (`{path}`)"),
)


def from_timm(model: nn.Module) -> Architecture:
    """Read the architecture from a timm model's modules and shapes; the weights may be on ``meta``.

    Raises:
        ArchitectureError: no Transformers class computes what the model computes; the message names each feature
            that stands in the way, and its module. Or a model that was edited contradicts itself; the message names
            the attributes and buffers.
    """
    architecture = understand(model)
    mapping.check_any_family(architecture)
    return architecture


def understand(model: nn.Module) -> Architecture:
    """The same for a model that no class may compute, as far as its modules are known.

    Raises:
        ArchitectureError: a module or a setting is none that vitconv knows, or the model contradicts itself.
        InputError: it is no model, or what compiles, spreads, averages or adapts one.
    """
    try:
        check_is_model(model)
        obstacles = _unsupported_modules(model) or _unsupported_behaviour(model) or _unsupported_settings(model)
        if obstacles:
            raise ArchitectureError(
                f"No Transformers class computes what this model computes: it has {'; and '.join(obstacles)}.",
                f"{WAY_OUT} `vitconv models` lists the architectures that convert.",
            )
        _check_state(model)
        return read(model)
    except VitconvError:
        raise
    except Exception as error:  # an edited model may hold anything
        _check_state(model)
        raise ArchitectureError(
            f"The model's parts do not fit together: {type(error).__name__}: {str(error)[:200]}.", _REBUILD
        ) from error


#: What torch and PEFT put around a model: where the model is in it, or what gives it back.
_AROUND = {"_orig_mod": "_orig_mod", "module": "module", "base_model": "merge_and_unload()"}


def check_is_model(model: Any) -> None:
    """Raise :class:`InputError` for what is no model, and for what torch or PEFT put around one."""
    import torch

    kind = type(model).__name__
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"A {kind} is not a timm model.",
            "Pass what `timm.create_model` returns; `convert_state_dict` takes a state dict, `convert_checkpoint` a "
            "file.",
        )
    inside = next((way for name, way in _AROUND.items() if name in dict(model.named_children())), None)
    if inside:
        raise InputError(f"A {kind} is not a timm model, but has one in it.", f"Pass the model in it: `.{inside}`.")


_REBUILD = "Build the model anew with timm and load its weights, or keep it in timm."


def _check_state(model: Any) -> None:
    odd = contradictions(model)
    if odd:
        raise ArchitectureError(
            f"The model was edited, and contradicts what timm builds or its own weights: {first_few(odd)}.", _REBUILD
        )


def read(model: Any) -> Architecture:
    """The architecture of a timm model that converts; nothing is checked: :func:`from_timm` does that."""
    blocks = [_branches(block)[0] for block in model.blocks]
    first, patches, head = blocks[0], patch_embedding(model), getattr(model.head, "fc", model.head)
    any_size = class_name(model) == NAFLEX
    tokens = patches if any_size else model
    stem = _resnet(patches)
    depths = tuple(len(stage.blocks) for stage in stem.stages) if stem else ()
    mlp = _MLPS[class_name(first.mlp)]
    registers = tokens.reg_token.shape[1] if _has(tokens, "reg_token") else 0
    class_token = _has(tokens, "cls_token")
    position_embedding = _has(tokens, "pos_embed")
    windows = [getattr(block, "window_size", 0) for block in blocks]
    networks = _relative_networks(model)
    separate_biases, split = hasattr(first.attn, "q_bias"), _has(first.attn, "q_proj")
    queries = first.attn.q_proj if split else first.attn.qkv
    key_value_heads = tuple(getattr(block.attn, "num_kv_heads", block.attn.num_heads) for block in blocks)
    width = (first.mlp.fc1_g if mlp == "gated" else first.mlp.fc1).out_features
    return Architecture(
        image_size=_nominal_size(model) if any_size else tuple(patches.img_size),
        patch_size=(2 * 2 ** len(depths),) * 2 if stem else tuple(patches.patch_size),
        num_channels=patches.in_chans if any_size else (stem.stem.conv if stem else patches.proj).in_channels,
        hidden_size=model.embed_dim,
        num_hidden_layers=len(blocks),
        num_attention_heads=first.attn.num_heads,
        intermediate_size=width // 2 if mlp == "packed" else width,
        hidden_act=_activation(first.mlp.act),
        layer_norm_eps=first.norm1.eps,
        num_labels=getattr(head, "out_features", 0),
        design=type(model).__name__,
        stem_depths=depths,
        parallel_branches=len(_branches(model.blocks[0])),
        global_pool=model.global_pool,
        class_token=class_token,
        num_register_tokens=registers,
        distillation_token=_has(model, "dist_token"),
        position_embedding=position_embedding,
        # Without positions, or without tokens before the patches, the question does not arise.
        class_position=not (
            position_embedding and (class_token or registers) and (any_size or _flag(model, "no_embed_class"))
        ),
        **(_any_size_positions(model) if any_size else {}),
        relative_position=_has(first.attn, "relative_position_bias_table"),
        relative_network=networks[0].mlp.fc1.out_features if networks else 0,
        shared_relative_position=_has(model, "shared_rel_pos"),
        axis_positions=_has(first.attn, "rel_pos_h"),
        window_size=max(windows),
        global_attention=tuple(i for i, size in enumerate(windows) if not size) if any(windows) else (),
        neck_channels=model.neck[0].out_channels if _is_there(model, "neck") else 0,
        rope_theta=model.rope.temperature if _has(model, "rope") else 0.0,
        rope_grid=model.rope.ref_feat_shape[0] if class_name(getattr(model, "rope", None)) == _ROTARY_CAT else 0,
        patch_norm=_is_there(patches, "norm"),
        pre_norm=_is_there(model, "norm_pre"),
        qk_norm=_is_there(first.attn, "q_norm"),
        split_qkv=split,
        num_key_value_heads=() if set(key_value_heads) == {first.attn.num_heads} else key_value_heads,
        rms_norm=class_name(first.norm1) == _RMS_NORM,
        mlp=mlp,
        layer_scale=_layer_scale(first)[0],
        layer_scale_on_mlp=_layer_scale(first)[0] == _layer_scale(first)[1],
        final_norm=_is_there(model, "norm"),
        fc_norm=_is_there(model, "fc_norm"),
        patch_bias=patches.proj.bias is not None,
        qkv_bias=(first.attn.q_bias if separate_biases and not split else queries.bias) is not None,
        key_bias=first.attn.k_proj.bias is not None if split else not separate_biases,
        proj_bias=first.attn.proj.bias is not None,
        head_bias=getattr(head, "bias", True) is not None,
    )


def _nominal_size(model: Any) -> tuple[int, int]:
    """(height, width) that timm prepares images to for a model that takes any."""
    from timm.models._input import get_model_input_config

    height, width = get_model_input_config(model)["input_size"][-2:]
    return int(height), int(width)


def _any_size_positions(model: Any) -> dict[str, Any]:
    """The facts on the positions of a NaFlexVit, which timm resamples to the image's grid."""
    embeds = model.embeds
    if not _has(embeds, "pos_embed"):
        return {}
    grid = tuple(embeds.pos_embed.shape[1:3])
    flags = {"antialias": "antialias", "align_corners": "align_corners", "ar_preserving": "cropped"}
    used = [word for flag, word in flags.items() if getattr(embeds, f"pos_embed_{flag}")]
    sizes = zip(_nominal_size(model), embeds.patch_size, strict=True)
    return {
        "position_grid": () if grid == tuple(size // patch for size, patch in sizes) else grid,
        "position_resampling": " ".join([embeds.pos_embed_interp_mode, *used]),
    }


def arguments(known: Architecture, sized: Architecture) -> dict[str, Any]:
    """The inverse of :func:`read`: timm's arguments (JSON types) for ``sized``, by the name of ``known``."""
    registers = "num_reg_tokens" if known.design in ("Eva", "Beit") else "reg_tokens"
    table = {
        "image_size": ("img_size", list(sized.image_size)),
        "patch_size": ("patch_size", _one(sized.patch_size)),
        "num_channels": ("in_chans", sized.num_channels),
        "num_labels": ("num_classes", sized.num_labels),
        "hidden_size": ("embed_dim", sized.hidden_size),
        "num_hidden_layers": ("depth", sized.num_hidden_layers),
        "num_attention_heads": ("num_heads", sized.num_attention_heads),
        "hidden_act": ("act_layer", ACTIVATIONS[sized.hidden_act][0]),
        "num_register_tokens": (registers, sized.num_register_tokens),
        "rope_theta": ("rope_temperature", sized.rope_theta),
        "rope_grid": ("ref_feat_shape", sized.rope_grid),
        "global_pool": ("global_pool", sized.global_pool),
        "window_size": ("window_size", sized.window_size),
        "global_attention": ("global_attn_indexes", list(sized.global_attention)),
        "neck_channels": ("neck_chans", sized.neck_channels),
        "position_embedding": ("use_abs_pos_emb", sized.position_embedding),
        "position_grid": ("pos_embed_grid_size", list(sized.position_grid or sized.grid)),
        "relative_position": ("use_rel_pos_bias", sized.relative_position),
    }
    found: dict[str, Any] = {
        argument: value for field, (argument, value) in table.items() if getattr(known, field) != getattr(sized, field)
    }
    if known.layer_scale and not sized.layer_scale:
        found["init_values"] = 0  # timm takes None for its default
    if known.split_qkv and (known.num_attention_heads, known.num_key_value_heads) != (
        sized.num_attention_heads,
        sized.num_key_value_heads,
    ):
        found["num_kv_heads"] = list(sized.num_key_value_heads) or sized.num_attention_heads
    before, after = (one.intermediate_size / one.hidden_size for one in (known, sized))
    if int(before * sized.hidden_size) != sized.intermediate_size:
        found["mlp_ratio"] = after * (2 if sized.mlp == "packed" else 1)
    return found


def _one(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _has(module: Any, attribute: str) -> bool:
    return getattr(module, attribute, None) is not None


def _flag(module: Any, attribute: str) -> bool:
    return bool(getattr(module, attribute, False))


def _is_there(module: Any, child: str) -> bool:
    """Whether the child is there and does something."""
    return _has(module, child) and class_name(getattr(module, child)) != _IDENTITY


def _resnet(patches: Any) -> Any:
    """The ResNet in front of the patch convolution, which is part of a patch embedding of one class alone."""
    return patches.backbone if class_name(patches) == "timm.HybridEmbed" else None


def _branches(block: Any) -> list[Any]:
    """The parallel branches of a block, each with its parts by the names of a plain block's; a plain block is one."""
    if class_name(block) != "timm.ParallelThingsBlock":
        return [block]
    return [
        SimpleNamespace(norm1=one.norm, attn=one.attn, ls1=one.ls, norm2=two.norm, mlp=two.mlp, ls2=two.ls)
        for one, two in zip(block.attns, block.ffns, strict=True)
    ]


def _relative_networks(model: Any) -> list[Any]:
    """The networks of relative positions: one for each block that has one, or the one that they share."""
    attentions: list[Any] = [getattr(block, "attn", None) for block in model.blocks]  # parallel branches have others
    found = [attention.rel_pos for attention in attentions if _has(attention, "rel_pos")]
    return [*found, model.shared_rel_pos] if _has(model, "shared_rel_pos") else found


def _layer_scale(block: Any) -> tuple[bool, bool]:
    """Whether attention and MLP have a LayerScale."""
    if hasattr(block, "ls1"):
        return _is_there(block, "ls1"), _is_there(block, "ls2")
    return _has(block, "gamma_1"), _has(block, "gamma_2")


def pattern_of(path: str) -> str:
    """A module or tensor name with its block number replaced: ``blocks.3.attn`` -> ``blocks.{i}.attn``.

    So are the numbers of parallel branches, and of stages and blocks of the ResNet before the patches.
    """
    for numbered, name in _NUMBERED:
        path = re.sub(rf"^{numbered}(?=\.|$)", name, path)
    return path


_NUMBERED = (
    (r"blocks\.[0-9]+", "blocks.{i}"),
    (r"blocks\.{i}\.(attns|ffns)\.[0-9]+", r"blocks.{i}.\1.{b}"),
    (r"patch_embed\.backbone\.stages\.[0-9]+", "patch_embed.backbone.stages.{s}"),
    (r"patch_embed\.backbone\.stages\.{s}\.blocks\.[0-9]+", "patch_embed.backbone.stages.{s}.blocks.{j}"),
)


def _unsupported_modules(model: Any) -> list[str]:
    """Phrases on the modules that are not on the whitelist, outermost first, each feature once."""
    root = class_name(model)
    if root not in _DESIGNS:
        name = root.rsplit(".", 1)[-1]
        return [f"another design (`timm.{name}`)" if root.startswith("timm.") else f"another design (`{root}`)"]
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        pattern, name = pattern_of(path), class_name(module)
        if not path or name in _DESIGNS[root].get(pattern, ()):
            continue
        phrase = _feature(pattern, path, name)
        if not any(pattern.startswith(f"{outer}.") for outer in found):
            found.setdefault(pattern, phrase)
    return list(dict.fromkeys(found.values()))


def _feature(pattern: str, path: str, class_name: str) -> str:
    for where, cls, phrase in _FEATURES:
        if pattern == where and (not cls or class_name.endswith(cls)):
            return phrase.format(path=path, i="{i}")
    return f"a module unknown to vitconv (`{path}` is a {class_name})"


def _unsupported_behaviour(model: Any) -> list[str]:
    """Phrases on modules whose class is known but which compute something else than their class does."""
    found = []
    for path, module in model.named_modules():
        name = f"`{path}`" if path else "the model itself"
        replaced = [attribute for attribute in vars(module) if callable(getattr(type(module), attribute, None))]
        if replaced:
            found.append(f"a method of its own ({name}: {first_few(replaced)})")
        if module._forward_hooks or module._forward_pre_hooks:
            found.append(f"forward hooks ({name}), which vitconv cannot convert")
    if [name for name, _ in model.blocks.named_children()] != [str(i) for i in range(len(model.blocks))]:
        found.append("blocks that run in another order than their numbers (`blocks`)")
    for path, branch in model.named_modules():
        part = {"blocks.{i}.attns.{b}": "attn", "blocks.{i}.ffns.{b}": "mlp"}.get(pattern_of(path))
        if part and [name for name, _ in branch.named_children()] != ["norm", part, "ls", "drop_path"]:
            found.append(f"a branch whose parts run in another order than timm's (`{path}`)")
    return found[:3]


def _unsupported_settings(model: Any) -> list[str]:
    """Phrases on settings of known modules that no class of Transformers has."""
    found = []
    pools = {"max": "max pooling", "avgmax": "mean-and-max pooling"}
    if model.global_pool in pools:
        found.append(f"{pools[model.global_pool]} (`global_pool='{model.global_pool}'`)")
    if _flag(model, "pool_include_prefix"):
        found.append("pooling of the tokens before the patches, too (`pool_include_prefix`)")
    if _has(model, "rope"):
        found += _rope_cat_settings(model) if class_name(model.rope) == _ROTARY_CAT else _rope_settings(model)
    if _has(model, "attn_pool"):
        found += _pool_settings(model)
    if _is_there(model, "neck"):
        found += _neck_settings(model)
    if _relative_networks(model):
        found += _network_settings(model)
    if _resnet(patch_embedding(model)):
        found += _resnet_settings(model)
    return found + _norm_settings(model) + _patch_settings(model) + _block_settings(model)


def _rope_settings(model: Any) -> list[str]:
    rope = model.rope
    plain = dict(rotate_half=True, normalize_coords="separate", grid_offset=0.0, grid_indexing="ij")
    odd = [name for name, value in plain.items() if getattr(rope, name) != value]
    odd += [name for name in ("min_period", "max_period") if getattr(rope, name) is not None]
    for block in model.blocks:
        if not block.attn.rotate_half or block.attn.num_prefix_tokens != model.num_prefix_tokens:
            odd.append("attn")
            break
    return [f"rotary positions set up otherwise than DINOv3's (`rope`: {first_few(odd)})"] if odd else []


def _rope_cat_settings(model: Any) -> list[str]:
    """Of Perception Encoder's, an offset of the grid is free without tokens that are not rotated: only the differences
    of positions count.
    """
    rope = model.rope
    plain = dict(rotate_half=False, in_pixels=False, grid_type="index", grid_indexing="xy")
    grid = rope.ref_feat_shape or (0, 1)
    same = all(getattr(rope, name, value) == value for name, value in plain.items()) and grid[0] == grid[1]
    if not same or any(block.attn.rotate_half or block.attn.num_prefix_tokens for block in model.blocks):
        if same and _has(model, "cls_token"):
            return ["a class token beside rotary positions as Perception Encoder's (`rope`)"]
        return ["rotary positions of another kind than DINOv3's (`rope`)"]
    return []


def _pool_settings(model: Any) -> list[str]:
    pool, first = model.attn_pool, _branches(model.blocks[0])[0]
    same = (
        pool.num_heads == first.attn.num_heads
        and pool.latent_len == 1
        and pool.pool == "token"
        and pool.pos_embed is None
        and pool.q.bias is not None
        and pool.kv.bias is not None
        and pool.latent.shape[-1] == pool.q.in_features == pool.out_features == model.embed_dim
        and pool.mlp.fc1.out_features == getattr(getattr(first.mlp, "fc1", None), "out_features", None)
        and _activation(pool.mlp.act) == _activation(first.mlp.act)
        and model.global_pool == "map"
    )
    return [] if same else ["another attention pooling than SigLIP's (`attn_pool`)"]


def _neck_settings(model: Any) -> list[str]:
    first, norm, second, last = model.neck
    same = (
        first.kernel_size == (1, 1)
        and (second.kernel_size, second.padding) == ((3, 3), (1, 1))
        and first.bias is second.bias is None
        and first.padding == (0, 0)
        and all(
            (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
            for conv in (first, second)
        )
        and norm.eps == last.eps == 1e-6
    )
    windows = {block.window_size for block in model.blocks if block.window_size}
    rotary = any(_has(block.attn, "rope") for block in model.blocks)
    return [] if same and len(windows) <= 1 and not rotary else ["another neck or other windows than SAM's (`neck`)"]


def _network_settings(model: Any) -> list[str]:
    networks = _relative_networks(model)
    same = len(networks) == (1 if _has(model, "shared_rel_pos") else len(model.blocks)) and all(
        (network.mode, network.bias_gain, network.prefix_tokens) == ("cr", None, int(_has(model, "cls_token")))
        and tuple(network.window_size) == tuple(model.patch_embed.grid_size)
        and (network.mlp.fc1.in_features, network.mlp.fc1.out_features) == (2, networks[0].mlp.fc1.out_features)
        and network.mlp.fc1.bias is not None
        and network.mlp.fc2.bias is not None
        for network in networks
    )
    where = "shared_rel_pos" if _has(model, "shared_rel_pos") else "blocks.0.attn.rel_pos"
    return [] if same else [f"relative positions from networks that are set up otherwise (`{where}`)"]


def _resnet_settings(model: Any) -> list[str]:
    """What Transformers' Bit computes, which has no settings for most of it; the shapes tell the rest."""
    stem, expected = model.patch_embed.backbone, mapping.timm_shapes(read(model))
    shapes = {f"patch_embed.backbone.{name}": tuple(tensor.shape) for name, tensor in stem.state_dict().items()}
    odd = [name for name in {**expected, **shapes} if "backbone" in name and expected.get(name) != shapes.get(name)]
    if [name for name, _ in stem.stem.named_children()] != ["conv", "norm", "pool"]:
        odd.append("patch_embed.backbone.stem")
    for path, module in stem.named_modules():
        if class_name(module) == "timm.StdConv2dSame":
            strided = path == "stem.conv" or re.fullmatch(r"stages\.[1-9]\.blocks\.0\.(conv2|downsample\.conv)", path)
            plain = module.bias is None and _padded_alike(module, 2 if strided else 1)
        elif class_name(module) == "timm.GroupNormAct":
            plain = (module.num_groups, module.eps) == (32, 1e-5)
        elif class_name(module) == "timm.MaxPool2dSame":
            settings = module.kernel_size, module.stride, module.dilation, bool(module.ceil_mode)
            plain = settings == ((3, 3), (2, 2), (1, 1), False)
        else:
            continue
        odd += [] if plain else [f"patch_embed.backbone.{path}"]
    if model.patch_embed.proj.kernel_size != (1, 1):
        odd.append("patch_embed.proj")
    listed = first_few([f"`{name}`" for name in odd], 2)
    return [f"another ResNet before the patches than BiT's ({listed})"] if odd else []


def _padded_alike(conv: Any, stride: int) -> bool:
    """Whether a standardised convolution strides, pads and divides as Bit's with this stride does."""
    padding = (0, 0) if stride == 2 else tuple(side // 2 for side in conv.kernel_size)
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.eps, bool(conv.same_pad))
    return settings == ((stride, stride), padding, (1, 1), 1, 1e-8, stride == 2)


def _norm_settings(model: Any) -> list[str]:
    norms = {path: module for path, module in model.named_modules() if class_name(module) in _NORM}
    found = []
    eps = {module.eps for module in norms.values()}
    if len(eps) > 1:
        found.append(f"norms of different epsilon ({first_few(map(str, sorted(eps)))})")
    if len({class_name(module) == _RMS_NORM for module in norms.values()}) > 1:
        found.append("both LayerNorm and RMS norm")
    if any(module.weight is None or getattr(module, "bias", True) is None for module in norms.values()):
        found.append("a norm without weight or bias")
    return found


def _patch_settings(model: Any) -> list[str]:
    if class_name(model) == NAFLEX:
        return _naflex_settings(model)
    patches, found = model.patch_embed, []
    conv = patches.proj
    plain = dict(stride=conv.kernel_size, padding=(0, 0), dilation=(1, 1), groups=1, padding_mode="zeros")
    odd = [name for name, value in plain.items() if getattr(conv, name) != value]
    if odd:
        found.append(f"overlapping or grouped patches (`patch_embed.proj`: {', '.join(odd)})")
    left_over = any(size % patch for size, patch in zip(patches.img_size, patches.patch_size, strict=True))
    if left_over and patches.dynamic_img_pad:
        found.append("padded images (`dynamic_img_pad`)")
    elif left_over and not patches.strict_img_size:
        found.append("an image size that is no multiple of the patches', which timm itself does not take (`img_size`)")
    return found


def _naflex_settings(model: Any) -> list[str]:
    embeds, found = model.embeds, []
    if embeds.pos_embed_type == "factorized":
        found.append("positions by row and column (`embeds.pos_embed_y`, `embeds.pos_embed_x`)")
    if embeds.pos_embed_interp_mode not in ("bilinear", "bicubic"):
        found.append(f"positions resampled by '{embeds.pos_embed_interp_mode}' (`embeds.pos_embed_interp_mode`)")
    if not embeds.channels_last:
        found.append("patches with their channels first (`patchify_channels_last`)")
    if any(size % patch for size, patch in zip(_nominal_size(model), embeds.patch_size, strict=True)):
        found.append("an image size that is no multiple of the patches' (`img_size`)")
    return found


def _block_settings(model: Any) -> list[str]:
    found = [] if len(model.blocks) else ["no blocks (`blocks`)"]
    settings: dict[str, set[Any]] = {}
    for path, block in model.blocks.named_children():
        branches = _branches(block)
        settings.setdefault("the number of branches", set()).add(len(branches))
        for number, branch in enumerate(branches):
            attention = f"blocks.{path}.attns.{number}" if branch is not block else f"blocks.{path}"
            found += _attention_settings(f"{attention}.attn", branch.attn, model.embed_dim)
            found += _mlp_settings(attention.replace("attns", "ffns"), branch.attn, branch.mlp)
            for name, value in _settings_of_every_block(branch).items():
                settings.setdefault(name, set()).add(value)
    if (False, True) in settings.get("LayerScale", ()):
        found.append("LayerScale on the MLP only (`ls2`)")
    found += [f"blocks that differ in {name}" for name, values in settings.items() if len(values) > 1]
    return found[:3]


def _attention_settings(path: str, attn: Any, hidden_size: int) -> list[str]:
    found = []
    width = (attn.q_proj.out_features if _has(attn, "q_proj") else attn.qkv.out_features // 3) // attn.num_heads
    if attn.num_heads * width != hidden_size or attn.scale != width**-0.5:
        found.append(
            f"heads of another width or scale (`{path}`: {attn.num_heads} heads of {width}, hidden size {hidden_size})"
        )
    if _has(attn, "q_proj") and (attn.q_proj.bias is None) != (attn.v_proj.bias is None):
        found.append(f"a bias in one of queries and values only (`{path}`)")
    if _is_there(attn, "q_norm") != _is_there(attn, "k_norm"):
        found.append(f"a norm of one of queries and keys only (`{path}`)")
    return found


def _mlp_settings(path: str, attn: Any, mlp: Any) -> list[str]:
    found = []
    kind = _MLPS[class_name(mlp)]
    if len({linear.bias is not None for linear in (attn.proj, *_linears(mlp))}) > 1:
        found.append(f"a bias in some of `attn.proj` and the MLP's layers only (`{path}`)")
    if kind != "plain" and (_activation(mlp.act) != "silu" or getattr(mlp, "gate_last", False)):
        found.append(f"another gate than SwiGLU's (`{path}.mlp`)")
    if kind == "packed" and getattr(mlp, "chunk_dim", -1) != -1:
        found.append(f"a gate along another dimension (`{path}.mlp`)")
    return found


def _linears(mlp: Any) -> list[Any]:
    return [mlp.fc1_g, mlp.fc1_x, mlp.fc2] if _MLPS[class_name(mlp)] == "gated" else [mlp.fc1, mlp.fc2]


def _settings_of_every_block(block: Any) -> dict[str, Any]:
    """What is read of the first block only, so that all must have the same."""
    attn, mlp = block.attn, block.mlp
    split = _has(attn, "q_proj")
    positions = ("relative_position_bias_table", "rel_pos_h", "rel_pos")
    return {
        "heads": attn.num_heads,
        "MLP": _MLPS[class_name(mlp)],
        "MLP width": _linears(mlp)[0].out_features,
        "activation": _activation(mlp.act),
        "LayerScale": _layer_scale(block),
        "qkv bias": (split, (attn.q_proj if split else attn.qkv).bias is not None, _has(attn, "q_bias")),
        "key bias": split and attn.k_proj.bias is not None,
        "norms of queries and keys": (_is_there(attn, "q_norm"), _is_there(attn, "k_norm")),
        "projection bias": attn.proj.bias is not None,
        "relative positions": tuple(_has(attn, name) for name in positions),
    }


def _activation(module: Any) -> str:
    name = class_name(module)
    if name == "torch.nn.GELU" and module.approximate == "tanh":
        return "gelu_pytorch_tanh"
    return _ACTIVATIONS[name]
