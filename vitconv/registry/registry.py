"""Register a folder, and load it back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitconv.errors import CheckpointError, InputError, first_few, shown
from vitconv.files import read_json, write_json
from vitconv.registry.contents import Contents, digest, fits, read_contents, read_files
from vitconv.registry.store import Store, open_store
from vitconv.writing.staging import check_destination, staged_folder

#: In a run: the folder, and beside it the SHA-256 of each of its files. Inside it, that would be one more file.
FOLDER, FILES = "model", "files.json"
#: The tags of a version that say what it is.
FINGERPRINT, DIGEST = "vitconv.fingerprint", "vitconv.files"
#: MLflow refuses the first two characters; quotes cannot be searched for.
_NAME = re.compile(r"[^/:'\"`\\\x00-\x1f\x7f]{1,250}")
_ALIAS = re.compile(r"[\w-]{1,255}", re.ASCII)
_RESERVED = re.compile(r"latest|v?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Registered:
    """A version of a model in the registry.

    Attributes:
        name: the model's.
        version: its number.
        alias: what it was given; ``None`` for none.
        uri: what MLflow calls it: ``"models:/roofs@champion"``, or without an alias ``"models:/roofs/3"``.
        run_id: the run in which the files, the parameters and the metrics are.
        fingerprint: of the model: :attr:`vitconv.inference.ModelInfo.fingerprint`.
        registry: where the registry is.
        new: whether it was made now; else the same folder was registered before.
        metrics: the figures that are logged.
        notes: what to know, a sentence each.
    """

    name: str
    version: int
    alias: str | None
    uri: str
    run_id: str
    fingerprint: str
    registry: str
    new: bool
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {**vars(self), "metrics": dict(self.metrics), "notes": list(self.notes)}


@dataclass(frozen=True)
class Fetched:
    """A folder that was loaded back.

    Attributes:
        folder: where it is.
        name, version, run_id, fingerprint, registry: as of :class:`Registered`.
        files: how many.
    """

    folder: Path
    name: str
    version: int
    run_id: str
    fingerprint: str
    registry: str
    files: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {**vars(self), "folder": str(self.folder)}


def register(
    model: str | Path,
    *,
    name: str | None = None,
    alias: str | None = None,
    tracking_uri: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, total: None,
) -> Registered:
    """Register a folder as a version of a model.

    The folder's files, parameters and metrics are logged in a run of MLflow's, and a version is made of it. It appears
    when all is there, and gets the alias last. A folder that was registered under the name before, with the same
    files, keeps its version.

    Args:
        model: a folder with a classification head, as vitconv writes it, converted or optimised.
        name: the model's in the registry; by default the folder's.
        alias: what the version is to be found by, such as ``"champion"``. If another version has it, it moves here.
        tracking_uri: where MLflow is: see :func:`vitconv.registry.store.open_store`.
        on_step: called with what is being done, in a few words.
        on_progress: called with the number of files that are uploaded, 0, and the number of all.

    Raises:
        CheckpointError, ParityError: it is not a folder that vitconv writes, is damaged, or a record was edited.
        InputError: a name cannot be, or a package is missing that the model is run by.
        VitconvError: MLflow is not there, or cannot keep it.
    """
    if alias is not None:
        check_alias(alias)
    if name is not None:
        check_name(name)
    on_step("Checking the model")
    contents = read_contents(model)
    if name is None:
        name = contents.info.folder.name
        check_name(name)
    on_step("Opening the registry")
    with open_store(tracking_uri) as store:
        mine = {FINGERPRINT: contents.info.fingerprint, DIGEST: digest(contents.files)}
        known = store.versions(name)
        same = [version for version in known if mine.items() <= version.tags.items()]
        notes = list(contents.notes)
        if same:
            version = same[0]
        else:
            notes += _others(known, contents)
            on_step("Uploading")
            version = _upload(store, name, contents, mine, on_step, on_progress)
        if alias is not None:
            store.set_alias(name, alias, version.version)
    return Registered(
        name=name,
        version=int(version.version),
        alias=alias,
        uri=f"models:/{name}@{alias}" if alias else f"models:/{name}/{version.version}",
        run_id=version.run_id,
        fingerprint=contents.info.fingerprint,
        registry=store.where.strip("'"),
        new=not same,
        metrics=contents.metrics,
        notes=tuple(notes),
    )


def _others(known: list[Any], contents: Contents) -> list[str]:
    """A note if another version has the same weights and other records."""
    others = [one.version for one in known if one.tags.get(FINGERPRINT) == contents.info.fingerprint]
    if not others:
        return []
    return [f"Version {others[0]} is the same model with other files beside it, such as its records."]


def _upload(
    store: Store,
    name: str,
    contents: Contents,
    tags: Mapping[str, str],
    on_step: Callable[[str], None],
    on_progress: Callable[[int, int, int], None],
) -> Any:
    folder, files = contents.info.folder, contents.files
    source = {"mlflow.source.name": "vitconv register", "mlflow.source.type": "LOCAL"}
    with store.run(name, {**tags, **source}) as (run, artifacts):
        for number, file in enumerate(files):
            parent = Path(file).parent
            if not (folder / file).is_file():  # which is no fault of MLflow's
                raise _changed(folder)
            store.upload(run, folder / file, FOLDER if parent == Path() else f"{FOLDER}/{parent.as_posix()}")
            on_progress(number + 1, 0, len(files))
        with TemporaryDirectory(prefix="vitconv-") as scratch:
            write_json(files, Path(scratch, FILES))
            store.upload(run, Path(scratch, FILES), "")
        if read_files(folder) != files:
            raise _changed(folder)
        on_step("Registering")
        store.log(run, contents.params, contents.metrics)
        return store.create_version(name, f"{artifacts}/{FOLDER}", run, tags, _description(contents))


def _changed(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"The files in '{folder}' have changed while they were uploaded.",
        "Run it again when nothing else writes to it.",
    )


def _description(contents: Contents) -> str:
    """What MLflow's pages show of a version, in a sentence."""
    params = contents.params
    of = f" of {params['architecture']}" if "architecture" in params else ""
    recipe = f", optimised with {params['recipe']}" if "recipe" in params else ""
    return (
        f"{params['class']}{of}{recipe}: {params['classes']} classes, {params['input']}, run by {params['runtime']}."
    )


