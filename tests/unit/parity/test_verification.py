import dataclasses
import json
import shutil

import pytest
import torch
import transformers
from models import FOLDED, KINDS, full_model, pixels_for, small_model
from safetensors.torch import load_file, save_file

from vitconv import convert, mapping
from vitconv.checkpoints.checkpoint import read_state_dict
from vitconv.convert import convert_checkpoint, revert_checkpoint, to_huggingface, verify_checkpoint
from vitconv.errors import CheckpointError, ParityError, VitconvError
from vitconv.files import sha256
from vitconv.mapping import Family
from vitconv.mapping.plan import convert_tensors
from vitconv.models.catalogue import entries
from vitconv.models.data_config import data_config, tag_config
from vitconv.models.huggingface import load_config, load_folder
from vitconv.models.images import sample_image
from vitconv.models.pixels import known_difference
from vitconv.models.timm import build_timm, from_timm
from vitconv.parity import compare, verification
from vitconv.parity.verification import check_bytes, treats_tokens_alike, verify_bytes, verify_folder


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
    parity, account = done.verification.parity, done.verification.elements
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
    monkeypatch.setattr(verification, "load_folder", lambda folder: _eager(load_folder(folder)))
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


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5, 0.5, 0.4]},
        {"std": [0.5, 0.4, 0.5]},
        {"crop_pct": 1.0},
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"interpolation": "bilinear"},
        {"input_size": [3, 256, 256]},
    ],
)
def test_a_wrong_timm_processor_is_found(folder, verify, change):
    path = folder / "timm_processor.json"
    edit_json(path, pretrained_cfg=json.loads(path.read_text())["pretrained_cfg"] | change)
    with pytest.raises(ParityError, match=r"`timm_processor.json` does not make the pixels") as caught:
        verify()
    assert caught.value.stage == "pixels"


def test_another_default_dtype_is_named(folder, verify):
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ParityError, match="does not make the pixels") as caught:
            verify()
    finally:
        torch.set_default_dtype(torch.float32)
    assert caught.value.remedy.startswith("Call torch.set_default_dtype(torch.float32) first")


def test_a_processor_that_fails_is_named(folder, verify):
    """Of preprocessor_config.json each setting is looked at first, so that none that fails gets so far."""
    change = {"pretrained_cfg": {"input_size": [2, 224, 224], "mean": [0.5] * 2, "std": [0.5] * 2}}
    edit_json(folder / "timm_processor.json", **change)
    with pytest.raises(ParityError, match=r"The image processor in `timm_processor.json` fails: \w+Error: ") as caught:
        verify()
    assert caught.value.stage == "pixels"


def test_the_timm_processor_is_recorded(folder, verify):
    found = verify()
    assert found.same_pixels_timm_processor is True
    assert found.to_dict()["same_pixels_timm_processor"] is True
    assert found.to_dict()["same_pixels"] is True
    (folder / "timm_processor.json").unlink()  # earlier versions wrote none
    assert verify().same_pixels_timm_processor is None


def test_the_timm_processor_is_proved_on_every_image(folder, small_checkpoint):
    """Also where Transformers' own processor is known to differ, and where there is none."""
    model = build_timm("vit_tiny_patch16_224", num_classes=5)
    architecture = from_timm(model)
    data = data_config(tag_config(model.pretrained_cfg), architecture)
    shifted = sample_image((600, 448 + 1))
    transparent = sample_image((500, 500)).convert("RGBA")
    transparent.putalpha(100)
    assert [known_difference(image, data) is None for image in (sample_image(), shifted, transparent)] == [
        *(True, False, False)
    ]
    pictures = [sample_image(), shifted, transparent]
    arguments = (read_state_dict(small_checkpoint), model, architecture, data, pictures)
    found = verify_folder(folder, *arguments)
    assert (found.same_pixels, found.same_pixels_timm_processor) == (False, True)


