"""The model behind `vit-7class.pth`: a Vision Transformer that tells seven roof materials apart."""

import timm
from torch import nn

ARCHITECTURE = "vit_base_patch16_384"
CLASSES = (
    "terracotta tiles",
    "slate",
    "standing-seam metal",
    "green roof",
    "asphalt shingles",
    "thatch",
    "white membrane",
)


def build_model() -> nn.Module:
    """The architecture, not yet trained: load the checkpoint's state dict into it."""
    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=len(CLASSES))
