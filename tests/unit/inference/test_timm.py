"""The timm model of a checkpoint over images, judged by what timm itself makes of them."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import CLASSES
from PIL import Image
from timm.data import create_transform, resolve_data_config

from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, InputError
from vitconv.inference import batch_prediction, predict
from vitconv.inference.batch_prediction import predict_timm
from vitconv.inference.predictions import read_predictions
from vitconv.inference.timm import read_timm_info
from vitconv.source import SourceOptions, identify

ARCH = SourceOptions("vit_tiny_patch16_224")


def timms_own(checkpoint, file):
    """The logits of one image file, with timm's functions alone."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    with torch.no_grad():
        return model(transform(Image.open(file).convert("RGB"))[None])[0].numpy()


@pytest.fixture
def photos(tmp_path):
    """Photos of mixed sizes; Transformers crops the second one otherwise, and blends the third one's transparency."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (300, 250)), ("b.png", (255, 248)), ("c.png", (260, 400))):
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        if name == "c.png":
            image.putalpha(90)
        image.save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_every_image_gets_timms_pixels_and_timms_logits(small_checkpoint, photos, tmp_path):
    summary = predict_timm(small_checkpoint, photos, tmp_path / "out", classes=CLASSES, options=ARCH, batch_size=1)
    assert (summary.rows, summary.errors) == (3, 0)
    made = read_predictions(tmp_path / "out")
    for row in made.rows.to_pylist():
        expected = timms_own(small_checkpoint, photos / row["path"])
        assert np.abs(np.array(row["logits"]) - expected).max() <= 1e-5 * np.abs(expected).max()
        assert row["class"] == CLASSES[expected.argmax()]
        assert row["note"] is None
    assert made.run.settings["runtime"] == "timm" and made.run.settings["processor"] == "timm"


def test_the_converted_model_differs_only_where_it_says_so(small_checkpoint, photos, tmp_path):
    convert_checkpoint(small_checkpoint, tmp_path / "model", architecture=ARCH.architecture, labels=CLASSES)
    predict(tmp_path / "model", photos, tmp_path / "ours")
    predict_timm(small_checkpoint, photos, tmp_path / "theirs", classes=CLASSES, options=ARCH)
    ours, theirs = read_predictions(tmp_path / "ours"), read_predictions(tmp_path / "theirs")
    differences = np.abs(ours.logits() - theirs.logits()).max(axis=1)
    notes = [note is not None for note in ours.rows["note"].to_pylist()]
    assert notes == [False, True, True]
    assert [bool(difference > 1e-3) for difference in differences] == notes


def test_a_run_continues_where_it_stopped(small_checkpoint, photos, tmp_path):
    options = {"classes": CLASSES, "options": ARCH}
    predict_timm(small_checkpoint, photos, tmp_path / "out", **options)
    assert predict_timm(small_checkpoint, photos, tmp_path / "out", **options).found == 3


@pytest.mark.slow
def test_other_weights_are_another_run(small_checkpoint, photos, tmp_path):
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(small_checkpoint.read_bytes())
    options = {"classes": CLASSES, "options": ARCH, "overwrite": True}
    predict_timm(checkpoint, photos, tmp_path / "out", **options)
    before = read_predictions(tmp_path / "out").logits()
    weights = torch.load(checkpoint, weights_only=True)
    weights["head.bias"] += 1
    torch.save(weights, checkpoint)
    assert predict_timm(checkpoint, photos, tmp_path / "out", **options).found == 0
    assert np.allclose(read_predictions(tmp_path / "out").logits(), before + 1, atol=1e-5)


def test_a_checkpoint_with_another_number_of_classes_is_refused(small_checkpoint, photos, tmp_path):
    with pytest.raises(InputError, match="has 5 classes, the converted model 2") as caught:
        predict_timm(small_checkpoint, photos, tmp_path / "out", classes=("a", "b"), options=ARCH)
    assert caught.value.remedy == "Pass the checkpoint that the folder was converted from."
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_no_image_file_fits_is_refused(photos, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, in_chans=4)
    torch.save(model.state_dict(), tmp_path / "four.pth")
    with pytest.raises(InputError, match="Image files have 1 or 3 channels, but the checkpoint .* has 4"):
        predict_timm(tmp_path / "four.pth", photos, tmp_path / "out", classes=CLASSES, options=ARCH)


def test_a_checkpoint_that_is_replaced_meanwhile_is_refused(small_checkpoint, photos, tmp_path, monkeypatch):
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(small_checkpoint.read_bytes())

    class Replaced(batch_prediction.TimmRuntime):
        def __call__(self, pixels):
            checkpoint.write_bytes(small_checkpoint.read_bytes())
            return super().__call__(pixels)

    monkeypatch.setattr(batch_prediction, "TimmRuntime", Replaced)
    with pytest.raises(CheckpointError, match="The files in '.*mine.pth' have changed while the model ran"):
        predict_timm(checkpoint, photos, tmp_path / "out", classes=CLASSES, options=ARCH)


def test_what_the_checkpoint_says_of_preprocessing_counts(photos, tmp_path):
    """Of a timm folder with its config.json, as `save_for_hf` writes it."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.7, "num_classes": 5}
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    predict_timm(tmp_path / "timm", photos, tmp_path / "out", classes=CLASSES, batch_size=1)
    said = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    assert said["crop_pct"] == 0.7
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=said), is_training=False)
    for row in read_predictions(tmp_path / "out").rows.to_pylist():
        with torch.no_grad():
            expected = model(transform(Image.open(photos / row["path"]).convert("RGB"))[None])[0].numpy()
        assert np.abs(np.array(row["logits"]) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("fact", [{"crop_pct": 0.8}, {"std": [0.5, 0.5, 0.4]}, {"interpolation": "bilinear"}])
def test_the_fingerprint_depends_on_every_fact(fact, small_checkpoint):
    def fingerprint(**given):
        options = SourceOptions("vit_tiny_patch16_224", data=given)
        return read_timm_info(small_checkpoint, identify(small_checkpoint, options), CLASSES, ["0" * 64])[
            0
        ].fingerprint

    assert fingerprint(crop_pct=0.9) == fingerprint(crop_pct=0.9)
    assert fingerprint(**{"crop_pct": 0.9, **fact}) != fingerprint(crop_pct=0.9)
