"""A timm model in memory, as it is at this moment: converted exactly, or refused by name; verified by default."""

import ast
import copy
import dataclasses
import importlib
import inspect
import math
import os
import random
import textwrap
import threading

import pytest
import timm
import torch
from models import HYBRID, SMALL, output_of, perturbed, small_model
from torch import nn

from vitconv.convert import to_huggingface
from vitconv.errors import ArchitectureError, InputError, ParityError, VitconvError, WeightsError
from vitconv.models import timm as timm_models
from vitconv.models.timm import build_timm, from_timm
from vitconv.models.timm_state import SETTINGS, class_name
from vitconv.parity.float64 import float64_throughout

#: One small model of each design, and of each option that reads attributes of its own: name -> (timm name, arguments).
SMALLEST = {**SMALL, "embed_dim": 32}
EVA = {"num_classes": 0, "global_pool": "avg", "swiglu_align_to": 8}
EDITED = {
    "plain": ("vit_tiny_patch16_224", {"init_values": 0.5, "drop_path_rate": 0.1}),
    "not fused": ("vit_tiny_patch16_224", {"drop_rate": 0.1}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "img_size": (32, 48), "no_embed_class": True}),
    "mean": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 32, "num_classes": 0}),
    "clip": ("vit_base_patch32_clip_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {"num_classes": 0}),
    "beit": ("beit_base_patch16_224", {}),
    "eva": ("eva_giant_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", EVA),
    "dinov3 of one size": ("vit_small_patch16_dinov3", {**EVA, "dynamic_img_size": False, "img_size": (32, 48)}),
    "split": ("vit_base_patch16_sapiens2", {"num_classes": 0, "num_heads": 4, "num_kv_heads": [4, 2]}),
    "sam": ("samvit_base_patch16", {"num_classes": 0, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 8}),
    "relative": ("vit_relpos_small_patch16_224", {}),
    "naflex": ("naflexvit_base_patch16_siglip", {"num_classes": 0, "pos_embed_grid_size": (4, 4)}),
    "naflex resampled": ("naflexvit_base_patch16_radio_v3", {"num_classes": 0, "patch_drop_rate": 0.1}),
    "hybrid": ("vit_base_r50_s16_224", HYBRID),
    "parallel": ("vit_small_patch16_18x2_224", {}),
    "shared": ("vit_srelpos_small_patch16_224", {"num_classes": 0}),
    "counted": ("vit_pe_spatial_gigantic_patch14_448", {"num_classes": 0}),
}
#: How many edits of each of them are tried; `make fuzz` tries all.
EDITS = 90 if "VITCONV_FUZZ_CASES" not in os.environ else None


def edited_model(kind: str) -> nn.Module:
    name, arguments = EDITED[kind]
    model = perturbed(timm.create_model(name, **{**SMALLEST, **arguments})).double()
    if kind == "not fused":  # then `scale` counts
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    return model


def others(value):
    """Other values than this one, of its own type and of others."""
    if isinstance(value, bool):
        return [not value, None]
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value, 0, None, "2", float(value)]
    if isinstance(value, float):
        return [1.5 * value, 0.01 + value, 1000.0, 0.0, math.nan, None, "1"]
    if isinstance(value, str):
        words = ("token", "avg", "max", "map", "", "xy", "min", "tanh", "none", "NHWC", "reflect", "swin")
        return [word for word in words if word != value] + [None]
    if value is None:
        return [1, 0.5, True, "avg", (2, 2), torch.sin]
    if isinstance(value, tuple) and all(isinstance(one, int) for one in value):
        return [tuple(one + 1 for one in value), tuple(2 * one for one in value), value[:1], None]
    return []