@pytest.mark.parametrize("size", [(600, 449), (500, 500), (601, 500)])
@pytest.mark.parametrize("change", [{"image_mean": [0.5, 0.5, 0.4]}, {"resample": 2}, {"rescale_factor": 1 / 254}])
def test_nothing_hides_behind_a_known_difference(folder, size, change):
    """Of a crop that begins elsewhere, or of transparency, the other values are known too."""
    model = build_timm("vit_tiny_patch16_224", num_classes=5)
    data = data_config(tag_config(model.pretrained_cfg), from_timm(model))
    image = sample_image(size)
    if size[1] == 500:
        image = image.convert("RGBA")
        image.putalpha(100)
    assert known_difference(image, data)
    _, same, (note,) = verification.pixels_for(folder, data, [image])
    assert (same, note) == (False, known_difference(image, data))
    edit_json(folder / "preprocessor_config.json", **change)
    with pytest.raises(ParityError, match="does not make the pixels"):
        verification.pixels_for(folder, data, [image])


@pytest.mark.parametrize("mean", [[0.5] * 3, [0.1] * 3])
def test_an_image_processor_that_goes_before_the_folder_s_own(folder, verify, mean):
    own = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": own | {"image_mean": mean}}))
    (folder / "timm_processor.json").unlink()
    if mean == own["image_mean"]:
        assert verify().same_pixels
        return
    with pytest.raises(VitconvError, match=r"from processor_config.json, .* \(image_mean\)"):
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


@pytest.mark.slow
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
    account = verify_bytes(written, state_dict, architecture)
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
    verify_bytes(written, model.state_dict(), architecture)  # the same table both ways hides it…
    with pytest.raises(ParityError, match=r"diverge at `blocks.0`"):  # …and the numbers show it
        compare(model, to_huggingface(model), pixels_for(model), dtypes=["float64"]).assert_match()


