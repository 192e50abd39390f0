"""Ray Serve on this machine: what it answers, under load, and when copies of the model die, come and go."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from vitconv.convert import convert_checkpoint
from vitconv.inference import predict
from vitconv.inference.machine import cores
from vitconv.inference.predictions import read_predictions

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "artifacts"
VITCONV, SERVE = (Path(sys.executable).with_name(name) for name in ("vitconv", "serve"))
TYPE = {"Content-Type": "application/octet-stream"}

needs_two_cores = pytest.mark.skipif(cores() < 2, reason="two copies need two cores")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """jsonschema imports rfc3987_syntax where Jupyter has installed it. That takes 4 s, in each process of Ray."""
    quick = tmp_path_factory.mktemp("quick")
    (quick / "rfc3987_syntax.py").write_text("raise ImportError\n")
    paths = [str(quick), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}


class Server:
    """A process that serves, and its children.

    Attributes:
        url: where it answers; empty until it does.
    """

    def __init__(self, command, environment, url=""):
        self.url, self.said = url, []
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"is served at (\S+) until", line):
                self.url = found[1]

    def wait_until_ready(self):
        def ready():
            assert self.process.poll() is None, "".join(self.said)
            try:
                return self.url and requests.get(f"{self.url}/health/ready", timeout=20).status_code == 200
            except requests.RequestException:
                return False

        wait_for(ready, 600)

    def predict(self, image, session=requests, **options):
        """The status, and what came with it."""
        answer = session.post(f"{self.url}/v1/predict", data=image, headers=TYPE, timeout=400, **options)
        return answer.status_code, answer

    def copies(self):
        """The processes that hold the model. Ray names a process after its work."""
        return [one for one in self.children() if "ray::ServeReplica:vitconv" in title(one)]

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number=signal.SIGTERM):
        """The exit code."""
        self.process.send_signal(number)
        code = self.process.wait(400)  # `serve run` takes minutes where other processes have the cores
        self._reader.join()
        return code


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.2)


@contextmanager
def serving(command, environment, url=""):
    server = Server([str(word) for word in command], environment, url)
    try:
        server.wait_until_ready()
        yield server
    finally:
        children = server.children() if server.process.poll() is None else []
        if server.process.poll() is None:
            server.end()
        for one in psutil.wait_procs(children, 20)[1]:
            one.kill()


@pytest.fixture(scope="module")
def server(folder, environment):
    """One copy of the small model."""
    with serving([VITCONV, "serve", folder, "--engine", "ray", "--port", 0], environment) as server:
        yield server


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """An image, and what `vitconv predict` says of it."""
    from PIL import Image

    made = tmp_path_factory.mktemp("expected")
    Image.radial_gradient("L").convert("RGB").resize((50, 40)).save(made / "image.png")
    predict(folder, made / "image.png", made / "out", batch_size=1)
    (row,) = read_predictions(made / "out").rows.to_pylist()
    return (made / "image.png").read_bytes(), {name: row[name] for name in ("class", "probability", "logits", "note")}


def same(answer, expected):
    return {name: answer.json()[name] for name in expected} == expected


def documented_session():
    """The client of docs/deployment.md, which sends a request again."""
    (block,) = re.findall(r"```python\n(.*?Retry\(.*?)```", (ROOT / "docs/deployment.md").read_text("utf-8"), re.S)
    names = {}
    exec(block.partition("answer = ")[0], names)
    return names["session"]


@pytest.mark.skipif(not (ARTIFACTS / "outputs.csv").exists(), reason="no artifacts/: `make artifacts`")
def test_the_demo_s_images_get_the_logits_of_predict(environment, tmp_path):
    """Of a small model of the demo's kind: the full-size one takes minutes here, behind the same code."""
    subprocess.run([sys.executable, ROOT / "demo" / "small_model.py", tmp_path / "small.pth"], check=True)
    options = {"architecture": "vit_tiny_patch16_224", "labels": ARTIFACTS / "labels.txt", "verify": False}
    model = convert_checkpoint(tmp_path / "small.pth", tmp_path / "small", **options).destination
    predict(model, ARTIFACTS / "inputs.csv", tmp_path / "out", batch_size=1)
    rows = read_predictions(tmp_path / "out").rows.to_pylist()
    assert len(rows) == 42
    command = [VITCONV, "serve", model, "--engine", "ray", "--port", 0, "--timeout", 300]  # on a busy machine, too
    with serving(command, environment) as server, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda row: server.predict((ARTIFACTS / row["path"]).read_bytes()), rows))
    for row, (status, answer) in zip(rows, answers, strict=True):
        assert status == 200, answer.text
        assert same(answer, {name: row[name] for name in ("class", "probability", "logits", "note")}), row["path"]


def test_it_answers_as_the_one_process_does(server, expected):
    image, answer = expected
    status, found = server.predict(image)
    assert status == 200
    assert same(found, answer)
    assert re.fullmatch(r"[\w-]+", found.headers["X-Request-ID"])  # one, though two layers have it
    assert found.json()["request_id"] == found.headers["X-Request-ID"]
    status, found = server.predict(b"no image")
    assert (status, found.json()["error"]["problem"]) == (400, "The image is not an image that can be read.")
    assert requests.get(f"{server.url}/docs", timeout=20).status_code == 200