def edits(model: nn.Module) -> list[tuple[str, str, str, object]]:
    """(module, which of its dictionaries, name, value) of every edit of one attribute, buffer or parameter."""
    found = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if (not name.startswith("_") or name == "_fast_norm") and name != "training":
                found += [(path, "__dict__", name, other) for other in others(value)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                other = buffer + 0.01 if buffer.is_floating_point() else buffer.flip(0)
                found += [(path, "_buffers", name, value) for value in (other, 1.01 * other, buffer[:-1], None)]
        found += [(path, "_parameters", name, None) for name, value in module._parameters.items() if value is not None]
    return found


def outcome(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor | None:
    """What timm computes, or `None` if it fails."""
    try:
        with torch.no_grad():
            return model(pixels)
    except Exception:
        return None


def wrong(model: nn.Module, pixels: torch.Tensor, tolerance: float) -> str | None:
    """What goes wrong in converting a model as it is; `None` if it is exact, or refused."""
    expected = outcome(model, pixels)
    try:
        twin = to_huggingface(model, verify=False)
    except VitconvError as error:
        return None if error.remedy else "refused without a remedy"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if expected is None:
        return None
    with torch.no_grad(), float64_throughout(twin):
        found = output_of(twin(pixels), model)
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    difference = (found - expected).abs().max().item()
    return None if difference <= tolerance or torch.equal(found, expected) else f"differs by {difference:.2g}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The timm model was trained with")
@pytest.mark.parametrize("kind", EDITED)
def test_an_edited_model_is_converted_exactly_or_refused(kind):
    model = edited_model(kind)
    pixels = torch.randn(1, 3, *from_timm(model).image_size, dtype=torch.float64)
    # timm's rotary periods are float32 in any model, and so are resampled positions: the twin is that far from them.
    in_float32 = (hasattr(model, "rope") and model.rope) or from_timm(model).position_grid
    assert wrong(model, pixels, tolerance := 1e-6 if in_float32 else 1e-11) is None
    to_huggingface(model, verify=False)
    every, failed = edits(model), []
    for path, where, name, value in random.Random(0).sample(every, min(EDITS or len(every), len(every))):
        module = model.get_submodule(path)
        held = getattr(module, where) if where != "__dict__" else module.__dict__
        before = held[name]
        held[name] = value
        problem = wrong(model, pixels, tolerance)
        held[name] = before
        if problem:
            failed.append(f"{path}.{name} = {value!r}"[:80] + f": {problem}")
    assert not failed, "\n".join(failed)


# ---- what is known of timm's classes ------------------------------------------------------------------------


def attributes(cls: type) -> set[str]:
    """What the class's `forward`, and the methods of its own that it calls, read of `self`."""
    to_read, seen, found = ["forward"], set(), set()
    while to_read:
        method = to_read.pop()
        owner = next(base for base in cls.__mro__ if method in vars(base))
        if method in seen or owner is nn.Module:
            continue
        seen.add(method)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(vars(owner)[method])))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                name = node.attr
            elif isinstance(node, ast.Call) and ast.unparse(node).startswith("getattr(self, "):
                name = node.args[1].value
            else:
                continue
            (to_read.append if inspect.isfunction(getattr(cls, name, None)) else found.add)(name)
    return found - {"training"}


def class_of(name: str) -> type:
    """The class that vitconv calls so."""
    place, _, cls = name.rpartition(".")
    places = [place.replace("timm.", "timm.models.")]
    if place == "timm":
        places = ["timm.layers", "timm.layers.pool2d_same", "timm.models.vision_transformer", "timm.models.deit"]
    modules = [importlib.import_module(place) for place in places]
    return next(vars(module)[cls] for module in modules if cls in vars(module))


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_forward_pass_reads_is_known(name):
    cls = class_of(name)
    assert class_name(cls.__new__(cls)) == name
    assert attributes(cls) <= set(SETTINGS[name])


def test_every_class_on_the_whitelist_is_known():
    allowed = {name for modules in timm_models._DESIGNS.values() for names in modules.values() for name in names}
    assert allowed | set(timm_models._DESIGNS) == set(SETTINGS)


# ---- edits that once passed unseen --------------------------------------------------------------------------


def no_class_token(model):
    model.cls_token = None


def other_periods(model):
    model.rope.periods.mul_(2)


