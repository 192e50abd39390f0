"""A folder goes into MLflow's registry and comes back byte for byte, or nothing does."""

import json
import os
import shutil
from pathlib import Path

import mlflow
import pytest

from vitconv.errors import CheckpointError, DestinationError, InputError, VitconvError
from vitconv.inference import optional, read_info
from vitconv.registry import fetch, register
from vitconv.registry import registry as module
from vitconv.registry.contents import digest
from vitconv.registry.store import Store, open_store

pytestmark = pytest.mark.usefixtures("registry")


def contents(folder):
    """All files of a folder, also hidden ones."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def artifacts(run):
    """Where the embedded store keeps the files of a run."""
    (found,) = Path("mlruns").glob(f"*/{run}/artifacts")
    return found


def test_there_and_back(folder):
    made = register(folder, name="roofs", alias="champion")
    assert (made.name, made.version, made.alias, made.new) == ("roofs", 1, "champion", True)
    assert made.uri == "models:/roofs@champion" and made.fingerprint == read_info(folder).fingerprint
    assert made.registry == f"sqlite:///{os.getcwd()}/mlflow.db"
    found = fetch("roofs", "champion", "back")
    assert contents("back") == contents(folder)
    assert (found.version, found.fingerprint, found.run_id) == (1, made.fingerprint, made.run_id)
    assert found.files == len(contents(folder)) and found.folder == Path("back")
    assert contents(fetch("roofs", 1, "again").folder) == contents(folder)


def test_there_and_back_with_folders_in_it(woods):
    """As ONNX and OpenVINO have them; here it only looks like that."""
    place = Path(shutil.copytree(woods.model, "trees"))
    (place / "onnx").mkdir()
    (place / "onnx" / "model (1) ä&.onnx").write_bytes(b"model")
    (place / ".secret").write_text("key")
    register(place)
    fetch("trees", 1, "back")
    assert contents("back") == {name: content for name, content in contents(place).items() if name != ".secret"}


def test_mlflow_itself_gets_the_same_files(folder):
    register(folder, name="roofs", alias="champion")
    place = mlflow.artifacts.download_artifacts("models:/roofs@champion", dst_path="by-mlflow")
    assert contents(place) == contents(folder)


def test_what_mlflow_shows_of_it(woods, tmp_path):
    made = register(woods.copy("bfloat16", tmp_path / "fast"), name="roofs")
    with open_store() as store:
        run = store.client.get_run(made.run_id)
        version = store.version("roofs", 1)
        assert store.client.get_experiment(run.info.experiment_id).name == "vitconv"
    assert run.info.status == "FINISHED" and run.info.run_name == "roofs"
    assert run.data.metrics == made.metrics and run.data.metrics["optimization/images"] == 60
    assert run.data.params["recipe"] == "bfloat16" and run.data.params["fingerprint"] == made.fingerprint
    assert version.tags["vitconv.fingerprint"] == run.data.tags["vitconv.fingerprint"] == made.fingerprint
    assert version.description.startswith("ViTForImageClassification") and version.status == "READY"
    assert "optimised with bfloat16: 5 classes, 3x32x32, run by transformers." in version.description


def test_an_experiment_of_another_name(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    made = register(folder)
    with open_store() as store:
        assert (
            store.client.get_run(made.run_id).info.experiment_id
            == store.client.get_experiment_by_name("mine").experiment_id
        )


def test_the_same_folder_keeps_its_version(folder, certain):
    first = register(folder, name="roofs", alias="champion")
    again = register(folder, name="roofs")
    assert (again.version, again.new, again.run_id) == (1, False, first.run_id)
    assert again.uri == "models:/roofs/1" and first.alias == "champion"
    assert register(folder, name="other").new
    # It has a calibration now: another folder, of the same model.
    calibrated = register(certain, name="roofs", alias="champion")
    assert (calibrated.version, calibrated.new) == (2, True) and calibrated.fingerprint == first.fingerprint
    assert "Version 1 is the same model with other files beside it, such as its records." in calibrated.notes
    assert fetch("roofs", "champion", "back").version == 2 and (Path("back") / "calibration.json").is_file()
    # The alias goes back without another upload.
    assert register(folder, name="roofs", alias="champion").version == 1
    assert fetch("roofs", "champion", "first").version == 1


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a:b", "a'b", 'a"b', "a`b", "a\\b", "a\nb", "a" * 251])
def test_names_that_cannot_be(folder, name):
    for call in (lambda: register(folder, name=name), lambda: fetch(name, "champion", "back")):
        with pytest.raises(InputError, match="A registered model cannot be called") as found:
            call()
        assert "--name NAME" in found.value.remedy


def test_a_folder_s_name_that_cannot_be(folder):
    shutil.copytree(folder, "a:b")
    with pytest.raises(InputError, match="A registered model cannot be called 'a:b'"):
        register("a:b")


@pytest.mark.parametrize("alias", ["", "latest", "Latest", "v1", "V12", "1", "a b", "a.b", "a@b", "ä", "a" * 256])
def test_aliases_that_cannot_be(folder, alias):
    for call in (lambda: register(folder, alias=alias), lambda: fetch("roofs", alias, "back")):
        with pytest.raises(InputError, match="An alias cannot be"):
            call()


def test_names_and_aliases_that_mlflow_takes_are_taken(folder):
    for name, alias in (("Roofs 2.0 (old)", "champion"), ("a.b.c", "a-b_C1"), ("Dächer & 100 %", "x")):
        register(folder, name=name, alias=alias)
        assert fetch(name, alias, f"back-{alias}").version == 1


def test_what_is_not_there(folder):
    register(folder, name="roofs")
    where = f"'sqlite:///{os.getcwd()}/mlflow.db'"
    for name, which, problem, remedy in (
        ("floors", "champion", f"The registry at {where} has no model 'floors'.", "`vitconv register` puts a model there"),
        ("roofs", "champion", f"The model 'roofs' in the registry at {where} has no alias 'champion'.", "--name roofs --alias champion"),
        ("roofs", 7, f"The model 'roofs' in the registry at {where} has no version 7.", "Choose another version."),
    ):  # fmt: skip
        with pytest.raises(InputError) as found:
            fetch(name, which, "back")
        assert found.value.problem == problem and remedy in found.value.remedy
    assert not Path("back").exists()


def test_a_version_of_somebody_else(folder):
    with open_store() as store:
        store.client.create_registered_model("theirs")
        store.client.create_model_version("theirs", "mlruns/theirs")
    with pytest.raises(CheckpointError, match="Version 1 of 'theirs' .* was not registered by vitconv"):
        fetch("theirs", 1, "back")
    assert register(folder, name="theirs").version == 2


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda place: flip(place / "model" / "model.safetensors"), "model.safetensors has not the SHA-256"),
        (lambda place: flip(place / "model" / "README.md"), "README.md has not the SHA-256"),
        (lambda place: (place / "model" / "config.json").unlink(), "could not get 'model/config.json'"),
        (lambda place: flip(place / "files.json"), "files.json is not the list of files"),
        (lambda place: (place / "files.json").write_text(""), "files.json is not the list of files"),
        (lambda place: (place / "files.json").write_text("[]"), "files.json is not the list of files"),
        (lambda place: (place / "files.json").write_text("{}"), "files.json is not the list of files"),
        (lambda place: (place / "files.json").unlink(), "could not get 'files.json'"),
        (lambda place: ((place / "model" / "config.json").unlink(), (place / "model" / "config.json").mkdir()), "config.json"),
    ],
)  # fmt: skip
def test_a_damaged_artefact_is_refused(folder, damage, said):
    made = register(folder, name="roofs")
    damage(artifacts(made.run_id))
    with pytest.raises(VitconvError, match=said):
        fetch("roofs", 1, "back")
    assert sorted(os.listdir()) == ["mlflow.db", "mlruns"]


def test_more_files_than_were_registered_are_left_out(folder):
    made = register(folder, name="roofs")
    (artifacts(made.run_id) / "model" / "modeling_vitconv.py").write_text("raise SystemExit")
    fetch("roofs", 1, "back")
    assert contents("back") == contents(folder)


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a/../../evil.json", ".hidden"])
def test_a_list_of_files_outside_of_the_folder_is_refused(folder, name):
    made = register(folder, name="roofs")
    files = {**json.loads((artifacts(made.run_id) / "files.json").read_text()), name: "0" * 64}
    (artifacts(made.run_id) / "files.json").write_text(json.dumps(files))
    with open_store() as store:
        store.client.set_model_version_tag("roofs", "1", "vitconv.files", digest(files))
    with pytest.raises(CheckpointError, match="names files that cannot be in a folder"):
        fetch("roofs", 1, "back")
    assert sorted(os.listdir()) == ["mlflow.db", "mlruns"]


def test_another_fingerprint_is_refused(folder):
    register(folder, name="roofs")
    with open_store() as store:
        store.client.set_model_version_tag("roofs", "1", "vitconv.fingerprint", "0" * 64)
    with pytest.raises(CheckpointError, match="has not the fingerprint that was registered"):
        fetch("roofs", 1, "back")
    assert not Path("back").exists()


def test_a_destination_in_use(folder):
    register(folder, name="roofs")
    Path("back").mkdir()
    (Path("back") / "mine.txt").write_text("mine")
    with pytest.raises(DestinationError, match="exists already"):
        fetch("roofs", 1, "back")
    with pytest.raises(DestinationError, match="mine.txt"):
        fetch("roofs", 1, "back", overwrite=True)
    (Path("back") / "mine.txt").unlink()
    assert contents(fetch("roofs", 1, "back", overwrite=True).folder) == contents(folder)


def test_a_destination_that_cannot_be_written(folder):
    register(folder, name="roofs")
    Path("file").touch()
    with pytest.raises(DestinationError, match="'file' is not a folder"):
        fetch("roofs", 1, "file/back")


def left():
    """What the registry holds: versions, runs and files."""
    with open_store() as store:
        runs = store.client.search_runs([store.experiment()])
        return [*store.client.search_registered_models(), *runs, *(path for path in Path("mlruns").rglob("*") if path.is_file())]  # fmt: skip


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["upload", "log", "create_version"])
def test_what_fails_leaves_nothing(folder, monkeypatch, step, error):
    right, calls = getattr(Store, step), []

    def fail(self, *arguments):
        calls.append(arguments)
        if len(calls) == (3 if step == "upload" else 1):
            with self.asking():
                raise error
        return right(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises((VitconvError, KeyboardInterrupt)) as found:
        patch.setattr(Store, step, fail)
        register(folder, name="roofs", alias="champion")
    if isinstance(error, OSError):
        assert "could not do what was asked: No space left on device." in str(found.value)
    assert left() == []
    assert register(folder, name="roofs").version == 1


def test_a_version_that_is_not_made_leaves_no_empty_model(folder, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no version")

    with monkeypatch.context() as patch, pytest.raises(VitconvError, match="no version"):
        patch.setattr(mlflow.MlflowClient, "create_model_version", fail)
        register(folder, name="roofs")
    assert left() == []


def test_an_interrupt_behind_the_version_keeps_it(folder, monkeypatch):
    def made_and_interrupted(self, *arguments):
        right(self, *arguments)
        raise KeyboardInterrupt

    right = Store.create_version
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "create_version", made_and_interrupted)
        register(folder, name="roofs", alias="champion")
    again = register(folder, name="roofs", alias="champion")
    assert (again.version, again.new) == (1, False)
    assert contents(fetch("roofs", "champion", "back").folder) == contents(folder)


def test_a_folder_that_changes_meanwhile_is_refused(folder, monkeypatch):
    place = Path(shutil.copytree(folder, "trees"))

    def change(done, errors, total):
        (place / "README.md").write_text("changed")

    with pytest.raises(CheckpointError, match="have changed while they were uploaded"):
        register(place, on_progress=change)
    assert left() == []


def test_a_folder_that_is_removed_meanwhile_is_refused(folder):
    place = Path(shutil.copytree(folder, "trees"))

    def remove(step):
        if step == "Uploading":
            shutil.rmtree(place)

    with pytest.raises(CheckpointError, match="have changed while they were uploaded"):
        register(place, on_step=remove)
    assert left() == []


def test_a_damaged_folder_is_not_registered(folder):
    place = Path(shutil.copytree(folder, "trees"))
    (place / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        register(place)
    assert left() == []


def test_without_the_packages(folder, monkeypatch):
    monkeypatch.setattr(optional, "_is_missing", lambda package: package in ("mlflow", "alembic"))
    from vitconv import registry

    for call in (lambda: registry.register(folder), lambda: registry.fetch("roofs", 1, "back")):
        with pytest.raises(InputError, match="needs packages that are not installed: mlflow, alembic") as found:
            call()
        assert found.value.remedy == "Install them with pip install -e '.[registry]' in vitconv's clone."


def test_progress_and_steps(folder):
    steps, counts = [], []
    report = {"on_step": steps.append, "on_progress": lambda *numbers: counts.append(numbers)}
    register(folder, name="roofs", **report)
    assert steps == ["Checking the model", "Opening the registry", "Uploading", "Registering"]
    count = len(contents(folder))
    assert counts == [(number, 0, count) for number in range(1, count + 1)]
    steps.clear()
    counts.clear()
    fetch("roofs", 1, "back", **report)
    assert steps == ["Opening the registry", "Downloading", "Checking the files"]
    assert counts[-1] == (count, 0, count)


def test_the_module_is_not_shadowed():
    """The file that holds a public function never has the function's name."""
    assert module.register is register and module.fetch is fetch
