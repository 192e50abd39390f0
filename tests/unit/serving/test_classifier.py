import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vitconv.errors import CheckpointError, InputError
from vitconv.inference import predict
from vitconv.inference.predictions import read_predictions
from vitconv.serving import classifier as serving_classifier
from vitconv.serving import open_classifier


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several formats, sizes and modes."""
    made = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i, (mode, suffix) in enumerate(
        [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("RGB", "jpg"), ("CMYK", "jpg")]
    ):
        values = random.integers(0, 256, (40 + 7 * i, 61, len(mode)), np.uint8).squeeze()
        Image.fromarray(values, mode).save(made / f"{i}.{suffix}")
    return made


def test_the_answers_are_those_of_predict_bit_for_bit(folder, photos, tmp_path):
    predict(folder, photos, tmp_path / "out", batch_size=1)
    rows = read_predictions(tmp_path / "out").rows.to_pylist()
    classifier = open_classifier(folder)
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda row: classifier((photos / row["path"]).read_bytes()), rows))
    assert len(rows) == 5
    for row, found in zip(rows, answers, strict=True):
        assert found.to_dict() == {name: row[name] for name in found.to_dict()}


def test_what_is_no_image_is_refused(folder, photos):
    classifier = open_classifier(folder)
    for content in (b"", b"no image", (photos / "3.jpg").read_bytes()[:100]):
        with pytest.raises(InputError, match=r"The image .*not an image that can be read"):
            classifier(content)


@pytest.mark.parametrize("after", ["open_preprocessor", "read_certainty"])
def test_a_folder_that_is_replaced_while_it_is_opened(folder, tmp_path, monkeypatch, after):
    """Old weights with the new image processor would answer something else than either model."""
    place = shutil.copytree(folder, tmp_path / "trees")
    real = getattr(serving_classifier, after)

    def replacing(*arguments):
        file = place / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.9, 0.9, 0.9]}))
        return real(*arguments)

    monkeypatch.setattr(serving_classifier, after, replacing)
    with pytest.raises(CheckpointError, match="have changed while the model was loaded"):
        open_classifier(place)


def test_a_folder_that_is_replaced_and_put_back_while_it_is_opened(folder, tmp_path, monkeypatch):
    """The model at the end is that of the beginning, and what was read between is another one's."""
    place = shutil.copytree(folder, tmp_path / "trees")
    real = serving_classifier.open_preprocessor

    def replacing(*arguments):
        file = place / "preprocessor_config.json"
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | {"image_mean": [0.9, 0.9, 0.9]}))
        opened = real(*arguments)
        file.write_text(before)
        return opened

    monkeypatch.setattr(serving_classifier, "open_preprocessor", replacing)
    with pytest.raises(CheckpointError, match="have changed while the model was loaded"):
        open_classifier(place)


def test_large_images_wait_for_each_other(folder, photos):
    """Each may take as much memory as is allowed for all."""
    classifier, at_once, most = open_classifier(folder), [], []
    prepare = classifier.preprocessor.prepare

    class Counted:
        def prepare(self, image):
            at_once.append(1)
            most.append(len(at_once))
            time.sleep(0.1)
            at_once.pop()
            return prepare(image)

    image = io.BytesIO()
    Image.new("RGB", (8192, 4096)).save(image, "PNG")
    classifier = replace(classifier, preprocessor=Counted())
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(classifier.prepare, [image.getvalue()] * 3))
    assert max(most) == 1
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(classifier.prepare, [(photos / "3.jpg").read_bytes()] * 3))
    assert max(most) > 1
