"""`vitconv register` and `vitconv fetch` in words, exit codes and JSON; told to end at any moment."""

import json
import os
import signal

import pytest
from commands import run, stopped
from models import full_but

pytestmark = pytest.mark.usefixtures("registry")


def test_they_say_what_was_done_and_what_to_do_next(folder):
    code, out, err = run("register", folder, "--name", "roofs", "--alias", "champion")
    assert code == 0, err
    first, registry, uri, run_, last = out.splitlines()
    assert first == f"✓ {folder}: version 1 of roofs"
    assert registry == f"  Registry: sqlite:///{os.getcwd()}/mlflow.db" and uri == "  URI: models:/roofs@champion"
    assert run_.startswith("  Run: ") and last == "vitconv fetch roofs@champion DST"
    assert "Checking the model…" in err and "note: The conversion was not verified." in err
    assert "INFO" not in err and "alembic" not in err
    code, out, err = run("register", folder, "--name", "roofs", "-q")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"✓ {folder}: version 1 of roofs, which has the same files as before"
    assert out.splitlines()[-1] == "vitconv fetch roofs/1 DST"
    code, out, err = run("fetch", "roofs@champion", "back")
    assert code == 0, err
    assert out.splitlines()[0] == f"✓ back: version 1 of roofs, {len(os.listdir(folder))} files as registered"
    assert out.splitlines()[-1] == "vitconv predict back IMAGES"
    assert run("fetch", "models:/roofs/1", "again", "-q")[0] == 0
    assert run("fetch", "roofs/1", "again", "-q")[0] == 1
    assert run("fetch", "roofs/1", "again", "-q", "--overwrite")[0] == 0


def test_as_json(folder):
    code, out, _ = run("register", folder, "--json", "-q")
    found = json.loads(out)
    assert code == 0 and (found["name"], found["version"], found["alias"], found["new"]) == ("trees", 1, None, True)
    assert found["uri"] == "models:/trees/1" and len(found["fingerprint"]) == 64
    code, out, _ = run("fetch", "trees/1", "back", "--json", "-q")
    got = json.loads(out)
    assert code == 0 and got["folder"] == "back" and got["fingerprint"] == found["fingerprint"]


@pytest.mark.parametrize(
    "which", ["roofs", "roofs@", "@champion", "roofs/", "roofs/x", "roofs/-1", "a/b@c", "roofs@a@b"]
)
def test_what_is_no_name_of_a_version_is_wrong_usage(which):
    code, out, err = run("fetch", which, "back")
    assert (code, out) == (2, "") and "NAME@ALIAS, nor NAME/VERSION" in err


def test_errors_are_two_lines(folder):
    code, out, err = run("fetch", "floors@champion", "back", "-q")
    assert (code, out) == (1, "") and len(err.splitlines()) == 2 and err.startswith("error: The registry at ")
    code, out, err = run("register", folder, "--name", "a/b", "-q", "--json")
    assert code == 1 and json.loads(out)["error"] == "A registered model cannot be called 'a/b'."
    assert run("register", "nothing", "-q")[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", full_but([signal.SIGINT], [signal.SIGINT, signal.SIGTERM]))
@pytest.mark.parametrize(
    "sign", full_but(["Uploading"], ["Checking the model", "Opening the registry", "Uploading", "Registering"])
)
def test_a_signal_leaves_no_half_of_a_version(folder, number, sign):
    code, said = stopped(["register", folder, "--name", "roofs"], number, sign, 0.02)
    assert "Traceback" not in said
    if code:
        assert code == 128 + number
        assert said.endswith(
            "No version without its files is registered. Run it again to be sure that there is one.\n"
        )
    code, out, err = run("register", folder, "--name", "roofs", "--json", "-q")
    assert code == 0 and json.loads(out)["version"] == 1, err
    assert run("fetch", "roofs/1", "back", "-q")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", full_but([signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]))
@pytest.mark.parametrize(
    "sign", full_but(["Downloading"], ["Opening the registry", "Downloading", "Checking the files"])
)
def test_a_signal_leaves_no_half_of_a_folder(folder, number, sign):
    assert run("register", folder, "--name", "roofs", "-q")[0] == 0
    before = set(os.listdir())
    code, said = stopped(["fetch", "roofs/1", "back"], number, sign, 0.02)
    if code:
        assert code == 128 + number and said.endswith("Nothing was written.\n"), said
        assert set(os.listdir()) == before
    else:
        assert sorted(os.listdir("back")) == sorted(os.listdir(folder))
