"""What the commands print while they work."""

import sys

import pytest
import typer
from rich.console import Console

from vitconv.cli.output import print_notes, print_warnings, show_counted_steps
from vitconv.cli.process import errors_for_people
from vitconv.errors import InputError

NAMES = ["d[/x]", "[red]fast", "fast\\", "[/]", "esc\x1b[2J\x1b]0;title\x07", "line\nbreak"]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_step_is_text(monkeypatch, capfd, name, terminal):
    """Neither markup, nor commands for the terminal."""
    monkeypatch.setattr(Console, "is_terminal", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with show_counted_steps() as (on_step, on_progress):
        on_step(f"Loading {name}")
        on_progress(2, 0, 2)
        on_step("Measuring")
    printed = capfd.readouterr().err
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert f"Loading {shown}" in printed
    assert "\x1b[2J" not in printed and "\x07" not in printed


TEXT = "The preprocessing is an assumption: if the weights were trained with another, pass it with --data-config."


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("kind", ["note", "warning"])
def test_a_terminal_breaks_no_word_of_a_note(monkeypatch, capsys, kind, terminal):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    (print_notes if kind == "note" else print_warnings)((TEXT,))
    printed = capsys.readouterr().err
    assert printed.splitlines()[0].startswith(f"{kind}: The preprocessing")
    assert " ".join(printed.split()) == f"{kind}: {TEXT}"
    widths = [len(line) for line in printed.splitlines()]
    assert max(widths) <= 40 if terminal else widths == [len(f"{kind}: {TEXT}")]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_breaks_no_word_of_an_error(monkeypatch, capsys, terminal):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(typer.Exit), errors_for_people():
        raise InputError(TEXT, f"Remedy. {TEXT}")
    printed = capsys.readouterr().err
    assert " ".join(printed.split()) == f"error: {TEXT} Remedy. {TEXT}"
    assert "\nRemedy. " in printed
    assert (max(map(len, printed.splitlines())) <= 40) == terminal
    assert (len(printed.splitlines()) == 2) == (not terminal)


def test_an_error_without_a_stderr_is_no_other_error(monkeypatch):
    """A shell closed it."""
    monkeypatch.setattr(sys, "stderr", None)
    print_warnings((TEXT,))
