"""A command as a real process: told to end at any moment, and with an output that takes nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest
from models import full_model
from safetensors.torch import save_file

from vitconv.convert import convert_checkpoint

ARCH = "vit_tiny_patch16_224"
MAIN = [sys.executable, "-c", "from vitconv.cli import run; run()"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    save_file(full_model(ARCH, num_classes=3).state_dict(), path)
    return path


def not_ignored():
    """A shell's background job inherits Ctrl-C ignored, and one under nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        *((signal.SIGINT, seconds) for seconds in (0.5, 0.8, 1.2, 1.7, 2.5, 3.2, 4, 5, 6)),
        (signal.SIGTERM, 2.2),
        (signal.SIGHUP, 2.2),
    ],
)
def test_a_signal_ends_the_command_at_any_moment(number, seconds, source, tmp_path):
    """While modules are imported, weights written, models compared: always in the same way."""
    command = [*MAIN, "convert", source, tmp_path / "model", "--arch", ARCH]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=not_ignored) as process:
        time.sleep(seconds)
        process.send_signal(number)
        said = process.stderr.read()
    if process.returncode == 0:
        pytest.skip("it was done before")
    assert process.returncode == 128 + number
    word = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated", signal.SIGHUP: "Hangup"}[number]
    written = os.listdir(tmp_path)  # it may have come as the command printed what it had done
    left = f"It was done: '{tmp_path / 'model'}' is complete." if written else "Nothing was written."
    assert written in ([], ["model"])
    assert said.endswith(f"error: {word}.\n{left}\n") and said.count("error: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("at_once", [True, False], ids=["ends at once", "ends in order"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_around_the_renaming(moment, at_once, overwrite, source, tmp_path):
    """What is said to be written is there, and the other way round."""
    destination = tmp_path / "model"
    if overwrite:
        convert_checkpoint(source, destination, architecture=ARCH, verify=False)
    before = os.stat(destination).st_ino if overwrite else None
    code = (
        "import contextlib, os, signal; from vitconv.cli import convert, process, run\n"
        "from vitconv.writing import staging\n"
        "rename, stop = staging._rename, lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "def renamed(*arguments):\n"
        f"    {'stop()' if moment == 'before' else ''}\n"
        "    rename(*arguments)\n"
        "    stop()\n"
        "staging._rename = renamed\n"
        "in_order = lambda: contextlib.nullcontext(process.end_in_order())\n"
        f"{'' if at_once else 'convert.without_garbage_collection = in_order'}\n"
        "run()"
    )
    command = [sys.executable, "-c", code, "convert", source, destination, "--arch", ARCH, "--no-verify"]
    done = subprocess.run(
        command + ["--overwrite"] * overwrite, capture_output=True, text=True, preexec_fn=not_ignored
    )
    said = f"It was done: '{destination}' is complete." if moment == "after" else "Nothing was written."
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (130, ["error: Interrupted.", said])
    assert os.listdir(tmp_path) == (["model"] if overwrite or moment == "after" else [])
    if moment == "before" and overwrite:
        assert os.stat(destination).st_ino == before


@pytest.mark.parametrize(("number", "word"), [(1, "Hangup"), (2, "Interrupted"), (15, "Terminated")])
@pytest.mark.parametrize("error", ["CheckpointError('a', 'b')", "ModuleNotFoundError('x')"])
def test_a_signal_that_an_import_turns_into_another_error(number, word, error):
    """As Transformers does where it imports its modules."""
    code = (
        "import os, signal; from vitconv.cli import models, run; from vitconv.errors import CheckpointError\n"
        "def verdicts(target, name):\n"
        f"    try: os.kill(os.getpid(), {number})\n"
        f"    except BaseException as error: raise {error} from error\n"
        "models.verdicts = verdicts; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "models"], capture_output=True, text=True, preexec_fn=not_ignored
    )
    assert done.returncode == 128 + number
    assert done.stderr.startswith(f"error: {word}.") and "Traceback" not in done.stderr


SWALLOWED = {
    "in a finaliser": "Finalised(); time.sleep(9)",
    "by a bare except": "swallow(); on_progress(1, 0, 2); time.sleep(9)",
    "until the end": "swallow()",
}


@pytest.mark.parametrize(("number", "word"), [(1, "Hangup"), (2, "Interrupted"), (15, "Terminated")])
@pytest.mark.parametrize("work", SWALLOWED.values(), ids=SWALLOWED)
def test_a_signal_whose_exception_is_swallowed_ends_the_command(work, number, word, tmp_path):
    code = (
        "import os, time; from vitconv import inference; from vitconv.cli import run\n"
        f"def stop(): os.kill(os.getpid(), {number}); time.sleep(1)\n"
        "class Finalised:\n"
        "    def __del__(self): stop()\n"
        "def swallow():\n"
        "    try: stop()\n"
        "    except BaseException: pass\n"
        f"def predict(*arguments, on_progress, **options): {work}; print('done')\n"
        "inference.predict = predict; run()"
    )
    command = [sys.executable, "-c", code, "predict", tmp_path, tmp_path, tmp_path / "out", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=not_ignored)
    assert (done.returncode, done.stderr) == (128 + number, f"error: {word}.\nNothing was written.\n")
    assert done.stdout == ("done\n" if work == "swallow()" else "")


def test_a_second_signal_while_python_ends_keeps_the_exit_code():
    """Its exception is swallowed, too, and Python takes its handlers down before it is raised again."""
    code = (
        "import atexit, os, signal, time; from vitconv.cli import process\n"
        "class Slow:\n"
        "    def __del__(self, sleep=time.sleep): sleep(0.5)\n"
        "slow = Slow()\n"
        "def stop(): os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
        "atexit.register(stop); process.run(stop)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=not_ignored)
    assert (done.returncode, done.stderr) == (130, "error: Interrupted.\n")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_signal_while_modules_are_imported_is_not_swallowed(command, tmp_path):
    code = (
        "import os, signal, time; from vitconv import evaluation, inference; from vitconv.cli import run\n"
        "def load(name):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(1)\n"
        "    except BaseException: pass\n"
        "    return lambda *arguments, **options: print('went on')\n"
        "inference.__getattr__ = evaluation.__getattr__ = load; run()"
    )
    command = [sys.executable, "-c", code, command, tmp_path, tmp_path, "-q"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=not_ignored, cwd=tmp_path)
    said = (done.returncode, done.stdout, done.stderr)
    assert said == (143, "", "error: Terminated.\nNothing was written.\n")


def test_an_ignored_interrupt_stays_ignored():
    code = (
        "import os, signal; from vitconv.cli import process; process.run(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["models"], ["models", "--json"], ["inspect"]])
def test_an_output_that_takes_nothing(arguments, source):
    arguments = [*arguments, source, "--arch", ARCH] if arguments == ["inspect"] else arguments
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MAIN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: The output cannot be written: No space left on device.\nWrite it elsewhere.\n")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_an_output_for_errors_that_takes_nothing(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MAIN, "inspect", tmp_path / "none.pth"], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(2,), (1, 2)])
def test_what_is_done_without_an_output_is_done(closed, source):
    """`2>&-` in a shell, as daemons are started."""
    command = [*MAIN, "inspect", source, "--arch", ARCH]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: [os.close(number) for number in closed]
    )
    assert (done.returncode, bool(done.stdout)) == (0, 1 not in closed)


@pytest.mark.slow
def test_no_folder_for_temporary_files(source, tmp_path):
    """Torch asks for one where it is imported."""
    import resource

    convert_checkpoint(source, tmp_path / "model", architecture=ARCH, verify=False)
    done = subprocess.run(
        [*MAIN, "verify", source, tmp_path / "model"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.returncode == 1
    assert "error: No usable temporary directory found in " in done.stderr
    assert done.stderr.endswith("set TMPDIR to a writable folder.\n") and "Traceback" not in done.stderr


def test_a_working_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        [*MAIN, "predict", "model", "image.png"],
        cwd=tmp_path / "gone",
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.rmdir(tmp_path / "gone"),
    )
    assert done.returncode == 1
    assert done.stderr == "error: The working folder has been removed.\nChange to another folder, and run it again.\n"


def test_a_reader_that_has_enough(source):
    command = [*MAIN, "models", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == ""
