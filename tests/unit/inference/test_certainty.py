"""What `calibration.json` says is applied to answers, and refused where it is not what was written."""

import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitconv.errors import CheckpointError
from vitconv.files import write_json
from vitconv.inference.appearance import count, describe
from vitconv.inference.certainty import (
    LEVELS,
    SCHEMA,
    SCORES,
    UNLIKE,
    Certainty,
    Oddness,
    identity,
    judge,
    read_certainty,
    seal,
)
from vitconv.inference.runtime import read_info

#: Of a model of five classes that takes 3 x 32 x 32 pixels.
WIDTH = 5 + count((3, 32, 32))
CLASSES = ("ash", "beech", "cedar", "oak", "pine")
NOTHING = np.empty((0, 0))
PERCENTILES = LEVELS * 10
LOGITS = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=st.floats(-1e4, 1e4, width=32))


def certainty(**changes):
    rng = np.random.default_rng(0)
    whitening = np.eye(WIDTH) + rng.normal(0, 0.1, (WIDTH, WIDTH))
    oddness = Oddness("mahalanobis", 9.0, rng.normal(size=(5, WIDTH)), whitening, PERCENTILES)
    return replace(Certainty(0.5, 0.9, 0.2, oddness), **changes)


def looks(images):
    """What some images look like."""
    return describe(np.random.default_rng(9).normal(size=(images, 3, 32, 32)).astype(np.float32))


def write(folder, content):
    write_json({**content, "seal": seal(content)}, folder / "calibration.json")


def content_of(folder, found):
    return {"schema": SCHEMA, "processor": "transformers", "model": identity(read_info(folder)), **found.to_dict()}


@pytest.fixture
def calibrated(folder, tmp_path):
    """A folder of its own, with a calibration."""
    place = tmp_path / "trees"
    shutil.copytree(folder, place)
    write(place, content_of(place, certainty()))
    return place


def test_what_is_written_is_read(calibrated):
    found = read_certainty(read_info(calibrated))
    assert found.to_dict() == certainty().to_dict() and found.digest == certainty().digest
    logits = np.random.default_rng(1).normal(0, 3, (9, 5)).astype(np.float32)
    ours, theirs = certainty().judge(logits, looks(9)), found.judge(logits, looks(9))
    assert all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("probabilities", "sets", "unlike", "ranks")
    )


def test_a_folder_without_one_is_not_calibrated(folder):
    assert read_certainty(read_info(folder)) is None


def test_the_fingerprint_stays_as_it_was(folder, calibrated):
    (calibrated / ".calibration.0123abcd.vitconv-new.json").write_text("{")  # of a calibration that was killed
    assert read_info(calibrated).fingerprint == read_info(folder).fingerprint


def test_two_calibrations_differ_by_what_they_say_of_answers():
    assert certainty().digest != certainty(temperature=0.6).digest
    assert certainty().digest == certainty().digest


@pytest.mark.parametrize("name", ["temperature", "coverage", "least_probability", "oddness", "model", "schema"])
def test_an_edited_file_is_refused(calibrated, name):
    path = calibrated / "calibration.json"
    content = json.loads(path.read_text())
    content[name] = 2 if name == "schema" else {} if isinstance(content[name], dict) else content[name] / 2
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="has been edited" if name != "schema" else "has the schema 2"):
        read_certainty(read_info(calibrated))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("temperature", value) for value in (0, 5e-324, 1e9, -1, math.inf, True, "1", None, 10**400)),
        *(("coverage", value) for value in (0, 1, 1.5)),
        ("least_probability", None),
        ("oddness", []),
        ("oddness.score", "luck"),
        ("oddness.score", ["energy"]),
        ("oddness.score", "energy"),  # which has no matrices
        ("oddness.score", "mahalanobis-logits"),  # which has smaller ones
        ("oddness.limit", "high"),
        ("oddness.centres", ""),
        ("oddness.centres", "AAAA"),
        ("oddness.whitening", "no base64!"),
        ("oddness.whitening", 1),
        *(("oddness.percentiles", value) for value in (None, 1, "1" * 99, [], [0.0] * 98, [0.0] * 98 + [-1.0])),
        *(("oddness.percentiles", [0.0] * 98 + [value]) for value in (math.inf, math.nan, True, "1", 10**400)),
        ("oddness.whitening", Certainty(1, 0.9, 0, Oddness("mahalanobis", 1, np.zeros((5, WIDTH)), np.full((WIDTH, WIDTH), np.nan), PERCENTILES)).to_dict()["oddness"]["whitening"]),
    ],
)  # fmt: skip
def test_nonsense_is_refused_even_if_it_is_sealed(calibrated, place, value):
    content = content_of(calibrated, certainty())
    outer, _, inner = place.partition(".")
    if inner:
        content[outer][inner] = value
    else:
        content[outer] = value
    write(calibrated, content)
    with pytest.raises(CheckpointError, match="is not a record that vitconv has written") as refused:
        read_certainty(read_info(calibrated))
    assert refused.value.remedy == "Run `vitconv calibrate` again, or remove the file."


