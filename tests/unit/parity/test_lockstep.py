import threading
import weakref

import pytest

from vitconv.parity.lockstep import in_step


def counting(stages, log=None):
    def computation(arrive):
        for i in range(stages):
            if log is not None:
                log.append(i)
            arrive(f"stage {i}", i)
        return "end"

    return computation


def test_hands_over_stage_by_stage():
    seen = list(in_step([counting(2), counting(2)]))
    assert seen == [
        (["stage 0", "stage 0"], [0, 0]),
        (["stage 1", "stage 1"], [1, 1]),
        (["output", "output"], ["end", "end"]),
    ]


def test_nobody_runs_ahead():
    log = []
    for names, _ in in_step([counting(3, log), counting(3)]):
        assert len(log) == (3 if names[0] == "output" else int(names[0][-1]) + 1)


def test_unequal_lengths_end_with_the_shorter():
    assert [names for names, _ in in_step([counting(1), counting(5)])] == [
        ["stage 0", "stage 0"],
        ["output", "stage 1"],
    ]


@pytest.mark.parametrize("position", [0, 1])
def test_an_exception_is_raised_here_and_the_others_end(position):
    def failing(arrive):
        arrive("stage 0", None)
        raise ArithmeticError("mine")

    before = threading.active_count()
    computations = [counting(9), counting(9)]
    computations[position] = failing
    with pytest.raises(ArithmeticError, match="mine"):
        list(in_step(computations))
    assert threading.active_count() == before


def test_leaving_early_ends_all_threads():
    before = threading.active_count()
    for _ in in_step([counting(9), counting(9)]):
        break
    assert threading.active_count() == before


def test_only_one_stage_is_held():
    class Value:
        pass

    alive = []

    def computation(arrive):
        for _ in range(4):
            value = Value()
            alive.append(weakref.ref(value))
            arrive("stage", value)
            del value
        return None

    for names, values in in_step([computation]):
        del values
        if names != ["output"]:
            assert sum(reference() is not None for reference in alive) <= 1
