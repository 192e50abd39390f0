import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import small_model
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from vitconv.errors import InputError
from vitconv.files import write_json
from vitconv.models import images
from vitconv.models.data_config import DataConfig, data_config, makes_pixels, read_data_config, tag_config
from vitconv.models.images import MOST_BYTES, MOST_PIXELS, load_image, sample_image
from vitconv.models.pixels import (
    crop_shift,
    huggingface_pixels,
    known_difference,
    probe_pixels,
    process,
    resize_first,
    timm_pixels,
    without_transparency,
)
from vitconv.models.processors import (
    NESTED_FILE,
    PROCESSOR_FILE,
    TIMM_PROCESSOR_FILE,
    load_any_processor,
    load_processor,
    missing_processor,
    obstacle,
    processor_config,
    timm_processor_config,
)
from vitconv.models.timm import from_timm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config_for(**changes) -> DataConfig:
    plain = dict(image_size=(96, 96), num_channels=3, interpolation="bicubic", mean=MEAN, std=STD, crop_pct=1.0)
    return DataConfig(**{**plain, "crop_mode": "center", **changes})


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: a shift by one pixel or another interpolation changes every value."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """timm's pixels and those of a written image processor."""
    folder = tmp_path_factory.mktemp("processor")

    def both(image: Image.Image, config: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
        write_json(processor_config(config), folder / PROCESSOR_FILE)
        return timm_pixels(image, config), huggingface_pixels(image, folder, config)[0]

    return both


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_the_processor_makes_timm_s_pixels(both, crop_pct, interpolation, crop_mode):
    config = config_for(crop_pct=crop_pct, interpolation=interpolation, crop_mode=crop_mode)
    ours, theirs = both(noise_image(128, 128), config)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("crop_pct", [1.2, 1.0, 0.9, 0.875])
def test_every_interpolation_on_both_sides_of_one(both, interpolation, crop_pct):
    """An image larger than the crop, and one that is padded to it; odd margins aside, which have their own test."""
    config = config_for(crop_pct=crop_pct, interpolation=interpolation)
    image = noise_image(150, 150)
    assert crop_shift((150, 150), config) == (0, 0)
    ours, theirs = both(image, config)
    assert torch.equal(ours, theirs)


def test_padding_is_black_before_normalisation(both):
    ours, theirs = both(noise_image(150, 150), config_for(crop_pct=1.2))
    assert torch.equal(ours[:, 0, 0], (torch.zeros(3) - torch.tensor(MEAN)) / torch.tensor(STD))
    assert torch.equal(ours, theirs)


def kinds_of_images() -> dict[str, Image.Image]:
    colour = noise_image(120, 96)
    alpha = colour.copy()
    alpha.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 120), dtype=np.uint8)))
    palette = colour.quantize(32)
    palette.info["transparency"] = 3
    deep = np.random.default_rng(2).integers(0, 65536, (96, 120), dtype=np.uint16)
    return {
        "rgb.png": colour,
        "rgb.jpg": colour,
        "rgb.webp": colour,
        "alpha.png": alpha,
        "grey.png": colour.convert("L"),
        "grey-alpha.png": alpha.convert("LA"),
        "black-and-white.png": colour.convert("1"),
        "16-bit.png": Image.fromarray(deep),
        "cmyk.jpg": colour.convert("CMYK"),
        "palette.png": palette,
        "turned.jpg": colour,
        "row.png": noise_image(300, 1),
        "column.png": noise_image(1, 300),
        "pixel.png": noise_image(1, 1),
        "huge.png": noise_image(50, 40).resize((6000, 4800)),
    }


IMAGES = list(kinds_of_images())


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, image in kinds_of_images().items():
        exif = {"exif": _turned()} if name == "turned.jpg" else {}
        image.save(folder / name, **exif)
    return folder


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be shown turned by 90 degrees
    return exif


TRANSPARENT = ("alpha.png", "grey-alpha.png", "palette.png")


def as_timm_reads(name: str, image: Image.Image) -> Image.Image:
    """What has transparency is handed over without it; all else as it is in the file."""
    return image.convert("RGBA").convert("RGB") if name in TRANSPARENT else image


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("channels", [3, 1])
def test_every_kind_of_image_file_gives_timm_s_pixels(both, image_files, name, channels):
    values = {"mean": (0.5,), "std": (0.25,)} if channels == 1 else {}
    config = config_for(num_channels=channels, crop_mode="squash", **values)
    image = load_image(image_files / name)
    ours, theirs = both(as_timm_reads(name, image) if channels == 3 else image, config)
    assert ours.shape == (channels, 96, 96)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, timm_pixels(image, config))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in ("row.png", "column.png")])
