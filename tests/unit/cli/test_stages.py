"""The stages of dvc.yaml: no parameter's value is ever text of a shell, or of Python."""

import ast
import json
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from models import full_model
from papermill.translators import PythonTranslator
from typer.testing import CliRunner

from vitconv.cli.stages import _FORMS, app, read_parameters
from vitconv.convert import convert_checkpoint
from vitconv.errors import InputError
from vitconv.inference.predictions import read_predictions

ROOT = Path(__file__).parents[3]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PIPELINE["optimize"] = yaml.safe_load((ROOT / "optimize" / "dvc.yaml").read_text())["stages"]["optimize"]
COMMANDS = {
    name: [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"] for name, stage in PIPELINE.items()
}
STAGES = [name for name in PIPELINE if name != "report"]  # which reads no parameter
#: A name with all that a shell, YAML, Python, Markdown or DVC might take for its own; each alone is tried, too.
ALL = "-~ Jim's; touch PWNED; echo \"$(touch PWNED)`touch PWNED`|touch PWNED&*?{}[]${model}\\n\\\n\té中😀#!<>%@:=,"
NAMES = [
    ALL,
    "; touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "' && touch PWNED '",
    "\ntouch PWNED\n",
    "-h",
    "--help",
]
NAMES += [f"a{mark}b" for mark in string.punctuation.replace("/", "") + " \t"] + [
    "~",
    "{}",
    "${model}",
    "é中😀",
    " a ",
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's root, to which ``write`` writes params.yaml: the repository's, with these values."""
    monkeypatch.chdir(tmp_path)
    for name in ("build", "notebooks"):
        (tmp_path / name).mkdir()

    def write(**values):
        content = yaml.safe_load((ROOT / "params.yaml").read_text()) | values
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))
        return tmp_path

    yield write
    assert not list(tmp_path.rglob("PWNED"))


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def assert_one_error(done, *words):
    """Two lines: what is wrong, and what to do about it."""
    assert done.exit_code == 1, (done.output, done.exception)
    error = done.stderr[done.stderr.index("error: ") :]
    assert len(error.strip().splitlines()) == 2, error
    for word in words:
        assert word in error


def test_no_command_holds_a_parameter():
    for commands in COMMANDS.values():
        assert not any("${" in command for command in commands)
    for name in STAGES:
        assert COMMANDS[name][0].partition(" >")[0] == f"python -m vitconv.cli.stages {name}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_again_when_a_parameter_that_it_reads_changes(name, project, monkeypatch):
    read = []
    monkeypatch.setattr(
        "vitconv.cli.stages.read_parameters", lambda *names: read.extend(names) or read_parameters(*names)
    )
    for module, attribute in [
        ("papermill", "execute_notebook"),
        ("vitconv.cli.verify", "verify"),
        ("vitconv.cli.predict", "predict"),
    ]:
        monkeypatch.setattr(f"{module}.{attribute}", lambda *arguments, **values: None)
    monkeypatch.setattr("vitconv.cli.stages.write_digests", lambda values, folder: None)
    project()
    assert run(name).exit_code == 0
    stage = PIPELINE[name]
    if stage.get("always_changed"):
        return
    assert sorted(stage["params"]) == sorted(read)
    named = {path[2:-1] for path in (*stage["deps"], *stage["outs"]) if "${" in path}
    assert named <= {*read, "images_folder"}  # which nobody but DVC reads


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:8], ids=ascii)  # the first has every mark
def test_files_of_any_name_are_predicted_from(name, project, folder, write_images):
    root = project(model=name + " model", images=name, engine="local", batch_size=4, device="cpu")
    os.symlink(folder, root / (name + " model"))
    write_images(3).rename(root / name)
    done = run("predict")
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(read_predictions("build/predictions").rows) == 3


@pytest.mark.parametrize("name", ["checkpoint", "labels"])
def test_what_is_read_may_not_lie_in_the_model(name, project):
    """DVC would remove it."""
    files = dict.fromkeys(("checkpoint", "labels", "image", "data_config", "expected"), "file")
    root = project(model="model", **(files | {name: "link"}))
    (root / "model").mkdir()
    (root / "model" / "model.safetensors").touch()
    (root / "file").touch()
    (root / "link").symlink_to("model/model.safetensors")
    assert_one_error(run("sources"), "so it is not overwritten")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_files_of_any_name_are_digested(name, project):
    files = {key: f"{name} {key}" for key in ("checkpoint", "labels", "image", "data_config", "expected")}
    root = project(**files)
    for file in files.values():
        (root / file).write_text("content")
    assert run("sources").exit_code == 0
    for key, file in files.items():
        assert list(json.loads((root / "build" / "sources" / f"{key}.json").read_text())) == [file]


@pytest.mark.slow
def test_files_of_any_name_are_verified(project, small_checkpoint):
    root = project(checkpoint=ALL + ".pth", model=ALL + " model", labels="")
    shutil.copyfile(small_checkpoint, root / (ALL + ".pth"))
    convert_checkpoint(
        root / (ALL + ".pth"), root / (ALL + " model"), architecture="vit_tiny_patch16_224", verify=False
    )
    done = run("verify")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "float64" in json.loads(done.stdout)["parity"]


@pytest.mark.slow
def test_verify_repeats_what_the_conversion_was_given(project, tmp_path):
    """The checkpoint states other class names and another mean, which the record alone does not overrule."""
    model = full_model("vit_tiny_patch16_224", num_classes=2)
    own = {"arch": "vit_tiny_patch16_224", "label_names": ["a", "b"], "args": {"mean": [0.4, 0.4, 0.4]}}
    torch.save({"state_dict": model.state_dict(), **own}, tmp_path / "own.pth")
    (tmp_path / "labels.txt").write_text("c\nd\n")
    (tmp_path / "data.json").write_text('{"mean": [0.1, 0.1, 0.1]}')
    given = {"labels": str(tmp_path / "labels.txt"), "ignore": ["mean"]}
    data = str(tmp_path / "data.json")
    root = project(checkpoint=str(tmp_path / "own.pth"), model="model", data_config=data, **given)
    convert_checkpoint(tmp_path / "own.pth", root / "model", data=data, verify=False, **given)
    done = run("verify")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["warnings"] == []


#: What the YAML in params.yaml may hold, and the form lets through.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**299), 10**299) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(PLAIN)
def test_a_notebook_gets_the_values_and_no_code(value):
    assert _FORMS["thresholds"].fits(value)
    namespace = {}
    exec(PythonTranslator.codify({"value": value}), namespace)
    assert namespace["value"] == value and type(namespace["value"]) is type(value)


@pytest.mark.parametrize("stage", ["convert", "evaluate"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_notebook_gets_every_text_as_it_is(stage, name, project, monkeypatch):
    seen = {}
    monkeypatch.setattr("papermill.execute_notebook", lambda notebook, output, values, **options: seen.update(values))
    texts = (
        "checkpoint",
        "architecture",
        "labels",
        "image",
        "data_config",
        "target",
        "device",
        "model",
        "images",
        "expected",
    )
    project(**dict.fromkeys(texts, name), ignore=[name], metrics=[name], thresholds={name: {name: name}})
    done = run(stage)
    assert done.exit_code == 0, (done.output, done.exception)
    expected = {
        "convert": {key: name for key in (*texts[:7], "output")} | {"ignore": [name]},
        "evaluate": {"images": name, "expected": name, "metrics": [name], "thresholds": {name: {name: name}}},
    }
    assert expected[stage].items() <= seen.items()
    namespace = {}
    exec(PythonTranslator.codify(seen), namespace)
    assert {key: namespace[key] for key in seen} == seen


@pytest.mark.parametrize(
    "stage, parameter, value, words",
    [
        ("predict", "device", "cpu; touch PWNED", "cpu; touch PWNED"),
        ("predict", "engine", "local; touch PWNED", "Choose from local, ray."),
        ("predict", "engine", ["local"], "Choose from local, ray."),
        ("predict", "images", "; touch PWNED", "; touch PWNED"),
        ("predict", "images", "", "Write a path."),
        ("predict", "images", None, "`images` is None"),
        ("predict", "images", "a\0b", "Write a path."),
        ("predict", "model", "$(touch PWNED)", "$(touch PWNED)"),
        ("predict", "batch_size", "8; touch PWNED", "Write an integer that is at least 1."),
        ("predict", "batch_size", True, "Write an integer that is at least 1."),
        ("predict", "batch_size", 10**400, "Write an integer that is at least 1."),
        ("predict", "batch_size", 0, "Write an integer that is at least 1."),
        ("predict", "max_errors", -1, "Write an integer that is at least 0."),
        ("predict", "max_errors", 1.5, "Write an integer that is at least 0."),
        ("verify", "checkpoint", "`touch PWNED`", "`touch PWNED`"),
        ("verify", "checkpoint", 7, "`checkpoint` is 7"),
        ("verify", "model", "'; touch PWNED; '", "touch PWNED"),
        ("sources", "labels", "'; touch PWNED; '", "There is no file"),
        ("sources", "labels", [1], "`labels` is [1]."),
        ("sources", "image", "a" * 5000, "File name too long"),
        ("convert", "no_ema", "false", "Write true or false."),
        ("convert", "headless", 1, "Write true or false."),
        ("convert", "ignore", "mean", "Write a list of names."),
        ("convert", "img_size", [224], "Write [height, width]"),
        ("convert", "img_size", "224", "Write [height, width]"),
        ("convert", "img_size", [100_000, 100_000], "Write [height, width]"),
        ("convert", "img_size", [10**400, 32], "Write [height, width]"),
        ("convert", "img_size", [-224, -224], "Write [height, width]"),
        ("convert", "architecture", 1, "Write a string"),
        ("evaluate", "metrics", [b"a\"b"], "Use only strings, numbers"),
        ("evaluate", "thresholds", {b"a\"b": 1}, "Use only strings, numbers"),
        ("evaluate", "thresholds", {"a": {"max": 10**400}}, "Use only strings, numbers"),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_a_value_of_another_form_is_an_error(stage, parameter, value, words, project, folder, write_images):
    values = {"model": "model", "images": "list.csv"} | dict.fromkeys(
        ("labels", "image", "data_config", "expected"), ""
    )
    values["checkpoint"] = str(folder / "config.json")
    root = project(**values | {parameter: value})
    os.symlink(folder, root / "model")
    write_images(2)
    assert_one_error(run(stage), words)


@pytest.mark.parametrize(
    "content", [None, "", "[1]", "model: [", "model: 1" + "0" * 5000, "model: !!python/object/apply:os.system ['touch PWNED']", "[" * 5000],
    ids=lambda content: ascii(content)[:20],
)  # fmt: skip
def test_parameters_that_are_none(content, project):
    root = project()
    (root / "params.yaml").unlink() if content is None else (root / "params.yaml").write_text(content)
    assert_one_error(run("verify"), "params.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind", ["fifo", "device", "immense"])
def test_a_parameters_file_that_never_ends_is_not_read(kind, project):
    root = project()
    (root / "params.yaml").unlink()
    if kind == "fifo":
        os.mkfifo(root / "params.yaml")
    elif kind == "device":
        (root / "params.yaml").symlink_to("/dev/zero")
    else:
        with open(root / "params.yaml", "wb") as file:
            file.truncate(2**40)
    words = {"fifo": "is a pipe", "device": "is a device", "immense": "at most 262,144"}
    command = [sys.executable, "-m", "vitconv.cli.stages", "verify"]  # a process of its own, that can be ended
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: The parameters file 'params.yaml' ") and words[kind] in done.stderr


def test_a_key_that_occurs_twice_is_named(project):
    """PyYAML takes the last value of the two."""
    root = project()
    rest = (root / "params.yaml").read_text()
    for text, key in (("device: cuda\n", "device"), ("other: {a: {b: 1, b: 2}}\n", "b")):
        (root / "params.yaml").write_text(rest + text)
        assert_one_error(run("verify"), f"'params.yaml' cannot be read: the key '{key}' occurs twice", "line ")


def test_merge_keys_are_refused(project):
    """YAML copies what they merge: seven lines of ten aliases each would be 2 * 10^7 values."""
    root = project()
    rest = (root / "params.yaml").read_text()
    bomb = "a0: &a0 {x: 1, y: 2}\n"
    bomb += "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 8))
    for text in (bomb, "a: &a {x: 1}\nb: {<<: *a}\n", "a: !!set {<<: {x: 1}}\n"):
        (root / "params.yaml").write_text(rest + text)
        assert_one_error(run("verify"), "'params.yaml' cannot be read: merge keys (<<) are not read", "line ")
    (root / "params.yaml").write_text(rest + "'<<': 1\n")  # a text in quotes is none
    assert read_parameters("model")


@pytest.mark.parametrize(
    "value, reason",
    [
        ('!!int ""', "'' is not a valid int"),
        ('!!int "_"', "'_' is not a valid int"),
        ('!!float ""', "'' is not a valid float"),
        ('!!bool "x"', "'x' is not a valid bool"),
        ('!!timestamp "x"', "'x' is not a valid timestamp"),
        (f'!!float "1{":59" * 500}"', "is not a valid float"),
        ("2001-99-99", "'2001-99-99' is not a valid timestamp"),
        ("{[1]: 2}", "found unhashable key"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_value_that_is_none_of_its_type_is_named_with_its_line(value, reason, project):
    root = project()
    (root / "params.yaml").write_text(f"model: model\nheadless: {value}\n")
    assert_one_error(run("verify"), "'params.yaml' cannot be read: ", reason, "line 2")


def test_a_parameter_that_is_missing_and_one_that_is_empty(project):
    root = project()
    (root / "params.yaml").write_text("labels:\nimage: ''\n")
    assert read_parameters("labels", "image") == {"labels": "", "image": ""}
    with pytest.raises(InputError, match="`target` is missing in 'params.yaml'"):
        read_parameters("target")


def test_an_error_in_a_notebook_is_the_stages(project, monkeypatch):
    """As if it were the command's; what is none of vitconv's is found in the notebook."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    def fail(name, text):
        def execute(*arguments, **values):
            if name is None:
                raise DeadKernelError("Kernel died")
            raise PapermillExecutionError(0, 1, "source", name, text, ["traceback"])

        monkeypatch.setattr("papermill.execute_notebook", execute)
        project()
        return run("convert")

    assert_one_error(fail("CheckpointError", "'a\nb' is none.\nUse another."), "error: 'a\\nb' is none.\nUse another.")
    assert_one_error(fail("AssertionError", "no"), "error: AssertionError: no\nbuild/convert.ipynb shows the cell")
    assert_one_error(
        fail(None, None), "error: The process that ran build/convert.ipynb ended before the notebook did."
    )
    assert_one_error(fail("first_few", "no"), "error: first_few: no")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "notebook"), [("convert", "convert"), ("evaluate", "evaluate"), ("demo", "convert")]
)
def test_what_a_kernel_says_is_in_its_log(stage, notebook, project):
    """A notebook that fails is one sentence; of the kernel that is shut down, nothing is seen."""
    assert "python -m vitconv.cli.stages demo" in (ROOT / "Makefile").read_text()
    root = project(checkpoint="nowhere.pth", model="model", images="list.csv")
    code = "import os; os.write(2, b'Traceback of the kernel'); from vitconv.errors import InputError; "
    cell = nbformat.v4.new_code_cell(code + "raise InputError('It is wrong.', 'Mend it.')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=KERNEL), root / "notebooks" / f"{notebook}.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "vitconv.cli.stages", stage],
        cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("error: It is wrong.\nMend it.\n")
    assert "Traceback" not in done.stderr and "IPKernelApp" not in done.stderr
    assert "Traceback of the kernel" in (root / "build" / f"{notebook}.log").read_text()


