import errno
import json
import os
import resource
import shutil
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from vitconv.errors import DestinationError, InputError
from vitconv.files import new_file
from vitconv.inference.certainty import LEVELS, Certainty, Oddness
from vitconv.inference.predictions import SCHEMA, Parts, Run, _add_digest, _seal, make_rows, read_predictions

CLASSES = ("a", "b", "c")
PATHS = ["0.jpg", "1.jpg"]
RUN = Run({"batch_size": 8}, CLASSES)


NO_CERTAINTY = {"calibrated_probability": None, "prediction_set": None, "reliable": None}
CERTAINTY = Certainty(0.5, 0.9, 0.2, Oddness("max-logit", -0.5, np.empty((0, 0)), np.empty((0, 0)), -9 + 9 * LEVELS))


def judged(logits):
    return CERTAINTY.judge(logits, np.empty((len(logits), 0)))


def rows(start, count, error=(), judge=None):
    logits = np.random.default_rng(start).standard_normal((count, 3), np.float32)
    errors = ["broken" if i in error else None for i in range(count)]
    notes = [None if i in error or i % 2 else "cropped one pixel earlier" for i in range(count)]
    return make_rows(start, [f"{start + i}.jpg" for i in range(count)], logits, errors, CLASSES, notes, judge)


def test_a_row_has_the_largest_logits_class_and_its_softmax():
    logits = np.array([[1, 3, 2], [5, 0, 0], [0, 0, 0]], np.float32)
    table = make_rows(7, ["x", "y", "z"], logits, [None, None, "broken"], CLASSES)
    assert table.schema.equals(SCHEMA)
    first, _, broken = table.to_pylist()
    assert first["row"] == 7
    assert first["class"] == "b"
    assert first["probability"] == pytest.approx(np.exp(3) / np.exp([1, 3, 2]).sum(), abs=1e-15)
    assert first["logits"] == [1, 3, 2]
    assert first["error"] is None
    assert broken == {
        "row": 9,
        "path": "z",
        "class": None,
        "probability": None,
        "logits": None,
        "error": "broken",
        "note": None,
        **NO_CERTAINTY,
        "why_not": None,
    }
    assert {name: first[name] for name in NO_CERTAINTY} == NO_CERTAINTY
    assert first["why_not"] == "The model is not calibrated: run `vitconv calibrate`."


def test_the_columns_of_a_calibrated_model():
    logits = np.array([[1, 3, 2.9], [0, 9, 0], [0, 0.1, 0], [0, 0, 0]], np.float32)
    table = make_rows(0, list("wxyz"), logits, [None, None, None, "broken"], CLASSES, judge=judged)
    assert table.schema.equals(SCHEMA)
    two, sure, odd, broken = table.to_pylist()
    assert two["prediction_set"] == ["b", "c"] and two["reliable"] is False
    assert two["calibrated_probability"] == pytest.approx(np.exp(6) / np.exp([2, 6, 5.8]).sum(), abs=1e-7)
    assert sure["prediction_set"] == ["b"] and sure["reliable"] is True and sure["why_not"] is None
    assert odd["reliable"] is False and odd["why_not"].startswith("The image is unlike those")
    assert {name: broken[name] for name in NO_CERTAINTY} == NO_CERTAINTY and broken["why_not"] is None


def test_logits_that_are_no_numbers_are_an_error_of_the_image():
    logits = np.array([[1, np.nan, 2], [np.inf, 0, 0], [1, 2, 3]], np.float32)
    table = make_rows(0, ["x", "y", "z"], logits, [None] * 3, CLASSES)
    assert table["class"].to_pylist() == [None, None, "c"]
    assert table["error"][0].as_py() == "The model's logits of 'x' are not finite."
    assert "'y'" in table["error"][1].as_py()


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    judge=st.sampled_from([None, judged]),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, counts, judge, data):
    folder = tmp_path_factory.mktemp("predictions")
    parts = Parts(folder, RUN, len(counts), overwrite=False)
    tables, start = [], 0
    for number, count in enumerate(counts):
        tables.append(rows(start, count, data.draw(st.sets(st.integers(0, count - 1))), judge))
        parts.write(number, tables[-1], "key")
        start += count
    made = read_predictions(folder)
    written = pa.concat_tables(tables)
    assert made.rows.equals(written)
    assert made.classes == CLASSES
    assert made.run == RUN
    expected = [row or [np.nan] * 3 for row in written["logits"].to_pylist()]
    assert np.array_equal(made.logits(), np.array(expected, np.float32), equal_nan=True)


