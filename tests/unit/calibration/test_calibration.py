import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import convert_small
from optimizing import picture, write_pictures

from vitconv.calibration import calibrate
from vitconv.calibration import calibration as module
from vitconv.calibration.images import blur
from vitconv.errors import CheckpointError, DestinationError, InputError
from vitconv.inference import open_model, open_preprocessor, predict, transformers
from vitconv.inference.certainty import read_certainty, read_record
from vitconv.inference.predictions import read_predictions
from vitconv.inference.runtime import read_info
from vitconv.serving import open_classifier


def rows_of(model, images, place):
    predict(model, images, place)
    return read_predictions(place).rows.to_pylist()


def test_a_calibrated_model_says_how_certain_it_is(model, pictures, oddities, tmp_path):
    before = read_info(model)
    plain = rows_of(model, pictures, tmp_path / "before")
    done = calibrate(model, pictures, odd=oddities)
    assert read_info(model) == before  # no other file has changed
    assert read_certainty(before).to_dict() == done.certainty.to_dict()
    worse = replace(done.figures, calibration_before=0.1, calibration_after=0.3)
    assert worse.warnings(0.9)[0] == "The calibration error grew: the probabilities were as good or better before."
    found = done.figures
    assert (done.fitted, done.set, found.images) == (35, 35, 30)
    assert found.calibration_after < found.calibration_before / 2
    assert found.covered.hits == 30 and found.odd_auroc == 1 and found.odd_flagged.hits == 15
    certain = rows_of(model, pictures, tmp_path / "after")
    for one, other in zip(plain, certain, strict=True):
        assert all(one[name] == other[name] for name in ("class", "probability", "logits", "note"))
        assert one["reliable"] is None and "not calibrated" in one["why_not"]
        assert other["prediction_set"] == [other["class"]] or not other["reliable"]
        assert other["reliable"] == (other["why_not"] is None)
    odd = rows_of(model, oddities, tmp_path / "odd")
    assert not any(row["reliable"] for row in odd) and all("unlike" in row["why_not"] for row in odd)
    assert sum(row["reliable"] for row in certain) >= 90


def test_known_images_have_every_rank_and_blurred_ones_the_last(model, tmp_path):
    """The Kolmogorov-Smirnov distance, from ten buckets as Prometheus has them, tells the two."""
    calibrate(model, write_pictures(tmp_path / "pictures", 300, first=500))
    percentiles = read_record(model / "calibration.json")["oddness"]["percentiles"]
    assert len(percentiles) == 99 and percentiles == sorted(set(percentiles))
    classifier, found = open_classifier(model, "cpu"), {"known": [], "blurred": []}
    for number in range(200):
        image = picture(number % 5, 9000 + number)
        for kind, shown in (("known", image), ("blurred", blur(image, None))):
            shown.save(tmp_path / "image.png")
            answer = classifier((tmp_path / "image.png").read_bytes())
            found[kind].append(answer.oddness_rank)
    tenths = np.arange(1, 11) / 10
    distance = {
        kind: np.abs((np.array(ranks)[:, None] <= tenths).mean(axis=0) - tenths).max() for kind, ranks in found.items()
    }
    assert distance["known"] < 0.12  # 95 % of such samples, of 100 and 200 images, are below 0.17
    assert set(found["blurred"]) == {1} and distance["blurred"] == 0.9


def test_the_record_says_of_what_it_is(model, pictures):
    done = calibrate(model, pictures)
    content = read_record(model / "calibration.json")
    info = read_info(model)
    assert content["model"] == {
        "name": "trees",
        "fingerprint": info.fingerprint,
        "runtime": "transformers",
        "settings": {},
    }
    assert content["images"]["images"] == 100 and len(content["images"]["sha256"]) == 64
    assert content["figures"]["covered"] == {"hits": 30, "count": 30, "interval": list(done.figures.covered.interval)}
    assert done.made and content["odd_images"] is None
    json.dumps(done.to_dict())


@pytest.mark.slow
def test_what_judges_has_no_part_in_what_is_written(model, pictures, monkeypatch):
    """With other logits of the images that judge, the calibration is the same; with others of the rest, it is not."""
    right = module._certainty
    plain = calibrate(model, pictures).certainty.digest
    for part, same in (("judge", True), ("fit", False), ("set", False)):

        def shifted(seen, labels, fit, limits, *others, part=part):
            seen.logits[{"judge": ~(fit | limits), "fit": fit, "set": limits}[part]] *= 1.7
            return right(seen, labels, fit, limits, *others)

        monkeypatch.setattr(module, "_certainty", shifted)
        assert (calibrate(model, pictures).certainty.digest == plain) == same


