"""Serve a store with the Triton that `make triton` installs, on this machine's processor, until it is interrupted.

`python tools/triton_server.py STORE`. It runs stores of the backend `python`. For the others, and for GPUs, it prints
the command that runs NVIDIA's container.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from vitconv.errors import VitconvError
from vitconv.serving.triton.server import run_server
from vitconv.serving.triton.store import container_command


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", type=Path, help="what `vitconv triton` has written")
    store = parser.parse_args().store
    gpu = any("KIND_GPU" in file.read_text(encoding="utf-8") for file in store.glob("*/config.pbtxt"))
    command = container_command(shlex.quote(str(store.resolve())), gpu=gpu)
    print(f"NVIDIA's container, with all backends:\n  {command}\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with run_server(store) as server:
            print(f"http://{server.http}  gRPC {server.grpc}  http://{server.metrics}/metrics", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except VitconvError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
