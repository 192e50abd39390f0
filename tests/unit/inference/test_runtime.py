import json
import os
import shutil

import numpy as np
import pytest
import torch
import transformers
from models import reduced, small_model

from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, InputError, ParityError
from vitconv.inference.runtime import Predictor, choose_device, read_classifier


def convert(tmp_path, model, **more):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert_checkpoint(tmp_path / "model.pth", tmp_path / "folder", architecture=model, verify=False, **more)
    return tmp_path / "folder"


def test_a_folder_says_what_it_takes_and_gives(folder):
    found = read_classifier(folder)
    assert found.classes == ("ash", "beech", "cedar", "oak", "pine")
    assert found.shape == (3, 32, 32)
    assert found.folder == folder


@pytest.mark.parametrize(
    ("names", "message"), [(["oak"] * 5, "names 'oak' more than once"), (["\ud800", *"abcd"], "unprintable name")]
)
def test_a_class_has_a_name_of_its_own_that_can_be_written(folder, tmp_path, names, message):
    mine = shutil.copytree(folder, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text()) | {"id2label": dict(enumerate(names))}
    (mine / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_classifier(mine)


@pytest.mark.parametrize("kind", ["plain", "not square", "one channel", "one class", "deit3"])
def test_the_logits_are_those_of_timm(tmp_path, kind):
    model = small_model(kind)
    folder = convert(tmp_path, model)
    found = read_classifier(folder)
    pixels = np.random.default_rng(0).standard_normal((2, *found.shape), np.float32)
    logits = Predictor(folder, "cpu")(pixels)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    assert logits.shape == expected.shape == (2, len(found.classes))
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= (1e-5 if kind == "deit3" else 0)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_clip_224",
        "beit_base_patch16_224",
        "deit_base_distilled_patch16_224",
        "vit_base_patch16_gap_224",  # SigLIP, whose configuration holds another one
    ],
)
def test_other_families_give_timms_logits(tmp_path, name):
    model = reduced(name, num_classes=5).float()
    if getattr(model.head, "bias", None) is not None and "clip" in name:
        torch.nn.init.zeros_(model.head.bias)  # CLIP's projection has none
    folder = convert(tmp_path, model)
    found = read_classifier(folder)
    pixels = np.random.default_rng(0).standard_normal((2, *found.shape), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    assert np.abs(Predictor(folder, "cpu")(pixels) - expected).max() < 1e-5


def test_half_precision_gives_float32_logits(tmp_path):
    folder = convert(tmp_path, small_model().bfloat16())
    assert Predictor(folder, "cpu")(np.zeros((1, 3, 32, 32), np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_tiny_patch16_224"])
def test_a_model_without_a_head_is_refused(tmp_path, name):
    folder = convert(tmp_path, reduced(name, num_classes=0).float())
    with pytest.raises(InputError, match=r"has no classes: it is a (CLIPVisionModel|ViTModel)"):
        read_classifier(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.json"):
        read_classifier(tmp_path)


def test_a_configuration_that_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="config.json' is a pipe, not a file"):
        read_classifier(tmp_path)


def edited(folder, tmp_path, **changes):
    copy = shutil.copytree(folder, tmp_path / "edited")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | changes))
    return copy


@pytest.mark.parametrize("changes", [{"num_labels": 2**31}, {"vision_config": {"num_labels": 1e30}}], ids=str)
def test_so_many_classes_are_not_named(folder, tmp_path, changes):
    """Transformers would: gigabytes of LABEL_0, LABEL_1…"""
    with pytest.raises(CheckpointError, match=r"`num_labels` in the config.json in '.*' is (2147483648|1e\+30)"):
        read_classifier(edited(folder, tmp_path, **changes))


def test_a_model_that_cannot_be_run_is_named(folder, tmp_path):
    copy = edited(folder, tmp_path, hidden_dropout_prob=float("nan"))
    with pytest.raises(ParityError, match="edited' cannot be run: .*dropout probability"):
        Predictor(copy, "cpu")(np.zeros((1, 3, 32, 32), np.float32))


def test_a_device_that_holds_no_numbers_is_refused(folder):
    with pytest.raises(InputError, match="There is no device 'meta' here"):
        Predictor(folder, "meta")


def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match="There is no device 'cuda:99' here"):
        Predictor(folder, "cuda:99")


def test_auto_is_a_gpu_where_there_is_one():
    assert [choose_device("auto", 1), choose_device("auto", 0), choose_device("cpu", 1)] == ["cuda", "cpu", "cpu"]


def test_a_model_trains_on_in_a_process_that_has_predicted(tmp_path):
    """BEiT's code remembers its relative positions for every model of the process."""
    folder = convert(tmp_path, reduced("beit_base_patch16_224", num_classes=5).float())
    pixels = np.zeros((1, *read_classifier(folder).shape), np.float32)
    Predictor(folder, "cpu")(pixels)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).train()
    model(torch.tensor(pixels)).logits.sum().backward()
    assert model.classifier.weight.grad is not None
