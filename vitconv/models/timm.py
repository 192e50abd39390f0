"""timm's models: build one without weights, and read from its modules what it computes, by whitelist.

The facts are read from the modules, never from a name: a module or setting that this page does not know is a refusal.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv import mapping
from vitconv.architecture import Architecture
from vitconv.errors import ArchitectureError, CheckpointError, VitconvError, first_few, shown
from vitconv.mapping.wrapper import WAY_OUT
from vitconv.models import catalogue
from vitconv.models.timm_state import class_name, contradictions

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
        elif name == "timm.PatchDropout":
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
_VISION_TRANSFORMER: dict[str, tuple[str, ...]] = {
    **_STEM,
    "patch_drop": (_IDENTITY, "timm.PatchDropout"),
    **_BLOCK,
    "blocks.{i}": ("timm.Block",),
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
_DESIGNS: dict[str, dict[str, tuple[str, ...]]] = {
    "timm.VisionTransformer": _VISION_TRANSFORMER,
    "timm.VisionTransformerDistilled": {**_VISION_TRANSFORMER, "head_dist": (_LINEAR, _IDENTITY)},
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
        "rope": ("timm.RotaryEmbeddingDinoV3",),
        **_HEAD,
    },
    "timm.vision_transformer_relpos.VisionTransformerRelPos": {
        **_STEM,
        "blocks": ("torch.nn.ModuleList",),
        **_BLOCK,
        "blocks.{i}": ("timm.vision_transformer_relpos.RelPosBlock",),
        "blocks.{i}.attn": ("timm.vision_transformer_relpos.RelPosAttention",),
        "blocks.{i}.attn.rel_pos": ("timm.RelPosMlp",),
        "blocks.{i}.attn.rel_pos.bias_act": (_IDENTITY,),
        "blocks.{i}.attn.rel_pos.mlp": ("timm.Mlp",),
        "blocks.{i}.attn.rel_pos.mlp.fc1": (_LINEAR,),
        "blocks.{i}.attn.rel_pos.mlp.act": ("torch.nn.ReLU",),
        "blocks.{i}.attn.rel_pos.mlp.drop1": (_DROPOUT,),
        "blocks.{i}.attn.rel_pos.mlp.norm": (_IDENTITY,),
        "blocks.{i}.attn.rel_pos.mlp.fc2": (_LINEAR,),
        "blocks.{i}.attn.rel_pos.mlp.drop2": (_DROPOUT,),
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
        "head.fc": (_IDENTITY,),
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
    ("norm_pre", "", "another norm before the blocks than LayerNorm (`{path}`)"),
    ("blocks.{i}", "ParallelThingsBlock", "parallel blocks (`{path}`)"),
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
    ("shared_rel_pos", "", "relative positions that all blocks share (`{path}`)"),
    ("neck", "", "another neck than SAM's two convolutions (`{path}`)"),
    ("head.fc", "", "a classification head (`{path}`)"),
    ("rope", "RotaryEmbeddingMixed", "rotary positions that are learned (`{path}`)"),
    ("rope", "", "rotary positions of another kind than DINOv3's (`{path}`)"),
    ("fc_norm", "RmsNorm", "RMS norm after the pooling (`{path}`)"),
    ("attn_pool", "", "another attention pooling than SigLIP's (`{path}`)"),
)

# Why a design of timm's is refused as a whole.
_OTHER_DESIGNS = {
    "NaFlexVit": "takes images of any size and shape as patches with their coordinates",
}


def from_timm(model: nn.Module) -> Architecture:
    """Read the architecture from a timm model's modules and shapes; the weights may be on ``meta``.

    Raises:
        ArchitectureError: no Transformers class computes what the model computes; the message names each feature
            that stands in the way, and its module. Or a model that was edited contradicts itself; the message names
            the attributes and buffers.
    """
    try:
        obstacles = _unsupported_modules(model) or _unsupported_behaviour(model) or _unsupported_settings(model)
        if obstacles:
            raise ArchitectureError(
                f"No Transformers class computes what this model computes: it has {'; and '.join(obstacles)}.",
                f"{WAY_OUT} `vitconv models` lists the architectures that convert.",
            )
        _check_state(model)
        architecture = read(model)
        mapping.family_for(architecture)
    except VitconvError:
        raise
    except Exception as error:  # an edited model may hold anything
        _check_state(model)
        raise ArchitectureError(
            f"The model's parts do not fit together: {type(error).__name__}: {str(error)[:200]}.", _REBUILD
        ) from error
    return architecture


_REBUILD = "Build the model anew with timm and load its weights, or keep it in timm."


def _check_state(model: Any) -> None:
    odd = contradictions(model)
    if odd:
        raise ArchitectureError(
            f"The model was edited, and contradicts what timm builds or its own weights: {first_few(odd)}.", _REBUILD
        )


def read(model: Any) -> Architecture:
    """The architecture of a timm model that converts; nothing is checked: :func:`from_timm` does that."""
    blocks = list(model.blocks)
    first, patches, head = blocks[0], model.patch_embed, model.head
    mlp = _MLPS[class_name(first.mlp)]
    registers = model.reg_token.shape[1] if _has(model, "reg_token") else 0
    class_token = _has(model, "cls_token")
    position_embedding = _has(model, "pos_embed")
    windows = [getattr(block, "window_size", 0) for block in blocks]
    separate_biases, split = hasattr(first.attn, "q_bias"), _has(first.attn, "q_proj")
    queries = first.attn.q_proj if split else first.attn.qkv
    key_value_heads = tuple(getattr(block.attn, "num_kv_heads", block.attn.num_heads) for block in blocks)
    width = (first.mlp.fc1_g if mlp == "gated" else first.mlp.fc1).out_features
    return Architecture(
        image_size=tuple(patches.img_size),
        patch_size=tuple(patches.patch_size),
        num_channels=patches.proj.in_channels,
        hidden_size=model.embed_dim,
        num_hidden_layers=len(blocks),
        num_attention_heads=first.attn.num_heads,
        intermediate_size=width // 2 if mlp == "packed" else width,
        hidden_act=_activation(first.mlp.act),
        layer_norm_eps=first.norm1.eps,
        num_labels=getattr(head, "out_features", 0),
        design=type(model).__name__,
        global_pool=model.global_pool,
        class_token=class_token,
        num_register_tokens=registers,
        distillation_token=_has(model, "dist_token"),
        position_embedding=position_embedding,
        # Without positions, or without tokens before the patches, the question does not arise.
        class_position=not (position_embedding and (class_token or registers) and _flag(model, "no_embed_class")),
        relative_position=_has(first.attn, "relative_position_bias_table"),
        relative_network=first.attn.rel_pos.mlp.fc1.out_features if _has(first.attn, "rel_pos") else 0,
        axis_positions=_has(first.attn, "rel_pos_h"),
        window_size=max(windows),
        global_attention=tuple(i for i, size in enumerate(windows) if not size) if any(windows) else (),
        neck_channels=model.neck[0].out_channels if _is_there(model, "neck") else 0,
        rope_theta=model.rope.temperature if _has(model, "rope") else 0.0,
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
        "global_pool": ("global_pool", sized.global_pool),
        "window_size": ("window_size", sized.window_size),
        "global_attention": ("global_attn_indexes", list(sized.global_attention)),
        "neck_channels": ("neck_chans", sized.neck_channels),
        "position_embedding": ("use_abs_pos_emb", sized.position_embedding),
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


def _layer_scale(block: Any) -> tuple[bool, bool]:
    """Whether attention and MLP have a LayerScale."""
    if hasattr(block, "ls1"):
        return _is_there(block, "ls1"), _is_there(block, "ls2")
    return _has(block, "gamma_1"), _has(block, "gamma_2")


def pattern_of(path: str) -> str:
    """A module or tensor name with its block number replaced: ``blocks.3.attn`` -> ``blocks.{i}.attn``."""
    return re.sub(r"^blocks\.[0-9]+(?=\.|$)", "blocks.{i}", path)


def _unsupported_modules(model: Any) -> list[str]:
    """Phrases on the modules that are not on the whitelist, outermost first, each feature once."""
    root = class_name(model)
    if root not in _DESIGNS:
        name = root.rsplit(".", 1)[-1]
        why = f", which {_OTHER_DESIGNS[name]}" if name in _OTHER_DESIGNS else ""
        return [f"another design (`timm.{name}`{why})" if root.startswith("timm.") else f"another design (`{root}`)"]
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
        found += _rope_settings(model)
    if _has(model, "attn_pool"):
        found += _pool_settings(model)
    if _is_there(model, "neck"):
        found += _neck_settings(model)
    if any(_has(block.attn, "rel_pos") for block in model.blocks):
        found += _network_settings(model)
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


def _pool_settings(model: Any) -> list[str]:
    pool, first = model.attn_pool, model.blocks[0]
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
    networks = [block.attn.rel_pos for block in model.blocks]
    same = all(
        network is not None
        and (network.mode, network.bias_gain, network.prefix_tokens) == ("cr", None, int(_has(model, "cls_token")))
        and tuple(network.window_size) == tuple(model.patch_embed.grid_size)
        and (network.mlp.fc1.in_features, network.mlp.fc1.out_features) == (2, networks[0].mlp.fc1.out_features)
        and network.mlp.fc1.bias is not None
        and network.mlp.fc2.bias is not None
        for network in networks
    )
    return [] if same else ["relative positions from networks that are set up otherwise (`blocks.0.attn.rel_pos`)"]


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


def _block_settings(model: Any) -> list[str]:
    found = [] if len(model.blocks) else ["no blocks (`blocks`)"]
    settings: dict[str, set[Any]] = {}
    for path, block in model.blocks.named_children():
        found += _attention_settings(f"blocks.{path}.attn", block.attn, model.embed_dim)
        found += _mlp_settings(f"blocks.{path}", block.attn, block.mlp)
        for name, value in _settings_of_every_block(block).items():
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
