import os

import pytest

from vitconv.errors import DestinationError
from vitconv.evaluation.files import new_file


def test_the_old_file_goes_and_its_other_names_stay(tmp_path):
    old, link = tmp_path / "old.txt", tmp_path / "link.txt"
    old.write_text("old")
    old.chmod(0o444)
    os.link(old, link)
    new_file(old).write_text("new")
    assert (old.read_text(), link.read_text()) == ("new", "old")


def test_folders_are_made(tmp_path):
    assert new_file(tmp_path / "a" / "b" / "c.txt").parent.is_dir()


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DestinationError, match="folder.txt' cannot be written"):
        new_file(tmp_path / "folder.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot be written"):
        new_file(tmp_path / "file" / "x.txt")
