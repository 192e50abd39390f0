"""What the commands print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


def printable(text: str | Path) -> str:
    """The text with what cannot be printed escaped.

    Control characters in a name could command the terminal, and bytes that are not UTF-8 cannot be written.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def print_rich(renderable: object) -> None:
    """Print an object of rich; piped output is for other programs and is not wrapped."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(renderable)


def print_notes(notes: tuple[str, ...]) -> None:
    """Print notes on stderr."""
    for note in notes:
        typer.echo(f"note: {printable(note)}", err=True)


def print_warnings(warnings: tuple[str, ...]) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        typer.echo(f"warning: {printable(warning)}", err=True)


@contextmanager
def show_steps() -> Iterator[Callable[[str], None]]:
    """A function that shows the current step on stderr: a spinner on a terminal, a line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("Starting") as status:
            yield lambda step: status.update(f"{step}…")
    else:
        yield lambda step: typer.echo(f"{step}…", err=True)


@contextmanager
def show_count(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A function that shows on stderr how many are done, how many failed, and the total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = time.monotonic()

    def text(errors: int) -> str:
        return f"{what}, {errors:,} unreadable" if errors else what

    def print_sometimes(done: int, errors: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown > 10:
            shown = time.monotonic()
            typer.echo(f"{text(errors)}: {done:,} of {total:,}…", err=True)

    if not console.is_terminal:
        yield print_sometimes
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, errors, total: bar.update(task, completed=done, total=total, description=text(errors))
