"""The runtime of folders with an OpenVINO model, run on the processor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.errors import CheckpointError, shown
from vitconv.inference.machine import cores
from vitconv.inference.optimized import check_logits, check_machine, loading, read_artefact, running

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.optimized import Artefact
    from vitconv.inference.runtime import ModelInfo


@cache
def core() -> Any:
    """The process's only ``openvino.Core``.

    Each one gives the thread a stack for signals. Of two that overlap, the first to go leaves the thread with a stack
    that is freed, and the next signal ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


@contextmanager
def only_core(precision: str) -> Iterator[None]:
    """Have libraries take :func:`core` in the block, where they would make an ``openvino.Core`` for each model.

    NNCF, as it looks for what int8 costs too much, makes each of them before the one before it goes, and left the
    thread with a freed stack (NNCF 3.4). As torch's DataLoader handles SIGCHLD, the end of any child was then this
    process's, too.

    Args:
        precision: in which ``openvino.compile_model`` has models compute. NNCF judges them in float32, whatever they
            will be run in, and kept operations in int8 whose error and bfloat16's were too large together.
    """
    import openvino

    only = core()

    def compile_model(model: Any, device_name: str, config: dict[str, Any] | None = None) -> Any:
        return only.compile_model(model, device_name, {**(config or {}), "INFERENCE_PRECISION_HINT": precision})

    ours = {"Core": core, "compile_model": compile_model}
    theirs = {name: getattr(openvino, name) for name in ours}
    try:
        for name, one in ours.items():
            setattr(openvino, name, one)
        yield
    finally:
        for name, one in theirs.items():
            setattr(openvino, name, one)


class OpenVINORuntime:
    """An OpenVINO model: see :class:`vitconv.inference.runtime.Runtime`.

    Args:
        info: what its folder says of it.
        device: ``"cpu"``.

    Raises:
        InputError, CheckpointError: what :func:`vitconv.inference.optimized.check_machine` raises.
        CheckpointError: OpenVINO cannot load the file.
    """

    def __init__(self, info: ModelInfo, device: str) -> None:
        artefact = read_artefact(info.folder)
        check_machine(info.folder, artefact, device)
        self.info, self._output = info, artefact.output
        # Without the hint, OpenVINO takes bfloat16 by itself where the processor has instructions for it.
        options = {
            "INFERENCE_PRECISION_HINT": _precision(info.folder, artefact),
            "INFERENCE_NUM_THREADS": cores(),
            "PERFORMANCE_HINT": "LATENCY",
            # What is written into a mapped file would change the model that is loaded.
            "ENABLE_MMAP": False,
        }
        file = info.folder / artefact.file
        with loading("OpenVINO", file):
            self._model = core().compile_model(file, "CPU", options)
        self._of_thread = threading.local()  # a request holds one call's input and output

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits of a batch: float32, (batch, classes).

        Args:
            pixels: float32, (batch, channels, height, width).

        Raises:
            ParityError: the model cannot be run.
        """
        with running("OpenVINO", self.info):
            found = self._request().infer({"pixel_values": pixels})
            logits = found[self._model.output(self._output)].copy()  # the next call writes into the same memory
        return check_logits(logits, pixels, self.info)

    def _request(self) -> Any:
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._model.create_infer_request()
        return self._of_thread.request


def _precision(folder: Path, artefact: Artefact) -> str:
    """The precision that the model was judged in; OpenVINO would choose one by itself."""
    precision = artefact.settings.get("precision")
    if precision not in ("f32", "bf16"):
        raise CheckpointError(
            f"The model in '{folder}' is to be computed in the precision {shown(precision)}, which no recipe has.",
            "Run `vitconv optimize` again.",
        )
    return precision
