"""What a cluster needs to serve a model: a file for `serve deploy`, and a manifest for KubeRay."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.errors import InputError, shown
from vitconv.serving.ray.settings import IMPORT_PATH, NAME, RaySettings
from vitconv.writing.staging import staged_folder

if TYPE_CHECKING:
    import yaml

#: The files that :func:`write_configuration` writes.
SERVE_FILE, KUBERAY_FILE = "serve.yaml", "rayservice.yaml"
#: Where the containers have the model, and which image they are started from.
_MODEL, _IMAGE = "/model", "vitconv-model:1"
_SERVE_WORDS = f"""\
# `serve deploy {SERVE_FILE}` on a Ray cluster. Every machine needs vitconv, and the model under the same path.
# docs/deployment.md says how to secure, size and update it.
"""
_KUBERAY_WORDS = f"""\
# `kubectl apply -f {KUBERAY_FILE}` on a Kubernetes cluster with KubeRay 1.5.1 or newer.
# Every `image` is to hold vitconv, and the model at {_MODEL}: docs/deployment.md says how to build it, and how to
# secure, size and update what this starts. The secret `vitconv-api-key` is optional.
"""


def write_configuration(
    settings: RaySettings, destination: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 8000
) -> list[Path]:
    """Write what a cluster needs to a new folder.

    Args:
        settings: what is served, and by how many.
        destination: the folder; it must not exist.
        host: the address of each machine's proxy, for `serve deploy`, or its name. In Kubernetes, a pod has an address
            of its own.
        port: of each machine's proxy, for `serve deploy`.

    Returns:
        The files.

    Raises:
        InputError: the host is no address, and no name of a computer.
        DestinationError: the destination exists, or cannot be written.
    """
    _check_host(host)
    with staged_folder(destination) as folder:
        for name, text in (
            (SERVE_FILE, _SERVE_WORDS + _dump(serve_config(settings, host, port))),
            (KUBERAY_FILE, _KUBERAY_WORDS + _dump(ray_service(settings))),
        ):
            (folder / name).write_text(text, encoding="utf-8")
    return [Path(destination) / name for name in (SERVE_FILE, KUBERAY_FILE)]


#: The name of a computer. What ends in a number would be an address.
_NAME = re.compile(r"(?!(?:.*\.)?\d+$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


def _check_host(host: str) -> None:
    """Raise :class:`InputError` for what no machine of the cluster can listen at."""
    try:
        address = host.isascii() and host.isprintable() and ipaddress.ip_address(host)
    except ValueError:
        address = None
    if not address and not _NAME.fullmatch(host):
        raise InputError(
            f"The proxies cannot listen at {shown(host)}: it is no address.",
            "Choose one with --host, such as 0.0.0.0.",
        )


def serve_config(settings: RaySettings, host: str, port: int) -> dict[str, Any]:
    """What `serve deploy` reads: Ray's ``ServeDeploySchema``.

    Args:
        settings: what is served, and by how many.
        host: the address of each machine's proxy.
        port: of each machine's proxy.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": settings.http(host, port),
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": settings.arguments(),
                "deployments": [{"name": NAME, **settings.options()}],
            }
        ],
    }


def ray_service(settings: RaySettings) -> dict[str, Any]:
    """KubeRay's RayService: a head, and a pod for each copy of the model.

    Args:
        settings: what is served, and by how many; the containers have the model at a path of their own.
    """
    config = serve_config(replace(settings, model=_MODEL), "0.0.0.0", 8000)
    # Besides the copy, a pod runs Ray's own processes and the proxy.
    worker = {"cpu": str(settings.workers + 1), "memory": "4Gi"}
    if settings.gpus:
        worker["nvidia.com/gpu"] = str(settings.gpus)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": NAME},
        "spec": {
            # A new image or a changed cluster is started beside the old one, which serves until the new one is ready.
            "upgradeStrategy": {"type": "NewCluster"},
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": _dump(config),
            "rayClusterConfig": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": settings.most > settings.replicas,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},  # no copy of the model beside what runs the cluster
                    "template": {"spec": _pod("ray-head", {"cpu": "1", "memory": "4Gi"})},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "replicas",
                        "replicas": settings.replicas,
                        "minReplicas": settings.replicas,
                        "maxReplicas": settings.most,
                        "rayStartParams": {"num-cpus": str(settings.workers)},
                        # The head needs the token of its service account, to start pods. The others do not.
                        "template": {"spec": {"automountServiceAccountToken": False, **_pod("ray-worker", worker)}},
                    }
                ],
            },
        },
    }


def _pod(name: str, resources: dict[str, str]) -> dict[str, Any]:
    """What a pod runs; as little as possible is allowed to it."""
    key = {"secretKeyRef": {"name": "vitconv-api-key", "key": "key", "optional": True}}
    return {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": name,
                "image": _IMAGE,
                "env": [{"name": "VITCONV_API_KEY", "valueFrom": key}],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "resources": {"requests": resources, "limits": resources},
            }
        ],
    }


def _dump(content: dict[str, Any]) -> str:
    """As YAML, with a text of several lines as a block."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def show(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, show)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)