def test_every_kind_of_image_file_is_cropped_alike(both, image_files, name):
    image, config = load_image(image_files / name), config_for()
    assert (known_difference(image, config) is not None) == (name in TRANSPARENT)
    ours, theirs = both(as_timm_reads(name, image), config)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_a_known_difference(both, image_files, name):
    """timm drops it: the colour under a transparent pixel counts. Transformers 5 blends with white."""
    image, config = load_image(image_files / name), config_for()
    ours, theirs = both(image, config)
    assert not torch.equal(ours, theirs)
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    assert torch.equal(theirs, timm_pixels(white, config))
    assert "blends transparency" in known_difference(image, config)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_an_image_that_could_be_transparent_and_is_not_has_timms_pixels(both, image_files, mode, tmp_path):
    """As many a screenshot."""
    image = load_image(image_files / "alpha.png").convert("RGB")
    if mode in ("PA", "P"):
        image = image.quantize(16)
        if mode == "P":  # a colour that no pixel has is transparent
            unused = max(set(range(256)) - set(image.get_flattened_data()))
            image.save(tmp_path / "unused.png", transparency=unused)
            image = load_image(tmp_path / "unused.png")
        else:
            image = image.convert("PA")
    else:
        image = image.convert(mode)
    assert image.has_transparency_data
    config = config_for()
    ours, theirs = both(image, config)
    assert torch.equal(ours, theirs) and known_difference(image, config) is None


def test_both_ignore_the_exif_orientation_as_timm_does(both, image_files):
    """timm shows a model the pixels as stored. So does the processor; transformers.pipeline turns them upright first."""
    image = load_image(image_files / "turned.jpg")
    ours, theirs = both(image, config_for())
    assert torch.equal(ours, theirs)
    upright = ImageOps.exif_transpose(image)
    assert upright.size == (image.height, image.width)
    assert not torch.equal(timm_pixels(upright, config_for()), ours)
    assert np.array_equal(
        np.asarray(transformers.image_utils.load_image(str(image_files / "turned.jpg"))),
        np.asarray(upright.convert("RGB")),
    )


def test_the_default_backend_is_one_step_off_and_no_more(both, tmp_path):
    """What the README says of Transformers' default (torchvision) backend, measured."""
    config = config_for(mean=(0.5,) * 3, std=(0.5,) * 3)
    write_json(processor_config(config), tmp_path / PROCESSOR_FILE)
    default = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = sample_image()
    ours = timm_pixels(image, config)
    theirs = default(image, return_tensors="pt")["pixel_values"][0]
    steps = (ours - theirs).abs().max().item() / (2 / 255)
    assert steps == pytest.approx(1, abs=0.01) or steps == 0


def test_squash_needs_no_square(both):
    ours, theirs = both(noise_image(120, 77), config_for(image_size=(64, 96), crop_mode="squash"))
    assert ours.shape == (3, 64, 96)
    assert torch.equal(ours, theirs)


def test_grey_images_for_one_channel(both):
    ours, theirs = both(noise_image(120, 96), config_for(num_channels=1, mean=(0.5,), std=(0.25,)))
    assert ours.shape == (1, 96, 96)
    assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=150)
@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from([1.0, 0.95, 0.9, 0.875, 1.1, 1.25]))
def test_crop_shift_is_the_only_difference(both, width, height, crop_pct):
    """Where the crops begin at the same pixel the pixels are equal; elsewhere one is the other, shifted by one."""
    config = config_for(crop_pct=crop_pct)
    image = noise_image(width, height)
    ours, theirs = both(image, config)
    down, right = crop_shift((height, width), config)
    size = 96
    assert torch.equal(ours[:, : size - down, : size - right], theirs[:, down:, right:])
    if (down, right) != (0, 0):
        assert not torch.equal(ours, theirs)
    assert torch.equal(timm_pixels(image, config, early_crop=True), theirs)


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from([1.0, 0.9, 0.875, 1.1]), st.sampled_from(["center", "squash"]))  # fmt: skip
def test_without_the_known_differences_the_pixels_are_equal(both, width, height, crop_pct, crop_mode):
    config = config_for(crop_pct=crop_pct, crop_mode=crop_mode)
    image = noise_image(width, height).convert("RGBA")
    image.putalpha(100)
    opaque = without_transparency(image, config)
    assert torch.equal(timm_pixels(opaque, config), timm_pixels(image, config))
    assert torch.equal(timm_pixels(opaque, config, early_crop=True), both(opaque, config)[1])


