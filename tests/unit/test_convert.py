import errno
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from families import CLASSIFIERS, HEADLESS, save_folder
from models import FOLDED, KINDS, full_model, perturbed, pixels_for, reduced, small_model
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from vitconv import convert
from vitconv.convert import (
    convert_checkpoint,
    convert_state_dict,
    inspect,
    load_timm,
    revert_checkpoint,
    to_huggingface,
    to_timm,
    verify_checkpoint,
)
from vitconv.errors import ArchitectureError, CheckpointError, DestinationError, InputError, ParityError, WeightsError
from vitconv.inference.runtime import read_info
from vitconv.models.catalogue import entries, with_classes
from vitconv.models.huggingface import load_folder
from vitconv.models.images import sample_image
from vitconv.models.pixels import timm_pixels
from vitconv.models.timm import from_timm
from vitconv.parity import compare


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_small_patch14_dinov2"])
def test_folded_models_agree_in_float64(name):
    model = full_model(name, img_size=224).double()
    pixels = pixels_for(model, batch=1).double()
    with torch.no_grad():
        output, expected = to_huggingface(model)(pixels), model(pixels)
    actual = output.logits if model.num_classes else output.pooler_output
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


# ---- state dicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_state_dict_loads_strictly(kind):
    model = small_model(kind)
    twin = to_huggingface(small_model(kind))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(convert_state_dict(model.state_dict(), from_timm(model)), strict=True)
    pixels = pixels_for(model)
    with torch.no_grad():
        output, expected = twin(pixels), model(pixels)
    answer = output.get("logits", output.last_hidden_state if model.global_pool == "" else output.get("pooler_output"))
    assert (answer - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - FOLDED))
def test_memory_is_shared_where_nothing_is_made(kind):
    model = small_model(kind)
    state_dict = model.state_dict()
    storages = {tensor.untyped_storage().data_ptr() for tensor in state_dict.values()}
    new = {
        name
        for name, tensor in convert_state_dict(state_dict, model).items()
        if tensor.untyped_storage().data_ptr() not in storages
    }
    made = {
        "no class position": {"vit.embeddings.position_embeddings"},
        "no head bias": {"classifier.bias"},
        "headless": {"pooler.dense.weight", "pooler.dense.bias"},
        "headless tokens": {"pooler.dense.weight", "pooler.dense.bias"},
    }
    assert new == made.get(kind, set())


def test_the_source_state_dict_is_left_untouched():
    for kind in ("plain", "deit3"):
        model = small_model(kind)
        state_dict = model.state_dict()
        before = {name: tensor.clone() for name, tensor in state_dict.items()}
        convert_state_dict(state_dict, model)
        assert list(state_dict) == list(before)
        assert all(torch.equal(state_dict[name], before[name]) for name in before)


def test_an_architecture_a_model_and_a_name_say_the_same():
    model = full_model("vit_tiny_patch16_224", num_classes=7)
    state_dict = model.state_dict()
    results = [
        convert_state_dict(state_dict, known, layout="hub")
        for known in (model, from_timm(model), "vit_tiny_patch16_224")
    ]
    assert all(list(result) == list(results[0]) for result in results)
    assert "vit.encoder.layer.11.attention.attention.query.weight" in results[0]


def test_a_wrong_layout_is_refused():
    with pytest.raises(InputError, match="no layout 'file'"):
        convert_state_dict({}, small_model(), layout="file")


