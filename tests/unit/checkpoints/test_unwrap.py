import argparse
import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import full_model, perturbed
from safetensors.torch import save_file

from vitconv.checkpoints.checkpoint import open_source, read_state_dict
from vitconv.checkpoints.unwrap import unwrap
from vitconv.convert import convert_checkpoint, inspect, read_weights, verify_checkpoint
from vitconv.errors import CheckpointError, VitconvError
from vitconv.mapping import timm_shapes
from vitconv.models.catalogue import entries
from vitconv.models.timm import build_timm

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
    """The conversion of the bare state dict."""
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
def test_the_ema_is_preferred_with_a_note(wrap, weights, other, expected, tmp_path):
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


@pytest.mark.parametrize("prefix", ["", "module.", "visual.trunk."])
def test_a_naflexvit_is_found_by_its_own_embedding(prefix):
    names = set(timm_shapes(entries()["naflexvit_base_patch16_siglip"].architecture))
    content = {"state_dict": {prefix + name: torch.ones(3, 3) for name in names}}
    assert set(unwrap(content, names).tensors) == names


def test_two_models_that_fit_are_an_error(weights, other, save):
    path = save({"student": weights, "teacher": other})
    with pytest.raises(CheckpointError, match=r"holds 2 models that fit: \['student'\], \['teacher'\]"):
        inspect(path, ARCH)


def test_of_two_models_the_one_that_fits_is_taken(weights, save):
    small = full_model("vit_small_patch16_224", depth=3, num_classes=5).state_dict()
    found = inspect(save({"student": weights, "teacher": small}), ARCH)
    assert found.notes[0] == "The weights are those at ['student']."


# ---- a head that is not where timm has it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}


def linear(prefix="", classes=5, width=192):
    return {f"{prefix}weight": torch.ones(classes, width), f"{prefix}bias": torch.ones(classes)}


#: How a head comes apart from its model: what is saved, and the tensor that the refusal names.
APART = {
    "a mapping beside": (lambda b: {"backbone": b, "head": linear()}, "head.weight"),
    "beside the prefix": (lambda b: prefixed("backbone.", b) | linear("classifier."), "classifier.weight"),
    "an MLP": (
        lambda b: prefixed("net.", b) | linear("head.0.", 64) | linear("head.2.", 7, 64),
        "head.0.weight",
    ),
    "an MLP of no name": (lambda b: {"net": b, "x": linear("0.", 64) | linear("2.", 7, 64)}, "x.0.weight"),
    "in the head's place": (lambda b: {"model": b | linear("head.1.")}, "model.head.1.weight"),
    "among the model's own": (lambda b: b | linear("my_classifier."), "my_classifier.weight"),
    "beside an optimizer's state": (
        lambda b: {"model": b, "state": {}, "param_groups": [], "cls": linear("0.")},
        "cls.0.weight",
    ),
    "out": (lambda b: {"encoder": b, "extra": linear("out.", 7, 100)}, "extra.out.weight"),
    "fc": (lambda b: {"state_dict": prefixed("encoder.", b) | linear("fc.", 7, 384)}, "state_dict.fc.weight"),
    "one matrix of any name": (lambda b: {"state_dict": b, "zeroshot": torch.ones(5, 192)}, "zeroshot"),
    "reading four blocks": (lambda b: {"state_dict": b, "probes": {"w": torch.ones(5, 768)}}, "probes.w"),
    "of one class": (lambda b: {"state_dict": b, "classifier": {"weight": torch.ones(192)}}, "classifier.weight"),
    "deep, in lists": (
        lambda b: {"a": {"b": {"model": b}}, "c": [{"d": ({"e": {"f": {"g": linear()}}},)}]},
        "c.0.d.0",
    ),
    "a model that does not fit": (
        lambda b: {"model": b | linear("classifier."), "ema": b},
        "model.classifier.weight",
    ),
    "DINO": (
        lambda b: {
            "teacher": prefixed("backbone.", b) | linear("head.mlp.0.", 64) | linear("head.last_layer.", 9, 64)
        },
        "teacher.head.mlp.0.weight",
    ),
    "open_clip": (
        lambda b: (
            prefixed("visual.trunk.", b)
            | {"visual.head.proj.weight": torch.ones(64, 192), "text.text_projection": torch.ones(192, 64)}
        ),
        "visual.head.proj.weight",
    ),
}


@pytest.mark.parametrize("kind", APART)
def test_a_head_stored_apart_from_its_model_is_an_error(kind, backbone, save):
    make, named = APART[kind]
    path = save(make(backbone))
    with pytest.raises(CheckpointError, match="has no head, but `.*looks like one") as caught:
        inspect(path, ARCH)
    assert f"but `{named}" in caught.value.problem
    assert "--headless" in caught.value.remedy
    found = inspect(path, ARCH, headless=True)
    assert found.architecture.num_labels == 0
    (note,) = [note for note in found.notes if "converted without a head" in note]
    assert named in note


