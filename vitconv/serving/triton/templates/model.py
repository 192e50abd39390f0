"""Triton loads this file as the model `model`: pixels become logits and probabilities.

It runs the vitconv beside it, whatever else is installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from vitconv.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
