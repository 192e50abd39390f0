"""A command as a process: its signals, its exit codes, its end."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from vitconv.cli.output import printable
from vitconv.errors import VitconvError

#: Whether nothing is left to do when a command is done: no threads, no processes, no files.
ends_at_once = False
#: Whether SIGTERM has come.
told_to_end = False


def _terminate(number: int, frame: object) -> None:
    """End as with Ctrl-C when the system asks for it (SIGTERM), as containers and batch systems do."""
    global told_to_end
    told_to_end = True
    raise KeyboardInterrupt


def run_process(command: typer.Typer) -> None:
    """Run a command as a process of its own.

    Python takes 1.5 s to take down what importing torch, timm and Transformers built, which helps nobody: the commands
    that leave nothing open end without it.
    """
    signal.signal(signal.SIGTERM, _terminate)  # so that half-written output is removed
    try:
        command()
    except SystemExit as end:
        if not ends_at_once or not isinstance(end.code, (int, type(None))):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    except BaseException:  # an import in Transformers turns the signal's exception into one of its own
        if not told_to_end:
            raise
        typer.echo("error: Terminated.", err=True)
        sys.exit(143)


@contextmanager
def errors_for_people(interrupted: Callable[[], str] = lambda: "Nothing was written.") -> Iterator[None]:
    """Turn vitconv's exceptions into two lines on stderr and exit code 1.

    An interrupt (Ctrl-C) gives exit code 130 and SIGTERM 143, as in shells.

    Args:
        interrupted: returns a sentence on what an interrupt leaves behind.
    """
    try:
        yield
    except (VitconvError, KeyboardInterrupt) as error:
        if isinstance(error, VitconvError) and not told_to_end:
            typer.echo(f"error: {printable(error.problem)}\n{printable(error.remedy)}", err=True)
            raise typer.Exit(1) from None
        typer.echo(f"error: {'Terminated' if told_to_end else 'Interrupted'}.\n{interrupted()}", err=True)
        raise typer.Exit(143 if told_to_end else 130) from None


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