def test_a_part_is_found_by_its_key(tmp_path):
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    assert parts.find(0, "key", PATHS) is None
    parts.write(0, rows(0, 2), "key")
    assert parts.find(0, "key", PATHS).num_rows == 2


@pytest.mark.parametrize("other", ["run", "list"])
def test_a_part_of_another_run_is_removed_if_it_may_be(tmp_path, other):
    """Before the first one is written: parts of two runs must not lie side by side."""
    Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    run = Run({"batch_size": 9}, CLASSES) if other == "run" else RUN
    paths = ["x.jpg", "y.jpg"] if other == "list" else PATHS
    with pytest.raises(DestinationError, match="predictions of other weights, images or settings"):
        Parts(tmp_path, run, 1, overwrite=False).find(0, "another", paths)
    assert len(list(tmp_path.iterdir())) == 1
    parts = Parts(tmp_path, run, 1, overwrite=True)
    assert parts.find(0, "another", paths) is None
    assert len(list(tmp_path.iterdir())) == 1
    parts.remove_old()
    assert not list(tmp_path.iterdir())


def test_a_part_that_another_process_has_written_meanwhile_is_not_removed(tmp_path):
    Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    run = Run({"batch_size": 9}, CLASSES)
    parts = Parts(tmp_path, run, 1, overwrite=True)
    assert parts.find(0, "another", PATHS) is None
    other = Parts(tmp_path, run, 1, overwrite=True)
    other.find(0, "another", PATHS)
    other.remove_old()
    other.write(0, rows(0, 2), "another")
    parts.remove_old()
    assert parts.find(0, "another", PATHS) is not None


def test_a_part_whose_images_have_changed_is_always_done_again(tmp_path):
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    parts.write(0, rows(0, 2), "key")
    assert parts.find(0, "another", PATHS) is None


