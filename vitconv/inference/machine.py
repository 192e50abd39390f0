"""What this machine has for computing: cores, and the instruction sets of its processor."""

from __future__ import annotations

import os
from functools import cache

#: The instruction sets that matter for neural networks, by torch's names, the oldest first.
INSTRUCTIONS = (
    *("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "sve", "sve2", "dot", "i8mm", "bf16"),
)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def instructions() -> tuple[str, ...]:
    """The ones of :data:`INSTRUCTIONS` that this processor has."""
    import torch

    found = torch.cpu.get_capabilities()
    return tuple(name for name in INSTRUCTIONS if found.get(name) is True)
