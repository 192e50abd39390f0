"""The weights of the demo checkpoint: random except for the head, and the same bytes on every computer.

Every number is an integer times a power of two, which float32 represents exactly. No parameter keeps timm's initial
value: with biases of zero and norm weights of one, a converter that swaps two of them would not be noticed.

`head.csv` and `outputs.csv` depend on these weights: after a change here, run `make_artifacts.py --fit`.
"""

from collections.abc import Callable

import numpy as np
import torch
from model import build_model
from torch import nn

SEED = 384
STEP = 2.0**-20  # uniform in ±2^15 steps, that is ±1/32: a standard deviation of 0.018, close to timm's 0.02
NORM_STEP = 2.0**-17  # norm weights are uniform in 1 ± 1/4
HEAD_STEP = 2.0**-14


def random_state_dict(build: Callable[[], nn.Module] = build_model) -> dict[str, torch.Tensor]:
    """Make a state dict for the model, in the model's own order."""
    with torch.device("meta"):  # names and shapes, without the time to initialise
        state_dict = build().state_dict()
    rng = np.random.default_rng(SEED)
    for name, parameter in state_dict.items():
        integers = rng.integers(-(2**15), 2**15, tuple(parameter.shape), dtype=np.int16).astype(np.float32)
        is_norm_weight = "norm" in name and name.endswith(".weight")
        values = 1 + integers * np.float32(NORM_STEP) if is_norm_weight else integers * np.float32(STEP)
        state_dict[name] = torch.from_numpy(values)
    return state_dict


def set_head(state_dict: dict[str, torch.Tensor], head: np.ndarray) -> None:
    """Put integers of shape (769, 7) into the classifier: a row for each feature, then one for the biases."""
    values = (head * HEAD_STEP).astype(np.float32)
    state_dict["head.weight"] = torch.from_numpy(values[:-1].T.copy())
    state_dict["head.bias"] = torch.from_numpy(values[-1].copy())
