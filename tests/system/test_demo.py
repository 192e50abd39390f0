"""The demo artifacts: the weights differ from initial values, and images and recorded answers match."""

import csv
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# the demo is a script with its modules beside it, not a package
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))

import draw_images
import small_model
from head import classify, fit_head, read_head, write_head
from make_artifacts import HEAD, OUTPUTS, list_inputs, replacing, write_image, write_inputs
from model import CLASSES, build_model
from roofs import DRAWERS, draw_roof
from weights import HEAD_STEP, STEP, random_state_dict, set_head


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def state_dict() -> dict[str, torch.Tensor]:
    """The content of the checkpoint."""
    state_dict = random_state_dict()
    set_head(state_dict, read_head(HEAD))
    return state_dict


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The rows of inputs.csv."""
    path = tmp_path_factory.mktemp("demo") / "inputs.csv"
    write_inputs(path, list_inputs())
    return read_table(path)


@pytest.fixture(scope="session")
def outputs() -> list[dict[str, str]]:
    """The rows of outputs.csv."""
    return read_table(OUTPUTS)


# The checkpoint


def test_state_dict_fills_the_model(state_dict):
    with torch.device("meta"):
        model = build_model()
    assert list(state_dict) == list(model.state_dict())
    model.load_state_dict(state_dict, assign=True)


def test_every_tensor_is_float32_and_owns_its_storage(state_dict):
    for name, tensor in state_dict.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_no_parameter_keeps_its_initial_value(state_dict):
    for name, tensor in state_dict.items():
        assert tensor.std() > 0.005, f"{name} is constant, as timm's biases (0) and norm weights (1) are"


def test_norm_weights_lie_around_one(state_dict):
    for name, tensor in state_dict.items():
        if "norm" in name and name.endswith(".weight"):
            assert tensor.min() >= 0.75 and tensor.max() <= 1.25, name


def test_no_two_parameters_are_equal(state_dict):
    for (a, first), (b, second) in itertools.combinations(state_dict.items(), 2):
        assert not torch.equal(first, second), f"{a} and {b} could be swapped unseen"


def test_weights_are_integers_times_a_power_of_two(state_dict):
    for name in ("pos_embed", "blocks.0.norm1.weight", "blocks.11.attn.qkv.bias", "head.weight", "head.bias"):
        steps = state_dict[name].double() / STEP
        assert torch.equal(steps, steps.round()), name


def test_head_is_a_small_table_of_integers(state_dict):
    head = read_head(HEAD)
    assert head.shape == (769, len(CLASSES))  # a row for each feature, and one for the biases
    assert HEAD.read_text().splitlines()[0] == ",".join(CLASSES)
    assert np.array_equal(state_dict["head.weight"].T.double() / HEAD_STEP, head[:-1])
    assert np.array_equal(state_dict["head.bias"].double() / HEAD_STEP, head[-1])


def test_a_fitted_head_is_unchanged_after_writing_and_reading(tmp_path):
    labels = list(CLASSES) * 2
    features = np.vstack([np.eye(len(CLASSES)) * 8 + 3] * 2)  # as easy as can be: a feature for each class
    head = fit_head(features, labels)
    write_head(tmp_path / "head.csv", head)
    assert np.array_equal(read_head(tmp_path / "head.csv"), head)
    assert [CLASSES[k] for k in classify(features, head).argmax(axis=1)] == labels


# The images


def test_each_class_has_a_drawing_function():
    assert tuple(DRAWERS) == CLASSES


def test_drawing_again_gives_the_same_bytes(tmp_path):
    for name in ("slate.png", "slate.jpg"):
        for folder in ("first", "second"):
            write_image(tmp_path / folder / name, draw_roof("slate", 2))
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_images_come_in_several_shapes_and_two_formats(tmp_path):
    shapes, formats = set(), set()
    for image in list_inputs():
        if image.label == "white membrane":
            pixels = draw_roof(image.label, image.number)
            path = tmp_path / image.path
            write_image(path, pixels)
            with Image.open(path) as opened:
                assert opened.mode == "RGB"
                formats.add(opened.format)
                shapes.add(opened.width / opened.height)
                if opened.format == "PNG":
                    assert np.array_equal(np.asarray(opened), pixels)
    assert len(shapes) >= 4
    assert formats == {"PNG", "JPEG"}


def test_inputs_hold_out_two_images_of_each_class(inputs):
    assert list(inputs[0]) == ["path", "label", "split"]
    assert len({row["path"] for row in inputs}) == len(inputs) == 42
    for label in CLASSES:
        splits = [row["split"] for row in inputs if row["label"] == label]
        assert sorted(splits) == ["fit"] * 4 + ["held-out"] * 2


def test_more_images_are_new_ones_in_both_formats():
    judge, calibrate = (draw_images.list_images(split, 140) for split in ("judge", "calibrate"))
    drawn = {(image.label, image.number) for image in list_inputs()}
    for listed in (judge, calibrate):
        assert draw_images.list_images(listed[0].split, 35) == listed[:35]  # asking for more changes none
        kinds = {(image.label, Path(image.path).suffix) for image in listed}
        assert kinds == {(label, suffix) for label in CLASSES for suffix in (".png", ".jpg")}
        numbers = {(image.label, image.number) for image in listed}
        assert len(numbers) == len({image.path for image in listed}) == 140 and not numbers & drawn
        drawn |= numbers


def test_drawing_more_images(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["draw_images.py", str(tmp_path / "roofs"), "--judge", "3", "--calibrate", "2"])
    draw_images.main()
    for split, count in (("judge", 3), ("calibrate", 2)):
        rows = read_table(tmp_path / "roofs" / f"{split}.csv")
        assert [(row["label"], row["split"]) for row in rows] == [(label, split) for label in CLASSES[:count]]
        assert all((tmp_path / "roofs" / row["path"]).stat().st_size for row in rows)
    assert len(list((tmp_path / "roofs" / "images").iterdir())) == 5


def test_the_small_model_has_a_fitted_head(tmp_path, monkeypatch):
    """Here each class is a colour."""
    colours = {name: np.array([200 * (k >> bit & 1) for bit in range(3)], np.uint8) for k, name in enumerate(CLASSES)}
    for image in list_inputs():
        write_image(tmp_path / "artifacts" / image.path, np.tile(colours[image.label], (32, 32, 1)))
    monkeypatch.setattr(small_model, "DEMO", tmp_path / "demo")
    monkeypatch.setattr(sys, "argv", ["small_model.py", str(tmp_path / "small.pth")])
    small_model.main()
    model = small_model.build_small_model().eval()
    model.load_state_dict(torch.load(tmp_path / "small.pth", weights_only=True))
    pixels = torch.from_numpy(np.stack([*colours.values()])).float() / 127.5 - 1
    with torch.no_grad():
        answers = model(pixels[:, :, None, None].expand(-1, -1, 224, 224))
    assert answers.argmax(dim=1).tolist() == list(range(len(CLASSES)))


# The recorded answers


def test_outputs_list_the_images_of_the_inputs(inputs, outputs):
    assert [row["path"] for row in outputs] == [row["path"] for row in inputs]
    assert list(outputs[0]) == ["path", "class", *CLASSES]
    for row in outputs:
        assert row["class"] == max(CLASSES, key=lambda name: float(row[name]))


def test_held_out_images_are_recognised(inputs, outputs):
    rows = zip(inputs, outputs, strict=True)
    right = [image["label"] == answer["class"] for image, answer in rows if image["split"] == "held-out"]
    assert len(right) == 14
    assert sum(right) >= 12


# Writing


def test_replacing_leaves_a_hard_link_alone(tmp_path):
    cache, path = tmp_path / "cache", tmp_path / "artifact"
    cache.write_text("old")
    os.link(cache, path)
    cache.chmod(0o444)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (cache.read_text(), path.read_text()) == ("old", "new")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "artifact"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
