import json
import os
import shutil
import subprocess
import sys

import exported
import numpy as np
import pytest
import torch
import transformers
from models import reduced, small_model
from safetensors.torch import load_file, save_file

from vitconv.convert import convert_checkpoint, revert_checkpoint
from vitconv.errors import CheckpointError, InputError, ParityError, WeightsError
from vitconv.inference import RUNTIMES, open_preprocessor, predict
from vitconv.inference import transformers as transformers_runtime
from vitconv.inference.predictions import read_predictions
from vitconv.inference.runtime import choose_device, open_model, read_info


def convert(tmp_path, model, **more):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert_checkpoint(tmp_path / "model.pth", tmp_path / "folder", architecture=model, verify=False, **more)
    return tmp_path / "folder"


def test_a_folder_says_what_it_takes_and_gives(folder):
    found = read_info(folder)
    assert found.classes == ("ash", "beech", "cedar", "oak", "pine")
    assert found.input_shape == (3, 32, 32)
    assert found.folder == folder


@pytest.mark.parametrize(
    ("names", "message"),
    [(["oak"] * 5, "names 'oak' more than once"), (["\ud800", *"abcd"], "characters that are not seen")],
)
def test_a_class_has_a_name_of_its_own_that_can_be_written(folder, tmp_path, names, message):
    mine = shutil.copytree(folder, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text()) | {"id2label": dict(enumerate(names))}
    del config["label2id"]
    (mine / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_info(mine)


def test_a_folder_that_is_replaced_while_it_is_read_is_refused(folder, tmp_path, monkeypatch):
    """The names of the classes would be of the old model, and its fingerprint that of the new one."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    real = transformers_runtime.read_classes_and_shape

    def read(place):
        found = real(place)
        settings = json.loads((mine / "config.json").read_text())
        settings["id2label"] = {number: f"new {name}" for number, name in settings["id2label"].items()}
        settings["label2id"] = {name: int(number) for number, name in settings["id2label"].items()}
        (mine / "config.json").write_text(json.dumps(settings))
        return found

    monkeypatch.setattr(transformers_runtime, "read_classes_and_shape", read)
    with pytest.raises(CheckpointError, match="mine' have changed while they were read"):
        read_info(mine)


def test_a_model_that_is_replaced_and_put_back_while_it_is_loaded_is_refused(folder, tmp_path, monkeypatch):
    mine, other = (shutil.copytree(folder, tmp_path / name) for name in ("mine", "other"))
    real = transformers_runtime.load_folder

    def load(place, *arguments, **more):
        os.rename(mine, tmp_path / "away")
        os.rename(other, mine)
        loaded = real(place, *arguments, **more)
        os.rename(mine, other)
        shutil.copytree(tmp_path / "away", mine)
        return loaded

    monkeypatch.setattr(transformers_runtime, "load_folder", load)
    with pytest.raises(CheckpointError, match="mine' have changed while the model was loaded"):
        open_model(mine, "cpu")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch16_224", {}),
        ("vit_small_patch16_dinov3", {"target": "head_code"}),
        ("vit_small_patch16_224", {"target": "timm_wrapper"}),
    ],
)
def test_a_model_that_is_loaded_answers_the_same_when_its_weights_are_written_in_place(tmp_path, name, options):
    folder = convert(tmp_path, reduced(name, num_classes=5).float(), **options)
    other = shutil.copytree(folder, tmp_path / "other")
    pixels = np.random.default_rng(0).standard_normal((2, *read_info(folder).input_shape), np.float32)
    model = open_model(folder, "cpu")
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert np.array_equal(model(pixels), open_model(other, "cpu")(pixels))


def test_links_in_a_circle_are_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match="There is no folder '.*loop'"):
        read_info(tmp_path / "loop")


@pytest.mark.parametrize("kind", ["plain", "not square", "one channel", "one class", "deit3"])
def test_the_logits_are_those_of_timm(tmp_path, kind):
    model = small_model(kind)
    folder = convert(tmp_path, model)
    found = read_info(folder)
    pixels = np.random.default_rng(0).standard_normal((2, *found.input_shape), np.float32)
    logits = open_model(folder, "cpu")(pixels)
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
    found = read_info(folder)
    pixels = np.random.default_rng(0).standard_normal((2, *found.input_shape), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    assert np.abs(open_model(folder, "cpu")(pixels) - expected).max() < 1e-5


def test_half_precision_gives_float32_logits(tmp_path):
    folder = convert(tmp_path, small_model().bfloat16())
    assert open_model(folder, "cpu")(np.zeros((1, 3, 32, 32), np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_tiny_patch16_224"])
def test_a_model_without_a_head_is_refused(tmp_path, name):
    folder = convert(tmp_path, reduced(name, num_classes=0).float())
    with pytest.raises(InputError, match=r"has no classes: it is a (CLIPVisionModel|ViTModel)"):
        read_info(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.json"):
        read_info(tmp_path)


def test_a_configuration_that_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="config.json' is a pipe, not a file"):
        read_info(tmp_path)


def edited(folder, tmp_path, **changes):
    copy = shutil.copytree(folder, tmp_path / "edited")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | changes))
    return copy


@pytest.mark.parametrize("changes", [{"num_labels": 2**31}, {"vision_config": {"num_labels": 1e30}}], ids=str)
def test_so_many_classes_are_not_named(folder, tmp_path, changes):
    """Transformers would: gigabytes of LABEL_0, LABEL_1…"""
    with pytest.raises(ParityError, match=r"`num_labels` in config.json is (2147483648|1e\+30), which is not a size"):
        read_info(edited(folder, tmp_path, **changes))


def test_a_model_that_cannot_be_run_is_named(folder, tmp_path):
    copy = edited(folder, tmp_path, hidden_dropout_prob=float("nan"))
    with pytest.raises(ParityError, match="edited' cannot be run: .*dropout probability"):
        open_model(copy, "cpu")(np.zeros((1, 3, 32, 32), np.float32))


def test_a_device_that_holds_no_numbers_is_refused(folder):
    with pytest.raises(InputError, match="There is no device 'meta' here"):
        open_model(folder, "meta")


def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match="There is no device 'cuda:99' here"):
        open_model(folder, "cuda:99")


def test_auto_is_a_gpu_where_there_is_one():
    assert [choose_device("auto", 1), choose_device("auto", 0), choose_device("cpu", 1)] == ["cuda", "cpu", "cpu"]


def test_a_model_trains_on_in_a_process_that_has_predicted(tmp_path):
    """BEiT's code remembers its relative positions for every model of the process."""
    folder = convert(tmp_path, reduced("beit_base_patch16_224", num_classes=5).float())
    pixels = np.zeros((1, *read_info(folder).input_shape), np.float32)
    open_model(folder, "cpu")(pixels)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).train()
    model(torch.tensor(pixels)).logits.sum().backward()
    assert model.classifier.weight.grad is not None


