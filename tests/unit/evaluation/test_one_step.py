"""One command from a folder and images to the report: with a source, with answers from elsewhere, with neither."""

import json

import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image
from safetensors.torch import load_file, save_file

from vitconv.convert import convert_checkpoint
from vitconv.errors import InputError
from vitconv.evaluation import evaluate_model
from vitconv.inference.predictions import read_predictions
from vitconv.source import SourceOptions


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 50)


@pytest.fixture(scope="module")
def model(small_checkpoint, tmp_path_factory):
    """The checkpoint of ``vit_tiny_patch16_224``, converted and proved."""
    destination = tmp_path_factory.mktemp("model") / "tiny"
    convert_checkpoint(small_checkpoint, destination, architecture="vit_tiny_patch16_224", labels=CLASSES)
    return destination


@pytest.fixture
def photos(tmp_path):
    """Photos of mixed sizes in a subfolder a class; Transformers crops ``oak/shifted.png`` otherwise."""
    rng = np.random.default_rng(1)
    for name, size in (("ash/a.png", (300, 250)), ("ash/b.jpg", (248, 300)), ("oak/shifted.png", (255, 248))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def summary_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_a_source_is_compared_with_all_decimals_and_no_false_alarm(model, small_checkpoint, photos, tmp_path):
    """Neither the architecture nor thresholds are given: parity.json knows the one, and the others are defaults."""
    done = evaluate_model(model, photos, tmp_path / "report", source=small_checkpoint)
    assert done.passed and {one.name for one in done.thresholds} == {
        "agreement",
        "not_compared",
        "max_logit_difference",
    }
    assert (done.metrics["compared"], done.metrics["known_differences"]) == (2, 1)
    assert done.metrics["max_logit_difference"] < 1e-5
    (known,) = done.known_differences()
    assert known["path"] == "oak/shifted.png" and known["reason"].startswith("Transformers begins the crop one pixel")
    assert known["max_logit_difference"] > 1e-3
    text = " ".join(done.sentences())
    assert "2 of 2 images get the expected answer" in text
    assert "1 image was not compared, because Transformers is known to prepare" in text and "oak/shifted.png." in text
    assert "--processor timm" in text
    assert done.outcomes.labels.tolist() == [0, 0, 3]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "oak/shifted.png" in page and "Passed" in page
    assert summary_of(tmp_path / "report")["about"]["compared with"].startswith(
        f"the timm model of {small_checkpoint}"
    )


def test_with_timms_processor_every_image_is_compared(model, small_checkpoint, photos, tmp_path):
    done = evaluate_model(model, photos, tmp_path / "report", source=small_checkpoint, processor="timm")
    assert (done.metrics["compared"], done.metrics["known_differences"]) == (3, 0)
    assert done.passed and done.metrics["max_logit_difference"] < 1e-5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"crop_pct": 0.95}, "Transformers begins the crop of every image one pixel earlier."),  # 235 - 224 is 11
        ({"crop_mode": "border"}, "The model has no image processor of Transformers."),
    ],
)
def test_where_no_image_could_be_compared_timms_pixels_are_taken(data, reason, small_checkpoint, photos, tmp_path):
    """The report says so. Without anything to compare with, and where it was chosen, the processor stays."""
    given = {"architecture": "vit_tiny_patch16_224", "labels": CLASSES, "verify": False}
    convert_checkpoint(small_checkpoint, tmp_path / "hf", data=data, **given)
    steps = []
    run = {"source": small_checkpoint, "on_step": steps.append}
    done = evaluate_model(tmp_path / "hf", photos, tmp_path / "report", **run)
    assert done.passed and (done.metrics["compared"], done.metrics["known_differences"]) == (3, 0)
    assert done.about["pixels"].endswith(reason)
    assert reason.removesuffix(".") in (tmp_path / "report" / "index.html").read_text()
    assert steps[0] == "Running the converted model with timm's pixels"
    if "crop_pct" in data:
        done = evaluate_model(tmp_path / "hf", photos, tmp_path / "report", processor="transformers", **run)
        assert (done.metrics["compared"], "pixels" in done.about) == (0, False)
        assert "pixels" not in evaluate_model(tmp_path / "hf", photos, tmp_path / "report").about


def test_a_model_that_answers_otherwise_is_not_passed(model, small_checkpoint, photos, tmp_path):
    """Of the weights in the folder, one class is edited after the conversion."""
    edited = tmp_path / "edited"
    edited.mkdir()
    for file in model.iterdir():
        (edited / file.name).write_bytes(file.read_bytes())
    weights = load_file(edited / "model.safetensors")
    weights["classifier.weight"][2] *= -1
    save_file(weights, edited / "model.safetensors", {"format": "pt"})
    done = evaluate_model(edited, photos, tmp_path / "report", source=small_checkpoint)
    assert not done.passed
    assert {one.name for one in done.thresholds if not one.passed} >= {"max_logit_difference"}
    assert "Not passed" in (tmp_path / "report" / "index.html").read_text()


