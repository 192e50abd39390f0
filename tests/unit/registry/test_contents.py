"""What is registered of a folder: only of one that vitconv can read."""

import json
import os
import shutil

import pytest
import torch
from conftest import CLASSES, convert_small
from models import small_model
from optimizing import reseal
from safetensors.torch import load_file, save_file

from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, InputError, VitconvError
from vitconv.files import write_json
from vitconv.inference.certainty import seal
from vitconv.inference.runtime import read_info
from vitconv.registry.contents import digest, fits, read_contents, read_files


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "trees")


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    root, model = tmp_path_factory.mktemp("proved"), small_model("plain")
    torch.save(model.state_dict(), root / "plain.pth")
    return convert_checkpoint(root / "plain.pth", root / "model", architecture=model, labels=CLASSES).destination


def edit(path, change):
    """Change a calibration as somebody would who knows how its seal is made."""
    content = json.loads(path.read_text())
    del content["seal"]
    change(content)
    write_json({**content, "seal": seal(content)}, path)


def test_of_a_proved_folder(wrapped):
    found = read_contents(wrapped[1])
    info = read_info(wrapped[1])
    assert found.info == info and found.notes == ()
    params = dict(found.params)
    assert params.pop("vitconv")
    assert params == {
        "class": "TimmWrapperForImageClassification",
        "architecture": "eva02_tiny_patch14_224",
        "runtime": "transformers",
        "verified": "yes",
        "classes": "5",
        "input": "x".join(map(str, info.input_shape)),
        "fingerprint": info.fingerprint,
    }
    record = json.loads((wrapped[1] / "parity.json").read_text())["parity"]
    assert found.metrics == {
        **{f"parity/{dtype}_largest_difference": max(stage["max_abs"] for stage in one["stages"]) for dtype, one in record.items()},
        **{f"parity/{dtype}_logits_difference": one["stages"][-1]["max_abs"] for dtype, one in record.items()},
    }  # fmt: skip
    assert "parity/float32_logits_difference" in found.metrics


def test_of_an_optimised_folder(woods, tmp_path):
    fast = woods.copy("bfloat16", tmp_path / "fast")
    found = read_contents(fast)
    record = json.loads((fast / "optimization.json").read_text())
    assert found.params["recipe"] == "bfloat16" and "verified" not in found.params and found.notes == ()
    assert found.metrics["optimization/images"] == 60 and found.metrics["optimization/changed"] == 0
    assert found.metrics["optimization/bound"] == record["figures"]["bound"]
    assert found.metrics["optimization/nbytes"] == record["nbytes"] < found.metrics["optimization/nbytes_before"]
    reseal(fast, lambda content: content["figures"].update(bound=float("nan"), p_value=None))
    metrics = read_contents(fast).metrics
    assert "optimization/bound" not in metrics and "optimization/p_value" not in metrics


def test_of_a_calibrated_folder(certain, tmp_path):
    place = shutil.copytree(certain, tmp_path / "certain")
    share = {"hits": 9, "count": 10, "interval": [0.5, 1.0]}
    figures = {"images": 10, "calibration_before": 0.5, "calibration_after": 0.1, "calibration_after_interval": None}
    figures |= {"covered": share, "reliable_right": {"hits": 0, "count": 0, "interval": None}, "odd_auroc": 0.75}
    figures |= {"scores": {"energy": 0.5}, "odd_auroc_interval": [0.5, 1.0]}
    edit(place / "calibration.json", lambda content: content.update(figures=figures))
    found = read_contents(place)
    assert found.metrics == {
        "calibration/temperature": 0.02,
        "calibration/coverage_asked": 0.9,
        "calibration/images": 10,
        "calibration/calibration_error_before": 0.5,
        "calibration/calibration_error": 0.1,
        "calibration/coverage": 0.9,
        "calibration/auroc": 0.75,
    }
    assert read_contents(certain).metrics == {"calibration/temperature": 0.02, "calibration/coverage_asked": 0.9}


def test_what_nothing_proves_is_noted(copy):
    assert read_contents(copy).notes == ("The conversion was not verified.",)
    assert read_contents(copy).params["verified"] == "no"
    (copy / "parity.json").unlink()
    assert read_contents(copy).notes == ("The folder has no parity.json: nothing says what it was made from.",)
    assert "architecture" not in read_contents(copy).params


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_proof_of_other_files_is_refused(file, proved, tmp_path):
    place = shutil.copytree(proved, tmp_path / "model")
    assert read_contents(place).params["verified"] == "yes"
    if file == "model.safetensors":  # as after training
        tensors = {name: value + 1 for name, value in load_file(place / file).items()}
        save_file(tensors, place / file, metadata={"format": "pt"})
    else:
        (place / file).write_text((place / file).read_text() + "\n")
    with pytest.raises(CheckpointError, match="parity.json' is the proof of another model"):
        read_contents(place)
    (place / "parity.json").unlink()
    assert read_contents(place).params["verified"] == "unknown"


