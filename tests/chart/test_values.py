"""What the chart makes of its values, and what it says of wrong ones. Needs Helm, and no cluster."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenthread.reach import LABELS, SERVICE
from tests.chart.conftest import CHART, GATEWAY_API, NAMESPACE, render
from tests.testbeds.programs import Missing, need, skip_or_fail

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def helm() -> Iterator[Path]:
    try:
        yield need("helm")
    except Missing as missing:
        skip_or_fail(missing)


def objects(*values: str, apis: tuple[str, ...] = ()) -> dict[tuple[str, str, str], Any]:
    """Kind, namespace, name → object."""
    docs = [doc for doc in yaml.safe_load_all(render(*values, apis=apis)) if doc]
    return {(doc["kind"], doc["metadata"].get("namespace", ""), doc["metadata"]["name"]): doc for doc in docs}


def containers(found: dict[tuple[str, str, str], Any]) -> Iterator[tuple[str, Any, Any]]:
    for (kind, _, name), doc in found.items():
        if kind in ("Deployment", "DaemonSet"):
            pod = doc["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield name, pod, container


def test_lint_is_strict(helm: Path) -> None:
    done = subprocess.run([str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_value_is_documented_and_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(path: str, value: Any, rules: Any) -> None:
        if "properties" not in rules:
            return
        assert set(value) == set(rules["properties"]) - {"global"}, path
        for key, inner in value.items():
            compare(f"{path}.{key}", inner, rules["properties"][key])

    compare("", values, schema)
    text = (CHART / "values.yaml").read_text().splitlines()
    undocumented = [
        line
        for before, line in itertools.pairwise(text)
        if re.match(r"^[a-zA-Z]+:( |$)", line) and not before.startswith("#") and not re.match(r"^[a-zA-Z]", before)
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("controller.replicas=0", "/controller/replicas"),
        ("controler.replicas=2", "controler"),
        ("gateway.requestTimeout=5 minutes", "/gateway/requestTimeout"),
        ("storage.modelsPath=models", "/storage/modelsPath"),
        ("apiserver.service.type=Loadbalancer", "/apiserver/service/type"),
        ("modelNamespaces={Team A}", "/modelNamespaces/0"),
        ("controller.image.digest=abc", "/controller/image/digest"),
        ("sidecar.heartbeat=10", "/sidecar/heartbeat"),
        ("gateway.enabled=true", "needs the Gateway API"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(value: str, says: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(value)
    assert says in refused.value.stderr


def test_the_values_that_users_know_are_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["huggingfaceToken"] == ""
    assert values["controller"]["replicas"] == 2
    assert values["monitoring"]["enabled"] is False
    assert values["gateway"]["className"] == "envoy"
    assert values["gateway"]["requestTimeout"] == "300s"
    assert "enabled" in values["gateway"]
    assert "enabled" in values["apiserver"]
    assert values["storage"]["modelsPath"] == "/mnt/models"
    assert values["vllm"]["runtimeClassName"] == "nvidia"


def test_all_but_the_agent_are_restricted_pods() -> None:
    for name, pod, container in containers(objects()):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["requests"], name
        assert container["livenessProbe"], name
        assert container["readinessProbe"], name
        if name == "greenthread-agent":
            assert pod["hostPID"] is True
        else:
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert "hostPID" not in pod


def test_the_token_is_in_its_secret_and_nowhere_else() -> None:
    found = objects("huggingfaceToken=hf_secret", "modelNamespaces={team-a}")
    holders = {key for key, doc in found.items() if "hf_secret" in str(doc)}
    assert holders == {("Secret", namespace, "greenthread-huggingface") for namespace in (NAMESPACE, "team-a")}
    assert not [container for _, _, container in containers(found) if "secretKeyRef" in str(container)]


def test_the_plugin_finds_the_gateway_by_its_labels() -> None:
    wanted = dict(label.split("=") for label in LABELS.split(","))
    found = objects()
    assert wanted.items() <= found["Service", NAMESPACE, SERVICE]["metadata"]["labels"].items()
    pods = found["Deployment", NAMESPACE, SERVICE]["spec"]["template"]["metadata"]["labels"]
    assert wanted.items() <= pods.items()


def test_a_digest_wins_over_the_tag() -> None:
    digest = "sha256:" + "0" * 64
    found = objects(f"controller.image.digest={digest}", "image.tag=v9", "image.registry=registry.example/gt")
    images = {name: container["image"] for name, _, container in containers(found)}
    assert images["greenthread-controller"] == f"registry.example/gt/controller@{digest}"
    assert images["greenthread-agent"] == "registry.example/gt/agent:v9"


def test_one_heartbeat_for_sidecars_and_gateway() -> None:
    env = {
        name: {e["name"]: e.get("value") for e in c["env"]}
        for name, _, c in containers(objects("sidecar.heartbeat=3s"))
    }
    assert env["greenthread-controller"]["GREENTHREAD_HEARTBEAT"] == "3s"
    assert env["greenthread-apiserver"]["HEARTBEAT"] == "3s"


def test_parts_that_are_switched_off_are_not_there() -> None:
    found = objects(
        "apiserver.enabled=false",
        "networkPolicy.enabled=false",
        "admissionPolicies.enabled=false",
        "userRoles.enabled=false",
        "controller.replicas=1",
    )
    kinds = {kind for kind, _, _ in found}
    assert not kinds & {"NetworkPolicy", "ValidatingAdmissionPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    assert not [name for _, _, name in found if "apiserver" in name or name.startswith("greenthread-viewer")]


def test_with_a_gateway_models_get_routes() -> None:
    found = objects("gateway.enabled=true", apis=(GATEWAY_API,))
    assert found["Gateway", NAMESPACE, "greenthread"]["spec"]["gatewayClassName"] == "envoy"
    route = found["HTTPRoute", NAMESPACE, "greenthread-apiserver"]
    assert route["spec"]["rules"][0]["timeouts"] == {"request": "300s"}
    [env] = [c["env"] for n, _, c in containers(found) if n == "greenthread-controller"]
    assert {"name": "GREENTHREAD_ROUTE_GATEWAY", "value": f"{NAMESPACE}/greenthread"} in env
    [env] = [c["env"] for n, _, c in containers(objects()) if n == "greenthread-controller"]
    assert {"name": "GREENTHREAD_ROUTE_GATEWAY", "value": ""} in env


def test_every_environment_variable_is_one_that_the_part_reads() -> None:
    sources = {
        "greenthread-controller": ["controller/settings.py", "controller/__main__.py"],
        "greenthread-agent": ["controller/agent/settings.py", "controller/agent/__main__.py"],
        "greenthread-apiserver": ["gateway/settings.py"],
    }
    root = CHART.parents[2]
    for name, _, container in containers(objects()):
        text = "".join((root / file).read_text() for file in sources[name])
        for entry in container["env"]:
            if not entry["name"].startswith("NVIDIA_"):  # read by NVIDIA's container runtime
                assert f'"{entry["name"]}"' in text, (name, entry["name"])


def test_the_plain_manifests_are_what_the_chart_makes() -> None:
    """For people without Helm; `make manifests` writes them."""
    written = (CHART.parents[1] / "install" / "greenthread.yaml").read_text()
    made = {key: doc for key, doc in objects().items() if "helm.sh/hook" not in doc["metadata"].get("annotations", {})}
    docs = [doc for doc in yaml.safe_load_all(written) if doc]
    assert {(doc["kind"], doc["metadata"].get("namespace", ""), doc["metadata"]["name"]): doc for doc in docs} == made
