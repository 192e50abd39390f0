"""What a Vision Transformer is: the facts that decide which numbers it computes.

The facts are read from a timm model's modules, never from its name, and by whitelist: a module that this
page does not know is a refusal. Nothing here imports torch or timm until it is handed a name or a model.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vitconv.errors import ArchitectureError, InputError, WeightsError, first_few

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """A timm Vision Transformer, as far as its numbers depend on it.

    Sizes are ``(height, width)`` in pixels. The names are those of Transformers' configurations where it has
    one, and timm's arguments where it has none.

    Attributes:
        num_labels: rows of the classification head; 0 for a headless model.
        hidden_act: the MLP's activation, by its name in ``transformers.activations.ACT2FN``.
        global_pool: timm's pooling: ``"token"`` reads the class token, ``""`` returns every token.
        layer_scale: a learned factor per channel after attention and after the MLP.
        class_position: ``pos_embed`` has a row for the class token (timm: ``not no_embed_class``).
        fc_norm: the final norm comes after the pooling instead of before it.
        patch_bias, qkv_bias, proj_bias, head_bias: the patch convolution, ``attn.qkv``, ``attn.proj`` with both
            MLP layers, and the classification head have a bias.
        pooler: there is a square linear layer on the class token where a headless timm model has none
            (never true of a model as timm builds it: see :mod:`vitconv.simplify`).
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    num_labels: int
    global_pool: str = "token"
    layer_scale: bool = False
    class_position: bool = True
    fc_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    proj_bias: bool = True
    head_bias: bool = True
    pooler: bool = False

    @property
    def classifier(self) -> bool:
        """Whether the model ends in a classification head."""
        return self.num_labels > 0

    @property
    def classifier_bias(self) -> bool:
        """Whether the classification head is there and has a bias."""
        return self.classifier and self.head_bias

    @property
    def final_norm(self) -> bool:
        """Whether the final norm is timm's ``norm``, before the pooling."""
        return not self.fc_norm

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in a column and in a row; a remainder at the right or the bottom edge is not seen."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_positions(self) -> int:
        """Rows of ``pos_embed``."""
        return math.prod(self.grid) + self.class_position


def from_name(name: str) -> Architecture:
    """Read the architecture that timm builds for ``name``, such as ``"vit_base_patch16_384"``.

    Raises:
        ArchitectureError: timm does not know the name, or no Transformers class can express the model.
    """
    return from_timm(build_timm(name))


def build_timm(name: str, **overrides: Any) -> nn.Module:
    """Build timm's ``name`` without weights (on torch's ``meta`` device), in a fraction of a second.

    Raises:
        ArchitectureError: timm does not know the name or its tag.
    """
    import timm
    import torch

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=4)
        raise ArchitectureError(
            f"timm {timm.__version__} has no architecture named '{name}'.",
            f"Did you mean {', '.join(close)}?" if close else "List the names with timm.list_models('*vit*').",
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ArchitectureError(
            f"timm {timm.__version__} has no pretrained tag '{tag}' for '{base}'.",
            f"Use '{base}' alone" + (f", or one of its tags: {first_few(tags, 8)}." if tags else "."),
        )
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **overrides)
    except Exception as error:  # arguments come from files, and timm does not check them
        raise ArchitectureError(
            f"timm cannot build '{name}' with {', '.join(overrides) or 'its own settings'}: {str(error)[:200]}.",
            "Check the arguments; a folder's are in its config.json.",
        ) from error


# ------------------------------------------------------------------------------------------------------------
# Reading a timm model, by whitelist.

_LINEAR, _IDENTITY, _DROPOUT = "torch.nn.Linear", "torch.nn.Identity", "torch.nn.Dropout"
_NORM = ("timm.LayerNorm", "torch.nn.LayerNorm")
_ACTIVATIONS = {
    "torch.nn.GELU": "gelu",
    "timm.GELU": "gelu",
    "timm.GELUTanh": "gelu_pytorch_tanh",
    "timm.QuickGELU": "quick_gelu",
    "torch.nn.SiLU": "silu",
    "torch.nn.ReLU": "relu",
}