@pytest.fixture(scope="module")
def both_of_timm(tmp_path_factory):
    """timm's pixels and those of a written ``timm_processor.json``."""
    folder = tmp_path_factory.mktemp("timm_processor")

    def both(image: Image.Image, config: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
        write_json(timm_processor_config(config, "vit_tiny_patch16_224"), folder / TIMM_PROCESSOR_FILE)
        return timm_pixels(image, config), huggingface_pixels(image, folder, config, "timm")[0]

    return both


def channels_of(channels: int) -> dict:
    return {"num_channels": channels} | ({"mean": (0.5,), "std": (0.25,)} if channels == 1 else {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "crop_mode"),
    [
        (name, crop_mode)
        for name in IMAGES
        for crop_mode in ("center", "squash", "border")
        # Of a line of pixels, timm would make an image of 28800 pixels first.
        if crop_mode == "squash" or name not in ("row.png", "column.png")
    ],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_timm_processor_makes_timm_s_pixels_of_every_kind_of_image(
    both_of_timm, image_files, name, channels, crop_mode
):
    """The images are passed as they are in the file, with transparency."""
    image, config = load_image(image_files / name), config_for(crop_mode=crop_mode, **channels_of(channels))
    ours, theirs = both_of_timm(image, config)
    assert theirs.shape == (channels, 96, 96)
    assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(st.integers(20, 300), st.integers(20, 300)),
    st.sampled_from([1.0, 0.95, 0.9, 0.875, 1.1]),
    st.sampled_from(["center", "squash", "border"]),
    st.sampled_from(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]),
    st.sampled_from([(96, 96), (64, 96)]),
    st.sampled_from([1, 3]),
)
def test_the_timm_processor_knows_no_differences(
    both_of_timm, image_size, crop_pct, crop_mode, interpolation, model_size, channels
):
    """Shifted crops, shapes and crop modes that Transformers' own processor lacks are timm's here."""
    config = config_for(
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        image_size=model_size,
        **channels_of(channels),
    )
    ours, theirs = both_of_timm(noise_image(*image_size), config)
    assert torch.equal(ours, theirs)


def test_the_timm_processor_is_timm_s_where_transformers_own_is_not(both, both_of_timm):
    image = noise_image(99, 96)
    assert crop_shift((96, 99), config_for()) == (0, 1)
    ours, theirs = both(image, config_for())
    assert not torch.equal(ours, theirs)
    ours, theirs = both_of_timm(image, config_for())
    assert torch.equal(ours, theirs)


def test_the_timm_processor_says_what_timm_calls_it():
    assert timm_processor_config(config_for(crop_pct=0.9), "vit_tiny_patch16_224") == {
        "image_processor_type": "TimmWrapperImageProcessor",
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "interpolation": "bicubic",
            "mean": list(MEAN),
            "std": list(STD),
            "crop_pct": 0.9,
            "crop_mode": "center",
        },
    }


def test_neither_processor_is_there_for_other_channels():
    config = config_for(num_channels=6)
    assert not makes_pixels(config)
    assert timm_processor_config(config) is None
    assert missing_processor(config) == (
        "No preprocessor_config.json: Image files have 1 or 3 channels, but the model has 6."
    )


@pytest.mark.parametrize("changes", [{"crop_mode": "border"}, {"image_size": (64, 96)}])
def test_where_transformers_own_processor_is_missing_timm_s_is_named(changes):
    config = config_for(**changes)
    assert processor_config(config) is None
    assert timm_processor_config(config)
    assert missing_processor(config).endswith(
        "Prepare images with timm_processor.json (it needs timm), as in the folder's README.md."
    )
    assert missing_processor(config_for()) is None


def test_the_timm_processor_can_be_handed_to_another_process(tmp_path):
    write_json(timm_processor_config(config_for()), tmp_path / TIMM_PROCESSOR_FILE)
    processor = load_processor(tmp_path, "timm")
    image = noise_image(120, 99)
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(*(one(image, return_tensors="pt")["pixel_values"] for one in (processor, copy)))


def test_a_processor_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no processor 'torchvision'") as caught:
        load_processor(tmp_path, "torchvision")
    assert caught.value.remedy == "Choose one of transformers, timm."
    with pytest.raises(InputError, match=r"has no timm_processor.json\.") as caught:
        load_processor(tmp_path, "timm")
    assert "vitconv convert" in caught.value.remedy
    with pytest.raises(InputError, match="has no preprocessor_config.json") as caught:
        load_processor(tmp_path)
    assert "in your own code" in caught.value.remedy
    write_json(timm_processor_config(config_for()), tmp_path / TIMM_PROCESSOR_FILE)
    with pytest.raises(InputError, match="has no preprocessor_config.json") as caught:
        load_processor(tmp_path)
    assert caught.value.remedy.startswith("Restore it, or convert the checkpoint again. With `--processor timm`")


@pytest.mark.parametrize(
    "change",
    [
        "",
        "[]",
        "{}",
        {"interpolation": "cubic"},
        {"mean": [0.5]},
        {"mean": "half"},
        {"std": None},
        {"crop_pct": "1"},
        {"crop_pct": -1},
        {"input_size": 96},
        {"input_size": [3, "a", "b"]},
    ],
)
def test_a_timm_processor_edited_by_hand_fails_in_words_or_makes_other_pixels(tmp_path, change):
    """``std`` of null is timm's default, one ``mean`` is meant for all channels: so timm reads its own tags."""
    config = config_for(std=(0.5,) * 3)
    content = timm_processor_config(config)
    if isinstance(change, str):
        (tmp_path / TIMM_PROCESSOR_FILE).write_text(change)
    else:
        content["pretrained_cfg"] |= change
        (tmp_path / TIMM_PROCESSOR_FILE).write_text(json.dumps(content))
    try:
        processor = load_processor(tmp_path, "timm")
    except InputError as error:
        assert "has no timm_processor.json that Transformers can read" in error.problem
        return
    assert change in ({"mean": [0.5]}, {"std": None}, {"crop_pct": -1}, {"input_size": [3, "a", "b"]})
    image = noise_image(120, 99)
    try:
        pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    except Exception:
        return
    assert not torch.equal(pixels, timm_pixels(image, config))


