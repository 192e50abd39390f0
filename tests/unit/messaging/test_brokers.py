"""One interface: the same tests for every broker."""

import time

import pytest
from queues import SOON, messages, pull_all

from vitconv.errors import InputError
from vitconv.messaging import Message, event


def test_what_is_sent_arrives_as_it_was(place):
    sent = event(b"\x00\xff" * 1000, "α/1", source="urn:x", type="vitconv.image", content_type="image/jpeg", key="k")
    place.open(place.writer).publish([sent])
    (found,) = pull_all(place.open(place.reader), 1)
    assert found.content == sent.content and found.attributes == sent.attributes
    assert (found.id, found.attempt) == ("α/1", 1) and found.receipt is not None


def test_a_message_without_an_id_gets_the_broker_s(place):
    place.open(place.writer).publish([Message(b"a"), Message(b"b", {"ce-id": ""})])
    found = pull_all(place.open(place.reader), 2)
    assert all(one.id for one in found) and found[0].id != found[1].id


def test_a_batch_is_as_large_as_asked_and_waits_no_longer(place):
    reader = place.open(place.reader)
    pull_all(reader, 1, seconds=0.5)  # it has joined its group
    place.open(place.writer).publish(messages(5))
    found = pull_all(reader, 2)
    assert len(found) <= 2
    while len(found) < 5:
        found += reader.pull(5, 1)
    begun = time.monotonic()
    assert reader.pull(5, 0.3) == []
    assert 0.2 < time.monotonic() - begun < 3
    assert sorted(one.id for one in found) == ["m0", "m1", "m2", "m3", "m4"]


def test_what_is_acknowledged_does_not_come_again_and_the_rest_does(place):
    place.open(place.writer).publish(messages(6))
    first = place.open(place.reader)
    found = pull_all(first, 6)
    first.ack([one for one in found if one.id in ("m0", "m1")])
    first.ack([one for one in found if one.id == "m0"])  # again
    first.close()
    second = place.open(place.reader)
    again = []
    while len(again) < 4:
        pulled = pull_all(second, 1)
        second.ack(pulled)
        again += pulled
    assert sorted(one.id for one in again) == ["m2", "m3", "m4", "m5"]
    assert second.pull(8, 1) == []


@pytest.mark.slow
def test_what_is_rejected_comes_again_alone(place):
    place.open(place.writer).publish(messages(4))
    reader = place.open(place.reader)
    found = {one.id: one for one in pull_all(reader, 4)}
    reader.nack([found["m1"], found["m2"]])
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert reader.pull(8, SOON) == []  # while others are at work, suspects wait
    reader.ack([found["m0"], found["m3"]])
    for attempt in (2, 2, 3):
        (one,) = pull_all(reader, 1)
        assert one.attempt == attempt and one.id in ("m1", "m2")
        assert reader.pull(8, SOON) == []
        if attempt == 2 and one.id == "m1":
            reader.nack([one])
        else:
            reader.ack([one])
    assert reader.pull(8, 1) == []


@pytest.mark.slow
def test_readers_share_the_messages(place):
    place.open(place.writer).publish(messages(20))
    one, other = place.open(place.reader, most=4), place.open(place.reader, most=4)
    found, end = [], time.monotonic() + 60
    while len({m.id for m in found}) < 20 and time.monotonic() < end:
        for reader in (one, other):
            pulled = reader.pull(4, SOON)
            reader.ack(pulled)
            found += pulled
    assert sorted({m.id for m in found}) == sorted(f"m{i}" for i in range(20))


def test_a_topic_that_does_not_exist(places):
    for kind, missing in (("kafka", "topic=none"), ("pubsub", "tests/none")):
        there = places(kind)
        url = there.writer.split("?")[0] + f"?{missing}" if kind == "kafka" else f"pubsub://{missing}"
        with pytest.raises(InputError, match="none"):
            there.open(url).check()
        there.open(there.writer).check()
        there.open(there.reader).check()


def test_without_a_group_nothing_is_pulled(place):
    with pytest.raises(InputError, match="without a (group|subscription)"):
        place.open(place.writer).pull(1, SOON)
