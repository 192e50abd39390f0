import pytest
import timm
import torch
from models import small_model
from torch import nn

from vitconv.convert import inspect
from vitconv.errors import CheckpointError

ARCH = "vit_tiny_patch16_224"


def weights():
    return small_model().state_dict()


def with_lora():
    tensors = weights()
    tensors["blocks.0.attn.qkv.lora_A.weight"] = torch.ones(4, 64)
    return tensors


def peft_layout():
    return {f"base_model.model.{name}": tensor for name, tensor in with_lora().items()}


def beside():
    return {"state_dict": weights(), "adapter": {"blocks.0.attn.qkv.lora_A": torch.ones(4, 64)}}


def bitsandbytes():
    return weights() | {"blocks.0.mlp.fc1.weight.absmax": torch.ones(4)}


def huggingface():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2)
    ).state_dict()


def torchvision():
    import torchvision

    return torchvision.models.VisionTransformer(32, 16, 1, 2, 24, 48).state_dict()


def mae():
    return weights() | {"mask_token": torch.ones(1, 1, 32), "decoder_embed.weight": torch.ones(32, 64)}


CASES = {
    "LoRA": (
        with_lora,
        "This is a LoRA or PEFT adapter: it has `blocks.0.attn.qkv.lora_A.weight`",
        "merge_and_unload",
    ),
    "PEFT": (peft_layout, "This is a LoRA or PEFT adapter", "Merge the adapter"),
    "an adapter beside the model": (beside, "This is a LoRA or PEFT adapter", "Merge the adapter"),
    "bitsandbytes": (
        bitsandbytes,
        "This is a quantised checkpoint: it has `blocks.0.mlp.fc1.weight.absmax`",
        "before",
    ),
    "transformers": (huggingface, "This is already a Transformers model", "from_pretrained"),
    "torchvision": (torchvision, "This is torchvision's VisionTransformer", "names are not timm's"),
    "MAE": (mae, "This is a masked autoencoder with its decoder", "decoder_"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_checkpoints_are_refused_by_name(case, save):
    make, problem, remedy = CASES[case]
    with pytest.raises(CheckpointError) as caught:
        inspect(save(make()), ARCH)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet18", "a ResNet"),
        ("swin_tiny_patch4_window7_224", "a Swin Transformer or a ViT with relative positions"),
        ("convnext_atto", "a ConvNeXt"),
        ("mobilenetv3_small_050", "an EfficientNet or MobileNet"),
        ("mixer_s32_224", "an MLP-Mixer"),
    ],
)
def test_other_families_of_timm_s_are_refused_by_name(name, family, save):
    with torch.device("meta"):
        tensors = timm.create_model(name).state_dict()
    small = {name: torch.ones(1) for name in tensors}
    with pytest.raises(CheckpointError, match=f"This is {family}: it has"):
        inspect(save(small), ARCH)


def test_an_adapter_s_folder_is_refused_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a PEFT adapter, not a model"):
        inspect(tmp_path, ARCH)


def test_a_pickled_module_says_what_to_save(save):
    with pytest.raises(CheckpointError, match="holds Python objects") as caught:
        inspect(save(nn.Linear(2, 2)), ARCH)
    assert "torch.save(model.state_dict(), path)" in caught.value.remedy


def test_torchscript_is_refused_by_name(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a TorchScript model"):
        inspect(tmp_path / "model.pt", ARCH)


def test_a_numpy_archive_is_refused_by_name(tmp_path):
    import numpy

    numpy.savez(tmp_path / "w.npz", cls=numpy.ones(3))
    with pytest.raises(CheckpointError, match="is a NumPy archive"):
        inspect(tmp_path / "w.npz", ARCH)