def test_every_tensor_of_a_head_apart_is_named(backbone, save):
    path = save(prefixed("net.", backbone) | linear("x.0.", 64) | linear("x.2.", 7, 64) | linear("y.", 3, 50))
    with pytest.raises(CheckpointError, match=r"but `x.0.weight` beside it looks like one \(and so do x.2.weight\)"):
        inspect(path, ARCH)


#: What lies beside a model without a head and is none.
NO_HEADS = {
    "an optimizer by number": lambda b: {
        "state_dict": b,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(5, 192)}}, "param_groups": []},
    },
    "an optimizer by name": lambda b: {
        "state_dict": b,
        "o": {"state": {"head.weight": {"exp_avg": torch.ones(5, 192)}}, "param_groups": []},
    },
    "Lightning's optimizers": lambda b: {
        "state_dict": b,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5, 192)}}, "param_groups": []}],
    },
    "an EMA": lambda b: {"state_dict": b, "state_dict_ema": prefixed("module.", b)},
    "SigLIP of open_clip": lambda b: (
        prefixed("visual.trunk.", b)
        | {
            "text.transformer.resblocks.0.mlp.c_fc.weight": torch.ones(768, 192),
            "text.text_projection.weight": torch.ones(192, 192),
            "logit_scale": torch.ones(()),
            "logit_bias": torch.ones(()),
        }
    ),
    "a mask token": lambda b: {"state_dict": prefixed("encoder.", b) | {"mask_token": torch.ones(1, 192)}},
    "counts of a metric": lambda b: {"state_dict": b, "confusion": torch.ones(5, 5, dtype=torch.int64)},
    "weights of a loss": lambda b: {"state_dict": prefixed("model.", b) | {"criterion.weight": torch.ones(5)}},
}


@pytest.mark.parametrize("kind", NO_HEADS)
def test_tensors_that_are_no_head_do_not_prevent_a_conversion(kind, backbone, save):
    found = inspect(save(NO_HEADS[kind](backbone)), ARCH)
    assert found.architecture.num_labels == 0
    assert not any("without a head" in note for note in found.notes)


def test_an_ema_without_a_head_does_not_beat_the_model_with_one(weights, backbone, expected, save, tmp_path):
    path = save({"model": weights, "ema": backbone})
    with pytest.raises(
        CheckpointError, match=r"The EMA at \['ema'\] has no head, but the trained weights at \['model'\] have one"
    ) as caught:
        inspect(path, ARCH)
    assert "--no-ema" in caught.value.remedy and "--headless" in caught.value.remedy
    convert_checkpoint(path, tmp_path / "plain", architecture=ARCH, verify=False, ema=False)
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == expected
    found = inspect(path, ARCH, headless=True)
    assert found.architecture.num_labels == 0
    assert "without a head (--headless): model.head.weight, model.head.bias are left out" in found.notes[1]


def test_a_model_without_a_head_does_not_beat_its_ema_with_one(weights, backbone, save):
    path = save({"model": backbone, "ema": weights})
    assert inspect(path, ARCH).architecture.num_labels == 5
    with pytest.raises(
        CheckpointError, match=r"trained weights at \['model'\] have no head, but the EMA at \['ema'\] has one"
    ):
        inspect(path, ARCH, ema=False)


def test_headless_leaves_the_model_s_own_head_out_and_is_recorded(weights, save, tmp_path):
    path = save({"state_dict": prefixed("module.", weights)})
    done = convert_checkpoint(path, tmp_path / "hf", architecture=ARCH, headless=True)
    assert done.architecture.num_labels == 0
    note = "(--headless): state_dict.module.head.weight, state_dict.module.head.bias are left out."
    assert done.notes[0].endswith(note)
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["headless"] is True
    assert verify_checkpoint(path, tmp_path / "hf").parity.matches
    assert "head.weight" not in read_weights(path, ARCH, headless=True)


def test_an_object_that_only_looks_like_a_tensor_is_refused(weights, save):
    """An object that has the attributes ``shape`` and ``dtype``."""
    path = save({"patch_embed.proj.weight": argparse.Namespace(shape=5, dtype=1)})
    with pytest.raises(CheckpointError, match="There is no Vision Transformer in the checkpoint"):
        inspect(path, ARCH)
    path = save(weights | {"norm.weight": argparse.Namespace(shape=(192,), dtype="float32")})
    with pytest.raises(VitconvError, match="1 tensor is missing .norm.weight"):
        inspect(path, ARCH)