# Every module a convertible model may have, and of which classes. Whatever is not listed is refused.
_KNOWN_MODULES: dict[str, tuple[str, ...]] = {
    "": ("timm.VisionTransformer",),
    "patch_embed": ("timm.PatchEmbed",),
    "patch_embed.proj": ("torch.nn.Conv2d",),
    "patch_embed.norm": (_IDENTITY,),
    "pos_drop": (_DROPOUT,),
    "patch_drop": (_IDENTITY, "timm.PatchDropout"),
    "norm_pre": (_IDENTITY,),
    "blocks": ("torch.nn.Sequential",),
    "blocks.{i}": ("timm.Block",),
    "blocks.{i}.norm1": _NORM,
    "blocks.{i}.attn": ("timm.Attention",),
    "blocks.{i}.attn.qkv": (_LINEAR,),
    "blocks.{i}.attn.q_norm": (_IDENTITY,),
    "blocks.{i}.attn.k_norm": (_IDENTITY,),
    "blocks.{i}.attn.attn_drop": (_DROPOUT,),
    "blocks.{i}.attn.norm": (_IDENTITY,),
    "blocks.{i}.attn.proj": (_LINEAR,),
    "blocks.{i}.attn.proj_drop": (_DROPOUT,),
    "blocks.{i}.ls1": (_IDENTITY, "timm.LayerScale"),
    "blocks.{i}.drop_path1": (_IDENTITY, "timm.DropPath"),
    "blocks.{i}.norm2": _NORM,
    "blocks.{i}.mlp": ("timm.Mlp",),
    "blocks.{i}.mlp.fc1": (_LINEAR,),
    "blocks.{i}.mlp.act": tuple(_ACTIVATIONS),
    "blocks.{i}.mlp.drop1": (_DROPOUT,),
    "blocks.{i}.mlp.norm": (_IDENTITY,),
    "blocks.{i}.mlp.fc2": (_LINEAR,),
    "blocks.{i}.mlp.drop2": (_DROPOUT,),
    "blocks.{i}.ls2": (_IDENTITY, "timm.LayerScale"),
    "blocks.{i}.drop_path2": (_IDENTITY, "timm.DropPath"),
    "norm": (*_NORM, _IDENTITY),
    "fc_norm": (*_NORM, _IDENTITY),
    "head_drop": (_DROPOUT,),
    "head": (_LINEAR, _IDENTITY),
}

# What an unlisted module means, in the words of the field: (where, which class) -> the feature and the reason.
# Only the wording of a refusal depends on this table, never whether there is one.
_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("", "VisionTransformerDistilled", "a distillation token (`dist_token`): ViT has one class token"),
    ("attn_pool", "", "attention pooling (`attn_pool`): ViTForImageClassification reads the class token"),
    ("patch_embed", "", "another patch embedding (`{path}`): ViT cuts the image with one convolution"),
    ("patch_embed.norm", "", "a norm on the patches (`{path}`): ViT adds the positions to the bare patches"),
    ("norm_pre", "", "a norm before the blocks (`{path}`): ViT's first block takes the bare embeddings"),
    ("blocks.{i}", "ParallelThingsBlock", "parallel blocks (`{path}`): ViT's layers run one after another"),
    ("blocks.{i}", "ParallelScalingBlock", "parallel attention and MLP (`{path}`): ViT runs them in turn"),
    ("blocks.{i}", "ResPostBlock", "norms after attention and MLP (`{path}`): ViT's norms come before them"),
    ("blocks.{i}.attn", "DiffAttention", "differential attention (`{path}`): ViT's attention is the plain one"),
    ("blocks.{i}.attn.q_norm", "", "normalised queries (`{path}`): ViT's attention has no such norm"),
    ("blocks.{i}.attn.k_norm", "", "normalised keys (`{path}`): ViT's attention has no such norm"),
    ("blocks.{i}.attn.norm", "", "a norm after attention (`{path}`): ViT's attention has no such norm"),
    ("blocks.{i}.attn.gate", "", "gated attention (`{path}`): ViT's attention has no gate"),
    ("blocks.{i}.mlp", "GluMlp", "a gated MLP (`{path}`): ViT's MLP has two plain layers"),
    ("blocks.{i}.mlp", "SwiGLU", "a gated MLP (`{path}`): ViT's MLP has two plain layers"),
    ("blocks.{i}.mlp.norm", "", "a norm inside the MLP (`{path}`): ViT's MLP has no such norm"),
    ("blocks.{i}.norm1", "RmsNorm", "RMS norm (`{path}`): ViT's norms are LayerNorm"),
)


