import subprocess
import sys

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st
from models import KINDS, small_hybrid, small_model

from vitconv.architecture import MOST_PIXELS, check_image_size, describe_shapes, fit_to_weights
from vitconv.errors import InputError, WeightsError
from vitconv.mapping.plan import shapes_of
from vitconv.models.catalogue import entries
from vitconv.models.timm import from_name, from_timm


def test_every_small_model_fits_its_own_weights():
    for kind in KINDS:
        model = small_model(kind)
        architecture = from_timm(model)
        assert fit_to_weights(architecture, shapes_of(model.state_dict())) == architecture


def shapes(patches: int, classes: int = 7, channels: int = 3) -> dict[str, tuple[int, ...]]:
    return {
        "pos_embed": (1, patches + 1, 192),
        "patch_embed.proj.weight": (192, channels, 16, 16),
        "head.weight": (classes, 192),
        "blocks.0.norm1.weight": (192,),
    }


@given(st.integers(1, 40), st.integers(1, 2000), st.integers(1, 12))
def test_sizes_are_read_from_the_weights(side, classes, channels):
    fitted = fit_to_weights(TINY, shapes(side * side, classes, channels))
    assert fitted.grid == (side, side)
    assert (fitted.num_labels, fitted.num_channels) == (classes, channels)


TINY = from_name("vit_tiny_patch16_224")


def test_a_rectangle_needs_its_size():
    with pytest.raises(InputError) as caught:
        fit_to_weights(TINY, shapes(8 * 12))
    assert "96 patches, which is not a square number" in caught.value.problem
    assert "128x192" in caught.value.remedy
    assert fit_to_weights(TINY, shapes(8 * 12), (128, 192)).grid == (8, 12)


def test_a_square_without_class_position_is_pointed_out():
    with pytest.raises(InputError) as caught:
        fit_to_weights(TINY, shapes(195))
    assert caught.value.remedy.endswith("or, as 196 is a square, name an architecture with `no_embed_class`.")


def test_relative_positions_tell_the_size():
    known = entries()["beit_base_patch16_224"].architecture
    table = {
        "blocks.0.attn.relative_position_bias_table": (47 * 47 + 3, 12),
        "patch_embed.proj.weight": (768, 3, 16, 16),
    }
    assert fit_to_weights(known, table).image_size == (384, 384)
    with pytest.raises(InputError, match="makes 14x14 patches, but the relative positions were trained for 24x24"):
        fit_to_weights(known, table, (224, 224))
    sam = entries()["samvit_base_patch16"].architecture
    shapes = {"pos_embed": (1, 32, 32, 768), "patch_embed.proj.weight": (768, 3, 16, 16)}
    assert fit_to_weights(sam, shapes).image_size == (512, 512)


def test_rotary_positions_fit_any_size():
    known = entries()["vit_small_patch16_dinov3"].architecture
    assert fit_to_weights(known, {"patch_embed.proj.weight": (384, 3, 16, 16)}, (320, 160)).image_size == (320, 160)


def test_a_size_must_be_one_that_an_image_may_have():
    check_image_size((MOST_PIXELS // 2, 2))
    for size in ((MOST_PIXELS // 2 + 1, 2), (10**30, 32), (10**5000, 1)):
        with pytest.raises(InputError, match="is too large: an image has 50,331,648 pixels at most"):
            check_image_size(size)


def test_a_size_must_be_positive():
    with pytest.raises(InputError, match="Image size -224x-224 is not positive"):
        fit_to_weights(TINY, shapes(14 * 14), (-224, -224))


def test_a_size_that_contradicts_the_weights_is_refused():
    with pytest.raises(InputError) as caught:
        fit_to_weights(TINY, shapes(14 * 14), (384, 384))
    assert "384x384 makes 24x24 patches, but `pos_embed` was trained for 196" in caught.value.problem
    assert "224x224" in caught.value.remedy


@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.weight"])
def test_a_tensor_that_tells_a_size_must_be_there(name):
    with pytest.raises(WeightsError, match=f"`{name}` is missing"):
        fit_to_weights(TINY, {key: shape for key, shape in shapes(196).items() if key != name})
    with pytest.raises(WeightsError, match=f"`{name}` has shape"):
        fit_to_weights(TINY, {**shapes(196), name: (3,)})


NAFLEX = entries()["naflexvit_base_patch16_siglip"].architecture
NAFLEX_SHAPES = {"embeds.proj.weight": (768, 16 * 16 * 3), "embeds.pos_embed": (1, 16, 16, 768)}


@pytest.mark.parametrize(
    ("size", "fitted", "grid"),
    [(None, (384, 384), (16, 16)), ((512, 96), (512, 96), (16, 16)), ((256, 256), (256, 256), ())],
)
def test_a_model_for_any_size_takes_the_one_that_is_asked_for(size, fitted, grid):
    found = fit_to_weights(NAFLEX, NAFLEX_SHAPES, size)
    assert (found.image_size, found.position_grid, found.num_channels) == (fitted, grid, 3)
    assert fit_to_weights(found, NAFLEX_SHAPES, (384, 384)) == NAFLEX


def test_a_model_for_any_size_tells_its_channels_and_its_grid():
    shapes = {"embeds.proj.weight": (768, 16 * 16), "embeds.pos_embed": (1, 24, 24, 768), "head.weight": (7, 768)}
    found = fit_to_weights(NAFLEX, shapes)
    assert (found.num_channels, found.position_grid, found.num_labels) == (1, (), 7)


@pytest.mark.parametrize("size", [(250, 256), (256, 8), (0, 256), (-256, 256)])
def test_a_size_that_patches_do_not_divide_is_refused_for_a_model_for_any_size(size):
    with pytest.raises(InputError, match=f"Image size {size[0]}x{size[1]} is no multiple of the patches' 16x16"):
        fit_to_weights(NAFLEX, NAFLEX_SHAPES, size)


@pytest.mark.parametrize("name", NAFLEX_SHAPES)
def test_a_model_for_any_size_has_the_tensors_that_tell_it(name):
    with pytest.raises(WeightsError, match=f"`{name}` is missing"):
        fit_to_weights(NAFLEX, {key: shape for key, shape in NAFLEX_SHAPES.items() if key != name})


def test_describes_what_the_shapes_tell():
    model = timm.create_model("vit_tiny_patch16_384", num_classes=1)
    assert describe_shapes(shapes_of(model.state_dict())) == (
        "width 192, 12 blocks, patch 16x16, 3 channels, image 384x384, 1 class"
    )
    assert describe_shapes({"conv1.weight": (64, 3, 7, 7)}) == ""


def test_a_hybrid_s_sizes_are_read_from_its_first_convolution_and_positions():
    known = from_name("vit_base_r50_s16_224")
    model = small_hybrid(img_size=64, in_chans=4)
    hybrid = shapes_of(model.state_dict())
    fitted = fit_to_weights(known, hybrid)
    assert (fitted.image_size, fitted.grid, fitted.num_channels, fitted.num_labels) == ((64, 64), (4, 4), 4, 5)
    assert describe_shapes(hybrid) == (
        "width 64, 2 blocks, a convolutional network before the patches, 17 positions, 5 classes"
    )


def test_the_torch_free_modules_import_no_torch():
    code = "import sys, vitconv.architecture, vitconv.mapping, vitconv.mapping.plan, vitconv.models.catalogue, vitconv.cli; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
