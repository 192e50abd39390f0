"""Who may be handled beside whom, for any order of deliveries, acknowledgements and failures."""

from hypothesis import given
from hypothesis import strategies as st

from vitconv.messaging import Message
from vitconv.messaging.turns import Turns


def message(number, attempt=1):
    return Message(b"", {"ce-id": str(number)}, attempt=attempt, receipt=number)


@given(st.lists(st.integers(1, 3), max_size=20), st.lists(st.integers(0, 8), max_size=60))
def test_suspects_are_alone_and_all_are_handed_out(attempts, steps):
    turns, out, seen = Turns(), [], []
    for number, attempt in enumerate(attempts):
        turns.add(message(number, attempt))
    # At the end, all that is out is settled in turn, so that nothing is kept waiting by what is out.
    for step in [*steps, *([0, 8] * (len(attempts) + 1))]:
        if step == 0 and out:
            assert turns.settle(out.pop(0)) is True
        taken = turns.take(step)
        assert len(taken) <= max(step, 1)
        seen += taken
        out += taken
        assert list(turns.out) == out
        if any(one.attempt > 1 for one in out):
            assert len(out) == 1
        if not taken:
            assert out or turns.missing(1) or step == 0
    assert sorted(one.receipt for one in seen) == list(range(len(attempts)))
    suspects = [one.attempt for one in seen if one.attempt > 1]
    assert suspects == sorted(suspects)


def test_one_is_settled_once():
    turns = Turns()
    turns.add(message(1))
    (one,) = turns.take(1)
    assert (turns.settle(one), turns.settle(one), turns.settle(message(2))) == (True, False, False)


def test_forgetting_forgets_what_waits_and_what_is_out():
    turns = Turns()
    for number in range(4):
        turns.add(message(number))
    (first,) = turns.take(1)
    turns.forget(lambda one: one.receipt < 2)
    assert turns.settle(first) is False
    assert [one.receipt for one in turns.take(8)] == [2, 3]


def test_it_waits_until_a_batch_is_full_or_the_time_is_over():
    turns, asked = Turns(), []

    def fetch(count, seconds):
        asked.append(count)
        turns.add(message(len(asked)))

    assert len(turns.pull(3, 10, fetch)) == 3 and asked == [3, 2, 1]
    asked.clear()
    assert turns.pull(3, 0, lambda count, seconds: asked.append((count, seconds))) == []
    assert asked == [(3, 0)]  # it looks once, whatever the time
