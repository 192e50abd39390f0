import errno
import json
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from models import full_but, perturbed, reduced, small_model, wrapped_arguments
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vitconv.cli import app
from vitconv.convert import convert_checkpoint, inspect_checkpoint, load_timm
from vitconv.errors import CheckpointError, DestinationError, InputError, VitconvError
from vitconv.inference import batch_prediction as module
from vitconv.inference import local, predict
from vitconv.inference import pixels as pixels_module
from vitconv.inference import transformers as transformers_module
from vitconv.inference.images import Pixels, read_images
from vitconv.inference.predictions import read_predictions
from vitconv.mapping import FAMILIES
from vitconv.models.images import load_image
from vitconv.models.pixels import known_difference, timm_pixels
from vitconv.optimization.recipes.openvino import WEIGHTS


@pytest.fixture
def small_parts(monkeypatch):
    """A part for every four images."""
    monkeypatch.setattr(module, "ROWS_PER_PART", 4)


def test_a_row_for_each_image_with_timms_logits(tmp_path, write_images):
    """From the image file to the logits, against timm's own transform and model."""
    timm_model = small_model()
    torch.save(timm_model.state_dict(), tmp_path / "model.pth")
    done = convert_checkpoint(
        tmp_path / "model.pth", tmp_path / "folder", architecture=timm_model, data={"crop_pct": 1.0}, verify=False
    )
    images = write_images(9)
    summary = predict(tmp_path / "folder", images, tmp_path / "out", batch_size=4)
    assert (summary.rows, summary.errors, summary.found) == (9, 0, 0)
    made = read_predictions(tmp_path / "out")
    compared = 0
    for row in made.rows.to_pylist():
        image = load_image(images.parent / row["path"])
        if known_difference(image, done.data):
            continue
        with torch.no_grad():
            expected = timm_model(timm_pixels(image, done.data)[None])[0].numpy()
        assert np.abs(np.array(row["logits"]) - expected).max() < 1e-6
        assert row["class"] == f"LABEL_{expected.argmax()}"
        compared += 1
    assert compared >= 5


#: Each class with a head: timm's architecture, and the family to convert to where it is not the plainest.
WITH_A_HEAD = {
    "ViTForImageClassification": ("vit_tiny_patch16_224", None),
    "DeiTForImageClassificationWithTeacher": ("deit_base_distilled_patch16_224", None),
    "SiglipForImageClassification": ("vit_base_patch16_gap_224", None),
    "CLIPVisionModelWithProjection": ("vit_base_patch16_clip_224", None),
    "Dinov2ForImageClassification": ("deit3_base_patch16_224", "dinov2"),
    "Dinov2WithRegistersForImageClassification": ("vit_so150m_patch16_reg4_gap_256", None),
    "BeitForImageClassification": ("beit_base_patch16_224", None),
    "DPTModel": ("vit_base_r50_s16_384", None),
}
#: And without, of the families that have both.
HEADLESS = {
    "ViTModel": "vit_tiny_patch16_224",
    "SiglipVisionModel": "vit_base_patch16_gap_224",
    "CLIPVisionModel": "vit_base_patch16_clip_224",
    "Dinov2Model": "vit_giant_patch14_dinov2",
    "Dinov2WithRegistersModel": "vit_base_patch14_reg1_tipsv2",
    "DPTModel": "vit_base_r50_s16_384",
}


def test_every_class_with_a_head_is_here():
    native = {name for family in FAMILIES for name in family.classes}
    heads = {name for name in native if "ForImageClassification" in name or name.endswith("WithProjection")}
    assert set(WITH_A_HEAD) == heads | {"DPTModel"}  # whose pooler is the head


