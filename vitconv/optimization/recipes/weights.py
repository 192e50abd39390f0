"""Weights in another dtype, in a folder that loads as the converted one does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitconv.checkpoints.checkpoint import CONFIG_FILE
from vitconv.files import read_json, write_json
from vitconv.models.huggingface import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write ``model.safetensors``, and the weights' dtype into ``config.json``.

    Args:
        model: all of its weights in the same dtype.
        folder: holds the converted folder's ``config.json``. It stays otherwise as it is: Transformers would write one
            that its earlier versions do not read.
    """
    config = read_json(folder / CONFIG_FILE)
    with quiet():
        model.save_pretrained(folder, max_shard_size="1TB")  # one file, of any size
    write_json(config | {"dtype": str(model.dtype).removeprefix("torch.")}, folder / CONFIG_FILE)