def evil(folder, file, change):
    """Put code into a folder that leaves a file behind, and let stdin agree to run it."""
    folder.mkdir(exist_ok=True)
    (folder / "evil.py").write_text(f"open({str(folder / 'RUN')!r}, 'w')\nclass Foo: pass\n")
    (folder / "config.json").write_text("{}")
    write_json(change, folder / file)


@pytest.mark.parametrize("file", [PROCESSOR_FILE, NESTED_FILE, TIMM_PROCESSOR_FILE, "config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_folder_is_neither_run_nor_asked_about(tmp_path, monkeypatch, capsys, file, known):
    processor = {"auto_map": {"AutoImageProcessor": "evil.Foo", "AutoConfig": "evil.Foo"}}
    if known:
        processor |= {"image_processor_type": "Foo", "model_type": "foo"}
    evil(tmp_path, file, {"image_processor": processor} if file == NESTED_FILE else processor)
    if file == "config.json":
        write_json({}, tmp_path / PROCESSOR_FILE)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    for load in (load_processor, lambda folder: load_processor(folder, "timm"), load_any_processor):
        with pytest.raises(InputError):
            load(tmp_path)
    assert not (tmp_path / "RUN").exists()
    assert "custom code" not in capsys.readouterr().out


def test_another_file_than_the_folder_s_own_may_not_change_the_settings(tmp_path):
    """Transformers takes the image processor in processor_config.json first; and that in timm's config.json."""
    own = processor_config(config_for())
    write_json(own, tmp_path / PROCESSOR_FILE)
    write_json(timm_processor_config(config_for()), tmp_path / TIMM_PROCESSOR_FILE)
    for harmless in ({"processor_class": "CLIPProcessor"}, {"image_processor": None}):
        write_json(harmless, tmp_path / NESTED_FILE)
        assert load_processor(tmp_path, "timm").data_config["mean"] == MEAN
        assert tuple(load_processor(tmp_path).image_mean) == MEAN
    write_json({"image_processor": own}, tmp_path / NESTED_FILE)
    assert tuple(load_processor(tmp_path).image_mean) == MEAN
    write_json({"image_processor": own | {"image_mean": [0.1] * 3}}, tmp_path / NESTED_FILE)
    assert tuple(load_any_processor(tmp_path).image_mean) == (0.1,) * 3
    with pytest.raises(InputError, match=r"from processor_config.json, with other .* \(image_mean\)") as caught:
        load_processor(tmp_path)
    assert caught.value.remedy == "Remove processor_config.json."
    with pytest.raises(InputError, match="has no timm_processor.json that Transformers can read") as caught:
        load_processor(tmp_path, "timm")
    assert "Remove processor_config.json" in caught.value.remedy
    write_json({"image_processor": timm_processor_config(config_for(mean=(0.1,) * 3))}, tmp_path / NESTED_FILE)
    with pytest.raises(InputError, match="from processor_config.json, with other settings"):
        load_processor(tmp_path, "timm")
    (tmp_path / NESTED_FILE).unlink()
    write_json({"pretrained_cfg": {}, "architecture": "x", "model_type": "vit"}, tmp_path / "config.json")
    with pytest.raises(InputError, match="from config.json, with other settings"):
        load_processor(tmp_path)
    (tmp_path / PROCESSOR_FILE).unlink()
    (tmp_path / "config.json").unlink()
    write_json({"image_processor": own}, tmp_path / NESTED_FILE)
    with pytest.raises(InputError, match="has no preprocessor_config.json"):
        load_processor(tmp_path)
    (tmp_path / NESTED_FILE).unlink()
    (tmp_path / NESTED_FILE).symlink_to("/proc/kmsg")
    with pytest.raises(InputError):
        load_processor(tmp_path)


@pytest.mark.slow
def test_without_timm_it_says_what_to_install(tmp_path):
    """Transformers' own processor does not need it."""
    write_json(processor_config(config_for()), tmp_path / PROCESSOR_FILE)
    write_json(timm_processor_config(config_for()), tmp_path / TIMM_PROCESSOR_FILE)
    script = (
        "import sys; sys.modules['timm'] = None\n"
        "from vitconv.models.processors import load_processor\n"
        "from vitconv.errors import InputError\n"
        "load_processor(sys.argv[1])\n"
        "try: load_processor(sys.argv[1], 'timm')\n"
        "except InputError as error: print(error.problem, error.remedy)"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "timm_processor.json needs timm and torchvision" in run.stdout
    assert "pip install timm torchvision, or choose the processor 'transformers'" in run.stdout


def test_a_missing_processor_has_a_reason():
    assert "pads the borders" in obstacle(config_for(crop_mode="border"))
    assert "rectangle" in obstacle(config_for(image_size=(64, 96)))
    assert "the model has 6" in obstacle(config_for(num_channels=6))
    assert "'random'" in obstacle(config_for(interpolation="random"))
    assert obstacle(config_for()) is None
    assert processor_config(config_for(crop_mode="border")) is None


def test_the_config_is_timm_s():
    model = timm.create_model("vit_base_patch16_384.augreg_in21k_ft_in1k")
    config = data_config(tag_config(model.pretrained_cfg), from_timm(model))
    assert config == DataConfig((384, 384), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    deit = timm.create_model("deit3_small_patch16_384")
    assert data_config(tag_config(deit.pretrained_cfg), from_timm(deit)).mean == MEAN


def test_the_size_is_the_weights_not_the_tag_s():
    model = small_model("not square")
    assert data_config(tag_config(model.pretrained_cfg), from_timm(model)).image_size == (32, 64)


def test_grey_models_average_mean_and_std():
    model = small_model("one channel")
    config = data_config(tag_config(model.pretrained_cfg), from_timm(model))
    assert config.mean == (0.5,)
    assert len(config.std) == 1


def test_given_values_override_the_tag():
    model = small_model()
    config = data_config(
        tag_config(model.pretrained_cfg), from_timm(model), {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.8}
    )
    assert config.mean == (0.1, 0.2, 0.3)
    assert config.crop_pct == 0.8
    assert config.std == (0.5,) * 3
    assert config.origin == "mean, crop_pct as given, the rest from timm's pretrained tag 'augreg_in21k_ft_in1k'"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"means": [0, 0, 0]}, "unknown name 'means'"),
        ({"mean": [0.5]}, "`mean` is"),
        ({"mean": "0.5"}, "`mean` is '0.5'"),
        ({"std": [0.5, 0, 0.5]}, "`std` is"),
        ({"crop_pct": 0}, "`crop_pct` is 0"),
        ({"crop_pct": True}, "`crop_pct` is True"),
        ({"mean": [False, False, False]}, "`mean` is"),
        ({"std": [1, True, 1]}, "`std` is"),
        ({"crop_mode": "middle"}, "`crop_mode` is 'middle'"),
        ({"interpolation": 3}, "`interpolation` is 3"),
        ({"input_size": [3, 224, 224]}, "`input_size` is"),
    ],
)
def test_a_nonsensical_data_configuration_is_named(given, message):
    model = small_model()
    with pytest.raises(InputError, match=message) as caught:
        data_config(tag_config(model.pretrained_cfg), from_timm(model), given)
    assert caught.value.remedy


