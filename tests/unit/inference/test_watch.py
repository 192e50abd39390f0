"""What tells that a model's files have changed."""

import shutil

import pytest

from vitconv.errors import CheckpointError
from vitconv.inference import predict, transformers
from vitconv.serving import open_classifier


@pytest.mark.parametrize("use", [lambda mine, images, out: open_classifier(mine, "cpu"), predict])
def test_what_a_folder_that_is_removed_meanwhile_leads_to_is_not_what_is_wrong(
    folder, write_images, tmp_path, monkeypatch, use
):
    mine = shutil.copytree(folder, tmp_path / "mine")

    def load(place):
        shutil.rmtree(place)
        raise RuntimeError("unable to open file")  # as torch does

    monkeypatch.setattr(transformers, "load_folder", load)
    with pytest.raises(CheckpointError, match="mine' have changed while the model was loaded"):
        use(mine, write_images(1), tmp_path / "out")
