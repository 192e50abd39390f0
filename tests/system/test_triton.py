"""A real Triton on this machine's processor: `make triton` installs it beside the environment."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from models import full_but
from optimizing import write_pictures
from servers import at_a_rate, in_turn, infer_request
from tritonclient.utils import InferenceServerException

from vitconv.convert import convert_checkpoint
from vitconv.inference import open_preprocessor, predict, read_info
from vitconv.inference.predictions import read_predictions
from vitconv.serving.triton import is_installed, run_server, write_store
from vitconv.serving.triton.perf_analyzer import measure_load

ROOT = Path(__file__).parents[2]
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}

pytestmark = pytest.mark.skipif(not is_installed(), reason="no Triton beside the environment: `make triton`")


def tensor(client, name, values):
    kind = {"uint8": "UINT8", "float32": "FP32"}[str(values.dtype)]
    made = client.InferInput(name, values.shape, kind)
    made.set_data_from_numpy(values)
    return made


def ask(protocol, server, content, classes=1):
    """The logits of an image, and the largest classes: (probability, index, name) each."""
    client = CLIENTS[protocol]
    wanted = [client.InferRequestedOutput("logits"), client.InferRequestedOutput("probabilities", class_count=classes)]
    with client.InferenceServerClient(getattr(server, protocol)) as connection:
        given = [tensor(client, "image", np.frombuffer(content, np.uint8))]
        answer = connection.infer("vit", given, outputs=wanted)
    return answer.as_numpy("logits"), [text.decode().split(":", 2) for text in answer.as_numpy("probabilities")]


def rows(model, images, out, **options):
    predict(model, images, out, batch_size=1, **options)
    return read_predictions(out).rows.to_pylist()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small model of the demo's kind, converted."""
    place = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, ROOT / "demo" / "small_model.py", place / "small.pth"], check=True)
    labels = ROOT / "artifacts" / "labels.txt"
    options = {"architecture": "vit_tiny_patch16_224", "labels": labels, "verify": False}
    convert_checkpoint(place / "small.pth", place / "small", **options)
    return place / "small"


@pytest.fixture(scope="module")
def store(demo, tmp_path_factory):
    return write_store(demo, tmp_path_factory.mktemp("triton") / "store", archive=True)


@pytest.fixture(scope="module")
def server(store):
    with run_server(store.folder) as server:
        yield server


@pytest.fixture(scope="module")
def expected(demo, tmp_path_factory):
    """What `vitconv predict --batch-size 1` says of the demo's images: (row, bytes) of each."""
    found = rows(demo, ROOT / "artifacts" / "inputs.csv", tmp_path_factory.mktemp("predicted") / "out")
    assert len(found) == 42
    return [(row, (ROOT / "artifacts" / row["path"]).read_bytes()) for row in found]


@pytest.mark.parametrize("protocol", CLIENTS)
def test_every_answer_is_that_of_predict_bit_for_bit(server, expected, protocol):
    for row, content in expected:
        logits, ((probability, _, name),) = ask(protocol, server, content)
        assert np.array_equal(logits[0], np.array(row["logits"], np.float32)), row["path"]
        assert (name, probability) == (row["class"], f"{row['probability']:f}")


@pytest.mark.parametrize("protocol", CLIENTS)
def test_the_two_halves_give_what_the_whole_gives(server, demo, expected, protocol):
    client, (row, content) = CLIENTS[protocol], expected[0]
    with client.InferenceServerClient(getattr(server, protocol)) as connection:
        given = [tensor(client, "image", np.frombuffer(content, np.uint8))]
        pixels = connection.infer("preprocess", given).as_numpy("pixels")
        logits = connection.infer("model", [tensor(client, "pixels", pixels)]).as_numpy("logits")
    assert np.array_equal(pixels[0], open_preprocessor(read_info(demo))(content))
    assert np.array_equal(logits[0], np.array(row["logits"], np.float32))


