import pytest

from vitconv.errors import InputError
from vitconv.evaluation.about import describe
from vitconv.inference import predict
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


def test_a_model_that_did_not_make_the_predictions_is_refused(predicted, folder, tmp_path):
    images, predictions = predicted
    (tmp_path / "other").mkdir()
    for file in folder.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"hidden_dropout_prob"', ' "hidden_dropout_prob"'))
    with pytest.raises(InputError, match="were not made with the model in '.*other' as it is now"):
        describe(tmp_path / "other", images, predictions)
