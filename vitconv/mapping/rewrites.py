"""Rewrites from timm to timm that change no function, so that what is left has a place in Transformers.

Each rewrite takes a state dict and an architecture and returns new ones, for a timm model that computes the
same from every input; the input is left as it is, and tensors that a rewrite does not touch are passed on
without a copy. Some rewrites lead to names and forms that timm does not have, but some Transformers class does. In
exact arithmetic the models before and after are equal; in floating point those that multiply or add
round once per element, as their docstrings say, and every other one is exact to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vitconv.architecture import HEADS, Architecture
from vitconv.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

StateDict = dict[str, "Tensor"]


@dataclass(frozen=True)
class Made:
    """A tensor that is not simply moved: what it was made from, and how.

    Attributes:
        tensor: its name in timm.
        sources: the source tensors that went into it; empty for a constant.
        description: what the rewrite did, in a few words for people.
    """

    tensor: str
    sources: tuple[str, ...]
    description: str

    def to_dict(self) -> dict[str, Any]:
        """As it is written to ``parity.json``, where the description is called ``how``."""
        return {"tensor": self.tensor, "sources": self.sources, "how": self.description}


@dataclass(frozen=True)
class Rewritten:
    """A state dict and its architecture after the rewrites, and the tensors that the rewrites made."""

    state_dict: StateDict
    architecture: Architecture
    made: tuple[Made, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """A rewrite, its undo, and the architectures that need it.

    Attributes:
        needed: whether an architecture needs it.
        apply: the rewrite.
        undo: makes, of tensors in its form, those of the architecture that it was applied to; it may change the
            mapping that it gets. Raises :class:`~vitconv.errors.WeightsError` if a constant that the rewrite makes is
            not constant here.
        folds: whether it works values into others or leaves some out, so that the result does not tell them; else it
            moves values, or adds constants.
    """

    needed: Callable[[Architecture], bool]
    apply: Callable[[Rewritten], Rewritten]
    undo: Callable[[StateDict, Architecture], StateDict]
    folds: bool = False


def join(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors along their first dimension."""
    import torch

    return torch.cat(list(parts))


def _like(tensors: StateDict) -> dict[str, Any]:
    """The dtype and device of a made tensor."""
    tensor = tensors["patch_embed.proj.weight"]
    return {"dtype": tensor.dtype, "device": tensor.device}


def _blocks(architecture: Architecture, *names: str) -> list[str]:
    return [f"blocks.{block}.{name}" for block in range(architecture.num_hidden_layers) for name in names]


def _gammas(architecture: Architecture, block: int) -> tuple[str, str]:
    if architecture.design in ("Eva", "Beit"):
        return f"blocks.{block}.gamma_1", f"blocks.{block}.gamma_2"
    return f"blocks.{block}.ls1.gamma", f"blocks.{block}.ls2.gamma"


def _with_zero_biases(model: Rewritten, layers: list[str], flag: str) -> Rewritten:
    has_bias: dict[str, Any] = {flag: True}
    tensors, made = dict(model.state_dict), []
    for layer in layers:
        weight = tensors[f"{layer}.weight"]
        tensors[f"{layer}.bias"] = weight.new_zeros(weight.shape[0])
        made.append(Made(f"{layer}.bias", (), "zeros, where timm has no bias"))
    return Rewritten(tensors, replace(model.architecture, **has_bias), (*model.made, *made))


def _take(tensors: StateDict, names: Sequence[str], value: float) -> StateDict:
    """Remove constants that timm does not have."""
    for name in names:
        if not (tensors.pop(name) == value).all():
            raise WeightsError(
                f"`{name}` is not {value:g} throughout, and the timm architecture has no such tensor.",
                "Name another architecture with --arch.",
            )
    return tensors


def _zeros(tensors: StateDict, name: str, like: str) -> StateDict:
    weight = tensors[like]
    return {**tensors, name: weight.new_zeros(weight.shape[0])}


def fold_layer_scale(model: Rewritten) -> Rewritten:
    r"""Fold LayerScale into the linear layer before it.

    A branch computes :math:`\gamma \odot (Wx + b) = (\operatorname{diag}(\gamma) W) x + \gamma \odot b`, so
    row :math:`i` of the weight and entry :math:`i` of the bias are multiplied by :math:`\gamma_i`
    (LayerScale: Touvron et al., https://arxiv.org/abs/2103.17239).
    """
    tensors, made = dict(model.state_dict), []
    for block in range(model.architecture.num_hidden_layers):
        for gamma_name, linear in zip(_gammas(model.architecture, block), ("attn.proj", "mlp.fc2"), strict=True):
            gamma = tensors.pop(gamma_name)
            for name in (f"blocks.{block}.{linear}.weight", f"blocks.{block}.{linear}.bias"):
                if name in tensors:
                    tensor = tensors[name]
                    tensors[name] = gamma.reshape(-1, *[1] * (tensor.ndim - 1)) * tensor
                    made.append(Made(name, (name, gamma_name), "LayerScale folded in"))
    return Rewritten(tensors, replace(model.architecture, layer_scale=False), (*model.made, *made))


