"""Triton loads this file as the model `preprocess`: the bytes of an image become pixels.

It runs the vitconv beside it, whatever else is installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from vitconv.serving.triton.preprocess import TritonPythonModel

__all__ = ["TritonPythonModel"]