@pytest.mark.parametrize("name", WITH_A_HEAD)
def test_every_class_with_a_head_predicts_what_timm_does(tmp_path, name):
    """With timm's pixels of images that Transformers crops otherwise, one at a time."""
    timm_name, target = WITH_A_HEAD[name]
    timm_model = reduced(timm_name).float()
    torch.save(timm_model.state_dict(), tmp_path / "model.pth")
    done = convert_checkpoint(
        tmp_path / "model.pth", tmp_path / "folder", architecture=timm_model, target=target, verify=False
    )
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["architectures"] == [name]
    images = write_shifted(tmp_path, done)
    summary = predict(tmp_path / "folder", images, tmp_path / "out", processor="timm", batch_size=1, device="cpu")
    assert (summary.rows, summary.errors) == (3, 0)
    for row in read_predictions(tmp_path / "out").rows.to_pylist():
        expected = timm_logits(timm_model, images.parent / row["path"], done)
        assert np.abs(np.array(row["logits"]) - expected).max() <= 1e-5 * np.abs(expected).max()
        assert row["class"] == f"LABEL_{expected.argmax()}"


def write_shifted(tmp_path, done):
    """A list of three images of which Transformers' own processor makes other pixels than timm."""
    height, width = done.data.image_size
    rng = np.random.default_rng(0)
    for i in range(3):
        size = (height + 3 + i, width + i % 2)
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert("RGBA")
        image.putalpha(100)
        image.save(tmp_path / f"{i}.png")
        assert known_difference(image, done.data)
    (tmp_path / "shifted.csv").write_text("path\n0.png\n1.png\n2.png\n")
    return tmp_path / "shifted.csv"


def timm_logits(timm_model, path, done):
    """What timm makes of the file: a row of logits."""
    with torch.no_grad():
        return timm_model(timm_pixels(load_image(path), done.data)[None])[0].numpy()


@pytest.mark.parametrize("name", HEADLESS)
def test_a_model_without_a_head_is_refused_before_anything_is_written(tmp_path, write_images, name):
    model = reduced(HEADLESS[name], num_classes=0).float()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert_checkpoint(tmp_path / "model.pth", tmp_path / "folder", architecture=model, verify=False)
    with pytest.raises(InputError, match=f"has no classes: it is a {name}, converted without") as caught:
        predict(tmp_path / "folder", write_images(1), tmp_path / "out")
    assert "Convert a checkpoint that has a head" in caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["plain", "not square", "one channel"])
def test_the_timm_processor_gives_timms_logits_of_every_image(tmp_path, kind):
    """Bit for bit: of shapes and channels that Transformers' own processor prepares otherwise, or not at all."""
    timm_model = small_model(kind)
    torch.save(timm_model.state_dict(), tmp_path / "model.pth")
    done = convert_checkpoint(tmp_path / "model.pth", tmp_path / "folder", architecture=timm_model, verify=False)
    images = write_shifted(tmp_path, done)
    predict(tmp_path / "folder", images, tmp_path / "out", processor="timm", batch_size=1, device="cpu")
    for row in read_predictions(tmp_path / "out").rows.to_pylist():
        expected = timm_logits(timm_model, images.parent / row["path"], done)
        assert np.array_equal(np.array(row["logits"], np.float32), expected)


def test_broken_images_are_rows_and_change_no_other(folder, tmp_path, write_images):
    images = write_images(13)
    predict(folder, images, tmp_path / "whole", batch_size=4)
    images = write_images(13, broken=(0, 5, 6, 12))
    summary = predict(folder, images, tmp_path / "broken", batch_size=4, max_errors=4)
    assert (summary.rows, summary.errors) == (13, 4)
    whole, broken = (read_predictions(tmp_path / name).rows for name in ("whole", "broken"))
    for i in range(13):
        one, other = whole.slice(i, 1).to_pylist()[0], broken.slice(i, 1).to_pylist()[0]
        if i in (0, 5, 6, 12):
            assert other["error"]
            assert other["class"] is other["probability"] is other["logits"] is None
        else:
            assert one == other  # the logits to the bit


def test_too_many_errors_end_the_run_and_what_is_done_is_kept(folder, tmp_path, write_images, small_parts):
    images = write_images(12, broken=(1, 2, 9))
    with pytest.raises(
        InputError, match="2 of the first 4 images could not be read, and max_errors is 1: 'images"
    ) as caught:
        predict(folder, images, tmp_path / "out", batch_size=2, max_errors=1)
    assert "'images/00001.png' is not an image" in caught.value.problem
    assert len(list((tmp_path / "out").iterdir())) == 1
    summary = predict(folder, images, tmp_path / "out", batch_size=2, max_errors=3)
    assert (summary.rows, summary.errors, summary.found) == (12, 3, 4)
    with pytest.raises(InputError, match="3 of 12 images could not be read, and max_errors is 2: "):
        predict(folder, images, tmp_path / "out", batch_size=2, max_errors=2)
    with pytest.raises(InputError, match="max_errors is -1"):
        predict(folder, images, tmp_path / "other", max_errors=-1)
    assert not (tmp_path / "other").exists()


