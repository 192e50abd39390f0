"""What the commands print."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


def printable(text: str | Path) -> str:
    """The text with what cannot be printed escaped.

    Control characters in a name could command the terminal, and bytes that are not UTF-8 cannot be written.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def styled(text: str, **style: Any) -> str:
    """The text in a style, which ``typer.echo`` leaves out where it does not print on a terminal.

    Nor is there one where ``NO_COLOR`` is set: https://no-color.org
    """
    return text if os.environ.get("NO_COLOR") else typer.style(text, **style)


def print_rich(renderable: object) -> None:
    """Print an object of rich; piped output is for other programs and is neither wrapped nor cut."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(renderable)


def print_json(content: object) -> None:
    """Print what a program asked for."""
    typer.echo(json.dumps(content, indent=2))


def print_done(headline: str, facts: Iterable[str] = (), then: Iterable[str] = ()) -> None:
    """Print the last block of a command: what was done, the facts on it, and what to do next.

    Args:
        headline: what was done, in a few words.
        facts: ``name: value``; a line each, wrapped on a terminal.
        then: lines to copy, which are never wrapped. Those that do not begin with a space are headings.
    """
    typer.echo(styled(f"✓ {printable(headline)}", fg="green", bold=True))
    for fact in facts:
        for line in _wrapped(printable(fact), "  ", "    "):
            name, colon, value = line.partition(": ")
            known = colon and line.startswith("  ") and not line.startswith("   ")
            typer.echo(styled(name + colon, dim=True) + value if known else line)
    for line in map(printable, then):
        typer.echo(line if line.startswith(" ") else styled(line, bold=True))


def print_moves(moves: Iterable[tuple[str, str, str]]) -> None:
    """Print what each tensor becomes: (name, name in Transformers, shape)."""
    print_columns(
        ("timm", "Transformers (in files)", "shape"),
        moves,
        lambda name, place, shape: f"{name}  {shape}\n  → {place}",
    )


def print_columns(headings: Sequence[str], rows: Iterable[Sequence[str]], narrow: Callable[..., str]) -> None:
    """Print rows of cells in columns, where a line has room for them.

    On a narrower terminal each is printed as ``narrow`` writes its cells, without headings: a name is neither cut nor
    broken.
    """
    lines = [headings, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 2 * (len(widths) - 1) > shutil.get_terminal_size().columns:
        for cells in lines[1:]:
            typer.echo(narrow(*cells))
        return
    for number, cells in enumerate(lines):
        padded = "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        typer.echo(styled(padded.rstrip(), bold=number == 0))


def print_names(title: str, names: Iterable[str]) -> None:
    """Print names below a title: in lines as wide as a terminal, one a line elsewhere."""
    for line in _wrapped(printable(title), "", "  "):
        typer.echo(styled(line, bold=True))
    if sys.stdout.isatty():
        for line in _wrapped(", ".join(names), "  ", "  "):
            typer.echo(line)
    else:
        for name in names:
            typer.echo(f"  {name}")


def _wrapped(text: str, first: str, rest: str, *, err: bool = False) -> list[str]:
    """The text in lines that a terminal does not break; one line elsewhere.

    Args:
        err: whether it is printed on stderr.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None or not stream.isatty():
        return [first + text]
    width = shutil.get_terminal_size().columns
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    ) or [first]


def print_text(text: str, label: str = "", *, err: bool = False, **style: Any) -> None:
    """Print a text, which no terminal breaks within a word.

    Args:
        text: what to print.
        label: a word before it, in the style.
        err: whether to print it on stderr.
        style: as for :func:`styled`.
    """
    first, *rest = _wrapped(printable(text), f"{label} " if label else "", "", err=err)
    shown = styled(label, **style) if style else label
    typer.echo("\n".join([shown + first.removeprefix(label), *rest]), err=err)


def print_notes(notes: tuple[str, ...], *, quiet: bool = False) -> None:
    """Print notes on stderr, unless the command is to be quiet."""
    for note in () if quiet else notes:
        print_text(note, "note:", err=True)


def print_warnings(warnings: tuple[str, ...]) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        print_text(warning, "warning:", err=True, fg="yellow", bold=True)


def warn_of_others(address: str, does: str) -> None:
    """Warn of what a server does for other computers, if they can reach the address."""
    if not ipaddress.ip_address(address).is_loopback:
        print_warnings((f"Other computers can reach this server. It {does}.",))


def in_url(address: str) -> str:
    """An address as a URL has it."""
    return f"[{address}]" if ":" in address else address


def log_to_stderr(wanted: bool) -> None:
    """Print what vitconv logs, such as each file that it reads: for the option ``--verbose``."""
    logger = logging.getLogger("vitconv")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _ToStderr)]:
        logger.removeHandler(handler)
    logger.setLevel(logging.INFO if wanted else logging.NOTSET)
    if wanted:
        logger.addHandler(_ToStderr())


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.name}: {printable(record.getMessage())}", err=True)


@contextmanager
def show_steps(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A function that shows the current step on stderr: see :func:`show_counted_steps`."""
    with show_counted_steps(quiet) as (on_step, _):
        yield on_step


@contextmanager
def show_counted_steps(
    quiet: bool = False,
) -> Iterator[tuple[Callable[[str], None], Callable[[int, int, int], None]]]:
    """Two functions that show on stderr the current step, and of it how many are done, how many failed, and the total.

    On a terminal a spinner, and a line with its seconds when the step is done; elsewhere a line when it begins.
    Nothing if the command is to be quiet.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    running, begun = "", time.monotonic()
    if quiet:
        yield lambda step: None, lambda done, errors, total: None
        return
    if not console.is_terminal:

        def say(step: str) -> None:
            nonlocal running
            running = printable(step)
            typer.echo(f"{running}…", err=True)

        yield say, _print_sometimes(lambda: running)
        return

    def end(mark: str) -> None:
        if running:
            console.print(f"{mark} {running} [dim]{time.monotonic() - begun:.1f} s[/dim]")

    def begin(step: str) -> None:
        nonlocal running, begun
        end("[green]✓[/green]")
        running, begun = escape(printable(step)), time.monotonic()
        status.update(f"{running}…")

    def count(done: int, errors: int, total: int) -> None:
        status.update(_counted(running, done, errors, total))

    with console.status("Starting") as status:
        try:
            yield begin, count
        except BaseException:
            end("[red]✗[/red]")
            raise
        end("[green]✓[/green]")


def _counted(what: str, done: int, errors: int, total: int) -> str:
    unreadable = f", {errors:,} unreadable" if errors else ""
    return f"{what}{unreadable}: {done:,} of {total:,}…"


def _print_sometimes(what: Callable[[], str]) -> Callable[[int, int, int], None]:
    """A function that prints a count on stderr: the last one, and one every ten seconds."""
    shown = time.monotonic()

    def print_count(done: int, errors: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown > 10:
            shown = time.monotonic()
            typer.echo(_counted(what(), done, errors, total), err=True)

    return print_count


@contextmanager
def show_count(what: str, quiet: bool = False) -> Iterator[Callable[[int, int, int], None]]:
    """A function that shows on stderr how many are done, how many failed, and the total: on a terminal as a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet:
        yield lambda done, errors, total: None
        return
    if not console.is_terminal:
        yield _print_sometimes(lambda: what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, errors: int, total: int) -> None:
            unreadable = f", {errors:,} unreadable" if errors else ""
            bar.update(task, completed=done, total=total, description=what + unreadable)

        yield update
