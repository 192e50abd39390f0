import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets import ImageFolder

from vitconv.checkpoints.labels import check_labels, read_labels
from vitconv.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\nöl tank\n",
        "cat\r\n dog \r\nöl tank\r\n\r\n",
        "\ufeffcat\ndog\nöl tank",
        '["cat", "dog", "öl tank"]',
        '{"0": "cat", "1": "dog", "2": "öl tank"}',
        '{"2": "öl tank", "0": "cat", "1": "dog"}',
        '{"cat": 0, "dog": 1, "öl tank": 2}',
        '{"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "öl tank"}}',
        '{"id2label": {"0": "cat", "1": "dog", "2": "öl tank"}, "label2id": {"öl tank": 2, "cat": 0, "dog": "1"}}',
        '{"id2label": {"0": "cat", "1": "dog", "2": "öl tank"}, "label2id": null}',
    ],
)
def test_reads_every_format(text, tmp_path):
    path = tmp_path / "labels"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_labels(path) == ("cat", "dog", "öl tank")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"cat\n\ndog\n", "gives class number 1 the name '', which is empty or not text"),
        (b'["cat", 3]', "gives class number 1 the name 3, which is empty or not text"),
        (b"[]", "is empty"),
        (b"cat\ndog\ncat\n", "names 'cat' more than once"),
        (b"0,cat\n1,dog\n", "begins each line with the class's number: '0,cat'"),
        (b"0\tcat\n1\tdog\n", "begins each line with the class's number: "),
        (b'["cat", ', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'["cat", "\\ud800"]', r"has a name with characters that are not seen, or not text: '\\ud800'"),
        ("cat\n\u0646\u0645\u06cc\u200c\u062f".encode(), r"Leave out '\\u200c' of class number 1"),
        (b'{"0": "cat", "2": "dog"}', "has no class number 1"),
        (b'{"cat": 0, "dog": 0}', "has no class number 1"),
        (b"\xff\xfe\x00", "is not readable text"),
        (
            b'{"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 1, "dog": 0}}',
            "`label2id` calls 'cat' 1, and its `id2label` does not",
        ),
        (
            b'{"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "cow": 1}}',
            "`label2id` calls 'cow' 1, and its `id2label` does not",
        ),
        (b'{"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0}}', "`label2id` leaves out 'dog'"),
        (b'{"id2label": {"0": ["cat"], "1": "dog"}, "label2id": {"cat": 0}}', "which is empty or not text"),
        (b'{"id2label": {"0": "cat", "1": "dog"}, "label2id": ["cat", "dog"]}', "`label2id` is .*, no mapping"),
        (b"{0: 'cat',\n 1: 'dog'}", "is not valid JSON"),
        (b"[\n'cat',\n'dog'\n]", "is not valid JSON"),
        (b"['cat',\n'dog']", "is not valid JSON"),
        (b'["cat"],\n["dog"]', "is not valid JSON"),
    ],
)
def test_refuses_with_a_reason(content, message, tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert caught.value.remedy


@pytest.mark.parametrize("first", ["[unused]", "[0] cat", "{other}", "[a] {b}"])
def test_a_class_in_brackets_is_text(first, tmp_path):
    for name in ("labels", "labels.txt"):
        (tmp_path / name).write_text(f"{first}\ndog\n[cow]\n")
        assert read_labels(tmp_path / name) == (first, "dog", "[cow]")
    (tmp_path / "labels.JSON").write_text(f"{first}\ndog\n")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_labels(tmp_path / "labels.JSON")


@pytest.mark.parametrize("names", [("0 - zero", "1 - one"), ("0,5 mm", "1,5 mm")], ids=["MNIST", "decimal comma"])
def test_a_name_may_begin_with_a_number(names, tmp_path):
    """As torchvision calls the classes of MNIST."""
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(names))
    assert read_labels(path) == names


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="There is no label file"):
        read_labels(tmp_path / "none")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "The list of labels is empty"),
        (["a", 1], "gives class number 1 the name 1, which"),
        (["a", "a"], "more than once"),
        ({"a", "b"}, "is a set, which has no order"),
        ({"a": 1, "b": 2}, "has no class number 0"),
    ],
)
def test_a_list_is_checked_as_a_file_is(labels, message):
    with pytest.raises(InputError, match=message):
        check_labels(labels)


@pytest.mark.parametrize("labels", [{"b": 1, "a": 0}, {1: "b", 0: "a"}, {"a": 0, "b": 1}.keys()])
def test_a_mapping_gives_the_names_by_their_indices(labels):
    """Such as a data set's `class_to_idx`, whose order may be any."""
    assert check_labels(labels) == ("a", "b")


def folder_of(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / name / "1.png")
    return root


@pytest.mark.parametrize(
    "names", [("cat", "dog", "öl tank"), ("1", "2", "3"), ("n01", "n02"), ("roof 2", "roof 3x10", "tile"), (".a", "b")]
)
def test_the_subfolders_of_the_training_images_are_the_classes(names, tmp_path):
    """In the order in which timm's and torchvision's readers number them; files do not count."""
    root = folder_of(tmp_path / "train", reversed(names))
    (root / "notes.txt").write_text("cat")
    assert read_labels(root) == names
    assert find_images_and_targets(str(root))[1] == {name: number for number, name in enumerate(names)}
    assert tuple(ImageFolder(root).classes) == names


