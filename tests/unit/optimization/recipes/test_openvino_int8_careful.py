"""The careful way of `openvino-int8`: what int8 would cost too much goes back to float, and computes the same there."""

import ctypes
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CLASSES
from models import small_model
from optimizing import skip_without_instructions
from PIL import Image
from recipes import distance, pixels_of

from vitconv.convert import convert_checkpoint
from vitconv.files import read_json
from vitconv.inference.images import read_images
from vitconv.inference.openvino import core
from vitconv.inference.pixels import open_preprocessor
from vitconv.inference.runtime import read_info
from vitconv.models.huggingface import load_folder
from vitconv.optimization import Limits, optimize
from vitconv.optimization.recipes import openvino_int8 as module
from vitconv.optimization.recipes.openvino import export
from vitconv.optimization.recipes.openvino_int8 import _quantize, _smoothed, write_carefully
from vitconv.optimization.recipes.recipe import Calibration

LIMITS = Limits(disagreement=0.2)


@pytest.fixture(scope="module")
def calibration_images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("calibration"), np.random.default_rng(1)
    for number in range(32):
        patches = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def outlying(tmp_path_factory, trees):
    """The trees, with one channel of each norm ten thousand times as large: in float32, the same function."""
    root, model = tmp_path_factory.mktemp("outlying"), small_model()
    model.load_state_dict(torch.load(trees.parent / "trees.pth"))
    with torch.no_grad():
        for block in model.blocks:
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                norm.weight[7] *= 1e4
                norm.bias[7] *= 1e4
                linear.weight[:, 7] /= 1e4
    torch.save(model.state_dict(), root / "outlying.pth")
    convert_checkpoint(root / "outlying.pth", root / "outlying", architecture=model, labels=CLASSES, verify=False)
    return root / "outlying"


def run(folder, precision="f32"):
    model = core().compile_model(
        folder / "openvino/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": precision}
    )
    return lambda pixels: model({"pixel_values": pixels})["logits"]


def test_what_stays_in_float_is_computed_as_the_processor_can(monkeypatch):
    for found, precision in ((("avx512_f", "avx512_vnni"), "f32"), (("avx512_vnni", "avx512_bf16"), "bf16")):
        monkeypatch.setattr(module, "instructions", partial(tuple, found))
        assert module._precision() == precision


@pytest.mark.slow
def test_smoothing_changes_no_number_and_quantises_nothing(trees, exact, calibration_images, tmp_path):
    calibration = Calibration(read_images(calibration_images), open_preprocessor(read_info(trees)))
    export(load_folder(trees), tmp_path, "f32", partial(_smoothed, calibration=calibration))
    graph = (tmp_path / "openvino/openvino_model.xml").read_text()
    assert "smooth_quant" in graph
    assert "FakeQuantize" not in graph
    assert distance(run(tmp_path)(pixels_of(3)), exact(pixels_of(3))) < 1e-5


@pytest.mark.slow
def test_a_channel_that_ruins_int8_goes_back_to_float(outlying, pictures, exact, calibration_images, tmp_path):
    skip_without_instructions("openvino-int8")
    calibration = Calibration(read_images(calibration_images), open_preprocessor(read_info(outlying)))
    (tmp_path / "plain").mkdir()
    export(
        load_folder(outlying), tmp_path / "plain", "f32", partial(_quantize, calibration=calibration, output="logits")
    )
    pixels = pixels_of(3)
    assert distance(run(tmp_path / "plain")(pixels), exact(pixels)) > 0.1
    done = optimize(
        outlying,
        tmp_path / "new",
        recipe="openvino-int8",
        images=pictures,
        calibration=calibration_images,
        limits=LIMITS,
    )
    assert read_json(tmp_path / "new" / "optimization.json")["careful"] is True
    assert done.figures.smallest_cosine > 0.99


def signal_stack():
    """The address of this thread's stack for signals."""
    found = (ctypes.c_void_p * 3)()  # a stack_t
    assert ctypes.CDLL(None).sigaltstack(None, found) == 0
    return found[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only there has OpenVINO a stack for signals")
def test_the_thread_keeps_its_stack_for_signals(outlying, calibration_images, tmp_path):
    """NNCF's models came and went in an order that left a freed one: the next signal was the process's end."""
    skip_without_instructions("openvino-int8")
    core().get_property("CPU", "FULL_DEVICE_NAME")  # it has its stack now
    before = signal_stack()
    calibration = Calibration(read_images(calibration_images), open_preprocessor(read_info(outlying)))
    write_carefully(load_folder(outlying), tmp_path, calibration)
    assert signal_stack() == before