def test_overload(server, expected):
    """Three times what it is capable of: what it answers comes in time, it is most of that, and the rest is 503.

    With `max_queue_size` it answers 30 % of what it can.
    """
    host, _, port = server.http.partition(":")
    requests = [infer_request(content) for _, content in expected]
    in_turn(host, int(port), requests, 4, 2)
    capacity = len(in_turn(host, int(port), requests, 4, 5)) / 5
    answers = at_a_rate(host, int(port), requests, 3 * capacity, 15)
    answered = [one.seconds for one in answers if one.status == 200]
    assert {one.status for one in answers} == {200, 503}
    assert max(answered) < 12  # 5 s of waiting, and what other tests take of the processors
    assert len(answered) > 0.6 * capacity * 15


def test_the_largest_classes_come_in_order(server, expected):
    _, found = ask("http", server, expected[0][1], classes=3)
    assert len(found) == 3
    values = [float(probability) for probability, *_ in found]
    assert values == sorted(values, reverse=True) and found[0][2] == expected[0][0]["class"]


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_broken_image_is_the_client_s_error_and_the_server_lives(server, expected, protocol):
    row, content = expected[0]
    for broken in (b"no image", content[:500]):
        with pytest.raises(InferenceServerException, match="not an image that can be read") as caught:
            ask(protocol, server, broken)
        assert caught.value.status() == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    assert np.array_equal(ask(protocol, server, content)[0][0], np.array(row["logits"], np.float32))


def test_a_photo_by_curl(server, expected):
    """The request that the store's README.md shows: the body is the file."""
    row, content = expected[0]
    url, header = f"http://{server.http}/v2/models/vit/infer", {"Inference-Header-Content-Length": "0"}
    with urllib.request.urlopen(urllib.request.Request(url, content, header)) as response:
        size, body = int(response.headers["Inference-Header-Content-Length"]), response.read()
    start = size
    for output in json.loads(body[:size])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        if output["name"] == "logits":
            assert np.array_equal(np.frombuffer(body[start:end], np.float32), np.array(row["logits"], np.float32))
            return
        start = end
    raise AssertionError("It has no logits.")


def test_perf_analyzer_measures_it(server, expected):
    for protocol in CLIENTS:
        one, two = measure_load(getattr(server, protocol), expected[0][1], [1, 2], requests=4, protocol=protocol)
        assert (one.clients, two.clients) == (1, 2)
        assert one.images_per_second > 0 and 0 < one.p50_ms <= one.p95_ms <= one.p99_ms


@pytest.mark.parametrize(
    "recipe", full_but(["onnx", "openvino-int8"], ["torchscript", "onnx", "openvino", "openvino-int8"])
)
def test_an_optimised_folder_answers_as_predict_does(woods, tmp_path, recipe):
    made = woods.made(recipe).folder
    pictures = write_pictures(tmp_path / "pictures", 5, first=500)
    expected = rows(made, pictures, tmp_path / "out")
    with run_server(write_store(made, tmp_path / "store").folder) as server:
        for row in expected:
            logits, ((_, _, name),) = ask("http", server, (pictures / row["path"]).read_bytes())
            assert np.array_equal(logits[0], np.array(row["logits"], np.float32)) and name == row["class"]


def test_dynamic_batching_changes_no_shape_and_only_the_last_bits(demo, expected, tmp_path):
    """The store for a GPU, with its batches computed on the processor, as there is no GPU."""
    store = write_store(demo, tmp_path / "store", device="cuda").folder
    for file in store.glob("*/config.pbtxt"):
        file.write_text(file.read_text().replace("KIND_GPU", "KIND_CPU"))
    with run_server(store) as server, ThreadPoolExecutor(len(expected)) as threads:
        client, waiting = tritonclient.grpc.InferenceServerClient(server.grpc), []
        for _, content in expected:
            given = [tensor(tritonclient.grpc, "image", np.frombuffer(content, np.uint8))]
            waiting.append(threads.submit(client.infer, "vit", given))
        answers = [one.result() for one in waiting]
        counts = client.get_inference_statistics("model", as_json=True)["model_stats"][0]
        client.close()
    assert int(counts["execution_count"]) < int(counts["inference_count"]), "No two requests were put together."
    for (row, _), answer in zip(expected, answers, strict=True):
        assert answer.as_numpy("logits").shape == (1, 7)
        assert np.abs(answer.as_numpy("logits")[0] - np.array(row["logits"])).max() < 1e-4


