import json
import shutil

import pytest
import timm
import torch
import transformers
from conftest import CLASSES
from models import WRAPPED, perturbed, wrapped_arguments
from safetensors.torch import load_file, save_file

from vitconv.convert import convert_checkpoint, load_timm, verify_checkpoint
from vitconv.errors import InputError, ParityError, VitconvError
from vitconv.mapping.wrapper import WARNING
from vitconv.models.catalogue import entries
from vitconv.models.images import sample_image
from vitconv.parity import comparison


def save_small(folder, name, **classes):
    arguments = wrapped_arguments(name)
    model = perturbed(timm.create_model(name, **arguments, **classes))
    torch.save({"state_dict": model.state_dict(), "arch": name, "model_args": arguments}, folder / "weights.pth")
    return model, tuple(arguments["img_size"]) if "img_size" in arguments else None


def shared_out():
    """Every architecture with each head: `make test-all` takes a ninth of them, `make test-full` the others."""
    for place, name in enumerate(entries()):
        for turn, count in enumerate((7, None, 0)):
            left = name not in WRAPPED and (4 * place + turn) % 9
            yield pytest.param(name, count, marks=[pytest.mark.full] if left else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "count"), list(shared_out()))
def test_every_vision_transformer_of_timm_s_is_taken_as_it_is(name, count, tmp_path):
    """By its name; as its users load it, Transformers returns what timm returns, bit for bit.

    With a head of one's own, as timm lists it, and without a head.
    """
    model, image_size = save_small(tmp_path, name, **({} if count is None else {"num_classes": count}))
    assert bool(model.num_classes) == (entries()[name].classifier if count is None else count > 0)
    done = convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", target="timm_wrapper", image_size=image_size)
    assert all(one.same_bits for one in done.verification.parity.comparisons)
    assert WARNING in done.warnings
    auto = transformers.AutoModelForImageClassification if model.num_classes else transformers.AutoModel
    loaded, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(sample_image(), return_tensors="pt")
    with torch.no_grad():
        output = loaded.eval()(**pixels)
        expected = model(pixels["pixel_values"])
    assert torch.equal(output.logits if model.num_classes else output.pooler_output, expected)


def test_the_folder_says_what_it_is(wrapped):
    source, folder = wrapped
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "parity.json",
    ]
    card, record = (folder / "README.md").read_text(), json.loads((folder / "parity.json").read_text())
    assert card.count(WARNING) == 1
    assert "AutoImageProcessor.from_pretrained(folder)  # timm's own transform" in card
    assert "Compared were config.json; every parameter and buffer" in card
    assert record["target"] == "timm_wrapper"
    assert record["compared"].startswith("config.json; every parameter and buffer of timm's model")
    assert {dtype: [stage["name"] for stage in one["stages"]] for dtype, one in record["parity"].items()} == {
        "float64": ["logits"],
        "float32": ["logits"],
    }
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: index for index, name in enumerate(CLASSES)}


def test_the_code_of_the_card_runs(wrapped, tmp_path, monkeypatch):
    card = (wrapped[1] / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(wrapped[1]))
    sample_image().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (1, 5)


def test_a_folder_is_verified_later(wrapped):
    found = verify_checkpoint(*wrapped, labels=CLASSES)
    assert found.same_pixels
    assert all(one.same_bits for one in found.parity.comparisons)
    assert not found.warnings


def test_a_folder_without_a_record_is_verified_too(wrapped, tmp_path):
    shutil.copytree(wrapped[1], tmp_path / "folder")
    (tmp_path / "folder" / "parity.json").unlink()
    verify_checkpoint(wrapped[0], tmp_path / "folder", labels=CLASSES)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_weights_are_compared_with_rounded_ones(wrapped, tmp_path, dtype):
    done = convert_checkpoint(wrapped[0], tmp_path / "out", target="timm_wrapper", dtype=dtype)
    assert done.verification.elements.cast_to == dtype
    assert {one.dtype: one.same_bits for one in done.verification.parity.comparisons} == {
        "float64": True,
        dtype: True,
        "float32": True,
    }


def test_without_verification_nothing_is_run(wrapped, tmp_path):
    done = convert_checkpoint(wrapped[0], tmp_path / "out", target="timm_wrapper", verify=False, labels=CLASSES)
    assert done.verification is None
    assert (tmp_path / "out" / "config.json").read_text() == (wrapped[1] / "config.json").read_text()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (wrapped[1] / "model.safetensors").read_bytes()


