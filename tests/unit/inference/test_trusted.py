"""The list of programs that may be loaded: those that this user has made here."""

import os
import stat
from pathlib import Path

import pytest
from optimizing import reseal

from vitconv.errors import CheckpointError, DestinationError, InputError
from vitconv.files import sha256
from vitconv.inference.runtime import open_model
from vitconv.inference.trusted import check_trusted, trust, trusted_list


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def program(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"a program")
    return tmp_path / "model.pt"


def test_a_program_is_trusted_by_its_content(program, tmp_path):
    with pytest.raises(CheckpointError, match="is a program, and was not made by this user on this machine") as caught:
        check_trusted(program)
    assert f"add the line {sha256(program)} to '{trusted_list()}'" in caught.value.remedy
    trust(program)
    check_trusted(program)
    check_trusted(program.rename(tmp_path / "moved.pt"))
    (tmp_path / "moved.pt").write_bytes(b"another program")
    with pytest.raises(CheckpointError, match="is a program"):
        check_trusted(tmp_path / "moved.pt")


def test_the_list_is_the_user_s_own(program, state, monkeypatch):
    trust(program)
    trust(program)
    assert trusted_list() == state / "vitconv" / "trusted.txt"
    assert stat.S_IMODE((state / "vitconv").stat().st_mode) == 0o700
    assert trusted_list().read_text().split() == [sha256(program)] * 2
    monkeypatch.delenv("XDG_STATE_HOME")
    assert trusted_list() == Path.home() / ".local" / "state" / "vitconv" / "trusted.txt"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"0" * 64, b"not a digest"])
def test_a_list_without_the_program(program, state, content):
    (state / "vitconv").mkdir(parents=True)
    trusted_list().write_bytes(content)
    with pytest.raises(CheckpointError, match="is a program"):
        check_trusted(program)


def test_a_part_of_a_line_is_not_enough(program):
    """Or any program's digest would be found in a long enough text."""
    trusted_list().parent.mkdir(parents=True)
    trusted_list().write_text(f"x{sha256(program)}\n")
    with pytest.raises(CheckpointError, match="is a program"):
        check_trusted(program)


def test_a_list_that_is_no_file_is_not_waited_for(program):
    trusted_list().parent.mkdir(parents=True)
    os.mkfifo(trusted_list())
    with pytest.raises(CheckpointError, match="is a program"):
        check_trusted(program)


@pytest.mark.parametrize("lines", ["", "0" * 64, "0" * 64 + "\n", "# from Ann\n" + "0" * 64])
def test_a_line_that_was_added_by_hand_is_kept(program, lines):
    """Its end may be missing."""
    trusted_list().parent.mkdir(parents=True)
    trusted_list().write_text(lines)
    trust(program)
    check_trusted(program)
    assert trusted_list().read_text().splitlines() == [*lines.splitlines(), sha256(program)]


def test_a_list_that_is_no_file_is_not_written_to(program):
    trusted_list().parent.mkdir(parents=True)
    os.mkfifo(trusted_list())
    with pytest.raises(DestinationError, match="trusted.txt' is a pipe"):
        trust(program)


def test_a_list_that_cannot_be_written(program, state):
    state.write_text("a file is where a folder should be")
    with pytest.raises(DestinationError, match="trusted.txt' cannot be written"):
        trust(program)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torchscript", "aotinductor"])
def test_a_folder_does_not_decide_whether_it_is_a_program(woods, tmp_path, runtime):
    """A folder from elsewhere says what it likes; its runtime is what loads a program."""
    fast = woods.copy("onnx", tmp_path / "fast")
    reseal(fast, lambda content: content["artefact"].update(runtime=runtime, code=False))
    with pytest.raises(CheckpointError, match="is a program, and was not made by this user"):
        open_model(fast, "cpu")


def test_a_user_without_a_home(tmp_path, monkeypatch):
    """As in a container whose user has a number and no name."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    (tmp_path / "model.pt").write_bytes(b"x")
    for use in (trust, check_trusted):
        with pytest.raises(InputError, match="There is no home folder"):
            use(tmp_path / "model.pt")
