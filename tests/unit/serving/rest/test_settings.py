"""What a server is told: the API key is in test_watch.py."""

import math

import pytest

from vitconv.errors import InputError
from vitconv.serving.rest import Settings


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0, -1, 1e308, "10", None, True])
def test_a_timeout_that_is_no_number_of_seconds(seconds):
    with pytest.raises(InputError, match="The timeout is "):
        Settings(timeout=seconds)


@pytest.mark.parametrize("count", [0, -1, 10**400, 1.5, "2", None, True])
def test_a_number_of_workers_that_cannot_be_had(count):
    with pytest.raises(InputError, match="The number of workers is "):
        Settings(workers=count)
