"""A command as a process of its own: how it begins, is told to end, and ends.

Nothing heavy is imported before the signals are taken care of: importing the command line takes longer than people
wait before they press Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from vitconv.destination import discard_unfinished

#: Whether nothing is left to do when the process ends: no threads, no processes, no files but unfinished folders.
ends_at_once = False
#: The signal that told it to end; 0 for none.
told_to_end = 0

_WORDS: dict[int, str] = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
#: What writing to an open file, such as the output, fails with; where vitconv writes files, it says so itself.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


def main() -> None:
    """The command ``vitconv``: until one of its commands begins, nothing is open."""
    global ends_at_once
    ends_at_once = True
    _listen()
    from vitconv.cli import app

    run(app)


def run(command: Callable[[], object]) -> None:
    """Run a command, and end the process with its exit code: 130 after Ctrl-C (SIGINT), 143 after SIGTERM.

    Taking down what importing torch, timm and Transformers built takes Python 1.5 s, of which nobody has anything: the
    commands that leave nothing open end without.
    """
    _listen()
    try:
        command()
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            raise
        _end(end.code or 0)
    except BaseException as error:
        if told_to_end:  # where Transformers imports its modules, it makes an error of its own of the signal's
            _say(f"error: {_WORDS[told_to_end]}.\n")
            _end(128 + told_to_end)
        if isinstance(error, OSError) and error.errno in _OF_WRITING and error.filename is None:
            _say_unwritable(error)
            _flushed()
            _end(1)
        raise


def _listen() -> None:
    for number in _WORDS:
        # A shell's background job inherits Ctrl-C ignored, and is to go on.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    """End as at Ctrl-C, also where the system asks for it (SIGTERM), as containers and batch systems do.

    An exception would end the process in order, but not where it comes while torch or Transformers call Python: they
    abort, or make another error of it. So a command that leaves nothing open ends right here.
    """
    global told_to_end
    told_to_end = number
    if not ends_at_once:
        raise KeyboardInterrupt
    discard_unfinished()
    if sys.stderr is not None and sys.stderr.isatty():
        _say("\r\x1b[K\x1b[?25h")  # rich's spinner has hidden the cursor
    _say(f"error: {_WORDS[number]}.\nNothing was written.\n")
    os._exit(128 + number)


def _end(code: int) -> None:
    if not _flushed():
        code = code or 1
    if ends_at_once:
        os._exit(code)
    sys.exit(code)


def _flushed() -> bool:
    """Write out what was printed; if that cannot be done, say so and drop it, so that Python does not try again."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            done = False
            if stream is sys.stdout:
                _say_unwritable(error)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return done


def _say_unwritable(error: OSError) -> None:
    if not isinstance(error, BrokenPipeError):  # `| head` has what it wants
        _say(f"error: The output cannot be written: {error.strerror}.\nSend it to another place.\n")


def _say(text: str) -> None:
    """Write to stderr past Python's buffers, which may be in use when a signal comes."""
    with suppress(OSError):
        os.write(2, text.encode())