def test_parts_of_two_runs_are_refused(tmp_path):
    Parts(tmp_path, RUN, 2, overwrite=False).write(0, rows(0, 2), "key")
    Parts(tmp_path, Run({}, CLASSES), 2, overwrite=False).write(1, rows(2, 2), "key")
    with pytest.raises(InputError, match="are of several runs"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("content", [b"mine", b"PAR1", b""])
def test_a_part_that_is_not_parquet_is_replaced_only_if_it_may_be(tmp_path, content):
    """A part is written whole, so it is not one of vitconv's that was cut off."""
    file = tmp_path / "part-00000000.parquet"
    file.write_bytes(content)
    with pytest.raises(DestinationError, match="part-00000000.parquet' is not a Parquet file"):
        Parts(tmp_path, RUN, 1, overwrite=False).find(0, "key", PATHS)
    assert file.read_bytes() == content
    assert Parts(tmp_path, RUN, 1, overwrite=True).find(0, "key", PATHS) is None


@pytest.mark.parametrize("name", [".part-00000000.parquet.bak", ".part-00000000.notes", ".part-00000000.abcdefgh.parquet"])  # fmt: skip
def test_a_hidden_file_that_vitconv_did_not_write_is_kept(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match=f"holds other files than predictions .{name}"):
            Parts(tmp_path, RUN, 1, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", "part-00000-5f.snappy.parquet", "part-1.parquet"])
def test_nothing_but_predictions_is_ever_removed(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DestinationError, match=rf"holds other files than predictions \({name}\)"):
        Parts(tmp_path, RUN, 1, overwrite=True)
    assert (tmp_path / name).read_text() == "mine"


def test_parts_beyond_the_list_go_only_if_they_may(tmp_path):
    parts = Parts(tmp_path, RUN, 3, overwrite=False)
    for number in range(3):
        parts.write(number, rows(2 * number, 2), "key")
    with pytest.raises(DestinationError, match="part-00000002"):
        Parts(tmp_path, RUN, 1, overwrite=False)
    parts = Parts(tmp_path, RUN, 1, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3
    parts.remove_old()
    assert [file.name for file in tmp_path.iterdir()] == ["part-00000000.parquet"]


def test_an_old_part_is_replaced_and_not_written_into(tmp_path):
    """DVC links its cache to what it has recorded: what is written into the link changes the cache."""
    parts = Parts(tmp_path / "predictions", RUN, 1, overwrite=True)
    parts.write(0, rows(0, 2), "key")
    (file,) = (tmp_path / "predictions").iterdir()
    os.link(file, tmp_path / "cache")
    file.chmod(0o444)
    before = file.read_bytes()
    parts.write(0, rows(5, 1), "key")
    assert (tmp_path / "cache").read_bytes() == before
    assert parquet.read_table(file).num_rows == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_part_is_as_open_as_any_new_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        Parts(tmp_path / "predictions", RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    (file,) = (tmp_path / "predictions").iterdir()
    assert file.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EBUSY, errno.EXDEV, errno.EIO])
def test_a_part_that_cannot_take_its_name_leaves_nothing(tmp_path, monkeypatch, number):
    """As network file systems may refuse it; what was there stays."""
    parts = Parts(tmp_path, RUN, 1, overwrite=True)
    parts.write(0, rows(0, 2), "key")
    monkeypatch.setattr(os, "replace", lambda *names: _raise(OSError(number, os.strerror(number))))
    with pytest.raises(DestinationError, match=f"cannot be written: {os.strerror(number)}"):
        parts.write(0, rows(0, 2), "another")
    assert [file.name for file in tmp_path.iterdir()] == ["part-00000000.parquet"]
    assert parts.find(0, "key", PATHS).num_rows == 2


def _raise(error):
    raise error


def test_a_full_disk_leaves_nothing(tmp_path):
    """Writing fails in the middle of the file, as the system limits its size."""
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DestinationError, match="cannot be written: File too large") as caught:
            parts.write(0, rows(0, 200), "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Check the disk" in caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_neither_read_nor_removed(tmp_path, make):
    make(tmp_path / "part-00000000.parquet")
    with pytest.raises(DestinationError, match=r"holds other files than predictions \(part-00000000.parquet\)"):
        Parts(tmp_path, RUN, 1, overwrite=True)


def test_the_key_takes_any_time(tmp_path):
    """Of a clock that was wrong, before 1970 or in the future."""
    image = tmp_path / "a.jpg"
    image.touch()
    keys = set()
    for seconds in (-(10**9), 0, 10**9, 8 * 10**9):
        os.utime(image, (seconds, seconds))
        keys.add(RUN.key([image]))
    assert len(keys) == 4


def test_a_link_that_leads_elsewhere_has_another_key(tmp_path):
    """Although both images are of one size and time."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"1234")
        os.utime(tmp_path / name, (1, 1))
    link, keys = tmp_path / "latest.png", []
    for name in ("a.png", "b.png", "a.png"):
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        keys.append(RUN.key([link]))
    assert keys[0] == keys[2] != keys[1]


def test_a_killed_writers_remains_are_removed(tmp_path):
    with suppress(KeyboardInterrupt), new_file(tmp_path / "part-00000000.parquet") as file:
        shutil.copyfile(__file__, tmp_path / "half")
        name = file.name
        raise KeyboardInterrupt
    (tmp_path / "half").rename(tmp_path / name)
    Parts(tmp_path, RUN, 1, overwrite=False).remove_old()
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot be written"):
        Parts(tmp_path / "file", RUN, 1, overwrite=False)


def test_the_key_knows_images_settings_and_classes(tmp_path):
    image = tmp_path / "a.jpg"
    image.write_bytes(b"1")
    keys = {Run({"batch_size": 8}, CLASSES).key([image])}
    keys.add(Run({"batch_size": 9}, CLASSES).key([image]))
    keys.add(Run({"batch_size": 8}, CLASSES[:2]).key([image]))
    image.write_bytes(b"22")
    keys.add(Run({"batch_size": 8}, CLASSES).key([image]))
    image.unlink()
    keys.add(Run({"batch_size": 8}, CLASSES).key([image]))
    assert len(keys) == 5
    assert Run({"batch_size": 8}, CLASSES).key([image]) in keys


def test_the_key_knows_the_paths_as_they_are_in_the_list(tmp_path):
    """The rows have them so: a part with another spelling must be written anew."""
    run, spellings = Run({}, CLASSES), ["a.jpg", "./a.jpg", ".//a.jpg", str(tmp_path / "a.jpg")]
    assert len({run.key([spelling], tmp_path) for spelling in spellings}) == 4


def test_the_key_may_know_the_content_instead_of_the_time(tmp_path):
    image, run = tmp_path / "a.jpg", Run({"check_content": True}, CLASSES)
    image.write_bytes(b"1")
    before = run.key([image])
    os.utime(image, ns=(0, 0))
    assert run.key([image]) == before
    status = image.stat()
    image.write_bytes(b"2")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run.key([image]) != before
    assert Run({}, CLASSES).key([image]) == Run({}, CLASSES).key([image])
    other = tmp_path / "b.jpg"
    shutil.copyfile(image, other)
    assert run.key([image]) != run.key([other])


def test_the_key_reads_nothing_that_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    files = [tmp_path / "pipe", tmp_path / "large", tmp_path / "none", tmp_path]
    assert Run({"check_content": True}, CLASSES).key(files) == Run({"check_content": True}, CLASSES).key(files)


@pytest.mark.parametrize("name", ["~", "run:1", "a:b", "s3:x", "s3://x", "x=1"])
def test_the_folder_s_name_is_no_home_no_uri_and_no_data(tmp_path, monkeypatch, name):
    """pyarrow takes a text for any of them; what is there would not be found, and then be replaced."""
    monkeypatch.chdir(tmp_path)
    Parts(name, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    parts = Parts(name, RUN, 1, overwrite=False)
    assert parts.find(0, "key", PATHS).schema.equals(SCHEMA)
    with pytest.raises(DestinationError, match="predictions of other weights"):
        Parts(name, Run({}, CLASSES), 1, overwrite=False).find(0, "another", PATHS)
    assert read_predictions(name).rows.equals(rows(0, 2))


def test_a_part_that_the_system_does_not_read_is_kept(tmp_path, monkeypatch):
    parts = Parts(tmp_path, RUN, 1, overwrite=True)
    parts.write(0, rows(0, 2), "key")
    error = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr("vitconv.inference.predictions.open_file", lambda file: _raise(error))
    with pytest.raises(DestinationError, match="Too many open files"):
        parts.find(0, "key", PATHS)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/proc/kmsg")])
def test_a_part_that_is_no_regular_file_is_not_waited_for(tmp_path, make):
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    make(tmp_path / "part-00000000.parquet")  # later than the folder was looked at
    with suppress(DestinationError):
        parts.find(0, "key", PATHS)
        make(tmp_path / "part-00000000.parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("spoil", ["nothing", "no metadata", "gap", "garbage", "columns"])
def test_what_is_no_folder_of_predictions_is_refused(tmp_path, spoil):
    if spoil == "no metadata":
        parquet.write_table(rows(0, 2), tmp_path / "part-00000000.parquet")
    elif spoil == "gap":
        Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(1, 2), "key")
    elif spoil == "garbage":
        (tmp_path / "part-00000000.parquet").write_bytes(b"PAR1")
    elif spoil == "columns":
        Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2).drop_columns("error"), "key")
    with pytest.raises(InputError, match=r"no predictions in|cannot be read|lack rows") as caught:
        read_predictions(tmp_path)
    assert str(tmp_path) in caught.value.problem


class _Recorder(pa.ExtensionType):
    """What a library registers, as Ray does: pyarrow calls it when a file names it."""

    calls = []

    def __init__(self):
        super().__init__(pa.binary(), "vitconv.tests.recorder")

    def __arrow_ext_serialize__(self):
        return b"code"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.calls.append(serialized)
        return cls()


@pytest.mark.parametrize("column", ["path", "extra"])
def test_no_code_that_a_file_names_is_run(tmp_path, column):
    """Ray registers a type of pickled objects, which any Parquet file may then name."""
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    parts.write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    _Recorder.calls.clear()
    pa.register_extension_type(_Recorder())
    try:
        table = parquet.read_table(file)
        metadata = table.schema.metadata
        objects = pa.ExtensionArray.from_storage(_Recorder(), pa.array([b"x", b"y"]))
        table = table.drop_columns(["path"] if column == "path" else []).append_column(column, objects)
        parquet.write_table(table.replace_schema_metadata(metadata), file)
        _add_digest(file)
        with pytest.raises(DestinationError, match="part-00000000.parquet' was not written by this version"):
            parts.find(0, "key", PATHS)
        with pytest.raises(InputError, match="part-00000000.parquet' was not written by this version"):
            read_predictions(tmp_path)
        assert _Recorder.calls == []
        parquet.read_table(file)
        assert b"code" in _Recorder.calls  # else this would prove nothing
    finally:
        pa.unregister_extension_type("vitconv.tests.recorder")


def test_names_that_look_like_what_is_refused_are_names(tmp_path):
    run = Run({}, ("ARROW:schema", "b:c", "c"))
    table = make_rows(0, ["ARROW:schema"] * 2, np.eye(2, 3, dtype=np.float32), [None, "ARROW:schema"], run.classes)
    Parts(tmp_path, run, 1, overwrite=False).write(0, table, "key")
    made = read_predictions(tmp_path)
    assert made.rows.equals(table)
    assert made.classes == run.classes


def edited(table, column, values):
    place = table.schema.names.index(column)
    return table.set_column(place, table.field(place), pa.chunked_array([pa.array(values, table.field(place).type)]))


def store(table, file):
    """Write a table with its metadata and no description of Arrow's, as a part is."""
    with parquet.ParquetWriter(file, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(table.schema.metadata)
    _add_digest(file)


EDITS = {
    "a class": lambda table: edited(table, "class", ["c", "c"]),
    "a logit": lambda table: edited(table, "logits", [[1, 2, 3], [1, 2, 3]]),
    "no logits": lambda table: edited(table, "logits", [[1, 2, 3], []]),
    "a row": lambda table: table.slice(0, 1),
    "an error": lambda table: edited(table, "error", ["", None]),
    "a probability": lambda table: edited(table, "probability", [1, 1]),
    "a path": lambda table: edited(table, "path", ["0.jpg", "x.jpg"]),
    "the paths' ends": lambda table: edited(table, "path", ["0.jpg1", ".jpg"]),
    "the order": lambda table: table.take([1, 0]),
    "the classes": lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, b"vitconv.classes": b'["c", "b", "a"]'}
    ),
    "the run": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"vitconv.settings": b'"{}"'}),
    "no metadata": lambda table: table.replace_schema_metadata({}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_part_that_was_edited_is_not_taken_for_done(tmp_path, edit):
    """Even where it kept its key."""
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    parts.write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    table = EDITS[edit](parquet.read_table(file))
    store(table, file)
    why = "was not written" if edit == "no metadata" else "has been edited"
    with pytest.raises(DestinationError, match=f"part-00000000.parquet' {why}") as caught:
        parts.find(0, "key", PATHS)
    assert caught.value.remedy == "Delete it, or pass --overwrite."
    with pytest.raises(InputError, match=f"part-00000000.parquet' {why}"):
        read_predictions(tmp_path)
    assert file.exists()
    assert Parts(tmp_path, RUN, 1, overwrite=True).find(0, "key", PATHS) is None


@pytest.mark.parametrize("edit", ["no logits", "an error", "a class", "no class", "infinite", "no path"])
def test_rows_that_say_two_things_are_refused_whatever_their_seal(tmp_path, edit):
    """A seal keeps out no one who writes it anew: then at least nothing else fails on what was written."""
    table = rows(0, 2)
    if edit == "no class":
        table = edited(table, "class", [None, table["class"][1].as_py()])
    elif edit == "infinite":
        table = edited(table, "logits", [[np.inf, 1, 2], table["logits"][1].as_py()])
    elif edit == "no path":
        table = edited(table, "path", [None, "1.jpg"])
    elif edit == "a class":
        table = edited(table, "class", ["d", "d"])
    else:
        table = EDITS[edit](table)
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    parts.write(0, table, "key")
    with pytest.raises(DestinationError, match="has been edited"):
        parts.find(0, "key", PATHS)
    with pytest.raises(InputError, match="has been edited"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"), [(b"0.jpg", "has been edited"), (b"probability", "was not written by this version")]
)
def test_what_is_not_utf_8_any_more_is_an_edit(tmp_path, text, why):
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    parts.write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert text in content
    file.write_bytes(content.replace(text, b"\xff" + text[1:]))
    with pytest.raises(InputError, match=why):
        read_predictions(tmp_path)
    with pytest.raises(DestinationError, match=why):
        parts.find(0, "key", PATHS)


def test_a_part_that_would_fill_the_memory_is_refused(tmp_path):
    """Two hundred kilobytes, of which a hundred gigabytes become."""
    path = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array(["x" * 10**5]))
    nothing = {name: pa.nulls(10**6, SCHEMA.field(name).type) for name in SCHEMA.names[2:]}
    table = pa.table({"row": pa.array(np.zeros(10**6, np.int64)), "path": path, **nothing})
    parquet.write_table(table, tmp_path / "part-00000000.parquet", store_schema=False)
    _add_digest(tmp_path / "part-00000000.parquet")
    assert (tmp_path / "part-00000000.parquet").stat().st_size < 10**6
    with pytest.raises(InputError, match="part-00000000.parquet' was not written by this version"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("column", ["path", "prediction_set"])
def test_a_text_that_all_rows_share_is_counted_for_each(tmp_path, column):
    """Two kilobytes, of which four gigabytes become: a part has no more than 256 rows, which are read at once."""
    shared = pa.DictionaryArray.from_arrays(pa.array(np.zeros(256, np.int32)), pa.array(["x" * 2**24]))
    if column == "prediction_set":
        shared = pa.ListArray.from_arrays(pa.array(range(257), pa.int32()), shared)
    columns = {name: pa.nulls(256, SCHEMA.field(name).type) for name in SCHEMA.names}
    table = pa.table({**columns, "row": pa.array(range(256)), column: shared})
    settings = {"dictionary_pagesize_limit": 2**30, "compression": "zstd", "write_statistics": False}
    with parquet.ParquetWriter(
        tmp_path / "part-00000000.parquet", table.schema, store_schema=False, **settings
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(
            {"vitconv.key": "", "vitconv.settings": "", "vitconv.classes": "", "vitconv.seal": ""}
        )
    _add_digest(tmp_path / "part-00000000.parquet")
    assert (tmp_path / "part-00000000.parquet").stat().st_size < 10**4
    del table, shared
    held = pa.total_allocated_bytes()
    most = []

    class Watched(parquet.ParquetFile):
        def iter_batches(self, *arguments):
            for batch in super().iter_batches(*arguments):
                most.append(pa.total_allocated_bytes() - held)
                yield batch

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="was not written by this version"):
        patch.setattr(parquet, "ParquetFile", Watched)
        read_predictions(tmp_path)
    assert most and max(most) < 2**27


def test_numbers_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    parts = Parts(tmp_path, RUN, 1, overwrite=False)
    parts.write(0, edited(rows(0, 2), "logits", [[0] * 10**6, [0] * 10**6]), "key")
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 10**6
    with pytest.raises(InputError, match="has been edited"):
        read_predictions(tmp_path)
    monkeypatch.setattr("vitconv.inference.predictions.MOST_PART", 7 * 10**6)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *_: pytest.fail("They were read."))
    with pytest.raises(InputError, match="was not written by this version"):
        read_predictions(tmp_path)