def test_other_models_are_refused_by_name(save):
    with pytest.raises(CheckpointError, match=r"no Vision Transformer .* \(there is rnn.weight, fc.weight\)"):
        inspect(save({"rnn.weight": torch.ones(1), "fc.weight": torch.ones(1)}), ARCH)
    with pytest.raises(CheckpointError, match=r"\(there is nothing\)"):
        inspect(save({}), ARCH)


def test_without_an_architecture_the_shapes_still_tell(save):
    odd = full_model(ARCH, depth=3, num_classes=5).state_dict()
    with pytest.raises(VitconvError, match="the tensors show: width 192, 3 blocks, patch 16x16"):
        inspect(save({"state_dict": prefixed("module.", odd)}), None)


def test_without_an_architecture_those_that_fit_are_listed(weights, save):
    with pytest.raises(VitconvError, match=r"fit 3 timm architectures") as caught:
        inspect(save({"state_dict": prefixed("module.", weights)}), None)
    listed = caught.value.problem.partition("They are: ")[2].rstrip(".").split("; ")
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
    assert found.notes == ("The weights fit one timm architecture, vit_base_patch8_224, which was used.",)


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


def shard_pickles(folder, weights):
    """As Transformers' and accelerate's `save_pretrained(safe_serialization=False)` name them."""
    names = list(weights)
    files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in files.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return index


