"""Prometheus, a server and a worker under a burst: an alert fires, and each panel of the dashboard has figures.

Prometheus is the real one, which asks real processes. Its rules are those of deploy/, with an hour shortened to a
minute.
"""

import json
import math
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import prometheus_server
import pytest
from conftest import CLASSES, calibrate_any_how
from operations import DASHBOARD
from photos import image_file
from servers import Server, at_a_rate, in_turn, request

from vitconv.convert import convert_checkpoint
from vitconv.messaging import connect, image_message

pytest.importorskip("confluent_kafka")
from kafka_broker import KafkaServer

ROOT = Path(__file__).parents[2]
SHORTEN = 60


class Prometheus:
    """A process of Prometheus, for a ``with`` statement."""

    def __init__(self, folder, *targets):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address, self.log = f"http://127.0.0.1:{port}", folder / "prometheus.log"
        command = [sys.executable, ROOT / "tools" / "prometheus_server.py", *targets, "--port", str(port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--folder", folder / "prometheus", "--shorten", str(SHORTEN)], stdout=log, stderr=log
            )

    def __enter__(self):
        for _ in range(300):
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"{self.address}/-/ready"):
                    return self
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()

    def ask(self, path, **parameters):
        """The data of an answer of its HTTP API."""
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def value(self, query):
        """The one value of an expression; ``None`` if there is none."""
        result = self.ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def firing(self):
        """The alerts that fire: name, severity and long window."""
        alerts = [one["labels"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"]
        return {(one["alertname"], one["severity"], one.get("long")) for one in alerts}

    def wait(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.ask("alerts"), self.log.read_text())
            time.sleep(0.5)


def form(*images):
    """A request with several images."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n%b\r\n' % one for one in images
    ]
    return request(b"".join(parts) + b"--x--\r\n", "/v1/predict/batch", "multipart/form-data; boundary=x")


@pytest.fixture(scope="module")
def model(small_checkpoint, tmp_path_factory):
    """A model that takes its time, a real ViT-Ti, with a calibration."""
    folder = tmp_path_factory.mktemp("model") / "trees"
    convert_checkpoint(small_checkpoint, folder, architecture="vit_tiny_patch16_224", labels=CLASSES, verify=False)
    calibrate_any_how(folder)
    return folder


@pytest.fixture
def worker(model, tmp_path):
    """The address of a worker, and the URL of the topic that it reads."""
    with KafkaServer(tmp_path) as kafka:
        for name in ("images", "results", "dead"):
            kafka.make(name)
        url = f"kafka://{kafka.address}?config={kafka.properties}&topic="
        options = ["--from", f"{url}images&group=g", "--to", f"{url}results", "--dead-letter", f"{url}dead"]
        options += ["--device", "cpu", "--port", "0"]
        log = tmp_path / "worker.log"
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, "-m", "vitconv", "worker", model, *options], stderr=file)
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()
                if found := re.search(r"http://(127\.0\.0\.1:\d+)", log.read_text()):
                    yield found[1], f"{url}images"
                    break
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(prometheus_server.find("prometheus") is None, reason="no Prometheus: make prometheus")
def test_a_burst_fires_the_alert_and_every_panel_has_figures(model, worker, tmp_path):
    images = [image_file("JPEG", size=(240, 320), seed=i) for i in range(3)]
    odd = [image_file("PNG", size=(64, 64)), image_file("PNG", "L", (300, 20))]
    requests = [request(one) for one in (*images, *odd, *images, b"no image")]
    with Server(model, tmp_path / "log", "--workers", "1", "--timeout", "0.5") as server:
        address, images_url = worker
        targets = f"{server.host}:{server.port}", f"vitconv-worker={address}"
        with Prometheus(tmp_path, *targets) as prometheus:
            begun = time.time()
            prometheus.wait(lambda: prometheus.value("min(up)") == 1)
            with connect(images_url) as broker:
                broker.publish([image_message(image_file("JPEG", seed=i), f"m{i}") for i in range(20)])
            capacity = len(in_turn(server.host, server.port, requests, clients=1, seconds=3)) / 3
            at_a_rate(server.host, server.port, [form(*images)], 1, 2)
            time.sleep(2)
            assert not {name for name, *_ in prometheus.firing()} & {"VitconvAvailability", "VitconvDown"}
            assert prometheus.value('slo:vitconv_budget_left:ratio{slo="availability"}') == 1

            answers = at_a_rate(server.host, server.port, requests, 3 * capacity, seconds=8)
            statuses = [answer.status for answer in answers]
            assert set(statuses) == {200, 400, 503}
            prometheus.wait(lambda: ("VitconvAvailability", "page", "1h") in prometheus.firing())
            # All that was refused is counted, from the first one on; what is the client's fault is not.
            counted = 'sum(vitconv_requests_total{path="/v1/predict",status="%s"})'
            prometheus.wait(lambda: prometheus.value(counted % 503) == statuses.count(503))
            bad = prometheus.value('slo:vitconv_errors:ratio1h{slo="availability"}')
            served = prometheus.value(counted % 200)
            assert bad == pytest.approx(statuses.count(503) / (statuses.count(503) + served), rel=0.25)
            assert prometheus.value('slo:vitconv_budget_left:ratio{slo="availability"}') < 0

            for group in prometheus.ask("rules")["groups"]:
                assert [rule["lastError"] for rule in group["rules"] if rule["health"] == "err"] == []
            expressions = {
                target["expr"].replace("$__rate_interval", "5s"): panel["title"]
                for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]
                for target in panel.get("targets", [])
            }
            assert len(expressions) > 25

            def empty():
                found = {}
                for expression, title in expressions.items():
                    data = prometheus.ask("query_range", query=expression, start=begun, end=time.time(), step=1)
                    values = [float(value) for series in data["result"] for _, value in series["values"]]
                    if not any(map(math.isfinite, values)):
                        found[expression] = title
                return found

            end = time.monotonic() + 20
            while missing := empty():
                assert time.monotonic() < end, missing
                time.sleep(1)
