"""Every Vision Transformer that timm lists: proved at a reduced size, or refused for the reason that is recorded."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from models import WITHOUT_HEAD, each, reduced

from vitconv import mapping
from vitconv.convert import to_huggingface
from vitconv.errors import ArchitectureError
from vitconv.models import catalogue
from vitconv.models.catalogue import entries
from vitconv.models.timm import build_timm, from_timm, understand
from vitconv.parity import compare
from vitconv.parity.verification import treats_tokens_alike


@pytest.mark.parametrize("name", each(entries()))
def test_the_catalogue_says_what_timm_says(name):
    """What converts and as what, what is refused and why, as read from the installed timm."""
    written = json.loads(catalogue.FILE.read_text())["architectures"][name]
    assert json.loads(json.dumps(catalogue.catalogue_entry(name, build_timm(name)))) == written


@pytest.mark.parametrize("name", each(name for name, entry in entries().items() if entry.architecture))
def test_what_converts_computes_the_same(name):
    check(reduced(name), mapping.class_name(entries()[name].architecture))


@pytest.mark.parametrize("count", [7, 0])
@pytest.mark.parametrize("name", each(name for name, entry in entries().items() if entry.facts))
def test_with_a_head_of_ones_own_and_without_one_it_computes_the_same(name, count):
    """In a class of Transformers, or with a head of code. The wrapper's matrix is in tests/unit/parity/test_wrapper.py."""
    model, becomes = reduced(name, num_classes=count), catalogue.with_classes(entries()[name], count)
    # That nothing but the number of classes changes is what the catalogue takes for granted.
    assert understand(model) == replace(understand(reduced(name)), num_labels=count)
    if becomes.option == "--target timm_wrapper":
        with pytest.raises(ArchitectureError):
            from_timm(model)
    else:
        check(model, becomes.class_name, "head_code" if becomes.option else None)


@pytest.mark.parametrize("name", WITHOUT_HEAD)
def test_what_converts_without_its_head_computes_the_same(name):
    check(reduced(name, num_classes=0), mapping.class_name(from_timm(build_timm(name, num_classes=0))))


@pytest.mark.parametrize("more", [{"global_pool": pool} for pool in ("avg", "")] + [{"class_token": True}])
def test_registers_without_any_norm_after_the_blocks(more):
    """What is left of a mean-pooled model with registers, when its norm belongs to the head."""
    name = "vit_base_patch16_reg4_gap_256"
    check(reduced(name, num_classes=0, fc_norm=False, final_norm=False, **more), "RadioModel")


def check(model, expected, target=None):
    small = from_timm(model)
    twin = to_huggingface(model, target=target, verify=False)
    assert type(twin).__name__ == expected
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, small.num_channels, *small.image_size, generator=generator)
    compare(model, twin, pixels, dtypes=["float64"]).assert_match()
    if treats_tokens_alike(small):
        few = compare(model, twin, pixels, dtypes=["float64"], tokens=10)
        few.assert_match()
        assert few["float64"].tokens == 10


def test_all_of_timm_has_a_verdict():
    listed = {name for module in catalogue.MODULES for name in timm.list_models(module=module)}
    assert set(entries()) == listed
    assert all((entry.architecture is None) != (entry.refusal is None) for entry in entries().values())
    assert all(entry.architecture in (None, entry.facts) for entry in entries().values())


def test_the_page_says_what_the_catalogue_says():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(root / "tools" / "coverage_page.py"))["coverage_page"]()
    own = [catalogue.with_classes(entry, 7) for entry in entries().values()]
    assert f"**{sum(not one.option for one in own)} of the {len(entries())} that timm" in page
