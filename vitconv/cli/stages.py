"""Run a stage of the pipeline with the values in params.yaml: ``python -m vitconv.cli.stages NAME``

DVC runs the command of a stage in a shell, which would interpret an apostrophe or a semicolon in a value. Therefore
the commands in dvc.yaml contain no values: each stage reads params.yaml itself, from the project's root, and checks
each value before it uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
import yaml
from yaml.constructor import ConstructorError

from vitconv import cli, errors
from vitconv.architecture import MOST_PIXELS
from vitconv.checkpoints.checkpoint import HUB_PREFIX
from vitconv.checkpoints.digests import write_digests
from vitconv.cli import predict as predict_command
from vitconv.cli import verify as verify_command
from vitconv.cli.output import print_warnings, show_count
from vitconv.cli.process import errors_for_people
from vitconv.errors import InputError, VitconvError, shown
from vitconv.files import check_file, new_file, open_file
from vitconv.inference import ENGINES
from vitconv.models.processors import PROCESSORS
from vitconv.writing.staging import check_destination

if TYPE_CHECKING:
    from jupyter_client import AsyncKernelManager

PARAMETERS_FILE = Path("params.yaml")

app = typer.Typer(
    help="Run a stage of dvc.yaml, with the values in params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Form(NamedTuple):
    """What a parameter may be.

    Attributes:
        fits: whether a value is allowed. It is not called for an empty value, ``null`` in YAML.
        remedy: a sentence that says what to write.
        empty: the value of an empty parameter; ``None`` if the parameter must not be empty.
    """

    fits: Callable[[Any], bool]
    remedy: str
    empty: Any = None


def _is_text(value: Any) -> bool:
    """Whether it is a string that can name a file: without NUL and without unpaired surrogates."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_sides(value: list[Any]) -> bool:
    """Whether an image can have these height and width."""
    return all(_is_whole(side) and side > 0 for side in value) and math.prod(value) <= MOST_PIXELS


def _is_plain(value: Any) -> bool:
    """Whether it consists of JSON's types only. papermill writes YAML's other types into the notebook as code.

    Aliases let a few lines of YAML expand to a huge or even an infinite value, so the number of values is limited.
    """
    waiting, count = [value], 0
    while waiting:
        value, count = waiting.pop(), count + 1
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
            fits = all(map(_is_text, value))
        elif isinstance(value, list):
            waiting += value
            fits = True
        elif _is_whole(value):
            fits = abs(value) < 10**300  # papermill fails with a traceback on an integer that Python does not print
        else:
            fits = value is None or isinstance(value, bool | float) or _is_text(value)
        if not fits or count > _MOST_VALUES:
            return False
    return True


_MOST_VALUES = 100_000


_PATH = _Form(lambda value: _is_text(value) and value != "", "Write a path.")
_TEXT = _Form(_is_text, "Write a string, in quotes if YAML reads it as another type, or leave it empty.", "")
_TEXTS = _Form(lambda value: isinstance(value, list) and all(map(_is_text, value)), "Write a list of names.", [])
_SWITCH = _Form(lambda value: isinstance(value, bool), "Write true or false.", False)
_SIZE = _Form(
    lambda value: isinstance(value, list) and len(value) in (0, 2) and _are_sides(value),
    "Write [height, width], or leave it empty.",
    [],
)
_PLAIN = _Form(_is_plain, "Use only strings, numbers, lists and mappings.", [])


def _one_of(names: Iterable[str]) -> _Form:
    return _Form(lambda value: _is_text(value) and value in names, f"Choose from {', '.join(names)}.")


_FORMS = {
    **dict.fromkeys(("checkpoint", "model", "images", "judge", "calibration"), _PATH),
    **dict.fromkeys(("architecture", "labels", "image", "data_config", "target", "expected"), _TEXT),
    **dict.fromkeys(("no_ema", "headless"), _SWITCH),
    **dict.fromkeys(("ignore", "recipes"), _TEXTS),
    "max_disagreement": _Form(
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1,
        "Write a number between 0 and 1.",
    ),
    "img_size": _SIZE,
    "engine": _one_of(ENGINES),
    "processor": _one_of(PROCESSORS),
    "batch_size": _Form(lambda value: _is_whole(value) and 0 < value < 2**31, "Write an integer that is at least 1."),
    "max_errors": _Form(lambda value: _is_whole(value) and 0 <= value < 2**63, "Write an integer that is at least 0."),
    "device": _Form(lambda value: _is_text(value) and value != "", "Write auto, cpu or cuda."),
    "metrics": _PLAIN,
    "thresholds": _PLAIN._replace(empty={}),
}


