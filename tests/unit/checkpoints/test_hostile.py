"""Every hostile file, through Python and through the command: refused in words, with nothing run and nothing written."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import headers, pickles
from models import full_model
from safetensors.torch import save_file
from typer.testing import CliRunner

from vitconv.checkpoints.checkpoint import open_source
from vitconv.cli import app
from vitconv.convert import convert_checkpoint, inspect, revert_checkpoint, verify_checkpoint
from vitconv.errors import VitconvError

ARCH = "vit_tiny_patch16_224"


def assert_refused(path, folder, message=""):
    """From Python a VitconvError, from the command line one `error:` line and a remedy; nothing is written."""
    before = sorted(os.listdir(folder))
    with pytest.raises(VitconvError) as caught:
        convert_checkpoint(path, folder / "hf", architecture=ARCH, verify=False)
    assert message in caught.value.problem
    result = CliRunner().invoke(app, ["convert", str(path), str(folder / "hf"), "--arch", ARCH, "--no-verify"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line != "Reading the checkpoint…"]
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1]
    assert len(lines[0]) < 1000
    assert result.stdout == ""
    assert result.stderr.replace("\n", "").isprintable()
    assert sorted(os.listdir(folder)) == before


# ---- pickles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [pickles.as_zip, pickles.as_legacy, bytes], ids=["zip", "legacy", "bare"])
@pytest.mark.parametrize("payload", pickles.PAYLOADS)
def test_a_pickle_that_runs_code_is_not_run(payload, wrap, tmp_path):
    trap = tmp_path / "trap"
    path = tmp_path / "w.pth"
    path.write_bytes(wrap(pickles.PAYLOADS[payload](str(trap))))
    assert_refused(path, tmp_path)
    assert not trap.exists()


def test_the_payloads_would_run(tmp_path):
    """The payloads are real: Python's own unpickler runs most of them, here in a separate process."""
    child = """
import contextlib, pickle, sys
sys.path.insert(0, sys.argv[1])
from hostile.pickles import PAYLOADS
for number, payload in enumerate(PAYLOADS.values()):
    with contextlib.suppress(Exception):
        pickle.loads(payload(f"{sys.argv[2]}/{number}"))
"""
    subprocess.run([sys.executable, "-c", child, Path(__file__).parents[2], tmp_path], check=True, capture_output=True)
    assert len(os.listdir(tmp_path)) >= len(pickles.PAYLOADS) / 2


