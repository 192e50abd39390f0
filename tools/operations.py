"""Write what Prometheus and Grafana need to watch the servers, from deploy/objectives.yaml: `make operations`.

`python tools/operations.py` writes deploy/rules.yml and deploy/dashboards/vitconv.json. The rules follow "Alerting on
SLOs" in Google's SRE workbook: somebody is told when the error budget is being spent too fast over a long window, so
that a short disturbance wakes nobody, and over a short one, so that an alert ends soon after its cause.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitconv.errors import InputError, VitconvError, shown
from vitconv.serving.rest.metrics import SECONDS

ROOT = Path(__file__).parents[1]
OBJECTIVES = ROOT / "deploy" / "objectives.yaml"
RULES = ROOT / "deploy" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "dashboards" / "vitconv.json"

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
#: The workbook's table: who is told, if so much of the budget is spent within the long window; the short window.
BURNS = (
    ("page", 0.02, _HOUR, 5 * _MINUTE),
    ("page", 0.05, 6 * _HOUR, 30 * _MINUTE),
    ("ticket", 0.10, _DAY, 2 * _HOUR),
    ("ticket", 0.10, 3 * _DAY, 6 * _HOUR),
)
#: What `model` in the file says.
LIMITS = ("least_images", "age_days", "unreadable", "failed", "unreliable", "drift", "class_mix")
#: How often the rules are evaluated: those of service levels, and those of the model, which change slowly.
_OFTEN, _SELDOM = _MINUTE, 5 * _MINUTE
#: The limits of vitconv_oddness_rank. At the last one, every share is 1.
_RANKS = [tenth / 10 for tenth in range(1, 10)]


@dataclass(frozen=True)
class Objective:
    """One of the objectives.

    Attributes:
        name: of it.
        paths: a regular expression of Prometheus', which the paths match whole.
        share: of the requests that must be good.
        seconds: within which an answer is good; without, any answer is that is not 5xx.
    """

    name: str
    paths: str
    share: float
    seconds: float | None = None

    @property
    def alert(self) -> str:
        """The name of its alerts."""
        return "Vitconv" + "".join(word.capitalize() for word in self.name.split("-"))

    @property
    def budget(self) -> float:
        """The share of requests that may be bad."""
        return round(1 - self.share, 12)


def read_objectives(file: Path = OBJECTIVES) -> tuple[dict[str, Any], list[Objective]]:
    """What the file says, and its objectives.

    Raises:
        InputError: an objective cannot be met, measured or missed.
    """
    content = yaml.safe_load(file.read_text("utf-8"))
    _check_content(content)
    objectives = []
    for name, values in content["objectives"].items():
        if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9_-]+", name):
            raise InputError(f"An objective has the name {shown(name)}.", "Use letters, digits, '-' and '_'.")
        if not isinstance(values, dict):
            raise InputError(f"The objective `{name}` is {shown(values)}.", "Give it `paths` and `share`.")
        if not {"paths", "share"} <= values.keys() <= {"paths", "share", "seconds"}:
            said = f"The objective `{name}` has the settings {', '.join(sorted(map(str, values)))}."
            raise InputError(said, "Give it `paths` and `share`, and `seconds` if it is about time.")
        _check_number(f"The objective `{name}` has the share", values["share"])
        _check_paths(name, values["paths"])
        objectives.append(Objective(name, **values))
    if type(content["days"]) is not int or content["days"] <= 3:
        said = f"`days` is {shown(content['days'])}."
        raise InputError(said, "The longest window is of 3 days: choose a larger whole number, such as 30.")
    for one in objectives:
        steepest = max(burn(content["days"], spent, long) for _, spent, long, _ in BURNS)
        if not 1 - 1 / steepest < one.share < 1:
            least = f"Choose one above {1 - 1 / steepest:.3f}, of which an alert can tell errors, and below 1."
            raise InputError(f"The objective `{one.name}` has the share {one.share}.", least)
        if one.seconds is not None and one.seconds not in SECONDS:
            said = f"The objective `{one.name}` asks for {shown(one.seconds)} s, which the histogram does not count."
            raise InputError(said, f"Choose one of {', '.join(map(str, SECONDS))}.")
    return content, objectives


def _check_content(content: Any) -> None:
    """Raise :class:`InputError` unless the file says all that the rules need, in numbers."""
    parts = ("days", "least_bad_requests", "objectives", "model")
    if not isinstance(content, dict) or not set(parts) <= content.keys():
        raise InputError("The file of objectives is not whole.", f"It needs {', '.join(f'`{one}`' for one in parts)}.")
    for name in ("objectives", "model"):
        if not isinstance(content[name], dict):
            raise InputError(f"`{name}` is {shown(content[name])}.", "Write one setting below it in each line.")
    if missing := [name for name in LIMITS if name not in content["model"]]:
        raise InputError(f"`model` does not say {', '.join(missing)}.", "Give each of them a number.")
    _check_number("`least_bad_requests` is", content["least_bad_requests"])
    for name in LIMITS:
        _check_number(f"`{name}` is", content["model"][name])


def _check_number(said: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{said} {shown(value)}.", "Write a number without a unit: 0.99, not 99%.")


def _check_paths(name: str, paths: Any) -> None:
    try:
        re.compile(paths)
    except (TypeError, re.error) as error:
        raise InputError(
            f"The `paths` of the objective `{name}` are {shown(paths)}: no regular expression.",
            "Write one text, such as /v1/predict.*|/v2/models/.*/infer.",
        ) from error


def burn(days: float, spent: float, window: float) -> float:
    """How many times faster than evenly the budget of the days is spent, if this share of it is within the window."""
    return spent * days * _DAY / window


def name_of(seconds: float) -> str:
    """A duration as people write it: 5m, 1h, 3d."""
    for unit, letter in ((_DAY, "d"), (_HOUR, "h")):
        if seconds % unit == 0:
            return f"{seconds // unit}{letter}"
    return f"{seconds // _MINUTE}m"


def make_rules(content: dict[str, Any], objectives: list[Objective], shorten: float = 1) -> dict[str, Any]:
    """What rules.yml holds.

    Args:
        content: of the file of objectives.
        objectives: those in it.
        shorten: divides all durations but an age in days, to see within a minute what else takes an hour. The names of
            the series stay.
    """

    def last(seconds: float) -> str:
        """A duration in Prometheus' language."""
        return f"{round(1000 * seconds / shorten)}ms" if shorten != 1 else name_of(seconds)

    groups = [
        {
            "name": "vitconv-service-levels",
            "interval": last(_OFTEN),
            "rules": _service_levels(content, objectives, last, _OFTEN / shorten),
        },
        {"name": "vitconv-processes", "interval": last(_OFTEN), "rules": _processes(last)},
        {"name": "vitconv-model", "interval": last(_SELDOM), "rules": _model(content["model"], last)},
    ]
    return {"groups": groups}