@pytest.mark.parametrize(
    ("kind", "edit", "named"),
    [
        ("mean", lambda m: setattr(m, "num_prefix_tokens", 1), "`num_prefix_tokens` = 1"),
        ("any size", no_class_token, "`num_prefix_tokens` = 1"),
        ("any size", lambda m: setattr(m.patch_embed, "grid_size", (6, 4)), "`patch_embed.grid_size` = (6, 4)"),
        ("any size", lambda m: setattr(m.patch_embed, "img_size", None), "`patch_embed.img_size` = None"),
        ("plain", lambda m: setattr(m, "embed_dim", 64), "heads of another width"),
        ("plain", lambda m: setattr(m.blocks[0].attn, "num_heads", 0), "`blocks.0.attn.num_heads` = 0"),
        ("plain", lambda m: setattr(m.blocks[0].attn, "gate", torch.sin), "`blocks.0.attn.gate`"),
        ("plain", lambda m: setattr(m.norm, "eps", "1e-6"), "`norm.eps` = '1e-6'"),
        ("not fused", lambda m: setattr(m.blocks[1].attn, "scale", 1.0), "heads of another width or scale"),
        ("distilled", lambda m: setattr(m, "global_pool", "avg"), "`global_pool` = 'avg'"),
        ("siglip", lambda m: setattr(m.attn_pool, "scale", 1.0), "`attn_pool.scale` = 1.0"),
        ("siglip", lambda m: setattr(m.attn_pool, "head_dim", 8), "`attn_pool.head_dim` = 8"),
        ("beit", lambda m: m.blocks[1].attn.relative_position_index.zero_(), "`blocks.1.attn.relative_position_index`"),
        ("beit", lambda m: setattr(m, "rel_pos_bias", lambda: 1.0), "`rel_pos_bias`"),
        ("eva", lambda m: m.blocks[0].attn.k_bias.add_(1), "`blocks.0.attn.k_bias`"),
        ("dinov3", other_periods, "`rope.periods`"),
        ("dinov3", lambda m: setattr(m.rope, "temperature", 50.0), "`rope.periods`"),
        ("dinov3", lambda m: setattr(m.rope, "temperature", None), "`rope.temperature` = None"),
        ("dinov3", lambda m: setattr(m, "rope_mixed", True), "`rope_mixed` = True"),
        ("dinov3 of one size", lambda m: m.rope.pos_embed_cached.neg_(), "`rope.pos_embed_cached`"),
        ("split", lambda m: setattr(m.blocks[1].attn, "num_kv_groups", 1), "`blocks.1.attn.num_kv_groups` = 1"),
        ("sam", lambda m: setattr(m.blocks[0].attn, "use_rel_pos", False), "`blocks.0.attn.use_rel_pos` = False"),
        ("sam", lambda m: setattr(m, "global_pool", ""), "`global_pool` = ''"),
        ("sam", lambda m: setattr(m.neck[2], "stride", (2, 2)), "another neck or other windows than SAM's"),
        ("sam", lambda m: setattr(m.blocks[0], "window_size", 4), "`window_size`|blocks.0.attn.rel_pos"),
        ("relative", lambda m: m.blocks[0].attn.rel_pos.rel_coords_log.mul_(2), "`blocks.0.attn.rel_pos.rel_coords_log`"),
        ("counted", lambda m: m.rope.pos_embed.neg_(), "`rope.pos_embed`"),
        ("counted", lambda m: setattr(m.rope, "temperature", 50.0), "`rope.bands`, `rope.pos_embed`"),
        ("counted", lambda m: setattr(m.rope, "ref_feat_shape", (16, 16)), "`rope.pos_embed`"),
        ("counted", lambda m: setattr(m.rope, "ref_feat_shape", (32, 16)), "rotary positions of another kind"),
        ("shared", lambda m: m.shared_rel_pos.rel_coords_log.mul_(2), "`shared_rel_pos.rel_coords_log`"),
        ("relative", lambda m: m.bfloat16().float(), "`blocks.0.attn.rel_pos.rel_coords_log`, `blocks.1"),
        ("naflex", lambda m: setattr(m.embeds, "patch_size", (4, 4)), "`embeds.in_chans` = 3, `embeds.patch_size` = (4, 4)"),
        ("naflex", lambda m: setattr(m.embeds, "in_chans", 1), "`embeds.in_chans` = 1"),
        ("naflex", lambda m: setattr(m.embeds, "is_linear", False), "`embeds.is_linear` = False"),
        ("naflex", lambda m: setattr(m.embeds, "pos_embed_type", "none"), "`embeds.pos_embed_type` = 'none'"),
        ("naflex", lambda m: setattr(m.embeds, "norm_input", torch.sin), "`embeds.norm_input`"),
        ("naflex resampled", lambda m: setattr(m.embeds, "reg_token", None), "`num_prefix_tokens` = 8"),
        ("hybrid", lambda m: setattr(m.patch_embed, "grid_size", (3, 3)), "`patch_embed.grid_size` = (3, 3)"),
        ("hybrid", lambda m: setattr(m.patch_embed, "img_size", (33, 33)), "`patch_embed.grid_size` = (2, 2)"),
        ("plain", lambda m: setattr(m.blocks[0].ls1, "gamma", None), "missing (blocks.0.ls1.gamma)"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The timm model was trained with")
def test_an_edit_is_refused_by_name(kind, edit, named):
    model = edited_model(kind)
    to_huggingface(model, verify=False)
    with torch.no_grad():
        edit(model)
    with pytest.raises(VitconvError) as caught:
        to_huggingface(model, verify=False)
    assert any(name in caught.value.problem for name in named.split("|")), caught.value.problem
    assert caught.value.remedy


def test_what_timm_does_not_read_is_not_read():
    model = small_model()
    model.num_reg_tokens = 4
    assert from_timm(model).num_register_tokens == 0
    model.blocks[0].mlp.act = timm.layers.GELU()
    model.blocks[0].mlp.act.approximate = "tanh"
    assert from_timm(model).hidden_act == "gelu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["eva", "dinov3", "dinov3 of one size", "counted", "relative", "beit"])
@pytest.mark.filterwarnings("ignore:The timm model was trained with")
def test_buffers_may_be_rounded_as_the_weights_are(kind, dtype):
    assert to_huggingface(edited_model(kind).float().to(dtype)).dtype == dtype


# ---- verification -------------------------------------------------------------------------------------------


def hidden_mistake(monkeypatch):
    """Let the reading get the epsilon wrong."""
    right = timm_models.read
    monkeypatch.setattr(timm_models, "read", lambda model: dataclasses.replace(right(model), layer_norm_eps=1e-2))


def test_a_mistake_is_found_by_running_both(monkeypatch):
    hidden_mistake(monkeypatch)
    model = small_model()
    with pytest.raises(ParityError) as caught:
        to_huggingface(model)
    assert caught.value.stage == "blocks.0"
    assert "`blocks.0`" in caught.value.problem
    to_huggingface(model, verify=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mistake_is_found_in_low_precision(monkeypatch, dtype):
    model = small_model("layer scale").to(dtype)  # of which the folded weights are rounded
    to_huggingface(model)
    hidden_mistake(monkeypatch)
    with pytest.raises(ParityError):
        to_huggingface(model)


def state(model: nn.Module) -> dict[str, object]:
    """All that a comparison could leave behind."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "mode": [module.training for module in model.modules()],
        "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
        "objects": {name: (id(tensor), tensor.data_ptr(), tensor.dtype) for name, tensor in tensors.items()},
        "gradients": {name: id(parameter.grad) for name, parameter in model.named_parameters()},
    }


@pytest.mark.parametrize("kind", ["plain", "dinov3 of one size", "relative"])
@pytest.mark.filterwarnings("ignore:The timm model was trained with")
def test_verifying_leaves_everything_as_it_was(kind):
    model = edited_model(kind).train()
    model.blocks[0].eval()
    model(torch.randn(1, 3, *from_timm(model).image_size, dtype=torch.float64)).sum().backward()
    values = copy.deepcopy({**model.state_dict(), **dict(model.named_buffers())})
    before, draws = state(model), torch.get_rng_state()
    twin = to_huggingface(model)
    assert torch.equal(torch.get_rng_state(), draws)
    assert state(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.named_buffers())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert twin.dtype == torch.float64 and twin.training
    assert all(parameter.grad is None for parameter in twin.parameters())


@pytest.mark.parametrize("kind", ["dinov3", "dinov3 of one size", "relative", "beit"])
@pytest.mark.parametrize(
    "around", [torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode()]
)
@pytest.mark.filterwarnings("ignore:The timm model was trained with")
def test_what_is_on_around_the_call_changes_nothing(kind, around):
    model = edited_model(kind).float()
    with around:
        twin = to_huggingface(model)
    expected = to_huggingface(model).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in twin.state_dict().items())


def test_several_threads_convert_a_model_at_once():
    model, twins = small_model().double(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = [threading.Thread(target=lambda: twins.append(to_huggingface(model)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(twins) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    first = twins[0].state_dict()
    assert all(torch.equal(tensor, first[name]) for twin in twins for name, tensor in twin.state_dict().items())


def test_weights_of_nan_are_converted():
    model = small_model()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
        model.blocks[1].mlp.fc1.weight[3] = math.inf
    assert to_huggingface(model).classifier.weight[0, 0].isnan()


def test_weights_on_meta_are_converted_without_running():
    model = build_timm("vit_tiny_patch16_224")
    assert all(parameter.is_meta for parameter in to_huggingface(model).parameters())


@pytest.mark.parametrize("around", [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_what_is_around_a_model_is_named_with_the_way_to_the_model(around):
    model = around(small_model())
    name = type(model).__name__
    with pytest.raises(
        InputError, match=rf"^A {name} is not a timm model, but has one in it.\n.*: `\.(\w+)`"
    ) as caught:
        to_huggingface(model)
    inside = caught.value.remedy.split("`")[1].removeprefix(".")
    assert to_huggingface(getattr(model, inside)).num_labels == 5


@pytest.mark.parametrize("value", [None, "vit_tiny_patch16_224", {}, timm.create_model])
def test_what_is_no_model_is_refused(value):
    with pytest.raises(
        InputError, match=f"^A {type(value).__name__} is not a timm model.\nPass what `timm.create_model"
    ):
        to_huggingface(value)


def test_weights_that_are_no_floating_point_numbers_are_refused():
    model = small_model()
    model.head.weight = nn.Parameter(model.head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(WeightsError, match="`head.weight` in the state dict is not a dense floating-point tensor"):
        to_huggingface(model)


def test_a_model_that_does_not_run_is_refused_in_words():
    model = build_timm("beit_base_patch16_224", **SMALL)
    weights = perturbed(timm.create_model("beit_base_patch16_224", **SMALL)).state_dict()
    model.load_state_dict(weights, assign=True)
    with pytest.raises(ArchitectureError, match="one does not run"):  # its index of relative positions is on meta
        to_huggingface(model.eval())
