import json

import pytest
import torch
from models import HUB_REVISION as REVISION
from models import full_model
from safetensors.torch import load_file, save_file

from vitconv.checkpoints.hub import download
from vitconv.convert import convert_checkpoint, inspect
from vitconv.errors import CheckpointError

ARCH = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights():
    return full_model(ARCH, num_classes=2).state_dict()


@pytest.fixture
def cache(hub_cache):
    return hub_cache


@pytest.fixture
def config():
    return json.dumps({"architecture": ARCH, "num_classes": 2, "label_names": ["tile", "slate"]}).encode()


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_name_on_the_hub_becomes_the_same_bits(prefix, cache, config, weights, tmp_path):
    save_file(weights, tmp_path / "w")
    cache({"config.json": config, "model.safetensors": (tmp_path / "w").read_bytes()})
    done = convert_checkpoint(f"{prefix}our/roofs", tmp_path / "hf", verify=False)
    convert_checkpoint(tmp_path / "w", tmp_path / "bare", architecture=ARCH, verify=False)
    for name, tensor in load_file(tmp_path / "bare" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "hf" / "model.safetensors")[name], tensor)
    assert done.labels == ("tile", "slate")
    assert done.notes[0] == f"The checkpoint is {prefix}our/roofs at revision {REVISION}."


def test_a_pickle_on_the_hub_is_opened_where_there_is_nothing_else(cache, config, weights, tmp_path):
    torch.save(weights, tmp_path / "w")
    cache({"config.json": config, "pytorch_model.bin": (tmp_path / "w").read_bytes()})
    assert inspect(f"hf-hub:our/roofs@{REVISION}", None).architecture.num_labels == 2


def test_pickles_on_the_hub_may_be_in_shards(cache, config, weights, tmp_path):
    names = list(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    files = {"config.json": config}
    for file, part in shards.items():
        torch.save({name: weights[name] for name in part}, tmp_path / "w")
        files[file] = (tmp_path / "w").read_bytes()
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    cache(files | {"pytorch_model.bin.index.json": json.dumps(index).encode()})
    assert inspect("hf-hub:our/roofs", None).architecture.num_labels == 2


def test_what_is_fetched_from_the_hub(monkeypatch, tmp_path):
    """Every file that a folder of weights may have, of the one format."""
    from fnmatch import fnmatch

    asked = []
    monkeypatch.setattr(
        "vitconv.checkpoints.hub._snapshot", lambda name, revision, files: asked.append(files) or tmp_path
    )
    download("our/roofs")
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"):
        assert not any(fnmatch(name, pattern) for pattern in asked[0])
        assert any(fnmatch(name, pattern) for pattern in asked[1])


def test_offline_and_not_in_the_cache(cache):
    with pytest.raises(CheckpointError) as caught:
        inspect("hf-hub:our/roofs", None)
    assert "'our/roofs' is not in the local cache, and the Hub cannot be reached" in caught.value.problem
    assert "download the folder elsewhere" in caught.value.remedy


@pytest.mark.parametrize("name", ["roofs", "", "a/b/c", "../x/y", "our/roofs\n", "our/ro..ofs"])
def test_an_invalid_name_on_the_hub_is_refused(name, cache):
    with pytest.raises(CheckpointError, match="is not (the name of a model on the Hub|in the local cache)"):
        inspect(f"hf-hub:{name}", None)
