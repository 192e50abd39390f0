"""Make the demo artifacts for the notebooks and tests: a checkpoint, its model, images and recorded answers.

`python demo/make_artifacts.py` writes `artifacts/`. With the versions that `requirements.txt` pins, it writes the
same bytes on every computer. `--fit` also fits the head and records the model's answers again, which takes minutes.
"""

import argparse
import csv
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from head import class_token_features, classify, fit_head, read_head, write_head, write_outputs
from model import CLASSES, build_model
from PIL import Image
from png import write_png
from rich.console import Console
from rich.progress import track
from roofs import draw_roof
from weights import random_state_dict, set_head

DEMO = Path(__file__).resolve().parent
HEAD = DEMO / "head.csv"
OUTPUTS = DEMO / "outputs.csv"

IMAGES_PER_CLASS = 6
FITTED_PER_CLASS = 4  # the head is fitted on these; the others are held out


class Input(NamedTuple):
    """A row of `inputs.csv`."""

    path: str
    label: str
    split: str

    @property
    def number(self) -> int:
        """The image's number within its class."""
        return int(Path(self.path).stem.rpartition("-")[2])


def list_inputs() -> list[Input]:
    """List all the images to draw, alternately PNG and JPEG."""
    inputs = []
    for kind, label in enumerate(CLASSES):
        for number in range(1, IMAGES_PER_CLASS + 1):
            suffix = "png" if (kind + number) % 2 else "jpg"
            path = f"images/{label.replace(' ', '-')}-{number:02}.{suffix}"
            inputs.append(Input(path, label, "fit" if number <= FITTED_PER_CLASS else "held-out"))
    return inputs


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and replace `path` with it at the end.

    An interrupted run leaves the old file unchanged. Nothing is written *into* the old file, because it may be a
    hard link to DVC's cache. The temporary path has the same file name, because torch stores it in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incomplete-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image in the format of its file name: PNG or JPEG."""
    with replacing(path) as temporary:
        if path.suffix == ".png":
            write_png(temporary, pixels)
        else:
            Image.fromarray(pixels).save(temporary, quality=90)


def write_inputs(path: Path, inputs: list[Input]) -> None:
    """Write the list of images as a table."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([Input._fields, *inputs])


def write_labels(path: Path) -> None:
    """Write the class names, one per line, as `vitconv convert --labels` reads them."""
    with replacing(path) as temporary:
        temporary.write_text("\n".join(CLASSES) + "\n", newline="\n")


def write_checkpoint(path: Path) -> None:
    """Write the state dict with the committed head."""
    state_dict = random_state_dict()
    set_head(state_dict, read_head(HEAD))
    with replacing(path) as temporary:
        torch.save(state_dict, temporary)


def copy(source: Path, destination: Path) -> None:
    """Copy a committed file into the artifacts."""
    with replacing(destination) as temporary:
        shutil.copyfile(source, temporary)


def fit(output: Path, inputs: list[Input], console: Console) -> None:
    """Fit the head on the images in `output`, and record the model's answers: write `head.csv` and `outputs.csv`."""
    model = build_model()
    model.load_state_dict(random_state_dict())
    features = class_token_features(model, [output / image.path for image in inputs])
    to_fit = [image.split == "fit" for image in inputs]
    head = fit_head(features[to_fit], [image.label for image in inputs if image.split == "fit"])
    logits = classify(features, head)
    answers = [CLASSES[k] for k in logits.argmax(axis=1)]
    with replacing(HEAD) as temporary:
        write_head(temporary, head)
    with replacing(OUTPUTS) as temporary:
        write_outputs(temporary, [image.path for image in inputs], logits)
    pairs = list(zip(answers, inputs, strict=True))
    for split in ("fit", "held-out"):
        right = [answer == image.label for answer, image in pairs if image.split == split]
        console.print(f"{split} accuracy: {sum(right)} of {len(right)}")


def main() -> None:
    """Read the command line and write everything."""
    parser = argparse.ArgumentParser(description="Make the demo checkpoint, its images and its answers.")
    parser.add_argument("--output", type=Path, default=DEMO.parent / "artifacts", help="folder to write to")
    parser.add_argument("--fit", action="store_true", help="fit the head and record the answers again")
    arguments = parser.parse_args()
    output, console = arguments.output, Console()

    inputs = list_inputs()
    for image in track(inputs, "images", console=console):
        write_image(output / image.path, draw_roof(image.label, image.number))
    write_inputs(output / "inputs.csv", inputs)
    if arguments.fit:
        fit(output, inputs, console)
    write_labels(output / "labels.txt")
    copy(DEMO / "model.py", output / "model.py")
    copy(OUTPUTS, output / "outputs.csv")
    with console.status("checkpoint"):
        write_checkpoint(output / "vit-7class.pth")
    megabytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    console.print(f"{output}: {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
