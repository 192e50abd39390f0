import json
import shutil

import pytest

from vitconv.errors import CheckpointError, InputError
from vitconv.evaluation import about
from vitconv.evaluation.about import describe
from vitconv.inference import predict
from vitconv.inference.predictions import Parts, Run, read_predictions
from vitconv.inference.runtime import read_info


@pytest.fixture
def predicted(folder, write_images, tmp_path):
    """The images and their predictions."""
    images = write_images(2)
    predict(folder, images, tmp_path / "predictions", device="cpu")
    return images, tmp_path / "predictions"


def test_the_model_is_told_with_its_digest_the_versions_and_the_date(folder, predicted):
    images, predictions = predicted
    about = describe(folder, images, predictions)
    assert about["model"] == str(folder) and about["images"] == str(images)
    assert about["model's SHA-256"] == f"{read_info(folder).fingerprint[:16]}…"
    assert about["class"].startswith("ViTForImageClassification")
    assert about["compared with"] == "nothing"
    assert "transformers " in about["versions"] and about["predicted on"].startswith("cpu, ")
    assert about["date"].endswith(" UTC")


@pytest.mark.parametrize("digests", [5, {"a": 1}, [[1]], None])
def test_the_digests_of_a_part_that_was_written_anew(folder, predicted, digests, tmp_path):
    images, predictions = predicted
    folder = shutil.copytree(folder, tmp_path / "mine")
    record = json.loads((folder / "parity.json").read_text())
    record["source"][0]["sha256"] = "0" * 64
    (folder / "parity.json").write_text(json.dumps(record))
    answers = read_predictions(predictions)
    run = Run(
        {**answers.run.settings, "runtime": "timm", "source": "a.pth", "source_sha256": digests}, answers.run.classes
    )
    Parts(tmp_path / "expected", run, 1, overwrite=False).write(0, answers.rows, "key")
    found = describe(folder, images, predictions, tmp_path / "expected")["compared with"]
    assert found.startswith("the timm model of a.pth") and ("another file" in found) == isinstance(digests, list)


def test_a_model_that_did_not_make_the_predictions_is_refused(predicted, folder, tmp_path):
    images, predictions = predicted
    (tmp_path / "other").mkdir()
    for file in folder.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"hidden_dropout_prob"', ' "hidden_dropout_prob"'))
    with pytest.raises(InputError, match="were not made with the model in '.*other' as it is now"):
        describe(tmp_path / "other", images, predictions)


def test_a_model_that_is_replaced_meanwhile_is_refused(predicted, folder, tmp_path, monkeypatch):
    """The report would have the fingerprint of one model, and what the record of another says."""
    images, predictions = predicted
    mine = shutil.copytree(folder, tmp_path / "mine")
    record = json.loads((mine / "parity.json").read_text())
    right = about.read_info

    def replace(place):
        found = right(place)
        (mine / "parity.json").write_text(json.dumps(record | {"architecture": "vit_base_patch16_224"}))
        return found

    monkeypatch.setattr(about, "read_info", replace)
    with pytest.raises(CheckpointError, match="mine' have changed while they were read"):
        describe(mine, images, predictions)