def test_reads_a_data_configuration(tmp_path):
    (tmp_path / "data.json").write_text('{"crop_pct": 0.9}')
    assert read_data_config(tmp_path / "data.json") == {"crop_pct": 0.9}
    (tmp_path / "config.json").write_text('{"architecture": "x", "pretrained_cfg": {"crop_pct": 0.9, "url": "…"}}')
    assert read_data_config(tmp_path / "config.json") == {"crop_pct": 0.9}


@pytest.mark.parametrize(("content", "message"), [("[]", "is not a JSON object"), ("{", "is not readable JSON")])
def test_files_that_are_no_data_configuration_are_refused(content, message, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_data_config(tmp_path / "data.json")
    with pytest.raises(InputError, match="There is no data configuration"):
        read_data_config(tmp_path / "none.json")


def test_probe_pixels_are_what_they_say():
    noise, black, white, board = probe_pixels(config_for())
    assert torch.allclose(black[:, 0, 0], -torch.tensor(MEAN) / torch.tensor(STD))
    assert (white > black).all()
    assert torch.equal(board[:, 0, 0], black[:, 0, 0]) and torch.equal(board[:, 0, 1], white[:, 0, 1])
    assert noise.std() > 0.1
    assert probe_pixels(config_for(num_channels=6)).shape == (4, 6, 96, 96)


def test_resize_rounds_as_timm_does():
    assert config_for(image_size=(224, 224), crop_pct=0.95).resize == (math.floor(224 / 0.95),) * 2


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n truncated"])
def test_files_that_are_no_image_are_refused(content, tmp_path):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match=r"image.png' is not an image that can be read"):
        load_image(tmp_path / "image.png")


def test_refuses_a_missing_image(tmp_path):
    with pytest.raises(InputError, match="There is no image"):
        load_image(tmp_path / "none.png")


