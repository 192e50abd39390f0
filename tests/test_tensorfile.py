import pytest
import torch
from models import small_model
from safetensors.torch import load_file

from vitconv.checkpoint import read_state_dict
from vitconv.tensorfile import write_weights


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
    mapped = read_state_dict(tmp_path)
    assert [mapped[name].data_ptr() % 64 for name in "bca"] == [0, 0, 0]