def _service_levels(
    content: dict[str, Any], objectives: list[Objective], last: Callable[[float], str], interval: float
) -> list[Any]:
    days = content["days"]
    rules = []
    for one in objectives:
        labels = {"slo": one.name}
        # A text of Prometheus' is escaped as one of JSON.
        wanted = f"path=~{json.dumps(one.paths, ensure_ascii=False)}"
        if one.seconds is None:
            every = f'sum by (job) (rate(vitconv_requests_total{{{wanted},status!~"4.."}}[{last(300)}]))'
            bad = f'sum by (job) (rate(vitconv_requests_total{{{wanted},status=~"5.."}}[{last(300)}]))\nor 0 * {every}'
        else:
            every = f"sum by (job) (rate(vitconv_request_seconds_count{{{wanted}}}[{last(300)}]))"
            within = f'{{{wanted},le="{float(one.seconds)}"}}'
            bad = f"{every}\n- sum by (job) (rate(vitconv_request_seconds_bucket{within}[{last(300)}]))"
        rules += [
            _record("slo:vitconv_objective:ratio", f"vector({one.share})", labels),
            _record("slo:vitconv_requests:rate5m", every, labels),
            _record("slo:vitconv_bad_requests:rate5m", bad, labels),
        ]
    # Sums of rates, and not a mean of ratios: an hour with few requests counts for few.
    windows = sorted({window for _, _, *both in BURNS for window in both} | {days * _DAY})
    for window in windows:
        bad, every = "slo:vitconv_bad_requests:rate5m", "slo:vitconv_requests:rate5m"
        if window > 300:
            bad, every = (f"sum_over_time({one}[{last(window)}])" for one in (bad, every))
        rules.append(_record(f"slo:vitconv_errors:ratio{name_of(window)}", f"{bad}\n/ ({every} > 0)"))
    left = f"1 - slo:vitconv_errors:ratio{days}d\n/ on (slo) group_left () (1 - slo:vitconv_objective:ratio)"
    rules.append(_record("slo:vitconv_budget_left:ratio", left))
    for one in objectives:
        for severity, spent, long, short in BURNS:
            factor, only = burn(days, spent, long), f'{{slo="{one.name}"}}'
            limit = f"{factor * one.budget:.6g}"
            bad = f"sum_over_time(slo:vitconv_bad_requests:rate5m{only}[{last(long)}]) * {interval:g}"
            rules.append(
                _alert(
                    one.alert,
                    f"slo:vitconv_errors:ratio{name_of(long)}{only} > {limit}\n"
                    f"and slo:vitconv_errors:ratio{name_of(short)}{only} > {limit}\n"
                    f"and {bad} >= {content['least_bad_requests']}",
                    f"{{{{ $labels.job }}}}: {{{{ $value | humanizePercentage }}}} of {name_of(long)}'s requests miss "
                    f"the objective `{one.name}`. At {factor:.3g} times what it allows, the budget of {days} days is "
                    f"spent within {days / factor * 24:.3g} hours.",
                    severity,
                    {"slo": one.name, "long": name_of(long), "short": name_of(short)},
                )
            )
    return rules


def _processes(last: Callable[[float], str]) -> list[Any]:
    dead = f'sum by (job) (increase(vitconv_messages_total{{outcome="dead_letter"}}[{last(_HOUR)}])) > 0'
    return [
        _alert(
            "VitconvDown",
            'up{job=~"vitconv.*"} == 0',
            "{{ $labels.instance }} has not answered Prometheus for 2 minutes.",
            "page",
            lasting=last(2 * _MINUTE),
        ),
        _alert(
            "VitconvBrokerDown",
            "vitconv_broker_up == 0",
            "The worker {{ $labels.instance }} has been waiting for its broker for 5 minutes.",
            "page",
            lasting=last(5 * _MINUTE),
        ),
        _alert(
            "VitconvDeadLetters",
            dead,
            "{{ $labels.job }}: {{ $value | humanize }} messages were given up within an hour.",
            "ticket",
        ),
    ]


def _model(limits: dict[str, Any], last: Callable[[float], str]) -> list[Any]:
    hour, day = last(_HOUR), last(_DAY)
    images = "vitconv_images_total"

    def share_of_images(outcome: str) -> str:
        bad = f'sum by (job) (increase({images}{{outcome="{outcome}"}}[{hour}]))'
        return f"{bad}\n/ (sum by (job) (increase({images}[{hour}])) > 0)"

    def enough(series: str, window: str) -> str:
        return f"and sum by (job) (increase({series}[{window}])) >= {limits['least_images']}"

    known = f'sum by (job) (increase(vitconv_answers_total{{reliable=~"true|false"}}[{day}]))'
    unreliable = f'sum by (job) (increase(vitconv_answers_total{{reliable="false"}}[{day}]))'
    ranked = f"sum by (job) (increase(vitconv_oddness_rank_count[{day}]))"
    distances = [f'abs(job_le:vitconv_oddness_rank:share1d{{le="{rank}"}} - {rank})' for rank in _RANKS]
    by_class = "job_class:vitconv_answers:increase1h"

    def mix(window: str) -> str:
        every = f"sum by (job) (sum_over_time({by_class}[{window}]))"
        return f"sum_over_time({by_class}[{window}])\n/ on (job) group_left () ({every} > 0)"

    today, week = "job_class:vitconv_answers:share1d", "job_class:vitconv_answers:share7d"
    rules = [
        _record(f"job:vitconv_{outcome}_images:ratio1h", share_of_images(outcome))
        for outcome in ("unreadable", "failed")
    ]
    rules += [
        _record("job:vitconv_unreliable_answers:ratio1d", f"({unreliable} or 0 * {known})\n/ ({known} > 0)"),
        # If the images are like the calibration's, a tenth of the ranks is at most 0.1, two tenths at most 0.2…
        _record(
            "job_le:vitconv_oddness_rank:share1d",
            f"sum by (job, le) (increase(vitconv_oddness_rank_bucket[{day}]))\n"
            f"/ on (job) group_left () ({ranked} > 0)",
        ),
        _record("job:vitconv_drift:distance1d", "max by (job) (\n  " + "\n  or ".join(distances) + "\n)"),
        _record(by_class, f"sum by (job, class) (increase(vitconv_answers_total[{hour}]))"),
        _record(today, mix(day)),
        _record(week, mix(last(7 * _DAY))),
        _record(
            "job:vitconv_class_mix:distance1d",
            f"0.5 * sum by (job) (abs(({today} or 0 * {week}) - {week}))",
        ),
        _record("instance:vitconv_model_age:days", f"(time() - vitconv_model_written_timestamp_seconds) / {_DAY}"),
    ]
    for outcome in ("unreadable", "failed"):
        name = f"job:vitconv_{outcome}_images:ratio1h"
        rules.append(
            _alert(
                f"Vitconv{outcome.capitalize()}Images",
                f"{name} > {limits[outcome]}\n{enough(images, hour)}",
                f"{{{{ $labels.job }}}}: {{{{ $value | humanizePercentage }}}} of an hour's images are {outcome}.",
                "ticket",
            )
        )
    return [
        *rules,
        _alert(
            "VitconvUnreliable",
            f"job:vitconv_unreliable_answers:ratio1d > {limits['unreliable']}\n{enough('vitconv_answers_total', day)}",
            "{{ $labels.job }}: {{ $value | humanizePercentage }} of a day's answers are not reliable.",
            "ticket",
        ),
        _alert(
            "VitconvDrift",
            f"job:vitconv_drift:distance1d > {limits['drift']}\n{enough('vitconv_oddness_rank_count', day)}",
            "{{ $labels.job }}: a day's images are not like those of the calibration: a distance of "
            "{{ $value | humanize }}.",
            "ticket",
        ),
        _alert(
            "VitconvClassMix",
            f"job:vitconv_class_mix:distance1d > {limits['class_mix']}\n{enough('vitconv_answers_total', day)}",
            "{{ $labels.job }}: {{ $value | humanizePercentage }} of a day's answers are of other classes than in the "
            "week.",
            "ticket",
        ),
        _alert(
            "VitconvModelOld",
            f"instance:vitconv_model_age:days > {limits['age_days']}",
            "{{ $labels.instance }} answers with a model that was written {{ $value | humanize }} days ago.",
            "ticket",
        ),
    ]


def _record(name: str, expression: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"record": name, "expr": expression, **({"labels": labels} if labels else {})}


def _alert(
    name: str, expression: str, summary: str, severity: str, labels: dict[str, str] | None = None, lasting: str = ""
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        **({"for": lasting} if lasting else {}),
        "labels": {"severity": severity, **(labels or {})},
        "annotations": {"summary": summary, "runbook": f"docs/operating.md#{name.lower()}"},
    }


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that expressions can be read, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def rules_text(rules: dict[str, Any]) -> str:
    """The rules as a file."""
    head = "# Written by `make operations` from deploy/objectives.yaml: change that. docs/operating.md explains it.\n"
    return head + yaml.dump(rules, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def main() -> None:
    """Write the rules and the dashboard."""
    from dashboard import dashboard_text  # Grafana's package, which rules alone do not need

    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    try:
        content, objectives = read_objectives()
    except VitconvError as error:
        sys.exit(f"error: {error}")
    RULES.write_text(rules_text(make_rules(content, objectives)), "utf-8")
    DASHBOARD.write_text(dashboard_text(content), "utf-8")


if __name__ == "__main__":
    main()