def test_an_earlier_proof_does_not_say_of_which_files_it_is(proved, tmp_path):
    place = shutil.copytree(proved, tmp_path / "model")
    record = json.loads((place / "parity.json").read_text())
    del record["fingerprint"]
    write_json(record, place / "parity.json")
    found = read_contents(place)
    assert found.params["verified"] == "unknown"
    assert found.notes == ("An earlier vitconv has written parity.json: it does not say which files were verified.",)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-1]), "damaged or incomplete"),
        ("config.json", lambda file: file.write_text("{"), "not readable JSON"),
        ("parity.json", lambda file: file.write_text('{"schema": 99}'), "has schema 99"),
        ("parity.json", lambda file: file.write_text('{"architecture": 1}'), "is not a record"),
        ("optimization.json", lambda file: file.write_text("{}"), "has the schema None"),
        ("calibration.json", lambda file: file.write_text("{}"), "has the schema None"),
    ],
)
def test_a_damaged_folder_is_refused(copy, name, change, said):
    change(copy / name)
    with pytest.raises(VitconvError, match=said):
        read_contents(copy)


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_number_beyond_all_floats_is_no_figure(certain, tmp_path, number):
    place = shutil.copytree(certain, tmp_path / "certain")
    parity = {"parity": {"float64": {"stages": [{"name": "logits", "max_abs": number}]}}}
    write_json(json.loads((place / "parity.json").read_text()) | parity, place / "parity.json")
    edit(place / "calibration.json", lambda content: content.update(figures={"images": number}))
    assert read_contents(place).metrics == {"calibration/temperature": 0.02, "calibration/coverage_asked": 0.9}


def test_edited_records_are_refused(certain, woods, tmp_path):
    place, fast = shutil.copytree(certain, tmp_path / "certain"), woods.copy("bfloat16", tmp_path / "fast")
    for path, word in ((place / "calibration.json", "0.02"), (fast / "optimization.json", '"images": 60')):
        text = path.read_text()
        assert word in text
        path.write_text(text.replace(word, word.replace("0", "1")))
        with pytest.raises(CheckpointError, match="has been edited since"):
            read_contents(path.parent)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no classes"):
        read_contents(convert_small(tmp_path, tmp_path / "headless", "headless", labels=None))


def test_the_files(copy):
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(b"model")
    (copy / ".hidden").write_text("key")
    (copy / ".git").mkdir()
    (copy / ".git" / "config").write_text("key")
    (copy / "linked.txt").symlink_to(copy / "README.md")
    found = read_files(copy)
    assert found["onnx/model.onnx"] == "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    assert found["linked.txt"] == found["README.md"]
    assert not [name for name in found if "." in (name[0], name.partition("/")[2][:1])]
    before = digest(found)
    assert digest(dict(reversed(found.items()))) == before
    (copy / "onnx" / "model.onnx").rename(copy / "onnx" / "other.onnx")
    assert digest(read_files(copy)) != before


def test_what_is_no_file_is_refused(copy):
    (copy / "link").symlink_to(copy.parent)
    with pytest.raises(InputError, match="link' is a link to a folder"):
        read_files(copy)
    (copy / "link").unlink()
    os.mkfifo(copy / "pipe")
    with pytest.raises(InputError, match="pipe' is a pipe"):
        read_files(copy)
    (copy / "pipe").unlink()
    (copy / os.fsdecode(b"gr\xfc\xdfe.txt")).touch()
    with pytest.raises(InputError, match="has a name that cannot be kept"):
        read_files(copy)


@pytest.mark.parametrize("name", ["config.json", "onnx/model.onnx", "a b/ä (1).txt"])
def test_names_of_files(name):
    assert fits(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "/a",
        "a/../b",
        "a//b",
        "./a",
        "a/",
        ".a",
        "a/.b",
        "a\\b",
        "a\nb",
        "a#b",
        "a?b",
        "100%",
        "\0",
        "\ud800",
        1,
        None,
    ],
)
def test_names_that_no_file_in_a_folder_has(name):
    assert not fits(name)