def edit_config(folder, **change):
    content = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        if isinstance(value, dict):
            content.setdefault(name, {}).update(value)
        else:
            content[name] = value
    (folder / "config.json").write_text(json.dumps(content))


def edit_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["blocks.0.attn.proj.bias"][3] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["blocks.0.attn.proj.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change, message",
    [
        (edit_weights, "1 of .* tensors differ from what the source makes of them: blocks.0.attn.proj.bias"),
        (drop_weights, "tensors differ|The model in the config.json"),
        (
            lambda folder: edit_config(folder, architecture="eva02_small_patch14_224"),
            "`architecture` in config.json is",
        ),
        (lambda folder: edit_config(folder, model_args={"act_layer": "relu"}), "`model_args.act_layer`"),
        (
            lambda folder: edit_config(folder, model_args={"num_heads": 2}),
            "`model_args.num_heads` in config.json is 2",
        ),
        (lambda folder: edit_config(folder, pretrained_cfg={"mean": [0.5, 0.5, 0.5]}), "`pretrained_cfg.mean`"),
        (lambda folder: edit_config(folder, pretrained_cfg={"crop_pct": 1.0}), "`pretrained_cfg.crop_pct`"),
        (
            lambda folder: edit_config(folder, label_names=[*CLASSES[1:], CLASSES[0]]),
            "class 0 is 'beech' instead of 'ash'",
        ),
        (lambda folder: edit_config(folder, do_pooling=False), "`do_pooling` in config.json is False"),
        (lambda folder: edit_config(folder, problem_type="regression"), "`problem_type`"),
        (lambda folder: edit_config(folder, auto_map={"AutoModel": "evil.Model"}), "`auto_map`"),
        (lambda folder: edit_config(folder, architectures=["TimmWrapperModel"]), "TimmWrapperModel|architectures"),
    ],
)
def test_a_folder_that_was_changed_is_refused(wrapped, tmp_path, change, message):
    shutil.copytree(wrapped[1], tmp_path / "folder")
    change(tmp_path / "folder")
    with pytest.raises(VitconvError, match=message):
        verify_checkpoint(wrapped[0], tmp_path / "folder", labels=CLASSES)


def test_another_image_processor_is_refused(wrapped, folder, tmp_path):
    shutil.copytree(wrapped[1], tmp_path / "folder")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "folder")
    with pytest.raises(InputError, match="takes the image processor in .* from preprocessor_config.json"):
        verify_checkpoint(wrapped[0], tmp_path / "folder", labels=CLASSES)


def test_other_constants_are_refused(wrapped, monkeypatch):
    """Rotary angles are in no file."""
    monkeypatch.setattr("vitconv.parity.wrapper.make_buffers", lambda model: make_and_shift(model))

    def make_and_shift(model):
        from vitconv.models.timm import make_buffers

        make_buffers(model)
        model.rope.pos_embed += 1e-6

    with pytest.raises(ParityError, match="tensors differ from what the source makes of them: rope.pos_embed"):
        verify_checkpoint(*wrapped, labels=CLASSES)


def test_other_outputs_are_refused(wrapped):
    source, folder = wrapped
    model = load_timm(source, target="timm_wrapper")
    wrapper = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    assert comparison.compare_outputs(model, wrapper, pixels, dtypes=["float32"]).matches
    model.blocks[0].norm1.eps *= 1.001
    parity = comparison.compare_outputs(model, wrapper, pixels, dtypes=["float64"])
    with pytest.raises(ParityError, match="The models diverge at `logits` in float64"):
        parity.assert_match()


def test_a_model_for_any_channels_is_taken_without_pixels(tmp_path, save):
    arguments = wrapped_arguments("eva02_tiny_patch14_224") | {"in_chans": 6}
    model = perturbed(timm.create_model("eva02_tiny_patch14_224", num_classes=2, **arguments))
    path = save({"state_dict": model.state_dict(), "arch": "eva02_tiny_patch14_224", "model_args": arguments})
    done = convert_checkpoint(path, tmp_path / "out", target="timm_wrapper")
    assert done.verification.same_pixels is None
    assert any("No image processor: Image files have 1 or 3 channels" in warning for warning in done.warnings)
