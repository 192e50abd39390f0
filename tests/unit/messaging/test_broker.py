"""What every broker makes of a message that came."""

import pytest

from vitconv.errors import InputError
from vitconv.messaging.broker import MOST_ID, arrived, image_message


def make(attributes):
    return arrived(b"abc", attributes, "topic/0/7", key="k", receipt=(0, 7), attempt=2)


def test_a_message_is_as_it_came():
    found = make({"ce-id": "a", "other": "x"})
    assert (found.content, found.attributes, found.id) == (b"abc", {"ce-id": "a", "other": "x"}, "a")
    assert (found.key, found.receipt, found.attempt, found.problem) == ("k", (0, 7), 2, "")


@pytest.mark.parametrize("attributes", [{}, {"ce-id": ""}])
def test_without_an_id_it_has_the_broker_s(attributes):
    found = make(attributes)
    assert (found.id, found.problem) == ("topic/0/7", "")


@pytest.mark.parametrize(("id", "taken"), [("é" * (MOST_ID // 2), True), ("é" * (MOST_ID // 2) + "a", False)])
def test_an_id_is_taken_up_to_a_number_of_bytes(id, taken):
    found = make({"ce-id": id, "other": "x"})
    assert (found.id == id, not found.problem, found.attributes["other"]) == (taken, taken, "x")
    assert taken or (found.id == "topic/0/7" and "has 1,025 bytes, and may have 1,024" in found.problem)


def test_a_problem_is_short_however_long_the_id():
    assert len(make({"ce-id": "a" * 400_000}).problem) < 1024


def test_what_cannot_be_read_has_a_problem():
    found = make(None)
    assert found.attributes == {"ce-id": "topic/0/7"} and "headers cannot be read" in found.problem


def test_the_name_of_a_file_that_is_no_text_is_no_id():
    with pytest.raises(InputError, match=r"The id 'caf\\udce9.jpg' cannot be written as UTF-8"):
        image_message(b"abc", "caf\udce9.jpg")
