"""vitconv reads a checkpoint's description as timm does, tested with more cases than in the unit tests."""

import pytest
from descriptions import check_descriptions


@pytest.mark.full
def test_descriptions_are_read_as_timm_reads_them_or_refused(tmp_path_factory):
    tally = check_descriptions(800, tmp_path_factory)
    assert tally["equal"] > 280, tally
