"""`vitconv calibrate` in words, exit codes and JSON; and what `vitconv predict` then says."""

import json
import shutil
import sys

import pytest
from commands import run
from optimizing import convert_with_margins, write_pictures

from vitconv.inference.predictions import read_predictions


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 50)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 100, first=500)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return convert_with_margins(tmp_path_factory.mktemp("made"))


@pytest.fixture
def model(made, tmp_path):
    return shutil.copytree(made, tmp_path / "trees")


def test_it_says_what_was_found_and_then_predictions_say_how_certain_they_are(model, pictures, tmp_path):
    image = next((pictures / "oak").iterdir())
    code, out, err = run("predict", model, image)
    assert code == 0 and out.splitlines()[0].split() == ["image", "class", "probability"]
    assert "note: The model is not calibrated: run `vitconv calibrate`." in err
    code, out, err = run("calibrate", model, pictures)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"✓ {model}: calibrated, and judged on 30 other images"
    assert (
        lines[1].startswith("  Calibration error: 0.")
        and "Prediction sets have the true class of 30 of 30" in lines[2]
    )
    assert lines[-1] == f"vitconv predict {model} IMAGES"
    assert err.splitlines()[0] == "Running the model over the images…"
    code, out, err = run("predict", model, image)
    assert code == 0 and "not calibrated" not in err
    heads, row = (line.split() for line in out.splitlines())
    assert heads == ["image", "class", "probability", "calibrated", "reliable"] and row[-1] == "yes"
    code, out, err = run("predict", model, image, "--json", "-q")
    (row,) = json.loads(out)["predictions"]
    assert row["reliable"] is True and row["why_not"] is None and row["prediction_set"] == ["oak"]
    code, out, err = run("predict", model, pictures, tmp_path / "out")
    reliable = sum(row["reliable"] for row in read_predictions(tmp_path / "out").rows.to_pylist())
    assert out.endswith(f"{reliable} of 100 answers are reliable\n")


def test_an_odd_image_is_named_as_such(model, pictures, tmp_path):
    assert run("calibrate", model, pictures, "-q")[0] == 0
    (tmp_path / "odd").mkdir()
    from PIL import Image

    Image.new("RGB", (32, 32), (3, 250, 250)).save(tmp_path / "odd" / "flat.png")
    (tmp_path / "odd" / "broken.png").write_bytes(b"no image")
    code, out, err = run("predict", model, tmp_path / "odd", "--max-errors", 1)
    assert code == 0
    broken, flat = out.splitlines()[1:]
    assert "no. The image is unlike those that the model was calibrated on." in flat
    assert "not an image" in broken


def test_as_json(model, pictures):
    code, out, err = run("calibrate", model, pictures, "--json", "-q")
    found = json.loads(out)
    assert code == 0 and not err
    assert found["coverage"] == 0.9 and found["images"] == {"fitted": 35, "set": 35, "judged": 30}
    assert found["figures"]["covered"]["count"] == 30 and set(found["figures"]["scores"]) == {
        "mahalanobis",
        "mahalanobis-logits",
        "energy",
        "max-logit",
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_refused_is_said_with_what_to_do(model, tmp_path, as_json):
    few = write_pictures(tmp_path / "few", 20)
    code, out, err = run("calibrate", model, few, "-q", *["--json"] * as_json)
    assert code == 1 and err.startswith(f"error: '{few}' has 20 images, of which 5 set the limits")
    assert "Pass 62 images or more" in err and len(err.splitlines()) == 2
    assert ("error" in json.loads(out)) if as_json else not out
    assert not (model / "calibration.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [
        ("--coverage", "1.5", 1, "The coverage is 1.5"),
        ("--coverage", "x", 2, "Invalid value for '--coverage'"),
        ("--batch-size", "0", 2, "Invalid value for '--batch-size'"),
        ("--processor", "mine", 2, "'mine' is not one of"),
        ("--odd", "none.csv", 1, "There is no list of images 'none.csv'"),
        ("--device", "none", 1, "none"),
    ],
)
def test_options_that_are_refused(model, pictures, monkeypatch, option, value, code, said):
    monkeypatch.setattr(sys, "argv", ["vitconv", "--json"])
    found, out, err = run("calibrate", model, pictures, option, value, "--json")
    assert found == code and said in json.loads(out)["error"]
    assert not (model / "calibration.json").exists()