def test_contradicting_weights_are_refused():
    state_dict = full_model("vit_tiny_patch16_224").state_dict()
    with pytest.raises(WeightsError, match="of another shape"):
        convert_state_dict(state_dict, "vit_small_patch16_224")
    del state_dict["norm.bias"]
    with pytest.raises(WeightsError, match=r"1 tensor is missing \(norm.bias\)"):
        convert_state_dict(state_dict, "vit_tiny_patch16_224")
    with pytest.raises(WeightsError, match=r"missing \(blocks.\{0…11\}.attn.qkv.bias\)"):
        convert_state_dict(full_model("vit_base_patch16_224_miil").state_dict(), "vit_base_patch16_224")


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        (None, "of type NoneType, not a mapping"),
        ({"norm.bias": 1}, "`norm.bias` in the state dict is of type int, not a tensor"),
        ({1: torch.zeros(1)}, "The name 1 in the state dict is not a string"),
        ({"norm.bias": torch.zeros(1).to_sparse()}, "its dtype is float32, its layout sparse_coo"),
        ({"norm.bias": torch.zeros(1, dtype=torch.int8)}, "its dtype is int8"),
        ({"norm.bias": torch.zeros(1, dtype=torch.complex64)}, "its dtype is complex64"),
    ],
)
def test_what_is_not_a_state_dict_of_weights_is_refused(state_dict, message):
    with pytest.raises(WeightsError, match=message):
        convert_state_dict(state_dict, "vit_tiny_patch16_224")


# ---- models -------------------------------------------------------------------------------------------------


def test_the_twin_is_independent_and_in_the_same_mode():
    model = small_model().train()
    twin = to_huggingface(model)
    assert twin.training
    with torch.no_grad():
        model.cls_token.zero_()
    assert twin.vit.embeddings.cls_token.abs().sum() > 0
    assert twin.config._attn_implementation == "sdpa"
    assert to_huggingface(small_model().double()).dtype == torch.float64


def test_the_twin_trains():
    twin = to_huggingface(small_model())
    twin(pixels_for(small_model()), labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


# ---- folders ------------------------------------------------------------------------------------------------

CLASSES = ("tulip", "rose", "daisy", "lily", "poppy")


@pytest.fixture(scope="module")
def converted(small_checkpoint, tmp_path_factory):
    return convert_checkpoint(
        small_checkpoint, tmp_path_factory.mktemp("out") / "model", architecture="vit_tiny_patch16_224", labels=CLASSES
    )


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)).resize((520, 400))


def test_the_folder_holds_what_transformers_needs(converted):
    names = sorted(path.name for path in converted.destination.iterdir())
    assert names == [
        "README.md",
        "config.json",
        "model.safetensors",
        "parity.json",
        "preprocessor_config.json",
        "timm_processor.json",
    ]
    assert (
        json.loads((converted.destination / "timm_processor.json").read_text())["architecture"]
        == "vit_tiny_patch16_224"
    )
    assert json.loads((converted.destination / "parity.json").read_text())["same_pixels_timm_processor"] is True
    config = json.loads((converted.destination / "config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(CLASSES)}
    assert converted.verification.parity.matches


def test_the_folder_loads_without_a_warning(converted, picture, small_checkpoint, caplog, capsys):
    transformers.utils.logging.enable_propagation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            converted.destination, output_loading_info=True
        )
    transformers.utils.logging.disable_propagation()
    assert not any(info.values())
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert "LOAD REPORT" not in capsys.readouterr().err

    timm_model = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    timm_model.load_state_dict(torch.load(small_checkpoint))
    transform = create_transform(**timm.data.resolve_model_data_config(timm_model), is_training=False)
    processor = transformers.AutoImageProcessor.from_pretrained(converted.destination, backend="pil")
    with torch.no_grad():
        expected = timm_model(transform(picture)[None])
        actual = model.eval()(**processor(picture, return_tensors="pt")).logits
    assert torch.equal(actual, expected)


def test_the_pipeline_answers_with_class_names(converted, picture):
    answers = transformers.pipeline("image-classification", model=str(converted.destination))(picture)
    assert {answer["label"] for answer in answers} == set(CLASSES)


def test_the_record_names_source_versions_and_figures(converted, small_checkpoint):
    record = json.loads((converted.destination / "parity.json").read_text())
    (source,) = record["source"]
    assert source["file"] == "tiny.pth"
    assert source["bytes"] == small_checkpoint.stat().st_size
    assert source["sha256"] == hashlib.sha256(small_checkpoint.read_bytes()).hexdigest()
    assert record["versions"]["timm"] == timm.__version__
    assert record["verified"] is True
    assert record["fingerprint"] == read_info(converted.destination).fingerprint
    assert record["parity"]["float64"]["matches"] is True
    assert str(small_checkpoint.parent) not in json.dumps(record)


def test_headless_gives_timm_s_features_from_the_obvious_call(save, tmp_path):
    model = full_model("vit_tiny_patch16_224", num_classes=0)
    done = convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture="vit_tiny_patch16_224")
    twin, info = transformers.AutoModel.from_pretrained(done.destination, output_loading_info=True)
    assert type(twin).__name__ == "ViTModel"
    assert not any(info.values())
    pixels = pixels_for(model)
    with torch.no_grad():
        assert torch.equal(twin.eval()(pixels).pooler_output, model(pixels))
        classifier = transformers.AutoModelForImageClassification.from_pretrained(done.destination)
        assert torch.equal(classifier.eval()(pixels).logits, model(pixels))


