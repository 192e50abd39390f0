"""The rules for Prometheus and Grafana's dashboard, which tools/operations.py writes."""

import json
import re
import subprocess
from pathlib import Path

import operations
import prometheus_server
import pytest
import yaml
from operations import DASHBOARD, OBJECTIVES, RULES, make_rules, read_objectives, rules_text

from vitconv.errors import InputError
from vitconv.serving.rest.metrics import SECONDS

ROOT = Path(__file__).parents[2]
TESTS = sorted((ROOT / "deploy").glob("rules*_test.yml"))
WRITTEN = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"] for rule in WRITTEN if "alert" in rule}
RECORDS = {rule["record"] for rule in WRITTEN if "record" in rule}


@pytest.fixture(scope="module")
def promtool():
    program = prometheus_server.find("promtool")
    if program is None:
        pytest.skip("no promtool: make prometheus")

    def run(*words):
        return subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=300)

    return run


def panels():
    return [one for one in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if one["type"] != "row"]


def shown():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


# ---- what is committed ----------------------------------------------------------------------------------------------


def test_the_rules_are_what_the_objectives_make():
    assert RULES.read_text("utf-8") == rules_text(make_rules(*read_objectives())), "run `make operations`"


def test_the_dashboard_is_what_the_objectives_make():
    pytest.importorskip("grafana_foundation_sdk", reason="no grafana-foundation-sdk: requirements.txt")
    import dashboard

    content, _ = read_objectives()
    assert DASHBOARD.read_text("utf-8") == dashboard.dashboard_text(content), "run `make operations`"


def test_the_command_writes_both(tmp_path, monkeypatch):
    pytest.importorskip("grafana_foundation_sdk", reason="no grafana-foundation-sdk: requirements.txt")
    monkeypatch.setattr("sys.argv", ["operations.py"])
    for name, file in (("RULES", RULES), ("DASHBOARD", DASHBOARD)):
        monkeypatch.setattr(operations, name, tmp_path / file.name)
    operations.main()
    for file in (RULES, DASHBOARD):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


# ---- promtool -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shorten", [1, 60, 7.5])
def test_promtool_takes_the_rules(promtool, tmp_path, shorten):
    file = prometheus_server.write_configuration(tmp_path, ["127.0.0.1:8000", "vitconv-worker=[::1]:8080"], shorten)
    for words in (("check", "config", file), ("check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yml")):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    jobs = yaml.safe_load(file.read_text())["scrape_configs"]
    assert [(job["job_name"], job["static_configs"][0]["targets"]) for job in jobs] == [
        ("vitconv", ["127.0.0.1:8000"]),
        ("vitconv-worker", ["[::1]:8080"]),
    ]


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_every_alert_fires_and_is_silent_when_it_should(promtool, file):
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_that_never_fire_are_noticed(promtool, tmp_path):
    """Each of them is missed by the tests of the rules."""
    rules = make_rules(*read_objectives())
    for rule in [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]:
        rule["expr"] = f"({rule['expr']}) and vector(0) > 1"
    (tmp_path / "rules.yml").write_text(rules_text(rules))
    said = ""
    for file in TESTS:
        (tmp_path / file.name).write_bytes(file.read_bytes())
        done = promtool("test", "rules", tmp_path / file.name)
        assert done.returncode == 1
        said += done.stdout + done.stderr
    assert set(re.findall(r"\bVitconv[A-Z]\w+", said)) == ALERTS


def test_each_alert_is_tested_and_explained():
    tested = {name for file in TESTS for name in re.findall(r"\bVitconv[A-Z]\w+", file.read_text("utf-8"))}
    assert tested == ALERTS
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    assert set(re.findall(r"(?m)^### (Vitconv\w+)$", page)) == ALERTS
    for rule in WRITTEN:
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")


# ---- what is read exists --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(certain):
    """What a server and a worker with a calibrated model show at their start: the text of both, and the paths."""
    pytest.importorskip("confluent_kafka")
    from vitconv.messaging.metrics import Metrics
    from vitconv.messaging.worker import State
    from vitconv.serving import open_classifier
    from vitconv.serving.rest import create_app

    classifier = open_classifier(certain, "cpu")
    app = create_app(classifier)
    text = app.state.service.metrics.text() + Metrics(State(), classifier, "1.0").text()
    app.state.service.workers.drain()
    return text.decode(), [*app.openapi()["paths"], "/v2/models/{name}/versions/{version}/infer"]


def test_the_figures_that_are_read_exist_and_have_the_labels(served):
    text, _ = served
    there = {name: set(re.findall(r'(\w+)="', labels)) for name, labels in re.findall(r"(?m)^(\w+)(\{.*?\})? ", text)}
    for expression in [rule["expr"] for rule in WRITTEN] + shown():
        for name, labels in re.findall(r"(?<![\w:])((?:vitconv|process)_\w+)(\{.*?\}(?=[\[) ]|$))?", expression):
            assert name in there, name
            asked = set(re.findall(r"(\w+)(?:=|!)", re.sub(r'"[^"]*"', "", labels))) - {"job"}
            assert asked <= there[name], (name, asked, there[name])
    for name, limits in (
        ("vitconv_request_seconds", SECONDS),
        ("vitconv_oddness_rank", [i / 10 for i in range(1, 11)]),
    ):
        listed = {float(one) for one in re.findall(rf'{name}_bucket\{{.*?le="([\d.]+)"', text)}
        assert listed == set(limits)
    for expression in [rule["expr"] for rule in WRITTEN]:
        for limit in re.findall(r'le="([^"]+)"', expression):
            assert f'le="{limit}"' in text, limit  # "2.0", where people write 2


