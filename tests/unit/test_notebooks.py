"""The notebooks' form. `make test` also runs them, with `pytest --nbmake notebooks`."""

import ast
import csv
import itertools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from vitconv.inference.images import read_images
from vitconv.models.images import load_image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_the_title_and_the_claim_come_first(notebook):
    assert notebook.cells[0].source.startswith("# ")
    assert "claim" in notebook.cells[0].source


def test_one_cell_of_literal_parameters(notebook):
    """papermill replaces this cell's values: what is computed from them must come later."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


def test_a_failing_cell_fails_the_notebook(notebook):
    assert not notebook.metadata.get("execution", {}).get("allow_errors")
    assert not any("raises-exception" in cell.metadata.get("tags", []) for cell in notebook.cells)


def test_any_runner_can_start_it(notebook):
    assert notebook.metadata.kernelspec.language == "python"


def test_it_asserts_what_it_claims(notebook):
    assert sum(cell.source.count("assert") for cell in notebook.cells if cell.cell_type == "code") >= 10


def test_without_a_project_around_it_paths_start_in_the_notebooks_folder(notebook, tmp_path, monkeypatch):
    """A team that copies one notebook has no dvc.yaml beside it."""
    monkeypatch.chdir(tmp_path)
    lines = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("root = ")]
    if not lines:
        pytest.skip("it reads no files")
    scope = {"Path": Path}
    exec(lines[0], scope)
    assert scope["root"] == tmp_path


def folder_cell(name):
    """The cell that makes the folder of what the notebook writes."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (source,) = [cell.source for cell in cells if "own.touch()" in cell.source]
    return source


def folder_scope(folder, **more):
    scope = {"root": ROOT, "images": ROOT, "model": "no model", "shutil": shutil, "to_calibrate": 1, "to_judge": 1}
    return {**scope, "output": str(folder), "few_images": ".", "calibration": ".", "broker": "", **more}


@pytest.mark.parametrize("name", ["certainty", "operate", "queue", "serve"])
def test_a_folder_that_no_earlier_run_has_made_stays_as_it_is(name, tmp_path):
    mine = ("photo.jpg", "small.pth", "server.log", "kafka.properties")
    for file in mine:
        (tmp_path / file).write_text("mine")
    scope = folder_scope(tmp_path) | ({} if name in ("queue", "serve") else {"output": tmp_path})
    with pytest.raises(AssertionError, match="Name another folder as output"):
        exec(folder_cell(name), scope)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(mine)
    assert {(tmp_path / file).read_text() for file in mine} == {"mine"}


@pytest.mark.parametrize("name", ["certainty", "operate"])
def test_a_folder_that_holds_the_model_is_not_removed(name, tmp_path):
    (tmp_path / f".{name}.ipynb").touch()  # as an earlier run does
    with pytest.raises(AssertionError, match="holds the model"):
        exec(folder_cell(name), folder_scope(tmp_path, output=tmp_path, model=tmp_path / "model"))
    assert (tmp_path / f".{name}.ipynb").exists()


def test_optimize_does_not_write_over_a_model_of_the_same_name(tmp_path):
    (tmp_path / "small.pth").write_text("mine")
    scope = folder_scope(tmp_path, model="", images=".", recipes=[], max_disagreement=0.1)
    with pytest.raises(AssertionError, match="Name another folder as output"):
        exec(folder_cell("optimize"), scope)
    assert (tmp_path / "small.pth").read_text() == "mine"


def test_operate_takes_a_model(tmp_path):
    """Then nothing else makes the folder that the server's log is in."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "calibration.json").touch()
    exec(folder_cell("operate"), folder_scope(tmp_path, output=tmp_path / "new", model=tmp_path / "model"))
    assert (tmp_path / "new").is_dir()


def test_finetune_writes_the_held_out_tiles_of_any_class_into_its_own_folder(tmp_path):
    """A label is any text, also a path that leads elsewhere."""
    classes = ["../../outside", "with/slash", ".hidden"]
    lines = ["path,label,split"]
    for number, (name, split) in enumerate(itertools.product(classes, ("fit", "test"))):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{name},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "own").mkdir()
    cells = nbformat.read(ROOT / "notebooks" / "finetune.ipynb", as_version=4).cells
    (source,) = [cell.source for cell in cells if "held_out = " in cell.source]
    scope = {"csv": csv, "itertools": itertools, "Path": Path, "plt": plt}
    scope |= {"read_images": read_images, "load_image": load_image}
    values = {"images": tmp_path / "list.csv", "new_classes": classes[:1], "tile": 4, "tiles": 2}
    scope |= values | {"temporary": SimpleNamespace(name=str(tmp_path / "own"))}
    exec(source, scope)
    plt.close("all")
    assert len(list(tmp_path.rglob("*.png"))) == 6 + 6
    assert len(list((tmp_path / "own").rglob("*.png"))) == 6
    found = read_images(scope["held_out"])
    assert found.labels.to_pylist() == [label for _, label in scope["kept"]]


def page(notebook, template="offline_html"):
    exporter = HTMLExporter(template_name=template, extra_template_basedirs=[str(ROOT / "tools")])
    return exporter.from_notebook_node(notebook)[0]


def test_its_page_is_made_for_the_dark_and_for_narrow_screens(notebook):
    """nbconvert's own template is white everywhere, and cuts long lines of code off."""
    text = page(notebook)
    (dark,) = re.findall(r'<style media="\(prefers-color-scheme: dark\)".*?</style>', text, re.DOTALL)
    assert "--jp-layout-color0: #111;" in dark
    assert text.index(dark) > text.index("--jp-layout-color0: white;")  # the later one counts
    assert ".jp-InputArea-editor { overflow-x: auto; }" in text


def test_its_pictures_are_narrow(notebook):
    """On a phone, the letters of a wider one could not be read."""
    source = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    widths = re.findall(r"figsize=\(([\d.]+)", source)
    assert len(widths) == source.count("figsize") and all(float(width) <= 5.5 for width in widths)


def test_its_page_loads_nothing_from_the_network(notebook):
    """As `make convert` writes it. nbconvert's own template loads require.js, MathJax and Mermaid."""
    loads = re.compile(
        r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.https?:|url\(.?https?:|from .https?:|import .https?:"
    )

    assert loads.search(page(notebook, "lab"))
    assert not loads.search(page(notebook))
    assert "--template offline_html" in (ROOT / "Makefile").read_text()
