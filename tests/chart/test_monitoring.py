"""Real Prometheus, real rules, every query: over a local cluster under load, found as the chart's monitors select."""

from __future__ import annotations

import functools
import http.server
import json
import math
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenthread.kube.resources import ENDPOINT_SLICES, PODS, SERVICES
from tests.chart.conftest import CHART, NAMESPACE, render
from tests.chart.prometheus import Prometheus, check_rules, find, scrape_config
from tests.end_to_end.cluster import FAIRNESS, ONE, Cluster
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.kube import free_ports
from tests.testbeds.programs import Missing, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

RULES = CHART / "files" / "rules.yaml"
BOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))

#: Of the page on metrics that the product's users know: query → what makes an answer right.
KNOWN_QUERIES = {
    "histogram_quantile(0.99, rate(gthread_sidecar_wake_duration_seconds_bucket[5m]))": lambda v: max(v) > 0,
    'sum by (pod) (rate(gthread_sidecar_requests_total{status="success"}[5m]))': lambda v: len(v) == 2 and min(v) > 0,
    'count(gthread_sidecar_state{state="serving"} == 1)': lambda v: v == [1.0],
    "sum(gthread_sidecar_queue_depth)": lambda v: v == [0.0],
    "sum(rate(gthread_sidecar_preemptions_total[5m])) by (role)": lambda v: len(v) == 2 and min(v) > 0,
    "gthread_sidecar_gpu_memory_serving_bytes": lambda v: len(v) == 2 and min(v) > 2**30,
    "sum(rate(gthread_sidecar_wake_duration_seconds_count[5m])) * 60": lambda v: v[0] > 0,
    "sum(rate(gthread_sidecar_sleep_duration_seconds_count[5m])) * 60": lambda v: v[0] > 0,
}


@pytest.fixture(scope="module")
def promtool() -> str:
    try:
        return find("promtool")
    except Missing as missing:
        skip_or_fail(missing)


