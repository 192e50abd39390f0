import argparse
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import full_model, perturbed
from safetensors.torch import save_file

from vitconv.checkpoint import open_source
from vitconv.convert import convert_checkpoint, inspect, read_weights
from vitconv.errors import CheckpointError, VitconvError
from vitconv.timm_models import build_timm
from vitconv.unwrap import unwrap

ARCH = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights():
    return full_model(ARCH, num_classes=5).state_dict()


@pytest.fixture(scope="module")
def other():
    """Another training of the same model."""
    return perturbed(build_timm(ARCH, num_classes=5), seed=7).state_dict()


@pytest.fixture(scope="module")
def expected(weights, tmp_path_factory):
    """What the bare state dict becomes."""
    folder = tmp_path_factory.mktemp("bare")
    torch.save(weights, folder / "bare.pth")
    convert_checkpoint(folder / "bare.pth", folder / "hf", architecture=ARCH, verify=False)
    return (folder / "hf" / "model.safetensors").read_bytes()


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPERS = {
    "state_dict": lambda w: {"state_dict": w},
    "model": lambda w: {"model": w, "epoch": 3},
    "DDP": lambda w: prefixed("module.", w),
    "compile": lambda w: prefixed("_orig_mod.", w),
    "DDP of compile": lambda w: prefixed("module._orig_mod.", w),
    "compile of DDP": lambda w: prefixed("_orig_mod.module.", w),
    "Lightning model": lambda w: {
        "state_dict": prefixed("model.", w),
        "pytorch-lightning_version": "2.5",
        "hparams": {},
    },
    "Lightning net": lambda w: {"state_dict": prefixed("net.", w) | {"criterion.weight": torch.ones(5)}},
    "backbone": lambda w: {"state_dict": prefixed("backbone.", w)},
    "open_clip": lambda w: (
        prefixed("visual.trunk.", w) | {"logit_scale": torch.ones(()), "text.proj": torch.ones(3, 3)}
    ),
    "timm training": lambda w: {
        "epoch": 9,
        "arch": ARCH,
        "state_dict": w,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(model=ARCH, lr=0.1, mean=None),
        "version": 2,
        "metric": 81.5,
    },
    "deep": lambda w: {"checkpoint": {"inner": {"model": prefixed("module.", w)}}},
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_checkpoint_becomes_the_same_bits(kind, weights, expected, tmp_path):
    torch.save(WRAPPERS[kind](weights), tmp_path / "checkpoint.ckpt")
    done = convert_checkpoint(tmp_path / "checkpoint.ckpt", tmp_path / "hf", architecture=ARCH, verify=False)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected
    assert done.notes


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w, ema: {"state_dict": w, "state_dict_ema": ema},
        lambda w, ema: {"model": w, "model_ema": prefixed("module.", ema)},
        lambda w, ema: {"state_dict": prefixed("model.", w) | prefixed("model_ema.", ema)},
    ],
)
def test_the_ema_is_preferred_and_said(wrap, weights, other, expected, tmp_path):
    torch.save(wrap(other, weights), tmp_path / "checkpoint.pth")
    done = convert_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "hf", architecture=ARCH, verify=False)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected
    assert "the EMA was taken" in done.notes[0]
    torch.save(wrap(weights, other), tmp_path / "checkpoint.pth")
    done = convert_checkpoint(
        tmp_path / "checkpoint.pth", tmp_path / "plain", architecture=ARCH, verify=False, ema=False
    )
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == expected
    assert json.loads((tmp_path / "plain" / "parity.json").read_text())["ema"] is False


def test_read_weights_gives_timm_what_it_loads(weights, save):
    path = save({"state_dict": prefixed("module.", weights), "epoch": 1})
    model = build_timm(ARCH, num_classes=5)
    model.load_state_dict(read_weights(path, ARCH), strict=True, assign=True)
    assert torch.equal(model.head.weight, weights["head.weight"])


def test_two_models_that_fit_are_an_error(weights, other, save):
    path = save({"student": weights, "teacher": other})
    with pytest.raises(CheckpointError, match=r"holds 2 models that fit: \['student'\], \['teacher'\]"):
        inspect(path, ARCH)


