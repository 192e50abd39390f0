"""The files for a cluster, against the schemas of those who read them."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from vitconv.errors import DestinationError, InputError
from vitconv.serving.ray.configuration import write_configuration
from vitconv.serving.ray.settings import RaySettings

CRD = Path(__file__).parents[3] / "data" / "kuberay-rayservice-1.7.0.json"
SETTINGS = {
    "as it is": RaySettings("/srv/mine"),
    "autoscaled": RaySettings("/srv/mine", replicas=2, most_replicas=5, workers=3),
    "on GPUs": RaySettings("/srv/mine", "cuda", "timm", replicas=2),
}


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


@pytest.fixture
def written(settings, tmp_path):
    """The two files, parsed."""
    files = write_configuration(settings, tmp_path / "config", port=8123)
    assert sorted(files) == sorted((tmp_path / "config").iterdir())
    return [yaml.safe_load(file.read_text("utf-8")) for file in files]


def strict(schema):
    """The schema, with what Kubernetes would drop as an error, and its numbers that may be texts."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def errors(manifest):
    validator = Draft202012Validator(strict(json.loads(CRD.read_text("utf-8"))))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def check_serve_config(config, settings, host, port):
    """Ray takes it, and takes every word of it: it would ignore a misspelt one."""
    schema = pytest.importorskip("ray.serve.schema")
    read = schema.ServeDeploySchema.model_validate(config)
    assert (read.http_options.host, read.http_options.port) == (host, port)
    (application,) = read.applications
    (deployment,) = application.deployments
    ours = config["applications"][0]["deployments"][0]
    assert set(config) <= set(schema.ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(schema.HTTPOptionsSchema.model_fields)
    assert set(config["applications"][0]) <= set(schema.ServeApplicationSchema.model_fields)
    assert set(ours) <= set(schema.DeploymentSchema.model_fields)
    assert set(ours["ray_actor_options"]) <= set(schema.RayActorOptionsSchema.model_fields)
    assert set(ours.get("autoscaling_config", {})) <= set(schema.AutoscalingConfig.model_fields)
    assert deployment.ray_actor_options.num_cpus == settings.workers
    assert deployment.backpressure_config.retry_after_s == 1


def test_the_file_of_ray_serve(settings, written):
    check_serve_config(written[0], settings, "127.0.0.1", 8123)
    assert written[0]["applications"][0]["args"]["model"] == "/srv/mine"


def test_the_manifest_of_kuberay(settings, written):
    manifest = written[1]
    assert errors(manifest) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    check_serve_config(config, settings, "0.0.0.0", 8000)
    assert config["applications"][0]["args"]["model"] == "/model"
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (settings.replicas, settings.most)
    assert cluster["enableInTreeAutoscaling"] == (settings.most > settings.replicas)
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) > settings.workers
    assert int(limits.get("nvidia.com/gpu", 0)) == settings.gpus


def test_the_schema_of_kuberay_finds_what_is_wrong(written):
    """Or the test above proves nothing."""
    manifest = written[1]
    spec = manifest["spec"]
    spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    spec["rayClusterConfig"]["authOptions"]["mode"] = "tokens"
    del spec["rayClusterConfig"]["workerGroupSpecs"][0]["groupName"]
    found = "\n".join(errors(manifest))
    for word in ("num-cpus", "imagee", "tokens", "groupName"):
        assert word in found


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "config").mkdir()
    with pytest.raises(DestinationError):
        write_configuration(RaySettings("/srv/mine"), tmp_path / "config")


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "http://0.0.0.0", "1.2.3", "256.0.0.1", "0.0.0.0:8000", "[::]", "-a", "\udcff", "a\n", "::1%a\n"],
)
def test_a_host_that_is_none(tmp_path, host):
    """No cluster starts here that would say so."""
    with pytest.raises(InputError, match="The proxies cannot listen at"):
        write_configuration(RaySettings("/srv/mine"), tmp_path / "config", host)
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "fe80::1%eth0", "localhost", "node-1.example.org", "4f5e6a", "my_host"]
)
def test_a_host_that_is_one(tmp_path, host):
    file, _ = write_configuration(RaySettings("/srv/mine"), tmp_path / "config", host)
    assert yaml.safe_load(file.read_text("utf-8"))["http_options"]["host"] == host