@pytest.fixture(scope="module")
def dcgm() -> Iterator[int]:
    """NVIDIA's exporter, recorded: its port."""
    text = (Path(__file__).parent / "dcgm.txt").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two Models that do not fit beside each other on one GPU, and the Services that the chart would make."""
    with EmbeddedApi() as api, Cluster(api, nodes={ONE: 1}) as running:
        for doc in yaml.safe_load_all(render(*MONITORED, apis=APIS)):
            if doc and doc["kind"] == "Service":
                # on one machine there is one of each, without the chart's release
                doc["spec"]["selector"].pop("app.kubernetes.io/instance")
                running.kube.create(SERVICES, doc, NAMESPACE)
        _announce_gateway(running)
        for name in ("ann", "bea"):
            # it does not give way by itself: the other must name it its victim
            running.apply(name, gpuMemoryUtilization="0.90", fairness={**FAIRNESS, "yieldAfter": "0s"})
        running.ready("ann", "bea")
        yield running


MONITORED = ("monitoring.enabled=true", f"modelNamespaces={{{NAMESPACE}}}")
APIS = ("monitoring.coreos.com/v1",)


def _announce_gateway(running: Cluster) -> None:
    """On one machine the gateway listens where it is told, so the supervisor publishes no port of it."""
    pod = next(p for p in running.kube.list(PODS, NAMESPACE).items if p["metadata"]["name"] == "greenthread-gateway")
    body = {
        "metadata": {
            "name": "greenthread-apiserver-metrics-x",
            "labels": {"kubernetes.io/service-name": "greenthread-apiserver-metrics"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [running.address],
                "conditions": {"ready": True},
                "nodeName": ONE,
                "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": NAMESPACE},
            }
        ],
        "ports": [{"name": "metrics", "port": running.remembered.gateway_port, "protocol": "TCP"}],
    }
    running.kube.create(ENDPOINT_SLICES, body, NAMESPACE)


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, dcgm: int, promtool: str) -> Iterator[Prometheus]:
    """It has scraped for a while, under load that swaps the two Models back and forth."""
    monitors = [
        doc
        for doc in yaml.safe_load_all(render(*MONITORED, apis=APIS))
        if doc and doc["kind"] in ("PodMonitor", "ServiceMonitor")
    ]
    there = [cluster.kube.list(kind, NAMESPACE).items for kind in (ENDPOINT_SLICES, SERVICES, PODS)]
    configs = [scrape_config(doc, *there) for doc in monitors if doc["metadata"]["name"] != "greenthread-dcgm"]
    configs.append(
        {
            "job_name": "greenthread-dcgm",
            "scrape_interval": "1s",
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{dcgm}"], "labels": {"node": ONE}}],
        }
    )
    [port] = free_ports(1)
    with Prometheus(configs, RULES, port) as server:
        deadline = time.monotonic() + 60
        while set(server.targets()) != {config["job_name"] for config in configs} or any(
            health != "up" for pool in server.targets().values() for health in pool
        ):
            assert time.monotonic() < deadline, server.targets()
            time.sleep(0.2)
        for _ in range(6):
            for name in ("ann", "bea"):
                cluster.chat(name).content  # noqa: B018 asserts that it was answered
                cluster.chat(name, through=cluster.gateway).content  # noqa: B018
                time.sleep(1.1)  # a scrape sees each
        time.sleep(2.5)
        yield server


def test_every_part_is_found_and_scraped(prometheus: Prometheus) -> None:
    count = {pool: len(found) for pool, found in prometheus.targets().items()}
    assert count == {
        "greenthread-sidecar": 2,
        "greenthread-vllm": 2,
        "greenthread-dcgm": 1,
        "greenthread-controller": 2,
        "greenthread-agent": 1,
        "greenthread-apiserver": 1,
    }


@pytest.mark.parametrize("query", KNOWN_QUERIES)
def test_the_queries_that_users_know_return_what_they_claim(prometheus: Prometheus, query: str) -> None:
    values = [value for _, value in prometheus.query(query) if not math.isnan(value)]
    assert values, "no data"
    assert KNOWN_QUERIES[query](values), values


def panels() -> Iterator[Any]:
    for file in BOARDS:
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield pytest.param(target["expr"], id=f"{file.stem}: {panel['title']} {target['refId']}")


@pytest.mark.parametrize("expression", list(panels()))
def test_every_panel_has_data(prometheus: Prometheus, expression: str) -> None:
    text = expression.replace("$__rate_interval", "20s")
    for variable in ("namespace", "model", "node"):
        text = text.replace(f"${variable}", ".*")
    assert "$" not in text
    found = prometheus.query(text)
    assert found, f"no data for {text}"
    assert not all(math.isnan(value) for _, value in found), f"nothing but NaN for {text}"


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)
def test_a_board_is_what_grafana_reads(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["title"].startswith("GreenThread / ")
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", []):
            assert panel["datasource"]["uid"] == "$datasource"
            assert target["expr"]


def test_the_boards_are_those_of_their_source() -> None:
    from scripts import dashboards

    for name, board in dashboards.BOARDS.items():
        assert json.loads((CHART / "files" / "dashboards" / f"{name}.json").read_text()) == dashboards.board_json(board)


def test_the_rules_are_valid_and_nothing_fires_on_a_healthy_cluster(prometheus: Prometheus, promtool: str) -> None:
    check_rules(RULES)
    [group] = prometheus.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []


def test_each_alert_fires_when_it_should_and_not_when_it_should_not(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", "rules_test.yaml"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())["tests"]
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    assert {case["alertname"] for test in tested for case in test["alert_rule_test"]} == alerts


@functools.cache
def _expositions(cluster: Cluster) -> dict[str, str]:
    found = {"sidecar": cluster.http.get(cluster.sidecar("ann") + "/metrics").text}
    found["gateway"] = cluster.http.get(cluster.gateway + "/metrics").text
    for pod in cluster.kube.list(PODS, NAMESPACE).items:
        name = pod["metadata"]["name"]
        if name in ("greenthread-controller", "greenthread-agent"):
            found[name] = cluster.http.get(f"http://{cluster.address}:{cluster.port(pod, 'metrics')}/metrics").text
    return found


@pytest.mark.parametrize("part", ["sidecar", "gateway", "greenthread-controller", "greenthread-agent"])
def test_metrics_are_as_promtool_wants_them_and_few(cluster: Cluster, promtool: str, part: str) -> None:
    text = _expositions(cluster)[part]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [line for line in text.splitlines() if line.startswith("gthread_")]
    assert ours
    # of one pod, gateway or node; what grows is by Model (gateway), by GPU (agent) and by kind of request
    assert len(ours) < 150
