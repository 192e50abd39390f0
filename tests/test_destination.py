import os
import stat

import pytest

from vitconv.destination import check_destination, staged_folder
from vitconv.errors import DestinationError


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with staged_folder(tmp_path / "new" / "model") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "new" / "model").exists()
    assert os.listdir(tmp_path / "new") == ["model"]
    assert (tmp_path / "new" / "model" / "config.json").read_text() == "{}"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new" / "model").stat().st_mode) == 0o777 & ~mask


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
            pytest.raises(DestinationError, match="(holds what no conversion writes|is not a folder)"),
            staged_folder(tmp_path / name, overwrite=True),
        ):
            pass
    assert (tmp_path / "photos" / "1.jpg").exists()


def test_an_unwritable_destination(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="cannot be written"), staged_folder(tmp_path / "file" / "model"):
        pass
