"""deploy/grafana and deploy/prometheus ask for metrics and labels that a server has; promtool agrees, where it is
(apt-get install prometheus)."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from helpers.tiny_server import Clock, RealPlace, a_store
from prometheus_client.parser import text_string_to_metric_families

from softprompt.serving.http.api_keys import add_key

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "softprompt.json").read_text(encoding="utf-8"))
CONFIG = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
PROMTOOL = shutil.which("promtool")

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
FILLED = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*", "$task": ".*"}
# of Prometheus itself, and of every series that it scrapes
SCRAPED = {"job", "instance"}
UP = {"up": {"job", "instance"}}


def queries() -> dict[str, str]:
    """PromQL by where it stands."""
    found = {
        f"{panel['title']} {target['refId']}": str(target["expr"]) for panel in PANELS for target in panel["targets"]
    }
    for name, variable in VARIABLES.items():
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            found[f"variable {name}"] = f"count by ({label}) ({metric})"
    return {**found, **{rule["alert"]: rule["expr"] for rule in ALERTS}}


QUERIES = queries()


def fill(query: str) -> str:
    for name, value in FILLED.items():
        query = query.replace(name, value)
    assert "$" not in query, f"an unknown variable: {query}"
    return query


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, set[str]]]:
    """What a server that had everything happen to it has: values of labels by metric."""
    folder = tmp_path_factory.mktemp("monitored")
    clock, keys = Clock(), folder / "keys.json"
    token = add_key(keys, "boss", admin=True)
    few = add_key(keys, "few", requests_per_minute=1, expires=clock.date().replace(year=2100))
    settings: dict[str, Any] = {"keys": str(keys), "clock": clock, "sampling": (folder / "samples.db", 1.0, False)}
    place = RealPlace.of_store(a_store(folder), **settings)
    with place.client(token) as client:
        for stream in (True, False):
            body = {"model": "words", "prompt": "x", "max_tokens": 4, "stream": stream}
            client.post("/v1/completions", json=body)
        for _ in range(2):
            client.post(
                "/v1/classify", json={"model": "tone", "input": "x"}, headers={"Authorization": f"Bearer {few}"}
            )
        client.post("/v1/classify", json={"model": "nobody", "input": "x"})
        client.post("/admin/reload")
        client.portal.call(place.engine.close)  # type: ignore[union-attr]
        assert place.sampler is not None
        place.sampler.close()
        text = client.get("/metrics").text
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name]["__name__"].add(sample.name)
            for name, value in sample.labels.items():
                found[sample.name][name].add(value)
    return found


def walk(query: str) -> Iterator[Any]:
    nodes: list[Any] = []
    promql_parser.walk(promql_parser.parse(fill(query)), nodes.append)
    return iter(nodes)


def selectors(node: Any) -> list[Any]:
    found: list[Any] = []

    def see(one: Any) -> None:
        if isinstance(one, promql_parser.VectorSelector):
            found.append(one)

    promql_parser.walk(node, see)
    return found


def find_label_faults(query: str, series: Mapping[str, dict[str, set[str]]]) -> list[str]:
    """What a query asks for that a server does not have."""
    known = {**{name: {*labels} for name, labels in series.items()}, **UP}
    faults = []
    for node in walk(query):
        if isinstance(node, promql_parser.AggregateExpr):
            names = [one.name for one in selectors(node.expr)]
            for label in node.modifier.labels if node.modifier is not None else ():
                if not any(label in known.get(name, ()) or label in SCRAPED for name in names):
                    faults.append(f"no label '{label}' in {names}")
        if isinstance(node, promql_parser.VectorSelector):
            if node.name not in known:
                faults.append(f"no metric '{node.name}'")
                continue
            for matcher in node.matchers.matchers:
                if matcher.name not in known[node.name] | SCRAPED:
                    faults.append(f"no label '{matcher.name}' of '{node.name}'")
    return faults


@pytest.mark.parametrize("place", QUERIES)
def test_every_query_asks_for_what_there_is(place: str, series: Mapping[str, dict[str, set[str]]]) -> None:
    assert find_label_faults(QUERIES[place], series) == []


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("sum(rate(softprompt_request_total[5m]))", "no metric 'softprompt_request_total'"),
        ('softprompt_requests_total{code="x"}', "no label 'code' of 'softprompt_requests_total'"),
        ("sum by (model) (softprompt_requests_total)", "no label 'model' in ['softprompt_requests_total']"),
    ],
)
def test_a_query_that_asks_for_something_else_is_found(
    query: str, fault: str, series: Mapping[str, dict[str, set[str]]]
) -> None:
    assert find_label_faults(query, series) == [fault]


def test_every_metric_of_ours_is_shown(series: Mapping[str, dict[str, set[str]]]) -> None:
    asked = {one.name for query in QUERIES.values() for node in walk(query) for one in selectors(node)}
    bases = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in asked if name}
    ours = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in series if name.startswith("softprompt_")}
    assert ours - bases == set()


def test_values_of_labels_that_are_named_exist(series: Mapping[str, dict[str, set[str]]]) -> None:
    """Those of labels that take a few values of ours."""
    for query in QUERIES.values():
        for node in walk(query):
            for one in selectors(node) if isinstance(node, promql_parser.VectorSelector) else ():
                for matcher in one.matchers.matchers:
                    if matcher.op == promql_parser.MatchOp.Equal and matcher.name in ("kind", "state", "limit", "what"):
                        assert matcher.value in series[one.name][matcher.name], query


def test_the_dashboard_can_be_read() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("softprompt", "softprompt")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] != "timeseries" or panel["options"]["legend"]["showLegend"]
        shown = set(re.findall(r"\{\{(\w+)\}\}", "".join(target["legendFormat"] for target in panel["targets"])))
        grouped = {
            label
            for target in panel["targets"]
            for node in walk(target["expr"])
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
            for label in node.modifier.labels
        }
        assert shown <= grouped | SCRAPED, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["alert"].startswith("Softprompt")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_scrape_config_names_the_job_and_the_rules() -> None:
    (scrape,) = CONFIG["scrape_configs"]
    assert scrape["job_name"] == "softprompt"
    assert (scrape["metrics_path"], CONFIG["rule_files"]) == ("/metrics", ["alerts.yml"])


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: apt-get install prometheus")
@pytest.mark.parametrize("command", [("rules", "alerts.yml"), ("config", "--syntax-only", "prometheus.yml")])
def test_promtool_finds_nothing(command: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), "check", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
