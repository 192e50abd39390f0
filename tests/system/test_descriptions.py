"""What a checkpoint says about itself is read as timm reads it, in more cases than the unit tests try."""

from descriptions import check_descriptions


def test_vitconv_reads_what_timm_builds_or_refuses(tmp_path_factory):
    tally = check_descriptions(2000, tmp_path_factory)
    assert tally["equal"] > 700, tally
