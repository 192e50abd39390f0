"""Many images: ten thousand of them, one in a hundred broken, in bounded memory."""

import json
import random
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from vitconv.inference.predictions import read_predictions
from vitconv.models.images import MOST_PIXELS

#: Predicts in a process of its own, and prints the summary and the peak of memory, in MiB: of this process, and of the
#: largest of those that prepare images. getrusage would tell of the former at least what the tests' process has, which
#: a process inherits when another program is started in it.
SCRIPT = """
import json, resource, sys
from vitconv.inference import predict
def peak():
    (own,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return [int(own) / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]
done = predict(*sys.argv[1:4], batch_size=64, max_errors=int(sys.argv[4]))
print(json.dumps({"rows": done.rows, "errors": done.errors, "peak": peak()}))
"""


def run(folder, images, destination, max_errors):
    arguments = [sys.executable, "-c", SCRIPT, folder, images, destination, str(max_errors)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ten_thousand_images_one_in_a_hundred_broken(folder, tmp_path, write_images):
    rng = random.Random(0)
    broken = tuple(sorted(rng.sample(range(10_000), 100)))
    images = write_images(10_000, broken=broken)
    lines = images.read_text().splitlines()
    few = images.with_name("few.csv")
    few.write_text("\n".join(lines[:1001]) + "\n")

    small = run(folder, few, tmp_path / "few", 100)
    large = run(folder, images, tmp_path / "out", 100)
    assert (large["rows"], large["errors"]) == (10_000, 100)
    # Ten times the images take no more than 50 MiB more, in any process: the list, and what allocators keep.
    for before, after in zip(small["peak"], large["peak"], strict=True):
        assert after < before + 50

    rows = read_predictions(tmp_path / "out").rows
    assert rows["path"].to_pylist() == lines[1:]
    assert [i for i, error in enumerate(rows["error"].to_pylist()) if error] == list(broken)
    assert [i for i, name in enumerate(rows["class"].to_pylist()) if name is None] == list(broken)
    shutil.rmtree(images.parent / "images")


@pytest.mark.parametrize("name", ["image.png", "image.webp"])
def test_the_largest_image_takes_less_than_two_gibibytes(folder, tmp_path, name):
    """With transparency, which takes the most memory. Each of the two processes counts the libraries' shared memory."""
    image = Image.new("RGBA", (8192, MOST_PIXELS // 8192), (1, 2, 3, 200))
    image.save(tmp_path / name, lossless=True, quality=0, method=0, compress_level=1)
    (tmp_path / "list.csv").write_text(f"path\n{name}\n")
    done = run(folder, tmp_path / "list.csv", tmp_path / "out", 0)
    assert (done["rows"], done["errors"]) == (1, 0)
    assert max(done["peak"]) < 2048