@pytest.mark.slow
def test_equal_images_give_equal_calibrations_whatever_their_names_and_order(model, pictures, tmp_path):
    one = calibrate(model, pictures)
    lines = ["path,label"]
    for number, file in enumerate(sorted(pictures.rglob("*.png"), key=lambda file: file.read_bytes())):
        shutil.copy(file, tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{file.parent.name}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    other = calibrate(model, tmp_path / "list.csv", batch_size=1)
    ours, theirs = one.certainty, other.certainty
    assert theirs.temperature == pytest.approx(ours.temperature, rel=1e-5)  # batches change the last bits
    assert theirs.oddness.limit == pytest.approx(ours.oddness.limit, rel=1e-3)
    assert calibrate(model, pictures).certainty.digest == ours.digest


@pytest.mark.slow
def test_an_optimised_folder_has_its_own(woods, pictures, tmp_path):
    fast = woods.copy("bfloat16", tmp_path / "fast")
    assert read_certainty(read_info(fast)) is None
    calibrate(fast, pictures)
    before = read_info(fast)
    assert read_certainty(before) is not None
    shutil.copy(fast / "calibration.json", tmp_path / "calibration.json")
    other = shutil.copytree(woods.model, tmp_path / "trees")
    shutil.copy(fast / "calibration.json", other)
    with pytest.raises(CheckpointError, match="was made for another model"):
        predict(other, pictures, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", '{"schema": 1}', '{"schema": 7}'])
def test_a_damaged_calibration_stops_a_prediction_and_no_calibration(model, pictures, tmp_path, content):
    (model / "calibration.json").write_text(content)
    with pytest.raises(CheckpointError, match="calibration.json"):
        predict(model, pictures, tmp_path / "out")
    calibrate(model, pictures)
    predict(model, pictures, tmp_path / "out")


@pytest.mark.slow
def test_predictions_with_another_calibration_are_of_another_run(model, pictures, tmp_path):
    predict(model, pictures, tmp_path / "out")
    calibrate(model, pictures)
    with pytest.raises(DestinationError, match="other weights, images or settings"):
        predict(model, pictures, tmp_path / "out")
    done = predict(model, pictures, tmp_path / "out", overwrite=True)
    assert done.found == 0 and done.reliable >= 90
    calibrate(model, pictures)  # the same again
    assert predict(model, pictures, tmp_path / "out").found == 100
    assert predict(model, pictures, tmp_path / "plain", judge=False).reliable is None


# What is refused


def refused(match, *arguments, **options):
    model = arguments[0]
    with pytest.raises(InputError, match=match) as error:
        calibrate(*arguments, **options)
    assert not (model / "calibration.json").exists()
    return error.value


def test_images_without_labels(model, oddities, pictures, tmp_path):
    refused("have no labels", model, oddities)
    copied = shutil.copytree(pictures, tmp_path / "pictures")
    (copied / "oak").rename(copied / "oaks")
    refused("name a class that the model does not have: 'oaks'", model, copied)


def test_too_few_for_the_coverage_that_is_asked_for(model, pictures, tmp_path):
    error = refused(
        "has 100 images, of which 35 set the limits: a coverage of 99 %.* need 99", model, pictures, coverage=0.99
    )
    assert "Pass 302 images or more" in error.remedy
    few = write_pictures(tmp_path / "few", 50)
    refused("has 50 images, of which 15 set the limits", model, few)


def test_a_class_without_images_or_with_too_few(model, pictures, tmp_path):
    copied = shutil.copytree(pictures, tmp_path / "pictures")
    for file in sorted((copied / "oak").iterdir())[3:]:
        file.unlink()
    refused("has fewer than 4 different images of oak", model, copied)
    shutil.rmtree(copied / "oak")
    refused("has no image of oak", model, copied)


def test_an_image_with_two_labels(model, pictures, tmp_path):
    copied = shutil.copytree(pictures, tmp_path / "pictures")
    file = next((copied / "oak").iterdir())
    shutil.copy(file, copied / "ash" / "same.png")
    refused("are the same image, labelled 'ash' and 'oak'", model, copied)


@pytest.mark.slow
def test_an_image_counts_once(model, pictures, tmp_path):
    copied = shutil.copytree(pictures, tmp_path / "pictures")
    for number in range(5):
        shutil.copy(sorted((copied / "oak").iterdir())[0], copied / "oak" / f"again-{number}.png")
    done = calibrate(model, copied)
    assert done.notes[0] == "Of 105 images, 100 are different, and each of them counts once."
    assert done.certainty.temperature == pytest.approx(calibrate(model, pictures).certainty.temperature, rel=1e-5)


def test_images_without_a_label_in_a_list_are_left_out(model, pictures, oddities, tmp_path):
    lines = ["path,label", *(f"{file},{file.parent.name}" for file in sorted(pictures.rglob("*.png")))]
    lines += [f"{file}," for file in sorted(oddities.iterdir())[:2]]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert calibrate(model, tmp_path / "list.csv").notes[0] == "2 images without a label had no part in it."


def test_images_that_the_model_was_fitted_on_are_left_out(model, pictures, tmp_path):
    files = sorted(pictures.rglob("*.png"))
    lines = [
        "path,label,split",
        *(f"{file},{file.parent.name},{'fit' if i % 5 == 0 else 'held out'}" for i, file in enumerate(files)),
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    done = calibrate(model, tmp_path / "list.csv")
    fitted = len(files[::5])
    assert done.notes[0] == f"{fitted} images that the model was fitted on had no part in it."
    assert done.fitted + done.set + done.figures.images == len(files) - fitted


def test_odd_images_that_do_not_serve(model, pictures, oddities, tmp_path):
    copied = shutil.copytree(oddities, tmp_path / "odd")
    for file in sorted(copied.iterdir())[19:]:
        file.unlink()
    refused("has 19 images: too few", model, pictures, odd=copied)
    shutil.copy(next((pictures / "oak").iterdir()), copied / "oak.png")
    refused("1 image in .* is also in", model, pictures, odd=copied)


@pytest.mark.parametrize("coverage", [0, 1, 0.99999, -0.5, 1.5, float("nan"), True, "0.9"])
def test_a_coverage_that_is_no_share(model, pictures, coverage):
    refused("The coverage is", model, pictures, coverage=coverage)


def test_an_image_that_cannot_be_read(model, pictures, tmp_path):
    copied = shutil.copytree(pictures, tmp_path / "pictures")
    (copied / "oak" / "broken.png").write_bytes(b"no image")
    refused("cannot be calibrated on all images: 'oak/broken.png' is not an image", model, copied)


def test_a_model_of_one_class(pictures, tmp_path):
    refused("has one class", convert_small(tmp_path, tmp_path / "one", "one class", ("ash",)), pictures)


def test_a_model_that_changes_meanwhile(model, pictures, monkeypatch):
    right = module.measure

    def change(*everything):
        (model / "config.json").write_text((model / "config.json").read_text() + " ")
        return right(*everything)

    monkeypatch.setattr(module, "measure", change)
    with pytest.raises(CheckpointError, match="have changed while the model ran"):
        calibrate(model, pictures)
    assert not (model / "calibration.json").exists()


def test_a_model_that_is_another_one_for_a_while(model, pictures, monkeypatch, tmp_path):
    """Its logits would be those of the other, and the record would state the fingerprint of the first."""
    other = convert_small(tmp_path, tmp_path / "other", labels=read_info(model).classes)
    own, right = (model / "model.safetensors").read_bytes(), transformers.load_folder

    def load(folder):
        shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")
        loaded = right(folder)
        (folder / "model.safetensors").unlink()  # the file is mapped
        (folder / "model.safetensors").write_bytes(own)
        return loaded

    monkeypatch.setattr(transformers, "load_folder", load)
    with pytest.raises(CheckpointError, match="have changed while the model was loaded"):
        calibrate(model, pictures)
    assert not (model / "calibration.json").exists()


@pytest.mark.slow
def test_an_old_calibration_stays_where_a_new_one_fails(model, pictures, tmp_path, monkeypatch):
    calibrate(model, pictures)
    before = (model / "calibration.json").read_bytes()

    def fail(content, file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", fail)
    with pytest.raises(DestinationError, match="No space left"):
        calibrate(model, pictures)
    assert (model / "calibration.json").read_bytes() == before
    assert not list(model.glob(".*"))


def test_a_temporary_folder_without_space_for_odd_images(model, pictures, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    with pytest.raises(DestinationError, match="odd images .* No space left on device") as error:
        calibrate(model, pictures)
    assert "TMPDIR" in error.value.remedy
    assert not (model / "calibration.json").exists()


def test_the_logits_are_as_before_bit_for_bit(model, pictures):
    runtime = open_model(model, "cpu")
    pixels = open_preprocessor(runtime.info)(next((pictures / "oak").iterdir()))[None]
    before = runtime(pixels)
    calibrate(model, pictures)
    assert open_model(model, "cpu")(pixels).tobytes() == before.tobytes()


def test_a_warning_where_odd_images_are_not_told(model, pictures, tmp_path):
    """More of the same are not odd."""
    same = write_pictures(tmp_path / "same", 40, first=5000)
    done = calibrate(model, pictures, odd=same)
    assert done.figures.odd_auroc < 0.8
    assert any("AUROC" in note and "will not be flagged" in note for note in done.notes)
    assert np.isfinite(done.certainty.oddness.limit)


def test_a_note_where_the_logits_tell_nothing(model, pictures, monkeypatch):
    monkeypatch.setattr("vitconv.calibration.calibration.fit_temperature", lambda logits, labels: math.exp(9.99999))
    done = calibrate(model, pictures)
    assert "The logits tell next to nothing of these images: the temperature is 22,026." in done.notes