def test_refuses_a_truncated_image(tmp_path):
    noise_image(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(InputError, match="is not an image"):
        load_image(tmp_path / "image.png")


def processors(folder, config):
    """The image processors of a folder with this configuration."""
    write_json(timm_processor_config(config), folder / TIMM_PROCESSOR_FILE)
    if processor_config(config):
        write_json(processor_config(config), folder / PROCESSOR_FILE)
    return [load_processor(folder, name) for name in (["transformers"] if processor_config(config) else []) + ["timm"]]


@pytest.mark.parametrize(
    ("size", "changes", "between"),
    [
        ((1, 200_000), {}, "96x19200000"),
        ((1_000_000, 1), {}, "96000000x96"),
        ((2, 2_000_000), {"crop_mode": "squash"}, "96x2000000"),  # 96x96 in the end, and on the way 96 wide
        ((1, 500_000), {"image_size": (96, 128)}, "128x64000000"),
    ],
)
def test_an_image_that_its_resize_makes_too_large_is_refused_before(tmp_path, size, changes, between):
    config = config_for(**changes)
    Image.new("L", size).save(tmp_path / "thin.png")
    image = load_image(tmp_path / "thin.png")
    message = rf"thin.png' is {size[0]}x{size[1]} pixels, and {between} while it is resized; at most 50,331,648"
    with pytest.raises(InputError, match=message):
        timm_pixels(image, config)
    for processor in processors(tmp_path, config):
        with pytest.raises(InputError, match=message):
            process(image, processor, 3)
    with pytest.raises(InputError, match=f"^The image is {size[0]}x{size[1]} pixels"):
        timm_pixels(Image.new("L", size), config)


@pytest.mark.parametrize("changes", [{}, {"crop_mode": "squash"}, {"crop_mode": "border"}, {"image_size": (96, 128)}])
def test_up_to_the_bound_an_image_has_timms_pixels(tmp_path, monkeypatch, changes):
    """The computed size is the one that timm's resize makes: with a bound one pixel lower, it is refused."""
    config = config_for(**changes)
    image = noise_image(300, 40)
    made = []
    real = Image.Image.resize

    def resize(self, size, *args, **kwargs):
        made.append(size)
        return real(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    timm_pixels(image, config)
    (width, height) = made[0]
    bound = max(width * max(height, 40), 300 * 40)
    for processor in [*processors(tmp_path, config), None]:
        monkeypatch.setattr(images, "MOST_PIXELS", bound)
        pixels = process(image, processor, 3)[0] if processor else timm_pixels(image, config)
        assert pixels.shape == (3, *config.image_size)
        monkeypatch.setattr(images, "MOST_PIXELS", bound - 1)
        with pytest.raises(InputError, match="at most"):
            process(image, processor, 3) if processor else timm_pixels(image, config)


@st.composite
def resizes(draw):
    """Settings of a processor of Transformers', and an image: its size, mode and transparency."""
    crop, side = draw(st.integers(1, 40)), draw(st.integers(1, 48))
    other = draw(st.integers(1, 48))
    options = {
        "size": draw(st.sampled_from([{"shortest_edge": side}, {"height": side, "width": other}])),
        "crop_size": {"height": crop, "width": draw(st.integers(1, 40))},
        "resample": draw(st.integers(0, 5)),
        "do_center_crop": draw(st.booleans()),
        "do_resize": draw(st.sampled_from([True, True, True, False])),
    }
    size = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    return options, size, draw(st.sampled_from(["RGB", "RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "transparent"]))


@given(resizes(), st.sampled_from([3, 1]))
@example(({"size": {"shortest_edge": 20}, "do_center_crop": False}, (40, 30), "transparent"), 3)
@settings(deadline=None, max_examples=300)
def test_an_image_resized_first_has_the_pixels_of_the_processor(case, channels):
    options, size, mode = case
    processor = CLIPImageProcessorPil(
        image_mean=MEAN[:channels], image_std=STD[:channels], do_convert_rgb=channels == 3, **options
    )
    image = noise_image(*size).convert("RGB" if mode == "transparent" else mode)
    if mode == "transparent":
        image.info["transparency"] = image.getpixel((0, 0))
    assert torch.equal(
        process(resize_first(image, processor, channels), processor, channels), process(image, processor, channels)
    )


@pytest.mark.parametrize(
    ("options", "mode", "expected"),
    [
        ({"size": {"shortest_edge": 32}}, "RGB", (40, 32)),
        ({"size": {"height": 32, "width": 32}}, "RGB", (32, 32)),
        ({"size": {"shortest_edge": 32}, "do_resize": False}, "RGB", (100, 80)),
        ({"size": {"shortest_edge": 32, "longest_edge": 35}}, "RGB", (100, 80)),
        ({"size": {"shortest_edge": 32}, "resample": None}, "RGB", (100, 80)),
        ({"size": {"shortest_edge": 32}}, "RGBA", (100, 80)),
        ({"size": {"shortest_edge": 32}}, "L", (100, 80)),
    ],
)
def test_an_image_is_resized_first_only_where_the_pixels_are_known_to_be_the_same(options, mode, expected):
    processor = CLIPImageProcessorPil(**options)
    image = Image.new(mode, (100, 80))
    assert resize_first(image, processor, 3).size == expected
    assert resize_first(image, ViTImageProcessorPil(**options), 3) is image  # not the class that vitconv writes


def test_resizing_first_has_the_bounds_of_the_processor():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    with pytest.raises(InputError, match="The image is 200000x1 pixels, and 19200000x96 while it is resized"):
        resize_first(Image.new("RGB", (200_000, 1)), processor, 3)


def test_a_crop_that_is_too_large_is_refused_before(tmp_path):
    """The crop of a processor edited by hand: everything around the image would be padded."""
    content = processor_config(config_for()) | {"crop_size": {"height": 10**6, "width": 10**6}}
    write_json(content, tmp_path / PROCESSOR_FILE)
    with pytest.raises(InputError, match="and 1000000x1000000 while it is resized"):
        process(noise_image(100, 100), load_processor(tmp_path), 3)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_loaded(tmp_path, monkeypatch, recwarn):
    """Those of which Pillow only warns (without the warning), and those that it refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    for size, said in (((40, 40), "40x40 pixels"), ((50, 50), "50x50 pixels"), ((70, 70), "4,900 pixels")):
        Image.new("L", size).save(tmp_path / f"{size[0]}.png")
        monkeypatch.setattr(images, "MOST_PIXELS", 1599)
        with pytest.raises(InputError, match=rf"{size[0]}.png' (is|has) {said}; at most 1,599"):
            load_image(tmp_path / f"{size[0]}.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 1600)
    assert load_image(tmp_path / "40.png").size == (40, 40)
    assert not recwarn.list
    assert MOST_PIXELS < 89_478_485  # what Pillow's own limit is


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "EPS", "TGA", "DDS", "SGI"])
def test_formats_that_are_not_read(kind, tmp_path):
    """An icon's file may hold pictures of any size, and others are read in Python."""
    Image.new("RGB", (32, 32)).save(tmp_path / "image", kind)
    with pytest.raises(InputError, match="image' is not an image that can be read"):
        load_image(tmp_path / "image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM"])
def test_formats_that_are_read(kind, tmp_path):
    Image.new("RGB", (32, 24), "white").save(tmp_path / "image", kind)
    assert load_image(tmp_path / "image").convert("RGB").getpixel((3, 3)) == (255, 255, 255)


def test_what_is_read_in_python_is_refused(tmp_path):
    (tmp_path / "plain.ppm").write_text("P3 1 1 255 9 9 9")
    with pytest.raises(InputError, match="plain.ppm' is a kind of PPM that takes too long to read"):
        load_image(tmp_path / "plain.ppm")


def test_tiles_may_not_be_larger_than_their_image(tmp_path):
    """The decoder makes room for a whole tile: here of 715 MB, for an image of 8x8."""

    def write(width, height):
        tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, width), (323, height)]
        data = zlib.compress(bytes(width * height))
        tags += [(324, 8), (325, len(data))]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        file = (
            struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
        )
        (tmp_path / "tiles.tif").write_bytes(file)

    write(16, 16)
    assert load_image(tmp_path / "tiles.tif").size == (8, 8)
    write(16, 2**20)
    with pytest.raises(InputError, match="tiles.tif' has tiles of 16x1048576 pixels, which are larger than the image"):
        load_image(tmp_path / "tiles.tif")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "JPEG"])
