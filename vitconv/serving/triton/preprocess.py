"""The model `preprocess` of a store: the bytes of an image become pixels. It runs inside of Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitconv.errors import InputError
from vitconv.serving.tensors import IMAGE, PIXELS
from vitconv.serving.triton.arrays import read, refusal, response
from vitconv.serving.triton.configuration import FOLDER


class TritonPythonModel:
    """What Triton makes of this file: one object in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the image processor.

        Args:
            args: what Triton says of the model, such as its place.
        """
        from vitconv.inference.pixels import open_preprocessor
        from vitconv.inference.runtime import ModelInfo
        from vitconv.inference.transformers import read_classes_and_shape

        folder = Path(args["model_repository"], args["model_version"], FOLDER)
        processor = json.loads(args["model_config"])["parameters"]["processor"]["string_value"]
        # Only what describes the model is here: the weights are in the model `model`.
        info = ModelInfo("", folder, *read_classes_and_shape(folder), fingerprint="", versions={})
        self._preprocessor = open_preprocessor(info, processor)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each for itself: an image that cannot be read is its client's error, and no other's."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            pixels = self._preprocessor(read(request, IMAGE).tobytes())
        except InputError as error:
            return refusal(error, of_the_client=True)
        return response(**{PIXELS: pixels[None]})