def test_a_run_goes_on_where_it_stopped(folder, tmp_path, write_images, small_parts, monkeypatch):
    images = write_images(15)
    predict(folder, images, tmp_path / "whole", batch_size=2)

    def stop(done, errors, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(folder, images, tmp_path / "out", batch_size=2, on_progress=stop)
    seen = []
    summary = predict(folder, images, tmp_path / "out", batch_size=2, on_progress=lambda *counts: seen.append(counts))
    assert summary.found == 8
    assert seen[-1] == (15, 0, 15)
    assert read_predictions(tmp_path / "out").rows.equals(read_predictions(tmp_path / "whole").rows)

    class Never:
        device = "cpu"

        def run(self, *arguments):
            raise AssertionError("nothing is left to do")
            yield

    monkeypatch.setitem(module._ENGINES, "local", lambda device: Never())
    assert predict(folder, images, tmp_path / "out", batch_size=2).found == 15


def test_weights_may_be_a_link_but_not_to_nothing(folder, tmp_path, write_images):
    """As in the Hub's cache."""
    images, mine = write_images(2), shutil.copytree(folder, tmp_path / "mine")
    (mine / "model.safetensors").rename(tmp_path / "blob")
    (mine / "model.safetensors").symlink_to(tmp_path / "blob")
    (mine / "more.json").symlink_to(tmp_path / "nothing")
    predict(mine, images, tmp_path / "link")
    predict(folder, images, tmp_path / "out")
    assert read_predictions(tmp_path / "link").rows.equals(read_predictions(tmp_path / "out").rows)
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors"):
        predict(mine, images, tmp_path / "dangling")
    assert not (tmp_path / "dangling").exists()


@pytest.mark.parametrize("change", ["image", "list", "batch", "weights", "processor", "code"])
def test_what_has_changed_is_done_again_if_it_may_be(folder, tmp_path, write_images, change, small_parts, monkeypatch):
    images, out = write_images(8), tmp_path / "out"
    mine = shutil.copytree(folder, tmp_path / "mine")
    predict(mine, images, out, batch_size=2)
    batch_size, processor, found = 2, "transformers", 0
    if change == "image":
        file = images.parent / "images" / "00000.jpg"
        shutil.copyfile(images.parent / "images" / "00002.jpg", file)
        found = 4
    elif change == "list":
        lines = images.read_text().splitlines()
        images.write_text("\n".join(lines[:-1]) + "\n")
        found = 4
    elif change == "batch":
        batch_size = 4
    elif change == "processor":
        processor = "timm"
    elif change == "code":
        monkeypatch.setattr(module, "_code", lambda: "mended")
    else:
        config = json.loads((mine / "config.json").read_text())
        config["layer_norm_eps"] = 1e-3
        (mine / "config.json").write_text(json.dumps(config))
    if change != "image":  # whose old predictions nobody wants
        with pytest.raises(DestinationError, match="other weights, images or settings"):
            predict(mine, images, out, batch_size=batch_size, processor=processor)
    done = predict(mine, images, out, batch_size=batch_size, processor=processor, overwrite=True)
    assert done.found == found
    assert read_predictions(out).rows["path"].to_pylist() == read_images(images).paths.to_pylist()


def test_equal_lists_in_two_folders_are_two_runs(folder, tmp_path, write_images, small_parts):
    """Their relative paths name other images, even where these have the same size and time."""
    first, out = write_images(8), tmp_path / "out"
    (tmp_path / "other").mkdir()
    second = shutil.copyfile(first, tmp_path / "other" / "list.csv")
    shutil.copytree(tmp_path / "images", tmp_path / "other" / "images")
    predict(folder, first, out, batch_size=2)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(DestinationError, match="other weights, images or settings"):
        predict(folder, second, out, batch_size=2)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert predict(folder, second, out, batch_size=2, overwrite=True).found == 0
    assert predict(folder, tmp_path / "images" / ".." / "other" / "list.csv", out, batch_size=2).found == 8


def swap(folder, one, other):
    """Give two images of the same size each other's content, and leave their times as they were."""
    one, other = folder / one, folder / other
    contents = [one.read_bytes(), other.read_bytes()]
    length = max(map(len, contents))
    for file, content in zip((other, one), contents, strict=True):
        file.write_bytes(content.ljust(length, b"\0"))  # what follows an image does not matter
        os.utime(file, ns=(0, 0))


def test_only_with_check_content_is_a_change_without_another_size_and_time_seen(
    folder, tmp_path, write_images, small_parts
):
    images = write_images(8)
    swap(images.parent / "images", "00000.jpg", "00002.jpg")
    for name, checks, found in (("not", False, 8), ("checked", True, 4)):
        out = tmp_path / name
        predict(folder, images, out, batch_size=2, check_content=checks)
        swap(images.parent / "images", "00000.jpg", "00002.jpg")
        assert predict(folder, images, out, batch_size=2, check_content=checks).found == found
        with pytest.raises(DestinationError, match="other weights, images or settings"):
            predict(folder, images, out, batch_size=2, check_content=not checks)
    os.utime(images.parent / "images" / "00000.jpg")
    assert predict(folder, images, tmp_path / "checked", batch_size=2, check_content=True).found == 8
    assert run_command(folder, images, tmp_path / "checked", "--batch-size", 2, "--check-content")[0] == 0


def test_an_error_of_the_machine_is_no_error_of_the_image(folder, tmp_path, write_images, monkeypatch):
    """It would be found again in every later run, though the image is well."""
    real = pixels_module.load_image

    def fail(path):
        if path.name != "00002.jpg":
            return real(path)
        try:
            raise OSError(errno.EIO, "Input/output error")
        except OSError as error:
            raise InputError(f"'{path}' is not an image that can be read.", "") from error

    monkeypatch.setattr(pixels_module, "load_image", fail)
    with pytest.raises(VitconvError, match=r"00002.jpg' is not an image that can be read. Input/output error"):
        predict(folder, write_images(4), tmp_path / "out", batch_size=2, max_errors=4)
    monkeypatch.undo()
    assert predict(folder, write_images(4), tmp_path / "out", batch_size=2).errors == 0


def test_a_killed_process_that_prepares_images_is_an_error_and_not_a_hang(folder, tmp_path, write_images, monkeypatch):
    monkeypatch.setattr(local, "_share", _die)
    with pytest.raises(VitconvError, match="A process that prepares images was killed"):
        predict(folder, write_images(4), tmp_path / "out", batch_size=2)


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), EOFError()])
def test_a_process_that_is_killed_while_it_hands_a_batch_over(folder, tmp_path, write_images, monkeypatch, error):
    def fail(loader):
        raise error

    monkeypatch.setattr(local, "_begin", fail)
    with pytest.raises(VitconvError, match="A process that prepares images was killed"):
        predict(folder, write_images(4), tmp_path / "out", batch_size=2)


