import json

import pytest
import torch
from models import full_model
from safetensors.torch import load_file, save_file

from vitconv.architecture import build_timm, from_timm
from vitconv.checkpoint import read_state_dict
from vitconv.convert import convert_checkpoint
from vitconv.errors import ParityError
from vitconv.preprocess import data_config, sample_image
from vitconv.verify import check_bytes, verify_folder


@pytest.fixture
def folder(small_checkpoint, tmp_path):
    return convert_checkpoint(
        small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False
    ).destination


@pytest.fixture
def verify(small_checkpoint, folder):
    def verify():
        model = build_timm("vit_tiny_patch16_224", num_classes=5)
        architecture = from_timm(model)
        return verify_folder(
            folder,
            read_state_dict(small_checkpoint),
            model,
            architecture,
            data_config(model, architecture),
            sample_image(),
        )

    return verify


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_right_folder_passes(verify):
    found = verify()
    assert found.parity.matches
    assert found.same_pixels
    assert [comparison.dtype for comparison in found.parity.comparisons] == ["float64", "float32"]


def test_a_key_bias_that_logits_cannot_see_is_seen(folder, verify):
    """Softmax cancels what is added to every key: only the bookkeeping finds it."""
    name = "vit.encoder.layer.3.attention.attention.key.bias"
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors[name] += 5 * torch.randn_like(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match=f"1 tensors are not what the source makes of them: {name}"):
        verify()


def test_one_ulp_is_seen(folder, verify):
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    weight = tensors["classifier.weight"]
    weight[2, 17] = torch.nextafter(weight[2, 17], torch.tensor(9.0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="classifier.weight"):
        verify()


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"layer_norm_eps": 1e-12}, "blocks.0"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "blocks.0"),
        ({"num_attention_heads": 6}, "blocks.0"),
    ],
)
def test_a_wrong_config_is_found_by_its_stage(folder, verify, change, stage):
    edit_json(folder / "config.json", **change)
    with pytest.raises(ParityError, match=f"diverge at `{stage}` in float64"):
        verify()


@pytest.mark.parametrize("change", [{"resample": 2}, {"image_mean": [0.5, 0.5, 0.4]}, {"do_center_crop": False, "size": {"height": 224, "width": 224}}])  # fmt: skip
def test_a_wrong_processor_is_found(folder, verify, change):
    edit_json(folder / "preprocessor_config.json", **change)
    with pytest.raises(ParityError, match=r"`preprocessor_config.json` does not make the pixels"):
        verify()


def test_a_tensor_that_transformers_would_invent_is_found(folder, verify):
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="classifier.bias"):
        verify()


def test_check_bytes_knows_nan_and_minus_zero():
    nan = torch.tensor([float("nan"), 0.0])
    check_bytes({"a": nan}, {"a": nan.clone()})
    with pytest.raises(ParityError):
        check_bytes({"a": nan}, {"a": torch.tensor([float("nan"), -0.0])})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_other_dtypes_are_proved_by_bytes_and_float64(name, dtype, tmp_path, save):
    path = save(full_model(name, num_classes=3).state_dict())
    done = convert_checkpoint(path, tmp_path / "model", architecture=name, dtype=dtype)
    assert done.verification.parity.matches
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype
