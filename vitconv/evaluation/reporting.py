"""Write the report of an evaluation: whether it passed, which thresholds were checked, and what changed."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from vitconv.errors import CheckpointError, InputError, shown
from vitconv.evaluation.thresholds import Threshold, all_passed
from vitconv.evaluation.words import exact, in_words, interval_of, limit_of, number, value_of, why_skipped
from vitconv.files import MOST_TEXT, check_file, new_file, open_file, read_json
from vitconv.inference.images import FITTED
from vitconv.markdown import escape, visible

#: The pages of a report.
PAGES = ("index.html", "report.md")

#: The pictures of the evaluation in the order of the page, with their titles.
PICTURES = {
    "images": "Images: the mistakes, then the least certain",
    "logits": "The difference of each logit from the expected one",
    "confusion": "Confusion matrix",
    "classes": "Classes, the worst first",
    "reliability": "Accuracy against confidence",
}


#: The maximum size of a picture in bytes. The pipeline's pictures have about a hundred thousand.
_MOST_PICTURE = 2**24
#: The maximum number of entries of a list or a mapping. A million would take half a minute, and no browser shows them.
_MOST_ENTRIES = 10**5
#: The maximum number of characters of a name in a table, so that the page stays readable.
_MOST_NAME = 200
#: A confidence interval on fewer images is so wide that it says nothing.
_FEWEST_IMAGES = 10


@dataclass(frozen=True)
class Change:
    """A metric that changed since the earlier run.

    Attributes:
        name: the name of the metric.
        before, after: its values; ``None`` if it was not computed.
    """

    name: str
    before: float | None
    after: float | None


def changes(before: dict[str, float], after: dict[str, float]) -> list[Change]:
    """List the metrics that differ by more than rounding (1e-6), in the order of ``after``."""
    names = [*after, *(name for name in before if name not in after)]
    found = [Change(name, before.get(name), after.get(name)) for name in names]
    return [
        change
        for change in found
        if change.before is None or change.after is None or abs(change.before - change.after) > 1e-6
    ]


def report(
    evaluation: str | Path,
    destination: str | Path,
    *,
    last: str | Path | None = None,
    verification: str | Path | None = None,
) -> list[str]:
    """Write ``index.html``, a single self-contained file, and ``report.md`` with its pictures beside it.

    Args:
        evaluation: the folder with ``evaluation.json`` and the pictures.
        destination: the folder to write; files of these names are replaced.
        last: a file with the metrics of an earlier run, to list what changed. It may be missing or empty. Without one,
            the page says nothing of changes.
        verification: a file with the output of ``vitconv verify --json`` for the model.

    Returns:
        the missed thresholds, one sentence each.

    Raises:
        InputError: the evaluation does not exist, or a file is invalid. Then nothing is written.
    """
    evaluation, destination = Path(evaluation), Path(destination)
    try:
        summary = read_json(evaluation / "evaluation.json")
        proof = read_json(Path(verification)) if verification else None
        drawn = {name: _read_picture(evaluation / f"{name}.png") for name in PICTURES}
    except CheckpointError as error:
        raise InputError(error.problem, _AGAIN) from error
    except OSError as error:
        raise InputError(f"There is no picture '{error.filename}'.", _AGAIN) from error
    for content, form, what in ((summary, _SUMMARY, "evaluation"), (proof, _PROOF, "verification")):
        for place in _misfits(content, form, what) if content is not None else ():
            raise InputError(f"The {what} was written by another version or edited: {place}.", _AGAIN)
    thresholds = _checked_thresholds(summary)
    if summary["passed"] is not all_passed(thresholds, summary["metrics"]):
        raise InputError(f"The evaluation in '{evaluation}' was edited: `passed` contradicts its thresholds.", _AGAIN)
    try:
        page = _page(summary, proof, _read_last(last)) | {"compares_runs": last is not None}
        html = _render("report.html.j2", page | {"encoded": _encode(drawn)})
        texts = {"index.html": html, "report.md": _render("report.md.j2", page)}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, UndefinedError) as error:
        raise InputError(
            f"'{evaluation}' or the verification was written by another version: {error}", _AGAIN
        ) from error
    written = {
        name: text.encode("utf-8", "replace") for name, text in texts.items()
    }  # JSON may hold unpaired surrogates
    for name, data in (written | {f"{name}.png": data for name, data in drawn.items()}).items():
        with new_file(destination / name) as file:
            file.write_bytes(data)
    return [one["text"] for one in summary["thresholds"] if not one["passed"]]


def _checked_thresholds(summary: dict[str, Any]) -> list[Threshold]:
    """The thresholds.

    Raises:
        InputError: one contradicts the metrics.
    """
    thresholds = []
    for one in summary["thresholds"]:
        name = one["name"]
        threshold = Threshold(name, one["bound"], one["limit"], one["value"], one["detail"])
        if summary["metrics"].get(name) != one["value"]:
            reason = f"the metric '{name[:_MOST_NAME]}' has another value than its threshold states"
        elif (threshold.passed, str(threshold)) != (one["passed"], one["text"]):
            reason = f"the result of the threshold of '{name[:_MOST_NAME]}' contradicts its value and its limit"
        else:
            thresholds.append(threshold)
            continue
        raise InputError(f"The evaluation was written by another version or edited: {reason}.", _AGAIN)
    return thresholds


_AGAIN = "Run the steps before this one again."


def _read_picture(path: Path) -> bytes:
    check_file(path, "picture", most=_MOST_PICTURE)
    with open_file(path) as file:
        return file.read(_MOST_PICTURE)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class _Form(NamedTuple):
    """What a value must be.

    Attributes:
        fits: whether a value is allowed; it is called for values that contain no others.
        words: what is wrong with a value that is not, for the error.
    """

    fits: Callable[[Any], bool]
    words: str


_TEXT = _Form(lambda value: isinstance(value, str), "not a string")
_TEXT_OR_NONE = _Form(lambda value: value is None or isinstance(value, str), "neither a string nor null")
_SWITCH = _Form(lambda value: isinstance(value, bool), "neither true nor false")
_SWITCH_OR_NONE = _Form(lambda value: value is None or isinstance(value, bool), "neither true, false nor null")
_NUMBER = _Form(_is_number, "not a number")
_FINITE = _Form(lambda value: _is_number(value) and abs(value) <= sys.float_info.max, "not a finite number")
_NUMBER_OR_NONE = _Form(lambda value: value is None or _is_number(value), "neither a number nor null")
_COUNT = _Form(lambda value: type(value) is int and 0 <= value < 2**63, "not a number of images")
_RANGE = _Form(
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_FINITE.fits, value)),
    "not two finite numbers",
)
#: The parts of an evaluation and of a verification that the page uses. The single form in a list applies to each value
#: of the list. In a mapping, the form under ``None`` applies to every value whose name is not listed.
_SUMMARY = {
    "schema": _Form(lambda value: type(value) is int and value == 2, "not 2"),
    "about": {None: _TEXT},
    "passed": _SWITCH_OR_NONE,
    "sentences": [_TEXT],
    "skipped": [_TEXT],
    "splits": [{"split": _TEXT, "labelled": _COUNT, "right": _COUNT}],
    "known_differences": [
        {
            "path": _TEXT,
            "reason": _TEXT,
            "expected": _TEXT,
            "predicted": _TEXT_OR_NONE,
            "max_logit_difference": _NUMBER_OR_NONE,
        }
    ],
    "thresholds": [
        {
            "name": _TEXT,
            "bound": _Form(lambda value: value in ("min", "max"), "neither min nor max"),
            "limit": _FINITE,
            "value": _FINITE,
            "detail": _TEXT,
            "passed": _SWITCH,
            "text": _TEXT,
        }
    ],
    "metrics": {"images": _COUNT, "errors": _COUNT, None: _FINITE},
    "intervals": {None: _RANGE},
    "disagreements": [
        {
            "path": _TEXT,
            "expected": _TEXT,
            "predicted": _TEXT_OR_NONE,
            "label": _TEXT_OR_NONE,
            "probability": _NUMBER_OR_NONE,
        }
    ],
    "errors": [{"path": _TEXT, "error": _TEXT}],
}
_PROOF = {"parity": {None: {"same_bits": _SWITCH, "stages": [{"name": _TEXT, "max_abs": _NUMBER}]}}}


def _misfits(value: Any, form: Any, where: str) -> Iterator[str]:
    """Yield a message for each place where a value does not have its form."""
    if isinstance(form, _Form):
        if not form.fits(value):
            yield f"`{where}` is {shown(value)}, {form.words}"
    elif not isinstance(value, type(form)):
        yield f"`{where}` is {shown(value)}, not a {'list' if isinstance(form, list) else 'mapping'}"
    elif len(value) > _MOST_ENTRIES:
        yield f"`{where}` has {len(value):,} entries; at most {_MOST_ENTRIES:,} are allowed"
    elif isinstance(form, list):
        for number, one in enumerate(value):
            yield from _misfits(one, form[0], f"{where}[{number}]")
    else:
        yield from (f"`{where}` has no `{name}`" for name in form if name is not None and name not in value)
        for name, one in value.items():
            if name in form or None in form:
                yield from _misfits(one, form.get(name, form.get(None)), f"{where}.{name[:_MOST_NAME]}")


def _encode(drawn: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(content).decode() for name, content in drawn.items()}


def _page(summary: dict[str, Any], proof: dict[str, Any] | None, before: dict[str, float] | None) -> dict[str, Any]:
    """The values for the templates: in words, and rounded."""
    metrics = summary["metrics"]
    state, title = verdict(summary)
    return {
        **summary,
        "state": state,
        "title": title,
        "verdict": summary["sentences"][0],
        "more": summary["sentences"][1:],
        "thresholds": [_threshold(one, metrics) for one in summary["thresholds"]],
        "skipped": [in_words(name) for name in summary["skipped"]],
        "why_skipped": why_skipped(metrics),
        "known_differences": [
            one | {"difference": number(one["max_logit_difference"])} for one in summary["known_differences"]
        ],
        "disagreeing": round(metrics.get("compared", 0) * (1 - metrics.get("agreement", 1))),
        "values": [
            {"name": in_words(name), "value": value_of(name, metrics), "interval": _interval(name, summary)}
            for name, value in metrics.items()
        ],
        "fitted": _fitted(summary),
        "last": before is not None,
        "changes": [_change(one, before, metrics) for one in changes(before, metrics)] if before is not None else [],
        "proof": _proof(proof) if proof else None,
        "pictures": {name: title for name, title in PICTURES.items() if _drawn(name, metrics)},
    }


def _drawn(name: str, metrics: dict[str, float]) -> bool:
    """Whether there is something to see in a picture."""
    if name == "logits":
        return "max_logit_difference" in metrics
    if name == "reliability":
        return metrics.get("labelled", 0) > 0
    return name == "images" or metrics.get("labelled", 0) > 0 or metrics.get("compared", 0) > 0


def verdict(summary: dict[str, Any]) -> tuple[str, str]:
    """The state, ``passed``, ``missed`` or ``neutral``, and its title."""
    if summary["passed"] is None:
        return "neutral", "Not judged" if summary["metrics"].get("compared") else "Nothing to judge"
    return ("passed", "Passed") if summary["passed"] else ("missed", "Not passed")


def _threshold(one: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """A row of the table of thresholds. A missed one has the exact value, too: rounded, it could seem to pass."""
    return {
        "passed": one["passed"],
        "name": in_words(one["name"]),
        "value": value_of(one["name"], metrics),
        "limit": limit_of(one["name"], one["bound"], one["limit"]),
        "text": "" if one["passed"] else one["text"],
    }


def _fitted(summary: dict[str, Any]) -> list[str]:
    """The splits that the model was fitted on."""
    return [one["split"] for one in summary["splits"] if one["split"] in FITTED]


def _interval(name: str, summary: dict[str, Any]) -> str:
    """A metric's confidence interval, where it says something on other images; else empty.

    It says nothing for a handful of images, for images that the model was fitted on, or where it has no width.
    """
    low, high = summary["intervals"].get(name, (0, 0))
    of_labels = name != "agreement"
    images = summary["metrics"].get("labelled" if of_labels else "compared", 0)
    if low == high or images < _FEWEST_IMAGES or (of_labels and _fitted(summary)):
        return ""
    return interval_of(name, (low, high))


def _change(change: Change, before: dict[str, float], after: dict[str, float]) -> dict[str, str]:
    """A row of the table of changes: exact where the rounded values would be the same."""
    texts = [value_of(change.name, one) if change.name in one else number(None) for one in (before, after)]
    if texts[0] == texts[1]:
        texts = [exact(one[change.name]) for one in (before, after)]
    return {"name": in_words(change.name), "before": texts[0], "after": texts[1]}


def _read_last(path: str | Path | None) -> dict[str, float] | None:
    if path:
        check_file(path, "file of an earlier run's metrics", most=MOST_TEXT)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or len(content) > _MOST_ENTRIES:
        return None
    return {name: value for name, value in content.items() if _is_metric(value)}


def _is_metric(value: Any) -> bool:
    """Whether a value can be a metric: anyone can edit the file of the earlier run."""
    return isinstance(value, (int, float)) and -sys.float_info.max <= value <= sys.float_info.max


def _proof(verification: dict[str, Any]) -> list[str]:
    """The result of the verification, one line for each dtype."""
    lines = []
    for dtype, comparison in verification["parity"].items():
        last = comparison["stages"][-1]
        found = "equal bit for bit" if comparison["same_bits"] else f"largest difference {last['max_abs']:.1e}"
        lines.append(f"{dtype}: {last['name']} {found}")
    return lines


def _render(template: str, page: dict[str, Any]) -> str:
    """Fill a template. Every value is escaped, for HTML or for Markdown, and unprintable characters are replaced."""
    markdown = template.endswith(".md.j2")
    environment = Environment(
        loader=PackageLoader("vitconv.evaluation"),
        autoescape=not markdown,
        finalize=escape if markdown else visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda text, most=_MOST_NAME: text if len(text) <= most else f"{text[:most]}…"
    return environment.get_template(template).render(page)
