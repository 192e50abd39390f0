"""Public names that need optional packages: a missing package is reported when the name is called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vitconv.errors import InputError, first_few, how_to_install


def load(module: str, name: str, packages: Sequence[str], extra: str = "evaluate") -> Any:
    """A function of a module; where packages are missing, one that raises :class:`InputError` when it is called.

    Args:
        module: where the function is.
        name: what it is called there.
        packages: what it needs.
        extra: the extra of pyproject.toml that installs them.
    """
    missing = [package for package in packages if _is_missing(package)]
    if not missing:
        return getattr(import_module(module), name)

    def unavailable(*arguments: object, **options: object) -> None:
        raise InputError(
            f"{name} needs packages that are not installed: {first_few(missing)}.",
            f"Install them with {how_to_install(extra)}.",
        )

    return unavailable


def _is_missing(package: str) -> bool:
    try:
        return find_spec(package) is None
    except ModuleNotFoundError:  # the package that it is in is missing, too
        return True
