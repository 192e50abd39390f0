"""What is counted of a model's images and answers, whatever serves it."""

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from optimizing import reseal
from prometheus_client.parser import text_string_to_metric_families

from vitconv.inference.answers import Answer
from vitconv.serving import open_classifier
from vitconv.serving.metrics import FAILED, MOST_CLASSES, UNREADABLE, ModelMetrics, written


@pytest.fixture(scope="module")
def plain(folder):
    return open_classifier(folder, "cpu")


@pytest.fixture(scope="module")
def sure(certain):
    return open_classifier(certain, "cpu")


def figures(metrics, name):
    """The values of the figures with this name, by their labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == name
    }


def an_answer(name="oak", probability=0.5, **more):
    return Answer(name, probability, None, **more)


def test_before_the_first_image_all_is_0(plain, sure):
    for model, reliable in ((plain, ["unknown"]), (sure, ["true", "false"])):
        metrics = ModelMetrics(model, "1.2.3")
        assert figures(metrics, "vitconv_images_total") == {("answer",): 0, ("unreadable",): 0, ("failed",): 0}
        expected = {(name, one): 0 for name in model.info.classes for one in reliable}
        assert figures(metrics, "vitconv_answers_total") == expected
        assert figures(metrics, "vitconv_answer_probability_count") == {(): 0}
        assert figures(metrics, "vitconv_oddness_rank_count") == ({(): 0} if model is sure else {})
        (about,) = figures(metrics, "vitconv_model_info")
        assert {model.info.fingerprint, "trees", "transformers", "1.2.3"} == set(about)
        assert figures(metrics, "process_resident_memory_bytes")[()] > 1e6


def test_an_image_is_one_thing(sure):
    metrics = ModelMetrics(sure, "1.2.3")
    metrics.count_failure(UNREADABLE)
    metrics.count_failure(FAILED)
    metrics.count_failure(FAILED)
    for reliable, rank in ((True, 0.1), (False, 1.0), (True, 0.11)):
        metrics.count_answer(an_answer("oak", 0.2, calibrated_probability=0.95, reliable=reliable, oddness_rank=rank))
    assert figures(metrics, "vitconv_images_total") == {("answer",): 3, ("unreadable",): 1, ("failed",): 2}
    found = figures(metrics, "vitconv_answers_total")
    assert found["oak", "true"] == 2 and found["oak", "false"] == 1 and sum(found.values()) == 3
    assert figures(metrics, "vitconv_answer_probability_sum") == {(): pytest.approx(3 * 0.95)}
    ranks = figures(metrics, "vitconv_oddness_rank_bucket")
    assert list(ranks) == [*((str(i / 10),) for i in range(1, 11)), ("+Inf",)]
    assert list(ranks.values()) == [1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3]


def test_the_plain_probability_where_there_is_no_other(plain):
    metrics = ModelMetrics(plain, "1.2.3")
    metrics.count_answer(an_answer("oak", 0.25))
    assert figures(metrics, "vitconv_answer_probability_sum") == {(): 0.25}
    assert figures(metrics, "vitconv_answers_total")["oak", "unknown"] == 1


@pytest.mark.parametrize(("count", "labels"), [(MOST_CLASSES, MOST_CLASSES), (MOST_CLASSES + 1, 1)])
def test_many_classes_are_counted_together(plain, count, labels):
    names = tuple(f"class {i}" for i in range(count))
    model = replace(plain, runtime=lambda pixels: None)
    model.runtime.info = replace(plain.info, classes=names)
    metrics = ModelMetrics(model, "1.2.3")
    for name in names:
        metrics.count_answer(an_answer(name))
    found = figures(metrics, "vitconv_answers_total")
    assert len(found) == labels and sum(found.values()) == count
    if labels == 1:
        assert found == {("", "unknown"): count}


# How old the model is


def test_a_converted_folder_is_as_old_as_the_newest_of_its_files(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "trees")
    (place / "calibration.json").write_text("{}")
    for file in place.iterdir():
        os.utime(file, (9e8, 9e8))
    os.utime(place / "config.json", (1e9, 1e9))
    os.utime(place / "calibration.json", (1.5e9, 1.5e9))
    assert written(place) == 1e9
    metrics = ModelMetrics(open_classifier(folder, "cpu"), "1.2.3")
    assert figures(metrics, "vitconv_model_written_timestamp_seconds") == {(): written(folder)}


def test_an_optimised_folder_says_when_it_was_made(woods, tmp_path):
    made = woods.copy("bfloat16", tmp_path / "fast")
    record = made / "optimization.json"
    moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
    reseal(made, lambda content: content.update(date=moment.isoformat(timespec="seconds")))
    assert written(made) == moment.timestamp() < record.stat().st_mtime
    reseal(made, lambda content: content.update(date=None))
    assert written(made) == max(file.stat().st_mtime for file in made.iterdir())


def test_a_folder_that_is_gone_is_no_reason_to_fail(plain, tmp_path):
    assert written(tmp_path / "none") is None
    model = replace(plain, runtime=lambda pixels: None)
    model.runtime.info = replace(plain.info, folder=tmp_path / "none")
    assert figures(ModelMetrics(model, "1.2.3"), "vitconv_model_written_timestamp_seconds") == {}
