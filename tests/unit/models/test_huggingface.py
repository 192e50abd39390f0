import json
import shutil

import pytest
import timm
import torch
from models import perturbed, reduced, wrapped_arguments
from safetensors.torch import load_file

from vitconv.convert import convert_checkpoint, revert_checkpoint, to_huggingface, verify_checkpoint
from vitconv.errors import CheckpointError, ParityError, WeightsError
from vitconv.models import huggingface
from vitconv.models.huggingface import installed_dialect, load_folder, load_for_timm


def test_the_installed_dialect_is_known():
    assert installed_dialect() in ("transformers5", "hub")


def test_what_transformers_only_warns_of_is_refused(small_checkpoint, tmp_path):
    done = convert_checkpoint(small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False)
    config = json.loads((done.destination / "config.json").read_text())
    (done.destination / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 13}))
    with pytest.raises(ParityError, match=r"Transformers reports missing keys in the folder: .*layers?\.12"):
        load_folder(done.destination)


@pytest.mark.parametrize("load", [load_folder, lambda place: load_for_timm(place, pooler=True)[0]])
def test_what_is_written_into_the_file_later_does_not_reach_the_model(load, folder, tmp_path):
    """Of a mapped one that is cut short, as saving begins, the next look ends the process."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    model = load(mine)
    before = {name: tensor.clone() for name, tensor in load(folder).state_dict().items()}
    weights = mine / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("load", [load_folder, lambda place: load_for_timm(place, pooler=True)[0]])
def test_what_is_written_into_the_file_before_the_model_is_checked_does_not_reach_it(
    load, folder, tmp_path, monkeypatch
):
    """Of a mapped one that is cut short then, a look ends the process."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    before, check = load(folder).state_dict(), huggingface._check_once

    def overwrite(*arguments):
        weights = mine / "model.safetensors"
        weights.write_bytes(bytes(weights.stat().st_size))
        check(*arguments)

    monkeypatch.setattr(huggingface, "_check_once", overwrite)
    monkeypatch.setattr(huggingface, "_check_stored_dtype", lambda *arguments: None)
    after = load(mine).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_convolution_that_is_stored_channels_last_is_loaded_in_the_usual_order(folder, tmp_path):
    """timm writes no other order, and a model sums otherwise in it."""
    mine = shutil.copytree(folder, tmp_path / "mine")
    weights = load_file(mine / "model.safetensors")
    (mine / "model.safetensors").unlink()
    (kernel,) = (name for name, tensor in weights.items() if tensor.ndim == 4)
    weights[kernel] = weights[kernel].to(memory_format=torch.channels_last)
    assert not weights[kernel].is_contiguous()
    torch.save(weights, mine / "pytorch_model.bin")
    assert all(tensor.is_contiguous() for tensor in load_folder(mine).state_dict().values())
    revert_checkpoint(mine, tmp_path / "timm")
    revert_checkpoint(folder, tmp_path / "usual")
    assert (tmp_path / "timm" / "model.safetensors").read_bytes() == (
        tmp_path / "usual" / "model.safetensors"
    ).read_bytes()


def test_the_constants_of_every_block_are_those_that_transformers_makes():
    """Where the model was built without weights: rotary frequencies, and the places of the patches."""
    model = to_huggingface(reduced("vit_pe_lang_gigantic_patch14_448").float(), verify=False)
    made, fresh = dict(model.named_buffers()), dict(type(model)(model.config).named_buffers())
    assert made.keys() == fresh.keys() and "layers.1.position_ids" in made
    assert all(torch.equal(made[name], fresh[name]) for name in made)


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float16"), ("float64", "float32")])
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("vit_tiny_patch16_224", None),
        ("vit_small_patch16_dinov3", "head_code"),
        ("eva02_tiny_patch14_224", "timm_wrapper"),
    ],
)
def test_weights_that_transformers_would_round_are_refused(name, target, stored, dtype, tmp_path):
    """By predictions, which load it alone, and by the proof."""
    sizes = wrapped_arguments(name) | {"img_size": 56 if "14" in name else 64}
    model = perturbed(timm.create_model(name, num_classes=3, **sizes))
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    source = {"source": tmp_path / "timm.pth", "architecture": model}
    done = convert_checkpoint(**source, destination=tmp_path / "hf", target=target, dtype=stored, verify=False)
    config = json.loads((done.destination / "config.json").read_text())
    (done.destination / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    for load in (load_folder, lambda folder: verify_checkpoint(**source, folder=folder)):
        with pytest.raises(WeightsError, match=f"is stored as {stored}, and Transformers rounds it to {dtype}"):
            load(done.destination)


@pytest.fixture(scope="module")
def with_head(tmp_path_factory):
    """A folder with timm's head and the code for it."""
    root = tmp_path_factory.mktemp("head")
    model = perturbed(reduced("vit_base_patch16_siglip_gap_224", num_classes=3).float())
    torch.save(model.state_dict(), root / "timm.pth")
    target = {"target": "head_code", "verify": False}
    return convert_checkpoint(root / "timm.pth", root / "hf", architecture=model, **target).destination


@pytest.fixture
def edited(with_head, tmp_path):
    """Write a copy of that folder with other settings in one of its files."""

    def edit(file, **settings):
        folder = shutil.copytree(with_head, tmp_path / "hf")
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(content | settings))
        return folder

    return edit


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Foo"}}),
        ("timm_processor.json", {"auto_map": {"AutoImageProcessor": "evil.Foo"}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.Foo"}}}),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "evil.Foo"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Foo", None]}}),
        ("generation_config.json", {"custom_pipelines": {"image-classification": {"impl": "evil.Foo"}}}),
    ],
)
def test_no_file_of_a_folder_may_name_code(file, settings, edited, tmp_path):
    """vitconv runs none of it, but would vouch for what others run who trust the folder."""
    folder = edited(file, **settings)
    for load in (load_folder, lambda folder: revert_checkpoint(folder, tmp_path / "back")):
        with pytest.raises(CheckpointError, match=f"`(auto_map|custom_pipelines)` in '.*{file}' names code") as caught:
            load(folder)
        assert "Do not load this folder with trust_remote_code=True" in caught.value.remedy
    assert not (tmp_path / "back").exists()