def _unit_gammas(tensors: StateDict, before: Architecture) -> StateDict:
    return unit_layer_scale(Rewritten(tensors, before)).state_dict


FOLD_LAYER_SCALE = Rewrite(lambda a: a.layer_scale, fold_layer_scale, _unit_gammas, folds=True)


#: Where parallel branches are, and their layers; where they are without branches; in how many parts rows are stacked.
_SIDES = (("attns", "attn.qkv", "attn.proj", "norm1", 3), ("ffns", "mlp.fc1", "mlp.fc2", "norm2", 1))


def join_branches(model: Rewritten) -> Rewritten:
    r"""Join attentions side by side into one that has all their heads, and MLPs into one that has all their channels.

    Each branch has a norm of its own, :math:`\gamma \odot n + \beta`, with the same :math:`n` in all. It folds into
    the layer behind it, :math:`W(\gamma \odot n + \beta) + b = (W \operatorname{diag}(\gamma)) n + (W\beta + b)`, and
    one norm with a weight of ones and a bias of zeros is left. LayerScale folds as in :func:`fold_layer_scale`. The
    sum of the branches, :math:`\sum_k (V_k h_k + c_k) = [V_1 V_2 \ldots] [h_1; h_2; \ldots] + \sum_k c_k`, is one
    layer on the heads, or channels, of all. Each element is computed in float64 and rounded once.
    """
    import torch

    tensors, made, a = dict(model.state_dict), [], model.architecture
    for block, (side, inner, outer, norm, parts) in itertools.product(range(a.num_hidden_layers), _SIDES):
        branches = [f"blocks.{block}.{side}.{branch}" for branch in range(a.parallel_branches)]
        like = tensors[f"{branches[0]}.norm.weight"]
        columns: dict[str, list[Tensor]] = {}
        for branch in branches:
            gamma, beta, weight, bias, back, shift = (
                tensors.pop(f"{branch}.{layer}.{kind}").double()
                for layer in ("norm", inner, outer)
                for kind in ("weight", "bias")
            )
            scale = tensors.pop(f"{branch}.ls.gamma").double() if a.layer_scale else torch.ones_like(shift)
            columns.setdefault(f"{inner}.weight", []).append(weight * gamma)
            columns.setdefault(f"{inner}.bias", []).append(weight @ beta + bias)
            columns.setdefault(f"{outer}.weight", []).append(scale[:, None] * back)
            columns.setdefault(f"{outer}.bias", []).append(scale * shift)

        def stacked(rows: list[Tensor], parts: int = parts) -> Tensor:
            return torch.cat([row.chunk(parts)[part] for part in range(parts) for row in rows])

        joined = {
            f"{norm}.weight": torch.ones_like(like),
            f"{norm}.bias": torch.zeros_like(like),
            f"{inner}.weight": stacked(columns[f"{inner}.weight"]),
            f"{inner}.bias": stacked(columns[f"{inner}.bias"]),
            f"{outer}.weight": torch.cat(columns[f"{outer}.weight"], dim=1),
            f"{outer}.bias": torch.stack(columns[f"{outer}.bias"]).sum(0),
        }
        tensors |= {f"blocks.{block}.{name}": tensor.to(like.dtype) for name, tensor in joined.items()}
        folded = {
            f"{inner}.weight": ("norm.weight",),
            f"{inner}.bias": ("norm.bias", f"{inner}.weight"),
            **{f"{outer}.{kind}": ("ls.gamma",) if a.layer_scale else () for kind in ("weight", "bias")},
        }
        made += [Made(f"blocks.{block}.{norm}.weight", (), "ones, as the branches' norms are folded")]
        made += [Made(f"blocks.{block}.{norm}.bias", (), "zeros, as the branches' norms are folded")]
        for name, more in folded.items():
            sources = tuple(f"{branch}.{source}" for branch in branches for source in (name, *more))
            how = "those of all branches" + (", with their norms folded in" if name.startswith(inner) else "")
            made.append(Made(f"blocks.{block}.{name}", sources, how))
    architecture = replace(
        a,
        parallel_branches=1,
        num_attention_heads=a.num_attention_heads * a.parallel_branches,
        intermediate_size=a.intermediate_size * a.parallel_branches,
        layer_scale=False,
    )
    return Rewritten(tensors, architecture, (*model.made, *made))


def _split_branches(tensors: StateDict, before: Architecture) -> StateDict:
    """Give each branch its heads and channels, a copy of the norm, and the first all of the bias behind them."""
    import torch

    count = before.parallel_branches
    for block, (side, inner, outer, norm, parts) in itertools.product(range(before.num_hidden_layers), _SIDES):
        own = {
            f"{layer}.{kind}": tensors.pop(f"blocks.{block}.{layer}.{kind}")
            for layer in (norm, inner, outer)
            for kind in ("weight", "bias")
        }
        for branch in range(count):
            path, shift = f"blocks.{block}.{side}.{branch}", own[f"{outer}.bias"]
            for kind in ("weight", "bias"):
                tensors[f"{path}.norm.{kind}"] = own[f"{norm}.{kind}"].clone()
                rows = [part.chunk(count)[branch] for part in own[f"{inner}.{kind}"].chunk(parts)]
                tensors[f"{path}.{inner}.{kind}"] = torch.cat(rows)
            tensors[f"{path}.{outer}.weight"] = own[f"{outer}.weight"].chunk(count, dim=1)[branch].contiguous()
            tensors[f"{path}.{outer}.bias"] = torch.zeros_like(shift) if branch else shift
            if before.layer_scale:
                tensors[f"{path}.ls.gamma"] = torch.ones_like(shift)
    return tensors


