"""The command `vitconv serve`: what it says and refuses. That it serves is in system/test_serve.py."""

import socket
from functools import partial

import commands
import pytest

from vitconv.serving import rest

run = partial(commands.run, "serve")


@pytest.fixture
def served(monkeypatch):
    """What would be served, instead of serving it."""
    found = []
    monkeypatch.setattr(
        rest, "serve", lambda app, settings, listener: found.append((app, settings, listener)), raising=False
    )
    monkeypatch.delenv("VITCONV_API_KEY", raising=False)
    return found


def test_it_says_where_it_is_and_how_to_end_it(folder, served):
    code, out, said = run(folder, "--port", 0, "--device", "cpu")
    (app, settings, listener) = served[0]
    assert (code, out) == (0, "") and listener.fileno() == -1  # it is closed
    assert said.startswith(f"{folder} is served at http://127.0.0.1:") and "until Ctrl-C" in said and "/docs" in said
    assert "warning" not in said and settings == rest.Settings()
    assert app.state.service.classifier.info.folder == folder.resolve()


def test_its_options(folder, served, monkeypatch):
    monkeypatch.setenv("VITCONV_API_KEY", "sesame")
    code, _, said = run(
        folder, "--port", 0, "--workers", 3, "--timeout", 1.5, "--processor", "timm", "--device", "cpu"
    )
    app, settings, _ = served[0]
    assert code == 0 and (settings.workers, settings.timeout, settings.api_key) == (3, 1.5, "sesame")
    assert app.state.service.classifier.preprocessor.name == "timm" and app.state.service.workers.count == 3
    assert "sesame" not in said


@pytest.mark.parametrize(
    ("key", "who"), [("", "anybody: there is no key (VITCONV_API_KEY)"), ("x", "whoever has the key")]
)
def test_who_can_reach_it_is_said(folder, served, monkeypatch, key, who):
    monkeypatch.setenv("VITCONV_API_KEY", key)
    _, _, said = run(folder, "--host", "0.0.0.0", "--port", 0, "--device", "cpu")
    assert said.splitlines()[0] == f"warning: Other computers can reach this server. It answers {who}."
    assert served[0][1].api_key == (key or None)


def test_a_port_that_is_taken(folder, served):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, said = run(folder, "--port", port)
    assert code == 1 and not served
    assert said == (
        f"error: The server cannot have port {port} of 127.0.0.1: Address already in use.\n"
        "Choose another with --port or --host.\n"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--timeout", seconds) for seconds in ("nan", "inf", "0", "1e308")),
        *((option, "1" + "0" * 400) for option in ("--workers", "--replicas", "--max-replicas")),
    ],
)
def test_numbers_that_are_refused(folder, served, option, value):
    code, _, said = run(folder, "--port", 0, option, value)
    assert code == 2 and f"Invalid value for '{option}'" in said and not served


@pytest.mark.parametrize("folder", ["none", "."])
def test_what_is_no_model(tmp_path, served, folder):
    code, _, said = run(tmp_path / folder, "--port", 0)
    assert code == 1 and said.startswith("error: ") and "Traceback" not in said and not served


def test_packages_that_are_missing(folder, monkeypatch):
    monkeypatch.setattr("vitconv.inference.optional.find_spec", lambda package: None)
    code, _, said = run(folder, "--port", 0)
    assert code == 1 and "needs packages that are not installed: fastapi, uvicorn" in said and ".[serve]" in said
