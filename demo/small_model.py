"""Make a small model of the demo's kind, for what must be quick.

`python demo/small_model.py build/small/small.pth` writes the checkpoint of a `vit_tiny_patch16_224` with random
weights, whose head is fitted as the demo's is, on the images of `artifacts/`. It takes seconds.
"""

import argparse
from pathlib import Path

import timm
import torch
from head import class_token_features, fit_head
from make_artifacts import DEMO, list_inputs, replacing
from model import CLASSES
from torch import nn
from weights import random_state_dict, set_head

ARCHITECTURE = "vit_tiny_patch16_224"


def build_small_model() -> nn.Module:
    """The architecture, not yet trained."""
    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=len(CLASSES))


def main() -> None:
    """Read the command line, fit the head and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Make a small model of the demo's kind.")
    parser.add_argument("output", type=Path, help="checkpoint to write")
    output = parser.parse_args().output

    state_dict, model = random_state_dict(build_small_model), build_small_model()
    model.load_state_dict(state_dict)
    fitted = [image for image in list_inputs() if image.split == "fit"]
    features = class_token_features(model, [DEMO.parent / "artifacts" / image.path for image in fitted])
    set_head(state_dict, fit_head(features, [image.label for image in fitted]))
    with replacing(output) as temporary:
        torch.save(state_dict, temporary)


if __name__ == "__main__":
    main()