def test_a_process_that_is_killed_while_the_model_runs_is_no_error_of_the_model(
    folder, tmp_path, write_images, monkeypatch
):
    def kill(*arguments):
        for process in multiprocessing.active_children():
            process.kill()
        time.sleep(1)  # until the signal has come

    load = transformers_module.load_folder

    def load_killer(path):
        model = load(path)
        model.register_forward_pre_hook(kill)
        return model

    monkeypatch.setattr(local, "cores", lambda: 1)
    monkeypatch.setattr(transformers_module, "load_folder", load_killer)
    with pytest.raises(VitconvError, match="A process that prepares images was killed"):
        predict(folder, write_images(20), tmp_path / "out", batch_size=2)


def test_a_process_that_is_killed_while_it_waits_to_hand_much_over(folder, tmp_path, monkeypatch):
    """What is said of 700 images is more than a pipe takes before it is read."""

    def kill(*arguments):
        time.sleep(2)  # until the next batch is prepared
        for process in multiprocessing.active_children():
            process.kill()

    load = transformers_module.load_folder

    def load_killer(path):
        model = load(path)
        model.register_forward_pre_hook(kill)
        return model

    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number:0100}.jpg\n" for number in range(2800)))
    monkeypatch.setattr(local, "cores", lambda: 1)
    monkeypatch.setattr(transformers_module, "load_folder", load_killer)
    with pytest.raises(VitconvError, match="A process that prepares images was killed"):
        predict(folder, tmp_path / "list.csv", tmp_path / "out", batch_size=700, max_errors=2800)


