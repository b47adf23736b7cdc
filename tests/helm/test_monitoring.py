"""Dashboards and alerts: every query parsed, and asked of a real Prometheus that scrapes real metrics, idle and under load."""

import asyncio
import json
import math
import re
import subprocess
import urllib.error
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import tidelog
import yaml
from aiohttp import web
from helm_python.errors import HelmRenderError
from prometheus_client import generate_latest
from tidelog.metrics import Metrics
from tidelog_operator.metrics import OperatorMetrics

from helm.dashboards import DASHBOARDS
from tests.command_line import dev
from tests.helm.rendering import CHART, example, objects, of_kind, the
from tests.prometheus_server import Prometheus, program, prometheus, until

ROOT = CHART.parents[1]
RULES = CHART / "rules" / "tidelog.yaml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
CHOSEN = {"$cluster": ".*", "$broker": ".*", "$topic": ".*", "$__rate_interval": "5s"}
"""What Grafana puts in the place of variables, with everything chosen."""


def queries(board: str, **more: str) -> Iterator[tuple[str, str]]:
    """The title and the query of everything that a dashboard asks."""

    def chosen(query: str) -> str:
        for name, value in (CHOSEN | more).items():
            query = query.replace(name, value)
        return query

    for panel in BOARDS[board]["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", chosen(target["expr"])


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def known_metrics() -> set[str]:
    """Every name that a scrape of a broker or of an operator shows."""
    listed = {description.name: description.kind for description in Metrics().described}
    named = {f"{name}{part}" for name, kind in listed.items() for part in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    for metrics in (Metrics(), OperatorMetrics()):
        for family in metrics.registry.collect():
            named |= {sample.name for sample in family.samples}
            if family.type == "gauge":
                named.add(family.name)
    return named | {"up"} | set(RECORDED)


# ---- what is written


def test_every_query_is_promql_and_asks_for_metrics_that_exist() -> None:
    asked = [query for board in BOARDS for _, query in queries(board)] + [rule["expr"] for rule in (*ALERTS.values(), *RECORDED.values())]
    assert len(asked) > 100
    known = known_metrics()
    for query in asked:
        names = {selector.name for selector in selectors(query)}
        assert names
        assert names <= known, query


def test_dashboards_keep_their_uids() -> None:
    uids = {name: board["uid"] for name, board in BOARDS.items()}
    assert uids == {name: f"tidelog-{name}" for name in ("broker", "operator", "overview", "storage", "topics")}
    assert set(DASHBOARDS) == set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_shows_of_what_is_chosen(name: str) -> None:
    board = BOARDS[name]
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(variables) >= ({"cluster"} if name == "operator" else {"cluster", "broker"})
    assert ("topic" in variables) == (name == "topics")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        if panel["type"] in ("row", "text"):
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            if name != "operator":
                assert 'cluster=~"$cluster"' in target["expr"], panel["title"]
            assert target["legendFormat"]


def test_panels_do_not_overlap() -> None:
    for board in BOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            assert not cells & taken, panel["title"]
            assert place["x"] + place["w"] <= 24
            taken |= cells


def test_the_overview_begins_with_what_one_wants_to_know() -> None:
    titles = [panel["title"] for panel in BOARDS["overview"]["panels"] if panel["type"] == "stat"]
    assert titles == ["Up?", "Durable?", "Fast?", "Behind?", "Cost?"]
    side_by_side = {panel["gridPos"]["y"] for panel in BOARDS["overview"]["panels"] if panel["title"] in ("By stage", "S3", "SQL", "Us")}
    assert len(side_by_side) == 1


def headings(page: Path) -> set[str]:
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in re.findall(r"(?m)^#+ (.*)$", page.read_text())}


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_is_wrong_how_bad_it_is_and_where_its_runbook_is(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert name.lower() in headings(ROOT / "docs" / "operations.md")


def test_the_chart_gives_every_alert_its_runbook_and_leaves_out_what_is_not_wanted() -> None:
    groups = the(objects(example("monitoring")), "PrometheusRule")["spec"]["groups"]
    made = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    assert set(ALERTS) - set(made) == {"TidelogReadersBehind"}
    for name, rule in made.items():
        assert rule["annotations"].pop("runbook_url") == f"https://wiki.example.com/tidelog#{name.lower()}"
        assert rule == ALERTS[name]
    assert {rule["record"] for group in groups for rule in group["rules"] if "record" in rule} == set(RECORDED)


def test_an_alert_that_does_not_exist_cannot_be_left_out() -> None:
    with pytest.raises(HelmRenderError, match=r'names "Nothing", but there is no such alert'):
        objects({"monitoring": {"prometheusRule": {"enabled": True, "excludeRules": ["Nothing"]}}})


def test_the_chart_brings_the_dashboards_as_they_are() -> None:
    maps = of_kind(objects(example("monitoring")), "ConfigMap")
    assert {name: json.loads(text) for each in maps.values() for name, text in each["data"].items()} == {
        f"tidelog-{name}.json": board for name, board in BOARDS.items()
    }
    for each in maps.values():
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert each["metadata"]["annotations"] == {"grafana_folder": "Tidelog"}
        assert len(json.dumps(each)) < 900_000, "what etcd takes"


def test_nothing_of_monitoring_comes_unasked() -> None:
    kinds = {each["kind"] for each in objects()}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "ConfigMap"}


# ---- promtool


def test_promtool_checks_the_rules() -> None:
    done = subprocess.run([program("promtool"), "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_alerts_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    cases = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())
    tried = {test["alertname"] for case in cases["tests"] for test in case["alert_rule_test"] if test["exp_alerts"]}
    assert tried == set(ALERTS), "each fires in at least one"
    file = tmp_path / "rules_test.yaml"
    file.write_text(yaml.safe_dump({**cases, "rule_files": [str(RULES)]}))
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- a real Prometheus


@pytest.fixture
async def operator_metrics() -> AsyncIterator[str]:
    """The operator's metrics as they are while it looks after one cluster, over HTTP."""
    metrics = OperatorMetrics()
    metrics.leader.set(1)
    metrics.show_cluster(
        "logs", "tidelog", dict.fromkeys(("wanted", "present", "ready", "updated", "draining"), 3), {"Ready": True, "Degraded": False}
    )

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry))

    application = web.Application()
    application.add_routes([web.get("/metrics", answer)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"{host}:{port}"
    await runner.cleanup()


def silent(server: Prometheus) -> dict[str, str]:
    """What gives no number: panels, recorded ratios, and what alerts look at."""
    found: dict[str, str] = {}
    asked = {f"{board}: {title}": query for board in BOARDS for title, query in queries(board)}
    for name, rule in (*ALERTS.items(), *RECORDED.items()):
        for selector in selectors(rule["expr"]):
            if selector.name not in RECORDED:  # without appends there is no share of those that failed
                asked[f"{name}: {selector.prettify()}"] = selector.prettify()
    for title, query in asked.items():
        try:
            values = [float(each["value"][1]) for each in server.ask(query)]
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it has just begun to listen
                pytest.fail(f"{title}: {error.read().decode()}")
            return {"Prometheus": "not ready"}
        if not values or any(map(math.isnan, values)):
            found[title] = query
    return found


def numbers(server: Prometheus, board: str, title: str) -> list[float]:
    return [float(each["value"][1]) for name, query in queries(board) if name == title for each in server.ask(query)]


async def keep_busy(server: str) -> None:
    """Append and read until cancelled."""

    async def read(log: tidelog.Log) -> None:
        while True:
            async for _ in log.consume("busy", start="earliest", follow=False):
                pass

    async with tidelog.connect(server) as log:
        await log.admin.create_topic("busy", partitions=3)
        async with log.producer() as producer, asyncio.TaskGroup() as tasks:
            tasks.create_task(read(log))
            while True:
                await producer.send_many("busy", [bytes(500)] * 500)
                await asyncio.sleep(0.05)


async def test_every_panel_and_alert_has_data_on_an_idle_cluster_and_on_a_busy_one(tmp_path: Path, operator_metrics: str) -> None:
    with dev(tmp_path / "data", "--memory") as (_, address, metrics):
        scraped: list[dict[str, Any]] = [
            {"job_name": "tidelog", "static_configs": [{"targets": [metrics], "labels": {"cluster": "logs", "broker": "broker-1"}}]},
            {"job_name": "tidelog-operator", "honor_labels": True, "static_configs": [{"targets": [operator_metrics]}]},
        ]
        with prometheus(tmp_path, scraped, [RULES]) as server:
            missing: dict[str, str] = {}

            def all_answer() -> bool:
                missing.clear()
                try:
                    missing.update(silent(server))
                except urllib.error.URLError as error:  # it has not begun to listen yet
                    missing["Prometheus"] = str(error)
                return not missing

            await until(all_answer, lambda: f"idle, without data: {json.dumps(missing, indent=1)}")
            assert numbers(server, "overview", "Up? A") == [1]
            assert numbers(server, "overview", "Durable? A") == [0]
            busy = asyncio.create_task(keep_busy(address))

            def moving() -> bool:
                shown = ("Appends A", "Bytes A", "Records A", "By stage A", "Fast? A", "Cost? A")
                still.update({title: numbers(server, "overview", title) for title in shown})
                return all(any(value > 0 for value in values) for values in still.values()) and all_answer()

            still: dict[str, list[float]] = {}
            await until(moving, lambda: f"busy: {still}, without data: {json.dumps(missing, indent=1)}")
            await until(lambda: server.ask("tidelog:appends_failed:ratio_rate5m"), lambda: "no recorded ratio")
            assert [float(each["value"][1]) for each in server.ask("tidelog:appends_failed:ratio_rate5m")] == [0]
            assert not busy.done(), busy.exception() if busy.done() else ""
            busy.cancel()
            firing = {each["metric"]["alertname"] for each in server.ask('ALERTS{alertstate="firing"}')}
            assert firing == set(), "a sound cluster"
