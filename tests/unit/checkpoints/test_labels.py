import pytest

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
    ],
)
def test_refuses_with_a_reason(content, message, tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert caught.value.remedy


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="There is no label file"):
        read_labels(tmp_path / "none")


@pytest.mark.parametrize(
    ("labels", "message"), [([], "The list of labels is empty"), (["a", 1], "empty"), (["a", "a"], "more than once")]
)
def test_a_list_is_checked_as_a_file_is(labels, message):
    with pytest.raises(InputError, match=message):
        check_labels(labels)
