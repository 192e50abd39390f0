"""The recipes, one a file; importing them imports nothing that they need."""

from vitconv.optimization.recipes import (
    bfloat16,
    compiled,
    compiled_cuda,
    float16,
    onnx,
    onnx_int8,
    openvino,
    openvino_bf16,
    openvino_int8,
    tensorrt_fp16,
    torchao_float8,
    torchscript,
)
from vitconv.optimization.recipes.recipe import Recipe

_ON_CPU = (bfloat16, torchscript, compiled, onnx, onnx_int8, openvino, openvino_bf16, openvino_int8)
_ON_GPU = (float16, compiled_cuda, torchao_float8, tensorrt_fp16)
#: By name, the plainest first; those for a GPU last.
RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in (*_ON_CPU, *_ON_GPU)}