@pytest.mark.parametrize("missing", ["temperature", "coverage", "least_probability", "oddness"])
def test_what_lacks_something_is_refused(calibrated, missing):
    content = content_of(calibrated, certainty())
    del content[missing]
    write(calibrated, content)
    with pytest.raises(CheckpointError, match="is not a record"):
        read_certainty(read_info(calibrated))


@pytest.mark.parametrize("name", ["fingerprint", "runtime", "settings"])
def test_that_of_another_model_is_refused(calibrated, name):
    info = read_info(calibrated)
    other = {"fingerprint": "0" * 64, "runtime": "openvino", "settings": {"precision": "bf16"}}[name]
    with pytest.raises(CheckpointError, match="was made for another model"):
        read_certainty(replace(info, **{name: other}))


def test_that_of_other_pixels_is_refused(calibrated):
    write(calibrated, {**content_of(calibrated, certainty()), "processor": "timm"})
    info = read_info(calibrated)
    assert read_certainty(info, "timm").digest == read_certainty(info).digest == certainty().digest
    with pytest.raises(
        CheckpointError, match="made with the processor 'timm', and these .* by 'transformers'"
    ) as refused:
        read_certainty(info, "transformers")
    assert refused.value.remedy == "Pass the same --processor, or run `vitconv calibrate` again."


