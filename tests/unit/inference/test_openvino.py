"""OpenVINO: files that it cannot load, and the precision, which it would choose by itself."""

import subprocess
import sys

import numpy as np
import openvino
import pytest
from optimizing import reseal

from vitconv.errors import CheckpointError, ParityError
from vitconv.files import sha256
from vitconv.inference.machine import instructions
from vitconv.inference.openvino import only_core
from vitconv.inference.optimized import read_artefact
from vitconv.inference.runtime import open_model, read_info

#: All need an exported model.
pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def fast(woods, tmp_path):
    return woods.copy("openvino", tmp_path / "fast")


def put(folder, name, content: bytes):
    (folder / name).write_bytes(content)
    digest = sha256(folder / name)
    reseal(folder, lambda record: record["artefact"]["files"].update({name: digest}))


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "f16"}, {"precision": ""}, {"precision": "BF16"}, {"hint": "f32"}]
)
def test_a_precision_that_no_recipe_has_is_refused(fast, settings):
    reseal(fast, lambda record: record["artefact"].update(settings=settings))
    with pytest.raises(CheckpointError, match="is to be computed in the precision .*, which no recipe has"):
        open_model(fast, "cpu")


@pytest.mark.parametrize("recipe", ["openvino", "openvino-bf16", "openvino-int8"])
def test_the_precision_is_the_one_that_was_judged(woods, recipe):
    """OpenVINO says in which it computes: it would take float32 for a hint of bfloat16 that it cannot follow."""
    model = open_model(woods.made(recipe).folder, "cpu")
    able = "avx512_bf16" in instructions()
    wanted = "f32" if recipe == "openvino" or not able else "bf16"
    assert model.info.settings == {"precision": wanted}
    found = model._model.get_property("INFERENCE_PRECISION_HINT")
    assert found == (openvino.Type.bf16 if wanted == "bf16" else openvino.Type.f32)
    assert ("avx512_bf16" in read_artefact(woods.made(recipe).folder).instructions) == (wanted == "bf16")


@pytest.mark.skipif("avx512_f" not in instructions(), reason="OpenVINO computes in float32, whatever the hint")
def test_what_nncf_compares_computes_in_the_precision_of_the_run(fast):
    file, hint = fast / "openvino/openvino_model.xml", openvino.properties.hint.inference_precision
    with only_core("bf16"):  # as NNCF calls it
        found = openvino.compile_model(file, device_name="CPU", config={hint: openvino.Type.f32})
    assert found.get_property(hint) == openvino.Type.bf16
    assert openvino.compile_model(file, "CPU", {hint: "f32"}).get_property(hint) == openvino.Type.f32


def test_a_precision_that_was_edited_is_told(fast):
    """Of both kinds: the seal tells it; and where that was made again, it is another run."""
    before = read_info(fast)
    text = (fast / "optimization.json").read_text()
    (fast / "optimization.json").write_text(text.replace('"precision": "f32"', '"precision": "bf16"'))
    with pytest.raises(CheckpointError, match="has been edited"):
        read_info(fast)
    (fast / "optimization.json").write_text(text)
    reseal(fast, lambda record: record["artefact"].update(settings={"precision": "bf16"}))
    assert read_info(fast).fingerprint != before.fingerprint


@pytest.mark.parametrize("content", [b"", b"not XML", b"<net/>", b"<net>" * 1000])
def test_what_is_no_openvino_is_refused(fast, content):
    put(fast, "openvino/openvino_model.xml", content)
    with pytest.raises(CheckpointError, match="OpenVINO cannot load '.*openvino_model.xml': .") as caught:
        open_model(fast, "cpu")
    assert "\n" not in caught.value.problem


def test_weights_that_were_cut_off_are_refused(fast):
    put(fast, "openvino/openvino_model.bin", (fast / "openvino/openvino_model.bin").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="OpenVINO cannot load"):
        open_model(fast, "cpu")


def test_the_weights_are_checked_too(fast):
    """The XML names them by its own name only."""
    content = bytearray((fast / "openvino/openvino_model.bin").read_bytes())
    content[100] ^= 1
    (fast / "openvino/openvino_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="openvino_model.bin' is not the file"):
        open_model(fast, "cpu")


def test_another_output_or_size_is_refused(fast):
    reseal(fast, lambda record: record["artefact"].update(output="nothing"))
    with pytest.raises(ParityError, match="OpenVINO cannot run the model"):
        open_model(fast, "cpu")(PIXELS)
    reseal(fast, lambda record: record["artefact"].update(output="logits"))
    with pytest.raises(ParityError, match="OpenVINO cannot run the model"):
        open_model(fast, "cpu")(PIXELS[..., :16])


def test_a_row_depends_on_its_image_only(woods):
    """Within rounding: the batch may change how sums are cut up."""
    model = open_model(woods.made("openvino").folder, "cpu")
    whole = model(PIXELS)
    for number in range(len(PIXELS)):
        assert np.abs(model(PIXELS[number : number + 1])[0] - whole[number]).max() < 1e-5 * np.abs(whole).max()


def test_models_that_come_and_go_leave_the_process_whole(fast):
    """Each Core of OpenVINO has a stack for signals; the next signal after the wrong one went was the process's end."""
    program = (
        "import gc, os, signal, sys\n"
        "from vitconv.inference import open_model\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "first, second = (open_model(sys.argv[1], 'cpu') for _ in range(2))\n"
        "del first; gc.collect()\n"
        "del second; gc.collect()\n"
        "for _ in range(100): os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(fast)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