def test_the_folder_must_be_vitconv_s(tmp_path):
    transformers.ResNetConfig(architectures=["ResNetModel"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="was not written by vitconv"):
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


def test_values_that_are_only_marked_as_negated_are_compared_by_value():
    negated = torch._neg_view(torch.arange(4.0))
    check_bytes({"a": negated}, {"a": -torch.arange(4.0)})
    with pytest.raises(ParityError, match="1 of 1 tensors differ"):
        check_bytes({"a": negated}, {"a": torch.arange(4.0)})


# ---- every setting counts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder that is checked in no time: (the source, the folder, timm's model)."""
    root, model = tmp_path_factory.mktemp("tiny"), small_model()
    torch.save(model.state_dict(), root / "tiny.pth")
    data = {"crop_pct": 1.0}
    convert_checkpoint(root / "tiny.pth", root / "model", architecture=model, data=data, verify=False)
    return root / "tiny.pth", root / "model", model


@pytest.fixture
def edited(tiny, tmp_path):
    """A copy of the tiny folder with some settings changed in one of its files."""

    def edited(name, changes):
        shutil.copytree(tiny[1], tmp_path / "edited", dirs_exist_ok=True)
        shutil.copy(tiny[1] / name, tmp_path / "edited" / name)
        edit_json(tmp_path / "edited" / name, **changes)
        return tmp_path / "edited"

    return edited


#: Settings that keep the model from loading, have it return something else, or change what a pipeline answers.
REFUSED_BY_NAME = {
    "return_dict": False,
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "problem_type": "multi_label_classification",
    "function_to_apply": "sigmoid",
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "pruned_heads": {"0": [1]},
    "my_own_setting": 5,
    "num_hidden_layers": "2",
}


@pytest.mark.parametrize("name", REFUSED_BY_NAME)
def test_a_setting_that_no_conversion_writes_is_refused(tiny, edited, name):
    folder = edited("config.json", {name: REFUSED_BY_NAME[name]})
    with pytest.raises(VitconvError) as caught:
        verify_checkpoint(tiny[0], folder, architecture=tiny[2])
    if name != "num_hidden_layers":  # Transformers itself does not read that
        assert f"`{name}`" in caught.value.problem
        assert caught.value.stage == "config"


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_an_attention_backend_is_refused_by_name(tiny, edited, name):
    with pytest.raises(ParityError, match=f"`{name}` in config.json is 'flash_attention_2'") as caught:
        verify_checkpoint(tiny[0], edited("config.json", {name: "flash_attention_2"}), architecture=tiny[2])
    assert caught.value.stage == "config"


@pytest.mark.parametrize(
    "changes",
    [{"problem_type": None}, {"transformers_version": "4.30.0"}, {"use_cache": False}, {"_name_or_path": "a"}],
)
def test_settings_that_change_nothing_pass(tiny, edited, changes):
    assert verify_checkpoint(tiny[0], edited("config.json", changes), architecture=tiny[2]).parity.matches


def test_a_folder_that_transformers_has_saved_again_passes(tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "again")
    transformers.AutoModelForImageClassification.from_pretrained(tiny[1]).save_pretrained(tmp_path / "again")
    transformers.AutoImageProcessor.from_pretrained(tiny[1]).save_pretrained(tmp_path / "again")
    assert verify_checkpoint(tiny[0], tmp_path / "again", architecture=tiny[2]).same_pixels


@pytest.mark.parametrize("changes", [{"do_convert_rgb": False}, {"do_pad": True}, {"image_processor_type": "ViTImageProcessor"}])  # fmt: skip
def test_a_processor_s_setting_that_an_rgb_image_does_not_show(tiny, edited, changes):
    (name,) = changes
    with pytest.raises(ParityError, match=f"does not make the pixels .* of every image: `{name}` is") as caught:
        verify_checkpoint(tiny[0], edited("preprocessor_config.json", changes), architecture=tiny[2])
    assert caught.value.stage == "pixels"


@pytest.mark.parametrize("changes", [{"size": []}, {"resample": "x"}, {"image_mean": "x"}, {"crop_size": "x"}])
def test_a_processor_that_cannot_be_read_is_refused_in_words(tiny, edited, changes):
    with pytest.raises(VitconvError, match="preprocessor_config.json"):
        verify_checkpoint(tiny[0], edited("preprocessor_config.json", changes), architecture=tiny[2])


def test_a_processor_where_none_can_be(tmp_path):
    model = small_model("six channels")
    torch.save(model.state_dict(), tmp_path / "six.pth")
    folder = convert_checkpoint(tmp_path / "six.pth", tmp_path / "six", architecture=model, verify=False).destination
    assert verify_checkpoint(tmp_path / "six.pth", folder, architecture=model).same_pixels is None
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text('{"image_processor": {}}')
        with pytest.raises(
            ParityError, match=f"a `{name}`, but no image processor does what timm's .* Image files have 1 or 3 chan"
        ):
            verify_checkpoint(tmp_path / "six.pth", folder, architecture=model)
        (folder / name).unlink()


ODD = {
    "a class": ("architectures", [None, [], "two", ["ViTModel"], ["ViTForImageClassification", "ViTModel"], [[1]]]),
    "a family": ("model_type", [None, "resnet", "dinov2", "nonsense", 3]),
    "labels": ("id2label", [None, [], {}, "x", {"a": "b"}, {"0": 1}, {"0": "a", "2": "b"}, [1, 2]]),
    "indices": ("label2id", [None, [], {}, "x"]),
    "a dtype": ("dtype", [None, "float8", "nonsense", "int8", "nn", 3, []]),
    "an older dtype": ("torch_dtype", ["float8", "float16", 5]),
    "outputs": ("return_dict", [None, False, "x"]),
    "hidden states": ("output_hidden_states", [True, "x"]),
    "attentions": ("output_attentions", [True, "x", 3]),
    "a backend": ("_attn_implementation", ["flash_attention_2", "nonsense", 3, {"": "eager"}]),
    "quantisation": ("quantization_config", [{}, {"quant_method": "nonsense"}, "x", []]),
    "code": ("auto_map", [{"AutoConfig": "own.Own"}, "x"]),
    "tying": ("tie_word_embeddings", [True, "x"]),
    "layers": ("per_layer_config", [{"0": {"hidden_act": "relu"}}, {"9": {}}, "x"]),
    "a nested configuration": ("vision_config", [{}, 3, {"hidden_size": "x"}]),
    "a size": ("image_size", [None, [], "32", 0, -1, 1.5, [32], [32, 32], [32, 0], 64]),
    "a patch": ("patch_size", [0, "8", [8, 8], [[8]]]),
    "heads": ("num_attention_heads", [-1, 0, 3, 64, "2", None]),
    "blocks": ("num_hidden_layers", [0, -1, 10**6, 3, True]),
    "a width": ("hidden_size", [None, "x", 0, 65]),
    "an epsilon": ("layer_norm_eps", [None, "x", -1, 1e30]),
    "an activation": ("hidden_act", [None, 3, "mish", "nonsense", {}, "gelu_python"]),
    "a problem": ("problem_type", ["regression", "single_label_classification", "nonsense", 3]),
    "a version": ("transformers_version", [5, None]),
    "a commit": ("_commit_hash", ["x", 3]),
    "a name": ("_name_or_path", [3, None, []]),
    "Python's own names": ("to_dict", [3]),
    "a file elsewhere": ("configuration_files", ["x", []]),
    "pruned heads": ("pruned_heads", [{"0": [0]}, "x"]),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_configuration_passes_or_is_refused_in_words(tiny, edited, odd, tmp_path):
    """Nothing in a config.json makes verify, revert or predict end in another exception than ours."""
    name, values = ODD[odd]
    pixels = pixels_for(tiny[2])

    def predict(folder):
        from vitconv.inference.runtime import open_model, read_info

        read_info(folder)
        open_model(folder, "cpu")(pixels.numpy())

    for value in values:
        folder = edited("config.json", {name: value})
        for run in (
            lambda: verify_checkpoint(tiny[0], folder, architecture=tiny[2]),  # noqa: B023
            lambda: revert_checkpoint(folder, tmp_path / "back", overwrite=True),  # noqa: B023
            lambda: predict(folder),  # noqa: B023
        ):
            try:
                run()
            except VitconvError as error:
                assert error.remedy


# ---- other sources --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "what"),
    [
        ("deit_tiny_patch16_224", {"num_classes": 5}, "200 of 200 tensors differ from what the source makes of them"),
        ("vit_tiny_patch16_224", {"num_classes": 7}, "it names 5, and the weights have 7"),
        ("vit_small_patch16_224", {"num_classes": 5}, r"cls_token is \[1, 1, 384\] instead of \[1, 1, 192\]"),
        ("vit_tiny_patch16_224", {"num_classes": 5, "img_size": 96}, "tensors differ"),
    ],
)
@pytest.mark.parametrize("verified", [True, False])
def test_a_folder_made_from_other_weights(small_checkpoint, tmp_path, save, name, sizes, what, verified):
    mine = convert_checkpoint(
        small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False
    ).destination
    if verified:
        record = json.loads((mine / "parity.json").read_text())
        record["source"][0]["sha256"] = sha256(small_checkpoint)
        (mine / "parity.json").write_text(json.dumps(record))
    other = {key: value + 1 for key, value in full_model(name, **sizes).state_dict().items()}
    path = save(other, "other.pth")
    with pytest.raises(ParityError, match=what) as caught:
        verify_checkpoint(path, mine)
    same_size = path.stat().st_size == small_checkpoint.stat().st_size
    if verified:
        assert f"'{mine}' was not made from '{path}': its parity.json records 'tiny.pth' with SHA-256 " in str(
            caught.value
        )
    elif not same_size:
        assert f"'{mine}' was not made from '{path}'" in caught.value.problem
    assert "convert these to another folder" in caught.value.remedy


def test_the_same_weights_in_another_file_are_the_same_source(small_checkpoint, folder, tmp_path):
    save_file(torch.load(small_checkpoint), tmp_path / "same.safetensors")
    assert verify_checkpoint(tmp_path / "same.safetensors", folder).parity.matches


@pytest.mark.parametrize("part", ["config", "vision_config"])
@pytest.mark.parametrize(
    "setting",
    [
        {"attn_implementation": "kernels-community/flash-attn3"},
        {"_attn_implementation": "kernels-community/flash-attn3"},
        {"experts_implementation": "grouped_mm"},
        {"use_kernels": True},
        {"backbone": "org/name"},
        {"kernel_config": {"RMSNorm": "kernels-community/x"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
    ids=str,
)
def test_a_setting_that_loads_code_is_refused_before_transformers_reads_it(edited, monkeypatch, setting, part):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)
    folder = edited("config.json", setting if part == "config" else {"vision_config": setting})
    with pytest.raises(ParityError, match=f"`{next(iter(setting))}` in config.json is ") as caught:
        load_folder(folder)
    assert caught.value.stage == "config"


# ---- a folder that was edited, and its record ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small checkpoint and its folder, to be copied."""
    root = tmp_path_factory.mktemp("small")
    model = small_model()
    torch.save(model.state_dict(), root / "small.pth")
    convert_checkpoint(root / "small.pth", root / "hf", architecture=model, verify=False)
    return root / "small.pth", root / "hf", model


@pytest.fixture
def copied(small, tmp_path):
    """A copy of the folder, and a function that verifies it."""
    source, folder, model = small
    copy = shutil.copytree(folder, tmp_path / "hf")

    def verify(**options):
        return verify_checkpoint(source, copy, **{"architecture": model} | options)

    return copy, verify


RECORDS = {
    "architecture": [{}, 7, "", "x" * 10**5],
    "target": [[], 7],
    "image_size": [None, [32], [32.0, 32], [True, 32], ["32", "32"], [0, 32], [10**9, 10**9], "32"],
    "labels": ["abc", {"a": 1}, [1, 2], ["a", "a"]],
    "ema": ["false", None, 1],
    "ignore": ["mean", [1], {}],
    "headless": [1, "true", None],
    "source": [None, [{}], [{"file": "a", "bytes": "1", "sha256": None}], [{"file": "a", "bytes": 1, "sha256": "zz"}]],
    "preprocessing": [None, [], {}, {"given": [1]}],
    "schema": [0, "1", True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RECORDS.items() for value in values])
def test_a_record_of_another_form_is_named(name, value, copied):
    folder, verify = copied
    edit_json(folder / "parity.json", **{name: value})
    with pytest.raises(CheckpointError, match="parity.json' is not a record that vitconv has written"):
        verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_none"}, "records `architecture` 'vit_none', .* no architecture named 'vit_none'"),
        (
            {"architecture": "vit_base_patch16_224"},
            "records `architecture` 'vit_base_patch16_224', .* 120 tensors are missing",
        ),
        ({"target": "none"}, "records .*`target` 'none', .* no target 'none'"),
        ({"ignore": ["mean"]}, "records .*`ignore` .'mean',., .* does not state 'mean'"),
        ({"preprocessing": {"given": {"nonsense": 1}}}, "records `given` {'nonsense': 1}, .* unknown name 'nonsense'"),
    ],
)
def test_a_record_that_the_source_contradicts_is_named_with_it(change, message, copied):
    folder, verify = copied
    edit_json(folder / "parity.json", **change)
    with pytest.raises(ParityError, match=message):
        verify(**({"architecture": None} if "architecture" in change else {}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "tf_model.h5"])
def test_other_weights_beside_those_that_are_compared(name, copied):
    folder, verify = copied
    (folder / name).write_bytes(b"other")
    with pytest.raises(ParityError, match=f"weights in several forms, model.safetensors and {name}"):
        verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch_dtype": "float16"}, "`torch_dtype` in config.json is 'float16', and `dtype` is 'float32'"),
        ({"transformers_weights": "x.safetensors"}, "`transformers_weights` in config.json is 'x.safetensors'"),
        (
            {"auto_map": {"AutoModel": "own.Own"}},
            "`auto_map` in the config.json in '.*' is {'AutoModel': 'own.Own'} instead of None",
        ),
        ({"num_labels": 4}, "`num_labels` is 4, and `id2label` names 5 classes"),
        ({"hidden_size": 10**6}, "`hidden_size` in the config.json in '.*' is 1000000, and its weights have no side"),
        ({"hidden_size": 10**12}, "`hidden_size` in config.json is 1000000000000, which is not a size"),
        ({"num_hidden_layers": 5000}, "`num_hidden_layers` in the config.json in '.*' is 5000, .* are 40 tensors"),
    ],
)
def test_a_setting_that_changes_what_is_loaded_is_named(change, message, copied):
    folder, verify = copied
    edit_json(folder / "config.json", **change)
    with pytest.raises(VitconvError, match=message):
        verify() if "hidden_size" not in change and "num_hidden_layers" not in change else load_folder(folder)


