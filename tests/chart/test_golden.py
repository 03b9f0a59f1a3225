"""What each value of the chart changes, reviewed once and kept in golden/: one file for each row of a matrix of values.

The default is kept whole, as `manifests/install/greenthread.yaml`; a golden file has what differs from it, a line for
each field. After a change that is meant: `GOLDEN=write python -m pytest -m real tests/chart/test_golden.py`, and read
the diff.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, GATEWAY_API, NAMESPACE, render
from tests.testbeds.programs import Missing, need, skip_or_fail

pytestmark = pytest.mark.real

GOLDEN = Path(__file__).parent / "golden"
MONITORING_API = "monitoring.coreos.com/v1"
DIGEST = "sha256:" + "0123456789abcdef" * 4

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Row:
    """Values as of `helm --set`, and what the cluster has beside Kubernetes' own kinds."""

    values: tuple[str, ...]
    apis: tuple[str, ...] = ()


ROWS = {
    "gateway": Row(("gateway.enabled=true",), (GATEWAY_API,)),
    "gateway-of-another-class": Row(
        (
            "gateway.enabled=true,gateway.className=cilium,gateway.requestTimeout=1h,gateway.port=8080",
            "gateway.annotations.owner=ml,networkPolicy.gatewayNamespaceSelector.kubernetes\\.io/metadata\\.name=kube-system",
        ),
        (GATEWAY_API,),
    ),
    "gateway-without-apiserver": Row(("gateway.enabled=true,apiserver.enabled=false",), (GATEWAY_API,)),
    "no-apiserver": Row(("apiserver.enabled=false",)),
    "monitoring": Row(("monitoring.enabled=true",), (MONITORING_API,)),
    "monitoring-as-they-like": Row(
        (
            "monitoring.enabled=true,monitoring.labels.release=kps,monitoring.interval=1m",
            "monitoring.rules.enabled=false,monitoring.dashboards.enabled=false",
            "monitoring.dcgm.namespace=dcgm,monitoring.dcgm.selector.app=exporter",
            "networkPolicy.prometheusNamespaceSelector.kubernetes\\.io/metadata\\.name=observability",
        ),
        (MONITORING_API,),
    ),
    "monitoring-without-apiserver": Row(("monitoring.enabled=true,apiserver.enabled=false",), (MONITORING_API,)),
    "everything": Row(
        ("gateway.enabled=true,monitoring.enabled=true,apiserver.autoscaling.enabled=true", "modelNamespaces={team-a}"),
        (GATEWAY_API, MONITORING_API),
    ),
    "nothing-optional": Row(
        (
            "apiserver.enabled=false,networkPolicy.enabled=false,admissionPolicies.enabled=false",
            "userRoles.enabled=false,controller.replicas=1",
        )
    ),
    "no-network-policies": Row(("networkPolicy.enabled=false",)),
    "team-namespaces-and-token": Row(("modelNamespaces={team-a,team-b}", "huggingfaceToken=hf_x")),
    "token-of-theirs": Row(("modelNamespaces={team-a}", "huggingfaceTokenSecret=hub")),
    "traces": Row(("tracing.endpoint=http://collector.observability.svc:4318,tracing.samplingRatio=0.05",)),
    "images": Row(
        (
            "image.registry=registry.example/gt/,image.tag=v9,image.pullPolicy=Always",
            "image.pullSecrets={one,two}",
            f"controller.image.digest={DIGEST},agent.image.digest={DIGEST}",
            f"sidecar.image.digest={DIGEST},apiserver.image.digest={DIGEST}",
            f"vllm.image=registry.example/vllm@{DIGEST}",
        )
    ),
    "engines-that-leave-the-gpu": Row(("vllm.sleepBackend=greenthread,vllm.checkpoint=true",)),
    "autoscaling": Row(("apiserver.autoscaling.enabled=true,apiserver.autoscaling.maxReplicas=30",)),
    "one-of-each": Row(("controller.replicas=1,apiserver.replicas=1,apiserver.podDisruptionBudget=false",)),
    "default-runtime-and-no-store": Row(("vllm.runtimeClassName=,storage.modelsPath=,vllm.runAsUser=null",)),
    "where-and-how-much": Row(
        (
            "controller.nodeSelector.pool=system,apiserver.nodeSelector.pool=edge",
            "controller.tolerations[0].operator=Exists,apiserver.tolerations[0].operator=Exists",
            "agent.nodeSelector.pool=gpu,agent.tolerations[0].key=gpu,agent.tolerations[0].operator=Exists",
            "controller.resources.limits.memory=2Gi,agent.resources.requests.cpu=10m,apiserver.resources.limits=null",
            "controller.logLevel=debug,agent.logLevel=warning",
        )
    ),
    "clients": Row(
        (
            "apiserver.service.type=LoadBalancer,apiserver.service.port=8000,apiserver.service.annotations.lb=internal",
            "apiserver.holdTimeout=10m,apiserver.shutdownGrace=300s,sidecar.heartbeat=0s",
        )
    ),
}


