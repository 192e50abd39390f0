import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import FOLDED, KINDS, small_model

from vitconv.errors import WeightsError
from vitconv.mapping.plan import Move, check_tensors, collapse, convert_tensors, make_plan, prove, shapes_of
from vitconv.mapping.vit import VIT
from vitconv.models.timm import from_timm


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FOLDED])
def test_every_element_arrives_exactly_once(kind):
    """Number the source's elements from 2: in the target each is there once, and whatever else is a made 0 or 1."""
    model = small_model(kind)
    source, start = {}, 2
    for name, tensor in model.state_dict().items():
        source[name] = torch.arange(start, start + tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        start += tensor.numel()
    converted = convert_tensors(source, from_timm(model), "hub")
    elements = torch.cat([tensor.flatten() for tensor in converted.values()]).sort().values
    assert torch.equal(elements[elements > 1], torch.arange(2, start, dtype=torch.float64))


def test_a_plan_moves_thirds_of_qkv():
    model = small_model()
    plan = make_plan(VIT, from_timm(model), shapes_of(model.state_dict()))
    rows = {m.target: m.rows for m in plan.moves if m.source == "blocks.1.attn.qkv.weight"}
    assert rows == {
        "vit.encoder.layer.1.attention.attention.query.weight": (0, 64),
        "vit.encoder.layer.1.attention.attention.key.weight": (64, 128),
        "vit.encoder.layer.1.attention.attention.value.weight": (128, 192),
    }


def test_the_table_shows_all_blocks_in_one_line():
    model = small_model()
    table = make_plan(VIT, from_timm(model), shapes_of(model.state_dict())).table()
    assert (
        "blocks.{0…1}.attn.qkv.bias[64:128]",
        "vit.encoder.layer.{0…1}.attention.attention.key.bias",
        (64,),
    ) in table
    assert ("cls_token", "vit.embeddings.cls_token", (1, 1, 64)) in table
    assert len(table) == 24


def test_names_missing_unknown_and_misshapen_tensors():
    model = small_model()
    shapes = shapes_of(model.state_dict())
    expected = dict(shapes)
    for name in [name for name in shapes if "mlp.fc1" in name]:
        del shapes[name]
    shapes["blocks.0.adapter.weight"] = (3, 3)
    shapes["norm.weight"] = (65,)
    with pytest.raises(WeightsError) as caught:
        check_tensors(expected, shapes)
    assert "4 tensors are missing (blocks.{0…1}.mlp.fc1.weight, blocks.{0…1}.mlp.fc1.bias)" in caught.value.problem
    assert "1 tensor is unknown (blocks.0.adapter.weight)" in caught.value.problem
    assert "1 tensor is of another shape (norm.weight is [65] instead of [64])" in caught.value.problem


def test_many_missing_tensors_are_counted():
    with pytest.raises(WeightsError, match=r"9 tensors are missing \(t0, t1, t2, t3 and 5 more\)"):
        check_tensors({f"t{i}": (1,) for i in range(9)}, {})


def test_layer_scale_must_be_folded_first():
    model = small_model("layer scale")
    with pytest.raises(WeightsError, match=r"ViTForImageClassification has no place for blocks.0.ls1.gamma"):
        make_plan(VIT, from_timm(model), shapes_of(model.state_dict()))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_a_partition_is_proved_and_any_other_is_refused(lengths, data):
    total = sum(lengths)
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    moves = [
        Move("a", (total, 3), (start, stop), f"t{i}", (stop - start,))
        for i, (start, stop) in enumerate(zip(edges, edges[1:], strict=False))
    ]
    prove(moves, {"a": (total, 3)})
    broken = data.draw(st.sampled_from(["drop", "repeat", "shift", "extend"]))
    i = data.draw(st.integers(0, len(moves) - 1))
    start, stop = moves[i].rows
    if broken == "drop":
        moves.pop(i)
    elif broken == "repeat":
        moves.append(Move("a", (total, 3), (start, stop), "again", (1,)))
    elif broken == "shift":
        moves[i] = Move("a", (total, 3), (start + 1, stop + 1), f"t{i}", (1,))
    else:
        moves[i] = Move("a", (total, 3), (start, stop + 1), f"t{i}", (1,))
    with pytest.raises(WeightsError, match="not used exactly once"):
        prove(moves, {"a": (total, 3)})


def test_a_target_filled_twice_is_refused():
    with pytest.raises(WeightsError, match="`t` is filled twice"):
        prove([Move("a", (1,), None, "t", (1,)), Move("b", (1,), None, "t", (1,))], {"a": (1,), "b": (1,)})


def test_an_unused_source_is_refused():
    with pytest.raises(WeightsError, match="`b` are not used"):
        prove([Move("a", (1,), None, "t", (1,))], {"a": (1,), "b": (1,)})


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["blocks.0.x", "blocks.1.x", "blocks.2.x"], ["blocks.{0…2}.x"]),
        (["vit.encoder.layer.1.a.b", "vit.encoder.layer.3.a.b"], ["vit.encoder.layer.{1,3}.a.b"]),
        (["blocks.7.x"], ["blocks.7.x"]),
        (["head.weight", "norm.bias"], ["head.weight", "norm.bias"]),
    ],
)
def test_collapse(names, short):
    assert collapse(names) == short
