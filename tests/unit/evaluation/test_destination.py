import errno
import os
import threading
from pathlib import Path

import pytest

from vitconv.errors import DestinationError
from vitconv.evaluation import destination
from vitconv.evaluation.destination import MARK, PREDICTIONS, TIMM, check_report_folder, report_folder


def test_a_mark_that_was_replaced_before_it_was_locked_is_no_lock(tmp_path, monkeypatch):
    """A run that writes nothing ends between the two steps of another one, and a third one begins."""
    folder, lock = tmp_path / "report", destination.fcntl.flock
    first, third = report_folder(folder), report_folder(folder)
    first.__enter__()

    def end_first_and_begin_third(descriptor, operation):
        monkeypatch.setattr(destination.fcntl, "flock", lock)
        first.__exit__(None, None, None)
        assert not folder.exists()
        third.__enter__()
        lock(descriptor, operation)

    monkeypatch.setattr(destination.fcntl, "flock", end_first_and_begin_third)
    with pytest.raises(DestinationError, match="Another evaluation is writing"), report_folder(folder):
        pass
    third.__exit__(None, None, None)
    with report_folder(folder):
        assert (folder / MARK).exists()


@pytest.mark.parametrize("step", ["open", "flock"])
def test_a_folder_that_another_run_removes_meanwhile_is_made_again(step, tmp_path, monkeypatch):
    folder = tmp_path / "report"
    module = {"open": os, "flock": destination.fcntl}[step]
    real = getattr(module, step)

    def end_another(*arguments):
        monkeypatch.setattr(module, step, real)
        (folder / MARK).unlink(missing_ok=True)
        folder.rmdir()
        return real(*arguments)

    monkeypatch.setattr(module, step, end_another)
    with report_folder(folder):
        assert (folder / MARK).read_bytes()
    assert not folder.exists()


def test_a_mark_that_is_replaced_again_and_again_ends_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(destination.fcntl, "flock", lambda *arguments: (tmp_path / MARK).unlink())
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(DestinationError, match="Another evaluation is writing"), report_folder(tmp_path):
        pass
    assert os.listdir("/proc/self/fd") == open_before


def test_one_of_many_at_once_owns_the_folder(tmp_path):
    folder, inside, most, odd = tmp_path / "report", [], [], []

    def own():
        for _ in range(300):
            try:
                with report_folder(folder):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except DestinationError as error:
                if "Another evaluation" not in error.problem:
                    odd.append(error)

    threads = [threading.Thread(target=own) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and not odd
    assert not folder.exists() or not os.listdir(folder)


def test_a_folder_that_goes_away_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    mkdir, gone = Path.mkdir, []

    def make(path, *arguments, **options):
        if not gone:
            gone.append(path)
            raise FileExistsError(errno.EEXIST, "File exists")
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", make)
    with report_folder(tmp_path / "report"):
        assert gone == [tmp_path / "report"] and (tmp_path / "report" / MARK).exists()


def test_a_hard_link_as_the_mark_is_not_written(tmp_path):
    (tmp_path / "precious").write_text("precious " * 20)
    (tmp_path / "report").mkdir()
    os.link(tmp_path / "precious", tmp_path / "report" / MARK)
    with (
        pytest.raises(DestinationError, match=f"{MARK}' is a hard link") as caught,
        report_folder(tmp_path / "report"),
    ):
        pass
    assert "--out DIR" in caught.value.remedy and (tmp_path / "precious").read_text() == "precious " * 20


@pytest.mark.parametrize("name", [PREDICTIONS, TIMM])
@pytest.mark.parametrize("target", ["precious", "missing"])
def test_rows_that_lie_behind_a_link_are_not_replaced(name, target, tmp_path):
    """`evaluate` overwrites the rows in its own folder, but those of `vitconv predict` are not its own."""
    (tmp_path / "precious").mkdir()
    with report_folder(tmp_path / "report"):
        (tmp_path / "report" / "metrics.json").touch()
    check_report_folder(tmp_path / "report", "photos", [])
    (tmp_path / "report" / name).symlink_to(tmp_path / target)
    with pytest.raises(DestinationError, match=f"{name}' is a link") as caught:
        check_report_folder(tmp_path / "report", "photos", [])
    assert "Remove the link" in caught.value.remedy


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    """It may outlive a process that is killed, and would keep the next run away."""
    ready, leave = os.pipe(), os.pipe()
    with report_folder(tmp_path):
        child = os.fork()
        if not child:
            os.close(leave[1])  # so that it ends with this process, too
            os.write(ready[1], b"1")
            os.read(leave[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        (tmp_path / "metrics.json").touch()  # so that the mark stays
    with report_folder(tmp_path):
        os.write(leave[1], b"1")
        os.waitpid(child, 0)
    for descriptor in (*ready, *leave):
        os.close(descriptor)


def test_a_working_folder_that_is_gone_is_no_other_evaluation(tmp_path, monkeypatch):
    """What is raised names no file: for such an error the command line looks whether that folder is there."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught, report_folder(Path("report")):
        pass
    assert caught.value.filename is None
