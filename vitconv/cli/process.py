"""A command as a process: its signals, its exit codes, its end.

Nothing heavy is imported before the signals are handled: importing the command line takes longer than people wait
before they press Ctrl-C.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from vitconv.cli.help import print_json_error
from vitconv.cli.output import print_text, printable
from vitconv.errors import VitconvError
from vitconv.writing.staging import discard_unfinished, forget_published, published

#: Whether the process may end at any moment: it has no threads or processes to stop, and only unfinished folders to
#: remove.
ends_at_once = False
#: The signal that ended the process; 0 for none.
received_signal = 0

_WORDS: dict[int, str] = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated", signal.SIGHUP: "Hangup"}
#: How writing to an open file, such as the output, can fail. Files that vitconv writes have their own error messages.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


def run(command: Callable[[], object] | None = None) -> None:
    """Run a command, and end the process with its exit code: 130 after Ctrl-C (SIGINT), 143 after SIGTERM,
    129 after SIGHUP.

    Python takes 1.5 s to take down what importing torch, timm and Transformers built, which helps nobody: the commands
    that leave nothing open end without it.

    Args:
        command: what to run; by default the command ``vitconv``.
    """
    global ends_at_once
    _listen()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a shell closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks must not end what is done
            stream.reconfigure(errors="backslashreplace")
    if command is None:
        ends_at_once = True  # until a command calls end_in_order(), nothing is open
        from vitconv.cli.commands import app

        command = app
    try:
        command()
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            raise
        _end(end.code or 0)
    except BaseException as error:
        if received_signal:  # an import in Transformers turns the signal's exception into one of its own
            _print_error(f"error: {_WORDS[received_signal]}.\n")
            _end(128 + received_signal)
        if isinstance(error, OSError) and error.errno in _OF_WRITING and error.filename is None:
            _report_unwritable(error)
            _flush()
            _end(1)
        raise


def _what_was_written() -> str:
    """What an interrupt leaves of a command that writes one folder: all of it or nothing."""
    folders = published()
    if folders:
        return f"It was done: '{printable(str(folders[-1]))}' is complete."
    return "Nothing was written."


@contextmanager
def errors_for_people(interrupted: Callable[[], str] = _what_was_written, *, as_json: bool = False) -> Iterator[None]:
    """Turn vitconv's exceptions into two lines on stderr and exit code 1.

    An interrupt (Ctrl-C) gives exit code 130, SIGTERM 143 and SIGHUP 129, as in shells.

    Args:
        interrupted: returns a sentence on what an interrupt leaves behind.
        as_json: print the error as JSON on stdout, too: a program reads that, and people the lines on stderr.
    """
    forget_published()
    try:
        yield
        _look_again()
    except (VitconvError, KeyboardInterrupt) as error:
        if isinstance(error, VitconvError) and not received_signal:
            _tell(error.problem, error.remedy, as_json)
            raise typer.Exit(1) from None
        number = received_signal or signal.SIGINT
        _tell(f"{_WORDS[number]}.", interrupted(), as_json)
        raise typer.Exit(128 + number) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # can happen at any line that imports something
            _tell(f"{error.strerror}.", "Raise the limit (ulimit -n), and run it again.", as_json)
            raise typer.Exit(1) from None
        reason = str(error.strerror)
        if error.errno == errno.ENOENT and "temporary directory" in reason:  # from Python's tempfile
            _tell(f"{reason}.", "Free space there, or set TMPDIR to a writable folder.", as_json)
            raise typer.Exit(1) from None
        if error.filename is None:
            if error.errno == errno.ENOENT and _working_folder_is_gone():
                _tell("The working folder has been removed.", "Change to another folder, and run it again.", as_json)
                raise typer.Exit(1) from None
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
        _tell(f"'{name}' cannot be used: {error.strerror}.", "Check it, and its permissions.", as_json)
        raise typer.Exit(1) from None


def _working_folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def end_in_order() -> None:
    """Have a signal raise an exception from here on, as there are files, threads or processes to close.

    Call it behind the imports: code that is being imported may swallow the exception.
    """
    global ends_at_once
    ends_at_once = False


@contextmanager
def stop_first(stop: Callable[[], None]) -> Iterator[None]:
    """Have a signal call this in the block, so that what was begun is finished; behind the block, it ends the process.

    A second signal ends the block at once.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            _stop(number, frame)
        stop()

    before = {number: signal.getsignal(number) for number in _WORDS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def attentive(callback: Callable[..., None]) -> Callable[..., None]:
    """A callback that first ends the work if a signal came whose exception was swallowed.

    C code that looks for an attribute may clear whatever is raised meanwhile, and so may a bare ``except``.
    """

    def look_and_call(*arguments: Any) -> None:
        _look_again()
        callback(*arguments)

    return look_and_call


def _look_again() -> None:
    if received_signal:
        raise KeyboardInterrupt


def _tell(problem: str, remedy: str, as_json: bool) -> None:
    """Print an error for people on stderr and, where JSON was asked for, for the program on stdout."""
    print_text(problem, "error:", err=True, fg="red", bold=True)
    print_text(remedy, err=True)
    if as_json:
        print_json_error(problem, remedy)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Run a command that does not need the garbage collector, and end its process at once when it is done.

    Importing torch, timm and Transformers makes millions of objects that stay. Searching them for cycles again and
    again takes a tenth of the imports' time.
    """
    global ends_at_once
    enabled = gc.isenabled()
    gc.disable()
    ends_at_once = True
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _listen() -> None:
    for number in _WORDS:
        # A shell's background job inherits Ctrl-C ignored, and one under nohup SIGHUP: they are to go on.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    signal.signal(signal.SIGALRM, lambda number, frame: _stop(received_signal, frame))
    sys.unraisablehook = _after_unraisable


def _after_unraisable(error: sys.UnraisableHookArgs) -> None:
    """Stop again, a moment later, if Python could not raise a signal's exception, as it came within a finaliser."""
    if received_signal and error.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(error)


def _stop(number: int, frame: object) -> None:
    """End as with Ctrl-C, also when the system asks for it (SIGTERM), as containers and batch systems do, and when the
    terminal is closed (SIGHUP).

    An exception ends the process in order, unless it comes while torch or Transformers call Python: they abort, or
    turn it into another error. So a command that leaves nothing open ends right here.
    """
    global received_signal
    received_signal = number
    if not ends_at_once:
        raise KeyboardInterrupt
    discard_unfinished()
    if sys.stderr is not None and sys.stderr.isatty():
        _print_error("\r\x1b[K\x1b[?25h")  # rich's spinner has hidden the cursor
    _print_error(f"error: {_WORDS[number]}.\n{_what_was_written()}\n")
    os._exit(128 + number)


def _end(code: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # Python takes its handlers down first: an alarm would kill it
    if not _flush():
        code = code or 1
    if ends_at_once:
        os._exit(code)
    sys.exit(code)


def _flush() -> bool:
    """Write out what was printed. If that fails, report it and drop the rest, so that Python does not try again."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            done = False
            if stream is sys.stdout:
                _report_unwritable(error)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return done


def _report_unwritable(error: OSError) -> None:
    if not isinstance(error, BrokenPipeError):  # `| head` has what it wants
        _print_error(f"error: The output cannot be written: {error.strerror}.\nWrite it elsewhere.\n")


def _print_error(text: str) -> None:
    """Write to stderr past Python's buffers, which may be in use when a signal comes."""
    with suppress(OSError):
        os.write(2, text.encode())
