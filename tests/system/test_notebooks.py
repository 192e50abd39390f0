"""The notebooks on other models than the demo's, and convert.ipynb on every family."""

import ast
import csv
import json
import sys
import types
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import timm
import torch
from families import CLASSIFIERS, HEADLESS, SMALL, save_folder
from markdown_it import MarkdownIt
from models import full_but, full_model, perturbed
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import logging

from vitconv.errors import InputError
from vitconv.inference.predictions import Parts, Run, make_rows
from vitconv.models.images import sample_image

ROOT = Path(__file__).parents[2]
CLASSES = ("ash", "beech", "cedar", "elm", "larch", "oak", "pine")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a notebook's cells in this process, with papermill's parameters; return what they print and show as Markdown.

    A separate kernel would import torch, timm and transformers again for every model.
    """
    monkeypatch.chdir(ROOT / "notebooks")
    backend = matplotlib.get_backend()
    matplotlib.use("agg")

    def run(name, **parameters):
        notebook = parameterize_notebook(load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb")), parameters)
        values = {"__name__": "__main__"}
        SHOWN.clear()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                _show(_execute(cell.source, f"{name}.ipynb, cell {cell.get('id')}", values))
        return capsys.readouterr().out

    yield run
    plt.close("all")
    matplotlib.use(backend)
    logging.enable_progress_bar()
    logging.set_verbosity_warning()


def _execute(source, name, values):
    """Run a cell; return the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), values)
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), values)


def _show(value):
    """Print the value of a cell as a notebook would show it."""
    if hasattr(value, "_repr_markdown_"):
        SHOWN.append(value._repr_markdown_())
        print(SHOWN[-1])


#: The Markdown of the notebook that was run last.
SHOWN = []

#: Architectures whose classifiers need head code.
CODE = ("vit_small_patch16_dinov3", "vit_base_patch16_siglip_224")
BARE = {"architecture": "", "labels": "", "image": "", "device": "cpu"}