def test_a_checkpoint_of_other_weights_is_told(model, small_checkpoint, photos, tmp_path):
    weights = torch.load(small_checkpoint, weights_only=True)
    weights["head.bias"] += torch.arange(5)
    torch.save(weights, tmp_path / "other.pth")
    done = evaluate_model(model, photos, tmp_path / "report", source=tmp_path / "other.pth")
    assert not done.passed
    assert done.about["compared with"].endswith("; the model was converted from another file")


def test_without_source_and_labels_there_are_fewer_figures(model, photos, tmp_path):
    done = evaluate_model(model, photos / "ash", tmp_path / "report")
    assert done.metrics == {"images": 2, "errors": 0, "thresholds_missed": 0}
    assert (done.thresholds, done.skipped) == ((), ("agreement", "not_compared", "max_logit_difference"))
    assert done.sentences() == [
        "There was nothing to compare with: no expected answers, and no labels.",
        done.sentences()[1],
    ]
    assert (tmp_path / "report" / "index.html").exists()


def test_a_threshold_that_was_given_must_have_something_to_judge(model, photos, tmp_path):
    with pytest.raises(InputError, match="There is a threshold for 'accuracy', but this metric was not computed"):
        evaluate_model(model, photos / "ash", tmp_path / "report", thresholds={"accuracy": {"min": 0.5}})


def test_one_image(model, small_checkpoint, photos, tmp_path):
    done = evaluate_model(model, photos / "ash" / "a.png", tmp_path / "report", source=small_checkpoint)
    assert done.passed and done.metrics["compared"] == 1


def test_subfolders_that_are_no_classes_are_no_labels(model, photos, tmp_path):
    (photos / "oak").rename(photos / "holidays")
    assert evaluate_model(model, photos, tmp_path / "report").outcomes.labels is None


def test_subfolders_must_be_classes_where_that_is_said(model, photos, tmp_path):
    (photos / "oak").rename(photos / "holidays")
    with pytest.raises(InputError, match="name a class that the model does not have: 'holidays'"):
        evaluate_model(model, photos, tmp_path / "report", labels_from="folders")
    with pytest.raises(InputError, match="has no subfolders with images, whose names could be labels"):
        evaluate_model(model, photos / "ash", tmp_path / "report", labels_from="folders")


def test_labels_can_be_left_out(model, photos, tmp_path):
    assert evaluate_model(model, photos, tmp_path / "report", labels_from="nothing").outcomes.labels is None


def test_a_page_of_an_earlier_run_does_not_stay(model, photos, tmp_path):
    evaluate_model(model, photos, tmp_path / "report")
    (photos / "ash" / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="broken.png"):
        evaluate_model(model, photos, tmp_path / "report")
    assert not (tmp_path / "report" / "index.html").exists()
    assert not (tmp_path / "report" / "report.md").exists()


def test_unreadable_images_of_both_models_are_no_missing_answers(model, small_checkpoint, photos, tmp_path):
    (photos / "ash" / "broken.png").write_bytes(b"no image")
    done = evaluate_model(model, photos, tmp_path / "report", source=small_checkpoint, max_errors=1)
    assert (done.metrics["errors"], done.metrics["not_compared"]) == (1, 0)
    assert done.passed


def test_a_source_and_expected_answers_are_one_too_many(model, small_checkpoint, photos, tmp_path):
    with pytest.raises(InputError, match="two things to compare with"):
        evaluate_model(model, photos, tmp_path / "r", source=small_checkpoint, expected=tmp_path / "expected.csv")
    assert not (tmp_path / "r").exists()


def test_what_the_options_say_goes_before_what_the_folder_records(model, small_checkpoint, photos, tmp_path):
    """Another preprocessing of the timm model shows in its answers."""
    options = SourceOptions(data={"mean": [0.1, 0.1, 0.1]})
    done = evaluate_model(model, photos, tmp_path / "report", source=small_checkpoint, options=options)
    assert not done.passed
    assert read_predictions(tmp_path / "report" / "timm").classes == CLASSES


def test_a_wrapper_is_compared_with_the_timm_model_that_its_record_names(wrapped, photos, tmp_path):
    done = evaluate_model(wrapped[1], photos, tmp_path / "report", source=wrapped[0])
    assert done.passed
