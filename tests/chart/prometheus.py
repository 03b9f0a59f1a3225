"""A real Prometheus, with the targets that the Prometheus Operator would find by the chart's monitors."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from tests.testbeds.group import ProcessGroup
from tests.testbeds.programs import Missing

Object = dict[str, Any]


def find(name: str) -> str:
    """`prometheus` or `promtool`; Missing when it is not on the PATH."""
    program = shutil.which(name)
    if program is None:
        raise Missing(f"{name} is not on the PATH. Get it with `python -m tests.testbeds.install chart`.")
    return program


def scrape_config(monitor: Object, slices: list[Object], services: list[Object], pods: list[Object]) -> Object:
    """What the operator makes of a PodMonitor or ServiceMonitor, its targets looked up here and now.

    Debian's Prometheus is built without Kubernetes' discovery. Targets come from EndpointSlices in both cases: on one
    machine a pod's ports are where its slice says.
    """
    spec, meta = monitor["spec"], monitor["metadata"]
    [endpoint] = spec.get("podMetricsEndpoints") or spec["endpoints"]
    of_pods = monitor["kind"] == "PodMonitor"
    where = (spec.get("namespaceSelector") or {}).get("matchNames") or [meta["namespace"]]
    by_name = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod for pod in pods}
    found = []
    for piece in slices:
        namespace = piece["metadata"]["namespace"]
        service = piece["metadata"]["labels"]["kubernetes.io/service-name"]
        for place in piece["endpoints"]:
            pod = by_name[namespace, place["targetRef"]["name"]]
            owner = next(item for item in services if item["metadata"]["name"] == service)
            labels = (pod if of_pods else owner)["metadata"].get("labels") or {}
            ports = [port["port"] for port in piece["ports"] if port["name"] == endpoint["port"]]
            if namespace not in where or not spec["selector"]["matchLabels"].items() <= labels.items() or not ports:
                continue
            known = {"__meta_kubernetes_pod_node_name": place["nodeName"]}
            for name, value in (pod["metadata"].get("labels") or {}).items():
                known[f"__meta_kubernetes_pod_label_{_meta(name)}"] = value
            job = f"{meta['namespace']}/{meta['name']}" if of_pods else service
            known |= {"namespace": namespace, "pod": pod["metadata"]["name"], "job": job}
            found.append({"targets": [f"{place['addresses'][0]}:{ports[0]}"], "labels": known})
    rules = endpoint.get("relabelings") or []
    return {
        "job_name": meta["name"],
        "metrics_path": endpoint["path"],
        "params": endpoint.get("params") or {},
        "scrape_interval": "1s",
        "honor_labels": bool(endpoint.get("honorLabels")),
        "static_configs": found,
        "relabel_configs": [
            {"source_labels": rule["sourceLabels"], "target_label": rule["targetLabel"]} for rule in rules
        ],
    }


def _meta(label: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in label)


class Prometheus:
    """`with Prometheus(configs, rules) as server:` scrapes until its end."""

    def __init__(self, scrape_configs: list[Object], rules: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder = Path(tempfile.mkdtemp(prefix="greenthread-prometheus-"))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": scrape_configs,
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._command = [
            find("prometheus"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._group: ProcessGroup | None = None

    def __enter__(self) -> Self:
        self._group = ProcessGroup()
        self._group.start("prometheus", self._command, self._folder / "log")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                    return self
            except OSError:
                time.sleep(0.1)
        log = (self._folder / "log").read_text()
        self.__exit__()
        raise RuntimeError(f"no Prometheus after 60 s:\n{log}")

    def __exit__(self, *_: object) -> None:
        assert self._group is not None
        self._group.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str, **params: str) -> Any:
        """The `data` of an answer of its API."""
        query = urllib.parse.urlencode(params)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """An instant query: labels and value of each series."""
        found = self.get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def targets(self) -> dict[str, list[str]]:
        """Pool of targets → the health of each."""
        pools: dict[str, list[str]] = {}
        for target in self.get("targets")["activeTargets"]:
            pools.setdefault(target["scrapePool"], []).append(target["health"])
        return pools


def check_rules(rules: Path) -> None:
    """AssertionError when promtool finds a fault."""
    done = subprocess.run([find("promtool"), "check", "rules", str(rules)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
