import sys
from types import ModuleType

import onnx
import onnxruntime
import pytest
import torch
from families import save_folder
from recipes import distance, pixels_of

from vitconv.convert import convert_checkpoint
from vitconv.errors import InputError
from vitconv.inference.tensorrt import TensorRTRuntime
from vitconv.mapping import LOADED_CLASSES
from vitconv.models.huggingface import load_folder
from vitconv.optimization import optimize
from vitconv.optimization.recipes import RECIPES

RECIPE = RECIPES["tensorrt-fp16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/system/test_gpu_recipes.py runs it")
def test_without_a_gpu_nothing_is_written(trees, pictures, tmp_path):
    with pytest.raises(InputError, match="tensorrt-fp16 needs a CUDA GPU to be made and judged, and there is none"):
        optimize(trees, tmp_path / "new", recipe="tensorrt-fp16", images=pictures)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "beit", "dinov2_with_registers"])
def test_the_file_computes_in_float16_between_float32_ends(family, tmp_path):
    save_folder(tmp_path / "timm", family, "abcde")
    convert_checkpoint(tmp_path / "timm", tmp_path / "model", verify=False)
    written = RECIPE.write(load_folder(tmp_path / "model"), tmp_path, None)
    assert written.file == "onnx/model_fp16.onnx"
    graph = onnx.load(tmp_path / written.file)
    onnx.checker.check_model(graph, full_check=True)
    types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.graph.initializer}
    assert types <= {"FLOAT16", "INT64", "BOOL"}
    assert "FLOAT16" in types
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / written.file, options, providers=["CPUExecutionProvider"])
    assert [(end.name, end.type) for end in session.get_inputs()] == [("pixel_values", "tensor(float)")]
    assert {end.type for end in session.get_outputs()} == {"tensor(float)"}
    model = load_folder(tmp_path / "model")
    output = LOADED_CLASSES[type(model).__name__].logits
    for batch in (1, 3, 8):
        pixels = pixels_of(batch, session.get_inputs()[0].shape[-1])
        with torch.no_grad():
            expected = model(torch.from_numpy(pixels))[output].numpy()
        assert 1e-6 < distance(session.run([output], {"pixel_values": pixels})[0], expected) < 0.01


def test_an_onnx_runtime_without_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    runtime = TensorRTRuntime.__new__(TensorRTRuntime)
    with pytest.raises(InputError, match="The installed ONNX Runtime cannot use TensorRT") as error:
        runtime._open("model.onnx", onnxruntime.SessionOptions(), "cuda")
    assert "onnxruntime-gpu" in error.value.remedy


def test_a_session_that_fell_back_to_the_processor_is_refused(monkeypatch):
    """ONNX Runtime only warns where TensorRT's libraries cannot be loaded."""

    class Session:
        def __init__(self, file, options, providers):
            assert [name for name, _ in providers] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
            assert {settings["device_id"] for _, settings in providers} == {"1"}

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    runtime = TensorRTRuntime.__new__(TensorRTRuntime)
    with pytest.raises(InputError, match="The installed ONNX Runtime cannot use TensorRT"):
        runtime._open("model.onnx", onnxruntime.SessionOptions(), "cuda:1")
