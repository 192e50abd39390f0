"""`vitconv triton` in words, exit codes and JSON."""

import json
from functools import partial

import commands

run = partial(commands.run, "triton")


def test_it_says_what_was_written_and_what_the_server_needs(folder, tmp_path):
    code, out, err = run(folder, tmp_path / "store", "--zip")
    assert code == 0, err
    first, needs, *_ = out.splitlines()
    assert first == f"✓ {tmp_path / 'store'}: a model repository for Triton's backend python, on cpu"
    assert needs.startswith("  The server's Python needs: torch==")
    assert err.splitlines() == ["Checking the model…", "Writing the store…", "Writing the zip file…"]
    assert (tmp_path / "store.zip").is_file() and (tmp_path / "store" / "vit" / "config.pbtxt").is_file()


def test_as_json(folder, tmp_path):
    code, out, _ = run(folder, tmp_path / "store", "--json", "--device", "cuda")
    found = json.loads(out)
    assert code == 0 and found["hardware"] == "cuda" and found["backend"] == "python" and found["archive"] is None
    assert found["folder"] == str(tmp_path / "store") and len(found["fingerprint"]) == 64


def test_what_cannot_be_is_an_error_and_leaves_nothing(folder, tmp_path):
    code, out, err = run(folder, tmp_path / "store", "--backend", "pytorch", "-q")
    assert (code, out) == (1, "") and err.startswith("error: Triton's backend pytorch does not run")
    assert run(folder, tmp_path / "store", "--backend", "tensorflow")[0] == 2
    assert run(tmp_path / "nothing", tmp_path / "store")[0] == 1
    assert list(tmp_path.iterdir()) == []
