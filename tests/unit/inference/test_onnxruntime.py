"""ONNX Runtime: files that it cannot load or run, and what they may not reach."""

import onnx
import pytest
from onnx import TensorProto, helper
from optimizing import reseal

from vitconv.errors import CheckpointError, ParityError
from vitconv.files import sha256
from vitconv.inference.runtime import open_model, read_info

#: All need an exported model.
pytestmark = pytest.mark.slow

FILE = "onnx/model.onnx"


@pytest.fixture
def fast(woods, tmp_path):
    return woods.copy("onnx", tmp_path / "fast")


def put(folder, content: bytes):
    """Replace the model, as somebody would who knows how its seal is made."""
    (folder / FILE).write_bytes(content)
    digest = sha256(folder / FILE)
    reseal(folder, lambda record: record["artefact"]["files"].update({FILE: digest}))


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x08\x07" * 500])
def test_what_is_no_onnx_is_refused(fast, content):
    put(fast, content)
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load '.*model.onnx': .") as caught:
        open_model(fast, "cpu")
    assert "\n" not in caught.value.problem


def test_a_file_that_was_cut_off(fast):
    put(fast, (fast / FILE).read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load"):
        open_model(fast, "cpu")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "../../../../../../etc/passwd"])
def test_weights_outside_of_the_folder_are_not_read(fast, location):
    """An ONNX file may name other files with its weights."""
    (fast / "secret.bin").write_bytes(bytes(4 * 15))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 5], bytes(60), raw=True)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "60")):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixel_values", "axes"], ["m"], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 5])],
        [weight, helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    put(fast, model.SerializeToString())
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load"):
        open_model(fast, "cpu")


def test_another_output_or_input_is_refused(fast):
    import numpy as np

    reseal(fast, lambda record: record["artefact"].update(output="nothing"))
    with pytest.raises(ParityError, match="ONNX Runtime cannot run the model in .*nothing"):
        open_model(fast, "cpu")(np.zeros((1, 3, 32, 32), np.float32))
    reseal(fast, lambda record: record["artefact"].update(output="logits"))
    with pytest.raises(ParityError, match="ONNX Runtime cannot run the model"):
        open_model(fast, "cpu")(np.zeros((1, 3, 64, 64), np.float32))


def test_the_file_is_sound_and_takes_any_batch(woods):
    model = onnx.load(woods.made("onnx").folder / FILE)
    onnx.checker.check_model(model, full_check=True)
    (given,) = model.graph.input
    assert given.name == "pixel_values" and given.type.tensor_type.shape.dim[0].dim_param
    assert [output.name for output in model.graph.output] == ["logits"]


def test_a_file_that_changes_while_it_is_loaded_is_told(fast, monkeypatch):
    from vitconv.inference import onnxruntime

    right = onnxruntime.OnnxRuntime._open

    def open_and_change(self, *arguments):
        session = right(self, *arguments)
        put(fast, (fast / FILE).read_bytes() + b"\n")
        return session

    monkeypatch.setattr(onnxruntime.OnnxRuntime, "_open", open_and_change)
    with pytest.raises(CheckpointError, match="have changed while the model was loaded"):
        open_model(fast, "cpu")
    read_info(fast)
