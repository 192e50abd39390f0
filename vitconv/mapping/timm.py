"""The tensors of timm's Vision Transformers: name, shape, and the facts that must hold for one to be there.

One table for each of timm's classes. ``{i}`` is the block's number, ``{b}`` that of a parallel branch, ``{s}`` and
``{j}`` are those of a stage and a block of the ResNet before the patches; a comma between facts means that all must
hold, a ``!`` that one must not. The shapes:

====  ======================================  ====  ============================================
D     hidden size                             F     MLP width
C     channels of the image                   K     classes
P Q   patch height, width                     T     positions (rows of ``pos_embed``)
R     register tokens                         H     attention heads
E     width of a head                         G     width of all heads of keys or values, here
Y X   positions in column, row                V U   relative positions in column, row, here
M     width of the relative positions' MLP    B     relative positions, and three for the class
N     channels of the neck                    A     channels into the patch convolution
S     channels after the stem's first layer   O     channels out of a stage of it, here
I     channels into a block of it, here       W     channels within a block of it, here
PQC   values of a patch
====  ======================================  ====  ============================================

"Here" means in this block: it may be different in another.
"""

from __future__ import annotations

import re

from vitconv.architecture import AnyArchitecture, Architecture, WrappedArchitecture

_MLP = """
blocks.{i}.mlp.fc1.weight                     F,D      plain_mlp
blocks.{i}.mlp.fc1.bias                       F        plain_mlp,proj_bias
blocks.{i}.mlp.fc1.weight                     2F,D     packed_mlp
blocks.{i}.mlp.fc1.bias                       2F       packed_mlp,proj_bias
blocks.{i}.mlp.fc1_g.weight                   F,D      gated_mlp
blocks.{i}.mlp.fc1_g.bias                     F        gated_mlp,proj_bias
blocks.{i}.mlp.fc1_x.weight                   F,D      gated_mlp
blocks.{i}.mlp.fc1_x.bias                     F        gated_mlp,proj_bias
blocks.{i}.mlp.fc2.weight                     D,F      -
blocks.{i}.mlp.fc2.bias                       D        proj_bias
"""

_RESNET = "".join(
    f"patch_embed.backbone.{line}\n"
    for line in """
stem.conv.weight                              S,C,7,7           stem
stem.norm.weight                              S                 stem
stem.norm.bias                                S                 stem
stages.{s}.blocks.0.downsample.conv.weight    O{s},I{s}.0,1,1   -
stages.{s}.blocks.0.downsample.norm.weight    O{s}              -
stages.{s}.blocks.0.downsample.norm.bias      O{s}              -
stages.{s}.blocks.{j}.conv1.weight            W{s},I{s}.{j},1,1 -
stages.{s}.blocks.{j}.norm1.weight            W{s}              -
stages.{s}.blocks.{j}.norm1.bias              W{s}              -
stages.{s}.blocks.{j}.conv2.weight            W{s},W{s},3,3     -
stages.{s}.blocks.{j}.norm2.weight            W{s}              -
stages.{s}.blocks.{j}.norm2.bias              W{s}              -
stages.{s}.blocks.{j}.conv3.weight            O{s},W{s},1,1     -
stages.{s}.blocks.{j}.norm3.weight            O{s}              -
stages.{s}.blocks.{j}.norm3.bias              O{s}              -
""".strip().splitlines()
)

_STEM = f"""
cls_token                                     1,1,D    class_token
reg_token                                     1,R,D    registers
dist_token                                    1,1,D    distillation_token
pos_embed                                     1,T,D    position_embedding
{_RESNET}
patch_embed.proj.weight                       D,A,P,Q  -
patch_embed.proj.bias                         D        patch_bias
patch_embed.norm.weight                       D        patch_norm
norm_pre.weight                               D        pre_norm
norm_pre.bias                                 D        pre_norm
"""

_NAFLEX_STEM = """
embeds.cls_token                              1,1,D    class_token
embeds.reg_token                              1,R,D    registers
embeds.pos_embed                              1,Y,X,D  position_embedding
embeds.proj.weight                            D,PQC    -
embeds.proj.bias                              D        patch_bias
norm_pre.weight                               D        pre_norm
norm_pre.bias                                 D        pre_norm
"""

