"""What tells that a model's files have changed."""

import os
import shutil
import time

import pytest

from vitconv.errors import CheckpointError
from vitconv.inference import predict, transformers
from vitconv.inference.watch import watch_model
from vitconv.serving import open_classifier


def test_a_file_that_is_written_over_and_gets_its_old_time_is_seen(tmp_path):
    """As `tar`, `rsync --inplace --times` and `cp -p` do, where all files of both models have one time."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    watch = watch_model(tmp_path)
    watch.check()
    time.sleep(0.05)  # the clock of a file system has steps
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match="have changed while the model ran"):
        watch.check()


@pytest.mark.parametrize("use", [lambda mine, images, out: open_classifier(mine, "cpu"), predict])
def test_what_a_folder_that_is_removed_meanwhile_leads_to_is_not_what_is_wrong(
    folder, write_images, tmp_path, monkeypatch, use
):
    mine = shutil.copytree(folder, tmp_path / "mine")

    def load(place):
        shutil.rmtree(place)
        raise RuntimeError("unable to open file")  # as torch does

    monkeypatch.setattr(transformers, "load_folder", load)
    with pytest.raises(CheckpointError, match="mine' have changed while the model was loaded"):
        use(mine, write_images(1), tmp_path / "out")
