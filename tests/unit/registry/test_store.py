"""MLflow is quiet, asks nobody else, and what is wrong with it is said soon."""

import http.server
import json
import logging
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from vitconv.errors import InputError, VitconvError
from vitconv.registry import store as module
from vitconv.registry.store import open_store

SETTINGS = (*module._SETTINGS, *module._FIRST)


def refused(uri, **options):
    """What is said of a store that cannot be opened, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(VitconvError) as found, open_store(uri, **options):
        pass
    return found.value, time.monotonic() - begun


@pytest.fixture
def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_is_not_there(port):
    error, seconds = refused(f"http://me:secret@127.0.0.1:{port}")
    assert error.problem.startswith(f"There is no MLflow at 'http://127.0.0.1:{port}' that answers: ")
    assert "Connection refused" in error.problem and "MLFLOW_TRACKING_URI" in error.remedy
    assert "secret" not in str(error)
    assert seconds < 30


def test_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setitem(module._FIRST, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error, seconds = refused(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "that answers: " in error.problem and "imed out" in error.problem
    assert seconds < 15


def test_a_server_of_something_else():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    error, _ = refused(f"http://127.0.0.1:{server.server_port}")
    assert "501" in error.problem
    server.shutdown()


def test_an_address_of_nothing():
    assert "There is no MLflow at 'gopher://here' that answers" in refused("gopher://here")[0].problem


def test_embedded_stores_that_cannot_be_used(tmp_path):
    (tmp_path / "text.db").write_text("not a database" * 100)
    (tmp_path / "folder.db").mkdir()
    for path, said in (
        (tmp_path / "text.db", "file is not a database"),
        (tmp_path / "folder.db", "unable to open database file"),
        (tmp_path / "text.db" / "mlflow.db", "unable to open database file"),
    ):
        error, seconds = refused(f"sqlite:///{path}")
        assert error.problem == f"The registry '{path}' cannot be used: {said}."
        assert seconds < 5  # MLflow itself tries for 100 seconds
    assert os.listdir(tmp_path / "folder.db") == []


def test_an_embedded_store_whose_disk_is_full(tmp_path):
    """MLflow's tables fit no more; by a limit of this process, as only root can make a small disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        error, _ = refused(f"sqlite:///{tmp_path}/new.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.problem == f"The registry '{tmp_path}/new.db' cannot be used: disk I/O error."
    assert error.remedy == "Check it, the disk and the permissions, or set MLFLOW_TRACKING_URI."
    assert os.listdir(tmp_path) == []
    with open_store(f"sqlite:///{tmp_path}/new.db"):  # half of its tables would be in its way
        assert os.listdir(tmp_path) == ["new.db"]


def test_an_embedded_store_that_another_process_has_locked(registry, monkeypatch):
    monkeypatch.setattr(module, "_LOCKED", 0.1)
    with sqlite3.connect("mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in refused(None)[0].problem


def test_a_store_in_memory_is_refused():
    assert "the registry would be gone" in refused("sqlite://")[0].problem


def test_to_read_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    error, _ = refused(None, write=False)
    assert isinstance(error, InputError)
    assert error.problem == f"There is no registry here: '{tmp_path / 'mlflow.db'}' does not exist."
    assert os.listdir(tmp_path) == []


def test_it_leaves_the_environment_and_the_logs_as_they_were(registry, monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before, level = dict(os.environ), logging.getLogger("mlflow").level
    with open_store() as store:
        assert store.where == f"'sqlite:///{registry / 'mlflow.db'}'"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
        assert logging.getLogger("mlflow").level == logging.CRITICAL
    assert dict(os.environ) == before and logging.getLogger("mlflow").level == level


def test_many_versions_come_in_pages(registry):
    with open_store() as store:
        store.client.create_registered_model("many")
        for _ in range(3):
            store.client.create_model_version("many", "mlruns/many")
        right = store.client.search_model_versions
        store.client.search_model_versions = lambda *given, max_results, **more: right(*given, max_results=2, **more)
        assert [int(version.version) for version in store.versions("many")] == [3, 2, 1]
        assert store.versions("none") == []


def test_mlflow_reports_to_nobody(tmp_path):
    """In a process that is neither a test nor CI: in those, MLflow sends nothing by itself."""
    code = (
        "import json, vitconv.registry.store, mlflow\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "print(json.dumps([is_telemetry_disabled(), get_telemetry_client() is None]))"
    )
    keep = {"PATH", "PYTHONPATH", "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name in keep},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, True]
