"""What the README and the pages say is true: figures, links, paths, options and imports.

``make docs`` checks the links and references of the pages that it builds; the README is not among them.
"""

import ast
import importlib
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from click import Context
from markdown_it import MarkdownIt
from models import reduced, small_model
from mutants import BASES, MUTANTS, make_base, run_checks
from typer.main import get_command

from vitconv.cli import app
from vitconv.convert import to_huggingface
from vitconv.errors import VitconvError
from vitconv.models.catalogue import entries, verdicts

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def tokens(path):
    """The page's Markdown tokens, with those inside of paragraphs, tables and headings."""
    for token in MarkdownIt().enable("table").parse(path.read_text("utf-8")):
        yield token
        yield from token.children or ()


def anchors(path):
    """The headings' addresses, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- figures ------------------------------------------------------------------------------------------------------


def test_how_many_architectures_convert():
    listed = sum(verdict.class_name is not None for verdict in verdicts())
    options = [verdict.own_head.option for verdict in verdicts()]
    native, code = options.count(""), options.count("") + options.count("--head code")
    total = f"of the {len(entries())} Vision Transformers that timm"
    readme, changelog = ((ROOT / name).read_text("utf-8") for name in ("README.md", "CHANGELOG.md"))
    assert f"With a head of your own, {native} {total}" in readme and f"and {code} with `--head code`" in readme
    assert f"many without a head, {listed} convert:" in readme
    assert f"{listed} {total}" in changelog
    assert f"{native} with a head of your own, and {code} with `--head code`" in changelog


@pytest.mark.slow
def test_how_many_mutants_allclose_catches(tmp_path):
    """That vitconv catches all of them is tested one by one, in parity/test_mutants.py."""
    bases = {name: make_base(name, tmp_path / name) for name in BASES}
    noticed = 0
    for number, mutant in enumerate(MUTANTS):
        shutil.copytree(bases[mutant.base].folder.parent, tmp_path / str(number))
        mutant.edit(tmp_path / str(number) / "hf")
        noticed += not run_checks(bases[mutant.base], tmp_path / str(number) / "hf").allclose
        shutil.rmtree(tmp_path / str(number))
    for name in ("README.md", "docs/proof.md"):
        text = (ROOT / name).read_text("utf-8")
        assert f"in {len(MUTANTS)} ways" in text, name
        assert re.search(rf"allclose\(logits, atol=1e-3\)`[^.]*, catches {noticed}\.", text), (name, noticed)
    assert f"`: {len(MUTANTS)} broken conversions" in (ROOT / "CHANGELOG.md").read_text("utf-8")


# ---- links and paths ----------------------------------------------------------------------------------------------


def test_links_lead_somewhere(page):
    for token in tokens(page):
        target = token.attrGet("href") or token.attrGet("src")
        if target is None or re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_files_that_are_named_exist(page):
    for token in tokens(page):
        if token.type == "code_inline":
            path = re.match(r"(tests|benchmarks|demo|docs|fuzz|notebooks|vitconv)/[\w./-]+$", token.content)
            assert not path or (ROOT / path[0]).exists(), token.content


# ---- commands and code --------------------------------------------------------------------------------------------


def commands(path):
    """Each call of vitconv on the page, as words."""
    for token in tokens(path):
        if token.type in ("fence", "code_inline"):
            for line in token.content.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|\$ |[\w=:]+ )(vitconv [a-z-].*)", line)
                if found and (token.type == "code_inline" or token.info == "console"):
                    yield shlex.split(found[1], comments=True)


def test_commands_and_options_exist(page):
    root = get_command(app)
    for _, name, *words in commands(page):
        command = root if name.startswith("--") else root.commands[name]
        parameters = command.get_params(Context(command))  # with --help
        known = {option for parameter in parameters for option in parameter.opts}
        for word in [name, *words]:
            if word.startswith("--"):
                assert word in known, f"vitconv {name} has no {word}"


def test_the_code_s_imports_exist(page):
    for token in tokens(page):
        if token.type == "fence" and token.info == "python":
            for node in ast.walk(ast.parse(token.content)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("vitconv"):
                    for alias in node.names:
                        assert hasattr(importlib.import_module(node.module), alias.name), alias.name


def test_there_are_commands_and_code_to_check():
    assert len(list(commands(ROOT / "README.md"))) >= 3
    assert any(token.info == "python" for token in tokens(ROOT / "README.md") if token.type == "fence")


# ---- what is said -------------------------------------------------------------------------------------------------


def prose(path):
    """The text of a page, or of a notebook's Markdown cells."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join(
        "".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"
    )


def test_other_pooling_becomes_another_class_or_is_refused():
    said = prose(ROOT / "notebooks" / "anatomy.ipynb")
    assert "A model with other pooling becomes another class, or is refused." in said
    mean = to_huggingface(reduced("vit_base_patch16_gap_224"))
    assert type(mean).__name__ == "SiglipForImageClassification"
    with pytest.raises(VitconvError, match="max"):
        to_huggingface(small_model(global_pool="max"))


@pytest.mark.parametrize(
    "path",
    [path for path in (*PAGES, *ROOT.glob("notebooks/*.ipynb")) if path.name != "CONTRIBUTING.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nobody_is_told_to_install_what_is_not_on_pypi(path):
    """PyPI has no vitconv: what CONTRIBUTING.md says on the first release changes this test, too."""
    assert not re.search(r"pip install ['\"]?vitconv", prose(path))


def test_it_can_be_cited():
    """https://github.com/citation-file-format/citation-file-format/blob/main/schema-guide.md"""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["title"], cited["license"]) == (project["name"], project["license"])
    assert cited["authors"] == project["authors"]
    assert "version" not in cited  # it is the tag's


def test_a_release_is_tested_before_it_is_published_and_needs_no_token():
    workflow = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    jobs = yaml.safe_load(workflow)["jobs"]
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"] == {"id-token": "write"}
    assert any("tests/system/test_wheel.py" in step.get("run", "") for step in jobs["build"]["steps"])
    assert jobs["publish"]["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "secrets." not in workflow