SHARDS = {
    "safetensors": (shard, "model.safetensors.index.json", "model-0000{}-of-00002.safetensors"),
    "pickles": (shard_pickles, "pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
}


def test_shards_of_pickles_become_the_same_bits(hub_folder, weights, expected, tmp_path):
    shard_pickles(hub_folder, weights)
    convert_checkpoint(hub_folder, tmp_path / "hf", verify=False)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected
    assert len(json.loads((tmp_path / "hf" / "parity.json").read_text())["source"]) == 2
    source = open_source(hub_folder / "pytorch_model.bin.index.json")
    assert len(source.files) == 2 and source.config == hub_folder / "config.json"
    # Every tensor stays in its own file: nothing is loaded.
    tensors = source.tensors(source.content)
    assert {tensor.file for tensor in tensors.values()} == set(source.files)


def test_an_index_s_own_path_means_its_shards(hub_folder, weights, other):
    """Also where the folder holds other weights in one file."""
    shard_pickles(hub_folder, other)
    save_file(weights, hub_folder / "model.safetensors")
    read = read_weights(hub_folder / "pytorch_model.bin.index.json")
    assert torch.equal(read["norm.weight"], other["norm.weight"])
    assert torch.equal(read_weights(hub_folder)["norm.weight"], weights["norm.weight"])


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/../../b", ".."])
def test_an_index_that_leaves_its_folder_is_refused(name, kind, hub_folder, weights):
    make, file, _ = SHARDS[kind]
    index = make(hub_folder, weights)
    index["weight_map"]["norm.bias"] = name
    (hub_folder / file).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names files outside of its folder"):
        inspect(hub_folder, None)


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_that_contradict_their_index_are_refused(kind, hub_folder, weights):
    make, file, shard_name = SHARDS[kind]
    index = make(hub_folder, weights)
    path = hub_folder / file
    first, second = index["weight_map"], index["weight_map"].copy()
    path.write_text(json.dumps({"weight_map": first | {"extra": shard_name.format(1)}}))
    with pytest.raises(CheckpointError, match="Tensors that .* lists are not in its files: extra"):
        inspect(hub_folder, None)
    path.write_text(json.dumps({"weight_map": first | {"cls_token": shard_name.format(2)}}))
    with pytest.raises(CheckpointError, match="holds `cls_token`, which the index does not list for this file"):
        inspect(hub_folder, None)
    second.pop("cls_token")
    path.write_text(json.dumps({"weight_map": second}))
    with pytest.raises(CheckpointError, match="holds `cls_token`, which the index does not list for this file"):
        inspect(hub_folder, None)
    path.write_text(json.dumps(index))
    content = (hub_folder / shard_name.format(2)).read_bytes()
    (hub_folder / shard_name.format(2)).write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        inspect(hub_folder, None)
    (hub_folder / shard_name.format(2)).unlink()
    with pytest.raises(CheckpointError, match="There is no file"):
        inspect(hub_folder, None)
    for nothing in ("{}", '{"weight_map": {}}'):
        path.write_text(nothing)
        with pytest.raises(CheckpointError, match="`weight_map` in .* does not map tensors to file names"):
            inspect(hub_folder, None)
        with pytest.raises(CheckpointError, match="`weight_map` in .* does not map tensors to file names"):
            read_state_dict(hub_folder)


def test_a_shard_holds_tensors_only(hub_folder, weights):
    index = shard_pickles(hub_folder, weights)
    torch.save(
        {name: weights[name] for name in list(weights)[::2]} | {"inner": {"a": torch.ones(1)}},
        hub_folder / "pytorch_model-00001-of-00002.bin",
    )
    index["weight_map"]["inner"] = "pytorch_model-00001-of-00002.bin"
    (hub_folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="`inner` in .* is a dict, not a tensor"):
        inspect(hub_folder, None)


def test_other_folders_are_named(hub_folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds none of model.safetensors"):
        inspect(tmp_path, ARCH)
    convert_checkpoint(hub_folder, tmp_path / "hf", verify=False)
    with pytest.raises(CheckpointError, match="is a Transformers folder already"):
        inspect(tmp_path / "hf", ARCH)


class Custom:
    """All other objects are refused."""


def test_only_a_namespace_is_allowed_beside_tensors(weights, save):
    with pytest.raises(CheckpointError, match="holds Python objects"):
        inspect(save({"state_dict": weights, "args": Custom()}), ARCH)
    with pytest.raises(CheckpointError, match="holds Python objects"):
        inspect(save({"state_dict": weights, "args": argparse.Namespace(inner=Custom())}), ARCH)


# ---- older names, through timm's own filter ------------------------------------------------------------------


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
    assert done.notes[0] == "Tensors with older names were renamed by timm's own checkpoint_filter_fn."


def test_a_patch_embedding_saved_as_a_matrix_becomes_the_same_bits(weights, expected, tmp_path):
    old = dict(weights)
    old["patch_embed.proj.weight"] = old["patch_embed.proj.weight"].reshape(192, -1)
    torch.save(old | {"mask_token": torch.ones(1, 192)}, tmp_path / "old.pth")
    convert_checkpoint(tmp_path / "old.pth", tmp_path / "hf", architecture=ARCH, verify=False)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == expected


def test_a_tensor_that_timm_would_drop_is_not_lost_in_silence(weights, save):
    """Old timm computed with `pre_logits`; timm's filter leaves it out."""
    path = save(weights | {"pre_logits.fc.weight": torch.ones(192, 192), "pre_logits.fc.bias": torch.ones(192)})
    with pytest.raises(VitconvError, match="2 tensors are unknown .pre_logits.fc.weight, pre_logits.fc.bias"):
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


def test_more_tensors_than_any_checkpoint_has_are_refused_at_once():
    tensor = torch.zeros(1)
    content = {f"{i}": tensor for i in range(100_001)}
    with pytest.raises(CheckpointError, match="more than 100,000 tensors"):
        unwrap(content, None)


def test_more_models_than_any_checkpoint_has_are_refused_at_once():
    """Looking for each model's names among all names would take too long."""
    tensor = torch.zeros(1)
    content = {f"m{i}.patch_embed.proj.weight": tensor for i in range(20_000)}
    start = time.process_time()
    with pytest.raises(CheckpointError, match="more than 50 models"):
        unwrap(content, {"patch_embed.proj.weight"})
    assert time.process_time() - start < 5


def test_a_model_within_a_model_is_another_one(weights, other, save):
    """A student that holds its teacher: nothing says which one is meant."""
    both = save(weights | prefixed("teacher.", other))
    with pytest.raises(CheckpointError, match=r"holds 2 models that fit: the top level, .*'teacher\.'"):
        inspect(both, architecture=ARCH)
    student = weights | {"extra.weight": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"fits at .*'teacher\.', and another at the top level .*extra\.weight"):
        inspect(save(student | prefixed("teacher.", other)), architecture=ARCH)


@pytest.mark.parametrize("key", ["model_without_ema", "no_ema", "non_ema", "pre_ema"])
def test_weights_without_ema_are_no_ema(key, weights, other, save):
    with pytest.raises(CheckpointError, match="holds 2 models that fit"):
        inspect(save({"model": weights, key: other}), architecture=ARCH)


def test_an_ema_that_cannot_be_taken_is_named(weights, other, save):
    more = inspect(save({"state_dict": weights, "state_dict_ema": other | {"n_averaged": torch.ones(3)}}), ARCH)
    assert any("The EMA at ['state_dict_ema'] cannot be taken: it has more" in note for note in more.notes)
    lacking = {name: tensor for name, tensor in other.items() if name != "norm.bias"}
    fewer = inspect(save({"state_dict": weights, "state_dict_ema": lacking}), ARCH)
    assert any("The EMA at ['state_dict_ema'] cannot be taken: it lacks norm.bias" in note for note in fewer.notes)