def test_another_runtime_predicts_locally(folder, tmp_path, write_images, monkeypatch):
    """Neither the engine nor predict knows of it: its logits and classes are the converted folder's."""
    monkeypatch.setitem(RUNTIMES, "exported", exported.KIND)
    program = exported.export(folder, tmp_path / "program", batch_size=4)
    images = write_images(6, broken=(2,))
    options = {"batch_size": 4, "device": "cpu", "max_errors": 1}
    predict(folder, images, tmp_path / "converted", **options)
    summary = predict(program, images, tmp_path / "exported", engine="local", **options)
    assert (summary.rows, summary.errors) == (6, 1)
    one, other = (read_predictions(tmp_path / name) for name in ("converted", "exported"))
    assert one.classes == other.classes
    assert np.nanmax(np.abs(one.logits() - other.logits())) < 1e-5
    assert one.rows["class"].equals(other.rows["class"])


def test_bytes_and_a_file_give_the_same_pixels(folder, write_images):
    preprocess = open_preprocessor(read_info(folder))
    file = write_images(1).parent / "images" / "00000.jpg"
    pixels = preprocess(file.read_bytes())
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.float32
    assert np.array_equal(pixels, preprocess(file))
    with pytest.raises(InputError, match="The image is not an image that can be read: it is empty"):
        preprocess(b"")
    with pytest.raises(InputError, match="The image is not an image that can be read"):
        preprocess(b"GIF89a but no more")


@pytest.mark.slow
def test_logits_of_bytes_need_no_other_package(folder, write_images):
    """In a fresh interpreter. Transformers itself imports jinja2 where it is installed (its chat_template_utils)."""
    script = (
        "import sys; from vitconv.inference import open_model, open_preprocessor\n"
        "model = open_model(sys.argv[1], 'cpu')\n"
        "logits = model(open_preprocessor(model.info)(open(sys.argv[2], 'rb').read())[None])\n"
        "assert logits.shape == (1, 5)\n"
        "names = ('sklearn', 'matplotlib', 'torchmetrics', 'pandas', 'ray', 'dvc', 'pyarrow')\n"
        "print([name for name in names if name in sys.modules])"
    )
    image = write_images(1).parent / "images" / "00000.jpg"
    done = subprocess.run([sys.executable, "-c", script, folder, image], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("use", ["predict", "revert"])
def test_another_file_than_config_json_is_not_read(folder, tmp_path, use):
    """By `configuration_files`, Transformers takes all settings from a file that nothing has checked."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    content = json.loads((mine / "config.json").read_text())
    (mine / "config.4.0.0.json").write_text(json.dumps(content | {"id2label": {str(i): "zyxwv"[i] for i in range(5)}}))
    (mine / "config.json").write_text(json.dumps(content | {"configuration_files": ["config.4.0.0.json"]}))
    with pytest.raises(ParityError, match="`configuration_files` in config.json is "):
        read_info(mine) if use == "predict" else revert_checkpoint(mine, tmp_path / "back")


@pytest.mark.parametrize("use", ["predict", "revert"])
@pytest.mark.parametrize("other", ["vit.layers.0.attention.q_proj.weight", "layernorm.weight"])
def test_a_tensor_under_two_names_is_refused(folder, tmp_path, use, other):
    """Transformers takes one of the two without a word."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    weights = load_file(mine / "model.safetensors")
    same = {"layernorm.weight": "vit.layernorm.weight"}.get(
        other, "vit.encoder.layer.0.attention.attention.query.weight"
    )
    save_file(weights | {other: weights[same] + 7}, mine / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="some are there twice"):
        open_model(mine, "cpu") if use == "predict" else revert_checkpoint(mine, tmp_path / "back")
