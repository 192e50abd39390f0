"""A small converted model, and images for it, of which some cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import small_model
from PIL import Image

from vitconv.convert import convert_checkpoint

CLASSES = ("ash", "beech", "cedar", "oak", "pine")


def convert_small(folder: Path, destination: Path, name: str = "plain", labels: tuple[str, ...] = CLASSES) -> Path:
    """Convert the small model of this kind, which takes 32x32 pixels, without the time to prove it."""
    model = small_model(name)
    torch.save(model.state_dict(), folder / f"{name}.pth")
    convert_checkpoint(folder / f"{name}.pth", destination, architecture=model, labels=labels, verify=False)
    return destination


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model of five trees."""
    root = tmp_path_factory.mktemp("model")
    return convert_small(root, root / "trees")


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """Write a list of noisy images of several sizes, JPEG and PNG in turn, and return the CSV file.

    Args:
        count: how many.
        broken: the numbers of those that are cut off, or for every other one missing.
        labels: of each.
    """

    def write(count: int = 10, broken: tuple[int, ...] = (), labels: list[str] | None = None) -> Path:
        rng = np.random.default_rng(0)
        (tmp_path / "images").mkdir(exist_ok=True)
        lines = ["path,label" if labels else "path"]
        for i in range(count):
            name = f"images/{i:05}.{'png' if i % 2 else 'jpg'}"
            pixels = rng.integers(0, 256, (32 + i % 7, 40 - i % 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
            if i in broken and broken.index(i) % 2:
                (tmp_path / name).unlink()
            elif i in broken:
                (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
            lines.append(f"{name},{labels[i]}" if labels else name)
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "list.csv"

    return write