def test_what_is_no_json_is_refused(calibrated):
    (calibrated / "calibration.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        read_certainty(read_info(calibrated))


def test_a_record_that_is_huge(calibrated):
    """A larger one than that of a model of 1,000 classes is none; as objects of Python it would take gigabytes."""
    os.truncate(calibrated / "calibration.json", 2**25 + 1)
    with pytest.raises(CheckpointError, match="at most 33,554,432 are allowed"):
        read_certainty(read_info(calibrated))


@given(logits=LOGITS, score=st.sampled_from(sorted(SCORES)))
def test_an_image_gets_the_same_alone_and_among_others_bit_for_bit(logits, score):
    own, seen = certainty(), looks(len(logits))
    if score != "mahalanobis":
        matrices = (np.ones((5, 5)), np.eye(5) - 0.3) if score == "mahalanobis-logits" else (NOTHING, NOTHING)
        own = replace(own, oddness=Oddness(score, 0.0, *matrices, PERCENTILES))
    together = own.judge(logits, seen)
    for image, one in enumerate(logits):
        alone = own.judge(one[None], seen[[image]])
        assert alone.probabilities[0].tobytes() == together.probabilities[image].tobytes()
        assert np.array_equal(alone.sets[0], together.sets[image])
        assert own.oddness.scores(one[None], seen[[image]])[0] == own.oddness.scores(logits, seen)[image]
        assert alone.unlike[0] == together.unlike[image] and alone.ranks[0] == together.ranks[image]


@given(logits=LOGITS, least=st.floats(0, 1.1))
def test_a_set_has_all_classes_that_are_likely_and_always_the_first(logits, least):
    judged = certainty(least=least).judge(logits, looks(len(logits)))
    assert np.allclose(judged.probabilities.sum(axis=1), 1)
    for image, own in enumerate(judged.sets):
        assert own[logits[image].argmax()]
        likely = judged.probabilities[image] >= least
        likely[logits[image].argmax()] = True
        assert np.array_equal(own, likely)


def test_the_reasons():
    far = Oddness("max-logit", -1.0, NOTHING, NOTHING, PERCENTILES)
    judged = certainty(temperature=1.0, least=0.3, oddness=far).judge(
        np.array([[9, 0, 0, 0, 0], [3, 3.1, 0, 0, 0], [0.5, 0, 0, 0, 0], [0.9, 0.9, -9, -9, -9]], np.float32),
        looks(4),
    )
    assert judged.reliable.tolist() == [True, False, False, False]
    assert judged.unlike.tolist() == [False, False, True, True]
    assert judged.why_not(0, CLASSES) is None and judged.names(0, CLASSES) == ["ash"]
    assert judged.why_not(1, CLASSES) == "2 classes are likely: beech, ash."  # the most probable one first
    assert judged.why_not(2, CLASSES) == UNLIKE
    assert judged.why_not(3, CLASSES) == f"{UNLIKE} 2 classes are likely: ash, beech."


def test_a_score_that_is_no_number_is_unlike():
    infinite = Oddness("mahalanobis-logits", 9.0, np.zeros((5, 5)), np.full((5, 5), 1e308), PERCENTILES)
    logits = np.array([[1e30, -1e30, 0, 0, 0]], np.float32)
    nowhere = np.full((1, WIDTH - 5), np.nan)
    for found in (
        certainty(oddness=infinite).judge(logits, looks(1)),
        certainty().judge(np.ones((1, 5), np.float32), nowhere),
    ):
        assert found.unlike.tolist() == [True] and found.ranks.tolist() == [1]


def test_a_rank_is_the_share_of_the_calibration_s_images_that_are_less_odd():
    ranks = certainty().oddness.ranks(np.array([-np.inf, -1, 0.1, 0.15, 5, 9.9, 9.95, np.inf, np.nan]))
    assert ranks == pytest.approx([1, 0, 0.01, 0.015, 0.5, 0.99, 1, 1, 1])


def test_what_is_not_known_is_not_judged():
    logits, pixels = np.zeros((1, 5), np.float32), np.zeros((1, 3, 32, 32), np.float32)
    assert judge(None, logits, pixels) is None
    assert judge(certainty(), logits * np.nan, pixels) is None
    found, expected = judge(certainty(), logits, pixels), certainty().judge(logits, describe(pixels))
    assert found.unlike == expected.unlike and found.ranks == expected.ranks


def test_the_scores_are_what_they_are_called():
    logits = np.random.default_rng(2).normal(0, 3, (7, 5)).astype(np.float32)
    plain = {
        name: Oddness(name, 0.0, NOTHING, NOTHING, PERCENTILES).scores(logits, looks(7))
        for name in ("energy", "max-logit")
    }
    assert np.allclose(plain["energy"], -np.log(np.exp(logits.astype(float)).sum(axis=1)))
    assert np.array_equal(plain["max-logit"], -logits.max(axis=1))
    for name, values in (
        ("mahalanobis-logits", logits),
        ("mahalanobis", np.concatenate([logits, looks(7)], axis=1)),
    ):
        width = values.shape[1]
        means, spread = np.random.default_rng(3).normal(size=(5, width)), np.eye(width) + 0.3
        whitening = np.linalg.cholesky(np.linalg.inv(spread))
        found = Oddness(name, 0.0, means @ whitening, whitening, PERCENTILES).scores(logits, looks(7))
        apart = values[:, None] - means
        expected = np.einsum("ikj,jl,ikl->ik", apart, np.linalg.inv(spread), apart).min(axis=1)
        assert np.allclose(found, expected)
