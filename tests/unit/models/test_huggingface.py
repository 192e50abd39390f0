import json

import pytest

from vitconv.convert import convert_checkpoint
from vitconv.errors import ParityError
from vitconv.models.huggingface import installed_dialect, load_folder


def test_the_installed_dialect_is_known():
    assert installed_dialect() in ("transformers5", "hub")


def test_what_transformers_only_warns_of_is_refused(small_checkpoint, tmp_path):
    done = convert_checkpoint(small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False)
    config = json.loads((done.destination / "config.json").read_text())
    (done.destination / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 13}))
    with pytest.raises(ParityError, match=r"Transformers reports missing keys in the folder: .*layers?\.12"):
        load_folder(done.destination)