def test_an_adapter_is_named(copied):
    folder, verify = copied
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has an adapter_config.json"):
        verify()


def test_a_timm_processor_is_compared_for_images_of_other_shapes_than_those_given(copied, tmp_path):
    folder, verify = copied
    sample_image((64, 64)).save(tmp_path / "square.png")
    edit_json(
        folder / "timm_processor.json",
        pretrained_cfg=json.loads((folder / "timm_processor.json").read_text())["pretrained_cfg"]
        | {"crop_mode": "squash"},
    )
    with pytest.raises(ParityError, match="`timm_processor.json` does not make the pixels"):
        verify(images=[tmp_path / "square.png"])


def test_transformers_says_nothing_beside_the_error(copied, capfd):
    folder, verify = copied
    edit_json(folder / "config.json", use_return_dict=False)
    with pytest.raises(CheckpointError, match="property 'use_return_dict'"):
        verify()
    assert capfd.readouterr().err == ""


def test_an_edited_record_decides_nothing_against_the_source(weights_that_name_classes, tmp_path):
    """Labels swapped in the folder and in its record, and a mean that the record says to ignore."""
    source, folder = weights_that_name_classes
    record = json.loads((folder / "parity.json").read_text())
    names = record["labels"][::-1]
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "parity.json").write_text(json.dumps(record | {"labels": names}))
    with pytest.raises(ParityError, match=r"parity.json in .* names a class 'e' that the checkpoint names 'a'"):
        verify_checkpoint(source, folder)
    done = convert_checkpoint(
        source, tmp_path / "given", architecture="vit_tiny_patch16_224", labels=names, verify=False
    )
    assert "The labels given name a class 'e' that the checkpoint names 'a'." in done.warnings
    (folder / "parity.json").write_text(json.dumps(record | {"ignore": ["label_names"]}))
    with pytest.raises(ParityError, match=r"what the checkpoint states of `label_names` was ignored"):
        verify_checkpoint(source, folder)


