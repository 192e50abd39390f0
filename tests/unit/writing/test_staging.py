import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import full_model, small_model
from safetensors.torch import load_file, save_file

from vitconv.convert import convert_checkpoint, revert_checkpoint
from vitconv.errors import DestinationError
from vitconv.writing.staging import check_destination, staged_folder


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with staged_folder(tmp_path / "new" / "model") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "new" / "model").exists()
    assert os.listdir(tmp_path / "new") == ["model"]
    assert (tmp_path / "new" / "model" / "config.json").read_text() == "{}"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new" / "model").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_all_files_keep_to_the_umask(mask, tmp_path):
    """Some libraries write to a private temporary file first."""
    before = os.umask(mask)
    try:
        with staged_folder(tmp_path / "model") as folder:
            (folder / "config.json").write_text("{}")
            os.close(os.open(folder / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in (tmp_path / "model").iterdir()}
    assert modes == {name: 0o666 & ~mask for name in ("config.json", "model.safetensors")}


def test_folders_of_both_directions_keep_to_the_umask(tmp_path):
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    before = os.umask(0o027)
    try:
        convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, data={"crop_pct": 1.0})
        revert_checkpoint(tmp_path / "hf", tmp_path / "back", verify=False)
    finally:
        os.umask(before)
    for folder in ("hf", "back"):
        assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / folder).iterdir()} == {0o640}
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o750


def test_nothing_appears_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_an_existing_destination_is_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    with pytest.raises(DestinationError, match="exists already"), staged_folder(tmp_path / "model"):
        pass
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "model", overwrite=True):
        1 / 0  # noqa: B018
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    with staged_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "config.json").write_text("new")
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mounted_volume_is_named_before_anything_is_written(overwrite, tmp_path, monkeypatch):
    """As in a container: a folder cannot take its name."""
    monkeypatch.setattr(os.path, "ismount", lambda place: Path(place) == tmp_path)
    with pytest.raises(DestinationError, match=r"is where a disk or a volume is mounted.*\nChoose a folder in it"):
        check_destination(tmp_path, overwrite=overwrite)
    check_destination(tmp_path / "model", overwrite=overwrite)


def test_a_folder_that_holds_the_source_is_not_overwritten(tmp_path):
    """A timm hub folder looks like a model folder, too."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(DestinationError, match="holds the source"):
        check_destination(tmp_path, overwrite=True, source=tmp_path / "model.safetensors")
    check_destination(tmp_path, overwrite=True, source=tmp_path.parent / "other.pth")


def test_only_a_model_folder_is_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.json").touch()
    (tmp_path / "photos" / "1.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with (
            pytest.raises(DestinationError, match="(holds files that no conversion writes|is not a folder)"),
            staged_folder(tmp_path / name, overwrite=True),
        ):
            pass
    assert (tmp_path / "photos" / "1.jpg").exists()


def test_what_a_killed_calibration_left_is_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ".calibration.a_9bcdef.vitconv-new.json").touch()
    with staged_folder(tmp_path / "model", overwrite=True) as staging:
        (staging / "config.json").touch()
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["config.json"]


def test_an_unwritable_destination(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="cannot be written"), staged_folder(tmp_path / "file" / "model"):
        pass


def test_what_is_in_the_way_of_a_destination_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for name in ("file", "circle"):
        destination = tmp_path / name / "new" / "model"
        with pytest.raises(DestinationError) as caught:
            check_destination(destination)
        assert caught.value.problem == f"'{destination}' cannot be written: '{tmp_path / name}' is not a folder."
        assert "disk" not in caught.value.remedy


def test_a_destination_behind_a_link_is_where_the_system_finds_it(tmp_path):
    """`link/../own` is beside the link's target, not beside the link."""
    (tmp_path / "deep" / "target").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/target")
    with staged_folder(os.path.join(tmp_path, "link", "..", "own")) as folder:
        (folder / "config.json").write_text("new")
    assert (tmp_path / "deep" / "own" / "config.json").read_text() == "new"
    assert not (tmp_path / "own").exists()


def test_the_source_is_kept_where_a_destination_goes_through_a_link(tmp_path):
    """The source may be the folder that the names alone lead to, or the one that the system finds."""
    (tmp_path / "deep" / "target").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/target")
    for folder in (tmp_path / "own", tmp_path / "deep" / "own"):
        folder.mkdir()
        (folder / "model.safetensors").write_text(str(folder))
    destination = os.path.join(tmp_path, "link", "..", "own")
    with pytest.raises(DestinationError, match="holds the source"):
        check_destination(destination, overwrite=True, source=tmp_path / "deep" / "own" / "model.safetensors")
    check_destination(destination, overwrite=True, source=tmp_path / "own" / "model.safetensors")
    with staged_folder(destination, overwrite=True) as folder:
        (folder / "model.safetensors").write_text("new")
    assert (tmp_path / "own" / "model.safetensors").read_text() == str(tmp_path / "own")
    assert (tmp_path / "deep" / "own" / "model.safetensors").read_text() == "new"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written(tmp_path):
    (tmp_path / "parent").mkdir(mode=0o500)
    with pytest.raises(DestinationError, match="cannot be written: Permission denied"):
        staged_folder(tmp_path / "parent" / "model").__enter__()


