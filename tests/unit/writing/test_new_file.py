import errno
import os

import pytest

from vitconv.errors import DestinationError
from vitconv.writing.files import new_file


def test_the_old_file_goes_and_its_other_names_stay(tmp_path):
    old, link = tmp_path / "old.txt", tmp_path / "link.txt"
    old.write_text("old")
    old.chmod(0o444)
    os.link(old, link)
    with new_file(old) as file:
        file.write_text("new")
    assert (old.read_text(), link.read_text()) == ("new", "old")


def test_folders_are_made(tmp_path):
    with new_file(tmp_path / "a" / "b" / "c.txt") as file:
        file.write_text("c")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "c"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("no"), KeyboardInterrupt()]
)
def test_a_file_is_whole_or_not_there(error, tmp_path):
    (tmp_path / "old.txt").write_text("old")
    raised = DestinationError if isinstance(error, OSError) else type(error)
    with pytest.raises(raised) as caught, new_file(tmp_path / "old.txt") as file:
        file.write_text("half")
        raise error
    if isinstance(error, OSError):
        assert caught.value.problem == f"'{tmp_path}/old.txt' cannot be written: No space left on device."
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        with new_file(tmp_path / "a.txt"):
            pass
        os.umask(before)
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DestinationError, match="folder.txt' cannot be written"), new_file(tmp_path / "folder.txt"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot be written"), new_file(tmp_path / "file" / "x.txt"):
        pass
