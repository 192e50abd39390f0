import errno
import os
import socket
import time

import pytest

from vitconv.checkpoints.labels import read_labels
from vitconv.errors import CheckpointError, DestinationError, InputError
from vitconv.files import (
    NoRegularFileError,
    Watch,
    check_file,
    check_name,
    is_unicode,
    new_file,
    open_file,
    read_json,
    write_json,
)
from vitconv.models.data_config import read_data_config


@pytest.fixture(params=["pipe", "socket", "device", "link"])
def other(request, tmp_path, monkeypatch):
    """Files that are not regular, with their names in errors."""
    monkeypatch.chdir(tmp_path)  # a socket's name may not be long
    if request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("other")
            yield tmp_path / "other", "a socket"
        return
    if request.param == "pipe":
        os.mkfifo("other")
    else:
        os.symlink("/dev/zero", "other")
    yield tmp_path / "other", "a pipe" if request.param == "pipe" else "a device"


def test_only_regular_files_are_opened(other):
    path, kind = other
    with pytest.raises(NoRegularFileError) as caught:
        open_file(path)
    assert caught.value.strerror == kind


def test_a_regular_file_is_opened_by_any_name(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes\r\n")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_file(tmp_path / name) as stream:
            assert stream.read() == b"bytes\r\n"
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")


def test_a_file_replaced_before_it_is_opened_is_not_read(tmp_path, monkeypatch):
    """A pipe that comes between the look and the opening is not waited for."""
    (tmp_path / "file").write_bytes(b"")
    real = os.stat(tmp_path / "file")
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr("vitconv.files.os.stat", lambda path: real)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(NoRegularFileError):
        open_file(tmp_path / "file")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_named_must_be_regular(other):
    path, kind = other
    with pytest.raises(InputError, match=f"The label file '.*other' is {kind}, not a file") as caught:
        check_file(path, "label file")
    assert "Write its content to a file" in caught.value.remedy


def test_missing_and_unreadable_files_pass_the_check(tmp_path):
    for path in (tmp_path / "none", "nul\0"):
        check_file(path, "label file", most=0)


def test_a_folder_where_a_file_is_due(tmp_path):
    with pytest.raises(InputError, match="The label file '.*' is a folder, not a file."):
        check_file(tmp_path, "label file")


def test_json_that_is_not_there(tmp_path):
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "none" / "a.json", f"There is no folder '{tmp_path}/none'."),
        (tmp_path / "a.json", f"'{tmp_path}' has no a.json."),
        (tmp_path / "file" / "a.json", f"'{tmp_path}/file' is a file, not a folder."),
    ):
        with pytest.raises(CheckpointError) as caught:
            read_json(path)
        assert caught.value.problem == message


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="needs Linux's /proc")
def test_a_file_of_the_system_s_is_refused(tmp_path):
    """They have the size 0, and reading some of them blocks: /proc/kmsg."""
    for name in ("/proc/version", "/proc/kmsg"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        if os.access(name, os.R_OK):
            with pytest.raises(InputError, match="link' is a system file without a size"):
                check_file(tmp_path / "link", "label file")
    (tmp_path / "empty").touch()
    check_file(tmp_path / "empty", "label file")


@pytest.mark.parametrize(
    ("read", "error"), [(read_labels, InputError), (read_data_config, InputError), (read_json, CheckpointError)]
)
def test_readers_refuse_irregular_and_too_large_files(tmp_path, read, error):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match="pipe' is a pipe, not a file"):
        read(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(error, match="large' has 68,719,476,736 bytes; at most 67,108,864 are allowed"):
        read(tmp_path / "large")


@pytest.mark.parametrize(
    ("read", "error"), [(read_labels, InputError), (read_data_config, InputError), (read_json, CheckpointError)]
)
@pytest.mark.parametrize(
    "text",
    [
        '{"0": "ash", "1": "oak", "1": "elm"}',
        '{"1": "oak", "id2label": {"0": "ash"}, "1": "oak"}',
        '{"id2label": {"0": "ash", "1": "oak", "1": "elm"}}',
    ],
)
def test_readers_refuse_a_key_that_occurs_twice(tmp_path, read, error, text):
    (tmp_path / "twice").write_text(text)
    with pytest.raises(error, match="twice' has the key '1' twice in one JSON object") as caught:
        read(tmp_path / "twice")
    assert caught.value.remedy == "Remove one of the two: they may contradict each other."


def test_an_old_file_is_replaced_and_its_hard_links_stay(tmp_path):
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


def test_new_files_have_the_permissions_of_the_umask(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        with new_file(tmp_path / "a.txt"):
            pass
        os.umask(before)
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_json_is_written_whatever_the_text(tmp_path):
    """Names of files, and JSON of others, may hold what UTF-8 has not."""
    content = {"größe": "\ud800x", "\udcff": 1}
    write_json(content, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") == content
    assert "größe" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert [is_unicode(text) for text in ("größe 😀", "", "\ud800", "x\udfff")] == [True, True, False, False]


def test_names_that_are_not_utf_8(tmp_path, monkeypatch):
    (tmp_path / "\udcfc").mkdir()
    monkeypatch.chdir(tmp_path / "\udcfc")
    for path in (tmp_path / "\udcfc", "größe", "../\udcfc/x"):
        with pytest.raises(CheckpointError, match="The name of '.*' is not UTF-8, or that of a folder"):
            check_name(path, CheckpointError)
    check_name(tmp_path / "größe 😀", CheckpointError)


def test_names_where_the_working_folder_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    check_name("x.pth", CheckpointError)
    with pytest.raises(CheckpointError, match="is not UTF-8"):
        check_name("\udcfc.pth", CheckpointError)


def test_an_unwritable_destination_is_named(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DestinationError, match="folder.txt' cannot be written"), new_file(tmp_path / "folder.txt"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot be written"), new_file(tmp_path / "file" / "x.txt"):
        pass


def test_a_file_that_is_written_over_and_gets_its_old_time_is_seen(tmp_path):
    """As `tar`, `rsync --inplace --times` and `cp -p` do, where all files of both models have one time."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    watch = Watch(tmp_path, tmp_path.iterdir)
    watch.check()
    time.sleep(0.05)  # the clock of a file system has steps
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match="have changed while the model ran"):
        watch.check()