def test_a_destination_that_could_not_be_read_again(tmp_path):
    with pytest.raises(DestinationError, match="is not UTF-8"), staged_folder(tmp_path / "\udcff"):
        pass
    with pytest.raises(DestinationError, match="is not UTF-8"):
        check_destination(tmp_path / "\udcff" / "x")


def test_a_name_that_no_file_system_allows(tmp_path):
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(DestinationError), staged_folder(tmp_path / name):
            pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["link", "dangling"])
def test_a_symlink_is_not_overwritten(name, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(DestinationError, match="exists already"), staged_folder(tmp_path / name):
        pass
    with (
        pytest.raises(DestinationError, match="is not a folder"),
        staged_folder(tmp_path / name, overwrite=True),
    ):
        pass


def test_a_source_behind_a_symlink_is_still_the_source(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "link").symlink_to("model/model.safetensors")
    with pytest.raises(DestinationError, match="holds the source"):
        check_destination(tmp_path / "model", overwrite=True, source=tmp_path / "link")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_files_of_a_source_may_be_links_too(tmp_path, name):
    for folder in ("model", "source", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / name).touch()
    (tmp_path / "source" / name).symlink_to("../model/" + name)
    (tmp_path / "source" / "circle").symlink_to("circle")
    with pytest.raises(DestinationError, match="holds the source"):
        check_destination(tmp_path / "model", overwrite=True, source=tmp_path / "source")
    with pytest.raises(DestinationError, match="holds '.*', which is read"):
        check_destination(tmp_path / "model", overwrite=True, inputs=[tmp_path / "source" / name])
    check_destination(tmp_path / "other", overwrite=True, source=tmp_path / "source")


def test_weights_behind_a_link_are_not_overwritten(tmp_path):
    """Nor the shards that an index names."""
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    data = {"crop_pct": 1.0}
    convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, data=data, verify=False)
    revert_checkpoint(tmp_path / "hf", tmp_path / "timm", verify=False)
    before = files_of(tmp_path / "timm"), files_of(tmp_path / "hf")
    for name, real in (("links", "timm"), ("linked", "hf"), ("shards", "timm")):
        (tmp_path / name).mkdir()
        for file in (tmp_path / real).iterdir():
            weights = file.name == "model.safetensors"
            (tmp_path / name / file.name).symlink_to(file) if weights else shutil.copy(file, tmp_path / name)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    names = load_file(tmp_path / "timm" / "model.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    for source in (tmp_path / "links", index):
        with pytest.raises(DestinationError, match="so it is not overwritten"):
            convert_checkpoint(source, tmp_path / "timm", overwrite=True, verify=False)
    with pytest.raises(DestinationError, match="holds the source"):
        revert_checkpoint(tmp_path / "linked", tmp_path / "hf", overwrite=True, verify=False)
    assert (files_of(tmp_path / "timm"), files_of(tmp_path / "hf")) == before


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(DestinationError, match="exists already"),
        staged_folder(tmp_path / "model") as folder,
    ):
        (folder / "config.json").write_text("late")
        (tmp_path / "model").mkdir()
    assert os.listdir(tmp_path / "model") == []
    assert os.listdir(tmp_path) == ["model"]


def test_without_renameat2_plain_renames_do(tmp_path, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *arguments, **options: object())
    for text in ("old", "new"):
        with staged_folder(tmp_path / "model", overwrite=True) as folder:
            (folder / "config.json").write_text(text)
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


def test_without_renameat2_a_failing_rename_keeps_the_old_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *arguments, **options: object())
    with staged_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("old")
    rename = Path.rename

    def fail(path, target):
        if (path / "config.json").read_text() == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    message = "cannot be written: Input/output error"
    with pytest.raises(DestinationError, match=message), staged_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "config.json").write_text("new")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_an_abandoned_staging_folder_is_removed_and_a_live_one_is_not(tmp_path):
    (tmp_path / ".model.dead.vitconv").mkdir()
    (tmp_path / ".other.dead.vitconv").mkdir()
    with (
        pytest.raises(DestinationError, match="exists already"),
        staged_folder(tmp_path / "model") as first,
        staged_folder(tmp_path / "model"),
    ):
        assert not (tmp_path / ".model.dead.vitconv").exists()
        assert first.exists()
    assert sorted(os.listdir(tmp_path)) == [".other.dead.vitconv", "model"]