def test_what_only_the_record_states_is_named(small, tmp_path):
    source, _, model = small
    given = {"labels": list("edcba"), "data": {"crop_pct": 0.5}}
    convert_checkpoint(source, tmp_path / "hf", architecture=model, verify=False, **given)
    names, preprocessing = verify_checkpoint(source, tmp_path / "hf", architecture=model).warnings
    assert names.startswith("The class names are not proved")
    assert preprocessing.startswith("The preprocessing `crop_pct` 0.5 is only stated by the folder's own parity.json")
    assert verify_checkpoint(source, tmp_path / "hf", architecture=model, **given).warnings == ()


ARCH = "vit_tiny_patch16_224"
#: What is given to a conversion, and how `verify` begins to say that only the record states it; None where it does not.
RECORDED = {
    "nothing": ({}, None),
    "the weights' own size": ({"image_size": (224, 224)}, None),
    "another size": ({"image_size": (96, 96)}, "The image size 96x96 is only stated by the folder's own parity.json"),
    "no EMA": ({"ema": False}, "That the trained weights count, not their EMA, is only stated by"),
    "no head": ({"headless": True}, "That the model has no head is only stated by"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDED)
def test_what_decides_which_weights_count_is_named_if_only_the_record_states_it(kind, tmp_path):
    given, begins = RECORDED[kind]
    model = full_model(ARCH, num_classes=5)
    torch.save({"model": model.state_dict(), "ema": full_model(ARCH, num_classes=5).state_dict()}, tmp_path / "w.pth")
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "hf", architecture=ARCH, verify=False, **given)
    found = verify_checkpoint(tmp_path / "w.pth", tmp_path / "hf").warnings
    assert len(found) == (begins is not None)
    assert all(warning.startswith(begins) for warning in found)
    assert verify_checkpoint(tmp_path / "w.pth", tmp_path / "hf", **given).warnings == ()


def test_the_image_size_of_weights_that_leave_it_open_is_named(tmp_path):
    """As many patches as a square has, and so as a rectangle."""
    torch.save(full_model(ARCH, num_classes=5).state_dict(), tmp_path / "w.pth")
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "hf", architecture=ARCH, verify=False, image_size=(112, 448))
    (warning,) = verify_checkpoint(tmp_path / "w.pth", tmp_path / "hf").warnings
    assert warning == (
        "The image size 112x448 is only stated by the folder's own parity.json: pass --img-size 112 448 if it is right."
    )


@pytest.fixture
def weights_that_name_classes(tmp_path):
    content = {
        "state_dict": full_model("vit_tiny_patch16_224", num_classes=5).state_dict(),
        "label_names": list("abcde"),
    }
    torch.save(content, tmp_path / "named.pth")
    done = convert_checkpoint(
        tmp_path / "named.pth", tmp_path / "named", architecture="vit_tiny_patch16_224", verify=False
    )
    return tmp_path / "named.pth", done.destination