_HEAD = """
norm.weight                                   D        final_norm
norm.bias                                     D        final_norm,!rms_norm
fc_norm.weight                                D        fc_norm
fc_norm.bias                                  D        fc_norm,!rms_norm
attn_pool.latent                              1,1,D    attention_pool
attn_pool.q.weight                            D,D      attention_pool
attn_pool.q.bias                              D        attention_pool
attn_pool.kv.weight                           2D,D     attention_pool
attn_pool.kv.bias                             2D       attention_pool
attn_pool.proj.weight                         D,D      attention_pool
attn_pool.proj.bias                           D        attention_pool
attn_pool.norm.weight                         D        attention_pool
attn_pool.norm.bias                           D        attention_pool
attn_pool.mlp.fc1.weight                      F,D      attention_pool
attn_pool.mlp.fc1.bias                        F        attention_pool
attn_pool.mlp.fc2.weight                      D,F      attention_pool
attn_pool.mlp.fc2.bias                        D        attention_pool
head.weight                                   K,D      classifier
head.bias                                     K        classifier,head_bias
head_dist.weight                              K,D      classifier,distillation_token
head_dist.bias                                K        classifier,distillation_token
"""

_VISION_TRANSFORMER = f"""{_STEM}
blocks.{{i}}.norm1.weight                     D        -
blocks.{{i}}.norm1.bias                       D        !rms_norm
blocks.{{i}}.attn.qkv.weight                  3D,D     -
blocks.{{i}}.attn.qkv.bias                    3D       qkv_bias
blocks.{{i}}.attn.proj.weight                 D,D      -
blocks.{{i}}.attn.proj.bias                   D        proj_bias
blocks.{{i}}.ls1.gamma                        D        layer_scale
blocks.{{i}}.norm2.weight                     D        -
blocks.{{i}}.norm2.bias                       D        !rms_norm
{_MLP}
blocks.{{i}}.ls2.gamma                        D        layer_scale
{_HEAD}"""

_PARALLEL = f"""{_STEM}
blocks.{{i}}.attns.{{b}}.norm.weight          D        -
blocks.{{i}}.attns.{{b}}.norm.bias            D        !rms_norm
blocks.{{i}}.attns.{{b}}.attn.qkv.weight      3D,D     -
blocks.{{i}}.attns.{{b}}.attn.qkv.bias        3D       qkv_bias
blocks.{{i}}.attns.{{b}}.attn.proj.weight     D,D      -
blocks.{{i}}.attns.{{b}}.attn.proj.bias       D        proj_bias
blocks.{{i}}.attns.{{b}}.ls.gamma             D        layer_scale
blocks.{{i}}.ffns.{{b}}.norm.weight           D        -
blocks.{{i}}.ffns.{{b}}.norm.bias             D        !rms_norm
{_MLP.replace("blocks.{i}", "blocks.{i}.ffns.{b}")}
blocks.{{i}}.ffns.{{b}}.ls.gamma              D        layer_scale
{_HEAD}"""

_EVA = f"""{_STEM}
blocks.{{i}}.gamma_1                          D        layer_scale
blocks.{{i}}.gamma_2                          D        layer_scale,layer_scale_on_mlp
blocks.{{i}}.norm1.weight                     D        -
blocks.{{i}}.norm1.bias                       D        !rms_norm
blocks.{{i}}.attn.q_bias                      D        qkv_bias,!key_bias,!split_qkv
blocks.{{i}}.attn.v_bias                      D        qkv_bias,!key_bias,!split_qkv
blocks.{{i}}.attn.relative_position_bias_table B,H     relative_position
blocks.{{i}}.attn.qkv.weight                  3D,D     !split_qkv
blocks.{{i}}.attn.qkv.bias                    3D       qkv_bias,key_bias,!split_qkv
blocks.{{i}}.attn.q_proj.weight               D,D      split_qkv
blocks.{{i}}.attn.q_proj.bias                 D        split_qkv,qkv_bias
blocks.{{i}}.attn.k_proj.weight               G,D      split_qkv
blocks.{{i}}.attn.k_proj.bias                 G        split_qkv,qkv_bias,key_bias
blocks.{{i}}.attn.v_proj.weight               G,D      split_qkv
blocks.{{i}}.attn.v_proj.bias                 G        split_qkv,qkv_bias
blocks.{{i}}.attn.q_norm.weight               E        qk_norm
blocks.{{i}}.attn.k_norm.weight               E        qk_norm
blocks.{{i}}.attn.proj.weight                 D,D      -
blocks.{{i}}.attn.proj.bias                   D        -
blocks.{{i}}.norm2.weight                     D        -
blocks.{{i}}.norm2.bias                       D        !rms_norm
{_MLP}
{_HEAD}"""

