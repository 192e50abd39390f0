"""Fixtures, and an environment in which nothing asks the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import HUB_REVISION, full_model


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ``vit_tiny_patch16_224`` with 5 classes."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(full_model("vit_tiny_patch16_224", num_classes=5).state_dict(), path)
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save something with ``torch.save`` and return its path."""

    def save(content: Any, name: str = "weights.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """The Hub's local cache, offline; call it to put the model ``our/roofs`` there as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(files: dict[str, bytes]) -> None:
        model = tmp_path / "hub" / "models--our--roofs"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(HUB_REVISION)
        (model / "snapshots" / HUB_REVISION).mkdir(parents=True)
        (model / "blobs").mkdir()
        for number, (name, content) in enumerate(files.items()):
            (model / "blobs" / str(number)).write_bytes(content)
            (model / "snapshots" / HUB_REVISION / name).symlink_to(f"../../blobs/{number}")

    return put


#: What the models in that cache are at.
