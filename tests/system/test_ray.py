"""Predictions on a real Ray cluster on this machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import exported
import numpy as np
import psutil
import pytest

from vitconv.errors import InputError, VitconvError
from vitconv.inference import predict
from vitconv.inference.images import Batches, read_images
from vitconv.inference.pixels import open_preprocessor
from vitconv.inference.predictions import read_predictions
from vitconv.inference.ray import RayEngine, _check_listens
from vitconv.inference.runtime import RUNTIMES, opener, read_info


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Start one cluster for all tests, as the engine does."""
    yield RayEngine("cpu")
    import ray

    ray.shutdown()


def workers(name: str) -> list[psutil.Process]:
    """The cluster's processes that run a function of this name. Ray names a process after its function."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "ray::" in _title(process) and name in _title(process)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_both_engines_write_the_same_rows(folder, tmp_path, write_images):
    """More images than a batch, a last batch that is not full, and images that cannot be read."""
    images = write_images(43, broken=(3, 10, 42))
    local = predict(folder, images, tmp_path / "local", batch_size=8, max_errors=3)
    ray = predict(folder, images, tmp_path / "ray", engine="ray", batch_size=8, max_errors=3)
    assert local == ray
    assert local.errors == 3
    one, other = (read_predictions(tmp_path / name) for name in ("local", "ray"))
    assert one.rows.equals(other.rows)  # bit for bit: floats are compared as they are
    assert one.classes == other.classes


def test_both_engines_write_the_same_rows_with_timm_s_processor(folder, tmp_path, write_images):
    images = write_images(21, broken=(3,))
    arguments = {"processor": "timm", "batch_size": 8, "max_errors": 1}
    local = predict(folder, images, tmp_path / "local", **arguments)
    assert predict(folder, images, tmp_path / "ray", engine="ray", **arguments) == local
    predict(folder, images, tmp_path / "own", batch_size=8, max_errors=1)
    one, other, own = (read_predictions(tmp_path / name).rows for name in ("local", "ray", "own"))
    assert one.equals(other)
    assert not one.equals(own)  # some of the images are cropped otherwise


def test_one_engine_continues_where_the_other_stopped(folder, tmp_path, write_images, monkeypatch):
    monkeypatch.setattr("vitconv.inference.batch_prediction.ROWS_PER_PART", 8)
    images = write_images(24)

    def stop(done, errors, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(folder, images, tmp_path / "out", engine="ray", batch_size=4, on_progress=stop)
    assert predict(folder, images, tmp_path / "out", batch_size=4).found == 8
    predict(folder, images, tmp_path / "local", batch_size=4)
    assert read_predictions(tmp_path / "out").rows.equals(read_predictions(tmp_path / "local").rows)


@pytest.mark.parametrize("victim", ["_Predict", "_Prepare"])
def test_killed_workers_lose_nothing(folder, tmp_path, write_images, victim):
    """The actor with the model, or the tasks that prepare images, are killed during a run."""
    images = write_images(240)
    predict(folder, images, tmp_path / "local", batch_size=2)
    killed, begun, over = [], threading.Event(), threading.Event()

    def kill():
        if victim == "_Predict":  # the tasks may be over before the first answer
            begun.wait()
        while not killed and not over.is_set():  # between two tasks, a worker has no name for a moment
            for process in workers(victim):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
            time.sleep(0.001)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        summary = predict(
            folder, images, tmp_path / "ray", engine="ray", batch_size=2, on_progress=lambda *counts: begun.set()
        )
    finally:
        over.set()
        begun.set()
        killing.join()
    assert killed, "no worker was there to be killed"
    assert (summary.rows, summary.errors) == (240, 0)
    assert read_predictions(tmp_path / "ray").rows.equals(read_predictions(tmp_path / "local").rows)


def test_a_failing_pipeline_ends_the_run_with_an_error_message(folder, tmp_path, write_images):
    with pytest.raises(VitconvError, match="There is no device 'mps' here"):
        predict(folder, write_images(4), tmp_path / "ray", engine="ray", device="mps")
    with pytest.raises(InputError, match="The Ray cluster has no GPU"):
        predict(folder, write_images(4), tmp_path / "ray", engine="ray", device="cuda")


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "Connection reset by peer"), RuntimeError("the executor\nended"), KeyError("x")],
)
def test_any_exception_from_ray_ends_the_run_with_an_error_message(folder, tmp_path, write_images, monkeypatch, error):
    """Not every exception is a RayError: a worker that is killed at the wrong moment causes a connection error."""
    import ray

    def fail(dataset):
        yield from ()
        raise error

    monkeypatch.setattr(ray.data.Dataset, "iter_rows", fail)
    with pytest.raises(VitconvError, match=rf"The Ray pipeline failed: {type(error).__name__}: .") as caught:
        predict(folder, write_images(4), tmp_path / "ray", engine="ray")
    assert "Run it again" in caught.value.remedy
    assert caught.value.__cause__ is error


def test_a_vitconv_error_in_a_worker_keeps_its_message(cluster, folder, write_images):
    class Failing(Batches):
        def __getitem__(self, batch):
            raise InputError("The disk does not answer.", "Run it again.")

    batches = Failing(read_images(write_images(2)), 2, open_preprocessor(read_info(folder)))
    with pytest.raises(VitconvError) as caught:
        list(RayEngine("cpu").run(opener(read_info(folder)), batches, [0]))
    assert (caught.value.problem, caught.value.remedy) == ("The disk does not answer.", "Run it again.")


def test_ray_prints_no_traceback(cluster, capfd):
    import logging

    try:
        raise ConnectionResetError(104, "Connection reset by peer")
    except ConnectionResetError:
        logging.getLogger("ray.data.exceptions").exception("Full stack trace:")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [ConnectionError, Exception])
def test_a_cluster_that_does_not_start_gives_an_error_message(monkeypatch, kind):
    import ray

    def fail(*arguments, **more):
        raise kind("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(InputError, match=r"cannot be reached, or started: The current node timed out"):
        RayEngine("cpu")


def test_an_address_where_nothing_listens_fails_without_waiting(folder, tmp_path, write_images):
    """Ray itself would wait for three minutes and print its own messages."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        done = subprocess.run(
            [Path(sys.executable).with_name("vitconv"), "predict", folder, write_images(1), tmp_path / "out"]
            + ["--engine", "ray"],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"RAY_ADDRESS": address},
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: The Ray cluster at '{address}' cannot be reached, or started: ")
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"+PONG\r\n"])
def test_where_something_else_listens_ray_does_not_wait(answer, monkeypatch):
    """``None``: it takes the connection and says nothing. Ray waits for three minutes."""
    monkeypatch.setattr("vitconv.inference.ray._SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve():
            connection = other.accept()[0]
            if answer is not None:
                with connection:
                    connection.sendall(answer)
            taken.append(connection)

        taken = []
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(OSError, match=r"timed out|does not answer as Ray does|reset"):
            _check_listens(f"127.0.0.1:{other.getsockname()[1]}")


def test_a_cluster_answers_as_ray_does():
    import ray

    _check_listens(ray.get_runtime_context().gcs_address)


def test_without_ray_it_says_what_to_install():
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from vitconv.inference.ray import RayEngine\n"
        "from vitconv.errors import InputError\n"
        "try: RayEngine('cpu')\n"
        "except InputError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    assert "needs Ray Data, which is not installed" in output
    assert "pip install -e '.[ray]' in vitconv's clone" in output


def test_nobody_else_can_use_the_cluster():
    """Without the token, a connection is refused."""
    import ray

    address = ray.get_runtime_context().gcs_address
    script = f"import ray; ray.init('{address}', logging_level='error'); print('in')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    stranger = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment
    )
    assert stranger.returncode != 0
    assert "in" not in stranger.stdout.split()


