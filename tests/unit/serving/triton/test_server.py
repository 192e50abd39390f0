"""What needs no server; tests/system/test_triton.py runs a real one."""

import socket
import subprocess
import sys

import pytest

from vitconv.errors import InputError
from vitconv.serving.triton import is_installed, run_server
from vitconv.serving.triton import server as module
from vitconv.serving.triton.perf_analyzer import measure_load

#: What the package of the server holds, with a script in the place of the server.
SCRIPT = """#!{python}
import os, signal, subprocess, sys, time
{body}
"""
DIES = "print('I1129 loading'); print('E1129 12:00 no such model'); sys.exit(1)"
NEVER_READY = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"


@pytest.fixture
def installation(tmp_path):
    def make(body):
        bundle = tmp_path / "installation" / "pytriton" / "tritonserver"
        stub = bundle / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
        for file, content in (
            (bundle / "bin" / "tritonserver", SCRIPT.format(python=sys.executable, body=body)),
            (bundle / "backends" / "python" / "libtriton_python.so", ""),
            (stub, ""),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o755)
        return tmp_path / "installation"

    return make


def test_where_it_is_not_installed(tmp_path):
    assert not is_installed(tmp_path)
    with (
        pytest.raises(InputError, match="Triton is not installed") as caught,
        run_server(tmp_path, installation=tmp_path),
    ):
        pass
    assert "make triton" in caught.value.remedy
    with pytest.raises(InputError, match="perf_analyzer is not installed"):
        measure_load("127.0.0.1:1", b"", [1], installation=tmp_path)


def check_refused(installation, store, reason, **options):
    with pytest.raises(InputError, match=reason), run_server(store, installation=installation, **options):
        raise AssertionError("It runs.")


def test_a_server_that_ends_says_why(installation, tmp_path):
    check_refused(installation(DIES), tmp_path, "cannot serve this store: E1129 12:00 no such model")


@pytest.mark.slow
def test_one_that_never_is_ready_is_ended_with_all_its_processes(installation, tmp_path, monkeypatch):
    started, start = [], module._start

    def remember(*known):
        started.append(start(*known))
        return started[-1]

    monkeypatch.setattr(module, "_start", remember)
    check_refused(installation(NEVER_READY), tmp_path, "not ready after the time", seconds=3)
    ((process, _),) = started
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    left = [line.split() for line in listed.splitlines()]
    assert not [state for group, state in left if group == str(process.pid) and state[0] != "Z"]


def test_free_ports_are_different_and_free():
    ports = module._free_ports(3)
    assert len(set(ports)) == 3
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