def test_where_answers_are_expected_the_timm_model_does_not_run(project):
    """The stage's folder is not empty, which DVC would warn of again and again."""
    root = project(expected="answers.csv", checkpoint="nowhere.pth")
    assert run("timm").exit_code == 0
    assert [path.name for path in (root / "build" / "timm").iterdir()] == ["not-run.txt"]


def test_where_no_answers_are_expected_the_timm_model_runs_and_is_compared_with(
    project, small_checkpoint, write_images, monkeypatch
):
    given = {"architecture": "vit_tiny_patch16_224", "images": "list.csv", "device": "cpu"}
    empty = dict.fromkeys(("labels", "data_config", "expected"), "")
    root = project(checkpoint=str(small_checkpoint), model="model", **given, **empty)
    write_images(3)
    convert_checkpoint(small_checkpoint, root / "model", architecture="vit_tiny_patch16_224", verify=False)
    done = run("timm")
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(read_predictions("build/timm").rows) == 3
    read = {}
    monkeypatch.setattr("papermill.execute_notebook", lambda source, where, values, **options: read.update(values))
    assert run("evaluate").exit_code == 0
    assert read["expected"] == "build/timm"


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.mark.parametrize("stage", ["demo", "convert"])
def test_a_fresh_clone_has_no_folder_for_what_is_built(stage, project, monkeypatch):
    root = project()
    (root / "build").rmdir()
    nbformat.write(nbformat.v4.new_notebook(metadata=KERNEL), root / "notebooks" / "convert.ipynb")
    made = []
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: made.append((root / "build").is_dir()))
    assert run(stage).exit_code == 0
    assert made == [True]