@pytest.mark.parametrize(
    ("arguments", "image_size"),
    [({"img_size": (64, 96)}, (64, 96)), ({"img_size": 64}, None), ({"in_chans": 1}, None)],
)
def test_sizes_are_read_from_the_weights(arguments, image_size, save, tmp_path):
    model = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments))
    done = convert_checkpoint(
        save(model.state_dict()), tmp_path / "model", architecture="vit_tiny_patch16_224", image_size=image_size
    )
    assert done.architecture == from_timm(model)
    assert done.verification.parity.matches


def test_safetensors_and_pth_give_the_same_folder(small_checkpoint, converted, tmp_path):
    save_file(torch.load(small_checkpoint), tmp_path / "tiny.safetensors")
    done = convert_checkpoint(
        tmp_path / "tiny.safetensors", tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False
    )
    one, other = (folder / "model.safetensors" for folder in (done.destination, converted.destination))
    assert one.read_bytes() == other.read_bytes()


def test_a_timm_model_of_one_s_own_design(save, tmp_path):
    model = small_model("quick gelu")
    done = convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model)
    assert done.architecture.hidden_act == "quick_gelu"
    assert done.verification.parity.matches


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": CLASSES[:4]}, InputError, "There are 4 labels, but the weights have 5 classes"),
        ({"labels": "none.txt"}, InputError, "There is no label file"),
        ({"image": "none.jpg"}, InputError, "There is no image 'none.jpg'"),
        ({"dtype": "int8"}, InputError, "There is no dtype 'int8'"),
        ({"image_size": (8, 384)}, InputError, "`pos_embed` was trained for 196"),
        (
            {"architecture": None},
            ArchitectureError,
            "the weights fit 3 timm architectures",
        ),
        ({"architecture": "vit_tiny_patch16_225"}, ArchitectureError, "no architecture named"),
        ({"architecture": "vit_base_patch16_rpn_224"}, ArchitectureError, "norms after attention"),
        ({"architecture": "vit_small_patch16_224"}, WeightsError, "of another shape"),
        ({"source": "none.pth"}, CheckpointError, "There is no file 'none.pth'"),
    ],
)
def test_refusals_write_nothing(changes, error, message, small_checkpoint, tmp_path):
    arguments = {"source": small_checkpoint, "architecture": "vit_tiny_patch16_224", **changes}
    with pytest.raises(error, match=message) as caught:
        convert_checkpoint(arguments.pop("source"), tmp_path / "model", **arguments)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headless": "no"}, "headless is 'no'"),
        ({"ema": None}, "ema is None"),
        ({"overwrite": "no"}, "overwrite is 'no'"),
        ({"image_size": 224}, r"image_size is 224.\nPass \(height, width\)"),
        ({"image_size": (224,)}, "image_size is "),
        ({"image_size": ("224", "224")}, "image_size is "),
        ({"image_size": (224.5, True)}, "image_size is "),
        ({"ignore": None}, "ignore is None"),
        ({"ignore": "mean"}, "ignore is 'mean'"),
        ({"labels": 5}, "The list of labels is 5"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, message, small_checkpoint, tmp_path):
    """A text such as "no" would count as true, and the head would be left out, or the folder replaced."""
    with pytest.raises(InputError, match=message):
        convert_checkpoint(small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", **arguments)
    assert not (tmp_path / "model").exists()


def test_an_existing_destination_is_refused_before_any_work(converted, monkeypatch):
    monkeypatch.setattr(convert, "open_source", lambda path: pytest.fail("work was done"))
    with pytest.raises(DestinationError, match="exists already"):
        convert_checkpoint("weights.pth", converted.destination, architecture="vit_tiny_patch16_224")


def test_models_that_disagree_leave_nothing(small_checkpoint, tmp_path, monkeypatch):
    """Break the table: read the epsilon wrongly, and see that no folder appears."""
    right = convert.mapping.config
    monkeypatch.setattr(convert.mapping, "config", lambda *a: right(*a) | {"layer_norm_eps": 1e-12})
    with pytest.raises(ParityError, match="diverge at `blocks.0` in float64"):
        convert_checkpoint(small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224")
    assert list(tmp_path.iterdir()) == []


def test_classes_without_names_are_noted(small_checkpoint, tmp_path):
    given = {"architecture": "vit_tiny_patch16_224", "verify": False}
    nameless = convert_checkpoint(small_checkpoint, tmp_path / "nameless", **given)
    said = "The classes have no names: they are LABEL_0, LABEL_1, LABEL_2, LABEL_3 and 1 more."
    assert any(note.startswith(said) and "--labels FILE" in note for note in nameless.notes)
    named = convert_checkpoint(small_checkpoint, tmp_path / "named", labels=CLASSES, **given)
    assert not any("no names" in note for note in named.notes)


def test_inspect_reads_and_writes_nothing(small_checkpoint):
    before = sorted(small_checkpoint.parent.iterdir())
    found = inspect(small_checkpoint, "vit_tiny_patch16_224")
    assert found.architecture.num_labels == 5
    assert len(found.plan.moves) == 200
    assert [warning.partition(":")[0] for warning in found.warnings] == ["The preprocessing is an assumption"]
    assert sorted(small_checkpoint.parent.iterdir()) == before


def test_a_missing_processor_is_a_warning(save):
    model = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=(64, 96)))
    found = inspect(save(model.state_dict()), "vit_tiny_patch16_224", image_size=(64, 96))
    assert "No preprocessor_config.json" in found.warnings[0]
    assert "Prepare images with timm_processor.json" in found.warnings[0]


