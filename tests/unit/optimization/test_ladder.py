"""What is said of recipes beside each other: which to use, and when none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladders import NBYTES, figures, ladder, made, measured
from markdown_it import MarkdownIt

from vitconv.errors import DestinationError, InputError
from vitconv.optimization.gate import upper_bound
from vitconv.optimization.ladder import Ladder, at_most
from vitconv.optimization.optimization import GateError

TIMES = {"float32": 546.0, "openvino": 455.0, "openvino-int8": 105.0, "bfloat16": 171.0}
REFUSAL = GateError("7 of 42 images get another answer.", "Choose another.", figures(42, 7, 4.56))


def test_the_fastest_that_passed_is_the_one_to_use():
    found = ladder(TIMES)
    assert found.best.name == "openvino-int8"
    assert found.conclusion == (
        "Use openvino-int8: 5.2 × as fast as float32 at batch 1 (105 ms instead of 546) and 5.2 × at batch 8, a "
        "quarter of its size, the same answer on 600 of 600 images. Below 0.50 % of all images change theirs, with "
        "95 % confidence."
    )


def test_a_refused_recipe_is_never_the_one_to_use():
    found = ladder({"float32": 500.0, "onnx": 480.0}, refused={"onnx-int8": REFUSAL})
    assert found.conclusion.startswith("Keep float32: no recipe is clearly faster here. The nearest, onnx, is 1.0 ×")
    assert found.best is None


def test_changed_answers_are_counted():
    found = ladder({"float32": 500.0, "openvino-int8": 100.0}, openvino_int8=figures(600, 2))
    assert "the same answer on 598 of 600 images" in found.conclusion


def test_a_recipe_in_float32_claims_no_share_of_all_images():
    found = ladder({"float32": 500.0, "openvino": 300.0}, openvino=figures(42))
    assert found.conclusion.endswith(
        "the same answer on 42 of 42 images. It computes in float32: its logits are the same but for rounding."
    )
    assert "confidence" not in found.conclusion
    assert found.table[1][1][7] == ""


def test_without_any_folder_float32_stays():
    found = Ladder.of([], measured(("float32", 500.0)), refused={"bfloat16": InputError("It has none.", "Get one.")})
    assert found.best is None and found.passed == []
    assert found.conclusion == "Keep float32: no recipe has passed."
    assert "- bfloat16 was refused. It has none." in found.markdown()


def test_a_busy_machine_is_said_first():
    assert ladder(TIMES, others=1.5).conclusion.startswith("The machine was busy, so measure again: Use openvino-int8")


def test_a_folder_that_was_not_timed():
    with pytest.raises(InputError, match="was not benchmarked"):
        Ladder.of([made("bfloat16")], measured(("float32", 500.0), ("onnx", 500.0)))


def test_the_table_has_float32_then_the_fastest_then_the_refused():
    headings, rows = ladder(TIMES, refused={"static": REFUSAL}).table
    assert [row[0] for row in rows] == ["float32", "openvino-int8", "bfloat16", "openvino", "static (refused)"]
    assert all(len(row) == len(headings) for row in rows)
    assert rows[1] == ("openvino-int8", "105", "5.2", "19.0", "5.2", "86.0", "600 of 600", "0.50 %", "0.02")
    assert rows[-1] == ("static (refused)", "", "", "", "", "", "35 of 42", "29.04 %", "4.6")


def test_names_are_shown_as_they_are():
    hostile = "<script>a</script> | `b` $x$"
    text = ladder(TIMES, refused={hostile: InputError(f"No {hostile}.", "Stop.")}).markdown()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    children = [child for token in tokens for child in token.children or []]
    assert {child.type for child in children} <= {"text", "text_special", "strong_open", "strong_close", "code_inline"}
    assert "".join(child.content for child in children).count(hostile) == 3


def test_the_file_has_everything(tmp_path):
    found = ladder(TIMES, refused={"static": REFUSAL})
    found.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["conclusion"] == found.conclusion and content["best"] == "openvino-int8"
    assert content["nbytes"] == NBYTES and content["limits"]["disagreement"] == 0.01
    assert [one["name"] for one in content["recipes"]] == ["openvino", "openvino-int8", "bfloat16", "static"]
    assert content["recipes"][3]["figures"]["changed"] == 7 and content["recipes"][3]["refused"] == REFUSAL.problem
    assert [one["name"] for one in content["benchmark"]["variants"]][0] == "float32"
    with pytest.raises(DestinationError):
        found.save(tmp_path / "a.json" / "b.json")


def test_a_relative_folder_is_found(monkeypatch):
    monkeypatch.chdir("/")
    one = replace(made("bfloat16"), folder=Path("models/bfloat16"))
    assert Ladder.of([one], measured(("float32", 500.0), ("bfloat16", 200.0))).best.name == "bfloat16"


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_a_bound_is_never_rounded_down(counts):
    images, changed = counts
    bound = upper_bound(changed, images)
    shown = float(at_most(bound).removesuffix(" %")) / 100
    assert bound - 1e-9 <= shown <= bound + 1e-4
