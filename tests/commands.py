"""The command line, called in this process, or in one that gets a signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from typer.testing import CliRunner

from vitconv.cli import app


def run(*arguments: object) -> tuple[int, str, str]:
    """In this process, for speed: (exit code, stdout, stderr)."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


#: The command in a process of its own.
MAIN = [sys.executable, "-c", "from vitconv.cli import run; run()"]


def not_ignored() -> None:
    """A shell's background job inherits Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def stopped(
    command: Sequence[object], number: signal.Signals, sign: str, pause: float, **environment: str
) -> tuple[int, str]:
    """Send a signal some seconds after a line with this sign is printed on stderr: (exit code, what was said)."""
    with subprocess.Popen(
        [*MAIN, *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=not_ignored, env=os.environ | environment,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if sign in line:
                time.sleep(pause)
                process.send_signal(number)
                break
        said += process.stderr.read()
    return process.returncode, said
