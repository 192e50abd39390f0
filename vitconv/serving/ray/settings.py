"""What Ray Serve is told: how many copies of the model, on how many cores, and how many requests may wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitconv.errors import InputError
from vitconv.serving.rest.settings import Settings
from vitconv.serving.workers import check_limits

#: The application and its one deployment: in `serve status`, in Ray's metrics, and in the names of its processes.
NAME = "vitconv"
#: What Ray Serve imports and calls, to build the application from a file.
IMPORT_PATH = "vitconv.serving.ray.application:build"
#: How many requests may wait for each worker. More would only wait until the time is over.
_WAITING = 16


@dataclass(frozen=True)
class RaySettings:
    """What is served, and by how many.

    Attributes:
        model: the folder, under the same path on every machine.
        device: where to compute: ``"cpu"``, or ``"cuda"`` for a GPU for each copy.
        processor: what makes the pixels: see :func:`vitconv.inference.open_preprocessor`.
        replicas: copies of the model, each a process of its own. With ``most_replicas``, the fewest.
        most_replicas: how many there may be under load; ``None``: always ``replicas``.
        workers: how many images a copy computes at once, each on a core.
        timeout: seconds within which an image must be answered, from when a copy has it.

    Raises:
        InputError: the fewest replicas are more than the most, or workers or a timeout cannot be had.
    """

    model: str
    device: str = "cpu"
    processor: str = "transformers"
    replicas: int = 1
    most_replicas: int | None = None
    workers: int = 1
    timeout: float = Settings.timeout

    def __post_init__(self) -> None:
        check_limits(self.workers, self.timeout)
        if self.replicas > self.most:
            raise InputError(
                f"At least {self.replicas} replicas are more than at most {self.most}.",
                "Let --max-replicas be as large as --replicas, or larger.",
            )

    @property
    def most(self) -> int:
        """How many copies there may be."""
        return self.replicas if self.most_replicas is None else self.most_replicas

    @property
    def gpus(self) -> int:
        """Of each copy."""
        return int(self.device.startswith("cuda"))

    def arguments(self) -> dict[str, Any]:
        """What each copy is told: the arguments of the application."""
        return {
            "model": self.model,
            "device": self.device,
            "processor": self.processor,
            "workers": self.workers,
            "timeout": self.timeout,
        }

    def http(self, host: str, port: int) -> dict[str, Any]:
        """The options of the proxies, by Ray Serve's names.

        Args:
            host: where they listen.
            port: where they listen.
        """
        # Until a body has arrived and the image is answered. Then the client has gone, or should.
        return {"host": host, "port": port, "request_timeout_s": Settings.body_seconds + self.timeout}

    def options(self) -> dict[str, Any]:
        """The options of the deployment, by Ray Serve's names, which are the same in Python and in files."""
        found: dict[str, Any] = {
            # While some are computed, the next one's image arrives. Others wait where any copy can take them.
            "max_ongoing_requests": self.workers + 1,
            "max_queued_requests": _WAITING * self.workers * self.replicas,
            # As `vitconv serve` answers, so that one client suits both.
            "backpressure_config": {"status_code": 503, "retry_after_s": 1.0},
            # A real inference: see application.Replica. After three failures in a row, a copy is replaced.
            "health_check_period_s": 30.0,
            "health_check_timeout_s": 60.0,
            # A copy that is to stop answers what it has.
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": 30.0,
            # An update starts new copies before it stops old ones.
            "max_surge_percent": 100,
            # A line for each request, in the folder of Ray's logs.
            "logging_config": {"encoding": "JSON"},
            "ray_actor_options": {"num_cpus": self.workers, "num_gpus": self.gpus},
        }
        if self.most == self.replicas:
            return found | {"num_replicas": self.replicas}
        autoscaling = {
            "min_replicas": self.replicas,
            "max_replicas": self.most,
            # Copies that compute all the time, and half the time have another request: time for one more.
            "target_ongoing_requests": self.workers + 0.5,
            "upscale_delay_s": 15.0,
            "downscale_delay_s": 300.0,
        }
        return found | {"autoscaling_config": autoscaling}
