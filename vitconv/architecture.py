"""What a Vision Transformer is: the facts that decide which numbers it computes. Nothing here imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vitconv.errors import InputError, WeightsError, count_classes, first_few, shown

Shapes = Mapping[str, tuple[int, ...]]

#: The most pixels of an image, and of what its resize makes of it: 8192x6144, 50 million. Reading and preparing one
#: takes up to 31 bytes a pixel (measured: WebP with transparency, Transformers' processor), so that with the model and
#: its libraries the largest takes less than 2 GiB. Pillow warns from 89 million on, and refuses only twice that.
MOST_PIXELS = 3 * 2**24
#: What timm calls the weight of a classification head; the second in SAM.
HEADS = ("head.weight", "head.fc.weight")


#: Where timm has the ResNet in front of the patch convolution.
_STEM = "patch_embed.backbone"


@dataclass(frozen=True, repr=False)
class Architecture:
    """A timm Vision Transformer, as far as its numbers depend on it.

    Sizes are ``(height, width)`` in pixels. The names are those of Transformers' configurations where it has
    one, and timm's arguments where it has none. A field's default is what Transformers' ViT does; what a class of
    Transformers expresses beyond that, its table in :mod:`vitconv.mapping` lists.

    Attributes:
        num_labels: rows of the classification head; 0 for a headless model.
        hidden_act: the MLP's activation, by its name in ``transformers.activations.ACT2FN``.
        design: timm's class, which decides how the tensors are called.
        stem_depths: the blocks in each stage of a ResNet in front of the patch convolution, which sees one place of
            its features at a time; empty without one. ``patch_size`` is the pixels from place to place.
        parallel_branches: how many attentions stand side by side in a block, and how many MLPs behind them; heads and
            MLP width are those of one.
        global_pool: timm's pooling: ``"token"`` reads the class token, ``"avg"`` is the mean of the patches, ``"map"``
            attention pooling, ``""`` returns every token.
        class_token: the first token stands for the image.
        num_register_tokens: further learned tokens before the patches.
        distillation_token: DeiT's second token, with a head of its own.
        position_embedding: a learned position is added to each patch.
        class_position: ``pos_embed`` also has rows for the tokens before the patches (timm: ``not no_embed_class``).
        position_grid: the rows and columns of ``pos_embed`` where they are not those of the image's patches, so that
            timm resamples it in each forward pass; empty where they are, as in every model but ``NaFlexVit``.
        position_resampling: how ``NaFlexVit`` resamples: the interpolation and, where they apply, ``"antialias"``,
            ``"align_corners"`` and ``"cropped"`` (to a square, and the image's part of it is taken); empty for others.
        relative_position: each block has a table of biases by relative position.
        relative_network: the width of a small network that computes the biases by relative position; 0 without one.
        shared_relative_position: all blocks have the same biases by relative position.
        axis_positions: each block has biases by relative position along each axis, as SAM has.
        window_size: the side of the windows that attention is confined to, in patches; 0 without.
        global_attention: with windows, the blocks that attend to everything.
        neck_channels: of SAM's convolutions after the blocks; 0 without.
        rope_theta: the base of the rotary embedding of queries and keys; 0 without one.
        rope_grid: the side of the grid whose columns and rows the rotary embedding counts, as Perception Encoder's; a
            picture's own grid is scaled to it. 0 for DINOv3's, which counts nothing: it goes from -1 to 1.
        patch_norm: a norm on the patches, before the positions are added.
        pre_norm: a norm before the blocks.
        qk_norm: queries and keys are normed, head by head.
        split_qkv: queries, keys and values have layers of their own.
        num_key_value_heads: heads of keys and values, block by block, where they are fewer than those of the queries.
        rms_norm: the norms are RMS norms, without mean and bias.
        mlp: ``"plain"``, or SwiGLU: ``"packed"`` in one layer (gate, then value), ``"gated"`` in two.
        layer_scale: a learned factor per channel after attention and after the MLP.
        layer_scale_on_mlp: the MLP has one, too, where attention has one.
        final_norm: a norm before the pooling (timm: ``norm``).
        fc_norm: a norm after the pooling.
        patch_bias, qkv_bias, proj_bias, head_bias: the patch convolution, queries and values, ``attn.proj`` with the
            MLP's layers, and the classification head have a bias.
        key_bias: keys have a bias where queries and values have one.
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
    design: str = "VisionTransformer"
    stem_depths: tuple[int, ...] = ()
    parallel_branches: int = 1
    global_pool: str = "token"
    class_token: bool = True
    num_register_tokens: int = 0
    distillation_token: bool = False
    position_embedding: bool = True
    class_position: bool = True
    position_grid: tuple[int, ...] = ()
    position_resampling: str = ""
    relative_position: bool = False
    relative_network: int = 0
    shared_relative_position: bool = False
    axis_positions: bool = False
    window_size: int = 0
    global_attention: tuple[int, ...] = ()
    neck_channels: int = 0
    rope_theta: float = 0.0
    rope_grid: int = 0
    patch_norm: bool = False
    pre_norm: bool = False
    qk_norm: bool = False
    split_qkv: bool = False
    num_key_value_heads: tuple[int, ...] = ()
    rms_norm: bool = False
    mlp: str = "plain"
    layer_scale: bool = False
    layer_scale_on_mlp: bool = True
    final_norm: bool = True
    fc_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    proj_bias: bool = True
    head_bias: bool = True

    def __repr__(self) -> str:
        """Its sizes, and the names of the other facts that are not the default, on one line."""
        sizes = "{}x{}".format(*self.image_size), "patch {}x{}".format(*self.patch_size), f"width {self.hidden_size}"
        other = [field.name for field in fields(self)[10:] if getattr(self, field.name) != field.default]
        more = first_few(other, 3)
        return (
            f"Architecture({', '.join(sizes)}, {self.num_hidden_layers} blocks, {self.num_attention_heads} heads, "
            f"{self.num_channels} channels, {count_classes(self.num_labels)}{', ' if more else ''}{more})"
        )

    @property
    def classifier(self) -> bool:
        """Whether the model ends in a classification head."""
        return self.num_labels > 0

    @property
    def any_size(self) -> bool:
        """Whether timm's model takes images of any size: then the weights do not tell one."""
        return self.design == "NaFlexVit"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in a column and in a row; a remainder at the right or the bottom edge is not seen."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Of the patch convolution, ``patch_embed.proj``."""
        return (1, 1) if self.stem_depths else self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.distillation_token + self.num_register_tokens

    @property
    def num_positions(self) -> int:
        """Rows of ``pos_embed``."""
        return math.prod(self.grid) + self.num_prefix_tokens * self.class_position


@dataclass(frozen=True, repr=False)
class WrappedArchitecture:
    """A timm Vision Transformer by its name and arguments, for the target that runs timm itself (``timm_wrapper``).

    It stands for models that :class:`Architecture` does not describe. It knows the tensors that timm builds, and no
    fact about what they compute.

    Attributes:
        name: timm's, without a tag.
        model_args: the arguments of timm's that rebuild the model, but ``num_classes``, as JSON has them.
        image_size: (height, width) in pixels.
        num_channels: of the images.
        num_labels: rows of the classification head; 0 for a headless model.
        num_features: the width of what the model returns without a head.
        grid: patches in a column and in a row, where the model has one image size.
        shapes: name and shape of every tensor of timm's state dict.
    """

    name: str
    model_args: Mapping[str, Any]
    image_size: tuple[int, int]
    num_channels: int
    num_labels: int
    num_features: int
    grid: tuple[int, int]
    shapes: Shapes

    def __repr__(self) -> str:
        size, classes = "{}x{}".format(*self.image_size), count_classes(self.num_labels)
        return f"WrappedArchitecture({self.name}, {size}, {self.num_channels} channels, {classes})"

    @property
    def classifier(self) -> bool:
        """Whether the model ends in a classification head."""
        return self.num_labels > 0

    @property
    def any_size(self) -> bool:
        """Never: also of a model that takes images of any size, one is taken for the proof."""
        return False

    @property
    def num_positions(self) -> int:
        """Rows of ``pos_embed``; 0 if there is none, or one that is not a list of positions."""
        shape = self.shapes.get("pos_embed", ())
        return shape[1] if len(shape) == 3 else 0


AnyArchitecture = Architecture | WrappedArchitecture


def plain_facts(architecture: AnyArchitecture) -> dict[str, Any]:
    """An architecture as plain data, for JSON, without the shapes of its tensors."""
    return {name: value for name, value in asdict(architecture).items() if name != "shapes"}


def describe_fact(field: str, a: Architecture) -> str:
    """A fact about an architecture that is not the default, for people."""
    value = getattr(a, field)
    words: dict[str, str] = {
        "design": f"another design (`timm.{value}`)",
        "stem_depths": f"a ResNet before the patches (`{_STEM}`)" if value else "no ResNet before the patches",
        "parallel_branches": f"{value} attentions and MLPs side by side (`blocks.0`)",
        "class_token": "no class token (`cls_token`)" if not value else "a class token (`cls_token`)",
        "num_register_tokens": f"{value} register tokens (`reg_token`)" if value else "no register tokens",
        "distillation_token": "a distillation token (`dist_token`)" if value else "no distillation token",
        "position_embedding": "no position embedding (`pos_embed`)",
        "class_position": "no position for the class token (`no_embed_class`)",
        "position_grid": "positions on another grid than the image's (`embeds.pos_embed`)",
        "position_resampling": "positions that are resampled in the forward pass (`embeds.pos_embed`)",
        "relative_position": "relative positions (`blocks.0.attn.relative_position_bias_table`)",
        "relative_network": "relative positions that a small network computes (`blocks.0.attn.rel_pos`)",
        "shared_relative_position": "relative positions that all blocks share (`shared_rel_pos`)",
        "axis_positions": "relative positions along each axis (`blocks.0.attn.rel_pos_h`)",
        "window_size": f"attention within windows of {value} (`blocks.0`)" if value else "no attention windows",
        "global_attention": "windowed attention in some blocks only (`blocks`)",
        "neck_channels": "convolutions after the blocks (`neck`)" if value else "no convolutions after the blocks",
        "rope_theta": "rotary positions (`rope`)" if value else "no rotary positions",
        "rope_grid": "rotary positions as Perception Encoder's (`rope`)" if value else "no positions that are counted",
        "patch_norm": "a norm on the patches (`patch_embed.norm`)" if value else "no norm on the patches",
        "pre_norm": "a norm before the blocks (`norm_pre`)" if value else "no norm before the blocks (`norm_pre`)",
        "rms_norm": "RMS norm (`blocks.0.norm1`)" if value else "LayerNorm (`blocks.0.norm1`)",
        "mlp": "a gated MLP (`blocks.0.mlp`)" if value != "plain" else "a plain MLP (`blocks.0.mlp`)",
        "layer_scale": "LayerScale (`blocks.0.ls1`)",
        "layer_scale_on_mlp": "LayerScale on attention only (`blocks.0.gamma_1`)",
        "qk_norm": "normalised queries and keys (`blocks.0.attn.q_norm`)" if value else "no norm of queries and keys",
        "split_qkv": "queries, keys and values in layers of their own (`blocks.0.attn.q_proj`)",
        "num_key_value_heads": "fewer heads of keys and values than of queries (`blocks.0.attn.k_proj`)",
        "final_norm": "no final norm (`norm`)" if not value else "a final norm (`norm`)",
        "fc_norm": "a norm after the pooling (`fc_norm`)" if value else "no norm after the pooling",
        "global_pool": {
            "avg": "mean pooling (`global_pool='avg'`)",
            "map": "attention pooling (`attn_pool`)",
            "": "no pooling (`global_pool=''`)",
            "token": "class token pooling (`global_pool='token'`)",
        }.get(str(value), f"another pooling (`global_pool='{value}'`)"),
    }
    if field == "split_qkv" and not value:
        return "queries, keys and values in one layer (`blocks.0.attn.qkv`)"
    biases = {
        "patch_bias": "patch_embed.proj",
        "qkv_bias": "blocks.0.attn.qkv",
        "key_bias": "blocks.0.attn's keys",
        "proj_bias": "blocks.0.attn.proj",
        "head_bias": "head",
    }
    if field in biases:
        return f"{'a' if value else 'no'} bias in `{biases[field]}`"
    return words[field]


def check_image_size(image_size: tuple[int, int]) -> None:
    """Raise :class:`InputError` if images of this (height, width) have more than :data:`MOST_PIXELS`."""
    if image_size[0] * image_size[1] > MOST_PIXELS:
        size = "x".join(map(shown, image_size))
        raise InputError(
            f"Image size {size} is too large: an image has {MOST_PIXELS:,} pixels at most.",
            "Give a smaller height and width.",
        )


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
    name = next((name for name in HEADS if name in shapes), None)
    head = _shape(shapes, name, 2) if name else (0, 0)
    if architecture.any_size:
        return _fit_any_size(replace(architecture, num_labels=head[0]), shapes, image_size)
    first = f"{_STEM}.stem.conv" if architecture.stem_depths else "patch_embed.proj"
    patch = _shape(shapes, f"{first}.weight", 4)
    fitted = replace(architecture, num_channels=patch[1], num_labels=head[0])
    if image_size is not None:
        fitted = replace(fitted, image_size=(int(image_size[0]), int(image_size[1])))
        if min(fitted.image_size) <= 0:
            raise InputError(f"Image size {image_size[0]}x{image_size[1]} is not positive.", "Give height and width.")
    grid = _grid_from_relative_positions(architecture, shapes)
    if grid is not None:
        told = (grid[0] * fitted.patch_size[0], grid[1] * fitted.patch_size[1])
        if image_size is not None and fitted.grid != grid:
            raise InputError(
                f"Image size {image_size[0]}x{image_size[1]} makes {fitted.grid[0]}x{fitted.grid[1]} patches, "
                f"but the relative positions were trained for {grid[0]}x{grid[1]}.",
                f"Use the size it was trained at: {told[0]}x{told[1]}.",
            )
        return fitted if fitted.grid == grid else replace(fitted, image_size=told)
    if not architecture.position_embedding:
        return fitted  # rotary positions tell no image size, and fit any
    pos_embed = _shape(shapes, "pos_embed", 3)
    prefix = architecture.num_positions - math.prod(architecture.grid)
    patches = pos_embed[1] - prefix
    if image_size is not None:
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
        # 196 positions are 14 x 14 patches without a class token's, in any architecture.
        square = prefix and math.isqrt(pos_embed[1]) ** 2 == pos_embed[1]
        hint = f"; or, as {pos_embed[1]} is a square, name an architecture with `no_embed_class`" if square else ""
        raise InputError(
            f"`pos_embed` was trained for {patches} patches, which is not a square number.",
            f"Give the image size (height, width): {_possible_sizes(patches, fitted.patch_size)}{hint}.",
        )
    return replace(fitted, image_size=(side * fitted.patch_size[0], side * fitted.patch_size[1]))


def _fit_any_size(architecture: Architecture, shapes: Shapes, image_size: tuple[int, int] | None) -> Architecture:
    """The same for timm's NaFlexVit, which takes images of any size that its patches divide."""
    height, width = image_size or architecture.image_size
    fitted = replace(
        architecture,
        image_size=(int(height), int(width)),
        num_channels=_shape(shapes, "embeds.proj.weight", 2)[1] // math.prod(architecture.patch_size),
    )
    rest = [size % patch for size, patch in zip(fitted.image_size, fitted.patch_size, strict=True)]
    if min(fitted.grid) < 1 or any(rest):
        patch = "x".join(map(str, fitted.patch_size))
        raise InputError(
            f"Image size {height}x{width} is no multiple of the patches' {patch}.",
            "Give a height and width that are: timm takes no others.",
        )
    grid = _shape(shapes, "embeds.pos_embed", 4)[1:3] if architecture.position_embedding else ()
    return replace(fitted, position_grid=() if grid == fitted.grid else grid)


def _grid_from_relative_positions(architecture: Architecture, shapes: Shapes) -> tuple[int, int] | None:
    """The patches in a column and a row, where the blocks' relative positions tell both; a square for BEiT's."""
    if architecture.design == "VisionTransformerSAM" and architecture.position_embedding:
        rows, columns = _shape(shapes, "pos_embed", 4)[1:3]
        return rows, columns
    if architecture.relative_position:
        # (2·rows − 1)·(2·columns − 1) distances, and three for the class token.
        table = _shape(shapes, "blocks.0.attn.relative_position_bias_table", 2)
        if math.prod(2 * side - 1 for side in architecture.grid) + 3 == table[0]:
            return architecture.grid
        side = (math.isqrt(max(table[0] - 3, 0)) + 1) // 2
        return side, side
    return None


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
    facts = [f"width {patch[0]}", f"{blocks} block{'s' * (blocks > 1)}"]
    stem = any(name.startswith(f"{_STEM}.") for name in shapes)
    if stem:  # of which the patch convolution does not tell the patches
        facts.append("a convolutional network before the patches")
    else:
        facts += [f"patch {patch[2]}x{patch[3]}", f"{patch[1]} channel{'s' * (patch[1] > 1)}"]
    if pos and len(pos) == 3:
        numbers = (pos[1], pos[1] - 1) if not stem else ()
        sides = {math.isqrt(n): n for n in numbers if n > 0 and math.isqrt(n) ** 2 == n}
        facts += [f"image {s * patch[2]}x{s * patch[3]}" for s in sides] or [f"{pos[1]} positions"]
    head = next((shapes[name] for name in HEADS if name in shapes), None)
    facts.append(f"{head[0]} class{'es' * (head[0] > 1)}" if head else "no head")
    return ", ".join(facts)


def count_blocks(names: Iterable[str]) -> int:
    """The number of different ``blocks.<i>.`` among tensor names."""
    return len({match[1] for match in (re.match(r"blocks\.([0-9]+)\.", name) for name in names) if match})