def test_a_notebook_that_is_not_there(project):
    project()
    assert_one_error(
        run("convert"), "notebooks/convert.ipynb cannot be run into build/convert.ipynb: ", "No such file"
    )


def test_a_folder_of_ones_own_is_not_given_to_dvc(project):
    """Which would empty it before the conversion could refuse it."""
    root = project(checkpoint="params.yaml", model="mine", labels="", image="", data_config="", expected="")
    assert run("sources").exit_code == 0
    (root / "mine").mkdir()
    (root / "mine" / "config.json").write_text("{}")
    assert run("sources").exit_code == 0  # as a conversion leaves it
    (root / "mine" / "notes.txt").write_text("mine")
    assert_one_error(run("sources"), "'mine' holds files that no conversion writes (notes.txt)")


@pytest.mark.parametrize("parameter", ["metrics", "thresholds"])
def test_aliases_that_make_a_value_immense_or_endless(parameter, project):
    """Eight lines of YAML are 9^8 values; or a list that holds itself."""
    root = project()
    others = yaml.safe_load((root / "params.yaml").read_text())
    others.pop(parameter, None)
    rest = yaml.safe_dump(others)
    bomb = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    for value in (f"{bomb}{parameter}: *a8", f"{parameter}: &a [*a]", f"{parameter}: &a {{a: *a}}"):
        (root / "params.yaml").write_text(f"{rest}\n{value}\n")
        assert_one_error(run("evaluate"), f"`{parameter}` is ", "Use only strings, numbers, lists and mappings")


