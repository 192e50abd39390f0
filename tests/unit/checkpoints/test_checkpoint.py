import argparse
import datetime
import os
import shlex
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy
import psutil
import pytest
import torch
from models import small_model
from safetensors.torch import load_file, save_file

from vitconv.checkpoints.checkpoint import check_checksums, open_source, read_state_dict
from vitconv.checkpoints.tensorfile import StoredTensor, load_tensors, write_weights
from vitconv.convert import convert_state_dict
from vitconv.errors import CheckpointError


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return small_model().state_dict()


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_torch_files_open_under_any_name(weights, save, name):
    assert_same(read_state_dict(save(weights, name)), weights)


def test_opens_torch_s_older_format(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "old.pth"), weights)


def test_safetensors_open_under_any_name(weights, tmp_path):
    save_file(weights, tmp_path / "weights.pth")
    assert_same(read_state_dict(tmp_path / "weights.pth"), weights)


def test_a_header_whose_length_looks_like_a_zip(tmp_path):
    """0x4b50 bytes of header: the file begins with PK."""
    length = int.from_bytes(b"PK", "little")
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    (tmp_path / "w.pth").write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], torch.zeros(2))


def test_parameters_that_require_gradients_are_read(save):
    path = save(OrderedDict(a=torch.nn.Parameter(torch.ones(2))))
    assert not read_state_dict(path)["a"].requires_grad


@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
def test_values_that_are_only_marked_as_negated_keep_their_sign(older, save, tmp_path):
    """torch saves a view of a conjugate's imaginary part as the original bytes and a flag."""
    content = {
        "part": torch.arange(24.0).view(3, 4, 2).view(torch.complex64).squeeze(-1).conj().imag,
        "whole": torch._neg_view(torch.arange(4.0)),
        "plain": torch.arange(4.0),
    }
    assert content["part"].is_neg()
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not older)
    source = open_source(tmp_path / "w.pth")
    tensors = source.tensors(source.content)
    assert isinstance(tensors["plain"], StoredTensor) is not older
    write_weights(tensors, tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), content)
    assert_same(read_state_dict(tmp_path / "w.pth"), content)


def test_views_of_a_large_storage_are_not_read_before_they_are_used(save):
    """A file of 64 MB may hold any number of them."""
    whole = torch.zeros(4000, 4000)
    source = open_source(save({str(n): whole[:, n : n + 2] for n in range(16)}))
    before = psutil.Process().memory_info().rss
    tensors = source.tensors(source.content)
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(4000, 2)}
    assert psutil.Process().memory_info().rss - before < 64e6


def test_a_state_dict_in_memory_keeps_its_signs(tmp_path):
    weights = small_model().state_dict()
    expected = convert_state_dict(weights, small_model(), layout="hub")
    negated = {name: torch._neg_view(-tensor) for name, tensor in weights.items()}
    converted = convert_state_dict(negated, small_model(), layout="hub")
    write_weights(converted, tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), expected)
    # safetensors writes the memory, whatever the mark says.
    save_file({name: tensor.contiguous() for name, tensor in converted.items()}, tmp_path / "theirs")
    assert_same(load_file(tmp_path / "theirs"), expected)


def test_an_object_with_a_shape_and_a_dtype_is_not_taken_for_a_tensor(save):
    path = save({"a": torch.ones(1), "b": argparse.Namespace(shape=(1,), dtype="float32")})
    with pytest.raises(CheckpointError, match="is not a plain state dict: b is not a tensor"):
        read_state_dict(path)


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
            "is not a plain state dict: state_dict, epoch are not tensors",
        ),
        ({}, "is not a plain state dict: it is empty"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({"a": torch.ones(2, 2).to_sparse()}, "holds sparse or quantised tensors"),
        ({0: torch.ones(2, dtype=torch.int8)}, "are none of float64, float32, float16, bfloat16, .*: int8"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, r": float8_e4m3fn\).\n.* save its weights in one of these"),
    ],
)
def test_files_that_hold_no_state_dict_are_refused(content, message, save):
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
def test_files_that_are_no_checkpoint_are_refused(content, message, tmp_path):
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