def test_where_transformers_own_processor_is_missing_timm_s_is_written_and_proved(save, tmp_path):
    model = small_model("not square")
    done = convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model)
    assert done.verification.same_pixels is None
    assert done.verification.same_pixels_timm_processor is True
    assert not (tmp_path / "model" / "preprocessor_config.json").exists()
    convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=model, overwrite=True, verify=False)
    assert (tmp_path / "model" / "timm_processor.json").exists()


# ---- verification of existing folders -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_verify_passes_on_every_kind(kind, save, tmp_path):
    model = small_model(kind)
    source = save(model.state_dict())
    convert_checkpoint(source, tmp_path / "model", architecture=model, verify=False)
    found = verify_checkpoint(source, tmp_path / "model", architecture=model)
    assert found.parity.matches
    assert found.elements.source == sum(tensor.numel() for tensor in model.state_dict().values())


@pytest.mark.slow
def test_verify_takes_what_the_folder_records(small_checkpoint, tmp_path, picture):
    picture.save(tmp_path / "photo.png")
    data = {"crop_pct": 0.875, "mean": [0.4, 0.4, 0.4]}
    convert_checkpoint(
        small_checkpoint,
        tmp_path / "model",
        architecture="vit_tiny_patch16_224",
        labels=CLASSES,
        data=data,
        verify=False,
    )
    found = verify_checkpoint(
        small_checkpoint, tmp_path / "model", images=[tmp_path / "photo.png"], dtypes=["float32", "bfloat16"]
    )
    assert found.same_pixels
    assert [comparison.dtype for comparison in found.parity.comparisons] == ["float64", "float32", "bfloat16"]
    with pytest.raises(ParityError, match=f"names class 0 '{CLASSES[0]}' instead of '{CLASSES[-1]}'") as caught:
        verify_checkpoint(small_checkpoint, tmp_path / "model", labels=CLASSES[::-1])
    assert "--labels FILE" in caught.value.remedy
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(
        InputError, match=r"The label file '.*labels.txt' has 2 labels, but the weights have 5 classes"
    ):
        verify_checkpoint(small_checkpoint, tmp_path / "model", labels=tmp_path / "labels.txt")
    for name in CLASSES[:2]:
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "train" / name / "1.png")
    with pytest.raises(InputError, match=r"The folder '.*train' has 2 labels, but the weights have 5 classes"):
        verify_checkpoint(small_checkpoint, tmp_path / "model", labels=tmp_path / "train")
    with pytest.raises(ParityError, match="does not make the pixels"):
        verify_checkpoint(small_checkpoint, tmp_path / "model", data={"mean": [0.5, 0.5, 0.5]})