@pytest.mark.parametrize("value", [0, 1, True, "0.1", float("nan"), [], None])
def test_a_share_of_answers_that_is_none(value, project):
    project(max_disagreement=value)
    assert_one_error(run("optimize"), "`max_disagreement` is ", "Write a number between 0 and 1")


def test_optimize_passes_on_its_parameters(project, monkeypatch):
    project(recipes=None, judge="mine.csv", max_disagreement=0.01)
    given = {}
    monkeypatch.setattr("vitconv.cli.stages._run_notebook", lambda name, values: given.update({name: values}))
    assert run("optimize").exit_code == 0
    parameters = given["optimize"]
    assert parameters["recipes"] == [] and parameters["images"] == "mine.csv"
    assert (parameters["max_disagreement"], parameters["results"]) == (0.01, "build/optimize.json")
    notebook = nbformat.read(ROOT / "notebooks" / "optimize.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert set(parameters) <= {one.targets[0].id for one in ast.parse(cell.source).body}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sources", "verify", "predict"])
def test_the_commands_line_in_a_shell(stage, project):
    """With every text hostile: one sentence, and nothing else runs. (The notebooks: tests/system/test_pipeline.py)"""
    root = project(**{key: ALL for key, form in _FORMS.items() if form.fits(ALL)})
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    (command,) = COMMANDS[stage]
    done = subprocess.run(command, shell=True, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