def from_timm(model: nn.Module) -> Architecture:
    """Read the architecture from a timm model's modules and shapes; the weights may be on ``meta``.

    Raises:
        ArchitectureError: the model has something ``ViTForImageClassification`` (headless: ``ViTModel``)
            cannot express; the message names each feature and its module.
    """
    obstacles = _foreign_modules(model) or _foreign_behaviour(model) or _foreign_settings(model)
    if obstacles:
        raise ArchitectureError(
            f"Transformers' ViT cannot express this model: it has {'; and '.join(obstacles)}.",
            "Train or choose a class-token ViT or DeiT, or keep this model in timm.",
        )
    blocks = list(model.blocks)
    first, patches, head = blocks[0], model.patch_embed, model.head
    return Architecture(
        image_size=tuple(patches.img_size),
        patch_size=tuple(patches.patch_size),
        num_channels=patches.proj.in_channels,
        hidden_size=model.embed_dim,
        num_hidden_layers=len(blocks),
        num_attention_heads=first.attn.num_heads,
        intermediate_size=first.mlp.fc1.out_features,
        hidden_act=_activation(first.mlp.act),
        layer_norm_eps=first.norm1.eps,
        num_labels=getattr(head, "out_features", 0),
        global_pool=model.global_pool,
        layer_scale=_class_name(first.ls1) != _IDENTITY,
        class_position=not model.no_embed_class,
        fc_norm=_class_name(model.fc_norm) != _IDENTITY,
        patch_bias=patches.proj.bias is not None,
        qkv_bias=first.attn.qkv.bias is not None,
        proj_bias=first.attn.proj.bias is not None,
        head_bias=getattr(head, "bias", True) is not None,
    )


def _class_name(module: nn.Module) -> str:
    """The class by the library it comes from: ``torch.nn.Linear``, ``timm.Attention``, or its full path.

    The exact class counts: a subclass computes something else.
    """
    cls = type(module)
    if cls.__module__.startswith("torch.nn.modules."):
        return f"torch.nn.{cls.__name__}"
    if cls.__module__.startswith("timm."):
        return f"timm.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def pattern_of(path: str) -> str:
    """A module or tensor name with its block number replaced: ``blocks.3.attn`` -> ``blocks.{i}.attn``."""
    return re.sub(r"^blocks\.[0-9]+(?=\.|$)", "blocks.{i}", path)


def _foreign_modules(model: nn.Module) -> list[str]:
    """Sentences on the modules that are not on the whitelist, outermost first, each feature once."""
    root = _class_name(model)
    if root not in (*_KNOWN_MODULES[""], "timm.VisionTransformerDistilled"):
        return [f"another design (`{root}`): vitconv reads timm's VisionTransformer"]
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        pattern, name = pattern_of(path), _class_name(module)
        if name in _KNOWN_MODULES.get(pattern, ()):
            continue
        sentence = _feature(pattern, path, name)
        if not any(pattern.startswith(f"{outer}.") for outer in found if outer):
            found.setdefault(pattern, sentence)
    # A distilled model's second head says nothing that its token did not say.
    if "" in found:
        found.pop("head_dist", None)
    return list(dict.fromkeys(found.values()))


def _feature(pattern: str, path: str, class_name: str) -> str:
    for where, cls, sentence in _FEATURES:
        if pattern == where and (not cls or class_name.endswith(cls)):
            return sentence.format(path=path, i="{i}")
    return f"a module unknown to vitconv (`{path}` is a {class_name})"


def _foreign_behaviour(model: nn.Module) -> list[str]:
    """Sentences on modules whose class is known but which compute something else than their class does."""
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


