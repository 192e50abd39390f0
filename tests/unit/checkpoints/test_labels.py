import pytest
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
        (b"", "is empty, or has an empty or unprintable name"),
        (b"cat\n\ndog\n", "has an empty or unprintable name"),
        (b'["cat", 3]', "has an empty or unprintable name"),
        (b"cat\ndog\ncat\n", "names 'cat' more than once"),
        (b'["cat", ', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'["cat", "\\ud800"]', "unprintable name"),
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
        (b'{"id2label": {"0": ["cat"], "1": "dog"}, "label2id": {"cat": 0}}', "empty or unprintable name"),
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


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="There is no label file"):
        read_labels(tmp_path / "none")


@pytest.mark.parametrize(
    ("labels", "message"), [([], "The list of labels is empty"), (["a", 1], "empty"), (["a", "a"], "more than once")]
)
def test_a_list_is_checked_as_a_file_is(labels, message):
    with pytest.raises(InputError, match=message):
        check_labels(labels)


def folder_of(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / name / "1.png")
    return root


@pytest.mark.parametrize(
    "names", [("cat", "dog", "öl tank"), ("1", "2", "3"), ("n01", "n02"), ("roof 2", "roof 3x10", "tile")]
)
def test_the_subfolders_of_the_training_images_are_the_classes(names, tmp_path):
    """In the order in which timm's and torchvision's readers number them; hidden folders and files do not count."""
    root = folder_of(tmp_path / "train", reversed(names))
    (root / ".cache").mkdir()
    (root / "notes.txt").write_text("cat")
    assert read_labels(root) == names
    assert find_images_and_targets(str(root))[1] == {name: number for number, name in enumerate(names)}
    (root / ".cache").rmdir()
    assert tuple(ImageFolder(root).classes) == names


@pytest.mark.parametrize("names", [("roof10", "roof2"), ("Zebra", "ant"), ("a1", "a01"), ("A", "a")])
def test_subfolders_that_are_numbered_in_two_ways_are_refused(names, tmp_path):
    with pytest.raises(InputError, match="The order of the subfolders of '.*train' is not clear: where timm has"):
        read_labels(folder_of(tmp_path / "train", names))


def test_a_folder_without_subfolders_names_no_classes(tmp_path):
    with pytest.raises(InputError, match="The folder '.*' is empty, or has an empty or unprintable name"):
        read_labels(tmp_path)
