"""An ONNX folder answers in JavaScript what it answers in Python: in Node and in a browser, without a network.

`npm ci` puts transformers.js into `build/browser`, once for each version of the lock file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from models import full_model
from PIL import ExifTags, Image, ImageOps
from PIL.ImageCms import ImageCmsProfile, createProfile
from transformers import CLIPImageProcessorPil

from vitconv.convert import convert_checkpoint
from vitconv.inference import open_model, open_preprocessor

# a script with its modules beside it, not a package
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))

from head import HEAD_STEP, class_token_features, fit_head
from make_artifacts import Input, write_image, write_inputs
from model import CLASSES
from roofs import draw_roof

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "browser"
CACHE = ROOT / "build" / "browser"
NODE, NPM = shutil.which("node"), shutil.which("npm")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js")
needs_npm = pytest.mark.skipif(NODE is None or NPM is None, reason="no Node.js with npm")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

#: The model on the same pixels: as a share of the largest logit.
SAME_PIXELS = 1e-5
#: The model on the pixels of transformers.js's own resize: docs/browser.md has the measured figures, up to 0.04.
OWN_PIXELS = 0.1


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """transformers.js, as the lock file has it."""
    lock = HERE / "package-lock.json"
    stamp, digest = CACHE / "installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        CACHE.mkdir(parents=True, exist_ok=True)
        for file in (HERE / "package.json", lock):
            shutil.copy(file, CACHE)
        command = [NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        done = subprocess.run(command, cwd=CACHE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        stamp.write_text(digest)
    return CACHE / "node_modules"


def onnx_folder(folder: Path) -> Path:
    """A folder with ``onnx/model.onnx``: a small model of the demo's kind, whose head knows the roofs."""
    from vitconv.optimization import optimize

    fitted = [(name, number) for name in CLASSES for number in (1, 2)]
    inputs = [Input(f"fitted/{place}.png", name, "fit") for place, (name, _) in enumerate(fitted)]
    for image, (name, number) in zip(inputs, fitted, strict=True):
        write_image(folder / image.path, draw_roof(name, number))
    write_inputs(folder / "fitted.csv", inputs)
    model = full_model("vit_tiny_patch16_224", num_classes=len(CLASSES))
    features = class_token_features(model, [folder / image.path for image in inputs])
    head = torch.from_numpy(fit_head(features, [image.label for image in inputs]) * HEAD_STEP)
    state_dict = model.float().state_dict() | {"head.weight": head[:-1].T.float(), "head.bias": head[-1].float()}
    torch.save(state_dict, folder / "model.pth")
    (folder / "labels.txt").write_text("\n".join(CLASSES))
    converted = convert_checkpoint(
        folder / "model.pth", folder / "hf", architecture="vit_tiny_patch16_224", labels=folder / "labels.txt"
    ).destination
    return optimize(converted, folder / "model", recipe="onnx", images=folder / "fitted.csv").folder


def photos(folder: Path) -> list[str]:
    """Roofs that the head was not fitted on, and images of odd shapes."""
    folder.mkdir()
    for kind, name in enumerate(CLASSES):
        write_image(folder / f"{kind}.{('png', 'jpg')[kind % 2]}", draw_roof(name, 3 + kind % 2))
    large = Image.fromarray(draw_roof(CLASSES[1], 9))
    large.resize((1632, 1224), Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=90, progressive=True)
    large.crop((0, 0, 90, 41)).save(folder / "small.png")
    large.resize((257, 249)).save(folder / "odd-margin.png")  # transformers.js would crop at half a pixel
    return [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir())]


def kinds(folder: Path) -> list[str]:
    """Files of other kinds. One has a colour profile, which Pillow leaves aside: it calls the red green."""
    folder.mkdir()
    image = Image.fromarray(draw_roof(CLASSES[0], 3))
    profile = ImageCmsProfile(createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"xxxx", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"xxxx", b"gXYZ", 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(folder / "444.jpg", subsampling=0)
    image.save(folder / "422.jpg", subsampling=1)
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "profile.jpg", icc_profile=swapped)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.quantize(64).save(folder / "palette.png")
    image.save(folder / "lossless.webp", lossless=True)
    image.resize((100, 900)).save(folder / "tall.png")
    return [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir())]


