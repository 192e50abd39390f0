"""What Prometheus reads at /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from vitconv.serving.metrics import ModelMetrics

if TYPE_CHECKING:
    from vitconv.serving.rest.service import Service

#: The limits of the histogram of seconds. deploy/objectives.yaml may ask for one of them.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
_PREDICTIONS = ("/v1/predict", "/v1/predict/batch", "/v2/models/{name}/infer")


class Metrics(ModelMetrics):
    """The figures of one server.

    Args:
        service: which it is about.
        version: of vitconv.
    """

    def __init__(self, service: Service, version: str) -> None:
        super().__init__(service.classifier, version)
        registry, workers = self.registry, service.workers
        self.requests = Counter(
            "vitconv_requests", "Requests that were answered.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "vitconv_request_seconds",
            "From a request's head to the end of its answer.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        for path in _PREDICTIONS:  # 0, not absent, so that a rate can be computed of the first
            self.seconds.labels(path)
            for status in ("200", "500", "503"):
                self.requests.labels(path, status)
        self.in_flight = Gauge("vitconv_requests_in_flight", "Requests that are not answered yet.", registry=registry)
        for name, text, value in (
            ("vitconv_queue_depth", "Images that wait for a worker.", lambda: workers.waiting),
            ("vitconv_images_in_work", "Images that are computed now.", lambda: workers.computing),
            ("vitconv_body_bytes", "What the bodies of requests hold.", lambda: service.bodies.held),
        ):
            Gauge(name, text, registry=registry).set_function(value)
        Gauge("vitconv_workers", "Images that are computed at once at most.", registry=registry).set(workers.count)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
