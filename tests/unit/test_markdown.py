"""Names in Markdown, read back by two parsers: none is markup, and each reads as it was."""

import doctest
import re

import mistune
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbconvert.filters.markdown import markdown2html

from vitconv import markdown
from vitconv.markdown import code, escape, prose, table

COMMONMARK = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLUGINS = ["strikethrough", "footnotes", "table", "url", "task_lists", "def_list", "abbr", "mark", "insert", "superscript", "subscript", "math", "ruby", "spoiler"]  # fmt: skip
MISTUNE = mistune.create_markdown(renderer="ast", plugins=PLUGINS)
#: Every place where a name stands.
PLACES = [
    "{}",
    "# {}",
    "- {}",
    "- {}: {}",
    "- ✓ {} is 0.5.",
    "| |\n|---|\n| {} |",
    "a {}, {} b",
    "1. {}",
    "x\n\n{}\n\ny",
]

MARKS = st.text(st.sampled_from(list("\\`*_{}[]()<>#+-.!|&~$@^=:;/'\"%?, \n\t0123459aiwhtpéß屋")))
TEXTS = st.one_of(MARKS, st.text(), st.lists(st.sampled_from(["http://a.b", "www.a.b", "![a](http://b.c/d)", "<script>", "&amp;", "&#58;", "---", "***", "```", "~~~", "$$", "[^1]", "[a]: b", "- ", "1. ", "# ", "> ", "a@b.c", "\n\n", "| --- |", "<!--", "-->", "*[a]: b", "--ab-c", "--a", "__", "_", "a", " ", "\\"])).map("".join))  # fmt: skip
given_text = lambda test: given(TEXTS)(  # noqa: E731
    example("a\n# b")(example("![x](http://e.org/x.png)")(example("<script>alert(1)</script>")(example("1. a")(test))))
)


def shape_and_text(tokens):
    """The kinds of all tokens, however deep; and the text in them."""
    kinds, text = [], []
    for token in tokens:
        if token.type in ("text", "text_special", "code_inline"):
            text.append(token.content)
        else:
            kinds.append((token.type, token.tag))
        for attribute in token.attrs:
            kinds.append(attribute)
        more = shape_and_text(token.children or [])
        kinds += more[0]
        text.append(more[1])
    return kinds, "".join(text)


def mistune_shape_and_text(tokens):
    kinds, text = [], []
    for token in tokens:
        if token["type"] == "text":
            text.append(token["raw"])
        elif token["type"] == "codespan":
            text.append(token["raw"])
            kinds.append("codespan")
        else:
            kinds.append(token["type"])
        more = mistune_shape_and_text(token.get("children", []))
        kinds += more[0]
        text.append(more[1])
    return kinds, "".join(text)


def line(text):
    return markdown._one_line(text)


@given_text
@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_text(place, text):
    page, neutral = place.replace("{}", escape(text)), place.replace("{}", "xyz")
    found, expected = shape_and_text(COMMONMARK.parse(page)), shape_and_text(COMMONMARK.parse(neutral))
    if line(text):  # an empty one leaves no token of text
        assert found[0] == expected[0], page
    else:
        assert set(found[0]) <= set(expected[0]), page
    assert " ".join(found[1].split()) == " ".join(expected[1].replace("xyz", line(text)).split())


@given_text
@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_text_to_jupyter(place, text):
    """Whose parser, of nbconvert, knows formulas, addresses and footnotes, too."""
    page, neutral = place.replace("{}", escape(text)), place.replace("{}", "xyz")
    found, expected = mistune_shape_and_text(MISTUNE(page)), mistune_shape_and_text(MISTUNE(neutral))
    if line(text):
        assert [kind for kind in found[0] if kind not in ("blank_line", "codespan")] == [
            kind for kind in expected[0] if kind != "blank_line"
        ], page


@given(st.lists(st.sampled_from(["\\", "$", "(", ")", "[", "]", "begin{a}", "end{a}", "`", "x", " "])).map("".join))
@example("$x$")
@example(r"\(x\)")
@example(r"\[x\]")
@example(r"\begin{equation}x\end{equation}")
@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_no_formula_on_a_page(place, text):
    """MathJax looks for formulas in what a page shows, whatever the Markdown was; but not in code."""
    page = markdown2html(place.replace("{}", escape(text)))
    assert not re.search(r"[$\\]", re.sub("<code>.*?</code>|<[^>]*>", "", page)), page


@given_text
def test_code_is_code(text):
    found = shape_and_text(COMMONMARK.parse(f"a {code(text)} b"))
    assert found[0] == [("paragraph_open", "p"), ("inline", ""), ("paragraph_close", "p")]
    assert found[1] == f"a {line(text)} b"


@given_text
def test_prose_reads_as_it_was_and_has_no_markup_but_code(text):
    found = shape_and_text(COMMONMARK.parse(f"a {prose(text)} b"))
    assert found[0] == [("paragraph_open", "p"), ("inline", ""), ("paragraph_close", "p")]
    assert " ".join(found[1].split()) == " ".join(f"a {line(text)} b".split())


def test_options_in_prose_are_code():
    assert prose("pass --data-config FILE (or --no-ema).") == "pass `--data-config` FILE (or `--no-ema`)."
    for text in ("a -- b", "x--data-config", "--data-config-", "a—b", "---"):
        assert prose(text) == escape(text)
    assert prose("`--out`") == escape("`--out`")


def test_what_has_no_meaning_stays_as_it_is():
    for text in (
        "images/00002.jpg",
        "max_logit_difference is 0.5, below 1: most often 'oak' (3).",
        "3.0e-16",
        "–",
        "größe",
    ):
        assert escape(text) == text
    assert escape(1) == code("1").strip("`") == "1"


def test_control_characters_and_lone_surrogates_can_be_written():
    assert escape("a\x00b\x1bc\ud800\u2028d").encode().decode() == "a\ufffdb\ufffdc\ufffd d"
    assert escape("a\u202eb") == "a\ufffdb"  # which turns the direction of what follows


def test_the_examples():
    assert doctest.testmod(markdown).failed == 0


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (["7", "-0.5", "1.2e-16"], "--:"),
        (["86,567,656", "nan", ""], "--:"),
        (["100%", "91.6 % to 100 %", "0.9 to 1"], "--:"),
        (["**0.3**", "0"], "--:"),
        (["7", "no"], "---"),
        (["768 × 3", "7"], "---"),
        (["`7`"], "---"),
        (["", ""], "---"),
        ([], "---"),
    ],
)
def test_a_column_of_numbers_is_aligned_to_the_right(cells, mark):
    lines = table(["name", "value"], [["a", cell] for cell in cells]).splitlines()
    assert lines[1] == f"|---|{mark}|"