JOIN_BRANCHES = Rewrite(lambda a: a.parallel_branches > 1, join_branches, _split_branches, folds=True)


def unit_layer_scale(model: Rewritten) -> Rewritten:
    """No LayerScale is one by ones: exact, as 1·x is x."""
    import torch

    tensors, made = dict(model.state_dict), []
    like = _like(tensors)
    for block in range(model.architecture.num_hidden_layers):
        for name in _gammas(model.architecture, block):
            tensors[name] = torch.ones(model.architecture.hidden_size, **like)
            made.append(Made(name, (), "ones, where timm has no LayerScale"))
    return Rewritten(tensors, replace(model.architecture, layer_scale=True), (*model.made, *made))


UNIT_LAYER_SCALE = Rewrite(
    lambda a: not a.layer_scale,
    unit_layer_scale,
    lambda t, a: _take(t, [n for i in range(a.num_hidden_layers) for n in _gammas(a, i)], 1),
)


def resample_positions(model: Rewritten) -> Rewritten:
    """Resample the positions to the image's grid, as timm's NaFlexVit does in each forward pass.

    With timm's operation and settings, computed in float32 and rounded to the weights' dtype as there: on the CPU,
    timm adds the same bits at this image size. Weights in float64 are resampled in float64, as the comparison does it.
    """
    import torch

    tensors, (rows, columns) = dict(model.state_dict), model.architecture.grid
    positions = tensors["embeds.pos_embed"]
    mode, *how = model.architecture.position_resampling.split()
    resampled = torch.nn.functional.interpolate(
        positions.permute(0, 3, 1, 2).to(torch.promote_types(positions.dtype, torch.float32)),
        size=[max(rows, columns)] * 2 if "cropped" in how else [rows, columns],
        mode=mode,
        align_corners="align_corners" in how,
        antialias="antialias" in how,
    )[:, :, :rows, :columns]
    tensors["embeds.pos_embed"] = resampled.permute(0, 2, 3, 1).to(positions.dtype).contiguous()
    made = Made(
        "embeds.pos_embed", ("embeds.pos_embed",), f"resampled to {rows}x{columns}, as timm does in its forward"
    )
    return Rewritten(tensors, replace(model.architecture, position_grid=()), (*model.made, made))


# It is never undone: the way back gives timm's model positions of the image's grid.
RESAMPLE_POSITIONS = Rewrite(lambda a: bool(a.position_grid), resample_positions, lambda t, a: t, folds=True)


def plain_embedding(model: Rewritten) -> Rewritten:
    """NaFlexVit's embedding in the form of the other Vision Transformers': a convolution, and positions in one row.

    NaFlexVit makes patches by a linear layer on their pixels in the order (row, column, channel); a convolution's
    weight has (channel, row, column).
    """
    tensors, made, a = dict(model.state_dict), [], model.architecture
    for name in [name for name in tensors if name.startswith("embeds.")]:
        tensor, how = tensors.pop(name), "under its name in a plain Vision Transformer"
        plain = name.removeprefix("embeds.")
        if plain == "pos_embed":
            tensor, how = tensor.flatten(1, 2), "the rows of the grid one behind the other"
        elif plain == "proj.weight":
            tensor = tensor.reshape(a.hidden_size, *a.patch_size, a.num_channels).permute(0, 3, 1, 2).contiguous()
            how = "as a convolution's, channels first"
        plain = f"patch_embed.{plain}" if plain.startswith("proj.") else plain
        tensors[plain] = tensor
        made.append(Made(plain, (name,), how))
    return Rewritten(tensors, replace(a, design="VisionTransformer"), (*model.made, *made))


def _naflex_embedding(tensors: StateDict, before: Architecture) -> StateDict:
    rows, columns = before.position_grid or before.grid
    for name in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        if name in tensors:
            tensor = tensors.pop(name)
            if name == "pos_embed":
                tensor = tensor.reshape(1, rows, columns, -1)
            elif tensor.ndim == 4:
                tensor = tensor.permute(0, 2, 3, 1).reshape(before.hidden_size, -1)
            tensors[f"embeds.{name.removeprefix('patch_embed.')}"] = tensor
    return tensors


PLAIN_EMBEDDING = Rewrite(lambda a: a.design == "NaFlexVit", plain_embedding, _naflex_embedding)


def pad_class_position(model: Rewritten) -> Rewritten:
    """Give the class token a position of zeros, where timm adds positions to the patches alone."""
    import torch

    tensors = dict(model.state_dict)
    positions = tensors["pos_embed"]
    zero = positions.new_zeros(1, model.architecture.class_token + model.architecture.distillation_token, 1)
    tensors["pos_embed"] = torch.cat([zero.expand(-1, -1, positions.shape[2]), positions], dim=1)
    made = Made("pos_embed", ("pos_embed",), "a zero row for the class token in front")
    return Rewritten(tensors, replace(model.architecture, class_position=True), (*model.made, made))


