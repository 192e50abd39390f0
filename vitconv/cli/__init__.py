"""The command line: it reads the arguments, calls a function of the library, and prints the result.

Exit codes: 0 done; 1 refused or failed, with one ``error: …`` line on stderr and one on what to do; 2 wrong usage;
129 ended with SIGHUP; 130 interrupted with Ctrl-C; 143 ended with SIGTERM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitconv.cli.process import run

if TYPE_CHECKING:
    from vitconv.cli.commands import app

__all__ = ["app", "run"]


def __getattr__(name: str) -> object:
    """Import the commands when they are asked for: :func:`run` handles signals before that takes its time."""
    if name == "app":
        from vitconv.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
