"""The table of docs/gpu.md: parity of the full-size model on a GPU, by dtype and attention.

Run ``python benchmarks/gpu.py`` on a machine with a CUDA GPU; it prints Markdown with the device and the versions.
"""

import sys
from pathlib import Path

import timm
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from models import full_model, pixels_for

from vitconv.convert import to_huggingface
from vitconv.parity import compare


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: This machine has no CUDA GPU.\nRun this on a machine with one.")
    model = full_model("vit_base_patch16_384", num_classes=7)
    twin, pixels = to_huggingface(model, verify=False), pixels_for(model, batch=8)
    versions = f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}; vit_base_patch16_384, batch 8.\n")
    differences = "largest difference | difference of the logits | value of the criterion"
    print(f"| dtype | attention | {differences} | limit | same best class |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for dtype in ("float64", "float32", "tf32", "float16", "bfloat16"):
        for attention in ("sdpa", "eager"):
            twin.set_attn_implementation(attention)
            comparison = compare(model, twin, pixels, dtypes=[dtype], device="cuda")[dtype]
            worst = max(comparison.stages, key=lambda stage: stage.error / stage.limit)
            largest = max(stage.relative for stage in comparison.stages)
            figures = [largest, comparison.stages[-1].relative, worst.error, worst.limit]
            cells = [dtype, attention, *(f"{figure:.1e}" for figure in figures), f"{comparison.top1:.0%}"]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
