import errno
import os

import pytest
import torch
import transformers
from hostile import headers
from hypothesis import given
from hypothesis import strategies as st
from models import small_model
from safetensors.torch import load_file, save_file

from vitconv.checkpoints.checkpoint import read_state_dict
from vitconv.checkpoints.tensorfile import load_tensors, map_tensors, read_header, write_weights
from vitconv.errors import CheckpointError


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return small_model().state_dict()


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_writes_what_safetensors_reads(weights, dtype, tmp_path):
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    weights["scalar"] = torch.tensor(1.5, dtype=dtype)
    weights["rows"] = weights["pos_embed"][0][3:5]
    write_weights(weights, tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), weights)


def test_tensors_are_aligned_behind_a_small_odd_one(tmp_path):
    write_weights({"a": torch.ones(7), "b": torch.ones(16), "c": torch.ones(32)}, tmp_path)
    mapped = map_tensors(read_header(tmp_path / "model.safetensors"))
    assert [mapped[name].data_ptr() % 64 for name in "bca"] == [0, 0, 0]


def test_a_stored_tensor_s_rows_are_torch_s(weights, tmp_path):
    save_file(weights, tmp_path / "w")
    stored = read_header(tmp_path / "w")
    loaded = load_tensors({name: tensor[1:3] for name, tensor in stored.items()})
    assert_same(loaded, {name: tensor[1:3] for name, tensor in weights.items()})


def test_the_header_says_what_safetensors_says(weights, tmp_path):
    save_file(weights, tmp_path / "w")
    assert_same(load_tensors(read_header(tmp_path / "w")), load_file(tmp_path / "w"))


def test_loaded_tensors_do_not_write_to_their_file(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "w")
    load_tensors(read_header(tmp_path / "w"))["a"].zero_()
    assert torch.equal(load_file(tmp_path / "w")["a"], torch.ones(4))


def test_loaded_tensors_outlive_their_file(weights, tmp_path):
    """Of a mapped one that is cut short, as `torch.save` begins, the next look ends the process."""
    save_file(weights, tmp_path / "w")
    loaded = load_tensors(read_header(tmp_path / "w"))
    os.truncate(tmp_path / "w", 0)
    assert_same(loaded, weights)


def test_a_file_that_is_cut_short_before_it_is_read_is_named(weights, tmp_path):
    save_file(weights, tmp_path / "w")
    stored = read_header(tmp_path / "w")
    os.truncate(tmp_path / "w", 100)
    with pytest.raises(CheckpointError, match="w' became shorter while it was read"):
        load_tensors(stored)


@pytest.mark.parametrize("read", [load_tensors, map_tensors])
def test_tensors_of_every_kind_are_read(read, tmp_path):
    kinds = (torch.float64, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.bool, torch.complex64)
    tensors = {str(kind): torch.tensor([[1, 0], [1, 1]]).to(kind) for kind in kinds}
    tensors |= {"none": torch.ones(0, 3), "scalar": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "w")
    found = read(read_header(tmp_path / "w"))
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].contiguous().view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    offset=st.integers(0, 200),
    order=st.randoms(use_true_random=False),
)
def test_what_is_copied_from_files_and_memory_is_what_was_there(sizes, offset, order, tmp_path_factory):
    """In any order and alignment, with any neighbours, anywhere in a page."""
    folder = tmp_path_factory.mktemp("copy")
    tensors = {f"t{i}": torch.arange(size, dtype=torch.float32) + i for i, size in enumerate(sizes)}
    save_file(tensors, folder / "source", metadata={"x": "y" * offset})
    mixed = {
        name: stored if order.random() < 0.7 else tensors[name]
        for name, stored in read_header(folder / "source").items()
    }
    names = list(mixed)
    order.shuffle(names)
    write_weights({name: mixed[name] for name in names}, folder)
    assert_same(load_file(folder / "model.safetensors"), tensors)


@pytest.mark.parametrize("broken", ["no call", "not between these file systems"])
def test_without_a_copy_in_the_kernel_bytes_are_read_and_written(broken, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EXDEV, "not between these file systems")

    monkeypatch.delattr(os, "copy_file_range") if broken == "no call" else monkeypatch.setattr(
        os, "copy_file_range", refuse
    )
    save_file({"a": torch.arange(100_000.0)}, tmp_path / "w")
    write_weights(read_header(tmp_path / "w"), tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), {"a": torch.arange(100_000.0)})


def test_a_source_that_shrinks_is_an_error(tmp_path):
    save_file({"a": torch.arange(100_000.0)}, tmp_path / "w")
    stored = read_header(tmp_path / "w")
    os.truncate(tmp_path / "w", 1000)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        write_weights(stored, tmp_path)


def test_large_weights_are_cut_as_transformers_cuts_them(tmp_path, monkeypatch):
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48)
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    monkeypatch.setattr("vitconv.checkpoints.tensorfile.SHARD_SIZE", 20_000)
    (tmp_path / "ours").mkdir()
    tensors = read_state_dict(tmp_path / "theirs")
    write_weights({name: tensors[name] for name in sorted(tensors)}, tmp_path / "ours")
    config.save_pretrained(tmp_path / "ours")
    shards = len(list((tmp_path / "ours").glob("model-*-of-*.safetensors")))
    assert shards == len(list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))) > 1
    assert_same(read_state_dict(tmp_path / "ours"), tensors)
    again, info = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(again.state_dict(), model.state_dict())


def test_values_that_are_only_marked_as_negated_keep_their_sign(tmp_path):
    """torch returns such a view of a conjugate's imaginary part: in memory, its values have the other sign."""
    negated = torch.arange(24.0).view(3, 4, 2).view(torch.complex64).squeeze(-1)[:, :3].conj().imag
    assert negated.is_neg()
    whole = torch._neg_view(torch.arange(4.0))
    write_weights({"part": negated, "whole": whole}, tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), {"part": negated, "whole": whole})


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E4M3FNUZ", "F4"])
def test_a_dtype_that_is_not_read_is_no_damage(dtype, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(headers.file({"a": headers.entry(dtype=dtype)}, bytes(4)))
    with pytest.raises(CheckpointError, match=f"holds `a` as {dtype}, which is no dtype of weights that") as refused:
        read_header(tmp_path / "w.safetensors")
    assert refused.value.remedy == "Pass the checkpoint as it was before it was compressed."
