"""A real MLflow server on this machine: `make mlflow` installs it beside the environment."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest

from vitconv.errors import CheckpointError, VitconvError
from vitconv.inference import open_model, predict
from vitconv.inference.predictions import read_predictions
from vitconv.registry import fetch, register

SERVER = Path(sys.prefix) / "mlflow-3.17.2"

pytestmark = pytest.mark.skipif(not SERVER.is_dir(), reason="no MLflow server beside the environment: `make mlflow`")


def contents(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def is_up(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its address, and the folder in which it keeps files."""
    place = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{place / 'mlflow.db'}",
        "--artifacts-destination",
        str(place / "files"),
    ]
    path = os.pathsep.join(filter(None, (str(SERVER), os.environ.get("PYTHONPATH"))))
    more = {"PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    url = f"http://127.0.0.1:{port}"
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=place, env={**os.environ, **more}, start_new_session=True
        )
    try:
        end = time.monotonic() + 300
        while not is_up(url):
            assert process.poll() is None and time.monotonic() < end, (place / "log").read_text()
            time.sleep(0.5)
        yield url, place / "files"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # of the server, and of its worker
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def url(server, monkeypatch, tmp_path):
    """The server, as users name it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    monkeypatch.chdir(tmp_path)
    return server[0]


def vitconv(*arguments):
    command = [sys.executable, "-m", "vitconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_proved_model_there_and_back(url, wrapped, tmp_path):
    done = vitconv("register", wrapped[1], "--name", "eva", "--alias", "champion", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["registry"] == url and made["version"] == 1 and made["new"]
    again = json.loads(vitconv("register", wrapped[1], "--name", "eva", "--json").stdout)
    assert (again["version"], again["new"], again["run_id"]) == (1, False, made["run_id"])
    done = vitconv("fetch", "eva@champion", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "back") == contents(wrapped[1])
    assert "mlflow.db" not in os.listdir(tmp_path) and "mlruns" not in os.listdir(tmp_path)
    # What the pages of the server show: the metrics, the parameters and the files.
    run = mlflow.MlflowClient(url).get_run(made["run_id"])
    assert run.data.metrics == made["metrics"] and "parity/float64_logits_difference" in run.data.metrics
    assert run.data.params["verified"] == "yes" and run.info.status == "FINISHED"
    listed = mlflow.MlflowClient(url).list_artifacts(made["run_id"], "model")
    assert sorted(file.path for file in listed) == sorted(f"model/{name}" for name in contents(wrapped[1]))
    # And MLflow's own way to get the folder.
    place = mlflow.artifacts.download_artifacts("models:/eva@champion", dst_path=str(tmp_path / "mlflow"))
    assert contents(place) == contents(wrapped[1])


@pytest.mark.full
def test_an_optimised_and_calibrated_model_answers_the_same(url, woods, certain, write_images, tmp_path):
    fast = woods.copy("onnx", tmp_path / "fast")
    register(certain, name="woods", alias="exact")
    register(fast, name="woods", alias="fast")
    images = write_images(4)
    for alias, folder, version in (("exact", certain, 1), ("fast", fast, 2)):
        got = fetch("woods", alias, tmp_path / f"{alias}-back")
        assert got.version == version and contents(got.folder) == contents(folder)
        assert open_model(got.folder, "cpu").info.fingerprint == got.fingerprint
        rows = []
        for model, out in ((folder, "before"), (got.folder, "after")):
            predict(model, images, tmp_path / f"{alias}-{out}", batch_size=1)
            rows.append(read_predictions(tmp_path / f"{alias}-{out}").rows.to_pylist())
        assert rows[0] == rows[1]


@pytest.mark.full
def test_an_alias_moves(url, folder, certain, tmp_path):
    assert register(folder, name="moving", alias="champion").version == 1
    assert register(certain, name="moving", alias="champion").version == 2
    assert fetch("moving", "champion", tmp_path / "two").version == 2
    assert register(folder, name="moving", alias="champion").version == 1
    assert fetch("moving", "champion", tmp_path / "one").version == 1


@pytest.mark.full
def test_names_of_files_and_models(url, folder, tmp_path):
    """What HTTP would take for something else."""
    place = Path(shutil.copytree(folder, tmp_path / "trees"))
    (place / "a folder").mkdir()
    (place / "a folder" / "ä & (1).txt").write_text("odd")
    register(place, name="Dächer & 100 %", alias="champion")
    fetch("Dächer & 100 %", "champion", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(place)


def test_a_file_that_the_server_has_damaged(url, server, folder, tmp_path):
    made = register(folder, name="damaged")
    (weights,) = server[1].glob(f"*/{made.run_id}/artifacts/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match="model.safetensors has not the SHA-256 that was registered"):
        fetch("damaged", 1, tmp_path / "back")
    weights.unlink()
    with pytest.raises(VitconvError, match="could not get 'model/model.safetensors'"):
        fetch("damaged", 1, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_is_not_there(url, tmp_path):
    done = vitconv("fetch", "nothing@champion", tmp_path / "back", "-q")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: The registry at '{url}' has no model 'nothing'.\n")


@pytest.mark.full
def test_an_interrupted_upload_leaves_no_version(url, server, folder, tmp_path):
    """A signal in the middle: MLflow removes the run and its files, and nothing was registered."""
    command = [sys.executable, "-m", "vitconv", "register", str(folder), "--name", "interrupted"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("Uploading"):
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read()
    client = mlflow.MlflowClient(url)
    if process.returncode == 0:
        pytest.skip("it was done before")
    assert process.returncode == 143 and "Traceback" not in said
    assert not client.search_model_versions("name='interrupted'")
    experiment = client.get_experiment_by_name("vitconv").experiment_id
    assert not [run for run in client.search_runs([experiment]) if run.info.run_name == "interrupted"]
    assert register(folder, name="interrupted").version == 1
