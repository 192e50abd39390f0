"""Checkpoints that describe themselves, as timm's own code writes them, and what timm makes of each: the truth to meet."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from models import perturbed
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.utils import CheckpointSaver
from torch import nn

#: The arguments of timm's training script as it saves them, all at their defaults but for the model and the data.
TRAIN_ARGS = yaml.safe_load((Path(__file__).parent / "data" / "timm-train-args.yaml").read_text())

#: Two blocks on 7 x 7 patches: small, with timm's own names and image size.
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 32}


def as_train_py_builds(args: dict[str, Any]) -> nn.Module:
    """What timm's training script makes of its arguments: `create_model` with the same call, perturbed."""
    model = timm.create_model(
        args["model"],
        pretrained=False,
        in_chans=args["in_chans"] if args["in_chans"] is not None else (args["input_size"] or [3])[0],
        num_classes=args["num_classes"],
        drop_rate=args["drop"],
        drop_path_rate=args["drop_path"],
        drop_block_rate=args["drop_block"],
        global_pool=args["gp"],
        bn_momentum=args["bn_momentum"],
        bn_eps=args["bn_eps"],
        scriptable=args["torchscript"],
        **args["model_kwargs"],
    )
    return perturbed(model)


def as_train_py_saves(
    folder: Path, images: list[Path] | None = None, **changes: Any
) -> tuple[Path, nn.Module, dict[str, Any]]:
    """A checkpoint of timm's own `CheckpointSaver` with the script's arguments: (its path, the model, the arguments).

    With images, the head's bias is set so that they do not all get the same class.
    """
    args = {**TRAIN_ARGS, "model": "vit_tiny_patch16_224", "num_classes": 7, "model_kwargs": dict(TINY), **changes}
    model = as_train_py_builds(args)
    if images:
        with torch.no_grad():
            model.head.bias -= timm_answers(model, train_py_config(args, model), images)[1].mean(0)
    folder.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), argparse.Namespace(**args), checkpoint_dir=str(folder)
    )
    saver.save_checkpoint(0, 0.5)
    return folder / "last.pth.tar", model, args


def timm_answers(model: nn.Module, config: dict[str, Any], images: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and logits as timm's validation makes them of image files."""
    transform = create_transform(**config, is_training=False)
    pixels = torch.stack([transform(Image.open(image).convert("RGB")) for image in images])
    with torch.no_grad():
        return pixels, torch.cat([model(one[None]) for one in pixels])


def train_py_config(args: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """How the training script prepares images for validation."""
    return resolve_data_config(args, model=model)


def photos(folder: Path, count: int = 14) -> list[Path]:
    """Pictures with structure at every scale, of sizes that both libraries crop alike."""
    folder.mkdir(exist_ok=True)
    rng, sizes = np.random.default_rng(0), random.Random(0)
    paths = []
    for number in range(count):
        blocks = sum(
            np.kron(rng.integers(0, 86, (n, n, 3)), np.ones((336 // n, 336 // n, 1))) for n in (4, 21, 84)
        ).astype("uint8")
        side = sizes.choice([224, 256, 320, 448])
        paths.append(folder / f"{number}.png")
        Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(paths[-1])
    return paths
