import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitconv.errors import InputError
from vitconv.messaging import connect, place_of
from vitconv.messaging.urls import hosts_of

#: librdkafka ends at a NUL, and confluent-kafka kills the process over what is not UTF-8.
NAMES_THAT_CRASH = (
    *("kafka://h:1?topic=\udcff&group=g", "kafka://h:1?topic=a&group=\udcff", "kafka://\udcff:1?topic=a"),
    *("kafka://h:1?topic=a%00b", "kafka://h:1?topic=a&group=g%00", "pubsub://project/\udcff"),
)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "scheme"),
        ("images", "scheme"),
        ("amqp://host/queue", "scheme is 'amqp'"),
        ("kafka://?topic=a", "names no place"),
        ("kafka://host:9092", "names no topic"),
        ("kafka://host:9092?topic=", "names no topic"),
        ("kafka://host:9092/a?topic=a", "has a path, '/a'"),
        ("kafka://host:9092?topic=a&topic=b", "twice"),
        ("kafka://host:9092?topic=a&grup=b", "has 'grup'"),
        ("kafka://host:9092?topic=a&group=", "group is empty"),
        ("kafka://host:9092?topic", "bad query field"),
        ("pubsub://project", "names no topic"),
        ("pubsub://project/a/b", "names no topic"),
        ("pubsub://project/a?group=b", "has 'group'"),
        ("memory://?topic=a", "names no place"),
        ("kafka://[::1?topic=a", "Invalid IPv6"),
        *((url, "characters that no name has") for url in NAMES_THAT_CRASH),
    ],
)
def test_what_is_no_url(url, why):
    with pytest.raises(InputError) as caught:
        connect(url)
    assert why in caught.value.problem and "kafka://HOST:PORT?topic=NAME" in caught.value.remedy


def test_a_password_is_not_shown():
    with pytest.raises(InputError) as caught:
        connect("kafka://me:sesame@host:9092?topic=a")
    assert "sesame" not in str(caught.value) and "config=FILE" in caught.value.remedy


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("kafka://h:1?topic=a&group=x", "kafka://h:1?topic=a", True),
        ("kafka://h:1?topic=a&group=x", "kafka://h:1?topic=b&group=x", False),
        ("pubsub://p/a?subscription=s", "pubsub://p/a", True),
        ("pubsub://p/a", "pubsub://p/b", False),
        ("kafka://h:1?topic=a", "memory://h:1?topic=a", False),
        ("kafka://localhost:9092?topic=a", "kafka://127.0.0.1:9092?topic=a", True),
        ("kafka://localhost?topic=a", "kafka://[::1]:9092?topic=a", True),
        ("kafka://h:1,i:2?topic=a", "kafka://I:2,h:1?topic=a", True),
        ("kafka://h:1,i:2?topic=a", "kafka://h:2,i:1?topic=a", False),
        ("kafka://h:1?topic=a", "kafka://h:2?topic=a", False),
        ("memory://localhost?topic=a", "memory://127.0.0.1?topic=a", False),
    ],
)
def test_two_urls_of_one_topic(one, other, same):
    assert (place_of(one) == place_of(other)) is same


@given(st.text(), st.randoms())
def test_the_order_of_servers_does_not_matter(text, random):
    servers = text.split(",")
    shuffled = random.sample(servers, len(servers))
    assert hosts_of(",".join(shuffled)) == hosts_of(text) == tuple(sorted(hosts_of(text)))


@pytest.mark.parametrize("url", ["kafka://host:9092?topic=a", "pubsub://project/a"])
def test_packages_that_are_missing(url, monkeypatch):
    monkeypatch.setattr("vitconv.inference.optional.find_spec", lambda package: None)
    with pytest.raises(
        InputError, match=r"needs packages that are not installed: (confluent_kafka|google\.cloud)"
    ) as e:
        connect(url)
    assert ".[queue]" in e.value.remedy