def upright(file: Path) -> bytes:
    """The content of a file; of a photo taken with the camera turned, the picture that JavaScript sees."""
    with Image.open(file) as image:
        if not image.getexif().get(ExifTags.Base.Orientation):
            return file.read_bytes()
        content = io.BytesIO()
        ImageOps.exif_transpose(image).save(content, "PNG")
    return content.getvalue()


@dataclass(frozen=True)
class Work:
    """What JavaScript is given, and what Python says to it.

    Attributes:
        folder: holds everything, as a web server shows it.
        images: paths in it.
        others: paths of images that are only prepared.
        logits: Python's, float32, (images, classes).
    """

    folder: Path
    images: list[str]
    others: list[str]
    logits: np.ndarray


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, node_modules: Path) -> Work:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("browser")
    runtime = open_model(onnx_folder(folder))
    preprocess = open_preprocessor(runtime.info)
    images, others = photos(folder / "photos"), kinds(folder / "kinds")
    pixels = np.stack([preprocess(upright(folder / name)) for name in images + others])
    (folder / "pixels.bin").write_bytes(pixels.astype("<f4").tobytes())
    work = {"model": "model", "images": images, "others": others, "pixels": "pixels.bin", "dims": pixels.shape}
    (folder / "work.json").write_text(json.dumps(work))
    (folder / "node_modules").symlink_to(node_modules)
    for file in [*HERE.glob("*.mjs"), *HERE.glob("*.html"), ROOT / "docs" / "pixels.mjs"]:
        shutil.copy(file, folder)
    return Work(folder, images, others, runtime(pixels[: len(images)]))


def check(found: dict[str, Any], work: Work, decoded_otherwise: set[str]) -> None:
    """Judge what `answers.mjs` has found.

    Args:
        found: that.
        work: what it was given.
        decoded_otherwise: images that JavaScript is known to decode to other colours.
    """
    scale = np.abs(work.logits).max()
    batch = np.reshape(found["batch"]["logits"], found["batch"]["dims"])
    assert batch.shape == work.logits.shape
    np.testing.assert_allclose(batch, work.logits, rtol=0, atol=SAME_PIXELS * scale)
    assert [image["name"] for image in found["images"]] == work.images + work.others
    different = {image["name"] for image in found["images"] if image["exact"]["largest"] != 0}
    assert different == decoded_otherwise, "decode and pixels.mjs make other pixels than Python"
    for image, logits in zip(found["images"], work.logits, strict=False):
        own = image["own"]
        share = np.abs(own["logits"] - logits).max() / scale
        print(f"{image['name']}: pixels {127.5 * own['mean']:.1f}, {127.5 * own['largest']:.0f}; logits {share:.4f}")
        np.testing.assert_allclose(image["exact"]["logits"], logits, rtol=0, atol=SAME_PIXELS * scale)
        assert own["largest"] > 0, "transformers.js makes Python's pixels by itself: then pixels.mjs is not needed"
        assert share < OWN_PIXELS
        assert image["answer"]["label"] == CLASSES[np.argmax(own["logits"])] == CLASSES[logits.argmax()]


@needs_npm
def test_node_answers_what_python_answers(work):
    done = subprocess.run([NODE, "node.mjs"], cwd=work.folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]), work, {"kinds/cmyk.jpg", "kinds/profile.jpg"})


class Server(ThreadingHTTPServer):
    """Serves a folder, and is the browser's proxy, too: every request comes here, to whatever host it goes.

    Attributes:
        folder: what it serves.
        host: where.
        served: the paths that it was asked for.
        refused: the other hosts that were asked for something.
        found: what the page has sent.
        done: set when it has.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.refused, self.served = folder, [], []
        self.found, self.done = {}, threading.Event()
        self.host = f"127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    server: Server
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=os.fspath(args[2].folder))

    def parse_request(self) -> bool:
        """Note the request; take a proxy's whole address apart."""
        if not super().parse_request():
            return False
        address = urlsplit(self.path)
        if self.command == "CONNECT" or address.netloc != self.server.host:
            self.server.refused.append(self.path.removesuffix(":443") if self.command == "CONNECT" else address.netloc)
            self.send_error(502)
            return False
        self.path = address.path
        self.server.served.append(self.path)
        return True

    def do_POST(self) -> None:
        self.server.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


#: Through the proxy goes every request, those to this machine included.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--proxy-bypass-list=<-loopback>",
]


