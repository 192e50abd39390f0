from dataclasses import replace

import pytest

from vitconv.mapping import timm_shapes
from vitconv.models import catalogue
from vitconv.models.catalogue import candidates, entries, look_up
from vitconv.models.timm import from_name

CONVERTIBLE = [name for name, entry in entries().items() if entry.architecture]


def test_the_catalogue_is_of_the_installed_timm():
    assert catalogue.is_current()


def test_a_tag_s_preprocessing_counts():
    assert look_up("vit_base_patch16_224").data["mean"] == [0.5, 0.5, 0.5]
    assert look_up("vit_base_patch16_224.dino").data["mean"] == [0.485, 0.456, 0.406]
    assert look_up("vit_base_patch16_224.dino").data["tag"] == "dino"
    assert look_up("vit_base_patch16_384").architecture == from_name("vit_base_patch16_384")


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224.nosuchtag", "nosuchmodel", "resnet50", "vit_srelpos_small_patch16_224"]
)
def test_unknown_names_are_left_to_timm(name):
    assert look_up(name) is None


def test_the_catalogue_is_not_used_with_another_timm(monkeypatch):
    catalogue.is_current.cache_clear()
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.9")
    assert look_up("vit_base_patch16_384") is None
    catalogue.is_current.cache_clear()


@pytest.mark.parametrize(("count", "headed"), [(7, True), (None, False), (0, False)])
def test_a_model_that_vitconv_cannot_read_has_a_head_where_timm_lists_it_with_one(count, headed):
    """timm lists EVA-02 for 224 pixels without a head, and for 336 with one."""
    own = catalogue.with_classes(entries()["eva02_tiny_patch14_224"], count)
    assert (own.class_name, own.pipeline) == (
        ("TimmWrapperForImageClassification", True) if headed else ("TimmWrapperModel", False)
    )
    assert catalogue.with_classes(entries()["eva02_tiny_patch14_336"], None).pipeline


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_architecture_is_a_candidate_for_its_own_weights(name):
    shapes = timm_shapes(entries()[name].architecture)
    assert name in [candidate.name for candidate in candidates(shapes)]


def test_candidates_that_differ_in_nothing_have_no_differences():
    found = candidates(timm_shapes(entries()["vit_base_patch8_224"].architecture))
    assert catalogue.differences(found) == {}


def test_weights_tell_architectures_apart_by_what_no_user_chooses():
    one = timm_shapes(look_up("vit_base_patch16_384").architecture)
    other = timm_shapes(replace(look_up("vit_base_patch16_224").architecture, num_labels=7, num_channels=1))
    assert catalogue._fixed_shapes(one) == catalogue._fixed_shapes(other)
    assert catalogue._fixed_shapes(one) != catalogue._fixed_shapes({**one, "reg_token": (1, 4, 768)})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ViT-S/16", "vit_small_patch16_224"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("deit-tiny", "deit_tiny_patch16_224"),
        ("vit_tiny_patch16_225", "vit_tiny_patch16_224"),
        ("resnet", None),
    ],
)
def test_a_name_that_timm_does_not_have_is_near_others(given, meant):
    assert next(iter(catalogue.similar_names(given)), None) == meant
