import hashlib
import json
import os

import pytest

from vitconv.checkpoints.digests import digest, write_digests
from vitconv.errors import CheckpointError, InputError
from vitconv.files import sha256


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_a_folder_an_index_the_hub_and_nothing(tmp_path, hub_cache):
    folder = tmp_path / "timm"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "more" / "model.safetensors.index.json").write_bytes(b"index")
    (folder / "more" / "model-1.safetensors").write_bytes(b"weights")
    assert digest(str(folder / "config.json")) == {"config.json": sha(b"{}")}
    all_of_more = {"model-1.safetensors": sha(b"weights"), "model.safetensors.index.json": sha(b"index")}
    assert digest(str(folder)) == {
        "config.json": sha(b"{}"),
        **{f"more/{name}": it for name, it in all_of_more.items()},
    }
    assert digest(str(folder / "more" / "model.safetensors.index.json")) == all_of_more
    (folder / "more" / "pytorch_model.bin.index.json").write_bytes(b"pickles")
    assert digest(str(folder / "more" / "pytorch_model.bin.index.json")) == {
        **all_of_more,
        "pytorch_model.bin.index.json": sha(b"pickles"),
    }
    assert digest("") == digest(None) == {}
    hub_cache({"config.json": b"{}", "model.safetensors": b"weights"})
    assert digest("hf-hub:our/roofs") == {"config.json": sha(b"{}"), "model.safetensors": sha(b"weights")}


def test_a_missing_file_is_an_error(tmp_path, hub_cache):
    with pytest.raises(InputError, match="There is no file '.*labels.txt'"):
        digest(str(tmp_path / "labels.txt"))
    with pytest.raises(CheckpointError, match="not in the local cache"):
        digest("hf-hub:our/roofs")


def test_an_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        digest("a" * 300)


@pytest.mark.parametrize("name", ["/proc/version", "/proc/kmsg"])
def test_the_system_s_own_files_are_not_waited_for(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(name)
    for value in (name, tmp_path / "folder", tmp_path / "folder" / "link"):
        if os.access(name, os.R_OK):
            with pytest.raises(InputError, match="is a system file without a size"):
                digest(str(value))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="There is no file"):
        digest(str(tmp_path / "pipe"))
    assert digest(str(tmp_path)) == {}
    with pytest.raises(InputError, match="is a pipe, not a file"):
        sha256(tmp_path / "pipe")


def test_a_file_for_each_parameter(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"tile")
    values = {"labels": str(tmp_path / "labels.txt"), "image": "", "data_config": None}
    write_digests(values, tmp_path / "out")
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}
    assert found == {"labels.json": {"labels.txt": sha(b"tile")}, "image.json": {}, "data_config.json": {}}
