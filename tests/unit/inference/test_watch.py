"""What tells that a model's files have changed."""

import os
import time

import pytest

from vitconv.errors import CheckpointError
from vitconv.inference.watch import watch_model


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
