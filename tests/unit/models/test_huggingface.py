import json

import pytest
import torch
from models import reduced

from vitconv.convert import convert_checkpoint, to_huggingface
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


def test_the_constants_of_every_block_are_those_that_transformers_makes():
    """Where the model was built without weights: rotary frequencies, and the places of the patches."""
    model = to_huggingface(reduced("vit_pe_lang_gigantic_patch14_448").float(), verify=False)
    made, fresh = dict(model.named_buffers()), dict(type(model)(model.config).named_buffers())
    assert made.keys() == fresh.keys() and "layers.1.position_ids" in made
    assert all(torch.equal(made[name], fresh[name]) for name in made)