def _foreign_settings(model: nn.Module) -> list[str]:
    """Sentences on settings of known modules that Transformers' ViT does not have."""
    found = []
    pools = {"avg": "mean pooling", "max": "max pooling", "avgmax": "mean-and-max pooling"}
    pool, headless = model.global_pool, _class_name(model.head) == _IDENTITY
    if not (pool == "token" or (pool == "" and headless)):
        name = pools.get(pool, "no pooling" if pool == "" else "another pooling")
        found.append(f"{name} (`global_pool='{pool}'`): ViTForImageClassification reads the class token")
    if model.cls_token is None:
        found.append("no class token (`cls_token`): ViT has one")
    if model.num_reg_tokens:
        found.append(f"{model.num_reg_tokens} register tokens (`reg_token`): ViT has a class token alone")
    if model.pos_embed is None:
        found.append("no position embedding (`pos_embed`): ViT adds one")
    found += _norm_settings(model) + _patch_settings(model) + _block_settings(model)
    return found


def _norm_settings(model: nn.Module) -> list[str]:
    norms = {path: module for path, module in model.named_modules() if _class_name(module) in _NORM}
    found = []
    present = [name for name in ("norm", "fc_norm") if name in norms]
    if len(present) != 1:
        found.append(f"{len(present)} final norms (`norm`, `fc_norm`): ViT has exactly one")
    eps = {module.eps for module in norms.values()}
    if len(eps) > 1:
        found.append(f"norms of different epsilon ({first_few(map(str, sorted(eps)))}): ViT has one for all")
    if any(module.weight is None or module.bias is None for module in norms.values()):
        found.append("a norm without weight or bias: ViT's norms have both")
    return found


def _patch_settings(model: nn.Module) -> list[str]:
    patches, found = model.patch_embed, []
    conv = patches.proj
    plain = dict(stride=conv.kernel_size, padding=(0, 0), dilation=(1, 1), groups=1, padding_mode="zeros")
    odd = [name for name, value in plain.items() if getattr(conv, name) != value]
    if odd:
        found.append(f"overlapping or grouped patches (`patch_embed.proj`: {', '.join(odd)}): ViT cuts a plain grid")
    if patches.dynamic_img_pad and any(
        size % patch for size, patch in zip(patches.img_size, patches.patch_size, strict=True)
    ):
        found.append("padded images (`dynamic_img_pad`): ViT does not pad")
    return found


def _block_settings(model: nn.Module) -> list[str]:
    found = [] if len(model.blocks) else ["no blocks (`blocks`)"]
    settings: dict[str, set[Any]] = {}
    for path, block in model.blocks.named_children():
        attn, mlp = block.attn, block.mlp
        if attn.num_heads * attn.head_dim != model.embed_dim or attn.scale != attn.head_dim**-0.5:
            found.append(
                f"heads of another width or scale (`blocks.{path}.attn`: {attn.num_heads} heads of "
                f"{attn.head_dim}, hidden size {model.embed_dim}): ViT's heads share the hidden size"
            )
        biases = {linear.bias is not None for linear in (attn.proj, mlp.fc1, mlp.fc2)}
        if len(biases) > 1:
            found.append(f"a bias in some of `attn.proj`, `mlp.fc1`, `mlp.fc2` only (`blocks.{path}`)")
        for name, value in {
            "heads": attn.num_heads,
            "MLP width": mlp.fc1.out_features,
            "activation": _activation(mlp.act),
            "LayerScale": (_class_name(block.ls1), _class_name(block.ls2)),
            "qkv bias": attn.qkv.bias is not None,
            "projection bias": attn.proj.bias is not None,
        }.items():
            settings.setdefault(name, set()).add(value)
    if any(len(set(pair)) > 1 for pair in settings.get("LayerScale", ())):
        found.append("LayerScale on one branch only (`ls1`, `ls2`)")
    found += [f"blocks that differ in {name}" for name, values in settings.items() if len(values) > 1]
    return found[:3]


def _activation(module: nn.Module) -> str:
    if getattr(module, "approximate", "none") == "tanh":
        return "gelu_pytorch_tanh"
    return _ACTIVATIONS[_class_name(module)]


# ------------------------------------------------------------------------------------------------------------
# What the weights' shapes tell.


