"""The files that containers are made of. Nothing here builds one: .github/workflows/container.yml does."""

import fnmatch
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from prometheus_server import find
from typer.main import get_command

from vitconv.cli import app

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
QUEUE = yaml.safe_load((ROOT / "deploy/queue.yaml").read_text("utf-8"))
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text("utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/container.yml").read_text("utf-8"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def instructions():
    """The Dockerfile's: their names and what follows, with the lines that go on put together."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def stages():
    """The instructions of each stage, by name; what stands before the first is named ``None``."""
    found, name = {None: []}, None
    for word, rest in instructions():
        if word == "FROM":
            name = rest.split()[-1]
            found[name] = []
        found[name].append((word, rest))
    return found


def arguments():
    return dict(rest.split("=") for word, rest in instructions() if word == "ARG" and "=" in rest)


def only(stage, word):
    (rest,) = [rest for one, rest in stages()[stage] if one == word]
    return rest


def check_serve(words):
    """Raise if these are not the arguments of a command that exists, with options that it has."""
    command = get_command(app).commands[words[0]]
    command.make_context(words[0], list(words[1:]))


def test_linting_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("no hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_stage_serves():
    assert list(stages())[-1] == "serve"  # what `docker build` makes without --target
    assert yaml.safe_load(only("serve", "ENTRYPOINT")) == ["vitconv"]
    words = yaml.safe_load(only("serve", "CMD"))
    assert words[0] == "serve"
    check_serve(words)
    port = words[words.index("--port") + 1]
    assert only("serve", "EXPOSE") == port
    health = yaml.safe_load(only("serve", "HEALTHCHECK").partition("CMD")[2])
    assert f"http://127.0.0.1:{port}/health/ready" in health[-1]
    compile(health[-1], "health check", "exec")


def test_nobody_is_root():
    for name, content in stages().items():
        users = [rest for word, rest in content if word == "USER"]
        if name not in (None, "build") and users:
            assert users[-1] == "10001:10001", name
    assert only("run", "USER") == "10001:10001"


def test_the_versions_are_those_of_requirements():
    """None is written in the Dockerfile: each would be forgotten one day."""
    run = " ".join(rest for word, rest in stages()["build"] if word == "RUN")
    assert not re.search(r"==\d", run)
    (command,) = re.findall(r"(grep -oE .+) > constraints.txt", run)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    constraints = done.stdout.splitlines()
    requirements = (ROOT / "requirements.txt").read_text("utf-8")
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[^\[\] ]+", one) for one in constraints)
    assert {one.partition("==")[0] for one in constraints} == set(re.findall(r"(?m)^(\w[\w-]*)", requirements))
    for package in ("torch", "torchvision"):
        assert f"grep '^{package}==' requirements.txt" in run
        assert len(re.findall(rf"(?m)^{package}==\S+$", requirements)) == 1


def test_cuda_is_asked_for():
    assert arguments()["TORCH"] == "cpu"
    assert "https://download.pytorch.org/whl/${TORCH}" in " ".join(rest for _, rest in stages()["build"])


@pytest.mark.parametrize(
    "place",
    ["Dockerfile", "compose.yaml", "deploy/queue.yaml", "docs/deployment.md", ".github/workflows/container.yml"],
)
def test_the_extras_exist(place):
    found = re.findall(r"EXTRAS(?:=|: \$\{EXTRAS:-|` \| `)([a-z,]+)", (ROOT / place).read_text("utf-8"))
    assert found
    assert {name for one in found for name in one.split(",")} <= set(EXTRAS)


def test_what_is_copied_is_in_the_context():
    ignored = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] not in ("", "#")]
    assert ignored[0] == "*"  # and then what is let in
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copied = [shlex.split(rest)[:-1] for word, rest in stages()["build"] if word == "COPY"]
    for name in {name for names in copied for name in names}:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in let_in), name
    assert set(let_in) == {name for names in copied for name in names}  # and nothing else


def test_the_composition_is_locked_down():
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert not service.get("privileged"), name
    ports = [port.split(":")[1] for service in COMPOSE["services"].values() for port in service["ports"]]
    assert len(ports) == len(set(ports))


def test_prometheus_asks_the_services():
    services = COMPOSE["services"]
    for job in PROMETHEUS["scrape_configs"]:
        ((target,),) = [one["targets"] for one in job["static_configs"]]
        host, _, port = target.partition(":")
        name = "prometheus" if host == "localhost" else host
        assert any(published.endswith(f":{port}") for published in services[name]["ports"]), target


def test_prometheus_finds_its_rules_and_keeps_what_they_need():
    service = COMPOSE["services"]["prometheus"]
    mounted = {place: source for source, place, *_ in (volume.split(":") for volume in service["volumes"])}
    options = dict(option.split("=", 1) for option in service["command"])
    configuration = Path(options["--config.file"])
    assert mounted[str(configuration)] == "./deploy/prometheus.yml"
    assert options["--storage.tsdb.path"] in mounted
    assert PROMETHEUS["rule_files"]
    for name in PROMETHEUS["rule_files"]:
        assert mounted[str(configuration.parent / name)] == f"./deploy/{name}"
        assert (ROOT / "deploy" / name).exists()
    days = yaml.safe_load((ROOT / "deploy/objectives.yaml").read_text("utf-8"))["days"]
    assert int(options["--storage.tsdb.retention.time"].removesuffix("d")) > days  # by default, it is 15 days
    (script,) = [step["run"] for step in WORKFLOW["jobs"]["image"]["steps"] if step.get("name") == "Lint"]
    for file in (ROOT / "deploy").glob("rules*_test.yml"):
        assert f"/deploy/{file.name}" in script


@pytest.mark.parametrize("key", ["", "k' $HOME \"%s"])
def test_prometheus_has_the_key_of_the_server(tmp_path, key):
    """Without it, /metrics is 401, and Prometheus alerts that the server is down."""
    service, (job,) = (
        COMPOSE["services"]["prometheus"],
        [one for one in PROMETHEUS["scrape_configs"] if one["job_name"] == "vitconv"],
    )
    variable = "VITCONV_API_KEY"
    assert service["environment"][variable] == COMPOSE["services"]["rest"]["environment"][variable]
    place = Path(job["authorization"]["credentials_file"])
    assert str(place.parent) in service["tmpfs"]  # the rest of its files cannot be written
    program = tmp_path / "prometheus"
    program.write_text('#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n')
    program.chmod(0o755)
    shell, option, script, name = service["entrypoint"]
    script = script.replace("$$", "$").replace(str(place), str(tmp_path / "key"))
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", variable: key}
    command = [shell, option, script, name, *service["command"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, service["command"], "")
    assert (tmp_path / "key").read_text() == key


def test_promtool_takes_the_configuration():
    promtool = find("promtool")
    if not promtool:
        pytest.skip("no promtool: make prometheus")
    # Without the files that it names: the key is written when the container starts.
    command = [promtool, "check", "config", "--syntax-only", ROOT / "deploy/prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_triton_s_image_is_the_one_that_vitconv_names():
    store = pytest.importorskip("vitconv.serving.triton.store")
    (image,) = re.findall(r"(?m)^FROM (\S+)$", COMPOSE["services"]["triton"]["build"]["dockerfile_inline"])
    assert image == store.CONTAINER


def test_ci_runs_commands_that_exist():
    script = "\n".join(step.get("run", "") for step in WORKFLOW["jobs"]["image"]["steps"])
    commands = re.findall(r"(?m)-w /trial vitconv (.+?)(?: \\)?$", script)
    assert len(commands) == 2
    for one in commands:
        check_serve(shlex.split(one))


def test_the_queue_s_worker_is_locked_down_and_its_command_exists():
    worker, kafka = QUEUE["services"]["worker"], QUEUE["services"]["kafka"]
    assert worker["read_only"] is True and worker["cap_drop"] == ["ALL"] and "ports" not in worker
    assert worker["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in kafka["ports"])
    check_serve(worker["command"])
    # The topics are those that are made, and the health check of the image asks the port.
    said = " ".join(worker["command"])
    assert (
        re.findall(r"topic=(\w+)", said)
        == re.search(r"for name in (.+?);", QUEUE["services"]["topics"]["command"][2])[1].split()
    )
    assert f"--port={only('serve', 'EXPOSE')}" in said
    assert (ROOT / "deploy" / worker["build"]["context"] / "Dockerfile").exists()