_SAM = f"""
pos_embed                                     1,Y,X,D  position_embedding
patch_embed.proj.weight                       D,C,P,Q  -
patch_embed.proj.bias                         D        patch_bias
blocks.{{i}}.norm1.weight                     D        -
blocks.{{i}}.norm1.bias                       D        -
blocks.{{i}}.attn.rel_pos_h                   V,E      axis_positions
blocks.{{i}}.attn.rel_pos_w                   U,E      axis_positions
blocks.{{i}}.attn.qkv.weight                  3D,D     -
blocks.{{i}}.attn.qkv.bias                    3D       qkv_bias
blocks.{{i}}.attn.proj.weight                 D,D      -
blocks.{{i}}.attn.proj.bias                   D        -
blocks.{{i}}.norm2.weight                     D        -
blocks.{{i}}.norm2.bias                       D        -
{_MLP}
neck.0.weight                                 N,D,1,1  neck
neck.1.weight                                 N        neck
neck.1.bias                                   N        neck
neck.2.weight                                 N,N,3,3  neck
neck.3.weight                                 N        neck
neck.3.bias                                   N        neck
head.fc.weight                                K,N      classifier
head.fc.bias                                  K        classifier,head_bias
"""

_RELATIVE = f"""
cls_token                                     1,1,D    class_token
patch_embed.proj.weight                       D,C,P,Q  -
patch_embed.proj.bias                         D        patch_bias
shared_rel_pos.mlp.fc1.weight                 M,2      shared_relative_position
shared_rel_pos.mlp.fc1.bias                   M        shared_relative_position
shared_rel_pos.mlp.fc2.weight                 H,M      shared_relative_position
shared_rel_pos.mlp.fc2.bias                   H        shared_relative_position
blocks.{{i}}.norm1.weight                     D        -
blocks.{{i}}.norm1.bias                       D        -
blocks.{{i}}.attn.qkv.weight                  3D,D     -
blocks.{{i}}.attn.qkv.bias                    3D       qkv_bias
blocks.{{i}}.attn.rel_pos.mlp.fc1.weight      M,2      !shared_relative_position
blocks.{{i}}.attn.rel_pos.mlp.fc1.bias        M        !shared_relative_position
blocks.{{i}}.attn.rel_pos.mlp.fc2.weight      H,M      !shared_relative_position
blocks.{{i}}.attn.rel_pos.mlp.fc2.bias        H        !shared_relative_position
blocks.{{i}}.attn.proj.weight                 D,D      -
blocks.{{i}}.attn.proj.bias                   D        -
blocks.{{i}}.ls1.gamma                        D        layer_scale
blocks.{{i}}.norm2.weight                     D        -
blocks.{{i}}.norm2.bias                       D        -
{_MLP}
blocks.{{i}}.ls2.gamma                        D        layer_scale
{_HEAD}"""

_DESIGNS = {
    "VisionTransformer": _VISION_TRANSFORMER,
    "VisionTransformerDistilled": _VISION_TRANSFORMER,
    "NaFlexVit": _VISION_TRANSFORMER.replace(_STEM, _NAFLEX_STEM),
    "Eva": _EVA,
    "Beit": _EVA,
    "VisionTransformerSAM": _SAM,
    "VisionTransformerRelPos": _RELATIVE,
}


