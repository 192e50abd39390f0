import numpy as np
import pytest
from PIL import Image

from vitconv.errors import InputError
from vitconv.evaluation.images import Batches, read_images
from vitconv.evaluation.predictor import read_classifier
from vitconv.preprocess import load_processor, process


@pytest.fixture
def cut(folder):
    """Cut a list into batches."""
    model = read_classifier(folder)
    return lambda path, size: Batches(read_images(path), size, load_processor(folder), model.shape)


def test_a_list_has_paths_and_perhaps_labels(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('path,note,label\na.jpg,1,oak\n"with, comma.jpg",2,\nNA,3,null\n')
    images = read_images(path)
    assert images.paths.to_pylist() == ["a.jpg", "with, comma.jpg", "NA"]
    assert images.labels.to_pylist() == ["oak", "", "null"]
    assert images.folder == tmp_path
    path.write_text("path\n1\n2\n")
    assert read_images(path).paths.to_pylist() == ["1", "2"]
    assert read_images(path).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.jpg\n", "no column 'path'"),
        ("path\n", "is empty"),
        ("", "is not CSV"),
        ("path,label\na.jpg,x\n,y\n", "a row without a path"),
        ("path,label\na.jpg,x,z\n", "is not CSV"),
        ("path\n\xff\n", "is not CSV"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_images(path)
    assert "list.csv" in caught.value.problem


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no list of images '.*nothing.csv'"):
        read_images(tmp_path / "nothing.csv")


def test_batches_have_one_shape_and_the_folders_pixels(folder, write_images, cut):
    path = write_images(5)
    batches = cut(path, 2)
    assert [list(batches.rows(i)) for i in range(len(batches))] == [[0, 1], [2, 3], [4]]
    processor = load_processor(folder)
    for number in range(3):
        pixels = batches[number]
        assert pixels.batch == number
        assert pixels.values.shape == (2, 3, 32, 32)
        assert pixels.values.dtype == np.float32
        for place, name in enumerate(batches.images.slice(batches.rows(number))):
            expected = process(Image.open(path.parent / name), processor, 3)[0]
            assert np.array_equal(pixels.values[place], expected)
    assert not batches[2].values[1].any()


def test_what_cannot_be_read_has_an_error_and_its_place_stays_empty(write_images, cut):
    path = write_images(4, broken=(1, 2))
    (path.parent / "images" / "folder.png").mkdir()
    path.write_text(path.read_text() + "images/folder.png\n")
    batches = cut(path, 5)
    pixels = batches[0]
    assert pixels.errors == [
        None,
        "'images/00001.png' is not an image that can be read.",
        "There is no image 'images/00002.jpg'.",
        None,
        "'images/folder.png' is not an image that can be read.",
    ]
    assert [bool(values.any()) for values in pixels.values] == [True, False, False, True, False]


def test_pixels_of_another_shape_are_an_error_of_the_image(folder, write_images):
    path = write_images(1)
    for shape in ((1, 32, 32), (3, 32, 64)):
        pixels = Batches(read_images(path), 1, load_processor(folder), shape)[0]
        assert pixels.errors == [f"'images/00000.jpg' becomes pixels of shape (3, 32, 32), the model takes {shape}."]
        assert not pixels.values.any()
