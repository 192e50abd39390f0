"""What the tests of the recipes share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitconv.optimization import Limits

#: Few pictures prove little: the limits here are those of the single images.
LIMITS = Limits(disagreement=0.2)


def pixels_of(batch: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, size, size), dtype=np.float32)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Run the Python of a folder's card beside it, and return its names."""
    monkeypatch.chdir(folder.parent)
    (block,) = re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(block, names)
    return names


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
