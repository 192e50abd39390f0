"""What other people's code relies on: it may not change unnoticed."""

import importlib
import importlib.metadata
import json
import subprocess
import sys

import pytest
import typer

import vitconv
from vitconv.cli import app
from vitconv.cli.stages import app as stages

PUBLIC = [
    *("compare", "convert_checkpoint", "convert_state_dict", "evaluate", "inspect_checkpoint", "predict"),
    *("revert_checkpoint", "to_huggingface", "to_timm", "verify_checkpoint"),
]

#: The imports that the README, docs/ and the notebooks show.
DOCUMENTED = {
    "vitconv.convert": [
        *("convert_checkpoint", "convert_state_dict", "inspect", "inspect_checkpoint", "load_timm", "read_weights"),
        *("revert_checkpoint", "to_huggingface", "to_timm", "verify_checkpoint"),
    ],
    "vitconv.parity": ["Comparison", "Parity", "Stage", "compare"],
    "vitconv.inference": ["predict"],
    "vitconv.evaluation": ["evaluate"],
    "vitconv.calibration": ["calibrate"],
    "vitconv.registry": ["fetch", "register"],
    "vitconv.serving": ["open_classifier"],
    "vitconv.serving.rest": ["Settings", "create_app"],
    "vitconv.cli": ["app", "run"],
}

SOURCE = ["--arch", "--img-size", "--data-config", "--ignore", "--headless"]
PRINTED = ["--json", "--quiet", "-q", "--verbose", "-v"]
RUN = ["--processor", "--batch-size", "--device", "--max-errors"]
#: The arguments and the options of each command.
COMMANDS = {
    "convert": (
        ["SRC", "DST"],
        [
            *(*SOURCE, "--target", "--head", "--labels", "--image", "--no-ema", "--dtype", "--license"),
            *("--no-verify", "--overwrite", *PRINTED),
        ],
    ),
    "inspect": (["SRC"], [*SOURCE, "--target", "--head", "--no-ema", *PRINTED]),
    "verify": (["SRC", "DST"], [*SOURCE, "--no-ema", "--labels", "--image", "--dtype", "--device", *PRINTED]),
    "revert": (["SRC", "DST"], ["--arch", "--drop", "--image", "--no-verify", "--overwrite", *PRINTED]),
    "models": (["NAME"], ["--target", "--refused", "--json"]),
    "predict": (["MODEL", "IMAGES", "DST"], ["--engine", *RUN, "--check-content", "--overwrite", *PRINTED]),
    "evaluate": (
        ["MODEL", "IMAGES"],
        ["--source", "--arch", "--data-config", "--ignore", "--expected", "--labels-from", "--out", *RUN, *PRINTED],
    ),
    "optimize": (
        ["MODEL", "DST"],
        [
            *("--recipe", "--images", "--calibration", "--reference", "--max-disagreement", "--max-margin"),
            *("--min-cosine", "--batch-size", "--overwrite", *PRINTED),
        ],
    ),
    "benchmark": (["MODEL"], ["--images", "--rounds", "--device", "--json", "--quiet", "-q"]),
    "calibrate": (["MODEL", "IMAGES"], ["--odd", "--coverage", "--processor", "--batch-size", "--device", *PRINTED]),
    "register": (["MODEL"], ["--name", "--alias", *PRINTED]),
    "fetch": (["NAME@ALIAS", "DST"], ["--overwrite", *PRINTED]),
    "serve": (
        ["MODEL"],
        [
            *("--host", "--port", "--device", "--processor", "--workers", "--timeout", "--engine", "--replicas"),
            *("--max-replicas", "--write-config", "--verbose", "-v"),
        ],
    ),
    "worker": (
        ["MODEL"],
        [
            *("--from", "--to", "--dead-letter", "--batch", "--wait", "--tries", "--root", "--exactly-once"),
            *("--device", "--processor", "--workers", "--host", "--port", "--verbose", "-v"),
        ],
    ),
    "triton": (["MODEL", "DST"], ["--backend", "--processor", "--device", "--zip", *PRINTED]),
    "report": (["EVALUATION", "DST"], ["--last", "--verification"]),
}
CHOICES = {
    ("convert", "dtype"): "<float32|float16|bfloat16|float64>",
    ("verify", "dtype"): "<float32|tf32|float16|bfloat16>",
    ("revert", "drop"): "<pooler|mask_token|decoder>",
    ("predict", "engine"): "<local|ray>",
    ("predict", "processor"): "<transformers|timm>",
    ("calibrate", "processor"): "<transformers|timm>",
    ("serve", "processor"): "<transformers|timm>",
    ("serve", "engine"): "<local|ray>",
    ("worker", "processor"): "<transformers|timm>",
    ("triton", "backend"): "<python|pytorch|onnxruntime|openvino>",
}


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_package_loads_nothing_heavy():
    heavy = {"torch", "timm", "transformers", "numpy", "pyarrow", "typer", "importlib.metadata"}
    loaded = in_a_new_process("import vitconv, sys, json; dir(vitconv); print(json.dumps(list(sys.modules)))")
    assert not heavy & set(loaded)


def test_the_public_names():
    assert sorted(vitconv.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(vitconv))
    with pytest.raises(AttributeError, match="module 'vitconv' has no attribute 'transmogrify'"):
        vitconv.transmogrify  # noqa: B018


def test_the_version_is_the_installed_one(monkeypatch):
    assert vitconv.__version__ == importlib.metadata.version("vitconv")
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: iter(()))
    assert vitconv.__version__ == "0+unknown"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_the_function(name):
    found = getattr(vitconv, name)
    assert callable(found) and found.__name__ == name
    where = {
        "compare": "vitconv.parity",
        "predict": "vitconv.inference",
        "evaluate": "vitconv.evaluation",
    }
    assert found is getattr(importlib.import_module(where.get(name, "vitconv.convert")), name)


@pytest.mark.parametrize("module", DOCUMENTED)
def test_documented_imports(module):
    assert all(hasattr(importlib.import_module(module), name) for name in DOCUMENTED[module])


def test_the_former_name_of_inspect_checkpoint():
    from vitconv.convert import inspect, inspect_checkpoint

    assert inspect is inspect_checkpoint


def test_the_commands():
    assert list(typer.main.get_command(app).commands) == list(COMMANDS)
    assert list(typer.main.get_command(stages).commands) == [
        "sources",
        "convert",
        "verify",
        "predict",
        "timm",
        "evaluate",
        "optimize",
        "demo",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_arguments_and_options_of_a_command(name):
    parameters = typer.main.get_command(app).commands[name].params
    arguments, options = COMMANDS[name]
    assert [one.metavar for one in parameters if one.param_type_name == "argument"] == arguments
    assert sorted(opt for one in parameters if one.param_type_name == "option" for opt in one.opts) == sorted(options)


@pytest.mark.parametrize(("command", "option"), CHOICES)
def test_the_choices_of_an_option(command, option):
    (found,) = [one for one in typer.main.get_command(app).commands[command].params if one.name == option]
    assert found.metavar == CHOICES[command, option]