@pytest.mark.slow
def test_verify_of_a_folder_that_transformers_saved_again(small_checkpoint, converted, tmp_path):
    """save_pretrained writes neither parity.json nor the same file, but the same model."""
    for part in (transformers.AutoModelForImageClassification, transformers.AutoImageProcessor):
        part.from_pretrained(converted.destination).save_pretrained(tmp_path / "again")
    found = verify_checkpoint(small_checkpoint, tmp_path / "again", architecture="vit_tiny_patch16_224")
    assert found.parity.matches
    with pytest.raises(ArchitectureError, match="The architecture is not given"):
        verify_checkpoint(small_checkpoint, tmp_path / "again")


def test_what_only_an_option_converts_is_never_guessed(tmp_path):
    torch.save(timm.create_model("eva02_tiny_patch14_224", num_classes=3, depth=1).state_dict(), tmp_path / "timm.pth")
    with pytest.raises(
        ArchitectureError, match="no timm architecture that converts to a class of Transformers"
    ) as caught:
        convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", target="timm_wrapper")
    assert "--target timm_wrapper only is never guessed" in caught.value.remedy and not (tmp_path / "hf").exists()


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"image_size": 3, "architecture": null}'])
def test_a_damaged_record_is_named(content, small_checkpoint, converted, tmp_path):
    shutil.copytree(converted.destination, tmp_path / "model")
    (tmp_path / "model" / "parity.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"parity.json' is (not|no)"):
        verify_checkpoint(small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224")


def test_a_source_with_a_bit_turned_around(small_checkpoint, converted, tmp_path):
    """In the last bit of a weight: the numbers could not tell it from another checkpoint."""
    path = tmp_path / "flipped.pth"
    content = bytearray(small_checkpoint.read_bytes())
    weight = torch.load(small_checkpoint)["blocks.1.mlp.fc1.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"flipped.pth' is damaged or incomplete: the bytes of its record"):
        convert_checkpoint(path, tmp_path / "model", architecture="vit_tiny_patch16_224")
    assert not (tmp_path / "model").exists()
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        verify_checkpoint(path, converted.destination)
    convert_checkpoint(path, tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False)


@pytest.mark.parametrize(
    ("step", "verify"),
    [("Writing the folder", True), ("Writing the folder", False), ("Reading the folder back", True)],
)
@pytest.mark.parametrize("change", ["replaced", "written over", "cut short", "removed"])
def test_a_source_that_changes_meanwhile_is_named(change, step, verify, small_checkpoint, tmp_path):
    """As a training run saves the next epoch. In another file, other bytes lie where the tensors were found."""
    source, following = tmp_path / "last.safetensors", tmp_path / "next.safetensors"
    weights = torch.load(small_checkpoint)
    save_file(weights, source, metadata={"epoch": "9"})
    save_file(weights, following, metadata={"epoch": "10", "loss": "0.1234567"})

    def change_it(name):
        if name == step and change == "replaced":
            following.replace(source)
        elif name == step and change == "written over":
            source.write_bytes(following.read_bytes())
        elif name == step and change == "cut short":  # as `torch.save` begins
            os.truncate(source, 0)
        elif name == step:
            source.unlink()

    arguments = {"architecture": "vit_tiny_patch16_224", "on_step": change_it}
    with pytest.raises(CheckpointError, match="last.safetensors' have changed while they were converted"):
        convert_checkpoint(source, tmp_path / "model", verify=verify, **arguments)
    assert not list(tmp_path.glob("*model*"))


def test_a_source_that_is_replaced_before_it_is_hashed_is_not_recorded(small_checkpoint, tmp_path, monkeypatch):
    source = shutil.copy(small_checkpoint, tmp_path / "last.pth")

    def replace_and_hash(file, stopped):
        shutil.copy(small_checkpoint, tmp_path / "next.pth").replace(source)
        return "0" * 64

    monkeypatch.setattr(convert, "sha256", replace_and_hash)
    with pytest.raises(CheckpointError, match="last.pth' have changed while they were converted"):
        convert_checkpoint(source, tmp_path / "model", architecture="vit_tiny_patch16_224")


def test_verify_names_a_source_that_changes_meanwhile(small_checkpoint, converted, tmp_path):
    source = shutil.copy(small_checkpoint, tmp_path / "last.pth")

    def replace(name):
        if name == "Comparing the pixels":
            source.write_bytes(source.read_bytes())

    with pytest.raises(CheckpointError, match="last.pth' have changed while they were compared"):
        verify_checkpoint(source, converted.destination, on_step=replace)


@pytest.mark.parametrize("around", [torch.inference_mode(), torch.device("meta")], ids=["inference mode", "device"])
@pytest.mark.parametrize("kind", ["plain", "deit3"])
def test_what_is_on_around_the_calls_changes_nothing(kind, around, tmp_path):
    model = small_model(kind)
    torch.save(model.state_dict(), tmp_path / "my.pth")
    with around:
        convert_checkpoint(tmp_path / "my.pth", tmp_path / "model", architecture=model, image_size=(64, 64))
        verify_checkpoint(tmp_path / "my.pth", tmp_path / "model", architecture=model)
        revert_checkpoint(tmp_path / "model", tmp_path / "back")
        made = [load_timm(tmp_path / "my.pth", model), to_huggingface(model.double())]
        made.append(to_timm(made[-1]))
        assert compare(model, made[1], torch.rand(1, 3, 32, 32, device="cpu")).matches
    assert not any(
        tensor.is_inference() or tensor.is_meta for one in made for tensor in (*one.parameters(), *one.buffers())
    )


@pytest.mark.parametrize(
    ("run", "path"),
    [
        (lambda place: convert_checkpoint(place / "my.pth", place.parent / "model"), "my.pth"),
        (lambda place: verify_checkpoint("my.pth", place / "model"), "model/config.json"),
        (lambda place: revert_checkpoint(place / "model", place.parent / "back"), "model/config.json"),
        (load_folder, "config.json"),
    ],
)
def test_what_lies_in_a_folder_that_may_not_be_entered_is_not_called_missing(run, path, tmp_path, monkeypatch):
    """As in another user's home."""
    look = os.stat

    def refuse(place, **more):
        if isinstance(place, (str, Path)) and Path(place).is_relative_to(tmp_path / "home"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(place, **more)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CheckpointError, match=f"home/{path}' cannot be reached: Permission denied"):
        run(tmp_path / "home")


@pytest.mark.parametrize("step", ["Reading the checkpoint", "Comparing the pixels"])
def test_verify_names_a_folder_that_changes_meanwhile(step, small_checkpoint, converted, tmp_path):
    """Its files are read one after the other: those of two folders together would be proved, and neither is."""
    mine = shutil.copytree(converted.destination, tmp_path / "mine")

    def replace(name):
        if name == step:
            (mine / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match="mine' have changed while they were compared"):
        verify_checkpoint(small_checkpoint, mine, on_step=replace)


@pytest.mark.parametrize("read", [load_timm, convert.read_weights])
def test_weights_that_are_replaced_before_they_are_read_are_refused(read, small_checkpoint, tmp_path, monkeypatch):
    source = shutil.copy(small_checkpoint, tmp_path / "last.pth")
    identify = convert.identify

    def identify_and_replace(*arguments):
        found = identify(*arguments)
        shutil.copy(small_checkpoint, tmp_path / "next.pth").replace(source)
        return found

    monkeypatch.setattr(convert, "identify", identify_and_replace)
    with pytest.raises(CheckpointError, match="last.pth' have changed while they were read"):
        read(source, "vit_tiny_patch16_224")


def test_a_given_model_keeps_its_weights(save, tmp_path):
    model, other = small_model(), small_model().train()
    with torch.no_grad():
        other.head.bias += 1
    before = other.head.bias.clone()
    convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture=other)
    assert torch.equal(other.head.bias, before)
    assert other.training


def test_verify_needs_a_folder(small_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        verify_checkpoint(small_checkpoint, tmp_path)


def test_a_photo_with_transparency_is_noted(small_checkpoint, tmp_path, picture):
    clear = picture.copy()
    clear.putalpha(99)
    clear.save(tmp_path / "clear.png")
    done = convert_checkpoint(
        small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", image=tmp_path / "clear.png"
    )
    assert done.verification.same_pixels is False
    assert "blends transparency with white" in done.verification.pixel_notes[0]
    assert done.verification.parity.matches


@pytest.mark.slow
def test_large_models_are_sharded_and_proved_like_others(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("vitconv.checkpoints.tensorfile.SHARD_SIZE", 5_000_000)
    done = convert_checkpoint(small_checkpoint, tmp_path / "hf", architecture="vit_tiny_patch16_224")
    assert done.verification.parity["float32"].same_bits
    assert len(list((tmp_path / "hf").glob("model-0000*-of-0000*.safetensors"))) > 3
    assert transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").config.num_labels == 5
    assert verify_checkpoint(small_checkpoint, tmp_path / "hf").parity.matches
    convert_checkpoint(
        small_checkpoint, tmp_path / "hf", architecture="vit_tiny_patch16_224", verify=False, overwrite=True
    )


def test_weights_that_are_not_finite_are_counted(tmp_path):
    weights = full_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    weights["blocks.3.mlp.fc1.weight"][2, 5:8] = torch.nan
    weights["head.bias"][1] = torch.inf
    torch.save(weights, tmp_path / "w.pth")
    done = convert_checkpoint(tmp_path / "w.pth", tmp_path / "hf", architecture="vit_tiny_patch16_224")
    (warning,) = (warning for warning in done.warnings if "elements of the weights" in warning)
    assert "4 elements of the weights are NaN or infinite, in " in warning
    assert "blocks.3.mlp.fc1.weight" in warning
    assert "4 elements of the weights" in (tmp_path / "hf" / "README.md").read_text()


def test_without_verification_a_file_in_memory_of_any_dtype_is_copied(tmp_path):
    weights = {
        name: t.bfloat16() for name, t in full_model("vit_tiny_patch16_224", num_classes=5).state_dict().items()
    }
    save_file(weights, tmp_path / "w.safetensors")
    convert_checkpoint(
        tmp_path / "w.safetensors",
        tmp_path / "hf",
        architecture="vit_tiny_patch16_224",
        dtype="bfloat16",
        verify=False,
    )
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    record = json.loads((tmp_path / "hf" / "parity.json").read_text())
    assert record["source"][0]["sha256"] is None


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_in_another_order_of_memory(memory_format, tmp_path):
    weights = full_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].contiguous(memory_format=memory_format)
    torch.save(weights, tmp_path / "w.pth")
    done = convert_checkpoint(tmp_path / "w.pth", tmp_path / "hf", architecture="vit_tiny_patch16_224")
    assert done.verification.parity["float32"].same_bits


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, classes", [*((name, "ab") for name in CLASSIFIERS), *((name, "") for name in HEADLESS)]
)
def test_a_conversion_says_what_loads_it_and_where_its_answer_is(family, classes, tmp_path):
    """And timm's model of the source, with its weights, gives the same answer: constants that no file holds included."""
    saved = save_folder(tmp_path / "timm", family, classes)
    done = convert_checkpoint(tmp_path / "timm", tmp_path / "hf", verify=False)
    timm_model, model = (
        load_timm(tmp_path / "timm"),
        getattr(transformers, done.class_name).from_pretrained(done.destination),
    )
    pixels = torch.randn(2, 3, *done.architecture.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = (
            timm_model(pixels),
            eval(f"output.{done.output_expression}", {"output": model.eval()(pixels)}),
        )
        assert torch.equal(expected, saved(pixels))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_architecture_may_convert_without_its_head_alone(tmp_path):
    """By its name, too, which stands for a model with a head; and no folder for timm says that there is none."""
    name, source = "vit_srelpos_small_patch16_224", tmp_path / "w.pth"
    torch.save(full_model(name).state_dict(), source)
    with pytest.raises(ArchitectureError, match="a norm before mean pooling"):
        convert_checkpoint(source, tmp_path / "hf", architecture=name)
    done = convert_checkpoint(source, tmp_path / "hf", architecture=name, headless=True, verify=False)
    assert (done.class_name, done.output_expression) == ("BeitModel", "last_hidden_state[:, 1:].mean(1)")
    with pytest.raises(ArchitectureError, match="No architecture of timm's computes what this BeitModel computes"):
        revert_checkpoint(tmp_path / "hf", tmp_path / "back")


def test_timms_model_of_another_size_has_resampled_positions(small_checkpoint):
    model = load_timm(small_checkpoint, "vit_tiny_patch16_224", image_size=(192, 160))
    assert (model.patch_embed.img_size, model.pos_embed.shape) == ((192, 160), (1, 1 + 12 * 10, 192))
    assert not model.training and all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_clip_head_s_bias_is_worked_in_where_weights_are_rounded_most(dtype, tmp_path):
    """The norm's constant is so small that it would multiply the weight's rounding thirty times."""
    model = reduced("vit_base_patch16_clip_224", num_classes=100).float()
    gamma, beta = model.norm.weight.data, model.norm.bias.data
    beta += gamma * (1 / 30 - (beta / gamma).mean())
    model.head.bias.data *= 10
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model)
    assert done.verification.parity.matches


def every_classifier():
    """For each of Transformers' classes that pipelines load: one of timm's names."""
    found = {}
    for entry in entries().values():
        becomes = with_classes(entry, 5)
        if becomes.pipeline and not becomes.option:
            found.setdefault(becomes.class_name, entry.name)
    return found


@pytest.mark.parametrize(("class_name", "name"), every_classifier().items())
def test_a_pipeline_answers_as_timm_does(class_name, name, tmp_path):
    """From the image file. With a head of code: tests/unit/mapping/test_timm_head.py."""
    model = reduced(name, num_classes=5).float()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    given = {"architecture": model, "labels": CLASSES, "data": {"crop_pct": 1.0, "crop_mode": "center"}}
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", verify=False, **given)
    assert done.class_name == class_name
    photo = sample_image(tuple(2 * side for side in reversed(done.data.image_size)))
    photo.save(tmp_path / "photo.png")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    ask = transformers.pipeline("image-classification", str(tmp_path / "hf"), image_processor=processor)
    answers = ask(str(tmp_path / "photo.png"), top_k=5)
    with torch.no_grad():
        expected = model(timm_pixels(photo, done.data)[None])[0].softmax(-1)
    assert [answer["label"] for answer in answers] == [CLASSES[i] for i in expected.argsort(descending=True)]
    scores = torch.tensor([answer["score"] for answer in answers])
    assert torch.allclose(scores, expected.sort(descending=True).values, atol=1e-5)
