"""Sphinx's configuration: `make docs` builds the guide, the executed notebooks and the API reference.

The source folder is the project's root: a link between two files is the same on the site and in the repository.
"""

import os
import pkgutil
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import desc_annotation, literal_strong, pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator

import vitconv

# The notebooks' kernels inherit this: nothing asks the network.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", RAY_USAGE_STATS_ENABLED="0")

project = "vitconv"
version = release = vitconv.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
# Folders that Sphinx need not walk through.
exclude_patterns = [".*", "artifacts", "benchmarks", "build", "converted", "demo", "fuzz", "tests", "vitconv"]

html_theme = "furo"
html_title = f"vitconv {version}"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}  # build/docs/index.html leads to the guide's first page
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"

# Markdown as GitHub reads it: a heading is a link's target, and a dollar sign is a dollar sign.
myst_heading_anchors = 4
myst_enable_extensions: list[str] = []
smartquotes_action = "qe"  # quotation marks and dots, but no dashes: --data-config is an option to copy

# Run each notebook anew: a cache would not notice that vitconv has changed.
nb_execution_mode = "force"
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the default loads them from the network

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Python's standard library and other projects: their inventories would have to come from the network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|timm|transformers|PIL|np|numpy|pa|pyarrow|collections|concurrent|fastapi|starlette|mlflow|confluent_kafka|socket|os|pathlib|enum|io|typing)\..+",
    ),
    # As the code imports them, where that is only for type checkers.
    (
        r"py:class",
        r"nn\.Module|Tensor|NDArray|Path|Image|PreTrainedModel|PreTrainedConfig|BaseImageProcessor|FastAPI|MlflowClient|ModelVersion",
    ),
]


def resolve_as_code_does(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Find what a docstring names as its module's code would: ``InputError``, which the module imports.

    What exists but has no entry in the reference (a constant, a field) is shown as code, without a link.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")

    def resolve(full: str) -> nodes.Element | None:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)

    name, module, owner = node["reftarget"], node.get("py:module"), node.get("py:class")
    for path in (name, f"{module}.{name}", f"{module}.{owner}.{name}"):
        parent, _, last = path.rpartition(".")
        try:
            holder = pkgutil.resolve_name(parent)
        except (ImportError, AttributeError, ValueError):
            continue
        if last in getattr(holder, "__annotations__", ()) and not hasattr(holder, last):
            return content
        if hasattr(holder, last):
            target = getattr(holder, last)
            full = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
            return resolve(full) or content
    # A constant does not know its module.
    found = [full for full in domain.objects if full.endswith(f".{name}")]
    return resolve(found[0]) if len(found) == 1 else None


def _joined(found: re.Match[str]) -> str:
    return f"    {found[0].strip().replace(', ', ',')} "


def prepare_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Bring a docstring into the form that napoleon and docutils read."""
    if what in ("data", "attribute", "property"):
        lines[:0] = ["..", ""]  # napoleon takes what stands before a colon in the first line for the type
    elif what != "module":  # `mean, std: …` are two names, of which napoleon would take one for a type
        lines[:] = [re.sub(r"^ {4}\w+(, \w+)+: ", _joined, line) for line in lines]
    lines[:] = [line.replace("|Δ|", r"\|Δ\|") for line in lines]  # not a substitution


def tidy(app: Sphinx, doctree: nodes.document) -> None:
    """Separate the names that :func:`prepare_docstring` joined, and leave out a constant's value that is a table."""
    for node in doctree.findall(literal_strong):
        for text in list(node.findall(nodes.Text)):
            node.replace(text, nodes.Text(text.replace(",", ", ")))
    for node in list(doctree.findall(desc_annotation)):
        if node.astext().startswith(" = ") and len(node.astext()) > 80:
            node.parent.remove(node)


def write_formula(writer: HTML5Translator, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them
    app.connect("missing-reference", resolve_as_code_does)
    app.connect("doctree-read", tidy)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=100)
    app.add_html_math_renderer("mathml", inline_renderers=(write_formula, None), block_renderers=(write_formula, None))
