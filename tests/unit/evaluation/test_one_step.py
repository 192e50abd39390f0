"""One command from a folder and images to the report: with a source, with answers from elsewhere, with neither."""

import fcntl
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image
from safetensors.torch import load_file, save_file

from vitconv.convert import convert_checkpoint
from vitconv.errors import CheckpointError, DestinationError, InputError, ParityError
from vitconv.evaluation import evaluate_model, run_timm
from vitconv.inference import predict
from vitconv.inference.predictions import read_predictions
from vitconv.source import SourceOptions

#: Each test runs two models over images.
pytestmark = pytest.mark.slow


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
    assert done.warnings == ()  # the class names, which the checkpoint does not state, name the answers of both
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
        assert (done.metrics["compared"], "pixels" in done.about, done.passed) == (0, False, None)
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
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<figure>") == 1 and "What changed" not in page


def test_a_threshold_that_was_given_must_have_something_to_judge(model, photos, tmp_path):
    with pytest.raises(InputError, match="There is a threshold for 'accuracy', but this metric was not computed"):
        evaluate_model(model, photos / "ash", tmp_path / "report", thresholds={"accuracy": {"min": 0.5}})


def test_one_image(model, small_checkpoint, photos, tmp_path):
    done = evaluate_model(model, photos / "ash" / "a.png", tmp_path / "report", source=small_checkpoint)
    assert done.passed and done.metrics["compared"] == 1


def test_subfolders_that_are_no_classes_are_no_labels(model, photos, tmp_path):
    (photos / "oak").rename(photos / "holidays")
    assert evaluate_model(model, photos, tmp_path / "report").outcomes.labels is None


def test_a_subfolder_that_is_no_class_is_named_where_others_are(model, photos, tmp_path):
    (photos / "oak").rename(photos / "oaks")
    done = evaluate_model(model, photos, tmp_path / "report")
    (warning,) = done.warnings
    assert warning.startswith(
        "The names of the subfolders are not taken as labels: not all of them are classes of the model (oaks). Rename"
    )
    assert warning in done.sentences() and warning in summary_of(tmp_path / "report")["sentences"]
    assert evaluate_model(model, photos, tmp_path / "report", labels_from="nothing").warnings == ()
    (photos / "ash").rename(photos / "holidays")
    assert evaluate_model(model, photos, tmp_path / "report").warnings == ()


def test_subfolders_are_no_labels_of_classes_without_names_and_that_is_said(small_checkpoint, photos, tmp_path):
    """The names were forgotten at the conversion."""
    done = convert_checkpoint(small_checkpoint, tmp_path / "hf", architecture="vit_tiny_patch16_224", verify=False)
    (warning,) = evaluate_model(done.destination, photos, tmp_path / "report").warnings
    assert "the classes of the model have no names: they are LABEL_0, LABEL_1" in warning
    assert "--labels FILE" in warning
    assert evaluate_model(done.destination, photos, tmp_path / "report", labels_from="nothing").warnings == ()
    assert evaluate_model(done.destination, photos / "ash", tmp_path / "report").warnings == ()


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


def test_where_no_image_can_be_read_that_is_what_is_said(model, small_checkpoint, photos, tmp_path):
    for path in photos.rglob("*.*"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="No image in '.*photos' could be read, so there is nothing to compare"):
        evaluate_model(model, photos, tmp_path / "report", source=small_checkpoint, max_errors=3)


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


def state_of(folder):
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_expected_answers_in_the_reports_own_folder_are_not_replaced(model, photos, tmp_path):
    """The model would be compared with itself, and pass."""
    evaluate_model(model, photos, tmp_path / "report")
    (tmp_path / "link").symlink_to("report/predictions")
    before = state_of(tmp_path / "report")
    for expected in (tmp_path / "report" / "predictions", tmp_path / "link"):
        with pytest.raises(DestinationError, match=f"holds '{expected}', which is read") as caught:
            evaluate_model(model, photos, tmp_path / "report", expected=expected)
        assert caught.value.remedy == "Choose another folder with --out DIR."
    assert state_of(tmp_path / "report") == before


