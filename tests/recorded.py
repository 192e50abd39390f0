"""A runtime for tests that writes down when it computes what, and can fail in the ways that processes fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np

from vitconv.inference.runtime import ModelInfo, RuntimeKind

FILE = "recorded.json"
CALLS = "calls.jsonl"


def make(folder: Path, destination: Path, failure: str = "") -> Path:
    """A folder that this runtime runs, with the image processor of a converted folder.

    ``failure`` is what it does when it computes its third batch; one that begins with "open" happens at opening.
    """
    destination.mkdir(parents=True)
    shutil.copyfile(folder / "preprocessor_config.json", destination / "preprocessor_config.json")
    (destination / FILE).write_text(json.dumps({"failure": failure}))
    return destination


def calls(folder: Path) -> list[dict]:
    """What was computed: pid, start, end and shape of each batch."""
    return [json.loads(line) for line in (folder / CALLS).read_text().splitlines()]


def recognises(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_info(folder: Path) -> ModelInfo:
    classes = ("ash", "beech", "cedar", "oak", "pine")
    return ModelInfo("recorded", folder, classes, (3, 32, 32), "fixed", {"numpy": "2"})


class RecordedRuntime:
    def __init__(self, info: ModelInfo, device: str) -> None:
        self.info, self._count = info, 0
        self._failure = json.loads((info.folder / FILE).read_text())["failure"]
        if self._failure.startswith("open"):
            fail(self._failure)

    def __call__(self, pixels):
        start, self._count = time.monotonic(), self._count + 1
        assert pixels.dtype == np.float32 and pixels.shape[1:] == self.info.input_shape
        if self._failure and self._count == 3:
            fail(self._failure)
        time.sleep(0.002)
        line = {"pid": os.getpid(), "start": start, "end": time.monotonic(), "batch": len(pixels)}
        with (self.info.folder / CALLS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return np.zeros((len(pixels), 5), np.float32)


def fail(how: str) -> None:
    if "killed" in how:
        os.kill(os.getpid(), signal.SIGKILL)
    if "illegal" in how:
        os.kill(os.getpid(), signal.SIGILL)
    if "exits" in how:
        print("goodbye", flush=True)
        os._exit(7)
    if "memory" in how:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    if "hangs" in how:
        time.sleep(600)
    raise ValueError(f"the value is wrong\nand more on {how}")


KIND = RuntimeKind(recognises, read_info, RecordedRuntime)
