"""From a message to its result."""

import json
import os

import pytest
from photos import image_file

from vitconv.errors import ParityError
from vitconv.messaging import Message, image_message
from vitconv.messaging.results import dead_letter, result_of, smaller


def file_message(path, id="a"):
    return Message(b"", {"ce-id": id, "ce-dataref": path})


def test_an_answer(classifier):
    image = image_file("JPEG")
    result, answer = result_of(image_message(image, "photo-ü"), classifier)
    content, print_ = json.loads(result.content), classifier.info.fingerprint
    assert content == {"id": "photo-ü", "fingerprint": print_, **classifier(image).to_dict()}
    assert answer.to_dict() == classifier(image).to_dict()
    assert result.attributes == {
        "ce-specversion": "1.0",
        "ce-id": "photo-ü",
        "ce-source": f"urn:vitconv:model:{print_}",
        "ce-type": "vitconv.answer",
        "content-type": "application/json",
    }
    assert result.key == f"photo-ü/{print_}"


def test_a_repeat_is_equal_bit_for_bit(classifier):
    message = image_message(image_file(), "a")
    again = Message(message.content, message.attributes, attempt=3)
    assert result_of(message, classifier).message == result_of(again, classifier).message


@pytest.mark.parametrize(
    "content", [b"", b"%PDF-1.7", image_file()[:100], image_file("PNG", "L", (20_000, 9_000))[:60]]
)
def test_a_broken_image_is_a_result(classifier, content):
    result, answer = result_of(image_message(content, "a"), classifier)
    assert answer is None
    assert result.attributes["ce-type"] == "vitconv.error"
    assert set(json.loads(result.content)) == {"id", "fingerprint", "error"}
    assert set(json.loads(result.content)["error"]) == {"problem", "remedy"}


def test_what_is_not_the_image_s_fault_is_no_result(classifier):
    """A GPU that fails would answer all images with an error, and they would be acknowledged."""

    class Failing:
        info = classifier.info

        def __call__(self, image):
            raise ParityError("The model cannot be run: CUDA error.", "Look.", stage="loading")

    with pytest.raises(ParityError):
        result_of(image_message(image_file(), "a"), Failing())


def test_a_path_below_the_root(classifier, tmp_path):
    (tmp_path / "a").mkdir()
    image = image_file()
    (tmp_path / "a" / "ü.png").write_bytes(image)
    result = result_of(file_message("a/ü.png"), classifier, tmp_path).message
    assert result.content == result_of(image_message(image, "a"), classifier).message.content


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.png", "a/../../secret.png", "/etc/passwd", "link.png", "http://host/a.png", "file:///etc/passwd"),
        *("gs://bucket/a.png", "none.png", "a.png/b", "", ".", "a\0b", "x" * 5000, "pipe", "loop", "loop/a"),
    ],
)
def test_a_path_that_leads_nowhere_or_elsewhere(classifier, tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(image_file())
    (root / "a.png").write_bytes(image_file())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    result = result_of(file_message(path), classifier, root).message
    assert result.attributes["ce-type"] == "vitconv.error", result.content
    assert str(tmp_path) not in result.content.decode()


def test_without_a_root_no_path_is_read(classifier):
    result = result_of(file_message("a.png"), classifier).message
    assert "given no folder" in json.loads(result.content)["error"]["problem"]


def test_what_is_the_machine_s_fault_is_no_result(classifier, tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("vitconv.messaging.results.open_file", fail)
    with pytest.raises(PermissionError):
        result_of(file_message("a.png"), classifier, tmp_path)


def test_a_dead_letter_is_the_message_as_it_came(classifier):
    message = Message(b"abc", {"ce-id": "a", "other": "x"}, "key", attempt=4)
    letter = dead_letter(message, "é" * 2000)
    assert (letter.content, letter.key) == (b"abc", "key")
    assert letter.attributes == {"ce-id": "a", "other": "x", "vitconv-problem": "é" * 512, "vitconv-attempts": "4"}


def test_a_dead_letter_becomes_smaller_step_by_step():
    attributes = {"ce-id": "a", "ce-source": "s" * 1025, "ce-type": "t", "topic": "x"}
    letter = dead_letter(Message(b"abc", attributes, "k" * 5000), "So.")
    without = smaller(letter)
    assert (without.content, without.key) == (b"abc", "a")
    assert without.attributes == {
        "ce-id": "a",
        "ce-type": "t",
        "vitconv-problem": "The topic does not take its attributes or its key. So.",
        "vitconv-attempts": "1",
    }
    least = smaller(without)
    assert (least.content, least.key, least.attributes.keys()) == (b"", "a", without.attributes.keys())
    assert least.attributes["vitconv-problem"].startswith("The topic does not take its content of 3 bytes. The topic")
    assert smaller(least) is None


def test_what_is_said_of_a_smaller_letter_is_no_longer_than_pub_sub_allows():
    letter = smaller(dead_letter(image_message(b"abc", "a"), "é" * 512))
    assert letter.content == b"" and letter.attributes["ce-source"] == "vitconv"
    assert len(letter.attributes["vitconv-problem"].encode()) in (1023, 1024)