def fetch(
    name: str,
    which: str | int,
    destination: str | Path,
    *,
    overwrite: bool = False,
    tracking_uri: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[int, int, int], None] = lambda done, errors, total: None,
) -> Fetched:
    """Load a registered folder back.

    Nothing in it is run. It appears only if each file has the SHA-256 that was registered, and vitconv can read it.

    Args:
        name: the model's in the registry.
        which: an alias, or the number of a version.
        destination: the new folder.
        overwrite: whether a model folder may be replaced.
        tracking_uri, on_step: as for :func:`register`.
        on_progress: called with the number of files that are downloaded, 0, and the number of all.

    Raises:
        CheckpointError: a file is missing or damaged, or vitconv has not registered this version.
        InputError: there is no such model, version or alias, or a package is missing that the model is run by.
        DestinationError: the destination exists, or cannot be written.
        VitconvError: MLflow is not there.
    """
    check_name(name)
    if not isinstance(which, int):
        check_alias(which)
    check_destination(destination, overwrite=overwrite)
    on_step("Opening the registry")
    with open_store(tracking_uri, write=False) as store:
        version = store.version(name, which)
        what = f"Version {version.version} of '{name}' in the registry at {store.where}"
        wanted = _wanted(store, version, what)
        on_step("Downloading")
        with staged_folder(destination, overwrite=overwrite) as staging:
            scratch = staging / ".download"  # hidden, and on the same disk
            for number, file in enumerate(wanted):
                scratch.mkdir()
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                store.download(version.run_id, f"{FOLDER}/{file}", scratch).rename(staging / file)
                shutil.rmtree(scratch)
                on_progress(number + 1, 0, len(wanted))
            on_step("Checking the files")
            found = read_files(staging)
            if damaged := [file for file, sha in wanted.items() if found.get(file) != sha]:
                raise CheckpointError(
                    f"{what} is damaged: {first_few(damaged)} has not the SHA-256 that was registered.", _AGAIN
                )
            info = read_contents(staging).info
            if info.fingerprint != version.tags[FINGERPRINT]:
                raise CheckpointError(f"{what} has not the fingerprint that was registered.", _AGAIN)
    return Fetched(
        folder=Path(destination),
        name=name,
        version=int(version.version),
        run_id=version.run_id,
        fingerprint=info.fingerprint,
        registry=store.where.strip("'"),
        files=len(wanted),
    )


_AGAIN = "Register the folder again, under another name, or restore the store of its files."


def _wanted(store: Store, version: Any, what: str) -> dict[str, str]:
    """The SHA-256 of each file of a version, by its name.

    Raises:
        CheckpointError: vitconv has not registered it, or the list is damaged.
    """
    if not version.run_id or FINGERPRINT not in version.tags or DIGEST not in version.tags:
        raise CheckpointError(
            f"{what} was not registered by vitconv: it has no tag `{DIGEST}`.",
            "Download it with MLflow: mlflow.artifacts.download_artifacts.",
        )
    with TemporaryDirectory(prefix="vitconv-") as scratch:
        place = store.download(version.run_id, FILES, Path(scratch))
        try:
            files = read_json(place)
        except CheckpointError:  # it names the copy, which is gone when it is read
            files = {}
    if digest(files) != version.tags[DIGEST]:
        raise CheckpointError(f"{what} is damaged: {FILES} is not the list of files that was registered.", _AGAIN)
    if not files or not all(fits(file) and isinstance(sha, str) for file, sha in files.items()):
        raise CheckpointError(f"{what} names files that cannot be in a folder.", "Do not use it.")
    return files


def check_name(name: str) -> None:
    """Raise :class:`InputError` for a name of a model that MLflow does not take."""
    if not _NAME.fullmatch(name) or not name.isprintable() or not name.strip() or name in (".", ".."):
        raise InputError(
            f"A registered model cannot be called {shown(name)}.",
            "Choose a name of at most 250 characters, without slashes, colons and quotes: --name NAME.",
        )


def check_alias(alias: str) -> None:
    """Raise :class:`InputError` for an alias that MLflow does not take, or would take for a version."""
    if not _ALIAS.fullmatch(alias) or _RESERVED.fullmatch(alias):
        raise InputError(
            f"An alias cannot be {shown(alias)}.",
            "Choose one of letters, digits, _ and -, such as champion. MLflow keeps latest and numbers for itself.",
        )
