import pytest
import torch
from models import small_model
from recipes import distance, pixels_of

from vitconv.convert import to_huggingface
from vitconv.errors import InputError
from vitconv.optimization import optimize
from vitconv.optimization.recipes.logits import Logits, compile_ahead
from vitconv.optimization.recipes.torchao_float8 import quantize


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/system/test_gpu_recipes.py runs it")
def test_without_a_gpu_nothing_is_written(trees, pictures, tmp_path):
    with pytest.raises(InputError, match="torchao-float8 needs a CUDA GPU to be made and judged, and there is none"):
        optimize(trees, tmp_path / "new", recipe="torchao-float8", images=pictures)
    assert not (tmp_path / "new").exists()


def test_the_blocks_are_quantised_and_compiled(tmp_path, monkeypatch):
    """On a processor, where torch multiplies in float8, too, and torchao would refuse."""
    pytest.importorskip("torchao")
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
    model = to_huggingface(small_model(), verify=False)
    pixels = torch.from_numpy(pixels_of(3))
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
    quantize(model.to(torch.bfloat16))
    linear = {name: type(m.weight).__name__ for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear.pop("classifier") == "Parameter"
    assert set(linear.values()) == {"Float8Tensor"}
    with torch.no_grad():
        assert distance(Logits(model)(pixels).numpy(), expected) < 0.2
    compile_ahead(model, tmp_path / "model.pt2")
    compiled = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    assert distance(compiled(pixel_values=pixels).numpy(), expected) < 0.2
