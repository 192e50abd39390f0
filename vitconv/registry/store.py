"""MLflow as vitconv uses it: quiet, within a bounded time, without telemetry, and with errors for people."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vitconv.errors import CheckpointError, InputError, VitconvError, brief

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# MLflow reports its use to its makers, on a thread that starts when it is imported. `DO_NOT_TRACK=1` does not stop it,
# only `true` does.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

#: What MLflow is told while it works for vitconv, unless the user has said something else. By default it would try a
#: server that is not there for four minutes.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the output is the command's
}
#: The same for the first request, which shows whether the server is there.
_FIRST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
#: The environment's variable that names the experiment of the runs; MLflow's own.
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
#: Seconds that another process may have an embedded store locked.
_LOCKED = 10
#: Characters of a reason.
_LONGEST = 300
_CHECK = "Check MLFLOW_TRACKING_URI, and what the server says."
_CHECK_FILE = "Check it, the disk and the permissions, or set MLFLOW_TRACKING_URI."


class Store:
    """A registry of MLflow's.

    Attributes:
        client: MLflow's.
        where: its address for people, without a password.
    """

    def __init__(self, client: MlflowClient, where: str) -> None:
        self.client, self.where = client, where

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, the newest first; empty where there is no such model."""
        found: list[ModelVersion] = []
        token = None
        with self.asking():
            while True:
                page = self.client.search_model_versions(f"name='{name}'", max_results=200, page_token=token)
                found += page
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: -int(version.version))

    def version(self, name: str, which: str | int) -> ModelVersion:
        """A version of a model, by its number or by an alias.

        Raises:
            InputError: there is none.
        """
        with self.asking():
            if self._or_none(self.client.get_registered_model, name) is None:
                raise InputError(
                    f"The registry at {self.where} has no model '{name}'.",
                    "Check the name, and MLFLOW_TRACKING_URI; `vitconv register` puts a model there.",
                )
            if isinstance(which, int):
                found, what = self._or_none(self.client.get_model_version, name, str(which)), f"version {which}"
            else:
                found, what = self._or_none(self.client.get_model_version_by_alias, name, which), f"alias '{which}'"
        if found is None:
            raise InputError(
                f"The model '{name}' in the registry at {self.where} has no {what}.",
                "Choose another version."
                if isinstance(which, int)
                else f"Give it one: vitconv register MODEL --name {shlex.quote(name)} --alias {which}",
            )
        return found

    def experiment(self) -> str:
        """The id of the experiment in which the runs are."""
        name = os.environ.get(_EXPERIMENT) or "vitconv"
        with self.asking():
            found = self.client.get_experiment_by_name(name)
            return found.experiment_id if found else self.client.create_experiment(name)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """A run, which is removed again, with what it holds, if the block raises: its id, and where it keeps files."""
        experiment = self.experiment()
        with self.asking():
            info = self.client.create_run(experiment, run_name=name, tags=dict(tags)).info
        try:
            yield info.run_id, info.artifact_uri
        except BaseException:
            # What remains is removed as far as that goes: the error is what matters.
            with suppress(Exception):
                if not self.client.search_model_versions(f"run_id='{info.run_id}'"):
                    self._remove(info.run_id, info.artifact_uri)
            raise

    def _remove(self, run: str, files: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with suppress(Exception):
            get_artifact_repository(files, tracking_uri=self.client.tracking_uri).delete_artifacts()
        self.client.set_terminated(run, "FAILED")
        self.client.delete_run(run)

    def upload(self, run: str, file: Path, folder: str) -> None:
        """Put a file into a folder of a run."""
        with self.asking():
            self.client.log_artifact(run, str(file), folder)

    def log(self, run: str, params: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Log a run's parameters and metrics, and end it."""
        from mlflow.entities import Metric, Param

        with self.asking():
            time = self.client.get_run(run).info.start_time
            self.client.log_batch(
                run,
                metrics=[Metric(name, value, time, 0) for name, value in metrics.items()],
                params=[Param(name, value) for name, value in params.items()],
            )
            self.client.set_terminated(run, "FINISHED")

    def create_version(
        self, name: str, source: str, run: str, tags: Mapping[str, str], description: str
    ) -> ModelVersion:
        """A new version of a model, which is made if there is none of this name."""
        with self.asking():
            made = self._or_none(self.client.get_registered_model, name) is None
            if made:
                self.client.create_registered_model(name)
            try:
                return self.client.create_model_version(
                    name, source, run_id=run, tags=dict(tags), description=description
                )
            except BaseException:
                with suppress(Exception):
                    if made and not self.client.search_model_versions(f"name='{name}'"):
                        self.client.delete_registered_model(name)
                raise

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Give a version an alias, which another one may have had."""
        with self.asking():
            self.client.set_registered_model_alias(name, alias, version)

    def download(self, run: str, path: str, folder: Path) -> Path:
        """Get a file of a run, somewhere in a folder.

        Raises:
            CheckpointError: the store does not have it.
        """
        with self.asking(f"get {brief(path)}"):
            place = Path(self.client.download_artifacts(run, path, str(folder)))
        if not place.is_file() or place.is_symlink() or not place.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"The registry at {self.where} has something else than a file as '{path}'.", "Register it again."
            )
        return place

    def _or_none(self, ask: Any, *arguments: str) -> Any:
        """What MLflow answers; ``None`` where there is no such thing."""
        from mlflow.exceptions import MlflowException

        try:
            return ask(*arguments)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            if error.error_code == "INVALID_PARAMETER_VALUE" and "not found" in str(error):  # an alias
                return None
            raise

    @contextmanager
    def asking(self, what: str = "do what was asked") -> Iterator[None]:
        """Turn what MLflow and the libraries of its stores raise into :class:`VitconvError`.

        Their errors have no common class.
        """
        try:
            yield
        except VitconvError:
            raise
        except Exception as error:
            raise VitconvError(f"MLflow at {self.where} could not {what}: {_reason(error)}", _CHECK) from error


def _reason(error: Exception) -> str:
    """Why it failed, as a sentence; of a request, what the connection says. MLflow shows passwords in addresses."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = re.search(r"Caused by \w+\(.*?\): (.*?)[\"')]*$", text)
    text = re.sub(r"://[^/\s]*@", "://", found[1] if found else text)
    text = re.sub(r"^\(sqlite3\.\w+\) | \[SQL: .*", "", text)  # what a database was asked says nothing to people
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text if text.endswith((".", "!", "…")) else f"{text}."


@contextmanager
def open_store(tracking_uri: str | None = None, *, write: bool = True) -> Iterator[Store]:
    """Connect to MLflow.

    Args:
        tracking_uri: as for ``mlflow.set_tracking_uri``; by default what ``MLFLOW_TRACKING_URI`` says, else the
            embedded store: ``mlflow.db`` and ``mlruns`` in the current folder.
        write: whether a store that is not there is made.

    Raises:
        VitconvError: it is not there, does not answer, or cannot be written.
    """
    import mlflow

    with ExitStack() as stack:
        stack.enter_context(_environment(_SETTINGS))
        stack.enter_context(_quiet())
        uri = str(tracking_uri or mlflow.get_tracking_uri())
        where = _for_people(uri)
        if uri.startswith("sqlite:"):
            _check_sqlite(uri, where, write)
        with _environment(_FIRST):
            try:
                store = Store(mlflow.MlflowClient(uri), where)
                store.client.search_registered_models(max_results=1)
            except Exception as error:
                if uri.startswith("sqlite:"):  # it is there, and was usable before MLflow wrote its tables
                    raise VitconvError(
                        f"The registry at {where} cannot be used: {_reason(error)}", _CHECK_FILE
                    ) from error
                raise VitconvError(
                    f"There is no MLflow at {where} that answers: {_reason(error)}",
                    "Start it, or correct MLFLOW_TRACKING_URI; without this variable, files in the current folder are "
                    "used.",
                ) from error
        yield store


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment that the user has not set. MLflow reads them at each request."""
    added = [name for name in settings if name not in os.environ or os.environ[name] == _SETTINGS.get(name)]
    before = {name: os.environ.get(name) for name in added}
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet(names: Iterable[str] = ("mlflow", "alembic")) -> Iterator[None]:
    """Keep MLflow from telling what it does, and from tracebacks: its errors become vitconv's."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _for_people(uri: str) -> str:
    """An address without the name and the password that it may have."""
    try:
        parts = urlsplit(uri)
        if not parts.netloc:
            return f"'{uri}'"
        return f"'{parts._replace(netloc=parts.netloc.rpartition('@')[2], query='').geturl()}'"
    except ValueError:
        return "the address in MLFLOW_TRACKING_URI"


def _check_sqlite(uri: str, where: str, write: bool) -> None:
    """Raise an error at once for an embedded store that cannot be used: MLflow would try for 100 seconds."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        path = make_url(uri).database
    except ArgumentError as error:
        raise InputError(f"{where} is no address of a database.", "Correct MLFLOW_TRACKING_URI.") from error
    if not path:
        raise InputError(
            f"{where} names no file: the registry would be gone with the command.", "Correct MLFLOW_TRACKING_URI."
        )
    if not write and not os.path.exists(path):
        raise InputError(
            f"There is no registry here: '{path}' does not exist.",
            "Go to the folder that `vitconv register` was run in, or set MLFLOW_TRACKING_URI.",
        )
    try:
        if write and not os.path.exists(Path(path).parent):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        if write and not os.path.lexists(path) and os.path.isdir(Path(path).parent):
            _make_sqlite(path)
        with closing(sqlite3.connect(path, timeout=_LOCKED, isolation_level=None)) as database:
            if write:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
            else:
                database.execute("SELECT name FROM sqlite_master LIMIT 1")
    except (sqlite3.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VitconvError(f"The registry '{path}' cannot be used: {reason}.", _CHECK_FILE) from error


def _make_sqlite(path: str) -> None:
    """Have MLflow make its tables, whole or not at all: it could not use a store in which it was interrupted."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix=".vitconv-", dir=Path(path).parent) as folder:
        new = os.path.join(folder, "new.db")
        try:
            mlflow.MlflowClient(f"sqlite:///{new}").search_registered_models(max_results=1)
        except Exception as error:
            raise VitconvError(f"The registry '{path}' cannot be used: {_reason(error)}", _CHECK_FILE) from error
        with suppress(OSError):  # another process was faster; or there are no hard links, and MLflow makes it in place
            os.link(new, path)
