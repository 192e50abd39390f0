"""What Triton gives to the Python in a store, for tests without a server."""

import sys
import types
from dataclasses import dataclass, field

import pytest
import torch


@dataclass
class Tensor:
    own_name: str
    values: torch.Tensor

    @classmethod
    def from_dlpack(cls, name, values):
        return cls(name, torch.from_dlpack(values).clone())

    def to_dlpack(self):
        return torch.utils.dlpack.to_dlpack(self.values)


@dataclass
class TritonError:
    message: str
    code: int
    INTERNAL, INVALID_ARG = 1, 3


@dataclass
class InferenceResponse:
    tensors: list = field(default_factory=list)
    error: TritonError | None = None

    def __getitem__(self, name):
        (found,) = (one.values.numpy() for one in self.tensors if one.own_name == name)
        return found


@pytest.fixture
def triton(monkeypatch):
    """The module that Triton puts beside a store's Python; a request is a dictionary of arrays."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, torch.from_numpy(request[name]))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("arrays", "model", "preprocess"):
        monkeypatch.delitem(sys.modules, f"vitconv.serving.triton.{name}", raising=False)
    return module


@pytest.fixture
def arguments():
    """What Triton tells a model of itself."""

    def make(store, name, **more):
        return {
            "model_repository": str(store / name),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            **more,
        }

    return make