#: The maximum size of params.yaml in bytes, a hundred times what it needs. PyYAML took up to 5.6 s for that many.
_MOST_BYTES = 2**18


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses merge keys and repeated keys. Errors give the position of a value of the wrong type."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse ``<<`` and a key that occurs twice.

        ``<<`` copies what it merges, so a few lines with aliases could expand to a huge value. For a repeated key,
        PyYAML would silently use the last value.
        """
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys (<<) are not read: write each value", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                name = self.construct_object(key)
                if name in seen:
                    raise ConstructorError(None, None, f"the key {shown(name)} occurs twice", key.start_mark)
                seen.add(name)
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct as PyYAML does, but turn any exception, such as IndexError for ``!!int ""``, into a YAML error."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError, MemoryError):
            raise
        except Exception as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                None, None, f"{shown(node.value)} is not a valid {kind}", node.start_mark
            ) from error


def read_parameters(*names: str) -> dict[str, Any]:
    """Read these parameters and check the form of each.

    Raises:
        InputError: the file does not exist, is not a regular file, is too large, is not a YAML mapping or has merge
            keys or repeated keys; or a parameter is missing or has an invalid value.
    """
    check_file(PARAMETERS_FILE, "parameters file", most=_MOST_BYTES)
    try:
        with open_file(PARAMETERS_FILE) as file:
            text = file.read(_MOST_BYTES).decode("utf-8")
        values = yaml.load(text, _Loader)
    except Exception as error:  # PyYAML has no common base class for the exceptions of bad files
        reason = " ".join(str(error).split())
        raise InputError(
            f"'{PARAMETERS_FILE}' cannot be read: {reason}",
            "Correct the file, and run the command in the project's root.",
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"'{PARAMETERS_FILE}' is not a mapping.", "Write one line 'NAME: VALUE' for each parameter.")
    return {name: _value(name, values) for name in names}


def _value(name: str, values: dict[str, Any]) -> Any:
    form = _FORMS[name]
    if name not in values:
        raise InputError(f"The parameter `{name}` is missing in '{PARAMETERS_FILE}'.", form.remedy)
    value = values[name]
    if value is None and form.empty is not None:
        return form.empty
    if not form.fits(value):
        raise InputError(f"The parameter `{name}` is {shown(value)}.", form.remedy)
    return value


def _given(*names: str) -> dict[str, Any]:
    with errors_for_people():
        return read_parameters(*names)


@app.command()
def sources() -> None:
    """Write the SHA-256 of each file that the parameters name.

    DVC empties a stage's output folder before it runs the stage. So this stage refuses a model folder that holds
    other files, or files that the parameters name.
    """
    with errors_for_people():
        names = ("checkpoint", "labels", "image", "data_config", "expected")
        given, model = read_parameters(*names), read_parameters("model")["model"]
        write_digests(given, "build/sources")
        inputs = [given[name] for name in names[1:] if given[name]]
        source = None if HUB_PREFIX.match(given["checkpoint"]) else given["checkpoint"]
        check_destination(model, overwrite=True, source=source, inputs=inputs)


@app.command()
def convert() -> None:
    """Run notebooks/convert.ipynb."""
    names = ("checkpoint", "architecture", "labels", "image", "data_config", "img_size", "target", "no_ema", "ignore")
    given = _given(*names, "headless", "device", "model")
    _run_notebook("convert", {"output": given.pop("model"), **given})


@app.command()
def verify() -> None:
    """Run `vitconv verify --json`."""
    given = _given("checkpoint", "model", "labels", "data_config", "ignore")
    verify_command.verify(
        Path(given["checkpoint"]),
        Path(given["model"]),
        labels=Path(given["labels"]) if given["labels"] else None,
        data_config=Path(given["data_config"]) if given["data_config"] else None,
        ignore=given["ignore"] or None,
        as_json=True,
    )


@app.command()
def predict() -> None:
    """Run `vitconv predict` and write build/predictions."""
    given = _given("model", "images", "processor", "engine", "batch_size", "device", "max_errors")
    predict_command.predict(
        Path(given["model"]),
        Path(given["images"]),
        Path("build/predictions"),
        engine=given["engine"],
        processor=given["processor"],
        batch_size=given["batch_size"],
        device=given["device"],
        max_errors=given["max_errors"],
        overwrite=True,
    )


@app.command()
def timm() -> None:
    """Run the timm model over the images into build/timm, if the parameters name no expected answers."""
    names = ("checkpoint", "architecture", "labels", "data_config", "img_size", "no_ema", "ignore", "headless")
    given = _given(*names, "expected", "model", "images", "batch_size", "device", "max_errors")
    with errors_for_people():
        from vitconv.evaluation import run_timm
        from vitconv.source import SourceOptions

        not_run = Path(_TIMM) / "not-run.txt"
        if given["expected"]:
            with new_file(not_run) as file:  # DVC warns of an empty folder
                file.write_text("The parameters name expected answers.\n")
            return
        not_run.unlink(missing_ok=True)  # DVC keeps the folder, and predictions have one of their own
        options = SourceOptions(
            given["architecture"] or None,
            tuple(given["img_size"]) or None,
            given["data_config"] or None,
            ema=not given["no_ema"],
            ignore=given["ignore"],
            headless=given["headless"],
        )
        with show_count("Running the timm model") as on_progress:
            warnings = run_timm(
                given["checkpoint"],
                given["model"],
                given["images"],
                _TIMM,
                options=options,
                labels=given["labels"] or None,
                batch_size=given["batch_size"],
                device=given["device"],
                max_errors=given["max_errors"],
                overwrite=True,
                on_progress=on_progress,
            )
        print_warnings(warnings)


_TIMM = "build/timm"


@app.command()
def evaluate() -> None:
    """Run notebooks/evaluate.ipynb on build/predictions. A missed threshold fails the report stage, not this one."""
    given = _given("model", "images", "expected", "metrics", "thresholds")
    given["expected"] = given["expected"] or _TIMM
    own = {"predictions": "build/predictions", "output": "build/evaluation", "scores": "metrics.json"}
    _run_notebook("evaluate", given | own | {"must_pass": False})


@app.command()
def optimize() -> None:
    """Run notebooks/optimize.ipynb into build/optimized and build/optimize.json."""
    given = _given("model", "judge", "calibration", "recipes", "max_disagreement")
    names = {"images": given.pop("judge"), "output": "build/optimized", "results": "build/optimize.json"}
    _run_notebook("optimize", given | names | {"rounds": 6})


@app.command()
def demo() -> None:
    """Run notebooks/convert.ipynb with its own parameters, those of the demo: for `make convert`."""
    _run_notebook("convert", {})


def _run_notebook(name: str, parameters: dict[str, Any]) -> None:
    """Run a notebook into ``build/NAME.ipynb``. An error in a cell becomes an error of this command."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source, where, log = f"notebooks/{name}.ipynb", f"build/{name}.ipynb", f"build/{name}.log"
    with errors_for_people():
        try:
            if Path(source).is_file():  # else this is not the project's root
                Path(where).parent.mkdir(exist_ok=True)  # a fresh clone has none
            papermill.execute_notebook(
                source,
                where,
                parameters,
                cwd="notebooks",
                kernel_manager_class=_kernels_that_log_to(Path(log).absolute()),
            )
        except PapermillExecutionError as error:
            kind = getattr(errors, error.ename, None)
            if isinstance(kind, type) and issubclass(kind, VitconvError):
                problem, _, remedy = error.evalue.rpartition("\n")
            else:
                problem, remedy = f"{error.ename}: {error.evalue}", f"{where} shows the cell that failed."
            raise VitconvError(problem, remedy) from error
        except DeadKernelError as error:
            raise VitconvError(
                f"The process that ran {where} ended before the notebook did.",
                f"It may have run out of memory, or a custom metric may have ended it. {log} has its last output.",
            ) from error
        except OSError as error:
            raise VitconvError(
                f"{source} cannot be run into {where}: {error.filename or source}: {error.strerror or error}.",
                "Run the command in the project's root.",
            ) from error


def _kernels_that_log_to(path: Path) -> type[AsyncKernelManager]:
    """Make a kernel manager class whose kernels write their standard error to a file.

    A cell's output and errors are in the notebook. The rest comes from the kernel itself: warnings about its
    transport, and a traceback if it is shut down while it answers.
    """
    from jupyter_client import AsyncKernelManager

    class Kernels(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                await super()._async_launch_kernel(kernel_cmd, **options | {"stderr": file})

        # AsyncKernelManager defines both names, so both are overridden.
        _launch_kernel = _async_launch_kernel

    return Kernels


if __name__ == "__main__":
    cli.run(app)
