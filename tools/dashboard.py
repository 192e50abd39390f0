"""Grafana's dashboard of the servers. `make operations` writes it, tools/operations.py calls it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

PREDICTIONS = 'path=~"/v1/predict.*|/v2/models/.*/infer"'
RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """A panel.

    Attributes:
        title: of it.
        description: what to look for.
        unit: Grafana's name for it.
        queries: PromQL by the legend of its series.
        number: show the last value as a number, and no curve.
        most: the end of the axis, where it is known.
    """

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    number: bool = False
    most: float | None = None


def quantiles(series: str, labels: str, shares: tuple[float, ...]) -> dict[str, str]:
    """Quantiles of a histogram."""
    counted = f"sum by (le) (rate({series}_bucket{labels}{RATE}))"
    return {f"p{share * 100:g}": f"histogram_quantile({share}, {counted})" for share in shares}


def rows(content: dict[str, Any]) -> dict[str, list[Panel]]:
    """The panels by the title of their row."""
    days = content["days"]
    burned = "slo:vitconv_errors:ratio{} / on (slo) group_left () (1 - slo:vitconv_objective:ratio)"
    return {
        "Service levels": [
            Panel(
                f"Error budget left of {days} days",
                "100 %: nothing was bad. Below 0, the objective is missed.",
                "percentunit",
                {"{{job}} {{slo}}": "slo:vitconv_budget_left:ratio"},
                number=True,
            ),
            Panel(
                "Alerts that fire",
                "docs/operating.md says what to do.",
                "none",
                {"alerts": 'count(ALERTS{alertname=~"Vitconv.*",alertstate="firing"}) or vector(0)'},
                number=True,
            ),
            Panel(
                "Burn rate, one hour",
                "1: the budget is spent evenly, and lasts until the end. At 14.4, it is gone in two days: a page.",
                "none",
                {"{{job}} {{slo}}": burned.format("1h")},
            ),
            Panel(
                "Bad requests, five minutes",
                "The share of the requests that count.",
                "percentunit",
                {"{{job}} {{slo}}": "slo:vitconv_errors:ratio5m"},
            ),
        ],
        "Requests": [
            Panel(
                "Predictions by status",
                "503 is what the server refuses, as it could not be answered in time; 500 is its own fault.",
                "reqps",
                {"{{status}}": f"sum by (status) (rate(vitconv_requests_total{{{PREDICTIONS}}}{RATE}))"},
            ),
            Panel(
                "Seconds of an answer",
                "With what is refused, which is soon.",
                "s",
                quantiles("vitconv_request_seconds", f"{{{PREDICTIONS}}}", (0.5, 0.9, 0.99)),
            ),
            Panel(
                "Waiting and in work",
                "Images that wait while all workers compute: the server is full.",
                "none",
                {
                    "waiting": "sum(vitconv_queue_depth)",
                    "computed": "sum(vitconv_images_in_work)",
                    "workers": "sum(vitconv_workers)",
                    "requests": "sum(vitconv_requests_in_flight)",
                },
            ),
            Panel(
                "Processor",
                "Cores in use.",
                "none",
                {"{{instance}}": f'rate(process_cpu_seconds_total{{job=~"vitconv.*"}}{RATE})'},
            ),
            Panel(
                "Memory",
                "Of the process, and of it, the bodies of requests.",
                "bytes",
                {
                    "{{instance}}": 'process_resident_memory_bytes{job=~"vitconv.*"}',
                    "bodies {{instance}}": "vitconv_body_bytes",
                },
            ),
        ],
        "Model": [
            Panel(
                "Age of the model in days",
                "Since its folder was written.",
                "none",
                {"{{instance}}": "instance:vitconv_model_age:days"},
                number=True,
            ),
            Panel(
                "What answers",
                "The name and the fingerprint of the folder, and how many processes answer with it.",
                "none",
                {"{{name}} {{fingerprint}}": "count by (name, fingerprint) (vitconv_model_info)"},
                number=True,
            ),
            Panel(
                "Answers by class",
                "A second.",
                "none",
                {"{{class}}": f"sum by (class) (rate(vitconv_answers_total{RATE}))"},
            ),
            Panel(
                "Images by outcome",
                "A second. unreadable: no image; failed: the server's fault.",
                "none",
                {"{{outcome}}": f"sum by (outcome) (rate(vitconv_images_total{RATE}))"},
            ),
            Panel(
                "Not reliable, one day",
                "Of the answers of a calibrated model, those that say reliable: false.",
                "percentunit",
                {"{{job}}": "job:vitconv_unreliable_answers:ratio1d"},
                most=1,
            ),
            Panel(
                "Probability of an answer",
                "The tenth that is least sure, and the median.",
                "percentunit",
                quantiles("vitconv_answer_probability", "", (0.1, 0.5)),
                most=1,
            ),
            Panel(
                "Oddness of a day's images",
                "Ranks of at most 0.1, 0.2… among the calibration's images: of like images, 10 %, 20 % and so on.",
                "percentunit",
                {"{{job}} {{le}}": 'job_le:vitconv_oddness_rank:share1d{le!="+Inf"}'},
                most=1,
            ),
            Panel(
                "How far a day is off",
                "drift: images, from the calibration's; classes: answers, from the week's. 0 is the same.",
                "percentunit",
                {
                    "drift {{job}}": "job:vitconv_drift:distance1d",
                    "classes {{job}}": "job:vitconv_class_mix:distance1d",
                },
                most=1,
            ),
        ],
        "Worker": [
            Panel(
                "Messages by outcome",
                "A second. dead_letter: given up.",
                "none",
                {"{{outcome}}": f"sum by (outcome) (rate(vitconv_messages_total{RATE}))"},
            ),
            Panel(
                "Seconds of a message",
                "From when it was pulled until it was acknowledged.",
                "s",
                quantiles("vitconv_message_seconds", "", (0.5, 0.99)),
            ),
            Panel(
                "In work, and brokers",
                "Messages that are pulled and not acknowledged; 1 for each worker that has its broker.",
                "none",
                {"in work": "sum(vitconv_messages_in_work)", "brokers {{instance}}": "vitconv_broker_up"},
            ),
            Panel(
                "Idle",
                "Since the worker last did something.",
                "s",
                {"{{instance}}": "vitconv_idle_seconds"},
            ),
        ],
    }


def build(panel: Panel) -> Any:
    """The panel as Grafana's builder."""
    if panel.number:
        reduced = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
        builder: Any = stat.Panel().reduce_options(reduced).height(5).span(12)
    else:
        legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True).calcs([])
        builder = timeseries.Panel().legend(legend).min(0).height(8).span(12)
    if panel.most is not None:
        builder = builder.max(panel.most)
    source = DataSourceRef(type_val="prometheus", uid="${datasource}")
    builder = builder.title(panel.title).description(panel.description).unit(panel.unit).datasource(source)
    for letter, (legend, expression) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(letter).datasource(source).range()
        builder = builder.with_target(query)
    return builder


def dashboard_text(content: dict[str, Any]) -> str:
    """The dashboard as a file."""
    board = dashboard.Dashboard("vitconv").uid("vitconv").tags(["vitconv"]).timezone("browser")
    board = board.description("Written by `make operations` in vitconv's repository: see docs/operating.md there.")
    board = board.refresh("1m").time("now-6h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    board = board.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for title, panels in rows(content).items():
        board = board.with_row(dashboard.Row(title))
        for panel in panels:
            board = board.with_panel(build(panel))
    built = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for number, panel in enumerate(built["panels"], 1):
        panel["id"] = number
    return json.dumps(built, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