@pytest.mark.parametrize("name", ["index.html", "images.png", "metrics.json", "evaluation.json", "notes.txt"])
def test_files_of_others_are_not_replaced(name, model, photos, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("mine")
    for folder in (model, tmp_path / "no such model"):
        with pytest.raises(DestinationError, match=f"holds files that are not of an evaluation \\({name}\\)"):
            evaluate_model(folder, photos, tmp_path / "site")
    assert state_of(tmp_path / "site") == {name: b"mine"}


def test_a_report_does_not_go_where_inputs_lie(model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = state_of(model), state_of(photos)
    for out in (model, model.parent, photos, tmp_path, ""):
        with pytest.raises(DestinationError, match="holds .*, which is read"):
            evaluate_model(model, photos, out, expected=tmp_path / "expected.csv")
    for out in (photos / "report", photos / "ash" / "report"):
        with pytest.raises(DestinationError, match="lies in the folder of the images"):
            evaluate_model(model, photos, out)
    options = SourceOptions(data=tmp_path / "report" / "data.json")
    with pytest.raises(DestinationError, match="data.json', which is read"):
        evaluate_model(model, photos, tmp_path / "report", source="hf-hub:our/roofs", options=options)
    assert (state_of(model), state_of(photos)) == before
    assert sorted(os.listdir(tmp_path)) == ["photos"]


@pytest.mark.parametrize("linked", [False, True])
def test_an_empty_folder_takes_a_report_and_another_report_replaces_it(linked, model, photos, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    if linked:
        out = tmp_path / "link"
        out.symlink_to("report")
    assert len(evaluate_model(model, photos, out).outcomes.paths) == 3
    (out / "notes.txt").write_text("mine")
    assert len(evaluate_model(model, photos / "ash", out).outcomes.paths) == 2
    assert summary_of(out)["metrics"]["images"] == 2
    assert (out / "notes.txt").read_text() == "mine"


def test_a_run_that_writes_nothing_leaves_nothing(model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "report", tmp_path / "empty"):
        with pytest.raises(InputError, match="There is no device"):
            evaluate_model(model, photos, out, device="cuda:99")
    assert sorted(os.listdir(tmp_path)) == ["empty", "photos"] and os.listdir(tmp_path / "empty") == []


def test_a_mistaken_name_leaves_the_report_alone(model, small_checkpoint, photos, tmp_path):
    evaluate_model(model, photos, tmp_path / "report")
    before = state_of(tmp_path / "report")
    for folder, images, source in (
        (tmp_path / "none", photos, None),
        (model, tmp_path / "none.csv", None),
        (model, photos, tmp_path / "none.pth"),
    ):
        with pytest.raises((CheckpointError, InputError)):
            evaluate_model(folder, images, tmp_path / "report", source=source)
    assert state_of(tmp_path / "report") == before


@pytest.mark.parametrize("wrong", ["label", "subfolder", "expected"])
def test_a_mistaken_class_is_told_before_a_model_runs(wrong, model, photos, tmp_path):
    evaluate_model(model, photos, tmp_path / "report")
    before, images, options = state_of(tmp_path / "report"), photos, {}
    if wrong == "label":
        images = tmp_path / "list.csv"
        images.write_text("path,label\nphotos/ash/a.png,Ash\n")
    elif wrong == "subfolder":
        (photos / "oak").rename(photos / "Ash")
        options["labels_from"] = "folders"
    else:
        options["expected"] = tmp_path / "expected.csv"
        options["expected"].write_text("path,class\nash/a.png,Ash\n")
    with pytest.raises(InputError, match="name a class that the model does not have: 'Ash'"):
        evaluate_model(model, images, tmp_path / "report", **options)
    assert state_of(tmp_path / "report") == before


def test_nothing_of_an_earlier_verdict_stays_after_a_refusal(model, photos, tmp_path):
    evaluate_model(model, photos, tmp_path / "report")
    (photos / "ash" / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="broken.png"):
        evaluate_model(model, photos, tmp_path / "report")
    assert sorted(os.listdir(tmp_path / "report")) == [".vitconv-evaluation", "predictions"]


def test_a_file_is_no_folder_for_a_report(model, photos, tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(DestinationError, match="a file is where a folder should be"):
        evaluate_model(tmp_path / "none", photos, tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_an_interrupted_evaluation_goes_on(model, small_checkpoint, photos, tmp_path, monkeypatch):
    run = {"source": small_checkpoint, "batch_size": 1}
    found = []

    def stop(step):
        if step == "Running the timm model":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_model(model, photos, tmp_path / "report", on_step=stop, **run)
    part = tmp_path / "report" / "predictions" / "part-00000000.parquet"
    before = part.stat().st_ino
    evaluate_model(model, photos, tmp_path / "report", on_step=found.append, **run)
    assert part.stat().st_ino == before and found[-1] == "Writing the report"


def test_two_evaluations_do_not_write_one_folder(model, photos, tmp_path):
    refused = []

    def begin_another(step):
        with pytest.raises(DestinationError, match="Another evaluation is writing to '.*report'") as caught:
            evaluate_model(model, photos, tmp_path / "report")
        refused.append(caught.value.remedy)

    assert evaluate_model(model, photos, tmp_path / "report", on_step=begin_another).metrics["images"]
    assert set(refused) == {"Wait until it has ended. Choose another folder with --out DIR."}
    evaluate_model(model, photos, tmp_path / "report")  # the lock is gone


def test_a_folder_that_cannot_be_locked_is_written(model, photos, tmp_path, monkeypatch):
    """Some file systems lock no files."""

    def no_locks(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert evaluate_model(model, photos, tmp_path / "report").metrics["images"]


def test_rows_of_another_run_are_not_judged(model, photos, tmp_path):
    """`vitconv predict` does not look at the lock."""

    def replace_rows(step):
        if step == "Writing the report":
            predict(model, photos, tmp_path / "report" / "predictions", overwrite=True, batch_size=3)

    with pytest.raises(DestinationError, match="Another run has written '.*predictions' meanwhile"):
        evaluate_model(model, photos, tmp_path / "report", on_step=replace_rows)
    assert not (tmp_path / "report" / "evaluation.json").exists()


@pytest.fixture(scope="module")
def stating(small_checkpoint, tmp_path_factory):
    """The checkpoint with the names of its classes and its preprocessing."""
    path = tmp_path_factory.mktemp("stating") / "stating.pth"
    weights = torch.load(small_checkpoint, weights_only=True)
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9, "num_classes": 5}
    stated = {"architecture": "vit_tiny_patch16_224", "label_names": list(CLASSES), "pretrained_cfg": cfg}
    torch.save({"state_dict": weights, **stated}, path)
    return path


def edited(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def swap(content):
    names = list(CLASSES)
    names[:2] = names[1::-1]
    content["id2label"] = {str(i): name for i, name in enumerate(names)}
    content["label2id"] = {name: i for i, name in enumerate(names)}


def test_class_names_that_the_checkpoint_does_not_state_are_refused(stating, photos, tmp_path):
    """The timm model's answers have no names of their own: they would get those of the folder, and agree."""
    convert_checkpoint(stating, tmp_path / "hf", verify=False)
    shutil.copytree(tmp_path / "hf", tmp_path / "swapped")
    edited(tmp_path / "swapped", "config.json", swap)
    with pytest.raises(ParityError, match="names a class 'beech' that the checkpoint names 'ash'") as caught:
        evaluate_model(tmp_path / "swapped", photos, tmp_path / "report", source=stating)
    assert "pass --ignore label_names" in caught.value.remedy
    assert not (tmp_path / "report").exists()
    edited(
        tmp_path / "swapped",
        "parity.json",
        lambda content: content.update(labels=["beech", *CLASSES[:1], *CLASSES[2:]]),
    )
    with pytest.raises(ParityError, match="parity.json in .* names a class 'beech' that the checkpoint names 'ash'"):
        evaluate_model(tmp_path / "swapped", photos, tmp_path / "report", source=stating)
    ignoring = SourceOptions(ignore=("label_names",))
    assert evaluate_model(tmp_path / "swapped", photos, tmp_path / "report", source=stating, options=ignoring).passed
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(["beech", "ash", *CLASSES[2:]]))
    run_timm(stating, tmp_path / "swapped", photos, tmp_path / "timm", labels=labels)
    with pytest.raises(ParityError, match="names a class 'ash' that the labels given name 'beech'"):
        run_timm(stating, tmp_path / "hf", photos, tmp_path / "timm", labels=labels)


def test_class_names_that_only_the_record_knows_are_compared_with_it(model, small_checkpoint, photos, tmp_path):
    shutil.copytree(model, tmp_path / "swapped")
    edited(tmp_path / "swapped", "config.json", swap)
    with pytest.raises(ParityError, match="names a class 'beech' that the parity.json names 'ash'"):
        evaluate_model(tmp_path / "swapped", photos, tmp_path / "report", source=small_checkpoint)


def test_what_a_record_ignores_must_be_given_again(stating, photos, tmp_path):
    """Else anybody could edit the record, and the folder with it, against what the checkpoint states."""
    mean = {"mean": [0.1, 0.2, 0.3]}
    convert_checkpoint(stating, tmp_path / "hf", data=mean, ignore=["mean"], verify=False)
    with pytest.raises(ParityError, match="says that what the checkpoint states of `mean` was ignored") as caught:
        evaluate_model(tmp_path / "hf", photos, tmp_path / "report", source=stating)
    assert "--ignore mean" in caught.value.remedy
    done = evaluate_model(
        tmp_path / "hf", photos, tmp_path / "report", source=stating, options=SourceOptions(ignore=("mean",))
    )
    assert done.passed
    (warning,) = [one for one in done.warnings if "preprocessing" in one]
    assert "only stated by the folder's own parity.json" in warning and warning in done.sentences()
    assert "only stated by the folder" in (tmp_path / "report" / "report.md").read_text()