@pytest.mark.parametrize("family", full_but(("vit", "clip"), CLASSIFIERS))
def test_a_classifier_of_every_family_gives_the_same_answer(family, run, tmp_path):
    save_folder(tmp_path / "timm", family, CLASSES)
    told = run("convert", **BARE, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"].startswith("clip" if family == "clip" else family)
    assert "It has a head of 7 classes" in told
    assert f"class names: {', '.join(CLASSES)}" in told
    assert f"{config['architectures'][0]}: " in told
    head = {"clip": "visual_projection", "deit": "distillation_classifier", "dpt": "pooler.dense"}.get(
        family, "classifier"
    )
    assert f"→ {head}.weight" in told


@pytest.mark.parametrize("name", full_but(CODE[:1], CODE))
def test_a_head_of_code_gives_the_same_answer(name, run, tmp_path):
    model = perturbed(timm.create_model(name, num_classes=7, **SMALL))
    labels = {"label_names": list(CLASSES)}
    timm.models.save_for_hf(model, tmp_path / "timm", labels, model_args=SMALL, safe_serialization=True)
    run("convert", **BARE, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"), target="head_code")
    (tmp_path / "photos").mkdir()
    sample_image((96, 96)).save(tmp_path / "photos" / "photo.png")
    paths = {"model": "hf", "images": "photos", "source": "timm", "output": "evaluation", "scores": "metrics.json"}
    paths = {name: str(tmp_path / path) for name, path in paths.items()}
    told = run("evaluate", **paths, expected="", metrics=[], thresholds={"agreement": {"min": 1.0}})
    assert "✓ Images that get the expected answer" in told


@pytest.mark.parametrize("family", full_but(("beit", "sam"), HEADLESS))
def test_a_headless_model_of_every_family_gives_the_same_features(family, run, tmp_path):
    save_folder(tmp_path / "timm", family)
    told = run("convert", **BARE, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"))
    assert "the features that timm returns are compared instead of classes" in told
    assert "no head, and no class names" in told
    split = {"sam": "one layer for all three", "radio": "one layer for all three", "sapiens2": "three layers"}
    if family in split:
        assert f"Both libraries have {split[family]}: nothing is split." in told
    else:
        assert "blocks.0.attn.qkv.weight rows 0 to 48 = " in told


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", full_but(("beit",), ["vit", "beit", "dinov2_with_registers"]))
def test_weights_in_another_precision(family, dtype, run, tmp_path):
    model = save_folder(tmp_path / "timm", family, CLASSES)
    torch.save(model.to(dtype).state_dict(), tmp_path / "timm" / "pytorch_model.bin")
    (tmp_path / "timm" / "model.safetensors").unlink()
    run("convert", **BARE, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {dtype}


def test_layer_scale_folded_in_16_bits(run, tmp_path):
    """Folding rounds the folder's weights to 16 bits."""
    state = full_model("vit_tiny_patch16_224", num_classes=0, init_values=1e-3, depth=2).bfloat16().state_dict()
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / "timm").mkdir()
    (tmp_path / "w.pth").rename(tmp_path / "timm" / "pytorch_model.bin")
    arguments = {"init_values": 1e-3, "depth": 2}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "pretrained_cfg": {}, "model_args": arguments}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    told = run("convert", **BARE, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"))
    assert "LayerScale folded in" in (tmp_path / "hf" / "README.md").read_text()
    assert "largest |Δ feature|" in told


def test_the_parameters_mean_what_the_options_of_the_command_mean(run, tmp_path):
    """A bare state dict with an EMA copy; another size, preprocessing and family; labels and image from files."""
    model = full_model("vit_tiny_patch16_224", num_classes=2)
    trained = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    content = {"state_dict": model.state_dict(), "state_dict_ema": trained}
    torch.save(content, tmp_path / "tiny.pth")
    (tmp_path / "labels.txt").write_text("tile\nslate\n")
    (tmp_path / "data.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}))
    Image.effect_noise((300, 260), 80).convert("RGB").save(tmp_path / "photo.png")
    told = run(
        "convert",
        checkpoint=str(tmp_path / "tiny.pth"),
        architecture="vit_tiny_patch16_224",
        labels=str(tmp_path / "labels.txt"),
        image=str(tmp_path / "photo.png"),
        data_config=str(tmp_path / "data.json"),
        img_size=[192, 192],
        target="dinov2",
        no_ema=True,
        output=str(tmp_path / "hf"),
        device="cpu",
    )
    assert "resampled" in told and "photo.png, 300 × 260 RGB → (1, 3, 192, 192)" in told
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["image_size"]) == ("dinov2", 192)
    assert config["id2label"] == {"0": "tile", "1": "slate"}
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["image_mean"] == [0.1, 0.2, 0.3]
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["ema"] is False
    bias = load_file(tmp_path / "hf" / "model.safetensors")["dinov2.layernorm.bias"]
    assert torch.equal(bias, model.norm.bias.data)


def test_convert_says_each_warning_and_note_once(run, tmp_path):
    """A bare state dict of two classes, without their names."""
    architecture = "vit_tiny_patch16_224"
    torch.save(full_model(architecture, num_classes=2).state_dict(), tmp_path / "tiny.pth")
    told = run(
        "convert",
        **BARE | {"architecture": architecture},
        checkpoint=str(tmp_path / "tiny.pth"),
        output=str(tmp_path / "hf"),
    )
    assert told.count("The preprocessing is an assumption") == 1
    assert told.count("The classes have no names") == 1


def test_a_model_on_the_hub(run, hub_cache, tmp_path):
    save_folder(tmp_path / "timm", "vit", CLASSES)
    hub_cache({file.name: file.read_bytes() for file in (tmp_path / "timm").iterdir()})
    told = run("convert", **BARE, checkpoint="hf-hub:our/roofs", output=str(tmp_path / "hf"))
    assert "Note: The checkpoint is hf-hub:our/roofs at revision" in told


#: A formula that is none, a script, and what ends a row of a table.
HOSTILE = "$x^{$ <script>a</script> ![a](http://e.org) | `b`"


def test_convert_draws_names_as_they_are(run, tmp_path):
    save_folder(tmp_path / "timm", "vit", CLASSES)
    names = [f"{HOSTILE} {name}" for name in CLASSES]
    (tmp_path / "labels.json").write_text(json.dumps(names))
    photo = tmp_path / HOSTILE.replace("/", "∕")
    Image.new("RGB", (40, 40)).save(photo, "png")
    given = {"labels": str(tmp_path / "labels.json"), "image": str(photo)}
    told = run("convert", **BARE | given, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"))
    assert ", ".join(names) in told
    texts = [text for text in plt.gcf().findobj(matplotlib.text.Text) if "$" in text.get_text()]
    assert len(texts) >= 6 and not any(text.get_parse_math() for text in texts)
    plt.gcf().savefig(tmp_path / "figure.png")


def test_evaluate_where_no_image_can_be_compared(run, tmp_path):
    """Every image has a known difference."""
    sample_image((32, 32)).save(tmp_path / "a.png")
    table = make_rows(0, ["a.png"], np.eye(1, 2, dtype=np.float32), [None], ("ash", "oak"), ["Another crop."])
    Parts(tmp_path / "predictions", Run({}, ("ash", "oak")), 1, overwrite=True).write(0, table, "key")
    (tmp_path / "list.csv").write_text("path\na.png\n")
    (tmp_path / "expected.csv").write_text("path,class,ash,oak\na.png,oak,0,1\n")
    files = {"predictions": "predictions", "images": "list.csv", "expected": "expected.csv"}
    files |= {"output": "out", "scores": "out/metrics.json"}
    told = run(
        "evaluate", model="", metrics=[], thresholds={}, **{name: str(tmp_path / f) for name, f in files.items()}
    )
    assert "No image was compared with its expected answer." in told
    assert "– Images that get the expected answer: not judged. No image was compared." in told
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["passed"] is None


def test_evaluate_shows_names_as_they_are(run, tmp_path, monkeypatch):
    classes = (HOSTILE, "oak")
    table = make_rows(0, [HOSTILE, "b.png"], np.eye(2, dtype=np.float32), [None, HOSTILE], classes)
    Parts(tmp_path / "predictions", Run({}, classes), 1, overwrite=True).write(0, table, "key")
    rows = [["path", "label"], [HOSTILE, HOSTILE], ["b.png", "oak"]]
    for name, content in (("list.csv", rows), ("expected.csv", [["path", "class"], [HOSTILE, "oak"]])):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(content)
    metrics = types.ModuleType("hostile_metrics")
    metrics.share = lambda labels, probabilities, classes: {name: 0.5 for name in classes}
    monkeypatch.setitem(sys.modules, "hostile_metrics", metrics)
    paths = {"predictions": str(tmp_path / "predictions"), "images": str(tmp_path / "list.csv"), "model": ""}
    paths |= {
        "expected": str(tmp_path / "expected.csv"),
        "output": str(tmp_path / "out"),
        "scores": str(tmp_path / "out" / "metrics.json"),
    }
    run("evaluate", **paths, metrics=["accuracy", "hostile_metrics:share"], thresholds={"errors": {"max": 1}})
    rows, metrics, disagreements = SHOWN
    for text, times in ((rows, 3), (metrics, 1), (disagreements, 2)):
        tokens = MarkdownIt("commonmark").enable("table").parse(text)
        children = [child for token in tokens for child in token.children or []]
        assert {child.type for child in children} <= {"text", "text_special", "code_inline"}
        assert "".join(child.content for child in children).count(HOSTILE) == times
        assert sum(token.type == "table_open" for token in tokens) == 1


def test_a_model_with_more_channels_than_a_picture(run, tmp_path):
    torch.save(full_model("vit_tiny_patch16_224", num_classes=3, in_chans=6, depth=2).state_dict(), tmp_path / "w")
    (tmp_path / "timm").mkdir()
    (tmp_path / "w").rename(tmp_path / "timm" / "pytorch_model.bin")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "pretrained_cfg": {},
        "model_args": {"in_chans": 6, "depth": 2},
    }
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    told = run("convert", **BARE, checkpoint=str(tmp_path / "timm"), output=str(tmp_path / "hf"))
    assert "No picture has 6 channels: both models get noise" in told


def test_anatomy_refuses_the_labels_of_another_model(run, tmp_path):
    """Such as the demo's, which are the default."""
    torch.save(perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=5)).state_dict(), tmp_path / "my.pth")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    mine = {"checkpoint": str(tmp_path / "my.pth"), "architecture": "vit_tiny_patch16_224"}
    with pytest.raises(InputError, match="There are 7 labels, but the weights have 5 classes"):
        run("anatomy", **{**BARE, **mine, "labels": str(tmp_path / "labels.txt")})


@pytest.mark.parametrize(
    "family, why", [("beit", "it is a BeitForImageClassification"), ("dinov2_with_registers", "")]
)
def test_anatomy_refuses_other_models_with_the_reason(family, why, run, tmp_path):
    save_folder(tmp_path / "timm", family, CLASSES)
    with pytest.raises(InputError) as caught:
        run("anatomy", **BARE, checkpoint=str(tmp_path / "timm"))
    assert f"timm's {CLASSIFIERS[family][0]}" in caught.value.problem and why in caught.value.problem
    assert "convert.ipynb" in caught.value.remedy


@pytest.mark.parametrize("family, classes", [("siglip", CLASSES), ("vit", ())])
def test_papermill_runs_a_notebook_in_its_own_kernel(family, classes, tmp_path):
    save_folder(tmp_path / "timm", family, classes)
    parameters = {**BARE, "checkpoint": str(tmp_path / "timm"), "output": str(tmp_path / "hf")}
    notebook, folder = ROOT / "notebooks" / "convert.ipynb", str(ROOT / "notebooks")
    papermill.execute_notebook(notebook, tmp_path / "out.ipynb", parameters, cwd=folder, progress_bar=False)
    done = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "stream" and output.name == "stderr" for output in outputs)
