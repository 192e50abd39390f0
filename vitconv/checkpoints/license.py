"""The license that a source itself states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitconv.errors import InputError, VitconvError, shown
from vitconv.files import MOST_TEXT, check_file, read_json

#: The Hub's identifiers: https://huggingface.co/docs/hub/repositories-licenses
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}")


def check_license(name: str) -> str:
    """The identifier of a license, if it can be one.

    Raises:
        InputError: it cannot be one of the Hub's.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise InputError(
            f"The license {shown(name)} is not an identifier of the Hub's.",
            "Write it as in https://huggingface.co/docs/hub/repositories-licenses: apache-2.0, mit, other…",
        )
    return name


def stated_license(config: Path | None) -> str | None:
    """The license in the model card of a timm folder, or in its ``config.json``; ``None`` if none is stated there.

    timm's tags have licenses, too, but they are those of timm's weights.

    Args:
        config: the folder's ``config.json``; ``None`` for a source without one.
    """
    if config is None:
        return None
    stated = (_of_card(config.with_name("README.md")), _of_config(config))
    return next((name for name in stated if isinstance(name, str) and _IDENTIFIER.fullmatch(name)), None)


def _of_card(card: Path) -> Any:
    try:
        check_file(card, "file", most=MOST_TEXT)
        if not card.is_file():
            return None
        from huggingface_hub import ModelCard

        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except Exception:  # the card is for people, and may hold anything
        return None


def _of_config(config: Path) -> Any:
    try:
        content = read_json(config)
    except VitconvError:
        return None
    pretrained = content.get("pretrained_cfg")
    return pretrained.get("license") if isinstance(pretrained, Mapping) else None