@pytest.mark.full
def test_what_finds_no_room_is_told_to_come_again(server, expected):
    """The copy is stopped: two requests are on their way to it, sixteen wait in the proxy."""
    image, answer = expected
    (copy,) = server.copies()
    with ThreadPoolExecutor(30) as threads:
        copy.suspend()
        try:
            asked = [threads.submit(server.predict, image) for _ in range(30)]
            wait_for(lambda: sum(one.done() for one in asked) >= 12, 60)
            refused = [one.result() for one in asked if one.done()]
        finally:
            copy.resume()
        answered = [one.result() for one in asked if one.result() not in refused]
    assert {status for status, _ in refused} == {503}
    assert {found.headers["Retry-After"] for _, found in refused} == {"1"}
    assert {status for status, _ in answered} == {200}
    assert all(same(found, answer) for _, found in answered)


def test_what_listens_elsewhere_asks_for_the_token(server, tmp_path):
    """Every port is one of 127.0.0.1, but one of each copy, which would run code for whoever reaches it."""
    import grpc
    from ray.serve.generated.serve_pb2 import ASGIRequest
    from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (copy,) = server.copies()
    everywhere = []
    for process in [psutil.Process(server.process.pid), *server.children()]:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1"):
                everywhere.append((process.pid, one.laddr.port))
    assert [pid for pid, _ in everywhere] == [copy.pid]
    with grpc.insecure_channel(f"127.0.0.1:{everywhere[0][1]}") as channel:
        stub = ASGIServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleRequest(ASGIRequest(pickled_request_metadata=pickle.dumps(Harmful())), timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "harm").exists()


def test_what_is_in_work_is_answered_before_it_ends(folder, environment, expected):
    image, answer = expected
    with (
        serving([VITCONV, "serve", folder, "--engine", "ray", "--port", 0], environment) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        children = server.children()
        (copy,) = server.copies()
        copy.suspend()
        asked = threads.submit(server.predict, image)
        time.sleep(1)  # it is on its way
        ended = threads.submit(server.end)
        time.sleep(2)
        copy.resume()
        status, found = asked.result()
        assert ended.result() == 143
    assert (status, same(found, answer)) == (200, True)
    assert "".join(server.said).endswith("error: Terminated.\nThe server has ended.\n")
    assert psutil.wait_procs(children, 20)[1] == []


@pytest.mark.full
@needs_two_cores
def test_a_killed_copy_loses_nothing_that_is_sent_again(folder, environment, expected):
    image, answer = expected
    command = [VITCONV, "serve", folder, "--engine", "ray", "--port", 0, "--replicas", 2]
    with serving(command, environment) as server:
        first, second = server.copies()
        stop = threading.Event()

        def ask():
            session, answers = documented_session(), []
            while not stop.is_set():
                answers.append(server.predict(image, session))
            return answers

        with ThreadPoolExecutor(6) as threads:
            asked = [threads.submit(ask) for _ in range(6)]
            try:
                time.sleep(2)
                first.kill()
                wait_for(lambda: len({one.pid for one in server.copies()} - {first.pid}) == 2, 120)
                time.sleep(5)
            finally:
                stop.set()
            answers = [one for each in asked for one in each.result()]
        assert second.is_running()
    assert len(answers) > 100
    assert {status for status, _ in answers} == {200}
    assert all(same(found, answer) for _, found in answers)
    assert any(found.raw.retries.history for _, found in answers), "no request was lost, so none was sent again"


@pytest.mark.full
@needs_two_cores
def test_the_written_file_serves_and_scales(folder, environment, expected, tmp_path):
    """`serve run` starts a cluster for it: one copy, two under load, and one again."""
    image, answer = expected
    command = [VITCONV, "serve", folder, "--engine", "ray", "--max-replicas", "2", "--port", "0"]
    subprocess.run([*command, "--write-config", tmp_path / "config"], env=environment, check=True, timeout=120)
    config = yaml.safe_load((tmp_path / "config/serve.yaml").read_text("utf-8"))
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    scaling |= {"upscale_delay_s": 1.0, "downscale_delay_s": 2.0, "look_back_period_s": 4.0, "metrics_interval_s": 1.0}
    config["http_options"]["port"] = port = free_port()
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    alone = {
        "RAY_ADDRESS": "local",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_worker_niceness": "0",
    }
    url = f"http://127.0.0.1:{port}"
    with serving([SERVE, "run", tmp_path / "serve.yaml"], environment | alone, url) as server:
        assert len(server.copies()) == 1
        stop = threading.Event()

        def ask():
            answers = []
            while not stop.is_set():
                answers.append(server.predict(image))
            return answers

        with ThreadPoolExecutor(6) as threads:
            asked = [threads.submit(ask) for _ in range(6)]
            try:
                wait_for(lambda: len(server.copies()) == 2, 120)
            finally:
                stop.set()
            answers = [one for each in asked for one in each.result()]
        wait_for(lambda: len(server.copies()) == 1, 120)
        answers.append(server.predict(image))
        server.end(signal.SIGINT)
    assert {status for status, _ in answers} == {200}
    assert all(same(found, answer) for _, found in answers)


def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--replicas", "1000"], "1000 replicas of 1 workers need 1000 cores; this machine has"),
        (["--replicas", "2", "--max-replicas", "1"], "At least 2 replicas are more than at most 1."),
        (["--device", "mps"], "There is no device 'mps' here"),
        (["--port", "1", "--host", "192.0.2.1"], "The server cannot have port 1 of 192.0.2.1"),
    ],
)
def test_what_cannot_be_served_is_said(folder, environment, options, reason):
    command = [VITCONV, "serve", folder, "--engine", "ray", "--port", "0", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"error: {reason}" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_starts_nothing_beside_another_cluster(folder, environment):
    done = subprocess.run(
        [VITCONV, "serve", folder, "--engine", "ray"],
        env=environment | {"RAY_ADDRESS": "192.0.2.1:6379"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: RAY_ADDRESS names a cluster" in done.stderr
