"""``parity.json`` is read whichever version of vitconv has written it."""

import json
import shutil
from pathlib import Path

import pytest

from vitconv.convert import convert_checkpoint, revert_checkpoint, verify_checkpoint
from vitconv.errors import CheckpointError
from vitconv.writing.record import ConversionRecord, read_record, recorded_architecture

SCHEMA_1 = Path(__file__).parents[2] / "data" / "parity-schema-1.json"
LABELS = ["tulip", "rose", "daisy", "lily", "poppy"]


@pytest.fixture
def old_folder(small_checkpoint, tmp_path):
    """A converted folder with a record of schema 1."""
    convert_checkpoint(
        small_checkpoint,
        tmp_path / "model",
        architecture="vit_tiny_patch16_224",
        labels=LABELS,
        data={"crop_pct": 0.875},
        verify=False,
    )
    shutil.copy(SCHEMA_1, tmp_path / "model" / "parity.json")
    return tmp_path / "model"


def test_the_two_schemas(tmp_path, small_checkpoint):
    old = json.loads(SCHEMA_1.read_text())
    assert old["schema"] == 1 and "badness" in old["parity"]["float64"]["stages"][0]
    done = convert_checkpoint(
        small_checkpoint,
        tmp_path / "model",
        architecture="vit_tiny_patch16_224",
        labels=LABELS,
        data={"crop_pct": 0.875},
    )
    new = json.loads((tmp_path / "model" / "parity.json").read_text())
    assert new["schema"] == 2 and new.keys() == old.keys() | {"fingerprint"}
    stages = [record["parity"]["float64"]["stages"][0].keys() for record in (old, new)]
    assert [name.replace("badness", "error") for name in stages[0]] == list(stages[1])
    read = read_record(done.destination)
    shutil.copy(SCHEMA_1, tmp_path / "parity.json")
    before = read_record(tmp_path)
    assert (read.architecture, read.image_size, read.labels, read.data, read.ema) == (
        *(before.architecture, before.image_size, before.labels, before.data, before.ema),
    )
    assert before.files[0].file == "model.pth" and before.files[0].sha256.startswith("8f7dfd72")


def test_a_record_of_schema_1_is_verified(old_folder, small_checkpoint):
    found = verify_checkpoint(small_checkpoint, old_folder)  # the architecture and the labels are the record's
    assert found.parity.matches
    with pytest.raises(CheckpointError, match="There is no file"):
        verify_checkpoint(small_checkpoint.with_name("none.pth"), old_folder)


def test_a_record_of_schema_1_is_reverted(old_folder, tmp_path):
    assert recorded_architecture(old_folder) == "vit_tiny_patch16_224"
    assert revert_checkpoint(old_folder, tmp_path / "back", verify=False).timm_name == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "\ud800"},
        {"source": [{"file": "\ud800", "bytes": 1, "sha256": None}]},
        {"source": [{"file": "a.pth", "bytes": 1, "sha256": int("1" * 64)}]},
    ],
)
def test_a_record_with_what_vitconv_does_not_write_is_refused(tmp_path, change):
    (tmp_path / "parity.json").write_text(json.dumps({**json.loads(SCHEMA_1.read_text()), **change}))
    with pytest.raises(CheckpointError, match=f"`{next(iter(change))}`"):
        read_record(tmp_path)


def test_a_folder_without_a_record(tmp_path):
    assert read_record(tmp_path) == ConversionRecord()
    assert recorded_architecture(tmp_path) is None


@pytest.mark.parametrize("read", [read_record, recorded_architecture])
def test_a_record_of_a_newer_vitconv_is_refused(read, tmp_path):
    (tmp_path / "parity.json").write_text(json.dumps({**json.loads(SCHEMA_1.read_text()), "schema": 3}))
    with pytest.raises(CheckpointError, match="has schema 3, and this vitconv reads schemas up to 2"):
        read(tmp_path)