def test_an_image_may_not_be_in_any_number_of_pieces(kind, tmp_path, monkeypatch):
    """Comments, chunks and segments are looked at in Python, one by one: 40 MB of them took gigabytes."""
    Image.new("RGB", (32, 32)).save(tmp_path / "image", kind)
    content = (tmp_path / "image").read_bytes()
    piece, at = {
        "GIF": (b"!\xfe\x01a\x00", content.find(b",")),
        "PNG": (struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd")), 33),
        "JPEG": (b"\xff\xed\x00\x04aa", 2),
    }[kind]
    (tmp_path / "image").write_bytes(content[:at] + piece * 1000 + content[at:])
    assert load_image(tmp_path / "image").size == (32, 32)
    monkeypatch.setattr(images, "_MOST_PIECES", 900)
    with pytest.raises(InputError, match="image' consists of too many pieces"):
        load_image(tmp_path / "image")


def test_an_image_may_not_have_any_number_of_bytes_in_small_pieces(tmp_path):
    """Pillow joins segments of Exif to what it has, again and again."""
    Image.new("RGB", (32, 32)).save(tmp_path / "image.jpg")
    content = (tmp_path / "image.jpg").read_bytes()
    segment = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)
    (tmp_path / "image.jpg").write_bytes(content[:2] + segment * 600 + content[2:])
    with pytest.raises(InputError, match="image.jpg' consists of too many pieces"):
        load_image(tmp_path / "image.jpg")


