"""What a notebook shows of the results: a table that holds other people's names as they are, and a short repr."""

import pytest
import torch
from markdown_it import MarkdownIt
from models import pixels_for, small_model

from vitconv.checkpoints.checkpoint import open_source
from vitconv.convert import convert_checkpoint, inspect_checkpoint, revert_checkpoint, to_huggingface
from vitconv.models.catalogue import entries, look_up, verdicts
from vitconv.parity import compare
from vitconv.source import SourceOptions, identify

MARKDOWN = MarkdownIt("commonmark").enable("table")
#: A script, a picture, and what ends a row of a table.
HOSTILE = "<script>a</script> ![a](http:e.org) | `b`"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("display")
    model = small_model()
    torch.save(model.state_dict(), folder / HOSTILE.replace("/", "∕"))
    checkpoint = folder / HOSTILE.replace("/", "∕")
    done = convert_checkpoint(checkpoint, folder / "*hf*", architecture=model, data={"crop_pct": 0.875})
    found = inspect_checkpoint(checkpoint, model)
    return {
        "inspection": found,
        "plan": found.plan,
        "conversion": done,
        "verification": done.verification,
        "parity": done.verification.parity,
        "comparison": done.verification.parity.comparisons[0],
        "architecture": done.architecture,
        "data": done.data,
        "source": open_source(checkpoint),
        "identified": identify(checkpoint, SourceOptions(model)),
        "reversion": revert_checkpoint(folder / "*hf*", folder / "*timm*", verify=False),
        "entry": entries()["vit_base_patch16_384"],
        "verdict": verdicts()[0],
        "candidate": look_up("vit_base_patch16_384"),
    }


SHORT = ["comparison", "architecture", "data", "source", "identified", "reversion", "entry", "verdict", "candidate"]
NAMES = ["inspection", "plan", "conversion", "verification", "parity"]


@pytest.mark.parametrize("name", [*NAMES, *SHORT])
def test_a_repr_is_one_short_line(name, results):
    text = repr(results[name])
    assert text.startswith(type(results[name]).__name__ + "(")
    assert "\n" not in text and len(text) <= 200


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_tables_and_no_markup_of_others(name, results):
    tokens = MARKDOWN.parse(results[name]._repr_markdown_())
    assert any(token.type == "table_open" for token in tokens)
    children = [child for token in tokens for child in token.children or []]
    kinds = {child.type for child in children}
    assert kinds <= {"text", "text_special", "code_inline", "strong_open", "strong_close", "softbreak"}


def test_names_are_shown_as_they_are(results):
    tokens = MARKDOWN.parse(results["conversion"]._repr_markdown_())
    shown = "".join(child.content for token in tokens for child in token.children or [])
    assert str(results["conversion"].destination) in shown


def test_a_stage_that_diverges_is_in_bold():
    model = small_model()
    twin = to_huggingface(model)
    with torch.no_grad():
        twin.classifier.bias += 1
    parity = compare(model, twin, pixels_for(model), dtypes=["float64"])
    shown = parity._repr_markdown_()
    assert "**logits**" in shown and "**norm**" not in shown
    assert "float64: diverges at logits" in shown
    assert repr(parity) == "Parity(float64: diverges at logits)"


def test_a_conversion_that_was_not_verified_says_so(tmp_path):
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, verify=False)
    assert repr(done).endswith("ViTForImageClassification, not verified)")
    assert done._repr_markdown_().endswith("not verified")
