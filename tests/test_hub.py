import json

import pytest
import torch
from conftest import HUB_REVISION as REVISION
from models import full_model
from safetensors.torch import load_file, save_file

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


def test_offline_and_not_in_the_cache(cache):
    with pytest.raises(CheckpointError) as caught:
        inspect("hf-hub:our/roofs", None)
    assert "'our/roofs' is not in the local cache, and the Hub cannot be reached" in caught.value.problem
    assert "download the folder elsewhere" in caught.value.remedy


@pytest.mark.parametrize("name", ["roofs", "", "a/b/c", "../x/y", "our/roofs\n", "our/ro..ofs"])
def test_what_is_no_name_on_the_hub(name, cache):
    with pytest.raises(CheckpointError, match="is not (the name of a model on the Hub|in the local cache)"):
        inspect(f"hf-hub:{name}", None)
