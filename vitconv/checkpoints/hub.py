"""Fetch a timm folder from the Hugging Face Hub, or find it in the Hub's local cache."""

from __future__ import annotations

import re
from pathlib import Path

from vitconv.errors import CheckpointError

#: What a timm model's folder holds: https://huggingface.co/docs/hub/timm
_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_PICKLE = ("config.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def download(name: str) -> Path:
    """The local folder of a model on the Hub, fetched if it is not in the cache.

    Safetensors are fetched where there are any, ``pytorch_model.bin`` or its shards otherwise. ``HF_HOME``,
    ``HF_HUB_OFFLINE``, ``HF_TOKEN`` and ``HF_ENDPOINT`` mean what they mean to every Hugging Face library.

    Args:
        name: ``"org/name"``, perhaps with ``@revision``.

    Raises:
        CheckpointError: there is no such model, it is not public, or it is not in the cache and the Hub cannot be
            reached.
    """
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise CheckpointError(
            f"'{name}' is not the name of a model on the Hub.", "Write it as hf-hub:organisation/name."
        )
    try:
        folder = _snapshot(repository, revision or None, _FILES)
        if not any(folder.glob("model*.safetensors*")):
            folder = _snapshot(repository, revision or None, _PICKLE)
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"The model '{repository}' is gated.", "Ask for access on its page, and log in with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"The Hub has no model '{name}' that you may read.", "Check its name; log in if it is private."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"'{name}' is not the name of a model on the Hub.", "Write it as hf-hub:organisation/name."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"The model '{name}' is not in the local cache, and the Hub cannot be reached.",
            "Connect to the network (and unset HF_HUB_OFFLINE), or download the folder elsewhere and pass its path.",
        ) from error
    return folder


def _snapshot(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
