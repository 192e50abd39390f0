"""vitconv reads a checkpoint's description as timm does, tested with more cases than in the unit tests."""

from descriptions import check_descriptions


def test_descriptions_are_read_as_timm_reads_them_or_refused(tmp_path_factory):
    tally = check_descriptions(2000, tmp_path_factory)
    assert tally["equal"] > 700, tally
