import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from models import small_model
from typer.testing import CliRunner

from vitconv.cli import app
from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, DestinationError, InputError, VitconvError
from vitconv.evaluation import images as images_module
from vitconv.evaluation import local
from vitconv.evaluation import predict as module
from vitconv.evaluation.images import read_images
from vitconv.evaluation.predict import predict
from vitconv.evaluation.predictions import read_predictions
from vitconv.preprocess import known_difference, load_image, timm_pixels


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
    with pytest.raises(InputError, match="2 of the first 4 images cannot be read; 1 may") as caught:
        predict(folder, images, tmp_path / "out", batch_size=2, max_errors=1)
    assert "'images/00001.png' is not an image" in caught.value.problem
    assert len(list((tmp_path / "out").iterdir())) == 1
    summary = predict(folder, images, tmp_path / "out", batch_size=2, max_errors=3)
    assert (summary.rows, summary.errors, summary.found) == (12, 3, 4)
    with pytest.raises(InputError, match="3 of the first 12"):
        predict(folder, images, tmp_path / "out", batch_size=2, max_errors=2)


def test_a_run_goes_on_where_it_stopped(folder, tmp_path, write_images, small_parts, monkeypatch):
    images = write_images(15)
    predict(folder, images, tmp_path / "whole", batch_size=2)

    def stop(done, errors, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(folder, images, tmp_path / "out", batch_size=2, advance=stop)
    seen = []
    summary = predict(folder, images, tmp_path / "out", batch_size=2, advance=lambda *counts: seen.append(counts))
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


@pytest.mark.integration
def test_a_killed_run_loses_no_part(folder, tmp_path, write_images):
    """A real process, killed by the system after the first part."""
    images = write_images(16)
    script = (
        "import os, signal, sys; from vitconv.evaluation import predict as p; p.ROWS_PER_PART = 4\n"
        "kill = lambda done, *_: done == 8 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "p.predict(*sys.argv[1:], batch_size=2, advance=kill)"
    )
    arguments = [sys.executable, "-c", script, folder, images, tmp_path / "out"]
    # The pipe is closed when the processes that prepare images have noticed, too.
    assert subprocess.run(arguments, stdout=subprocess.PIPE, timeout=60).returncode == -signal.SIGKILL
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["part-00000000.parquet"]


@pytest.mark.parametrize("change", ["image", "list", "batch", "weights", "code"])
def test_what_has_changed_is_done_again_if_it_may_be(folder, tmp_path, write_images, change, small_parts, monkeypatch):
    images, out = write_images(8), tmp_path / "out"
    mine = shutil.copytree(folder, tmp_path / "mine")
    predict(mine, images, out, batch_size=2)
    batch_size, found = 2, 0
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
    elif change == "code":
        monkeypatch.setattr(module, "_code", lambda: "mended")
    else:
        config = json.loads((mine / "config.json").read_text())
        config["layer_norm_eps"] = 1e-3
        (mine / "config.json").write_text(json.dumps(config))
    if change != "image":  # whose old predictions nobody wants
        with pytest.raises(DestinationError, match="other weights, images or settings"):
            predict(mine, images, out, batch_size=batch_size)
    assert predict(mine, images, out, batch_size=batch_size, overwrite=True).found == found
    assert read_predictions(out).rows["path"].to_pylist() == read_images(images).paths.to_pylist()


def test_an_error_of_the_machine_is_no_error_of_the_image(folder, tmp_path, write_images, monkeypatch):
    """It would be found again in every later run, though the image is well."""
    real = images_module.load_image

    def fail(path):
        if path.name != "00002.jpg":
            return real(path)
        try:
            raise OSError(errno.EIO, "Input/output error")
        except OSError as error:
            raise InputError(f"'{path}' is not an image that can be read.", "") from error

    monkeypatch.setattr(images_module, "load_image", fail)
    with pytest.raises(VitconvError, match=r"Images cannot be prepared: .*00002.jpg' is not an image"):
        predict(folder, write_images(4), tmp_path / "out", batch_size=2, max_errors=4)
    monkeypatch.undo()
    assert predict(folder, write_images(4), tmp_path / "out", batch_size=2).errors == 0


def test_a_killed_process_that_prepares_images_is_an_error_and_not_a_hang(folder, tmp_path, write_images, monkeypatch):
    monkeypatch.setattr(local, "_share", _die)
    with pytest.raises(VitconvError, match="A process that prepares images was killed"):
        predict(folder, write_images(4), tmp_path / "out", batch_size=2)


def _die(pixels):
    os.kill(os.getpid(), signal.SIGKILL)


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
        ({"batch_size": 0}, "A batch of 0 images"),
        ({"device": "cuda:99"}, "There is no device 'cuda:99'"),
    ],
)
def test_wrong_arguments_are_refused(folder, tmp_path, write_images, arguments, message):
    with pytest.raises(InputError, match=message):
        predict(folder, write_images(2), tmp_path / "out", **arguments)


def test_a_folder_without_a_processor_is_refused_before_anything_is_written(folder, tmp_path, write_images):
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="has no preprocessor_config.json that Transformers can read"):
        predict(mine, write_images(2), tmp_path / "out")
    with pytest.raises(CheckpointError, match="config.json"):
        predict(tmp_path, write_images(2), tmp_path / "out")
    (mine / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        predict(mine, write_images(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def run_command(*arguments):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_counts_and_goes_on(folder, tmp_path, write_images):
    images, out = write_images(6, broken=(1,)), tmp_path / "out"
    code, _, err = run_command(folder, images, out)
    assert code == 1
    assert err.endswith(
        "error: 1 of the first 6 images cannot be read; 0 may. 'images/00001.png' is not an image that can be read.\n"
        "Mend them, take them off the list, or allow more; what is done is kept.\n"
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


@pytest.mark.parametrize("option", [("--engine", "spark"), ("--batch-size", 0), ("--max-errors", -1)])
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
