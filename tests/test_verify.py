import dataclasses
import json

import pytest
import torch
import transformers
from models import FOLDED, KINDS, full_model, pixels_for, small_model
from safetensors.torch import load_file, save_file

from vitconv import convert, mapping
from vitconv import verify as verify_module
from vitconv.catalogue import entries
from vitconv.checkpoint import read_state_dict
from vitconv.convert import convert_checkpoint, to_huggingface, verify_checkpoint
from vitconv.errors import CheckpointError, ParityError
from vitconv.huggingface import load_config, load_folder
from vitconv.mapping import Family
from vitconv.parity import compare
from vitconv.plan import convert_tensors
from vitconv.preprocess import data_config, sample_image, tag_config
from vitconv.timm_models import build_timm, from_timm
from vitconv.verify import check_bytes, check_source, treats_tokens_alike, verify_folder


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
            data_config(tag_config(model.pretrained_cfg), architecture),
            [sample_image()],
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
    with pytest.raises(ParityError, match=f"1 of 200 tensors differ from what the source makes of them: {name}"):
        verify()


def test_one_ulp_is_seen(folder, verify):
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    weight = tensors["classifier.weight"]
    weight[2, 17] = torch.nextafter(weight[2, 17], torch.tensor(9.0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="classifier.weight"):
        verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_eps": 1e-12}, "`layer_norm_eps` in config.json is 1e-12 instead of 1e-06"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "`hidden_act` in config.json"),
        ({"num_attention_heads": 6}, "`num_attention_heads` in config.json is 6 instead of 3"),
        ({"hidden_dropout_prob": 0.1}, "`hidden_dropout_prob` in config.json"),
        ({"id2label": {"0": "b", "1": "a"}}, "The labels in config.json"),
    ],
)
def test_a_wrong_config_is_named(folder, verify, change, message):
    edit_json(folder / "config.json", **change)
    with pytest.raises(ParityError, match=message) as caught:
        verify()
    assert caught.value.stage in ("config", "labels")


def test_a_fact_read_wrongly_is_found_by_the_numbers(folder, verify, monkeypatch):
    """If reading timm's epsilon were wrong, config.json would be wrong in the same way: only running both shows it."""
    right = mapping.config
    monkeypatch.setattr(mapping, "config", lambda *a: right(*a) | {"layer_norm_eps": 1e-12})
    edit_json(folder / "config.json", layer_norm_eps=1e-12)
    with pytest.raises(ParityError, match="diverge at `blocks.0` in float64"):
        verify()


#: Facts read wrongly, from gross to tiny: what `config.json` then says.
MISREAD = {
    "epsilon 1e-12": {"layer_norm_eps": 1e-12},
    "epsilon 2e-6": {"layer_norm_eps": 2e-6},
    "epsilon larger by a thousandth": {"layer_norm_eps": 1.001e-6},
    "epsilon larger by a hundred-thousandth": {"layer_norm_eps": 1.00001e-6},
    "tanh GELU": {"hidden_act": "gelu_pytorch_tanh"},
    "GELU by a shorter formula": {"hidden_act": "gelu_fast"},
    "half as many heads": {"num_attention_heads": 1},
}


@pytest.mark.parametrize("tokens", [None, 6])
@pytest.mark.parametrize("mistake", MISREAD)
def test_a_conversion_finds_what_is_read_wrongly(mistake, tokens, tmp_path, save, monkeypatch):
    """Also with few tokens in float64."""
    model = small_model()
    right = mapping.config
    monkeypatch.setattr(mapping, "config", lambda *a: right(*a) | MISREAD[mistake])
    monkeypatch.setattr(convert, "FLOAT64_TOKENS", tokens)
    with pytest.raises(ParityError, match="diverge at `blocks.0` in float64"):
        convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("tokens", [None, 6])
def test_a_conversion_finds_another_attention_scale(tokens, tmp_path, save, monkeypatch):
    """Nothing in a folder says it: here Transformers itself has it wrong, by a millionth."""
    from transformers.models.vit import modeling_vit

    right = modeling_vit.ViTAttention.__init__

    def wrong(self, *args, **kwargs):
        right(self, *args, **kwargs)
        self.scaling *= 1 + 1e-6

    model = small_model()
    monkeypatch.setattr(modeling_vit.ViTAttention, "__init__", wrong)
    monkeypatch.setattr(convert, "FLOAT64_TOKENS", tokens)
    with pytest.raises(ParityError, match="diverge at `blocks.0` in float64"):
        convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model)


