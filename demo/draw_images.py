"""Draw more images of roofs, to judge an optimised model and to calibrate it: `make_artifacts.py` draws only 42.

`python demo/draw_images.py build/roofs --judge 600 --calibrate 300` writes `build/roofs/judge.csv`,
`build/roofs/calibrate.csv` and the images that they list. No image is among the artifacts or on both lists. Asking for
more adds images, and changes none.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from make_artifacts import IMAGES_PER_CLASS, Input, write_image, write_inputs
from model import CLASSES
from rich.console import Console
from rich.progress import track
from roofs import draw_roof

#: The number of each list's first image within its class. The lists never meet: that would take 700,000 images.
FIRST = {"judge": IMAGES_PER_CLASS + 1, "calibrate": 100_001}


def list_images(split: str, count: int) -> list[Input]:
    """List the first `count` images of a split: of each class in turn, alternately PNG and JPEG."""
    images = []
    for place in range(count):
        label = CLASSES[place % len(CLASSES)]
        number = FIRST[split] + place // len(CLASSES)
        path = f"images/{label.replace(' ', '-')}-{number:06}.{('png', 'jpg')[place % 2]}"
        images.append(Input(path, label, split))
    return images


def draw(folder: Path, image: Input) -> None:
    """Draw an image and write it."""
    write_image(folder / image.path, draw_roof(image.label, image.number))


def main() -> None:
    """Read the command line, draw the images, and write the lists."""
    parser = argparse.ArgumentParser(description="Draw more images of roofs.")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--judge", type=int, default=600, help="images that judge a model (default: 600)")
    parser.add_argument("--calibrate", type=int, default=300, help="images that calibrate it (default: 300)")
    arguments = parser.parse_args()

    lists = {split: list_images(split, getattr(arguments, split)) for split in FIRST}
    images = [image for listed in lists.values() for image in listed]
    console = Console()
    with ProcessPoolExecutor() as processes:
        drawn = processes.map(draw, repeat(arguments.output), images)
        for _ in track(drawn, "images", total=len(images), console=console):
            pass
    for split, listed in lists.items():  # last, so that what a list names is there
        write_inputs(arguments.output / f"{split}.csv", listed)
    console.print(f"{arguments.output}: " + ", ".join(f"{len(listed)} to {split}" for split, listed in lists.items()))


if __name__ == "__main__":
    main()