def test_of_two_models_the_one_that_fits_is_taken(weights, save):
    small = full_model("vit_small_patch16_224", depth=3, num_classes=5).state_dict()
    found = inspect(save({"student": weights, "teacher": small}), ARCH)
    assert found.notes[0] == "The weights are those at ['student']."


def test_a_head_outside_of_the_model_is_not_lost_in_silence(weights, save):
    backbone = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    path = save(prefixed("backbone.", backbone) | {"classifier.weight": torch.ones(5, 192)})
    with pytest.raises(CheckpointError, match="has no head, but `classifier.weight` beside it looks like one"):
        inspect(path, ARCH)


def test_what_is_no_vision_transformer_is_named(save):
    with pytest.raises(CheckpointError, match=r"no Vision Transformer .* \(there is rnn.weight, fc.weight\)"):
        inspect(save({"rnn.weight": torch.ones(1), "fc.weight": torch.ones(1)}), ARCH)
    with pytest.raises(CheckpointError, match=r"\(there is nothing\)"):
        inspect(save({}), ARCH)


def test_without_an_architecture_the_shapes_still_tell(save):
    odd = full_model(ARCH, depth=3, num_classes=5).state_dict()
    with pytest.raises(VitconvError, match="they tell: width 192, 3 blocks, patch 16x16"):
        inspect(save({"state_dict": prefixed("module.", odd)}), None)


def test_without_an_architecture_those_that_fit_are_listed(weights, save):
    with pytest.raises(VitconvError, match=r"fit 3 of timm's") as caught:
        inspect(save({"state_dict": prefixed("module.", weights)}), None)
    listed = caught.value.problem.partition("differently: ")[2].rstrip(".").split("; ")
    # Those whose own image size is that of the weights come first, and none is proposed.
    assert [one.partition(" ")[0] for one in listed] == [
        "deit_tiny_patch16_224",
        "vit_tiny_patch16_224",
        "vit_tiny_patch16_384",
    ]
    assert listed[2].endswith("(image 384x384, mean 0.5/0.5/0.5, std 0.5/0.5/0.5, crop_pct 1)")
    assert "_224" not in caught.value.remedy


def test_the_only_architecture_that_fits_is_taken_and_named(save):
    found = inspect(save(full_model("vit_base_patch8_224", depth=12, num_classes=5).state_dict()), None)
    assert found.notes == ("The weights fit one architecture of timm's, vit_base_patch8_224: it was taken.",)


@given(
    st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "x9."]), max_size=5),
    st.lists(st.text(min_size=1, max_size=5), max_size=3),
)
def test_any_nesting_of_prefixes_and_keys_is_undone(prefixes, keys):
    names = {"cls_token", "patch_embed.proj.weight", "head.weight", "head.bias"}
    tensors = {name: torch.ones(2, 2) for name in names}
    content = prefixed("".join(prefixes), tensors)
    for key in keys:
        content = {key: content, "epoch": 1}
    assert unwrap(content, names).tensors == tensors


# ---- folders as timm saves them for the Hub ----------------------------------------------------------------------


@pytest.fixture
def hub_folder(weights, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    config = {
        "architecture": ARCH,
        "num_classes": 5,
        "label_names": ["a", "b", "c", "d", "e"],
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 224, 224], "url": ""},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_hub_folder_needs_nothing_else(hub_folder, expected, tmp_path):
    done = convert_checkpoint(hub_folder, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected
    assert done.labels == ("a", "b", "c", "d", "e")
    assert done.data.mean == (0.1, 0.2, 0.3)
    assert done.data.origin == "the checkpoint's own config.json"
    assert done.verification.same_pixels


def test_the_arguments_of_a_hub_folder_count(hub_folder, tmp_path):
    model = full_model(ARCH, num_classes=5, init_values=1e-3, act_layer="gelu_tanh")
    save_file(model.state_dict(), hub_folder / "model.safetensors")
    config = json.loads((hub_folder / "config.json").read_text())
    config["model_args"] = {"init_values": 1e-3, "act_layer": "gelu_tanh"}
    (hub_folder / "config.json").write_text(json.dumps(config))
    done = convert_checkpoint(hub_folder, tmp_path / "hf")
    assert done.architecture.hidden_act == "gelu_pytorch_tanh"
    assert done.architecture.layer_scale
    assert done.verification.parity.matches


def shard(folder, weights):
    names = list(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_become_the_same_bits(hub_folder, weights, expected, tmp_path):
    shard(hub_folder, weights)
    convert_checkpoint(hub_folder, tmp_path / "hf", verify=False)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected
    assert len(json.loads((tmp_path / "hf" / "parity.json").read_text())["source"]) == 2
    assert len(open_source(hub_folder / "model.safetensors.index.json").files) == 2


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/../../b", ".."])
def test_an_index_that_leaves_its_folder_is_refused(name, hub_folder, weights):
    index = shard(hub_folder, weights)
    index["weight_map"]["norm.bias"] = name
    (hub_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names files outside of its folder"):
        inspect(hub_folder, None)


def test_shards_that_contradict_their_index_are_refused(hub_folder, weights):
    index = shard(hub_folder, weights)
    path = hub_folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"extra": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="lack tensors that the index names: extra"):
        inspect(hub_folder, None)
    (hub_folder / "model-00002-of-00002.safetensors").unlink()
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="There is no file"):
        inspect(hub_folder, None)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="has no `weight_map`"):
        inspect(hub_folder, None)