def _take_class_position(tensors: StateDict, before: Architecture) -> StateDict:
    first = before.class_token + before.distillation_token or 1
    rows = {"pos_embed": tensors["pos_embed"][:, :first]}
    _take(rows, ["pos_embed"], 0)
    return {**tensors, "pos_embed": tensors["pos_embed"][:, first:].contiguous()}


PAD_CLASS_POSITION = Rewrite(
    lambda a: a.position_embedding and not a.class_position, pad_class_position, _take_class_position
)


def absorb_prefix_positions(model: Rewritten) -> Rewritten:
    """Add the positions of the tokens before the patches to these tokens, which are as constant as they.

    It is the addition that timm makes in its forward pass, with the same operands: exact to the bit.
    """
    tensors, made, first = dict(model.state_dict), [], 0
    positions = tensors["pos_embed"]
    for name in ("cls_token", "dist_token", "reg_token"):
        if name in tensors:
            count = tensors[name].shape[1]
            tensors[name] = tensors[name] + positions[:, first : first + count]
            made.append(Made(name, (name, "pos_embed"), "its position added"))
            first += count
    tensors["pos_embed"] = positions[:, first:].contiguous()
    made.append(Made("pos_embed", ("pos_embed",), "the patches' positions alone"))
    return Rewritten(tensors, replace(model.architecture, class_position=False), (*model.made, *made))


def _give_prefix_positions(tensors: StateDict, before: Architecture) -> StateDict:
    import torch

    positions = tensors["pos_embed"]
    zeros = positions.new_zeros(1, before.num_prefix_tokens, positions.shape[2])
    return {**tensors, "pos_embed": torch.cat([zeros, positions], dim=1)}


ABSORB_PREFIX_POSITIONS = Rewrite(
    lambda a: a.position_embedding and a.class_position and a.num_register_tokens > 0,
    absorb_prefix_positions,
    _give_prefix_positions,
    folds=True,
)


def register_as_class_token(model: Rewritten) -> Rewritten:
    """Call the first register the class token: nothing but their use after the last block distinguishes them."""
    tensors, registers = dict(model.state_dict), model.architecture.num_register_tokens - 1
    tokens = tensors.pop("reg_token")
    tensors["cls_token"] = tokens[:, :1].contiguous()
    made = [Made("cls_token", ("reg_token",), "the first register")]
    if registers:
        tensors["reg_token"] = tokens[:, 1:].contiguous()
        made.append(Made("reg_token", ("reg_token",), "the other registers"))
    architecture = replace(model.architecture, class_token=True, num_register_tokens=registers)
    return Rewritten(tensors, architecture, (*model.made, *made))


def _class_token_as_register(tensors: StateDict, before: Architecture) -> StateDict:
    import torch

    tokens = [tensors.pop("cls_token"), *([tensors["reg_token"]] if "reg_token" in tensors else [])]
    return {**tensors, "reg_token": torch.cat(tokens, dim=1)}


REGISTER_AS_CLASS_TOKEN = Rewrite(lambda a: not a.class_token, register_as_class_token, _class_token_as_register)


def zero_mask_token(model: Rewritten) -> Rewritten:
    """The token of masked patches, which Transformers' files have, and which no classification ever reads."""
    import torch

    tensors = dict(model.state_dict)
    tensors["mask_token"] = torch.zeros(1, 1, model.architecture.hidden_size, **_like(tensors))
    return Rewritten(tensors, model.architecture, (*model.made, Made("mask_token", (), "zeros, as timm has none")))


ZERO_MASK_TOKEN = Rewrite(lambda a: True, zero_mask_token, lambda t, a: _take(t, ["mask_token"], 0))


def head_of_two_halves(model: Rewritten) -> Rewritten:
    """Widen the head to one on the class token and the mean of the patches: the half that timm does not have is zero.

    Exact: 0·x + y is y.
    """
    import torch

    tensors = dict(model.state_dict)
    weight = tensors["head.weight"]
    zero = torch.zeros_like(weight)
    on_class_token = model.architecture.global_pool == "token"
    tensors["head.weight"] = torch.cat([weight, zero] if on_class_token else [zero, weight], dim=1)
    unread = "patches" if on_class_token else "class token"
    made = Made("head.weight", ("head.weight",), f"zeros for the {unread}, which timm's head does not read")
    return Rewritten(tensors, model.architecture, (*model.made, made))


def _one_half_of_the_head(tensors: StateDict, before: Architecture) -> StateDict:
    on_class_token, on_patches = tensors["head.weight"].chunk(2, dim=1)
    kept, other = (on_class_token, on_patches) if before.global_pool == "token" else (on_patches, on_class_token)
    _take({"head.weight": other}, ["head.weight"], 0)
    return {**tensors, "head.weight": kept.contiguous()}


