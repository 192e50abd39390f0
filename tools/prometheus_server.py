"""Run Prometheus on this machine, for servers that run here, with the rules of deploy/: until it is interrupted.

`python tools/prometheus_server.py 127.0.0.1:8000` asks `vitconv serve` on its usual port, and shows what it finds at
http://127.0.0.1:9090. `make prometheus` gets the program. `--shorten 60` sees within a minute what else takes an hour.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import yaml
from operations import make_rules, read_objectives, rules_text

from vitconv.errors import InputError, VitconvError

#: Where `make prometheus` puts it.
PROGRAMS = Path(sys.prefix) / "prometheus" / "usr" / "bin"
#: What to do without it.
MISSING = "Run `make prometheus` on Debian or Ubuntu, or install Prometheus so that it is on the PATH."


def find(name: str) -> str | None:
    """The path of `prometheus` or `promtool`, if it is here."""
    return shutil.which(name, path=os.pathsep.join((str(PROGRAMS), os.environ.get("PATH", os.defpath))))


def write_configuration(folder: Path, targets: list[str], shorten: float) -> Path:
    """Write what Prometheus reads, and return its main file.

    Args:
        folder: for the files.
        targets: `host:port` of the servers, or `name=host:port`; without a name, the job is `vitconv`.
        shorten: divides the durations of the rules; see :func:`operations.make_rules`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yml").write_text(rules_text(make_rules(*read_objectives(), shorten)), "utf-8")
    interval = f"{max(round(15_000 / shorten), 500)}ms"
    jobs = [(name or "vitconv", address) for name, _, address in (target.rpartition("=") for target in targets)]
    content = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": name, "static_configs": [{"targets": [address]}]} for name, address in jobs],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return file


def main() -> None:
    """Read the command line, and become Prometheus."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="+", metavar="[JOB=]HOST:PORT", help="servers that show /metrics")
    parser.add_argument("--port", type=int, default=9090, help="of 127.0.0.1, where Prometheus listens")
    parser.add_argument("--folder", type=Path, default=Path("build/prometheus"), help="for its files and its data")
    parser.add_argument("--shorten", type=float, default=1, help="divides the windows of the rules, to try them")
    arguments = parser.parse_args()
    try:
        program = find("prometheus")
        if program is None:
            raise InputError("There is no Prometheus here.", MISSING)
        file = write_configuration(arguments.folder, arguments.targets, arguments.shorten)
    except VitconvError as error:
        sys.exit(f"error: {error}")
    data, address = arguments.folder / "data", f"127.0.0.1:{arguments.port}"
    print(f"http://{address}", flush=True)
    options = [f"--config.file={file}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
    os.execv(program, [program, *options, "--storage.tsdb.retention.time=40d", "--log.level=warn"])


if __name__ == "__main__":
    main()