@pytest.mark.parametrize("kind", KINDS)
def test_few_tokens_are_enough_only_where_float32_sees_no_difference(kind, tmp_path, save, monkeypatch):
    monkeypatch.setattr(convert, "FLOAT64_TOKENS", 6)
    model = small_model(kind)
    done = convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model)
    parity, account = done.verification.parity, done.verification.account
    rewritten = bool(account.folded or account.made)
    assert rewritten == (kind in FOLDED | MADE)
    few = 6 if not rewritten and parity["float32"].same_bits else None
    assert (parity["float64"].tokens, parity["float32"].tokens) == (few, None)
    record = json.loads((tmp_path / "model" / "parity.json").read_text())["parity"]
    assert (record["float64"]["tokens"], record["float32"]["tokens"]) == (few, None)
    assert (
        verify_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model).parity["float64"].tokens
        is None
    )


#: The kinds in which tensors are made of nothing or of others, besides those that are folded.
MADE = {"no class position", "no head bias", "headless", "headless tokens", "norm after pool"}


def test_all_tokens_where_float32_sees_a_difference(tmp_path, save, monkeypatch):
    monkeypatch.setattr(verify_module, "load_folder", lambda folder: _eager(load_folder(folder)))
    monkeypatch.setattr(convert, "FLOAT64_TOKENS", 6)
    model = small_model()
    parity = convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model).verification.parity
    assert not parity["float32"].same_bits
    assert parity["float64"].tokens is None


def _eager(model):
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "samvit_base_patch16"])
def test_blocks_that_know_where_a_token_is_take_all(name):
    assert not treats_tokens_alike(entries()[name].architecture)


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
def test_other_dtypes_are_proved_too(name, dtype, tmp_path, save):
    path = save(full_model(name, num_classes=3).state_dict())
    done = convert_checkpoint(path, tmp_path / "model", architecture=name, dtype=dtype)
    natural = "float32" if dtype == "float64" else dtype
    assert [comparison.dtype for comparison in done.verification.parity.comparisons] == ["float64", natural]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_every_element_is_accounted_for(kind):
    model = small_model(kind)
    state_dict, architecture = model.state_dict(), from_timm(model)
    written = convert_tensors(state_dict, architecture, "hub")
    account = check_source(state_dict, architecture, written)
    assert account.source == sum(tensor.numel() for tensor in state_dict.values())
    assert account.target == sum(tensor.numel() for tensor in written.values())
    assert account.moved + account.folded == account.source
    assert (account.folded > 0) == (kind in FOLDED | {"no class position", "norm after pool"})


def test_the_way_back_finds_what_the_way_there_would_repeat(monkeypatch):
    """A table that swaps queries and keys swaps them in what is expected, too: joined back, they are not the source."""
    model = small_model()
    architecture = from_timm(model)
    right = Family.rows

    def swapped(family, known, shapes):
        for row in right(family, known, shapes):
            swap = {(0, 3): (1, 3), (1, 3): (0, 3)}
            yield dataclasses.replace(row, part=swap.get(row.part, row.part))

    monkeypatch.setattr(Family, "rows", swapped)
    written = convert_tensors(model.state_dict(), architecture, "hub")
    check_source(model.state_dict(), architecture, written)  # the same table both ways hides it…
    with pytest.raises(ParityError, match=r"diverge at `blocks.0`"):  # …and the numbers show it
        compare(model, to_huggingface(model), pixels_for(model), dtypes=["float64"]).assert_match()


def test_the_folder_must_be_vitconv_s(tmp_path):
    transformers.ResNetConfig(architectures=["ResNetModel"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder that vitconv writes"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no config.json that Transformers can read"):
        load_config(tmp_path)


def test_mixed_dtypes_are_kept_and_loaded_into_the_widest(tmp_path, save):
    state_dict = full_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in state_dict.items()}
    done = convert_checkpoint(save(mixed), tmp_path / "model", architecture="vit_tiny_patch16_224")
    assert done.verification.parity.matches
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32, torch.bfloat16}
    assert transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").dtype == torch.float32