def test_a_batch_is_handed_over_in_one_step():
    """A pipe takes so few bytes as a whole or not at all, whenever the process that writes them is killed."""
    texts = [f"{number:0100}" for number in range(700)]
    pixels = Pixels(0, np.zeros((700, 3, 2, 2), np.float32), texts, texts, np.zeros((700, 16)))
    assert len(ForkingPickler.dumps((0, local._share(pixels)))) <= select.PIPE_BUF


@pytest.mark.slow
def test_a_process_that_uses_ray_is_not_forked(folder, tmp_path, write_images, monkeypatch):
    """Its next pipeline would wait for ever: see test_cluster.py, whose tests use both engines in one process."""
    images = write_images(4)
    predict(folder, images, tmp_path / "forked", batch_size=2)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    predict(folder, images, tmp_path / "spawned", batch_size=2)
    forked, spawned = (read_predictions(tmp_path / name).rows for name in ("forked", "spawned"))
    assert forked.equals(spawned)


def test_too_little_memory_to_prepare_images_is_an_error(folder, tmp_path, write_images, monkeypatch):
    monkeypatch.setattr(local, "_share", _want_more_memory)
    with pytest.raises(VitconvError, match="There is too little memory to prepare 2 images in each of") as caught:
        predict(folder, write_images(4), tmp_path / "out", batch_size=2)
    assert "Smaller batches" in caught.value.remedy


def _want_more_memory(pixels):
    raise MemoryError


def _die(pixels):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["order", "one"])
def test_an_engine_that_loses_rows_or_their_order_is_found_out(folder, tmp_path, write_images, monkeypatch, lost):
    real = local.LocalEngine.run

    def run(self, model, batches, todo):
        answers = list(real(self, model, batches, todo))
        yield from reversed(answers) if lost == "order" else answers[:-1]

    monkeypatch.setattr(local.LocalEngine, "run", run)
    with pytest.raises(VitconvError, match="lost rows of part 0, or their order"):
        predict(folder, write_images(6), tmp_path / "out", batch_size=2)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "spark"}, "There is no engine 'spark'"),
        ({"processor": "torchvision"}, "There is no processor 'torchvision'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "8"}, "batch_size must be at least 1, got '8'"),
        ({"max_errors": None}, "max_errors is None"),
        ({"overwrite": "no"}, "overwrite is 'no'"),
        ({"batch_size": 10**30}, f"A batch of {10**30} images takes too much memory"),
        ({"batch_size": 10**5000}, "A batch of a value of the type int that cannot be written images takes"),
        ({"device": "cuda:99"}, "There is no device 'cuda:99'"),
    ],
)
def test_wrong_arguments_are_refused(folder, tmp_path, write_images, arguments, message):
    with pytest.raises(InputError, match=message):
        predict(folder, write_images(2), tmp_path / "out", **arguments)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_batch_has_so_many_bytes_and_the_error_says_how_many_images_fit(
    folder, tmp_path, write_images, engine, monkeypatch
):
    monkeypatch.setitem(module._ENGINES, engine, None)  # nothing is started
    images = write_images(3)
    size = 2**30 // (4 * 3 * 32 * 32) + 1
    with pytest.raises(InputError, match=f"A batch of {size} images takes too much memory") as caught:
        predict(folder, images, tmp_path / "out", engine=engine, batch_size=size)
    assert caught.value.remedy == f"Choose a batch size of {size - 1:,} or less."
    assert not (tmp_path / "out").exists()
    with pytest.raises(TypeError):  # as nothing else hinders it
        predict(folder, images, tmp_path / "out", engine=engine, batch_size=size - 1)