@pytest.mark.parametrize(
    "names",
    [("roof10", "roof2"), ("Zebra", "ant"), ("a1", "a01"), ("A", "a"), ("９号", "１０号"), ("٩", "١٠")],
)
def test_subfolders_that_are_numbered_in_two_ways_are_refused(names, tmp_path):
    with pytest.raises(InputError, match="The order of the subfolders of '.*train' is not clear: where timm has"):
        read_labels(folder_of(tmp_path / "train", names))


def test_subfolders_that_timm_cannot_number_are_refused(tmp_path):
    root = folder_of(tmp_path / "train", ["a", "²"])
    with pytest.raises(ValueError, match="invalid literal for int"):
        find_images_and_targets(str(root))
    with pytest.raises(InputError, match=r"timm cannot number the subfolders of '.*train': invalid literal .*'²'\."):
        read_labels(root)


@pytest.mark.parametrize(
    ("names", "other"),
    [
        (("cat/zoo", "dog/home"), "'cat' is a class for torchvision only"),
        (("train/cat", "train/dog", "val/cat", "val/dog"), "'cat' is a class for timm only"),
        (("cat", "cat/more", "dog"), "'more' is a class for timm only"),
    ],
)
def test_images_deeper_than_the_classes_are_refused(names, other, tmp_path):
    with pytest.raises(
        InputError, match=f"have subfolders with images, so its classes are not clear: {other}"
    ) as caught:
        read_labels(folder_of(tmp_path / "data", names))
    assert "Pass the folder whose subfolders hold the images themselves" in caught.value.remedy


@pytest.mark.parametrize("name", [".cache", "__MACOSX", "empty", "zebra"])
@pytest.mark.parametrize("file", [None, "1.txt", "1.webp", ".png"])
def test_a_subfolder_without_an_image_is_refused(name, file, tmp_path):
    """timm takes it for no class, and torchvision either does or fails."""
    root = folder_of(tmp_path / "train", ["cat", "dog"])
    (root / name).mkdir()
    if file is not None:
        (root / name / file).touch()
    message = rf"The subfolder '{name}' of '.*train' has no image that timm reads \(.png, .jpg, .jpeg\)"
    with pytest.raises(InputError, match=message):
        read_labels(root)


def test_images_beside_the_subfolders_are_refused(tmp_path):
    root = folder_of(tmp_path / "train", ["cat", "dog"])
    (root / "1.JPG").touch()
    with pytest.raises(InputError, match="has images beside its subfolders, which timm takes for one more class"):
        read_labels(root)


def test_a_folder_without_subfolders_names_no_classes(tmp_path):
    with pytest.raises(InputError, match="The folder '.*' has no subfolders"):
        read_labels(tmp_path)


def test_an_unprintable_subfolder_is_named(tmp_path):
    root = folder_of(tmp_path / "train", ["a\nb", "c"])
    with pytest.raises(InputError, match=r"The folder '.*train' has a name with characters .*: 'a\\nb'\."):
        read_labels(root)


def test_links_are_followed_and_need_not_end(tmp_path):
    root = folder_of(tmp_path / "train", ["dog"])
    (root / "cat").symlink_to(folder_of(tmp_path / "other", ["images"]) / "images")
    assert read_labels(root) == ("cat", "dog")
    for name in ("up", "again"):  # timm would follow them forty levels deep, in each order
        (root / "dog" / name).symlink_to(".")
    with pytest.raises(InputError, match="so its classes are not clear"):
        read_labels(root)


def test_a_subfolder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root, scandir = folder_of(tmp_path / "train", ["cat", "dog"]), os.scandir

    def failing(path):
        if str(path).endswith("dog"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(InputError, match="The folder '.*dog' cannot be read: Permission denied"):
        read_labels(root)


part = st.text(st.sampled_from("aB129_ -.٣９²É"), min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
name = part | st.sampled_from(["train", "val", "cat", "dog", ".cache", "__MACOSX"])
tree = st.dictionaries(
    st.lists(name, max_size=3).map(tuple),
    st.sampled_from([(), ("1.png",), ("1.JPG", "2.png"), ("1.webp",), (".png",)]),
)


@given(tree | st.dictionaries(name.map(lambda one: (one,)), st.just(("1.png",)), min_size=1))
@settings(max_examples=400, deadline=None)
def test_the_names_are_as_timm_and_torchvision_number_them_or_refused(files):
    with tempfile.TemporaryDirectory() as folder:
        for parts, names in files.items():
            Path(folder, *parts).mkdir(parents=True, exist_ok=True)
            for one in names:
                Path(folder, *parts, one).touch()
        try:
            names = read_labels(folder)
        except InputError as error:
            assert error.remedy
            event("refused")
            return
        event("read")
        numbers = {name: number for number, name in enumerate(names)}
        assert find_images_and_targets(folder)[1] == numbers
        assert ImageFolder(folder).class_to_idx == numbers
