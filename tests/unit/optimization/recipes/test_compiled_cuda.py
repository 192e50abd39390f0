from types import SimpleNamespace

import pytest
import torch

from vitconv.errors import InputError
from vitconv.inference import aotinductor
from vitconv.inference.optimized import Artefact
from vitconv.optimization import optimize

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/system/test_gpu_recipes.py runs it")


def test_without_a_gpu_nothing_is_written(trees, pictures, tmp_path):
    with pytest.raises(InputError, match="compiled-cuda needs a CUDA GPU to be made and judged, and there is none"):
        optimize(trees, tmp_path / "new", recipe="compiled-cuda", images=pictures)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("settings", [{"capability": "9.0"}, {}])
def test_code_for_another_gpu_is_not_loaded(settings, monkeypatch, tmp_path):
    artefact = Artefact("compiled-cuda", "aotinductor", "model.pt2", settings=settings, device="cuda")
    monkeypatch.setattr(aotinductor, "read_artefact", lambda folder: artefact)
    monkeypatch.setattr(aotinductor, "check_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match="was compiled for GPUs of compute capability .*, and 'cuda:1' has 8.6"):
        aotinductor.AOTInductorRuntime(SimpleNamespace(folder=tmp_path), "cuda:1")
