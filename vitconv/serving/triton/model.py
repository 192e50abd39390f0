"""The model `model` of a store: pixels become logits, probabilities, and how certain they are. It runs in Triton."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitconv.errors import ParityError, VitconvError
from vitconv.serving.tensors import PIXELS, answers
from vitconv.serving.triton.arrays import read, refusal, response
from vitconv.serving.triton.configuration import FOLDER, STATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TritonPythonModel:
    """What Triton makes of this file: one object in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model.

        Args:
            args: what Triton says of the model: its place, and the device of this instance.
        """
        # Threads that spin while they wait take the core that `preprocess` needs. torch reads this when it is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        here = Path(args["model_repository"], args["model_version"])
        # The store is itself a program: who runs it trusts the programs that it was written with.
        os.environ["XDG_STATE_HOME"] = str(here / STATE)
        from vitconv.inference.certainty import judge, read_certainty
        from vitconv.inference.runtime import open_model

        gpu = args["model_instance_kind"] == "GPU"
        self._runtime = open_model(here / FOLDER, f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        self._judge = partial(judge, read_certainty(self._runtime.info))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests: as one batch, of as many as the configuration lets Triton put together."""
        import numpy as np

        pixels = [read(request, PIXELS) for request in requests]
        try:
            logits = self._runtime(np.concatenate(pixels))
        except VitconvError as error:
            return [refusal(error, of_the_client=False) for _ in requests]
        own = np.split(logits, np.cumsum([len(one) for one in pixels])[:-1])
        return [self._answer(*one) for one in zip(own, pixels, strict=True)]

    def _answer(self, logits: NDArray[np.float32], pixels: NDArray[np.float32]) -> Any:
        try:
            return response(**answers(logits, self._judge(logits, pixels)))
        except ParityError as error:
            return refusal(error, of_the_client=False)