def test_where_no_folder_can_be_locked_none_is_taken_for_abandoned(tmp_path, monkeypatch):
    """As on some network file systems."""

    def refuse(*arguments):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / ".model.perhaps.vitconv").mkdir()
    with staged_folder(tmp_path / "model"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".model.perhaps.vitconv", "model"]


def test_the_longest_name_that_a_file_system_allows(tmp_path):
    for name in ("x" * 255, "ä" * 127):
        with staged_folder(tmp_path / name):
            pass
        assert (tmp_path / name).is_dir()


# ---- whole conversions under attack ------------------------------------------------------------------------------

ARCH = "vit_tiny_patch16_224"
_RUN = "import sys; from vitconv.cli import app; app(sys.argv[1:])"
_LOOP = f"""
import itertools, signal, sys
from vitconv.convert import convert_checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
for i in itertools.count():
    target = sys.argv[2] if sys.argv[3] == "one" else f"{{sys.argv[2]}}{{i}}"
    convert_checkpoint(sys.argv[1], target, architecture="{ARCH}", verify=False, overwrite=sys.argv[3] == "one")
    print(i, flush=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    save_file(full_model(ARCH, num_classes=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "model"
    assert run(source, folder).returncode == 0
    return files_of(folder)


def run(source, destination, *options, **settings):
    return proved(source, destination, "--no-verify", *options, **settings)


def proved(source, destination, *options, **settings):
    command = [sys.executable, "-c", _RUN, "convert", source, destination, "--arch", ARCH, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **settings)


def files_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["one", "many"])
def test_a_kill_leaves_whole_folders_only(mode, source, expected, tmp_path):
    """25 kills while one destination is overwritten again and again, 25 while new ones are written."""
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    chance = random.Random(mode)
    seen = 0
    for _ in range(25):
        loop = subprocess.Popen(
            [sys.executable, "-c", _LOOP, source, tmp_path / "model", mode], stdout=subprocess.PIPE, text=True
        )
        loop.stdout.readline()
        time.sleep(chance.uniform(0, 0.06))
        loop.send_signal(signal.SIGKILL)
        loop.wait()
        loop.stdout.close()
        finished = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        assert all(files_of(path) == expected for path in finished)
        seen += len(finished)
        if mode == "many":
            for path in finished:
                shutil.rmtree(path)
    assert seen >= 25
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    # What a kill left behind does not hinder the next conversion, which clears it away.
    for name in ["model"] if mode == "one" else [f"model{i}" for i in range(200)]:
        if mode == "many" and not list(tmp_path.glob(f".{name}.*")):
            continue
        assert run(source, tmp_path / name, "--overwrite").returncode == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("convert", [run, proved])
def test_a_full_disk_leaves_nothing(convert, source, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))

    done = convert(source, tmp_path / "model", preexec_fn=limit)
    assert done.returncode == 1
    assert f"error: '{tmp_path / 'model'}' cannot be written: File too large." in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_what_was_to_be_overwritten(source, expected, tmp_path):
    assert run(source, tmp_path / "model").returncode == 0
    limit = (5_000_000, 5_000_000)
    done = run(
        source, tmp_path / "model", "--overwrite", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert done.returncode == 1
    assert files_of(tmp_path / "model") == expected
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.slow
def test_of_conversions_that_race_one_wins(source, expected, tmp_path):
    command = [sys.executable, "-c", _RUN, "convert", source, tmp_path / "model", "--arch", ARCH, "--no-verify"]
    for _ in range(3):
        racers = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(4)]
        errors = [racer.communicate()[1].decode() for racer in racers]
        assert sorted(racer.returncode for racer in racers) == [0, 1, 1, 1]
        assert all("exists already" in e for e, racer in zip(errors, racers, strict=True) if racer.returncode)
        assert files_of(tmp_path / "model") == expected
        assert os.listdir(tmp_path) == ["model"]
        shutil.rmtree(tmp_path / "model")


def test_an_interrupted_conversion_leaves_nothing(source, tmp_path):
    loop = subprocess.Popen(
        [sys.executable, "-c", _LOOP, source, tmp_path / "model", "one"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    loop.stdout.readline()
    loop.send_signal(signal.SIGINT)
    loop.communicate(timeout=60)
    assert os.listdir(tmp_path) == ["model"]
    assert load_file(tmp_path / "model" / "model.safetensors")
    assert json.loads((tmp_path / "model" / "parity.json").read_text())["verified"] is False


@pytest.mark.slow
@pytest.mark.parametrize("step", ["Writing the folder", "Reading the folder back", "Comparing the models in float32"])
def test_an_interrupted_proof_leaves_nothing(step, source, tmp_path):
    """Whatever the threads beside it do."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {_RUN}"
    command = [sys.executable, "-c", code, "convert", source, tmp_path / "model", "--arch", ARCH]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith(step):
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == 130
    assert "error: Interrupted." in said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == []
