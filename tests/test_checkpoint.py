import os
import zipfile
from collections import OrderedDict

import pytest
import torch
from models import small_model
from safetensors.torch import save_file

from vitconv.checkpoint import read_state_dict
from vitconv.errors import CheckpointError


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return small_model().state_dict()


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_opens_torch_s_format_whatever_its_name(weights, save, name):
    assert_same(read_state_dict(save(weights, name)), weights)


def test_opens_torch_s_older_format(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "old.pth"), weights)


def test_opens_safetensors_whatever_its_name(weights, tmp_path):
    save_file(weights, tmp_path / "weights.pth")
    assert_same(read_state_dict(tmp_path / "weights.pth"), weights)


def test_a_header_whose_length_looks_like_a_zip(tmp_path):
    """0x4b50 bytes of header: the file begins with PK."""
    length = int.from_bytes(b"PK", "little")
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    (tmp_path / "w.pth").write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], torch.zeros(2))


def test_opens_parameters_that_want_gradients(save):
    path = save(OrderedDict(a=torch.nn.Parameter(torch.ones(2))))
    assert not read_state_dict(path)["a"].requires_grad


class Malicious:
    """What a hostile pickle looks like: opening it runs a command."""

    def __reduce__(self):
        return (os.mkdir, (os.environ["VITCONV_TEST_TRAP"],))


def test_a_pickle_that_runs_code_is_not_run(save, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setenv("VITCONV_TEST_TRAP", str(trap))
    path = save({"a": torch.ones(1), "b": Malicious()})
    with pytest.raises(CheckpointError, match="holds Python objects"):
        read_state_dict(path)
    assert not trap.exists()


def test_a_pickled_model_is_refused_with_what_to_save_instead(save):
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(save(small_model()))
    assert "torch.save(model.state_dict(), path)" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"a": torch.ones(1)}, "epoch": 3},
            "is not a plain state dict: state_dict, epoch are no tensors",
        ),
        ({}, "is not a plain state dict: it is empty"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({"a": torch.ones(2, 2).to_sparse()}, "holds sparse or quantised tensors"),
        ({0: torch.ones(2, dtype=torch.int8)}, "are no floating-point weights"),
    ],
)
def test_refuses_what_is_no_state_dict(content, message, save):
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(save(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"these are not weights\n", "is not a checkpoint"),
        (b"", "is not a checkpoint"),
        (b"\x00" * 100, "is not a checkpoint"),
        (b"PK\x03\x04 and then nothing", "is damaged or incomplete"),
        (b"\x80\x02 and then nothing", "(is damaged or incomplete|holds Python objects)"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{" + b"x" * 15, "is a damaged or incomplete safetensors file"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "is a damaged or incomplete safetensors file"),
    ],
)
def test_refuses_what_is_no_checkpoint(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_refuses_a_truncated_file(weights, kind, share, tmp_path):
    path = tmp_path / "weights"
    torch.save(weights, path) if kind == "torch" else save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="is (a )?damaged or incomplete"):
        read_state_dict(path)


def test_refuses_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(CheckpointError, match="is damaged or incomplete"):
        read_state_dict(tmp_path / "other.pth")


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds neither model.safetensors"):
        read_state_dict(tmp_path)