def flip(path, record):
    """Flip one bit in the middle of a zip's record."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = content.index(archive.read(record))
        content[start + archive.getinfo(record).file_size // 2] ^= 1
    path.write_bytes(content)


def test_checksums_find_a_flipped_bit(weights, save):
    path = save(weights)
    with zipfile.ZipFile(path) as archive:
        record = max((entry for entry in archive.infolist()), key=lambda entry: entry.file_size).filename
    check_checksums(path)
    flip(path, record)
    open_source(path)  # which reads no weights
    for read in (check_checksums, read_state_dict):
        with pytest.raises(CheckpointError, match=f"the bytes of its record '{record}' do not match their checksum"):
            read(path)
    check_checksums(path, stopped=lambda: True)


def test_checksums_find_a_flipped_bit_in_a_name(save):
    path = save({"a name that is long enough" * 20: torch.ones(1)})
    flip(path, "weights/data.pkl")
    with pytest.raises(CheckpointError, match=r"its record 'weights/data.pkl' do not match their checksum"):
        open_source(path)


def test_a_file_without_checksums_is_read(weights, save):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(weights)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_state_dict(path), weights)


@pytest.mark.parametrize("name", ["old", "safetensors"])
def test_formats_that_have_no_checksums(name, weights, tmp_path):
    path = tmp_path / name
    torch.save(weights, path, _use_new_zipfile_serialization=False) if name == "old" else save_file(weights, path)
    check_checksums(path)


def test_refuses_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(CheckpointError, match="is damaged or incomplete"):
        read_state_dict(tmp_path / "other.pth")


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds none of model.safetensors"):
        read_state_dict(tmp_path)


# ---- Python objects beside the weights, and the command that leaves them out --------------------------------------


def run_command(remedy, folder):
    """Run the command at the end of a remedy, as a user who trusts the file would."""
    command = shlex.split(remedy[remedy.index("python -") :])
    subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True, capture_output=True)


OBJECTS = {
    "numpy": (numpy.float64(81.5), "multiarray.scalar`"),
    "path": (Path("runs") / "1", "PosixPath`"),
    "defaultdict": (defaultdict(int, a=1), "`collections.defaultdict`"),
    "date": (datetime.datetime(2024, 1, 1), "`datetime.datetime`"),
    "array": (numpy.ones(3), "`numpy"),
    "of one's own": (Malicious, "test_checkpoint.Malicious`"),
}


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_beside_the_weights_is_named_with_a_command_that_removes_it(kind, older, weights, tmp_path):
    value, named = OBJECTS[kind]
    torch.save(
        {"state_dict": weights, "best": value, "epoch": 3},
        tmp_path / "my.pth",
        _use_new_zipfile_serialization=not older,
    )
    with pytest.raises(CheckpointError, match="holds Python objects, not only tensors: `") as caught:
        open_source(tmp_path / "my.pth")
    assert named in caught.value.problem
    path = repr(str(tmp_path / "my.pth"))
    command = f"c = torch.load({path}, weights_only=False); torch.save(c['state_dict'], 'weights.pth')"
    assert f'only if you trust where it comes from: python -c "import torch; {command}"' in caught.value.remedy
    if kind != "of one's own":
        run_command(caught.value.remedy, tmp_path)
        assert_same(read_state_dict(tmp_path / "weights.pth"), weights)


def test_the_command_that_removes_objects_keeps_the_head(weights, tmp_path):
    """It also keeps an EMA and what describes the model: only objects that torch cannot open are left out."""
    head = {"weight": torch.ones(5, 64)}
    saved = {"backbone": weights, "head": head, "args": argparse.Namespace(model="x"), "time": numpy.float64(1)}
    torch.save(saved, tmp_path / 'it\'s "mine".pth')
    with pytest.raises(CheckpointError) as caught:
        open_source(tmp_path / 'it\'s "mine".pth')
    run_command(caught.value.remedy, tmp_path)
    content = open_source(tmp_path / "weights.pth").content
    assert list(content) == ["backbone", "head", "args"]


def test_an_optimizer_that_cannot_be_opened_is_left_out(weights, tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "x": defaultdict(int)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": weights, "optimizer": optimizer}, tmp_path / "my.pth")
    with pytest.raises(CheckpointError, match=r"torch.save\(c\['model'\], 'weights.pth'\)"):
        open_source(tmp_path / "my.pth")


@pytest.mark.slow
def test_a_pickled_model_is_refused_with_a_command_that_saves_its_weights(save, tmp_path):
    for content, taken in ((small_model(), "c"), ({"model": small_model(), "epoch": 1}, "c['model']")):
        with pytest.raises(CheckpointError, match="VisionTransformer") as caught:
            read_state_dict(save(content))
        assert f"torch.save({taken}.state_dict(), 'weights.pth')" in caught.value.remedy
        run_command(caught.value.remedy, tmp_path)
        assert_same(read_state_dict(tmp_path / "weights.pth"), small_model().state_dict())


def test_another_protocol_of_pickling_is_named(weights, tmp_path):
    torch.save(weights, tmp_path / "my.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="is a pickle of protocol 4") as caught:
        open_source(tmp_path / "my.pth")
    run_command(caught.value.remedy, tmp_path)
    assert_same(read_state_dict(tmp_path / "weights.pth"), weights)


def test_a_pickle_that_would_run_a_command_is_refused_without_advice_to_open_it(save, tmp_path, monkeypatch):
    monkeypatch.setenv("VITCONV_TEST_TRAP", str(tmp_path / "trap"))
    with pytest.raises(CheckpointError, match="`posix.mkdir`") as caught:
        open_source(save({"a": torch.ones(1), "b": Malicious()}))
    assert "Do not open this file" in caught.value.remedy and "python -c" not in caught.value.remedy


@pytest.mark.slow
def test_a_distributed_checkpoint_is_named_with_the_command_that_joins_it(weights, tmp_path):
    import torch.distributed.checkpoint as distributed

    folder = tmp_path / "step 100"
    with pytest.warns(UserWarning, match="single process"):
        distributed.save({"model": weights}, checkpoint_id=folder)
    for path in (folder, folder / ".metadata", folder / "__0_0.distcp"):
        with pytest.raises(CheckpointError, match="is a sharded checkpoint of torch.distributed.checkpoint") as caught:
            open_source(path)
    run_command(caught.value.remedy, tmp_path)
    source = open_source(tmp_path / "step 100.pth")
    assert_same(load_tensors(source.tensors(source.content["model"])), weights)