def test_recorded_series_that_are_read_are_recorded():
    for expression in [rule["expr"] for rule in WRITTEN] + shown():
        for name in re.findall(r"\b(?:slo|instance|job\w*):vitconv_\w+:\w+", expression):
            assert name in RECORDS, name


def test_the_objectives_are_about_the_paths_that_predict(served):
    _, paths = served
    predicting = {path for path in paths if path.endswith(("/predict", "/predict/batch", "/infer"))}
    _, objectives = read_objectives()
    found = {one.name: {path for path in paths if re.fullmatch(one.paths, path)} for one in objectives}
    assert len(predicting) == 4
    assert found == {
        "availability": predicting,
        "latency": predicting - {"/v1/predict/batch"},
        "batch-latency": {"/v1/predict/batch"},
    }


def test_a_rate_can_be_computed_of_the_first_bad_request(served):
    """A series that begins with 50 has not increased, as far as Prometheus knows."""
    text, _ = served
    for path in ("/v1/predict", "/v1/predict/batch", "/v2/models/{name}/infer"):
        for status in ("200", "500", "503"):
            assert f'vitconv_requests_total{{path="{path}",status="{status}"}} 0.0' in text
        assert f'vitconv_request_seconds_count{{path="{path}"}} 0.0' in text


def test_each_panel_says_what_to_look_for():
    assert len({panel["id"] for panel in panels()}) == len(panels()) > 15
    for panel in panels():
        assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


# ---- the objectives -------------------------------------------------------------------------------------------------


def changed(tmp_path, change):
    content = yaml.safe_load(OBJECTIVES.read_text("utf-8"))
    change(content)
    file = tmp_path / "objectives.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_four_nines_allow_four_minutes_of_errors_a_month(tmp_path):
    file = changed(tmp_path, lambda content: content["objectives"]["availability"].update(share=0.9999))
    content, (one, *_) = read_objectives(file)
    assert one.budget * content["days"] * 24 * 60 == pytest.approx(4.32)
    text = rules_text(make_rules(*read_objectives(file)))
    assert 'ratio1h{slo="availability"} > 0.00144\n' in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": 1}, "The objective `latency` has the share 1.\nChoose one above 0.931"),
        ({"share": 0.9}, "The objective `latency` has the share 0.9."),
        (
            {"seconds": 3},
            "The objective `latency` asks for 3 s, which the histogram does not count.\nChoose one of 0.005",
        ),
        ({"second": 3}, "The objective `latency` has the settings paths, second, seconds, share."),
    ],
)
def test_objectives_that_no_alert_can_watch(tmp_path, change, said):
    file = changed(tmp_path, lambda content: content["objectives"]["latency"].update(change))
    with pytest.raises(InputError, match=re.escape(said)):
        read_objectives(file)


def test_days_that_are_shorter_than_the_longest_window(tmp_path):
    with pytest.raises(InputError, match="`days` is 3"):
        read_objectives(changed(tmp_path, lambda content: content.update(days=3)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.clear(), "The file of objectives is not whole.\nIt needs `days`"),
        (lambda content: content.pop("days"), "The file of objectives is not whole."),
        (lambda content: content.update(days=30.5), "`days` is 30.5."),
        (lambda content: content.update(days="30"), "`days` is '30'."),
        (lambda content: content.update(least_bad_requests="ten"), "`least_bad_requests` is 'ten'."),
        (lambda content: content.update(objectives=None), "`objectives` is None."),
        (lambda content: content["model"].pop("drift"), "`model` does not say drift."),
        (lambda content: content["model"].update(drift="25%"), "`drift` is '25%'.\nWrite a number without a unit"),
        (lambda content: content["objectives"].update(x=0.9), "The objective `x` is 0.9."),
        (lambda content: content["objectives"].update({'a "b': {}}), "An objective has the name 'a \"b'."),
        (
            lambda content: content["objectives"]["latency"].update(share="99%"),
            "The objective `latency` has the share '99%'.",
        ),
        (
            lambda content: content["objectives"]["latency"].update(paths="/(x"),
            "The `paths` of the objective `latency` are",
        ),
        (
            lambda content: content["objectives"]["latency"].update(paths=["/x"]),
            "The `paths` of the objective `latency` are",
        ),
    ],
)
def test_a_file_of_objectives_that_makes_no_rules(tmp_path, change, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read_objectives(changed(tmp_path, change))


def test_an_empty_file_of_objectives(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="The file of objectives is not whole"):
        read_objectives(tmp_path / "empty")


@pytest.mark.parametrize("paths", [r"/v\d+/predict\.json", '/"x"/.*', "/é.*"])
def test_promtool_takes_rules_of_any_paths(paths, promtool, tmp_path):
    file = changed(tmp_path, lambda content: content["objectives"]["latency"].update(paths=paths))
    (tmp_path / "rules.yml").write_text(rules_text(make_rules(*read_objectives(file))), "utf-8")
    done = promtool("check", "rules", tmp_path / "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the server -----------------------------------------------------------------------------------------------------


def test_without_prometheus_the_command_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(prometheus_server, "PROGRAMS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["prometheus_server.py", "127.0.0.1:8000", "--folder", str(tmp_path / "it")])
    with pytest.raises(SystemExit, match=r"error: There is no Prometheus here\.\nRun `make prometheus`"):
        prometheus_server.main()
    assert not (tmp_path / "it").exists()
