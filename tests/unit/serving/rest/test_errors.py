import pytest

from vitconv.errors import CheckpointError, InputError, ParityError
from vitconv.serving.rest.errors import RequestError, status_of
from vitconv.serving.workers import BusyError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("a", "b"), (400, {})),
        (RequestError(413, "a", "b", {"Connection": "close"}), (413, {"Connection": "close"})),
        (BusyError("a", 2.5), (503, {"Retry-After": "3"})),
        (ParityError("a", "b", "logits"), (500, {})),
        (CheckpointError("a", "b"), (500, {})),
    ],
)
def test_whose_fault_it_is(error, expected):
    assert status_of(error) == expected
