"""The card of an optimised folder: whatever the folder is called, its name is text, and its code is code."""

import ast
import shlex

import pytest
from markdown_it import MarkdownIt

from vitconv.inference.optimized import read_artefact
from vitconv.optimization.card import write_card


def blocks(text):
    """What the card shows: the kinds of blocks, and the code by its language."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    code = {token.info: token.content for token in tokens if token.type == "fence"}
    return [token.type for token in tokens if token.type in ("fence", "heading_open", "html_block")], code


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["bfloat16", "onnx", "openvino"])
@pytest.mark.parametrize(
    "name",
    [
        "fast",
        "fast model",
        'fast"); import os; os.system("id") #',
        "fast'; touch x; '",
        "fast\\",
        "fast\n```\n<script>alert(1)</script>\n```",
        "fast\r~~~\u2028\x1b[2J",
    ],
)
def test_a_name_is_text_in_code_too(woods, tmp_path, recipe, name):
    done = woods.made(recipe)
    write_card(tmp_path, done, "trees", name, read_artefact(done.folder))
    found, code = blocks((tmp_path / "README.md").read_text())
    assert found == ["heading_open", "heading_open", "fence", "fence"]
    shown = name if name.isprintable() else "path/to/this/folder"
    assert shlex.split(code["bash"]) == ["vitconv", "predict", shown, "IMAGES"]
    texts = [node.value for node in ast.walk(ast.parse(code["python"])) if isinstance(node, ast.Constant)]
    file = read_artefact(done.folder).file
    assert (shown if recipe == "bfloat16" else f"{shown}/{file}") in texts
