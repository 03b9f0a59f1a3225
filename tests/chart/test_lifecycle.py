"""Installed, upgraded, rolled back and removed by the real Helm, on a real kube-apiserver and controller manager."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.conftest import CHART, NAMESPACE, render
from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi
from tests.testbeds.programs import Missing, need, need_crds, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

MODEL = {
    "apiVersion": "greenthread.ai/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "llama", "namespace": "team-a"},
    "spec": {"modelName": "meta-llama/Llama-3.1-8B-Instruct"},
}
OPTIONS = ["--set", "modelNamespaces={team-a}"]
FULL = [*OPTIONS, "--set", "gateway.enabled=true,monitoring.enabled=true,apiserver.autoscaling.enabled=true"]


@pytest.fixture(scope="module", params=["bare cluster", "with Gateway API and Prometheus Operator"])
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[RealApi, bool]]:
    """An API server, and whether it has the other projects' CRDs."""
    others = request.param != "bare cluster"
    try:
        bed = RealApi(GARBAGE_COLLECTION)
        files = [file for name in ("gateway-api", "prometheus-operator") for file in need_crds(name)] if others else []
        need("helm")
    except Missing as missing:
        skip_or_fail(missing)
    with bed as api:
        for file in files:
            api.kubectl("apply", "--server-side", "-f", str(file))
        api.kubectl("create", "namespace", "team-a")
        yield api, others


def helm(api: RealApi, *arguments: str) -> str:
    command = [str(need("helm")), "--kubeconfig", str(api.kubeconfig), "--namespace", NAMESPACE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(api: RealApi) -> set[str]:
    """Everything in the cluster as kind/namespace/name, but for what the API server keeps for itself."""
    named = api.request("GET", "/apis")[1]["groups"]
    groups = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in named)]
    found: set[str] = set()
    for path in groups:
        for kind in api.request("GET", path)[1]["resources"]:
            name = kind["name"]
            if "list" not in kind["verbs"] or name in ("events", "leases", "componentstatuses", "apiservices"):
                continue
            for item in api.request("GET", f"{path}/{name}")[1]["items"]:
                meta = item["metadata"]
                if not meta["name"].startswith("sh.helm.release."):
                    found.add(f"{name}/{meta.get('namespace', '')}/{meta['name']}")
    return found


def previous(folder: Path) -> Path:
    """The chart as an earlier release might have been: an older CRD, no policy for agents, an object since gone."""
    chart = folder / "greenthread"
    shutil.copytree(CHART, chart)  # follows the link to the CRDs
    text = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(text.replace("version: 0.1.0", "version: 0.0.9"))
    crd = chart / "files" / "crds" / "gpus.greenthread.ai.yaml"
    lines = crd.read_text().splitlines(keepends=True)
    crd.write_text("".join(line for line in lines if "{name: Waking," not in line))
    (chart / "templates" / "access" / "agent-policy.yaml").unlink()
    (chart / "templates" / "gone.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: gone}\n")
    return chart


def columns(api: RealApi) -> str:
    return api.kubectl(
        "get", "crd", "gpus.greenthread.ai", "-o", "jsonpath={.spec.versions[0].additionalPrinterColumns}"
    )


