"""The commands' help and usage errors: what Typer prints, without its notation for types."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

#: What Typer writes behind a name for the type of a value that has no name of its own.
_TYPE = re.compile(r" <(?:path|str|bool|list\[Path\])>$")


class Command(TyperCommand):
    """A command whose help fits a terminal of 80 columns, and names types only where they are a choice.

    It takes no empty values: a script may have left a variable empty, and an empty path is the current folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _of_command(ctx):
            if not ctx.resilient_parsing:
                given, _, _ = self.make_parser(ctx).parse_args(list(args))
                params: list[Any] = self.get_params(ctx)
                for param in params:
                    value = given.get(param.name)
                    if value == "" or (isinstance(value, (list, tuple)) and "" in value):
                        raise typer.BadParameter("It is empty.", ctx, param)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _of_command(ctx):
            return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            records = [
                (_TYPE.sub("", record[0]), record[1].replace("  [required]", ""))
                for param in self.get_params(ctx)
                if param.param_type_name == kind and (record := param.get_help_record(ctx)) is not None
            ]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """The commands. A usage error is printed as JSON, too, where JSON was asked for."""

    command_class = Command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _as_json_too(), _of_command(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _as_json_too():
            return super().invoke(ctx)


@contextmanager
def _of_command(ctx: Any) -> Iterator[None]:
    """Give usage errors the command that they are of, which the parser's own errors lack."""
    try:
        yield
    except Exception as error:
        if getattr(error, "exit_code", 0) == 2 and getattr(error, "ctx", ctx) is None:
            error.ctx = ctx  # type: ignore[attr-defined]
        raise


@contextmanager
def _as_json_too() -> Iterator[None]:
    """Print a usage error as JSON, too, where JSON was asked for."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "BadOptionUsage" and getattr(error, "option_name", "") == "--img-size":
            error.message = "Option '--img-size' takes height and width, as in --img-size 224 224."  # type: ignore[attr-defined]
        if getattr(error, "exit_code", 0) == 2 and hasattr(error, "format_message") and "--json" in sys.argv:
            path = getattr(getattr(error, "ctx", None), "command_path", "vitconv")
            print_json_error(error.format_message(), f"See {path} --help.")
        raise


def print_json_error(problem: str, remedy: str) -> None:
    """Print an error as JSON on stdout, for a program that asked for JSON."""
    typer.echo(json.dumps({"error": problem, "remedy": remedy}, indent=2))