HEAD_OF_TWO_HALVES = Rewrite(lambda a: a.classifier, head_of_two_halves, _one_half_of_the_head)


def dinov2_mlp_ratio(architecture: Architecture) -> int:
    """The smallest ratio of which Transformers' DINOv2 makes an MLP that is wide enough: it must be whole."""
    ratios = itertools.count(1)
    return next(ratio for ratio in ratios if dinov2_width(architecture, ratio) >= architecture.intermediate_size)


def dinov2_width(architecture: Architecture, ratio: int) -> int:
    """The width that Transformers' DINOv2 makes of a ratio; for SwiGLU, two thirds and a multiple of eight."""
    width = architecture.hidden_size * ratio
    return width if architecture.mlp == "plain" else (int(width * 2 / 3) + 7) // 8 * 8


def pad_mlp(model: Rewritten) -> Rewritten:
    """Widen the MLP by channels of zeros to a width that DINOv2 has: exact, as they add act(0)·0 = 0."""
    import torch

    tensors, made = dict(model.state_dict), []
    width = dinov2_width(model.architecture, dinov2_mlp_ratio(model.architecture))
    more = width - model.architecture.intermediate_size

    def pad(name: str, dimension: int) -> None:
        tensor = tensors[name]
        # SwiGLU's gate and value lie one behind the other in one layer.
        parts = tensor.chunk(2) if model.architecture.mlp == "packed" and dimension == 0 else (tensor,)
        zeros = parts[0].new_zeros([more if i == dimension else size for i, size in enumerate(parts[0].shape)])
        tensors[name] = torch.cat([piece for part in parts for piece in (part, zeros)], dim=dimension)
        made.append(Made(name, (name,), f"zeros for {more} more channels"))

    for block in range(model.architecture.num_hidden_layers):
        pad(f"blocks.{block}.mlp.fc1.weight", 0)
        pad(f"blocks.{block}.mlp.fc1.bias", 0)
        pad(f"blocks.{block}.mlp.fc2.weight", 1)
    return Rewritten(tensors, replace(model.architecture, intermediate_size=width), (*model.made, *made))


def _narrow_mlp(tensors: StateDict, before: Architecture) -> StateDict:
    import torch

    width = before.intermediate_size
    for block in range(before.num_hidden_layers):
        for name, dimension in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            name = f"blocks.{block}.mlp.{name}"
            parts = tensors[name].chunk(2) if before.mlp == "packed" and dimension == 0 else (tensors[name],)
            _take(
                {name: torch.cat([part.narrow(dimension, width, part.shape[dimension] - width) for part in parts])},
                [name],
                0,
            )
            tensors[name] = torch.cat([part.narrow(dimension, 0, width) for part in parts])
    return tensors


PAD_MLP = Rewrite(lambda a: a.intermediate_size != dinov2_width(a, dinov2_mlp_ratio(a)), pad_mlp, _narrow_mlp)


#: A score that leaves no weight after softmax, in any dtype, and is finite in float32.
_NEVER = -1e9