def test_other_folders_are_named(hub_folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds neither model.safetensors"):
        inspect(tmp_path, ARCH)
    convert_checkpoint(hub_folder, tmp_path / "hf", verify=False)
    with pytest.raises(CheckpointError, match="is a Transformers folder already"):
        inspect(tmp_path / "hf", ARCH)


class Custom:
    """Anything but a Namespace stays refused."""


def test_only_a_namespace_is_allowed_beside_tensors(weights, save):
    with pytest.raises(CheckpointError, match="holds Python objects"):
        inspect(save({"state_dict": weights, "args": Custom()}), ARCH)
    with pytest.raises(CheckpointError, match="holds Python objects"):
        inspect(save({"state_dict": weights, "args": argparse.Namespace(inner=Custom())}), ARCH)


# ---- older spellings, through timm's own filter ------------------------------------------------------------------


def test_deit3_s_old_names_become_the_same_bits(tmp_path):
    arch = "deit3_small_patch16_224"
    weights = full_model(arch, depth=12, num_classes=5).state_dict()
    old = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in weights.items()}
    for name, tensors in (("new", weights), ("old", {"model": old})):
        torch.save(tensors, tmp_path / f"{name}.pth")
        done = convert_checkpoint(tmp_path / f"{name}.pth", tmp_path / name, architecture=arch, verify=False)
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == (
        tmp_path / "new" / "model.safetensors"
    ).read_bytes()
    assert done.notes[0] == "Names of an older spelling were renamed by timm's own checkpoint_filter_fn."


def test_a_patch_embedding_saved_as_a_matrix_becomes_the_same_bits(weights, expected, tmp_path):
    old = dict(weights)
    old["patch_embed.proj.weight"] = old["patch_embed.proj.weight"].reshape(192, -1)
    torch.save(old | {"mask_token": torch.ones(1, 192)}, tmp_path / "old.pth")
    convert_checkpoint(tmp_path / "old.pth", tmp_path / "hf", architecture=ARCH, verify=False)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected


def test_a_tensor_that_timm_would_drop_is_not_lost_in_silence(weights, save):
    """Old timm computed with `pre_logits`; timm's filter leaves it out."""
    path = save(weights | {"pre_logits.fc.weight": torch.ones(192, 192), "pre_logits.fc.bias": torch.ones(192)})
    with pytest.raises(VitconvError, match="2 unknown .pre_logits.fc.weight, pre_logits.fc.bias"):
        inspect(path, ARCH)


def test_patches_of_another_size_are_not_resampled_in_silence(weights, save):
    path = save(weights | {"patch_embed.proj.weight": torch.ones(192, 3, 8, 8)})
    with pytest.raises(VitconvError, match="patch_embed.proj.weight is"):
        inspect(path, ARCH)


def test_a_mapping_that_a_file_repeats_is_looked_at_once(weights, save):
    repeated = {"state_dict": weights}
    for _ in range(3):
        repeated = {str(key): repeated for key in range(1000)}
    assert inspect(save(repeated), ARCH).architecture.num_labels == 5