def test_a_configuration_of_immense_images_is_refused(folder, tmp_path, write_images):
    mine = shutil.copytree(folder, tmp_path / "mine")
    content = json.loads((mine / "config.json").read_text()) | {"image_size": 7000, "num_channels": 10}
    (mine / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="too large for a batch"):
        predict(mine, write_images(1), tmp_path / "out", batch_size=1)


def test_a_folder_without_a_processor_is_refused_before_anything_is_written(folder, tmp_path, write_images):
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="has no preprocessor_config.json that Transformers can read") as caught:
        predict(mine, write_images(2), tmp_path / "out")
    assert "With `--processor timm`" in caught.value.remedy
    (mine / "timm_processor.json").unlink()
    with pytest.raises(InputError, match=r"has no timm_processor.json\.") as caught:
        predict(mine, write_images(2), tmp_path / "out", processor="timm")
    assert "Convert the checkpoint again" in caught.value.remedy
    with pytest.raises(CheckpointError, match="config.json"):
        predict(tmp_path, write_images(2), tmp_path / "out")
    (mine / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        predict(mine, write_images(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processor", ["transformers", "timm"])
def test_a_processor_that_goes_before_the_folder_s_own_is_refused(folder, tmp_path, write_images, processor):
    mine = shutil.copytree(folder, tmp_path / "mine")
    own = json.loads((mine / "preprocessor_config.json").read_text())
    (mine / "processor_config.json").write_text(json.dumps({"image_processor": own | {"image_mean": [0.1] * 3}}))
    with pytest.raises(InputError) as caught:
        predict(mine, write_images(2), tmp_path / "out", processor=processor)
    assert "Remove processor_config.json" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_code_in_a_folder_is_neither_run_nor_asked_about(folder, tmp_path, write_images):
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "evil.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')\nclass Foo: pass\n")
    processor = {"image_processor_type": "Foo", "auto_map": {"AutoImageProcessor": "evil.Foo"}}
    (mine / "preprocessor_config.json").write_text(json.dumps(processor))
    done = CliRunner().invoke(
        app, ["predict", str(mine), str(write_images(2)), str(tmp_path / "out")], input="y\n" * 9
    )
    assert "custom code" not in done.output
    assert done.exit_code == 1
    assert not (tmp_path / "RUN").exists()


def run_command(*arguments):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_counts_and_goes_on(folder, tmp_path, write_images):
    images, out = write_images(6, broken=(1,)), tmp_path / "out"
    code, _, err = run_command(folder, images, out)
    assert code == 1
    assert err.endswith(
        "error: 1 of 6 images could not be read, and max_errors is 0: 'images/00001.png' is not an image that can be read.\n"
        "Repair them, remove them from the list, or allow more with --max-errors N.\n"
    )
    code, stdout, err = run_command(folder, images, out, "--max-errors", 1)
    assert code == 0
    assert stdout == f"{out}: 6 images on cpu, 6 of them by an earlier run; 1 could not be read\n"
    assert "Predicting, 1 unreadable: 6 of 6…" in err
    code, _, err = run_command(folder, images, out, "--max-errors", 1, "--batch-size", 3)
    assert code == 1
    assert "error: " in err
    assert "pass --overwrite" in err
    assert run_command(folder, images, out, "--max-errors", 1, "--batch-size", 3, "--overwrite")[0] == 0


def test_the_command_takes_the_processor(folder, tmp_path, write_images):
    images = write_images(7)
    assert run_command(folder, images, tmp_path / "own")[0] == 0
    assert run_command(folder, images, tmp_path / "timm", "--processor", "timm")[0] == 0
    predict(folder, images, tmp_path / "python", processor="timm")
    own, timm, python = (read_predictions(tmp_path / name).rows for name in ("own", "timm", "python"))
    assert timm.equals(python)
    assert not timm.equals(own)  # some of the images are cropped otherwise
    code, _, err = run_command(folder, images, tmp_path / "own", "--processor", "timm")
    assert code == 1
    assert "other weights, images or settings" in err


@pytest.mark.parametrize(
    "option", [("--engine", "spark"), ("--processor", "slow"), ("--batch-size", 0), ("--max-errors", -1)]
)
def test_wrong_usage_is_exit_code_2(folder, tmp_path, write_images, option):
    assert run_command(folder, write_images(1), tmp_path / "out", *option)[0] == 2


def test_an_interrupted_command_says_what_is_there(folder, tmp_path, write_images, monkeypatch, small_parts):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    images, right = write_images(8), local.LocalEngine.run
    monkeypatch.setattr(local.LocalEngine, "run", interrupt)
    code, _, err = run_command(folder, images, tmp_path / "out")
    assert code == 130
    assert err == "error: Interrupted.\nNothing was written.\n"

    def interrupt_later(*arguments):
        yield from islice(right(*arguments), 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(local.LocalEngine, "run", interrupt_later)
    code, _, err = run_command(folder, images, tmp_path / "out", "--batch-size", 4)
    assert code == 130
    assert err.endswith("error: Interrupted.\nWhat has been written is kept: run it again to go on.\n")


def test_too_little_shared_memory_is_an_error_in_words(monkeypatch):
    """Containers have 64 MB."""

    def fail(tensor):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(VitconvError, match="too little shared memory for a batch of 8 images") as caught:
        local._share(Pixels(0, np.zeros((8, 3, 2, 2), np.float32), [None] * 8, [None] * 8))
    assert "Choose a smaller batch size" in caught.value.remedy


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_named(folder, tmp_path, write_images):
    """It is one of shared memory, too."""
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        [Path(sys.executable).with_name("vitconv"), "predict", folder, write_images(16), tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)),
    )
    assert done.returncode == 1
    assert "error: The limit of file sizes is too low for a batch of 8 images" in done.stderr
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr


def replace_weights(folder):
    """As when somebody converts again into the same folder: other numbers, the same names and sizes."""
    file = folder / "model.safetensors"
    weights = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(weights, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(file)


def test_a_folder_that_is_replaced_before_the_weights_are_loaded_is_refused(
    folder, tmp_path, write_images, monkeypatch
):
    mine = shutil.copytree(folder, tmp_path / "mine")
    run = local.LocalEngine.run

    def replace_first(*arguments):
        replace_weights(mine)
        yield from run(*arguments)

    monkeypatch.setattr(local.LocalEngine, "run", replace_first)
    with pytest.raises(CheckpointError, match="mine' have changed while the model was loaded"):
        predict(mine, write_images(4), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_replaced_while_the_model_runs_is_refused(
    folder, tmp_path, write_images, monkeypatch, small_parts
):
    mine = shutil.copytree(folder, tmp_path / "mine")

    def replace(done, errors, rows):
        if done == 8:
            replace_weights(mine)

    with pytest.raises(CheckpointError, match="mine' have changed while the model ran"):
        predict(mine, write_images(12), tmp_path / "out", batch_size=4, on_progress=replace)
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["onnx", "openvino"])
def test_an_optimised_model_that_is_written_into_while_it_runs_is_refused(
    woods, tmp_path, write_images, monkeypatch, recipe
):
    """Its file is in a folder of its own. OpenVINO maps the weights, so that it computes with whatever is written."""
    mine = woods.copy(recipe, tmp_path / "mine")
    monkeypatch.setattr(module, "ROWS_PER_PART", 4)  # not before: the reference in `woods` is in parts, too
    weights = mine / (WEIGHTS if recipe == "openvino" else "onnx/model.onnx")

    def write(done, errors, rows):
        if done == 8:
            with weights.open("r+b") as file:
                file.write(bytes(weights.stat().st_size))

    with pytest.raises(CheckpointError, match="mine' have changed while the model ran"):
        predict(mine, write_images(12), tmp_path / "out", batch_size=4, on_progress=write)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_predictions_may_be_written_into_the_model_s_folder(folder, tmp_path, write_images, small_parts):
    mine = shutil.copytree(folder, tmp_path / "mine")
    assert predict(mine, write_images(12), mine / "predictions", batch_size=4).rows == 12


def test_a_folder_that_is_replaced_is_another_model_by_whatever_path(
    folder, tmp_path, write_images, monkeypatch, small_parts
):
    """A run that was cut off does not go on with other weights, also where the file has its old time."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    (tmp_path / "link").symlink_to(mine)
    images = write_images(12)

    def stop(done, errors, rows):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(mine, images, tmp_path / "out", batch_size=4, on_progress=stop)
    times = (mine / "model.safetensors").stat()
    replace_weights(mine)
    os.utime(mine / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.chdir(tmp_path)
    for path in (mine, "mine", "./mine/../mine/", "link"):
        with pytest.raises(DestinationError, match="predictions of other weights, images or settings"):
            predict(path, images, tmp_path / "out", batch_size=4)


def test_the_same_folder_by_another_path_goes_on(folder, tmp_path, write_images, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    images = write_images(4)
    predict(folder, images, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert predict("./link", images, tmp_path / "out").found == 4


def test_paths_that_are_written_otherwise_are_predicted_again(folder, tmp_path, write_images):
    images = write_images(2)
    predict(folder, images, tmp_path / "out")
    images.write_text(images.read_text().replace("images/", "./images//"))
    with pytest.raises(DestinationError, match="predictions of other weights, images or settings"):
        predict(folder, images, tmp_path / "out")
    assert predict(folder, images, tmp_path / "out", overwrite=True).found == 0
    assert read_predictions(tmp_path / "out").rows["path"].to_pylist() == read_images(images).paths.to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("most", full_but((15,), [10, 15, 20]))
def test_too_few_open_files_is_an_error_in_words(folder, tmp_path, write_images, most):
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        [Path(sys.executable).with_name("vitconv"), "predict", folder, write_images(2), tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
    )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Too many open files" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_weights_in_torchs_format_are_part_of_what_was_run(folder, tmp_path, write_images):
    """A folder may hold pytorch_model.bin instead of safetensors: other weights in it are another run."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    weights = load_file(mine / "model.safetensors")
    (mine / "model.safetensors").unlink()
    torch.save(weights, mine / "pytorch_model.bin")
    images = write_images(3)
    predict(mine, images, tmp_path / "out")
    before = read_predictions(tmp_path / "out").logits()
    weights["classifier.bias"] += 50 * torch.arange(len(weights["classifier.bias"]))
    torch.save(weights, mine / "pytorch_model.bin")
    with pytest.raises(DestinationError, match="holds predictions of other weights"):
        predict(mine, images, tmp_path / "out")
    assert predict(mine, images, tmp_path / "out", overwrite=True).found == 0
    assert not np.allclose(read_predictions(tmp_path / "out").logits(), before)


@pytest.mark.parametrize("engine", ["local"])
def test_a_run_that_cannot_begin_leaves_the_old_predictions(folder, tmp_path, write_images, engine, small_parts):
    images = write_images(9)
    predict(folder, images, tmp_path / "out", batch_size=2)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="There is no device 'nosuch'"):
        predict(folder, images, tmp_path / "out", batch_size=4, device="nosuch", overwrite=True, engine=engine)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    predict(folder, write_images(3), tmp_path / "out", batch_size=4, overwrite=True, engine=engine)
    assert len(os.listdir(tmp_path / "out")) == 1


@pytest.mark.parametrize("processor", ["transformers", "timm"])
def test_a_wrapper_predicts_with_timm_s_pixels_by_either_processor(wrapped, tmp_path, write_images, processor):
    images = write_images(3)
    predict(wrapped[1], images, tmp_path / "out", batch_size=1, processor=processor)
    model = load_timm(wrapped[0], target="timm_wrapper")
    data = inspect_checkpoint(wrapped[0], target="timm_wrapper").data
    rows = read_predictions(tmp_path / "out").rows.to_pylist()
    assert len(rows) == 3
    for row in rows:
        with torch.no_grad():
            expected = model(timm_pixels(load_image(tmp_path / row["path"]), data)[None])[0]
        assert np.array_equal(np.array(row["logits"], np.float32), expected.numpy())


def test_a_wrapper_without_classes_is_refused(tmp_path, write_images, save):
    arguments = wrapped_arguments("eva02_tiny_patch14_224")
    model = perturbed(timm.create_model("eva02_tiny_patch14_224", num_classes=0, **arguments))
    path = save({"state_dict": model.state_dict(), "arch": "eva02_tiny_patch14_224", "model_args": arguments})
    convert_checkpoint(path, tmp_path / "model", target="timm_wrapper", verify=False)
    with pytest.raises(InputError, match="has no classes: it is a TimmWrapperModel"):
        predict(tmp_path / "model", write_images(1), tmp_path / "out")