def table_of_relative_positions(model: Rewritten) -> Rewritten:
    """Write down what the networks of relative positions compute: a bias for each distance and head, as BEiT has it.

    There are as many tables as networks: one for each block, or one for all. The networks see nothing but the
    distances (their logarithms, with sign), which are constants. timm gives the class token a bias of zero. Where it
    has no class token, BEiT's is hidden from the patches by a bias of -1e9, after which softmax leaves it a weight of
    exactly zero; what it computes itself is not read by anyone.
    """
    import torch

    tensors, made, rows, columns = dict(model.state_dict), [], *model.architecture.grid
    # In float32, as timm makes them.
    distances = torch.stack(
        torch.meshgrid(torch.arange(1 - rows, rows), torch.arange(1 - columns, columns), indexing="ij"), dim=-1
    ).float()
    distances = (distances.sign() * torch.log(1.0 + distances.abs())).to(**_like(tensors))
    hidden = not model.architecture.class_token
    networks = {
        f"blocks.{block}.attn.rel_pos": f"blocks.{block}.attn" for block in range(model.architecture.num_hidden_layers)
    }
    if model.architecture.shared_relative_position:
        networks = {"shared_rel_pos": "shared_rel_pos"}
    for network, place in networks.items():
        names = [f"{network}.mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
        first, first_bias, second, second_bias = (tensors.pop(name) for name in names)
        inner = torch.relu(torch.nn.functional.linear(distances, first, first_bias))
        biases = torch.nn.functional.linear(inner, second, second_bias).flatten(0, 1)
        # From the class token to patches, from patches to it, and to itself.
        to_class = torch.full_like(biases[:1], max(_NEVER, torch.finfo(biases.dtype).min) if hidden else 0.0)
        zero = torch.zeros_like(to_class)
        name = f"{place}.relative_position_bias_table"
        tensors[name] = torch.cat([biases, zero, to_class, zero])
        made.append(Made(name, tuple(names), "what the network of relative positions computes"))
    if hidden:
        tensors["cls_token"] = torch.zeros(1, 1, model.architecture.hidden_size, **_like(tensors))
        made.append(Made("cls_token", (), "zeros, a token that no patch attends to"))
    architecture = replace(model.architecture, relative_network=0, relative_position=True, class_token=True)
    return Rewritten(tensors, architecture, (*model.made, *made))


def _no_way_back(tensors: StateDict, before: Architecture) -> StateDict:
    raise WeightsError(
        "The networks of relative positions are not told by the table that they compute.",
        "Name an architecture that has such a table, as in --arch beit_base_patch16_224.",
    )


TABLE_OF_RELATIVE_POSITIONS = Rewrite(
    lambda a: a.relative_network > 0, table_of_relative_positions, _no_way_back, folds=True
)


def drop_key_bias(model: Rewritten) -> Rewritten:
    r"""Leave out the keys' bias, which softmax cancels.

    The score of query :math:`q_i` with key :math:`Wx_j + b` is :math:`q_i \cdot Wx_j + q_i \cdot b`; the second term
    is the same for every :math:`j`, and softmax does not change when a constant is added to all scores.
    """
    tensors, made, size = dict(model.state_dict), [], model.architecture.hidden_size
    for block in range(model.architecture.num_hidden_layers):
        name = f"blocks.{block}.attn.qkv.bias"
        bias = tensors.pop(name)
        for part, rows in (("q", bias[:size]), ("v", bias[2 * size :])):
            tensors[f"blocks.{block}.attn.{part}_bias"] = rows
            made.append(
                Made(f"blocks.{block}.attn.{part}_bias", (name,), "without the keys' bias, which softmax cancels")
            )
    return Rewritten(tensors, replace(model.architecture, key_bias=False), (*model.made, *made))


def _zero_key_bias(tensors: StateDict, before: Architecture) -> StateDict:
    import torch

    for block in range(before.num_hidden_layers):
        query, value = (tensors.pop(f"blocks.{block}.attn.{part}_bias") for part in ("q", "v"))
        tensors[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return tensors


DROP_KEY_BIAS = Rewrite(lambda a: a.key_bias, drop_key_bias, _zero_key_bias, folds=True)


def zero_query_and_value_bias(model: Rewritten) -> Rewritten:
    """Queries and values without bias are such with a bias of zeros."""
    import torch

    tensors, made = dict(model.state_dict), []
    for block in range(model.architecture.num_hidden_layers):
        for part in ("q", "v"):
            name = f"blocks.{block}.attn.{part}_bias"
            tensors[name] = torch.zeros(model.architecture.hidden_size, **_like(tensors))
            made.append(Made(name, (), "zeros, where timm has no bias"))
    return Rewritten(tensors, replace(model.architecture, qkv_bias=True, key_bias=False), (*model.made, *made))


ZERO_QUERY_AND_VALUE_BIAS = Rewrite(
    lambda a: not a.qkv_bias,
    zero_query_and_value_bias,
    lambda t, a: _take(t, _blocks(a, "attn.q_bias", "attn.v_bias"), 0),
)


def zero_qkv_bias(model: Rewritten) -> Rewritten:
    """Queries, keys and values without bias are such with a bias of zeros."""
    layers = [f"blocks.{block}.attn.qkv" for block in range(model.architecture.num_hidden_layers)]
    return _with_zero_biases(model, layers, "qkv_bias")


ZERO_QKV_BIAS = Rewrite(lambda a: not a.qkv_bias, zero_qkv_bias, lambda t, a: _take(t, _blocks(a, "attn.qkv.bias"), 0))


def fuse_attention_pool(model: Rewritten) -> Rewritten:
    """Stack the queries' layer of attention pooling on that of keys and values, as torch's MultiheadAttention does."""
    import torch

    tensors, made = dict(model.state_dict), []
    for kind in ("weight", "bias"):
        sources = (f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}")
        name = f"attn_pool.in_proj_{kind}"
        tensors[name] = torch.cat([tensors.pop(source) for source in sources])
        made.append(Made(name, sources, "queries, keys and values in one"))
    return Rewritten(tensors, model.architecture, (*model.made, *made))


def _split_attention_pool(tensors: StateDict, before: Architecture) -> StateDict:
    for kind in ("weight", "bias"):
        joined = tensors.pop(f"attn_pool.in_proj_{kind}")
        tensors[f"attn_pool.q.{kind}"] = joined[: before.hidden_size].contiguous()
        tensors[f"attn_pool.kv.{kind}"] = joined[before.hidden_size :].contiguous()
    return tensors


FUSE_ATTENTION_POOL = Rewrite(lambda a: a.global_pool == "map", fuse_attention_pool, _split_attention_pool)


def head_bias_into_weight(model: Rewritten) -> Rewritten:
    r"""Work a head's bias into its weight: for heads that Transformers gives no bias.

    The norm before the head computes :math:`y = \gamma \odot n + \beta`, where the entries of the normalised token
    :math:`n` sum to zero. So :math:`\sum_i y_i / \gamma_i = \sum_i \beta_i / \gamma_i = s` is the same for every
    image, and :math:`W' = W + b (1/\gamma)^\top / s` has the bias within: :math:`W'y = Wy + b`, for any number of
    classes. If an entry of :math:`\gamma` is zero, :math:`y` is the constant :math:`\beta_i` there, and column
    :math:`i` alone takes the bias. If :math:`s` is small against the terms of its sum, rounding would be multiplied:
    then :math:`\beta` is first shifted by some :math:`d`, as a rule a multiple of :math:`\gamma`, and
    :math:`b - Wd` takes the place of :math:`b`. Only then the features before the head change, by :math:`d`. A bias
    of zeros is left out.
    """
    tensors = dict(model.state_dict)
    weight, bias = tensors["head.weight"].double(), tensors.pop("head.bias").double()
    architecture = replace(model.architecture, head_bias=False)
    if bias.is_meta or not bias.any():
        left_out = Made("head.weight", ("head.weight", "head.bias"), "its bias, which is zero, left out")
        return Rewritten(tensors, architecture, (*model.made, left_out))
    gamma, beta = tensors["norm.weight"].double(), tensors["norm.bias"].double()
    shift = _shift_of_norm(gamma, beta)
    sources = ("head.weight", "head.bias", "norm.weight", "norm.bias")
    made = [Made("head.weight", sources, "the head's bias worked in")]
    if shift.any():
        # As stored: what is added to the weight must fit the norm that the model has.
        tensors["norm.bias"] = (beta + shift).to(tensors["norm.bias"].dtype)
        bias = bias - weight @ (tensors["norm.bias"].double() - beta)
        beta = tensors["norm.bias"].double()
        made.append(Made("norm.bias", ("norm.bias", "norm.weight"), "features before the head are shifted"))
    column = _constant_of_norm(gamma, beta)
    tensors["head.weight"] = (weight + bias[:, None] * column).to(tensors["head.weight"].dtype)
    return Rewritten(tensors, architecture, (*model.made, *made))


#: How much a constant of the norm may multiply rounding before its bias is shifted. The proof allows little more where
#: the weight is rounded to 16 bits: 30 times was refused.
_MOST_ROUNDING = 8


def _constant_of_norm(gamma: Tensor, beta: Tensor) -> Tensor:
    """A vector whose product with all that a LayerNorm of this weight and bias computes is one."""
    import torch

    fixed = (gamma == 0) & (beta != 0)
    if fixed.any():
        column = torch.zeros_like(beta)
        largest = torch.where(fixed, beta.abs(), torch.zeros_like(beta)).argmax()
        column[largest] = 1 / beta[largest]
        return column
    return (1 / gamma) / (beta / gamma).sum()


def _shift_of_norm(gamma: Tensor, beta: Tensor) -> Tensor:
    """What to add to a LayerNorm's bias, so that its constant hardly multiplies rounding; zeros if it does not."""
    import torch

    if ((gamma == 0) & (beta != 0)).any():
        return torch.zeros_like(beta)
    if (gamma == 0).any():  # such an entry of the features is always zero: make it one
        return (gamma == 0).to(beta.dtype)
    terms = beta / gamma
    size = (1 + terms.square()).sqrt().sum()  # of what is summed, for a token of usual size
    if size <= _MOST_ROUNDING * terms.sum().abs():
        return torch.zeros_like(beta)
    largest = terms.abs().argmax()
    if terms[largest].abs() >= size / _MOST_ROUNDING:  # hardly any scale there: by itself, it is nearly a constant
        # With its sign changed, the sum is at least `size / _MOST_ROUNDING`, and `size` remains.
        return torch.where(torch.arange(len(beta)) == largest, -2 * beta, torch.zeros_like(beta))
    sign = -1.0 if terms.sum() < 0 else 1.0
    return sign * (size / len(beta)) * gamma


HEAD_BIAS_INTO_WEIGHT = Rewrite(
    lambda a: a.classifier and a.head_bias,
    head_bias_into_weight,
    lambda t, a: _zeros(t, "head.bias", "head.weight"),
    folds=True,
)


def patch_bias_into_positions(model: Rewritten) -> Rewritten:
    """Add the patch convolution's bias to every patch's position: (Wx + b) + p = Wx + (b + p). Rounds once."""
    tensors = dict(model.state_dict)
    tensors["pos_embed"] = tensors["pos_embed"] + tensors.pop("patch_embed.proj.bias")
    made = Made("pos_embed", ("pos_embed", "patch_embed.proj.bias"), "the patches' bias added")
    return Rewritten(tensors, replace(model.architecture, patch_bias=False), (*model.made, made))


PATCH_BIAS_INTO_POSITIONS = Rewrite(
    lambda a: a.patch_bias,
    patch_bias_into_positions,
    lambda t, a: _zeros(t, "patch_embed.proj.bias", "patch_embed.proj.weight"),
    folds=True,
)


def radio_form(model: Rewritten) -> Rewritten:
    """RADIO's own form: patches cut by a linear layer, all tokens before the patches in one, and what it does with
    pixels and tokens besides, as constants: normalise them by mean 0 and deviation 1, return the first token.
    """
    import torch

    tensors = dict(model.state_dict)
    weight = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = weight.flatten(1)
    made = [Made("patch_embed.proj.weight", ("patch_embed.proj.weight",), "flattened")]
    sources = tuple(name for name in ("cls_token", "reg_token") if name in tensors)
    tensors["prefix_tokens"] = torch.cat([tensors.pop(name) for name in sources], dim=1)
    made.append(Made("prefix_tokens", sources, "all tokens before the patches in one"))
    shape = (model.architecture.num_channels, 1, 1)
    tensors["norm_mean"] = torch.zeros(shape, **_like(tensors))
    tensors["norm_std"] = torch.ones(shape, **_like(tensors))
    tensors["summary_idxs"] = torch.zeros(1, dtype=torch.long)
    made += [Made(name, (), "RADIO's constant") for name in ("norm_mean", "norm_std", "summary_idxs")]
    return Rewritten(tensors, model.architecture, (*model.made, *made))


def _timm_form(tensors: StateDict, before: Architecture) -> StateDict:
    for name in ("norm_mean", "norm_std", "summary_idxs"):
        _take(tensors, [name], float(name == "norm_std"))
    shape = (before.hidden_size, before.num_channels, *before.patch_size)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].reshape(shape)
    tokens = tensors.pop("prefix_tokens")
    tensors["cls_token"] = tokens[:, :1].contiguous()
    if before.num_register_tokens:
        tensors["reg_token"] = tokens[:, 1:].contiguous()
    return tensors


RADIO_FORM = Rewrite(lambda a: True, radio_form, _timm_form)


def zero_patch_bias(model: Rewritten) -> Rewritten:
    """A patch convolution without bias is one with a bias of zeros."""
    return _with_zero_biases(model, ["patch_embed.proj"], "patch_bias")


ZERO_PATCH_BIAS = Rewrite(
    lambda a: not a.patch_bias, zero_patch_bias, lambda t, a: _take(t, ["patch_embed.proj.bias"], 0)
)


def zero_projection_biases(model: Rewritten) -> Rewritten:
    """Linear layers without bias are linear layers with a bias of zeros."""
    layers = [
        f"blocks.{block}.{linear}"
        for block in range(model.architecture.num_hidden_layers)
        for linear in ("attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    return _with_zero_biases(model, layers, "proj_bias")


ZERO_PROJECTION_BIASES = Rewrite(
    lambda a: not a.proj_bias,
    zero_projection_biases,
    lambda t, a: _take(t, _blocks(a, "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"), 0),
)


def zero_head_bias(model: Rewritten) -> Rewritten:
    """A classification head without bias is one with a bias of zeros."""
    return _with_zero_biases(model, [_head(model.state_dict)], "head_bias")


def _head(tensors: StateDict) -> str:
    return next(name.removesuffix(".weight") for name in HEADS if name in tensors)


ZERO_HEAD_BIAS = Rewrite(
    lambda a: a.classifier and not a.head_bias, zero_head_bias, lambda t, a: _take(t, [f"{_head(t)}.bias"], 0)
)


def norm_before_pool(model: Rewritten) -> Rewritten:
    """Norm every token and take the class token, not the other way round: a LayerNorm sees one token at a time."""
    tensors, made = dict(model.state_dict), []
    for kind in ("weight", "bias"):
        tensors[f"norm.{kind}"] = tensors.pop(f"fc_norm.{kind}")
        made.append(Made(f"norm.{kind}", (f"fc_norm.{kind}",), "moved from after the pooling to before it"))
    architecture = replace(model.architecture, fc_norm=False, final_norm=True)
    return Rewritten(tensors, architecture, (*model.made, *made))


def _norm_after_pool(tensors: StateDict, before: Architecture) -> StateDict:
    return {(f"fc_{name}" if name in ("norm.weight", "norm.bias") else name): t for name, t in tensors.items()}


NORM_BEFORE_POOL = Rewrite(lambda a: a.fc_norm, norm_before_pool, _norm_after_pool)


def identity_pooler(model: Rewritten) -> Rewritten:
    """A headless model is one with a layer that multiplies by the identity matrix: exact, as x·1 + 0 is x.

    Transformers' ``ViTModel`` has a pooler, a linear layer on the class token, and initialises it at random
    when a file lacks it. With this identity in its place, ``AutoModel`` returns timm's features as
    ``pooler_output``.
    """
    import torch

    tensors, size = dict(model.state_dict), model.architecture.hidden_size
    tensors["pooler.weight"] = torch.eye(size, **_like(tensors))
    tensors["pooler.bias"] = torch.zeros(size, **_like(tensors))
    made = [Made(f"pooler.{kind}", (), "the identity, for the pooler") for kind in ("weight", "bias")]
    return Rewritten(tensors, model.architecture, (*model.made, *made))


def _without_identity(tensors: StateDict, before: Architecture) -> StateDict:
    import torch

    weight, bias = tensors.pop("pooler.weight"), tensors.pop("pooler.bias")
    if bias.any() or not torch.equal(weight, torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)):
        raise WeightsError(
            "The model has a pooler, which has no place in timm: there the class token itself is the answer.",
            "Leave it out with --drop pooler, if nothing uses it.",
        )
    return tensors


IDENTITY_POOLER = Rewrite(lambda a: not a.classifier, identity_pooler, _without_identity)