@pytest.mark.parametrize(("order", "large"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_may_not_be_in_any_number_of_strips(order, large, tmp_path):
    Image.new("L", (32, 32)).save(tmp_path / "image.tif", big_tiff=large)
    load_image(tmp_path / "image.tif")
    number = "Q" if large else "I"
    entry = struct.pack(f"{order}HH{number}{number}", 273, 4, 200_000, 0)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if large else 42)
    start += struct.pack(f"{order}HHQ", 8, 0, 16) if large else struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}{'Q' if large else 'H'}", 1) + entry + bytes(8)
    (tmp_path / "image.tif").write_bytes(start + directory)
    with pytest.raises(InputError, match="image.tif' is a TIFF with more than 131,072 strips"):
        load_image(tmp_path / "image.tif")


def test_a_progressive_photo_may_not_have_any_number_of_scans(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg", progressive=True)
    content = (tmp_path / "photo.jpg").read_bytes()
    scans = content.count(b"\xff\xda")
    assert 5 < scans < 20
    monkeypatch.setattr(images, "_MOST_SCANNED", 20 * 96 * 64)
    assert load_image(tmp_path / "photo.jpg").size == (64, 96)
    (tmp_path / "photo.jpg").write_bytes(content[:-2] + b"\xff\xda" * (21 - scans) + content[-2:])
    with pytest.raises(InputError, match="photo.jpg' has 21 scans of 6,144 pixels each"):
        load_image(tmp_path / "photo.jpg")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    os.truncate(tmp_path / "image.png", MOST_BYTES)  # what follows an image does not matter
    assert load_image(tmp_path / "image.png").size == (8, 8)
    os.truncate(tmp_path / "image.png", MOST_BYTES + 1)
    with pytest.raises(InputError, match="image.png' has 268,435,457 bytes; at most 268,435,456"):
        load_image(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pipe", "it is a pipe"),
        ("/dev/zero", "it is a device"),
        ("/proc/self/mem", "it is empty"),
        ("/proc/kmsg", "it is empty"),
        ("empty.png", "it is empty"),
    ],
)
def test_pipes_and_devices_are_refused_as_images(tmp_path, name, what):
    if name.startswith("/proc") and not os.access(name, os.R_OK):
        pytest.skip("This system has no such file.")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / name)
    for path in (tmp_path / name, tmp_path / "link.png"):
        with pytest.raises(InputError, match=rf"' is not an image that can be read: {what}\.\n") as caught:
            load_image(path)
        assert str(path) in caught.value.problem


COLOURS = ["1", "L", "LA", "I;16", "I", "F", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"]


@pytest.mark.parametrize("mode", COLOURS)
def test_every_kind_of_colours_has_timms_pixels(tmp_path, mode):
    """Without the two known differences, of a file: for models of three channels and of one."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (96, 100, 3), dtype=np.uint8)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(values[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (100, 96), values.tobytes())
    else:
        image = Image.fromarray(values).convert(mode)
    image.save(tmp_path / ("image.jpg" if mode == "YCbCr" else "image.tif"))
    image = load_image(tmp_path / ("image.jpg" if mode == "YCbCr" else "image.tif"))
    for channels in (3, 1):
        config = config_for(num_channels=channels, mean=MEAN[:channels], std=STD[:channels])
        if (mode, channels) == ("LAB", 1):
            with pytest.raises(
                InputError, match=r"image.tif' has colours \('LAB'\) that Pillow cannot convert to 'L'"
            ):
                timm_pixels(image, config)
            continue
        for processor in processors(tmp_path, config):
            assert torch.equal(process(image, processor, channels)[0], timm_pixels(image, config))


@pytest.mark.parametrize("name", ["image.gif", "image.png", "image.webp", "image.tif"])
def test_of_several_frames_the_first_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(tmp_path / name).convert("RGB").getcolors() == [(1200, (255, 0, 0))]


def test_a_file_that_is_mostly_exif_is_read_or_refused(tmp_path):
    """A megabyte of EXIF in pieces, and a piece that claims more bytes than there are."""
    noise_image(40, 30).save(tmp_path / "image.jpg", quality=95)
    content = (tmp_path / "image.jpg").read_bytes()
    piece = b"\xff\xe1\xff\xff" + b"Exif\0\0" + b"MM\0*\0\0\0\x08" + bytes(65535 - 16)
    (tmp_path / "exif.jpg").write_bytes(content[:2] + piece * 16 + content[2:])
    assert load_image(tmp_path / "exif.jpg").tobytes() == load_image(tmp_path / "image.jpg").tobytes()
    (tmp_path / "exif.jpg").write_bytes(content[:2] + piece[:1000] + content[2:])
    with pytest.raises(InputError, match="is not an image that can be read"):
        load_image(tmp_path / "exif.jpg")


def test_the_sample_image_has_detail():
    pixels = np.asarray(sample_image(), dtype=int)
    assert pixels.shape == (448, 600, 3)
    assert all(len(np.unique(pixels[..., channel])) > 100 or channel == 2 for channel in range(3))