def test_no_other_machine_can_reach_the_cluster():
    """Every port of the cluster's processes listens on this machine only."""
    import ray

    @ray.remote
    def work():
        return 1

    assert ray.get(work.remote()) == 1  # a worker has ports, too
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_another_runtime_predicts_on_ray(folder, tmp_path, write_images, monkeypatch):
    """The engine and predict need no change for it. Its logits and classes are those of the converted folder."""
    import ray.cloudpickle

    monkeypatch.setitem(RUNTIMES, "exported", exported.KIND)
    ray.cloudpickle.register_pickle_by_value(exported)  # Ray's processes cannot import a module of the tests
    program = exported.export(folder, tmp_path / "program", batch_size=4)
    images = write_images(6, broken=(2,))
    options = {"batch_size": 4, "device": "cpu", "max_errors": 1}
    predict(folder, images, tmp_path / "converted", **options)
    try:
        summary = predict(program, images, tmp_path / "exported", engine="ray", **options)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(exported)
    assert (summary.rows, summary.errors) == (6, 1)
    one, other = (read_predictions(tmp_path / name) for name in ("converted", "exported"))
    assert one.classes == other.classes
    assert np.nanmax(np.abs(one.logits() - other.logits())) < 1e-5
    assert one.rows["class"].equals(other.rows["class"])
