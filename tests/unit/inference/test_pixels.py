"""That a folder's image processor works is tried when it is opened. The pixels: unit/models/test_preprocessing.py."""

import json
import shutil

import pytest
from PIL import Image

from vitconv.errors import CheckpointError, InputError
from vitconv.inference import open_preprocessor, read_info


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5] * 4},
        {"do_pad": True, "pad_size": {"height": 100_000, "width": 100_000}},
        {"size": {"shortest_edge": 0}},
        {"resample": 99},
        {"rescale_factor": "a"},
        {"image_std": [0, 0.5, 0.5]},
        {"image_mean": [float("nan")] * 3},
        {"rescale_factor": 1e300},
        {"do_center_crop": False},
    ],
    ids=str,
)
def test_a_processor_that_cannot_prepare_a_plain_image_is_to_blame(folder, tmp_path, settings):
    edited = shutil.copytree(folder, tmp_path / "edited")
    file = edited / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(CheckpointError, match=f"'{edited}' cannot prepare a plain image: ") as refused:
        open_preprocessor(read_info(edited))
    assert refused.value.remedy == "Restore preprocessor_config.json, or convert the source again."


def test_an_image_that_the_processor_cannot_prepare_is_named(folder, tmp_path):
    edited = shutil.copytree(folder, tmp_path / "edited")
    file = edited / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_convert_rgb": False}))
    Image.new("L", (40, 50)).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="grey.png' cannot be prepared: "):
        open_preprocessor(read_info(edited))(tmp_path / "grey.png")
