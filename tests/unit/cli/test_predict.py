"""The commands that use a converted folder, in words and exit codes."""

import json
from itertools import islice

import numpy as np
import pytest
from commands import run
from conftest import CLASSES
from PIL import Image

from vitconv.cli import predict as predict_command
from vitconv.convert import convert_checkpoint
from vitconv.inference import local
from vitconv.inference.predictions import read_predictions


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 50)


@pytest.fixture(scope="module")
def model(small_checkpoint, tmp_path_factory):
    destination = tmp_path_factory.mktemp("model") / "tiny"
    convert_checkpoint(
        small_checkpoint, destination, architecture="vit_tiny_patch16_224", labels=CLASSES, verify=False
    )
    return destination


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("ash/a.png", "oak/[b].jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_predictions_are_printed_where_no_folder_is_named(model, photos, tmp_path):
    code, out, err = run("predict", model, photos)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["image", "class", "probability"]
    assert run("predict", model, photos, tmp_path / "out")[0] == 0
    written = read_predictions(tmp_path / "out").rows.to_pylist()
    assert rows[1:] == [[row["path"], row["class"], f"{row['probability']:.1%}"] for row in written]
    assert rows[2][0] == "oak/[b].jpg"  # not taken for rich's markup


def test_one_image_is_predicted_and_printed(model, photos):
    code, out, err = run("predict", model, photos / "ash" / "a.png")
    assert code == 0
    assert out.splitlines()[1].startswith("a.png")


def test_an_image_that_cannot_be_read_is_an_error(model, photos):
    (photos / "x.png").write_bytes(b"no image")
    code, out, err = run("predict", model, photos)
    assert (code, out) == (1, "")
    assert "'x.png' is not an image that can be read" in err
    code, out, err = run("predict", model, photos, "--max-errors", 1)
    assert code == 0 and "'x.png' is not an image that can be read" in out


def test_evaluate_from_a_checkpoint_and_photos_to_a_report(model, small_checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", model, photos, "--source", small_checkpoint)
    assert code == 0, err
    assert out.splitlines()[0].startswith("2 of 2 images get the expected answer; the logits ")
    assert out.endswith("evaluation/index.html: passed\n")
    assert "<h1>Passed</h1>" in (tmp_path / "evaluation" / "index.html").read_text()
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["agreement"] == 1.0


def test_a_list_of_images_is_evaluated_with_its_labels(model, photos, tmp_path):
    (tmp_path / "list.csv").write_text("path,label\nphotos/ash/a.png,ash\nphotos/oak/[b].jpg,\n")
    code, out, err = run("evaluate", model, tmp_path / "list.csv", "--out", tmp_path / "r")
    assert code == 0, err
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (metrics["images"], metrics["labelled"]) == (2, 1)


def test_evaluate_fails_where_a_threshold_is_missed(model, photos, tmp_path):
    given = [line.split()[1] for line in run("predict", model, photos)[1].splitlines()[1:]]
    other = [next(name for name in CLASSES if name != answer) for answer in given]
    (tmp_path / "expected.csv").write_text(f"path,class\nash/a.png,{other[0]}\noak/[b].jpg,{other[1]}\n")
    code, out, err = run("evaluate", model, photos, "--expected", tmp_path / "expected.csv", "--out", tmp_path / "r")
    assert (code, out) == (1, "")
    assert (
        "error: Images that get the expected answer (agreement): " in err
        and f"{tmp_path / 'r' / 'index.html'} shows it." in err
    )
    assert (tmp_path / "r" / "index.html").exists()


def test_evaluate_says_where_nothing_was_judged(model, photos, tmp_path):
    """And so does the report that is written again."""
    code, out, err = run("evaluate", model, photos / "ash", "--out", tmp_path / "r")
    assert code == 0
    assert "There was nothing to compare with: no expected answers, and no labels." in out
    assert out.endswith("index.html: nothing to judge\n")
    code, out, err = run("evaluate", model, photos / "ash", "--out", tmp_path / "r", "--json", "-q")
    assert code == 0 and json.loads(out)["passed"] is None
    code, out, err = run("report", tmp_path / "r", tmp_path / "again")
    assert (code, out) == (0, f"{tmp_path / 'again' / 'index.html'}: nothing to judge\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_evaluate_warns_once_also_where_it_is_quiet(quiet, model, photos, tmp_path):
    (photos / "oak").rename(photos / "oaks")
    code, out, err = run("evaluate", model, photos, "--out", tmp_path / "r", *["-q"] * quiet)
    assert code == 0
    assert err.count("warning: The names of the subfolders are not taken as labels") == 1
    assert "subfolders" not in out


@pytest.mark.parametrize("option", ["--arch", "--data-config", "--ignore"])
def test_what_describes_a_source_needs_one(option, model, photos, tmp_path):
    code, out, err = run("evaluate", model, photos, "--out", tmp_path / "r", option, "mean")
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option}'" in err and "needs --source SRC" in err
    assert not (tmp_path / "r").exists()


def test_an_interrupted_evaluation_says_what_it_leaves(model, small_checkpoint, photos, tmp_path, monkeypatch):
    right = local.LocalEngine.run

    def interrupt(self, open_runtime, batches, todo):
        yield from islice(right(self, open_runtime, batches, todo), done)
        raise KeyboardInterrupt

    monkeypatch.setattr(local.LocalEngine, "run", interrupt)
    for done, said in ((0, "Nothing was written."), (1, "What has been written is kept: run it again to go on.")):
        arguments = ("evaluate", model, photos, "--out", tmp_path / "r", "--batch-size", 1, "--source")
        code, out, err = run(*arguments, small_checkpoint)
        assert (code, out) == (130, "")
        assert err.endswith(f"error: Interrupted.\n{said}\n")
        assert (tmp_path / "r").exists() == bool(done)
        monkeypatch.setattr("vitconv.inference.batch_prediction.ROWS_PER_PART", 1)


def test_nothing_is_said_to_be_kept_where_answers_are_printed(model, photos):
    (photos / "x.png").write_bytes(b"no image")
    code, out, err = run("predict", model, photos)
    assert (code, out) == (1, "") and "kept" not in err


@pytest.mark.parametrize("given", ["subfolders", "folders,nothing"])
def test_labels_come_from_folders_or_nothing(model, photos, given):
    code, out, err = run("evaluate", model, photos, "--labels-from", given)
    assert code == 2 and "is not one of" in err


@pytest.mark.slow
def test_predictions_and_evaluations_as_json(model, small_checkpoint, photos, tmp_path):
    code, out, _ = run("predict", model, photos, "--json", "-q")
    found = json.loads(out)
    assert code == 0
    assert [row["path"] for row in found["predictions"]] == ["ash/a.png", "oak/[b].jpg"]
    code, out, err = run("predict", model, photos, tmp_path / "out", "--json", "-q")
    assert json.loads(out)["destination"] == str(tmp_path / "out") and err == ""
    code, out, _ = run("evaluate", model, photos, "--source", small_checkpoint, "--out", tmp_path / "r", "--json")
    assert code == 0 and json.loads(out)["passed"] is True
    code, out, _ = run("predict", model, tmp_path / "none.csv", "--json")
    assert code == 1 and json.loads(out)["error"] == f"There is no list of images '{tmp_path}/none.csv'."


@pytest.mark.slow
def test_a_missed_threshold_is_json_too(model, photos, tmp_path):
    answers = {
        row["path"]: row["class"] for row in json.loads(run("predict", model, photos, "--json")[1])["predictions"]
    }
    other = {path: next(name for name in CLASSES if name != answer) for path, answer in answers.items()}
    (tmp_path / "expected.csv").write_text(
        "path,class\n" + "".join(f"{path},{name}\n" for path, name in other.items())
    )
    arguments = ("evaluate", model, photos, "--expected", tmp_path / "expected.csv", "--out", tmp_path / "r")
    code, out, err = run(*arguments, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False and json.loads(out)["error"].startswith(
        "Images that get the expected answer (agreement): "
    )
    assert f"error: {json.loads(out)['error']}\n" in err


def test_no_rounding_makes_an_answer_certain(capsys):
    rows = [
        {"path": f"{number}.png", "error": None, "class": "ash", "probability": probability}
        for number, probability in enumerate((0.5, 0.99949, 0.99951, 1.0))
    ]
    predict_command._print_answers(rows, calibrated=False)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "50.0%",
        "99.9%",
        ">99.9%",
        "100.0%",
    ]