def test_a_model_s_process_that_dies_shows_in_an_inference_only(folder, tmp_path):
    """Why the documented probe is an inference: Triton does not start the process again, and says that it is ready."""
    pictures = write_pictures(tmp_path / "pictures", 1)
    content = next(pictures.rglob("*.png")).read_bytes()
    with run_server(write_store(folder, tmp_path / "store").folder) as server:
        ask("http", server, content)
        for process in model_processes(tmp_path / "store"):
            os.kill(process, signal.SIGKILL)
        with pytest.raises(InferenceServerException):
            ask("http", server, content)
        with urllib.request.urlopen(f"http://{server.http}/v2/health/ready") as response:
            assert response.status == 200
    assert not model_processes(tmp_path / "store")


def model_processes(store):
    """The processes in which Triton runs the Python of a store."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"triton_python_backend_stub" in words[0] and any(str(store).encode() in word for word in words):
            found.append(int(line.parent.name))
    return found


@pytest.fixture
def somebody():
    """Another user of this machine, who may read what everybody may."""
    if os.geteuid() or not shutil.which("useradd") or not shutil.which("setpriv"):
        pytest.skip("only root, with useradd and setpriv, can be another user")
    name = f"vitconv{os.getpid()}"
    subprocess.run(["useradd", "--system", "--home-dir", f"/nonexistent/{name}", name], check=True)
    try:
        yield pwd.getpwnam(name)
    finally:
        subprocess.run(["userdel", name], check=True)


def test_the_zip_file_answers_in_another_folder_as_another_user(store, expected, somebody, tmp_path_factory):
    moved = Path("/var/tmp") / f"vitconv-moved-{os.getpid()}"
    command = ["setpriv", f"--reuid={somebody.pw_uid}", f"--regid={somebody.pw_gid}", "--clear-groups"]
    ask_python = [*command, sys.executable, "-c", "import sys; print(sys.base_prefix)"]
    if subprocess.run(ask_python, capture_output=True, text=True).stdout.strip() != sys.base_prefix:
        # The Python below this environment is in root's own home: they may read it, as they could one in /usr.
        command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    environment = {**os.environ, "HOME": somebody.pw_dir, "TMPDIR": str(moved / "scratch"), "PYTHONPATH": str(ROOT)}
    try:
        (moved / "scratch").mkdir(parents=True)
        os.chown(moved / "scratch", somebody.pw_uid, somebody.pw_gid)
        with zipfile.ZipFile(store.archive) as archive:
            archive.extractall(moved / "store")
        script = [sys.executable, str(ROOT / "tools" / "triton_server.py"), str(moved / "store")]
        with subprocess.Popen([*command, *script], env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                said = iter(process.stdout.readline, "")
                address = next(line for line in said if line.startswith("http://")).split()[0].removeprefix("http://")
                assert os.stat(f"/proc/{process.pid}").st_uid == somebody.pw_uid
                for row, content in expected[:3]:
                    client = tritonclient.http
                    with client.InferenceServerClient(address) as connection:
                        given = [tensor(client, "image", np.frombuffer(content, np.uint8))]
                        logits = connection.infer("vit", given).as_numpy("logits")
                    assert np.array_equal(logits[0], np.array(row["logits"], np.float32))
            finally:
                process.terminate()
    finally:
        shutil.rmtree(moved)
