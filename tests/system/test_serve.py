"""`vitconv serve` as a process: its answers, its end, and what it does under load and among rude clients."""

import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from conftest import CLASSES
from PIL import Image
from servers import Server, at_a_rate, in_turn, request

from vitconv.convert import convert_checkpoint
from vitconv.inference.predictions import read_predictions

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "artifacts"
needs_artifacts = pytest.mark.skipif(
    not (ARTIFACTS / "outputs.csv").exists(), reason="no artifacts/: `make artifacts`"
)


def predicted(model, images, place):
    """What `vitconv predict --batch-size 1` says, by the image's path."""
    command = [
        sys.executable,
        "-m",
        "vitconv",
        "predict",
        model,
        images,
        place,
        "--batch-size",
        "1",
        "--device",
        "cpu",
    ]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_predictions(place).rows.to_pylist()
    return {row["path"]: {name: row[name] for name in ("class", "probability", "logits", "note")} for row in rows}


def check_all(server, expected, folder):
    """Each image over the plain endpoint and, at the same time, over the protocol by NVIDIA's client: bit for bit."""
    client = triton.InferenceServerClient(f"{server.host}:{server.port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("vit")

    def check_plain():
        for path, row in expected.items():
            answer = server.ask("/v1/predict", (folder / path).read_bytes())
            assert answer.status == 200, answer.content
            assert {name: answer.json()[name] for name in row} == row

    with ThreadPoolExecutor(1) as threads:
        plain = threads.submit(check_plain)
        for path, row in expected.items():
            content = (folder / path).read_bytes()
            image = triton.InferInput("image", [len(content)], "UINT8")
            image.set_data_from_numpy(np.frombuffer(content, np.uint8))
            result = client.infer("vit", [image])
            assert result.as_numpy("logits").tobytes() == np.array(row["logits"], np.float32).tobytes()
            assert result.as_numpy("probabilities").max() == row["probability"]
        plain.result()
    return client, image, row


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's model, where the README has it."""
    place = tmp_path_factory.mktemp("demo")
    model = place / "converted" / "vit-7class"
    model.parent.mkdir()
    arguments = {"architecture": "vit_base_patch16_384", "labels": ARTIFACTS / "labels.txt", "verify": False}
    convert_checkpoint(ARTIFACTS / "vit-7class.pth", model, **arguments)
    (place / "artifacts").symlink_to(ARTIFACTS)
    return model


@needs_artifacts
def test_the_demo_s_images_get_the_answers_of_predict(tmp_path):
    """Of a small model of the demo's kind: the full-size one takes minutes here, behind the same code."""
    subprocess.run([sys.executable, ROOT / "demo" / "small_model.py", tmp_path / "small.pth"], check=True)
    options = {"architecture": "vit_tiny_patch16_224", "labels": ARTIFACTS / "labels.txt", "verify": False}
    model = convert_checkpoint(tmp_path / "small.pth", tmp_path / "small", **options).destination
    expected = predicted(model, ARTIFACTS / "inputs.csv", tmp_path / "rows")
    assert len(expected) == 42
    with Server(model, tmp_path / "log") as server:
        client, image, row = check_all(server, expected, ARTIFACTS)

        # The two halves make the whole, as bytes and as JSON.
        pixels = client.infer("preprocess", [image]).as_numpy("pixels")
        given = triton.InferInput("pixels", list(pixels.shape), "FP32")
        for binary in (True, False):
            given.set_data_from_numpy(pixels, binary_data=binary)
            outputs = [triton.InferRequestedOutput("logits", binary_data=binary)]
            assert client.infer("model", [given], outputs=outputs).as_numpy("logits")[0].tolist() == row["logits"]
        top = client.infer("vit", [image], outputs=[triton.InferRequestedOutput("logits", class_count=2)])
        assert top.as_numpy("logits")[0].decode().endswith(f":{row['class']}")
        with pytest.raises(triton.InferenceServerException, match="not an image that can be read"):
            image = triton.InferInput("image", [3], "UINT8")
            image.set_data_from_numpy(np.frombuffer(b"abc", np.uint8))
            client.infer("vit", [image])
        client.close()
        assert server.end() == 143
    assert server.said().endswith("error: Terminated.\nThe server has ended.\n")
    assert {line["status"] for line in server.lines() if line["message"] == "request"} == {200, 400}


@needs_artifacts
def test_the_readme_s_request(demo, tmp_path):
    """As it is written there, but for the port."""
    page = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"```console\n(vitconv serve converted/vit-7class.*?)```", page, re.DOTALL)[1]
    serve, curl = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert serve == ["vitconv", "serve", "converted/vit-7class"] and curl[0] == "curl"
    with Server(demo, tmp_path / "log") as server:
        curl = [word.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}") for word in curl]
        done = subprocess.run(curl, cwd=demo.parents[1], capture_output=True, text=True, check=True)
        assert '"class":"slate"' in done.stdout


def test_an_optimised_folder_is_served(woods, tmp_path):
    model = woods.made("onnx").folder
    expected = predicted(model, woods.held, tmp_path / "rows")
    assert len(expected) == 60
    with Server(model, tmp_path / "log") as server:
        check_all(server, expected, woods.held)[0].close()