def fit_to_weights(
    architecture: Architecture, shapes: Shapes, image_size: tuple[int, int] | None = None
) -> Architecture:
    """The same architecture with the classes, channels and image size that the weights were trained for.

    ``pos_embed`` tells the number of patches, not their arrangement: the architecture's own arrangement is
    kept where it fits, else a square is assumed, else ``image_size`` (height, width) must say.

    Raises:
        InputError: the image size is needed, or the given one contradicts the weights.
        WeightsError: a tensor that tells a size is missing or has an impossible shape.
    """
    pos_embed = _shape(shapes, "pos_embed", 3)
    patch = _shape(shapes, "patch_embed.proj.weight", 4)
    head = _shape(shapes, "head.weight", 2) if "head.weight" in shapes else (0, 0)
    fitted = replace(architecture, num_channels=patch[1], num_labels=head[0])
    patches = pos_embed[1] - architecture.class_position
    if image_size is not None:
        fitted = replace(fitted, image_size=(int(image_size[0]), int(image_size[1])))
        if min(fitted.image_size) <= 0:
            raise InputError(f"Image size {image_size[0]}x{image_size[1]} is not positive.", "Give height and width.")
        if math.prod(fitted.grid) != patches:
            raise InputError(
                f"Image size {image_size[0]}x{image_size[1]} makes {fitted.grid[0]}x{fitted.grid[1]} patches, "
                f"but `pos_embed` was trained for {patches}.",
                f"Use the size it was trained at: {_possible_sizes(patches, fitted.patch_size)}.",
            )
        return fitted
    if math.prod(fitted.grid) == patches:
        return fitted
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        # 196 positions are 14 x 14 patches without a class token's, whatever the architecture says.
        square = architecture.class_position and math.isqrt(pos_embed[1]) ** 2 == pos_embed[1]
        hint = f"; or, as {pos_embed[1]} is a square, name an architecture with `no_embed_class`" if square else ""
        raise InputError(
            f"`pos_embed` was trained for {patches} patches, which is no square.",
            f"Give the image size (height, width): {_possible_sizes(patches, fitted.patch_size)}{hint}.",
        )
    return replace(fitted, image_size=(side * fitted.patch_size[0], side * fitted.patch_size[1]))


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        what = "is missing" if shape is None else f"has shape {list(shape)} instead of {rank} dimensions"
        raise WeightsError(f"The tensor `{name}` {what}.", "Pass the state dict of a timm Vision Transformer.")
    return shape


def _possible_sizes(patches: int, patch: tuple[int, int]) -> str:
    grids = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    grids.sort(key=lambda grid: abs(math.log(grid[0] / grid[1])))
    return first_few((f"{rows * patch[0]}x{cols * patch[1]}" for rows, cols in grids), 5)


def describe_shapes(shapes: Shapes) -> str:
    """What the shapes alone tell of a Vision Transformer, in one line for people; empty if it is none.

    >>> describe_shapes({"patch_embed.proj.weight": (768, 3, 16, 16), "pos_embed": (1, 577, 768),
    ...                  "blocks.0.norm1.weight": (768,), "head.weight": (7, 768)})
    'width 768, 1 block, patch 16x16, 3 channels, image 384x384, 7 classes'
    """
    patch, pos = shapes.get("patch_embed.proj.weight"), shapes.get("pos_embed")
    blocks = count_blocks(shapes)
    if not (patch and len(patch) == 4 and blocks):
        return ""
    facts = [f"width {patch[0]}", f"{blocks} block{'s' * (blocks > 1)}", f"patch {patch[2]}x{patch[3]}"]
    facts.append(f"{patch[1]} channel{'s' * (patch[1] > 1)}")
    if pos and len(pos) == 3:
        sides = {math.isqrt(n): n for n in (pos[1], pos[1] - 1) if n > 0 and math.isqrt(n) ** 2 == n}
        facts += [f"image {s * patch[2]}x{s * patch[3]}" for s in sides] or [f"{pos[1]} positions"]
    head = shapes.get("head.weight")
    facts.append(f"{head[0]} class{'es' * (head[0] > 1)}" if head else "no head")
    return ", ".join(facts)


def count_blocks(names: Iterable[str]) -> int:
    """The number of different ``blocks.<i>.`` among tensor names."""
    return len({match[1] for match in (re.match(r"blocks\.([0-9]+)\.", name) for name in names) if match})