@pytest.fixture(scope="module", autouse=True)
def helm() -> None:
    try:
        need("helm")
    except Missing as missing:
        skip_or_fail(missing)


def objects(text: str) -> dict[Key, Any]:
    """By kind, namespace and name; a dashboard's text as the name of its file."""
    files = {
        file.read_text().strip(): f"<files/dashboards/{file.name}>" for file in (CHART / "files/dashboards").glob("*")
    }
    found = {}
    for doc in yaml.safe_load_all(text):
        if doc and doc["kind"] == "ConfigMap":
            doc["data"] = {key: files.get(value, value) for key, value in doc["data"].items()}
        if doc:
            labels = doc["metadata"]["labels"]  # which every object has; not told again for each
            assert labels.pop("app.kubernetes.io/part-of") == "greenthread"
            assert labels.pop("app.kubernetes.io/instance") == "greenthread"
            assert labels.pop("app.kubernetes.io/managed-by") == "Helm"
            for label in ("app.kubernetes.io/version", "helm.sh/chart"):
                assert labels.pop(label)
            key = (doc["kind"], doc["metadata"].get("namespace", ""), doc["metadata"]["name"])
            assert key not in found, f"{key} is made twice"
            found[key] = doc
    return found


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with its path; an item of a list by its name where it has one."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from fields(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        names = [inner.get("name", "") if isinstance(inner, dict) else "" for inner in value]
        for number, (name, inner) in enumerate(zip(names, value, strict=True)):
            yield from fields(inner, f"{path}[{name if name and names.count(name) == 1 else number}]")
    else:
        yield path, value


def differences(default: Mapping[Key, Any], made: Mapping[Key, Any]) -> str:
    """One line for each field that differs, objects that are new or gone marked so."""
    lines: list[str] = []
    for key in sorted({*default, *made}):
        before, after = (dict(fields(of[key])) if key in of else {} for of in (default, made))
        title = f"{key[0]} {key[1]}/{key[2]}" if key[1] else f"{key[0]} {key[2]}"
        if not after:
            lines.append(f"- {title}")
        elif before != after:
            lines.append(f"{'~' if before else '+'} {title}")
            for path in dict.fromkeys([*before, *after]):
                if before.get(path, ...) != after.get(path, ...):
                    lines += [f"    - {path}: {before[path]!r}"] if path in before else []
                    lines += [f"    + {path}: {after[path]!r}"] if path in after else []
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def default() -> dict[Key, Any]:
    return objects(render())


@pytest.mark.parametrize("name", ROWS)
def test_values_change_what_they_did_when_somebody_looked(name: str, default: dict[Key, Any]) -> None:
    row, file = ROWS[name], GOLDEN / f"{name}.txt"
    found = differences(default, objects(render(*row.values, apis=row.apis)))
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(found)
    assert found == file.read_text()


def test_in_another_namespace_it_is_the_same() -> None:
    row, other = ROWS["everything"], "gpu-serving"
    here, there = (render(*row.values, namespace=name, apis=row.apis) for name in (NAMESPACE, other))
    assert there.replace(other, NAMESPACE) == here
    made = str(objects(there)).replace("greenthread-system.json", "")  # the dashboard of that name
    assert made.count(other) > 50
    assert NAMESPACE not in made


def test_every_golden_file_has_its_row() -> None:
    assert sorted(file.stem for file in GOLDEN.iterdir()) == sorted(ROWS)