@pytest.fixture(scope="module")
def small(small_checkpoint, tmp_path_factory):
    """A model that takes its time: a real ViT-Ti."""
    folder = tmp_path_factory.mktemp("small") / "model"
    return convert_checkpoint(
        small_checkpoint, folder, architecture="vit_tiny_patch16_224", labels=CLASSES, verify=False
    ).destination


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images, and the folder with them."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (240, 320 + i, 3), np.uint8)).save(folder / f"{i}.jpg")
    return [(folder / f"{i}.jpg").read_bytes() for i in range(4)], folder


def test_overload(small, photos, tmp_path):
    """Three times as many requests as it can answer: it answers what it accepts, in time, and refuses the rest."""
    contents, folder = photos
    expected = predicted(small, folder, tmp_path / "rows")
    requests = [request(content) for content in contents]
    with Server(small, tmp_path / "log", "--timeout", "2") as server:
        capacity = len(in_turn(server.host, server.port, requests, clients=2, seconds=4)) / 4
        before = server.memory()
        answers = at_a_rate(server.host, server.port, requests, 3 * capacity, seconds=20)
        assert {answer.status for answer in answers} == {200, 503}
        for i, answer in enumerate(answers):
            if answer.status == 200:
                row = expected[f"{i % 4}.jpg"]
                assert {name: answer.json()[name] for name in row} == row
            else:
                assert int(answer.headers["retry-after"]) >= 1 and "problem" in answer.json()["error"]
        # Twice the limit, since these clients and whatever else this machine does take the server's cores.
        assert max(answer.seconds for answer in answers) < 4
        assert server.memory() - before < 100 << 20
        assert server.ask("/health/ready").status == 200
        figures = server.ask("/metrics").content.decode()
        assert "vitconv_queue_depth 0.0" in figures and "vitconv_body_bytes 0.0" in figures


def test_what_was_accepted_is_answered_when_it_ends(small, photos, tmp_path):
    contents, _ = photos
    found, stop = [], threading.Event()

    def client():
        while not stop.is_set():
            try:
                found.append(server.ask("/v1/predict", contents[0]).status)
            except OSError:  # it takes no more
                found.append(0)
                time.sleep(0.05)

    with Server(small, tmp_path / "log") as server:
        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        while found.count(200) < 10:
            time.sleep(0.05)
        code = server.end()
        stop.set()
        for thread in threads:
            thread.join()
    assert code == 143
    logged = [line["status"] for line in server.lines() if line["message"] == "request"]
    assert set(logged) <= {200, 503} and logged.count(200) == found.count(200) > 10
    assert not any("Cancel" in line["message"] for line in server.lines())
    assert set(found) <= {0, 200, 503}


def test_the_folder_may_be_deleted(small, photos, tmp_path):
    contents, folder = photos
    expected = predicted(small, folder, tmp_path / "rows")["0.jpg"]
    model = shutil.copytree(small, tmp_path / "model")
    with Server(model, tmp_path / "log") as server:
        shutil.rmtree(model)
        for _ in range(3):
            answer = server.ask("/v1/predict", contents[0])
            assert answer.status == 200 and answer.json()["logits"] == expected["logits"]


def test_rude_clients_keep_nobody_waiting(small, photos, tmp_path):
    """Hundreds that connect and say nothing, send half of a body, or do not read their answer."""
    contents, _ = photos
    whole = request(contents[0])
    with Server(small, tmp_path / "log") as server:
        assert server.ask("/v1/predict", contents[0]).status == 200
        before, address, rude = server.memory(), (server.host, server.port), []
        try:
            for start in (b"", whole[:20], whole[:-1], whole[: len(whole) // 2]):
                for _ in range(60):
                    rude.append(socket.create_connection(address))
                    rude[-1].sendall(start)
            for _ in range(5):
                rude.append(socket.create_connection(address))
                rude[-1].sendall(request(contents[0], "/v2/models/preprocess/infer") * 2)
            assert server.ask("/v1/predict", contents[0]).status == 200
            for connection in rude[::2]:
                connection.close()
            assert server.ask("/v1/predict", contents[0]).status == 200
        finally:
            for connection in rude:
                connection.close()
        assert server.memory() - before < 100 << 20
        assert server.ask("/health/ready").status == 200


def test_no_disk_is_needed(small, photos, tmp_path):
    """Neither for large bodies nor for the log."""
    contents, _ = photos
    form = (
        b'--X\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n%s\r\n'
        b'--X\r\nContent-Disposition: form-data; name="other"\r\n\r\n%s\r\n--X--\r\n'
    ) % (contents[0], bytes(8 << 20))
    with Server(small, tmp_path / "log") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        for _ in range(2):
            answer = server.ask("/v1/predict", form, Content_Type="multipart/form-data; boundary=X")
            assert answer.status == 200, answer.content


def test_a_key_is_needed_where_there_is_one(small, photos, tmp_path):
    contents, _ = photos
    with Server(small, tmp_path / "log", environment={"VITCONV_API_KEY": "sesame"}) as server:
        assert server.ask("/v1/predict", contents[0]).status == 401
        assert server.ask("/v1/predict", contents[0], Authorization="Bearer sesame").status == 200
        assert server.ask("/health/ready").status == 200
    assert "sesame" not in server.said()
