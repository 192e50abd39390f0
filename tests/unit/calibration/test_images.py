import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitconv.calibration.images import FIT, JUDGE, KINDS, SET, add_noise, deal, write_odd_images


def digests(count):
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.randoms())
def test_images_are_dealt_by_class_and_content_whatever_their_order(labels, random):
    labels, names = np.array(labels), digests(len(labels))
    parts = deal(labels, names)
    order = list(range(len(labels)))
    random.shuffle(order)
    assert np.array_equal(deal(labels[order], [names[image] for image in order]), parts[order])
    for label in set(labels.tolist()):
        fit, limits, judge = np.bincount(parts[labels == label], minlength=3)
        assert fit >= limits >= judge >= fit - 1
    assert (FIT, SET, JUDGE) == (0, 1, 2)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P"])
def test_odd_images_are_made_the_same_way_each_time(tmp_path, mode):
    rng = np.random.default_rng(0)
    files = []
    for number in range(4):
        image = Image.fromarray(rng.integers(0, 256, (70 + number, 90, 3), dtype=np.uint8)).convert(mode)
        files.append(tmp_path / f"{number}.{'tiff' if mode == 'CMYK' else 'png'}")
        image.save(files[-1])
    for place in ("one", "other"):
        write_odd_images(files, digests(4), tmp_path / place, (3, 32, 32))
    made = sorted((tmp_path / "one").iterdir())
    assert [file.name for file in made] == [f"{number:08}.png" for number in range(4)]
    for file, original in zip(made, files, strict=True):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()
        assert not np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(original).convert("RGB")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 8), (9, 400), (123, 77)])
def test_images_of_any_size_can_be_made_odd(kind, size):
    values = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    made = kind(Image.fromarray(values), np.random.default_rng(0))
    assert made.mode == "RGB" and min(made.size) >= 1


def test_odd_images_of_large_ones_are_a_few_times_as_large_as_the_model_s_input(tmp_path):
    """Of a photo of 50 megapixels, those under noise took 4 GiB of memory, and 150 MB of disk each."""
    sizes = [(900, 700), (700, 900), (2000, 600), (130, 5000), (255, 400)]
    for number, size in enumerate(sizes):
        Image.linear_gradient("L").resize(size).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number, _ in enumerate(sizes)]
    write_odd_images(files, digests(len(files)), tmp_path / "odd", (3, 32, 32))
    made = [Image.open(file).size for file in sorted((tmp_path / "odd").iterdir())]
    assert made == [(180, 140), (140, 180), (150, 150), (130, 5000), (255, 400)]


def test_noise_in_parts_is_the_noise_of_the_whole():
    values = np.random.default_rng(1).integers(0, 256, (700, 800, 3), dtype=np.uint8)
    expected = (values + np.random.default_rng(0).normal(0, 80, values.shape)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(np.asarray(add_noise(Image.fromarray(values), np.random.default_rng(0))), expected)