def timm_shapes(architecture: AnyArchitecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of timm's state dict, block by block."""
    if isinstance(architecture, WrappedArchitecture):
        return dict(architecture.shapes)
    sizes = _sizes(architecture)
    table = _PARALLEL if architecture.parallel_branches > 1 else _DESIGNS[architecture.design]
    lines = [tuple(line.split()) for line in written_out(table, architecture)]
    there = [(name, shape) for name, shape, when in lines if when == "-" or holds(when, architecture)]
    in_blocks = [line for line in there if "{i}" in line[0]]
    first = there.index(in_blocks[0])
    shapes = {}
    for name, shape in there[:first]:
        shapes[name] = shape
    for block in range(architecture.num_hidden_layers):
        for name, shape in in_blocks:
            shapes[name.replace("{i}", str(block))] = re.sub("[GVU]", rf"\g<0>{block}", shape)
    for name, shape in there[first:]:
        if "{i}" not in name:
            shapes[name] = shape
    return {name: tuple(sizes[letter] for letter in shape.split(",")) for name, shape in shapes.items()}


def written_out(table: str, architecture: Architecture) -> list[str]:
    """The lines of a table; what is said of any parallel branch, or block of the ResNet, is said of each."""
    stem = [(stage, block) for stage, depth in enumerate(architecture.stem_depths) for block in range(depth)]
    lines: list[str] = []
    for line in filter(None, table.split("\n")):
        if "{b}" in line:
            lines += [line.replace("{b}", str(branch)) for branch in range(architecture.parallel_branches)]
        elif "{s}" in line:
            places = stem if "{j}" in line else [place for place in stem if not place[1]]
            lines += [line.replace("{s}", str(stage)).replace("{j}", str(block)) for stage, block in places]
        else:
            lines.append(line)
    return lines


def holds(when: str, architecture: Architecture) -> bool:
    """Whether all facts of a table's column hold: ``"pre_norm,!rms_norm"``."""
    facts = _facts(architecture)
    return all(facts[fact.lstrip("!")] != fact.startswith("!") for fact in when.split(","))


def _facts(a: Architecture) -> dict[str, bool]:
    names = (
        *("class_token", "distillation_token", "position_embedding", "relative_position", "patch_norm", "pre_norm"),
        *("rms_norm", "layer_scale", "final_norm", "fc_norm", "patch_bias", "qkv_bias", "proj_bias", "head_bias"),
        *("key_bias", "split_qkv", "qk_norm", "layer_scale_on_mlp", "axis_positions"),
        "shared_relative_position",
    )
    return {name: bool(getattr(a, name)) for name in (*names, "classifier")} | {
        "registers": a.num_register_tokens > 0,
        "neck": a.neck_channels > 0,
        "stem": bool(a.stem_depths),
        "attention_pool": a.global_pool == "map",
        **{f"{kind}_mlp": a.mlp == kind for kind in ("plain", "packed", "gated")},
    }


def _sizes(a: Architecture) -> dict[str, int]:
    head = a.hidden_size // a.num_attention_heads
    key_value_heads = a.num_key_value_heads or [a.num_attention_heads] * a.num_hidden_layers
    sides = [
        (a.window_size, a.window_size) if a.window_size and block not in a.global_attention else a.grid
        for block in range(a.num_hidden_layers)
    ]
    stages = [256 * 2**stage for stage in range(len(a.stem_depths))]
    return {
        "S": 64,
        **{f"O{stage}": width for stage, width in enumerate(stages)},
        **{f"W{stage}": width // 4 for stage, width in enumerate(stages)},
        **{
            f"I{stage}.{block}": stages[stage] if block else ([64] + stages)[stage]
            for stage, depth in enumerate(a.stem_depths)
            for block in range(depth)
        },
        "A": stages[-1] if stages else a.num_channels,
        "7": 7,
        "E": head,
        "2": 2,
        "3": 3,
        "M": a.relative_network,
        "N": a.neck_channels,
        "Y": (a.position_grid or a.grid)[0],
        "X": (a.position_grid or a.grid)[1],
        **{f"V{block}": 2 * rows - 1 for block, (rows, _) in enumerate(sides)},
        **{f"U{block}": 2 * columns - 1 for block, (_, columns) in enumerate(sides)},
        **{f"G{block}": heads * head for block, heads in enumerate(key_value_heads)},
        "1": 1,
        "D": a.hidden_size,
        "2D": 2 * a.hidden_size,
        "3D": 3 * a.hidden_size,
        "F": a.intermediate_size,
        "2F": 2 * a.intermediate_size,
        "C": a.num_channels,
        "P": a.kernel_size[0],
        "Q": a.kernel_size[1],
        "PQC": a.patch_size[0] * a.patch_size[1] * a.num_channels,
        "T": a.num_positions,
        "K": a.num_labels,
        "R": a.num_register_tokens,
        "H": a.num_attention_heads,
        "B": (2 * a.grid[0] - 1) * (2 * a.grid[1] - 1) + 3,
    }
