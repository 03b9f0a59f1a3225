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
from tests.testbeds.programs import Missing, kubernetes_version, need, skip_or_fail

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


def pods(found: dict[tuple[str, str, str], Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every container of every pod that the chart makes, init containers and Helm's test too."""
    for (_, _, name), doc in found.items():
        spec = doc.get("spec") or {}
        pod = spec if doc["kind"] == "Pod" else (spec.get("template") or {}).get("spec")
        for container in [*(pod or {}).get("initContainers", []), *(pod or {}).get("containers", [])]:
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
        # Kubernetes' own words need no explanation
        if re.match(r" *\w+:", line) and not re.match(r" +(requests|limits):", line) and "#" not in before
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("controller.replicas=0", "at '/controller/replicas': minimum: got 0, want 1"),
        ("controller.replicas=two", "at '/controller/replicas': got string, want integer"),
        ("controler.replicas=2", "additional properties 'controler' not allowed"),
        ("gateway.clasName=x", "at '/gateway': additional properties 'clasName' not allowed"),
        ("monitoring.enabled=yes", "at '/monitoring/enabled': got string, want boolean"),
        ("apiserver.replicas=0", "at '/apiserver/replicas': minimum: got 0, want 1"),
        ("apiserver.service.type=Loadbalancer", "value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
        ("apiserver.service.port=70000", "at '/apiserver/service/port': maximum: got 70,000, want 65,535"),
        ("apiserver.autoscaling.targetCPU=0", "at '/apiserver/autoscaling/targetCPU': minimum: got 0, want 1"),
        ("image.pullPolicy=always", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("image.registry=", "at '/image/registry': minLength: got 0, want 1"),
        ("controller.logLevel=verbose", "value must be one of 'debug', 'info', 'warning', 'error'"),
        ("agent.nodeSelector=gpu", "at '/agent/nodeSelector': got string, want object"),
        ("vllm.sleepBackend=disk", "at '/vllm/sleepBackend': value must be one of 'cumem', 'greenthread'"),
        ("vllm.checkpoint=maybe", "at '/vllm/checkpoint': got string, want boolean"),
        ("vllm.runAsUser=root", "at '/vllm/runAsUser': got string, want null or integer"),
        ("modelNamespaces=team-a", "at '/modelNamespaces': got string, want array"),
        ("sidecar.heartbeat=10", "at '/sidecar/heartbeat': got number, want string"),
        ("sidecar.heartbeat=ten", 'sidecar.heartbeat: "ten" is no duration: write for example 30s, 5m or 1h30m'),
        ("gateway.requestTimeout=5 minutes", 'gateway.requestTimeout: "5 minutes" is no duration: write for example'),
        ("gateway.requestTimeout=1.5h", 'gateway.requestTimeout: "1.5h" is no duration'),  # Gateway API has no decimals
        ("apiserver.holdTimeout=", 'apiserver.holdTimeout: "" is no duration'),
        ("apiserver.shutdownGrace=5m", 'apiserver.shutdownGrace: "5m" is no number of seconds: write for example 60s'),
        ("tracing.endpoint=collector:4318", 'tracing.endpoint: "collector:4318" is no address: write for example http'),
        ("tracing.samplingRatio=5", 'tracing.samplingRatio: "5" is no share: write a number from 0 to 1'),
        ("tracing.samplingRatio=5%", 'tracing.samplingRatio: "5%" is no share'),
        ("monitoring.interval=often", 'monitoring.interval: "often" is no duration'),
        ("storage.modelsPath=models", 'storage.modelsPath: "models" is no folder: write an absolute path such as'),
        ("modelNamespaces={team-a,Team A}", 'modelNamespaces[1]: "Team A" is no namespace: its name has small letters'),
        ("monitoring.dcgm.namespace=GPU", 'monitoring.dcgm.namespace: "GPU" is no namespace'),
        ("gateway.className=Envoy!", 'gateway.className: "Envoy!" is no name'),
        ("vllm.runtimeClassName=NV", 'vllm.runtimeClassName: "NV" is no name'),
        ("huggingfaceTokenSecret=hf_x", 'huggingfaceTokenSecret: "hf_x" is no name'),
        ("image.pullSecrets={a_b}", 'image.pullSecrets[0]: "a_b" is no name'),
        (
            "controller.image.digest=abc",
            'controller.image.digest: "abc" is no digest: write sha256: and 64 hexadecimal',
        ),
        ("apiserver.image.digest=sha256:ABC", 'apiserver.image.digest: "sha256:ABC" is no digest'),
        ("gateway.enabled=true", "needs the Gateway API"),
        ("monitoring.enabled=true", "needs the Prometheus Operator"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_write(value: str, says: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(value)
    assert says in refused.value.stderr


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render("gateway.requestTimeout=soon,storage.modelsPath=models")
    assert "gateway.requestTimeout" in refused.value.stderr
    assert "storage.modelsPath" in refused.value.stderr


def test_nobody_is_shown_a_regular_expression() -> None:
    assert '"pattern"' not in (CHART / "values.schema.json").read_text()


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


def test_every_container_is_hardened_and_asks_for_what_it_needs() -> None:
    walked = []
    for name, pod, container in pods(objects("apiserver.autoscaling.enabled=true")):
        security, of_pod = container["securityContext"], pod["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
        if name != "greenthread-test":  # it ends by itself
            assert container["livenessProbe"], name
            assert container["readinessProbe"], name
            assert container["resources"]["limits"]["memory"], name
        if name == "greenthread-agent":
            assert pod["hostPID"] is True
        else:
            assert of_pod["runAsNonRoot"] is True
            assert not {"hostPID", "hostNetwork", "hostIPC"} & set(pod)
        assert not pod.get("volumes")
        walked.append(name)
    assert sorted(walked) == [
        "greenthread-agent", "greenthread-apiserver", "greenthread-controller", "greenthread-test"
    ]  # fmt: skip


def test_replicas_are_spread_and_disrupted_one_by_one() -> None:
    found = objects()
    for part in ("controller", "apiserver"):
        spec = found["Deployment", NAMESPACE, f"greenthread-{part}"]["spec"]
        [spread] = spec["template"]["spec"]["topologySpreadConstraints"]
        labels = spec["selector"]["matchLabels"]
        assert (spread["topologyKey"], spread["labelSelector"]["matchLabels"]) == ("kubernetes.io/hostname", labels)
        budget = found["PodDisruptionBudget", NAMESPACE, f"greenthread-{part}"]["spec"]
        assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
        assert labels.items() <= spec["template"]["metadata"]["labels"].items()


def test_a_gateway_that_stops_has_the_time_for_what_is_in_flight() -> None:
    for values, grace in (((), 60), (("apiserver.shutdownGrace=300s",), 300)):
        pod = objects(*values)["Deployment", NAMESPACE, "greenthread-apiserver"]["spec"]["template"]["spec"]
        [container] = pod["containers"]
        wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert {"name": "SHUTDOWN_GRACE", "value": f"{grace}s"} in container["env"]
        assert pod["terminationGracePeriodSeconds"] > wait + grace


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


def test_only_prometheus_reaches_metrics_and_only_gateways_the_models() -> None:
    values = ("monitoring.enabled=true,gateway.enabled=true", "modelNamespaces={team-a}")
    found = objects(*values, apis=(GATEWAY_API, "monitoring.coreos.com/v1"))
    policies = {key[1:]: doc["spec"] for key, doc in found.items() if key[0] == "NetworkPolicy"}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    proxies = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoy-gateway-system"}}}
    gateway = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
        "podSelector": found["Deployment", NAMESPACE, SERVICE]["spec"]["selector"],
    }
    http, metrics = ([{"port": name, "protocol": "TCP"}] for name in ("http", "metrics"))
    for namespace in (NAMESPACE, "team-a"):
        spec = policies.pop((namespace, "greenthread-models"))
        assert spec["ingress"] == [{"from": [gateway, proxies, monitoring], "ports": http}]
    assert policies.pop((NAMESPACE, "greenthread-metrics"))["ingress"] == [{"from": [monitoring], "ports": metrics}]
    spec = policies.pop((NAMESPACE, "greenthread-apiserver"))
    assert spec["ingress"] == [{"ports": http}, {"from": [monitoring], "ports": metrics}]
    assert not policies
    # clients' own Service has no port of metrics: it may be a load balancer
    assert [port["name"] for port in found["Service", NAMESPACE, SERVICE]["spec"]["ports"]] == ["http"]


@pytest.mark.parametrize(
    ("values", "page"),
    [
        ((), "https://github.com/greenthread/greenthread/blob/main/docs/runbooks.md"),
        (("monitoring.rules.runbooks=https://wiki.example/gpu",), "https://wiki.example/gpu"),
    ],
)
def test_alerts_link_to_their_runbooks(values: tuple[str, ...], page: str) -> None:
    found = objects("monitoring.enabled=true", *values, apis=("monitoring.coreos.com/v1",))
    [group] = found["PrometheusRule", NAMESPACE, "greenthread"]["spec"]["groups"]
    assert len(group["rules"]) == 9
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"


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


def test_the_packed_chart_is_the_same(helm: Path, tmp_path: Path) -> None:
    """Its CRDs lie behind a link, which an archive cannot be trusted to keep."""
    packed = subprocess.run([str(helm), "package", str(CHART), "--destination", str(tmp_path)], capture_output=True)
    assert packed.returncode == 0, packed.stderr
    [archive] = tmp_path.iterdir()
    command = [str(helm), "template", "greenthread", str(archive), "--namespace", NAMESPACE]
    command += ["--kube-version", kubernetes_version()]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == render()


def test_an_on_call_person_sees_first_what_is_wrong() -> None:
    """The first screen is a question and numbers that answer it; and what an alert is about is shown somewhere."""
    shown = ""
    for file in (CHART / "files" / "dashboards").iterdir():
        shown += file.read_text()
        row, *first = (p for p in json.loads(file.read_text())["panels"] if p["gridPos"]["y"] < 5)
        assert (row["type"], row["title"][-1]) == ("row", "?")
        assert len(first) >= 4
        assert {panel["type"] for panel in first} <= {"stat", "gauge"}
        assert all(panel["targets"] for panel in first)
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"gthread_\w+", rule["expr"])}
    assert {name for name in asked if name not in shown} == set()


def test_the_plain_manifests_are_what_the_chart_makes() -> None:
    """For people without Helm; `make manifests` writes them."""
    written = (CHART.parents[1] / "install" / "greenthread.yaml").read_text()
    made = {key: doc for key, doc in objects().items() if "helm.sh/hook" not in doc["metadata"].get("annotations", {})}
    docs = [doc for doc in yaml.safe_load_all(written) if doc]
    assert {(doc["kind"], doc["metadata"].get("namespace", ""), doc["metadata"]["name"]): doc for doc in docs} == made