#: Chromium asks its maker's hosts for the time and more, whatever its flags. No page does.
MAKER = (".google.com", ".googleapis.com")


@needs_npm
@needs_chromium
def test_a_browser_answers_what_python_answers_and_asks_no_other_host(work):
    with serving(work.folder) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--proxy-server={server.host}", f"--user-data-dir={profile}"]
        browser = subprocess.Popen(
            [*command, f"http://{server.host}/page.html"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert server.done.wait(300), f"The page has sent nothing. It was served {server.served}"
        finally:
            browser.terminate()
            browser.wait(30)
    assert "error" not in server.found, server.found["error"]
    check(server.found, work, set())
    assert [host for host in server.refused if not host.endswith(MAKER)] == []
    assert any(path.endswith(".wasm") for path in server.served)


CASES = """
import { readFile } from "node:fs/promises";
const { pixelValues } = await import(process.argv[1]);
const bytes = new Uint8Array(await readFile(process.argv[2]));
const found = [];
for (const { image, config } of JSON.parse(await readFile(process.argv[3]))) {
    const data = bytes.subarray(0, image.channels * image.width * image.height);
    try {
        const { data: values, dims } = pixelValues({ ...image, data }, config);
        found.push({ dims, values: Buffer.from(values.buffer).toString("base64") });
    } catch (error) {
        found.push({ error: error.message });
    }
}
console.log(JSON.stringify(found));
"""


def in_node(folder: Path, content: bytes, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What pixels.mjs makes of the first bytes of the content, for each case."""
    (folder / "bytes").write_bytes(content)
    (folder / "cases.json").write_text(json.dumps(cases))
    script = ["--input-type=module", "--eval", CASES, (ROOT / "docs" / "pixels.mjs").as_uri()]
    command = [NODE, *script, folder / "bytes", folder / "cases.json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def config_for(**changes: Any) -> dict[str, Any]:
    processor = CLIPImageProcessorPil(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return json.loads(processor.to_json_string()) | changes


@needs_node
def test_pixels_mjs_makes_the_pixels_of_the_processor_bit_for_bit(tmp_path):
    """Of noise, in which every mistake shows: larger and smaller, oblong, squashed, cropped and padded."""
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, 3 * 200 * 200, dtype=np.uint8)
    cases = []
    for place in range(150):
        width, height = (int(side) for side in rng.integers(1, 200, 2))
        short, across, down, crop_width, crop_height = (int(side) for side in rng.integers(1, 60, 5))
        size = {"shortest_edge": short} if place % 3 else {"height": down, "width": across}
        crop = {"height": crop_height, "width": crop_width}
        config = config_for(size=size, crop_size=crop, resample=1 + place % 4 % 3)
        cases.append({"image": {"width": width, "height": height, "channels": 3}, "config": config})
    for case, found in zip(cases, in_node(tmp_path, content.tobytes(), cases), strict=True):
        width, height = case["image"]["width"], case["image"]["height"]
        image = Image.fromarray(content[: 3 * width * height].reshape(height, width, 3))
        expected = CLIPImageProcessorPil(**case["config"])(image, return_tensors="np")["pixel_values"]
        values = np.frombuffer(base64.b64decode(found["values"]), "<f4").reshape(found["dims"])
        assert np.array_equal(values, expected), case


@needs_node
def test_pixels_mjs_refuses_what_it_does_not_compute(tmp_path):
    cases = [
        ({"channels": 1}, {}, "The image has 1 channels; convert it to RGB first."),
        ({"channels": 4}, {}, "The image has transparent pixels; paint it on white first."),
        ({}, {"do_center_crop": False}, "does not compute what this image processor does"),
        ({}, {"do_normalize": False}, "does not compute what this image processor does"),
        ({}, {"resample": 0}, "does not compute what this image processor does"),
        ({}, {"size": {"shortest_edge": 30, "longest_edge": 40}}, "does not compute what this image processor does"),
        ({}, {"size": None}, "does not compute what this image processor does"),
    ]
    image = {"width": 20, "height": 10, "channels": 3}
    given = [{"image": image | kind, "config": config_for(**changes)} for kind, changes, _ in cases]
    for found, (*_, message) in zip(in_node(tmp_path, bytes(4 * 20 * 10), given), cases, strict=True):
        assert message in found["error"]