@pytest.mark.parametrize("wrap", [pickles.as_zip, pickles.as_legacy, bytes], ids=["zip", "legacy", "bare"])
@pytest.mark.parametrize("kind", pickles.BROKEN)
def test_a_broken_pickle_is_refused(kind, wrap, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(wrap(pickles.BROKEN[kind]))
    assert_refused(path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["\x1b[31mred\x1b[0m", "x" * 10**4, "a b", "`$(touch trap)`", "\u202eevil", "was not an allowed global"]
)
def test_the_name_of_an_object_is_never_echoed_raw(name, tmp_path):
    content = b"\x80\x02}(" + pickles.text("w") + f"cmodule\n{name}\n".encode() + pickles.text("a;b'\"") + b"K\x01u."
    (tmp_path / "w.pth").write_bytes(pickles.as_zip(content))
    assert_refused(tmp_path / "w.pth", tmp_path, "holds Python objects")


@pytest.mark.slow
@pytest.mark.parametrize("part", [b"}", b"(", b"]0", b"}2", b"\x94h\x00", b"cx\ny\n", b"h\x00h\x00s"])
def test_a_long_pickle_is_looked_into_in_bounded_time(part, tmp_path):
    """The longest pickle that is followed, with an object at the start that torch does not create."""
    content = b"\x80\x02cmodule\nname\n0}q\x00" + part * (990_000 // len(part)) + b"."
    (tmp_path / "w.pth").write_bytes(pickles.as_zip(content))
    start = time.process_time()
    with pytest.raises(VitconvError, match="holds Python objects, not only tensors: `module.name`"):
        inspect(tmp_path / "w.pth", ARCH)
    assert time.process_time() - start < 20


def test_dictionaries_that_multiply_are_looked_at_once(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickles.as_zip(pickles.billion_laughs()))
    assert_refused(path, tmp_path, "no Vision Transformer in the checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [pickles.as_zip, pickles.as_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", pickles.SWELLING)
def test_an_object_that_would_fill_memory_is_refused(kind, wrap, tmp_path):
    """So is one that crashes Python, or keeps torch's reader busy for ever."""
    path = tmp_path / "w.pth"
    path.write_bytes(wrap(b"\x80\x02}(" + pickles.text("epoch") + pickles.SWELLING[kind] + b"u."))
    start = time.process_time()
    with pytest.raises(VitconvError):
        open_source(path)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("kind", pickles.DISGUISED)
def test_an_object_that_misreports_its_content_is_refused(kind, tmp_path):
    opcodes = pickles.DISGUISED[kind](pickles.tensor("0", (4,), (1,)))
    path = tmp_path / "w.pth"
    path.write_bytes(pickles.as_zip(b"\x80\x02}(" + pickles.text("a") + opcodes + b"u.", {"0": bytes(16)}))
    with pytest.raises(VitconvError, match="is replaced: it can misreport its content|sets attributes"):
        open_source(path)
    assert_refused(path, tmp_path)


TENSORS = {
    "expanded": (pickles.tensor("0", (10**6, 10**6), (0, 0)), ""),
    "larger than its storage": (pickles.tensor("0", (100,), (1,)), "reaches beyond its bytes"),
    "beyond its storage": (pickles.tensor("0", (4,), (1,), offset=1), "reaches beyond its bytes"),
    "before its storage": (pickles.tensor("0", (4,), (1,), offset=-1), ""),
    "of negative size": (pickles.tensor("0", (-4,), (1,)), ""),
    "of negative stride": (pickles.tensor("0", (4,), (-1,)), ""),
    "of strides beyond its storage": (pickles.tensor("0", (2, 2), (1000, 1)), "reaches beyond its bytes"),
    "in a storage that claims more than its record": (
        pickles.tensor("0", (8,), (1,), numel=8),
        "reaches beyond its bytes",
    ),
    "in a storage of a terabyte": (pickles.tensor("0", (4,), (1,), numel=10**12), ""),
    "in a storage that is not there": (pickles.tensor("7", (4,), (1,)), ""),
    "with its elements on one another": (pickles.tensor("0", (2, 2), (1, 1)), ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_not_in_its_file_is_refused(kind, tmp_path):
    opcodes, message = TENSORS[kind]
    names = full_model(ARCH, depth=12, num_classes=1).state_dict()
    path = tmp_path / "w.pth"
    content = pickles.as_zip(pickles.dictionary(dict.fromkeys(names, opcodes)), {"0": bytes(16)})
    path.write_bytes(content)
    assert_refused(path, tmp_path, message)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.bin").write_bytes(content)
    index = json.dumps({"weight_map": dict.fromkeys(names, "a.bin")})
    (tmp_path / "shards" / "pytorch_model.bin.index.json").write_text(index)
    assert_refused(tmp_path / "shards", tmp_path)


@pytest.mark.parametrize("kind", [kind for kind, (_, message) in TENSORS.items() if message])
def test_a_tensor_beyond_its_bytes_is_refused_in_every_format(kind, tmp_path):
    """Also in the older format and in another byte order, where torch would fill the tensor with bytes from memory."""
    content = pickles.dictionary({"a": TENSORS[kind][0]})
    (tmp_path / "w.pth").write_bytes(pickles.as_zip(content, {"0": bytes(16)}, byteorder=b"big"))
    with pytest.raises(VitconvError, match="elements|beyond its bytes"):
        open_source(tmp_path / "w.pth")
    if "record" not in kind:  # the older format has none
        (tmp_path / "w.pth").write_bytes(pickles.as_legacy(content, {"0": bytes(16)}))
        with pytest.raises(VitconvError, match="reaches beyond its bytes"):
            open_source(tmp_path / "w.pth")


def test_the_older_format_is_read_where_all_is_well(tmp_path):
    content = pickles.dictionary({"a": pickles.tensor("0", (2, 2), (2, 1))})
    (tmp_path / "w.pth").write_bytes(pickles.as_legacy(content, {"0": torch.arange(4.0).numpy().tobytes()}))
    assert open_source(tmp_path / "w.pth").content["a"].tolist() == [[0, 1], [2, 3]]


def test_a_storage_of_two_sizes_is_refused(tmp_path):
    tensors = {name: pickles.tensor("0", (1,), (1,), numel=size) for name, size in (("a", 4), ("b", 2))}
    (tmp_path / "w.pth").write_bytes(pickles.as_zip(pickles.dictionary(tensors), {"0": bytes(16)}))
    assert_refused(tmp_path / "w.pth", tmp_path, "has two sizes")


# ---- archives -----------------------------------------------------------------------------------------------------


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    bomb = pickles.as_zip(b"\x80\x02" + bytes(300_000_000), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1_000_000
    (tmp_path / "w.pth").write_bytes(bomb)
    assert_refused(tmp_path / "w.pth", tmp_path, "its records are compressed")


def test_an_archive_that_claims_more_than_it_has(tmp_path):
    """Every entry of the table of contents claims four gigabytes."""
    content = bytearray(pickles.as_zip(b"\x80\x02}."))
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        content[position + 20 : position + 28] = b"\xfe\xff\xff\xff" * 2
        position = content.find(b"PK\x01\x02", position + 4)
    (tmp_path / "w.pth").write_bytes(content)
    assert_refused(tmp_path / "w.pth", tmp_path, "its records claim more bytes than the file has")


def test_entries_that_share_their_bytes_are_counted_each(tmp_path):
    """The overlapping bomb: a thousand entries of the table point to one."""
    content = pickles.as_zip(b"\x80\x02}.", {"0": bytes(100_000)})
    start, end = content.find(b"PK\x01\x02"), content.find(b"PK\x05\x06")
    table = content[start:end]
    entries = 4 * 1000
    tail = bytearray(content[end:])
    tail[8:12] = entries.to_bytes(2, "little") * 2
    tail[12:16] = (len(table) * 1000).to_bytes(4, "little")
    (tmp_path / "w.pth").write_bytes(content[:start] + table * 1000 + tail)
    assert_refused(tmp_path / "w.pth", tmp_path, "its records claim more bytes than the file has")


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "archive/data.pkl\0.txt"])
def test_an_archive_s_names_are_never_paths(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr(name, b"\x80\x02}.")
    assert_refused(tmp_path / "w.pth", tmp_path)


@pytest.mark.parametrize("second", ["archive/data.pkl", "archive/DATA.PKL"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_pickles_is_refused(second, tmp_path):
    """torch opens one of them, other readers the other."""
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr(second, b"\x80\x02}.")
    assert_refused(tmp_path / "w.pth", tmp_path, "have the same name")


@pytest.mark.slow
def test_an_archive_of_more_records_than_any_checkpoint_has(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for number in range(180_000):
            archive.writestr(f"archive/data/{number}", b"")
    start = time.process_time()
    assert_refused(tmp_path / "w.pth", tmp_path, "table of contents has more than 10,000,000 bytes")
    assert time.process_time() - start < 5


def test_an_archive_within_another_folder_is_not_taken_for_it(tmp_path):
    """torch opens the pickle in the folder of the first record."""
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("one/version", b"3")
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    assert_refused(tmp_path / "w.pth", tmp_path, "it has no `data.pkl`")


def test_an_archive_with_two_tables_of_contents_is_refused(tmp_path):
    """torch's reader follows the position stated at the end of the file; Python's looks right before the end."""
    first = pickles.as_zip(b"\x80\x02}.")
    table, end = first.find(b"PK\x01\x02"), first.find(b"PK\x05\x06")
    (tmp_path / "w.pth").write_bytes(first[:end] + first[:end] + first[end:])
    assert int.from_bytes(first[end + 16 : end + 20], "little") == table
    assert_refused(tmp_path / "w.pth", tmp_path, "table of contents is not where it should be")


@pytest.mark.parametrize("seed", range(20))
def test_an_archive_with_flipped_bytes(seed, tmp_path):
    """Bits in the archive's structure, or in its pickle."""
    content = bytearray(pickles.as_zip(pickles.dictionary({"a": pickles.tensor("0", (4,), (1,))}), {"0": bytes(16)}))
    generator = torch.Generator().manual_seed(seed)
    for position in torch.randint(len(content), (8,), generator=generator).tolist():
        content[position] ^= 1 + position % 255
    (tmp_path / "w.pth").write_bytes(content)
    assert_refused(tmp_path / "w.pth", tmp_path)


# ---- safetensors --------------------------------------------------------------------------------------------------


def not_utf8(archive: bytearray) -> None:
    """The first entry's own header says that its name is UTF-8."""
    archive[7] |= 8
    archive[31] = 0x89


def renamed(archive: bytearray) -> None:
    """The first entry's own header has another name than the table of contents."""
    archive[31] = ord("b")


def encrypted(archive: bytearray) -> None:
    """The table of contents says that the first entry is encrypted."""
    archive[archive.find(b"PK\x01\x02") + 8] |= 1


@pytest.mark.parametrize("damage", [not_utf8, renamed, encrypted])
def test_an_entry_that_zipfile_cannot_open_is_refused(tmp_path, damage):
    content = bytearray(pickles.as_zip(pickles.dictionary({"a": pickles.tensor("0", (4,), (1,))}), {"0": bytes(16)}))
    damage(content)
    (tmp_path / "w.pth").write_bytes(content)
    assert_refused(tmp_path / "w.pth", tmp_path, "its table of contents cannot be read")


@pytest.mark.parametrize("kind", headers.DAMAGED)
def test_a_damaged_header_is_refused(kind, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(headers.DAMAGED[kind])
    assert_refused(tmp_path / "w.safetensors", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_a_million_keys_take_bounded_time_and_memory(count, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(headers.many_keys(count))
    child = f"""
import resource, sys
from vitconv.cli import app
try: app(["convert", sys.argv[1], sys.argv[2], "--arch", "{ARCH}", "--no-verify"])
except SystemExit as end: assert end.code == 1
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run(
        [sys.executable, "-c", child, path, tmp_path / "hf"], capture_output=True, text=True, timeout=20, check=True
    )
    assert int(done.stdout) < 400_000
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a/../../b", "\x1b[31mred\x1b[0m", "line\nfeed", "tab\t\x07", "\u202eevil", "x" * 10**6, "\x00", ""]
)
def test_names_are_never_echoed_raw(name, tmp_path):
    weights = full_model(ARCH, num_classes=3).state_dict() | {name: torch.ones(2)}
    save_file(weights, tmp_path / "w.safetensors")
    assert_refused(tmp_path / "w.safetensors", tmp_path, "1 tensor is unknown")


def test_zero_sized_tensors_are_refused(tmp_path):
    weights = full_model(ARCH, num_classes=3).state_dict()
    weights["head.weight"], weights["head.bias"] = torch.ones(0, 192), torch.ones(0)
    save_file(weights, tmp_path / "w.safetensors")
    assert_refused(tmp_path / "w.safetensors", tmp_path)


# ---- folders and other things with names --------------------------------------------------------------------------

CONFIGS = {
    "a list": "[]",
    "not JSON": "{",
    "deep": "[" * 100_000,
    "not UTF-8": b"\xff\xfe",
    "an architecture that is no text": {"architecture": ["vit_tiny_patch16_224"]},
    "an unknown architecture": {"architecture": "\x1b[31mvit"},
    "arguments that are no object": {"architecture": ARCH, "model_args": [1]},
    "arguments that timm does not know": {"architecture": ARCH, "model_args": {"nonsense": 1}},
    "arguments of a wrong type": {"architecture": ARCH, "model_args": {"depth": "many"}},
    "a number of 5000 digits": b'{"architecture": "vit_tiny_patch16_224", "num_classes": ' + b"9" * 5000 + b"}",
    "a crop of NaN": {"architecture": ARCH, "pretrained_cfg": {"crop_pct": float("nan")}},
    "a mean of NaN": {"architecture": ARCH, "pretrained_cfg": {"mean": [float("nan")] * 3}},
    "arguments that take all time": {"architecture": ARCH, "model_args": {"depth": 10**9}},
    "arguments that take all memory": {"architecture": ARCH, "model_args": {"embed_dim": 10**12}},
    "labels that are no texts": {"architecture": ARCH, "label_names": [1, 2, 3]},
    "labels that repeat": {"architecture": ARCH, "label_names": ["a", "a", "b"]},
    "labels with control characters": {"architecture": ARCH, "label_names": ["a", "b", "\x1b[31m"]},
    "a mean that is no list": {"architecture": ARCH, "pretrained_cfg": {"mean": "half"}},
    "a mean that is no number": {"architecture": ARCH, "pretrained_cfg": {"mean": ["a", "b", "c"]}},
    "a crop of nothing": {"architecture": ARCH, "pretrained_cfg": {"crop_pct": 1e-9}},
    "an interpolation that is no text": {"architecture": ARCH, "pretrained_cfg": {"interpolation": ["bicubic"]}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_file(full_model(ARCH, num_classes=3).state_dict(), path)
    return path


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_s_configuration_is_not_trusted(kind, tiny, tmp_path):
    content = CONFIGS[kind]
    if isinstance(content, dict):  # as timm writes it today: else it stops at the form
        content = {"num_classes": 3, "pretrained_cfg": {}, **content}
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "model.safetensors").symlink_to(tiny)
    content = json.dumps(content) if isinstance(content, dict) else content
    (tmp_path / "timm" / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VitconvError):
        convert_checkpoint(tmp_path / "timm", tmp_path / "hf", verify=False)
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "timm"), str(tmp_path / "hf"), "--no-verify"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.count("error: ") == 1 and result.stderr.replace("\n", "").isprintable()
    assert sorted(os.listdir(tmp_path)) == ["timm"]


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\0b"])
def test_an_index_that_leaves_its_folder_is_refused(name, index, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / index).write_text(json.dumps({"weight_map": {"a": name}}))
    assert_refused(tmp_path / "timm", tmp_path, "names files outside of its folder")


def test_a_pipe_a_socket_and_a_loop_are_no_checkpoints(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
        listener.bind("socket")
        for name in ("pipe", "socket", "loop"):
            assert_refused(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    "name", ["x" * 300, "/".join(["x" * 200] * 30), "a\0b", "a\udcffb"], ids=["long", "long path", "NUL", "no UTF-8"]
)
def test_an_impossible_file_name_is_an_error(name, tiny, tmp_path):
    for path in (name, tmp_path / name):
        for call in (
            lambda path=path: convert_checkpoint(path, tmp_path / "hf", architecture=ARCH),
            lambda path=path: verify_checkpoint(tiny, path, architecture=ARCH),
            lambda path=path: revert_checkpoint(path, tmp_path / "timm"),
            lambda path=path: convert_checkpoint(tiny, tmp_path / "hf", architecture=ARCH, labels=path, verify=False),
            lambda path=path: convert_checkpoint(tiny, tmp_path / "hf", architecture=ARCH, data=path, verify=False),
            lambda path=path: convert_checkpoint(tiny, tmp_path / "hf", architecture=ARCH, image=path),
        ):
            with pytest.raises(VitconvError):
                call()
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_more_shards_than_files_can_be_open(kind, tmp_path):
    weights = full_model(ARCH, num_classes=3).state_dict()
    (tmp_path / "timm").mkdir()
    placed = {}
    for number in range(50):
        part = {name: weights[name].clone() for name in list(weights)[number::50]}
        name = f"{number}.{kind}"
        (save_file if kind == "safetensors" else torch.save)(part, tmp_path / "timm" / name)
        placed |= dict.fromkeys(part, name)
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (tmp_path / "timm" / index).write_text(json.dumps({"weight_map": placed}))
    command = [
        sys.executable,
        "-c",
        "from vitconv.cli import run; run()",
        "convert",
        "timm",
        "hf",
        "--arch",
        ARCH,
    ]
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))  # noqa: E731
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hf" / "parity.json").exists()


@pytest.mark.slow
def test_memory_limits_are_errors_too(tmp_path):
    """A file that is read whole, in a process with less memory than that."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(50_000_000)}, path, _use_new_zipfile_serialization=False)
    child = f"""
import resource, sys, torch
from vitconv.cli import app
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000,) * 2)
app(["convert", sys.argv[1], sys.argv[2], "--arch", "{ARCH}", "--no-verify"])
"""
    done = subprocess.run([sys.executable, "-c", child, path, tmp_path / "hf"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["w.pth"]


def test_a_byte_order_that_only_torch_would_find_is_refused(tmp_path):
    """torch ignores case in the names of records, and reads tensors in the byte order named there."""
    names = full_model(ARCH, depth=12, num_classes=1).state_dict()
    opcodes = pickles.tensor("0", (4,), (1,))
    content = pickles.as_zip(pickles.dictionary(dict.fromkeys(names, opcodes)), {"0": bytes(16)}, byteorder=b"big")
    path = tmp_path / "w.pth"
    path.write_bytes(content.replace(b"archive/byteorder", b"archive/ByteOrder"))
    assert_refused(path, tmp_path, "a record's name has capital letters")