def test_install_upgrade_rollback_uninstall(cluster: tuple[RealApi, bool], tmp_path: Path) -> None:
    api, others = cluster
    before = objects(api)

    helm(api, "install", "greenthread", str(previous(tmp_path)), "--create-namespace", *OPTIONS)
    assert "Waking" not in columns(api)
    api.kubectl("apply", "-f", "-", stdin=json.dumps(MODEL))

    notes = helm(api, "upgrade", "greenthread", str(CHART), *(FULL if others else OPTIONS))
    assert "kubectl greenthread top" in notes
    assert "Waking" in columns(api), "an upgrade upgrades the CRDs"
    upgraded = objects(api)
    assert f"configmaps/{NAMESPACE}/gone" not in upgraded
    assert "validatingadmissionpolicies//greenthread-agent" in upgraded
    assert (f"gateways/{NAMESPACE}/greenthread" in upgraded) is others
    assert (f"podmonitors/{NAMESPACE}/greenthread-sidecar" in upgraded) is others
    assert (f"configmaps/{NAMESPACE}/greenthread-dashboard-gpu" in upgraded) is others

    helm(api, "rollback", "greenthread", "1")
    assert f"configmaps/{NAMESPACE}/gone" in objects(api)
    helm(api, "rollback", "greenthread", "2")
    assert objects(api) == upgraded

    helm(api, "uninstall", "greenthread")
    left = objects(api) - before
    kept = {
        "customresourcedefinitions//gpus.greenthread.ai",
        "customresourcedefinitions//models.greenthread.ai",
        "models/team-a/llama",
        f"namespaces//{NAMESPACE}",
    }
    # the controller manager's own, in a namespace that is new
    left = {name for name in left if "kube-root-ca.crt" not in name and not name.endswith("/default")}
    assert left == kept, "Models and their CRDs stay, nothing else"

    helm(api, "install", "greenthread", str(CHART), *OPTIONS)
    assert "models/team-a/llama" in objects(api), "a new installation takes over what was kept"
    helm(api, "uninstall", "greenthread")
    api.kubectl("delete", "crd", "models.greenthread.ai", "gpus.greenthread.ai")


NEXT = [
    f"kubectl get gpus -n {NAMESPACE}",
    "kubectl greenthread recipes llama-3-1-8b --apply -n team-a",
    "kubectl greenthread top",
]


@pytest.mark.parametrize(
    ("values", "clients"),
    [
        ("sidecar.heartbeat=3s", f"http://greenthread-apiserver.{NAMESPACE}.svc/v1 with the model in the body"),
        ("apiserver.service.port=8000", f"http://greenthread-apiserver.{NAMESPACE}.svc:8000/v1"),
        ("apiserver.enabled=false", "none"),
        ("apiserver.enabled=false,networkPolicy.enabled=false", "each Model has a Service of its name"),
        ("apiserver.enabled=false,gateway.enabled=true", "/<model>/v1 at the address of the Gateway greenthread"),
    ],
)
def test_the_notes_say_what_is_next(cluster: tuple[RealApi, bool], values: str, clients: str) -> None:
    api, others = cluster
    if "gateway.enabled" in values and not others:
        pytest.skip("there is no Gateway API here")
    said = helm(api, "install", "greenthread", str(CHART), "--dry-run=server", *OPTIONS, "--set", values)
    notes = said.partition("NOTES:")[2]
    assert [line.partition("#")[0].strip() for line in notes.splitlines() if line.startswith("  kubectl")] == NEXT
    [line] = [line for line in notes.splitlines() if line.startswith("Clients: ")]
    assert clients in line
    assert "No Hugging Face token" in notes


def test_every_object_passes_strict_validation_on_the_server(cluster: tuple[RealApi, bool]) -> None:
    api, others = cluster
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    api.kubectl("apply", "--server-side", "--validate=strict", "-f", str(CHART.parents[1] / "crds"))
    values = [word for word in (FULL if others else OPTIONS) if word != "--set"]
    apis = ("gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1") if others else ()
    text = render(*values, "huggingfaceToken=x", apis=apis)
    api.kubectl(
        "apply", "--server-side", "--validate=strict", "--dry-run=server", "--force-conflicts", "-f", "-", stdin=text
    )


def test_without_helm_kubectl_applies_the_same(cluster: tuple[RealApi, bool]) -> None:
    api, _ = cluster
    folder = CHART.parents[1] / "install"
    # twice: the first makes the namespace and the CRDs that the rest is made in and of
    api.kubectl("apply", "--server-side", "--validate=strict", "-k", str(folder))
    said = api.kubectl("apply", "--server-side", "--validate=strict", "-k", str(folder))
    assert "deployment.apps/greenthread-controller serverside-applied" in said
    api.kubectl("delete", "-k", str(folder), "--wait=false")
