"""A prediction that is interrupted keeps the files it has written, and continues when it is started again."""

import signal
import subprocess
import sys

import pytest

from vitconv.inference import predict
from vitconv.inference.predictions import read_predictions


def test_a_killed_run_keeps_the_parts_it_has_written(folder, tmp_path, write_images):
    """A real process that is killed after the first part."""
    images = write_images(16)
    script = (
        "import os, signal, sys; from vitconv.inference import batch_prediction as p; p.ROWS_PER_PART = 4\n"
        "kill = lambda done, *_: done == 8 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "p.predict(*sys.argv[1:], batch_size=2, on_progress=kill)"
    )
    arguments = [sys.executable, "-c", script, folder, images, tmp_path / "out"]
    # The pipe is closed when the processes that prepare images have noticed, too.
    assert subprocess.run(arguments, stdout=subprocess.PIPE, timeout=60).returncode == -signal.SIGKILL
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["part-00000000.parquet"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_the_next_run_continues(folder, tmp_path, write_images, number):
    """Only the main process gets the signal, and the image workers print nothing. The next run gives the same rows."""
    images, out = write_images(40), tmp_path / "out"
    lines = images.read_text().splitlines()
    images.write_text("\n".join([lines[0], *lines[1:] * 10]) + "\n")
    script = (
        "import os, sys; from vitconv.inference import batch_prediction as p; from vitconv.cli import run\n"
        "p.ROWS_PER_PART, write, wanted = 8, p.Parts.write, int(sys.argv.pop())\n"
        "def and_stop(self, part, *more): write(self, part, *more); part == 9 and os.kill(os.getpid(), wanted)\n"
        "p.Parts.write = and_stop; run()"
    )
    command = [sys.executable, "-c", script, "predict", folder, images, out, "--batch-size", "2", str(int(number))]
    # A shell's background job inherits Ctrl-C ignored.
    ready = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **ready)
    assert "Traceback" not in done.stderr
    if number == signal.SIGINT:
        assert done.returncode == 130
        assert done.stderr.endswith("error: Interrupted.\nWhat has been written is kept: run it again to go on.\n")
    else:
        assert done.returncode == 143
        assert done.stderr.endswith("error: Terminated.\nWhat has been written is kept: run it again to go on.\n")
    assert sorted(file.name for file in out.iterdir()) == [f"part-{part:08}.parquet" for part in range(10)]
    command[-1] = "0"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "400 images on cpu, 80 of them by an earlier run" in done.stdout
    rows = read_predictions(out).rows
    predict(folder, images, tmp_path / "whole", batch_size=2)
    assert rows.equals(read_predictions(tmp_path / "whole").rows)