def test_a_part_of_a_configuration_may_not_name_code_either(edited):
    with pytest.raises(ParityError, match="`auto_map` in config.json is"):
        load_folder(edited("config.json", vision_config={"auto_map": {"AutoModel": "evil.Foo"}}))


@pytest.mark.parametrize("text", ['{"a": ' * 10**5 + '{"auto_map": {"AutoTokenizer": "evil.Foo"}}', "[" * 10**5])
def test_what_is_nested_too_deeply_to_be_checked_is_refused(text, edited):
    folder = edited("config.json")
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer_config.json' is nested too deeply"):
        load_folder(folder)


@pytest.mark.parametrize("text", ["", "no JSON", "[1, 2]", '{"optimization": {"auto_map": null}}'])
def test_a_file_that_names_no_code_is_left_alone(text, edited):
    folder = edited("config.json")
    (folder / "optimization.json").write_text(text)
    load_folder(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_features", 10**12),
        ("num_features", "wide"),
        ("num_features", -1),
        ("num_features", None),
        ("pooling", "max"),
        ("pooling", ["mean"]),
        ("pooling", None),
        ("first_patch", -1),
        ("first_patch", "1"),
        ("first_patch", None),
        ("norm_eps", -1),
        ("norm_eps", float("nan")),
        ("norm_eps", "small"),
    ],
)
def test_a_head_that_the_code_does_not_understand_is_refused(setting, value, with_head, edited):
    head = json.loads((with_head / "config.json").read_text())["timm_head"]
    with pytest.raises(ParityError, match=f"`(timm_head.)?{setting}` in config.json is") as caught:
        load_folder(edited("config.json", timm_head=head | {setting: value}))
    assert "Correct this setting" in caught.value.remedy


@pytest.mark.parametrize(("setting", "value"), [("norm_eps", None), ("intermediate_size", None)])
def test_attention_pooling_needs_its_norms_and_its_mlp(setting, value, with_head, edited):
    head = json.loads((with_head / "config.json").read_text())["timm_head"]
    whole = head | {"pooling": "attention", "norm_eps": 1e-6, "intermediate_size": 64}
    with pytest.raises(ParityError, match=f"`timm_head.{setting}` in config.json is None"):
        load_folder(edited("config.json", timm_head=whole | {setting: value}))


@pytest.mark.parametrize("head", [None, [1], "mean"])
def test_a_folder_with_code_says_what_the_head_is(head, edited):
    with pytest.raises(ParityError, match="`timm_head` in config.json is"):
        load_folder(edited("config.json", timm_head=head))


def test_a_head_is_no_wider_than_its_weights(with_head, edited, tmp_path):
    head = json.loads((with_head / "config.json").read_text())["timm_head"]
    folder = edited("config.json", timm_head=head | {"num_features": 10**6})
    for load in (load_folder, lambda folder: revert_checkpoint(folder, tmp_path / "back")):
        with pytest.raises(
            CheckpointError, match="`num_features` in the config.json in '.*' is 1000000, and its weig"
        ):
            load(folder)


@pytest.mark.parametrize("part", [{}, None, {"image_size": 7}], ids=str)
def test_a_family_without_a_vision_configuration_has_none(part, edited):
    """It would be read in the place of the model's own."""
    with pytest.raises(ParityError, match="`vision_config` in config.json is "):
        load_folder(edited("config.json", vision_config=part))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (10**5 + 1, "is 100001, which is not a size"),
        (10**5, "is 100000, and its weights have no side larger than"),
        (500, "500, the model has 961 positions, and its weights have no side larger than"),
    ],
)
def test_radio_has_no_more_positions_than_its_weights(size, message, tmp_path):
    """Transformers makes room for them before it reads the weights."""
    model = perturbed(reduced("vit_base_patch16_radio_v3", num_classes=3).float())
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    given = {"architecture": model, "target": "head_code", "verify": False}
    folder = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", **given).destination
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"max_img_size": size}))
    for load in (load_folder, lambda folder: revert_checkpoint(folder, tmp_path / "back")):
        with pytest.raises((CheckpointError, ParityError), match=f"`max_img_size` in (the )?config.json.* {message}"):
            load(folder)
