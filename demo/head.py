"""The classifier head of the demo model, fitted on the features of an untrained backbone.

Even the random features of an untrained Vision Transformer differ between images of different colour and
pattern. Computing them takes minutes, so the fitted head is stored in `head.csv`, as integer multiples of
`HEAD_STEP`.
"""

import csv
from pathlib import Path

import numpy as np
import timm
import torch
from model import CLASSES
from PIL import Image
from rich.progress import track
from torch import nn
from weights import HEAD_STEP

# A ridge regression returns values between 0 and 1. Multiplied by eight, they give softmax probabilities like those
# of a trained model: mostly between 0.7 and 0.99 for the right class.
SHARPNESS = 8


def class_token_features(model: nn.Module, paths: list[Path]) -> np.ndarray:
    """The input of the head for each image: float64, (images, 768)."""
    model = model.eval().double()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    rows = []
    with torch.inference_mode():
        for path in track(paths, "features in float64"):
            with Image.open(path) as image:
                pixels = transform(image.convert("RGB"))
            tokens = model.forward_features(pixels[None].double())
            rows.append(model.forward_head(tokens, pre_logits=True)[0].numpy())
    return np.stack(rows)


def fit_head(features: np.ndarray, labels: list[str]) -> np.ndarray:
    """Fit a ridge regression from features to classes, in closed form: integers, (769, 7), the biases last."""
    mean = features.mean(axis=0)
    centred = features - mean
    targets = np.array([[label == name for name in CLASSES] for label in labels]) - 1 / len(CLASSES)
    gram = centred @ centred.T
    strength = np.trace(gram) / len(gram)  # the mean squared length of a centred feature vector
    weight = SHARPNESS * centred.T @ np.linalg.solve(gram + strength * np.eye(len(gram)), targets)
    bias = -mean @ weight
    return np.rint(np.vstack([weight, bias]) / HEAD_STEP).astype(np.int64)


def classify(features: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Compute the logits, (images, classes)."""
    return features @ (head[:-1] * HEAD_STEP) + head[-1] * HEAD_STEP


def write_head(path: Path, head: np.ndarray) -> None:
    """Write the integers as a table: a column for each class, a row for each feature, the biases last."""
    np.savetxt(path, head, fmt="%d", delimiter=",", header=",".join(CLASSES), comments="")


def read_head(path: Path) -> np.ndarray:
    """Read the integers that `write_head` wrote."""
    return np.loadtxt(path, dtype=np.int64, delimiter=",", skiprows=1)


def write_outputs(path: Path, names: list[str], logits: np.ndarray) -> None:
    """Write the model's answers as a table: path, class and logits, to four decimals."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", *CLASSES])
        for name, row in zip(names, logits, strict=True):
            writer.writerow([name, CLASSES[row.argmax()], *(f"{logit:.4f}" for logit in row)])