def test_a_part_that_another_writer_has_written_again(tmp_path):
    """The values of lists have another name then."""
    Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    metadata = parquet.read_table(file).schema.metadata
    table = parquet.read_table(file).cast(SCHEMA)
    with parquet.ParquetWriter(file, table.schema, store_schema=False, use_compliant_nested_type=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    _add_digest(file)
    with pytest.raises(InputError, match="was not written by this version"):
        read_predictions(tmp_path)
    assert Parts(tmp_path, RUN, 1, overwrite=True).find(0, "key", PATHS) is None


def test_a_flipped_bit_of_a_footer_is_found_before_it_is_read(tmp_path, monkeypatch):
    """Over a few of them, pyarrow ends the process."""
    Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    assert parquet.read_table(file).num_rows == 2  # as others read it
    data = file.read_bytes()
    monkeypatch.setattr(parquet, "ParquetFile", lambda *_, **__: pytest.fail("It was read."))
    footer = int.from_bytes(data[-8:-4], "little")
    for place in range(len(data) - 8 - 32 - footer, len(data) - 4):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(InputError, match="was not written by this version of vitconv, or is damaged"):
            read_predictions(tmp_path)


def test_a_column_that_may_have_no_null_is_refused(tmp_path):
    """A flipped bit can make one of another: pyarrow ends the process if the column's sizes do not fit to that."""
    Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    table = parquet.read_table(file)
    fields = [field.with_nullable(field.name != "row") for field in SCHEMA]
    store(table.cast(pa.schema(fields)).replace_schema_metadata(table.schema.metadata), file)
    with pytest.raises(InputError, match="was not written by this version"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("place", ["settings", "classes"])
def test_text_that_utf_8_has_not_is_an_edit(tmp_path, place):
    """Of settings, and of a class that no image has, also with a seal that was written anew."""
    Parts(tmp_path, RUN, 1, overwrite=False).write(0, rows(0, 2), "key")
    (file,) = tmp_path.iterdir()
    table = parquet.read_table(file)
    if place == "settings":
        value = json.dumps(json.dumps({"device": "\ud800"}))
    else:
        value = json.dumps([name if name in table["class"].to_pylist() else "\ud800" for name in CLASSES])
    assert "ud800" in value
    metadata = {**table.schema.metadata, f"vitconv.{place}".encode(): value.encode()}
    metadata[b"vitconv.seal"] = _seal(table, metadata)
    store(table.replace_schema_metadata(metadata), file)
    with pytest.raises(InputError, match="has been edited"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("other", ["run", "list"])
def test_a_part_that_another_run_wrote_meanwhile_is_kept(tmp_path, other, overwrite):
    """Two runs that were started at once into one folder."""
    first = Parts(tmp_path, RUN, 1, overwrite=False)
    run = Run({"batch_size": 9}, CLASSES) if other == "run" else RUN
    second = Parts(tmp_path, run, 1, overwrite=overwrite)
    start = 5 if other == "list" else 0
    paths = [f"{start}.jpg", f"{start + 1}.jpg"]
    assert first.find(0, "key", PATHS) is second.find(0, "another", paths) is None
    first.write(0, rows(0, 2), "key")
    with pytest.raises(DestinationError, match="Another run has written .*part-00000000.parquet' meanwhile"):
        second.write(0, rows(start, 2), "another")
    assert [file.name for file in tmp_path.iterdir()] == ["part-00000000.parquet"]
    assert first.find(0, "key", PATHS).equals(rows(0, 2))


@pytest.mark.parametrize("spoil", ["gap", "overlap", "twice", "of other classes", "of another list"])
def test_parts_that_do_not_belong_together_are_refused(tmp_path, spoil):
    parts = Parts(tmp_path, RUN, 3, overwrite=False)
    for number in range(3):
        parts.write(number, rows(2 * number, 2), "key")
    files = sorted(tmp_path.iterdir())
    if spoil == "gap":
        files[1].unlink()
    elif spoil == "overlap":
        parts.write(1, rows(1, 3), "key")
    elif spoil == "twice":
        shutil.copyfile(files[1], tmp_path / "part-00000001-copy.parquet")
    elif spoil == "of other classes":
        files[1].unlink()
        Parts(tmp_path, Run(RUN.settings, ("a", "c", "b")), 3, overwrite=False).write(1, rows(2, 2), "key")
    else:
        files[1].unlink()
        Parts(tmp_path, Run(RUN.settings | {"folder": "x"}, CLASSES), 3, overwrite=False).write(1, rows(2, 2), "key")
    with pytest.raises(InputError, match=r"lack rows|are of several runs|has been edited"):
        read_predictions(tmp_path)
