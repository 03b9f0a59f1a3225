"""The chart's own pods run: `helm install --wait`, `helm test`, a Model that answers, an upgrade.

kube-apiserver, the controller manager with its Deployments and DaemonSets, Helm and every part of the product are real;
scheduler and kubelet are played by the supervisor, which runs the containers as processes with the chart's arguments,
environment, accounts and probes, and the cluster's DNS by a forward proxy. What this cannot show: images, cgroups,
users and network policies.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import pytest

from localcluster import parts
from localcluster.gpus import ledger as ledgers
from localcluster.state import Folder
from localcluster.supervisor.settings import Image
from tests.chart.conftest import CHART, NAMESPACE
from tests.end_to_end.cluster import FAST_ENGINE, MEMORY
from tests.testbeds.group import ProcessGroup
from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi, own_address
from tests.testbeds.programs import Missing, need, need_crds, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

CONTROLLERS = f"{GARBAGE_COLLECTION},deployment-controller,replicaset-controller,daemonset-controller"
NODE, REGISTRY = "one", "registry.example/gt"
VALUES = [
    f"image.registry={REGISTRY}",
    "gateway.enabled=true",
    # the stand-in's node has only the labels that every node has
    r"agent.nodeSelector.nvidia\.com/gpu\.present=null",
    r"agent.nodeSelector.kubernetes\.io/os=linux",
]
RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}
MODEL = {
    "apiVersion": "greenthread.ai/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "llama", "namespace": NAMESPACE},
    "spec": {"modelName": "meta-llama/Llama-3.1-8B-Instruct"},
}
#: Service of metrics → what the names begin with.
METRICS = {
    "greenthread-controller": "gthread_controller",
    "greenthread-agent": "gthread_agent",
    "greenthread-apiserver-metrics": "gthread_apiserver",
}


@dataclass
class Release:
    """The chart, installed, on a cluster of one node with one simulated GPU."""

    api: RealApi
    folder: Folder
    #: A forward proxy that knows the cluster's Services by their names.
    proxy: str

    def helm(self, *arguments: str, fails: bool = False) -> str:
        """Its output; AssertionError with what it and the parts said when it fails, or succeeds if it should not."""
        command = [str(need("helm")), "--kubeconfig", str(self.api.kubeconfig), "--namespace", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert (done.returncode != 0) is fails, f"{done.stdout}{done.stderr}{self.picture()}"
        return done.stdout

    def apply(self, command: str, *values: str) -> str:
        """`helm install` or `helm upgrade`, until every pod is ready."""
        chosen = [*VALUES, f"storage.modelsPath={self.folder.path / 'models'}", *values]
        words = [word for value in chosen for word in ("--set", value)]
        return self.helm(
            command, "greenthread", str(CHART), "--create-namespace", *words, "--wait", "--timeout", "120s"
        )

    def wait(self, *what: str) -> None:
        """`kubectl wait`; AssertionError with what the parts said when it comes to nothing."""
        try:
            self.api.kubectl("wait", *what, "-n", NAMESPACE, "--timeout=50s")
        except subprocess.CalledProcessError as error:
            raise AssertionError(error.stderr + self.picture()) from None

    def picture(self) -> str:
        """The pods, and the last words of each container."""
        logs = sorted(self.folder.logs.glob("*/*/*.log"))
        said = [f"{log.relative_to(self.folder.logs)}:\n{log.read_text(errors='replace')[-800:]}" for log in logs]
        return "\n".join(["\n", self.api.kubectl("get", "pods", "-A", "-o", "wide"), *said])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    try:
        need("helm")
        bed = RealApi(CONTROLLERS)
        gateway_api = need_crds("gateway-api")
    except Missing as missing:
        skip_or_fail(missing)
    folder = Folder(tmp_path_factory.mktemp("node"))
    group = ProcessGroup()
    with bed as api, _names(api) as proxy:
        api.kubectl("apply", "-f", "-", stdin=json.dumps(RUNTIME_CLASS))
        for file in gateway_api:
            api.kubectl("apply", "--server-side", "-f", str(file))
        folder.kubeconfig.write_bytes(api.kubeconfig.read_bytes())
        ledgers.create(folder.ledger, 1, MEMORY).close()
        found = images(folder, f"http://127.0.0.1:{proxy.server_port}")
        listing = folder.path / "images.json"
        listing.write_text(json.dumps({glob: asdict(image) for glob, image in found.items()}))
        command = [sys.executable, "-m", "localcluster.supervisor", "--node", NODE, "--backoff", "0.2", "--accounts"]
        command += ["--kubeconfig", str(folder.kubeconfig), "--state", str(folder.pods), "--logs", str(folder.logs)]
        group.start(NODE, [*command, "--images", str(listing), "--address", own_address()], folder.path / "log")
        try:
            yield Release(api, folder, f"http://127.0.0.1:{proxy.server_port}")
        finally:
            supervisor = group.running[NODE]
            supervisor.send_signal(signal.SIGTERM)  # it ends its pods, which are in sessions of their own
            supervisor.wait(30)
            group.stop()


def images(folder: Folder, proxy: str) -> dict[str, Image]:
    """The chart's images as programs of this checkout."""
    ours = parts.images(folder, parts.Simulation(1, MEMORY))
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    here = {"SIDECAR_HOST": own_address(), "http_proxy": proxy, **python}
    named = {"controller": "controller", "agent": "agent", "apiserver": "gateway", "sidecar": "sidecar"}
    found = {f"{REGISTRY}/{name}:*": ours[f"greenthread/{part}"] for name, part in named.items()}
    found = {name: replace(image, env={**image.env, **here}) for name, image in found.items()}
    return found | {"*": replace(ours["*"], env={**ours["*"].env, **FAST_ENGINE})}


class _names(http.server.ThreadingHTTPServer):
    """`http://<service>.<namespace>.svc`, from outside: what cluster DNS and kube-proxy do. Answers are read whole."""

    def __init__(self, api: RealApi) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                service, namespace, domain = (url.hostname or "").split(".")
                assert domain == "svc"
                address = backend(api, namespace, service, url.port or 80)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                keep = {"Content-Type": self.headers["Content-Type"]} if body else {}
                there = httpx.request(self.command, f"{address}{url.path}", content=body, headers=keep, timeout=60)
                self.send_response(there.status_code)
                self.send_header("Content-Length", str(len(there.content)))
                self.end_headers()
                self.wfile.write(there.content)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def backend(api: RealApi, namespace: str, service: str, port: int) -> str:
    """URL of a ready endpoint of a Service's port."""
    of = json.loads(api.kubectl("get", "service", service, "-n", namespace, "-o", "json"))
    [name] = [found["name"] for found in of["spec"]["ports"] if found["port"] == port]
    label = f"kubernetes.io/service-name={service}"
    for piece in json.loads(api.kubectl("get", "endpointslices", "-n", namespace, "-l", label, "-o", "json"))["items"]:
        [number] = [found["port"] for found in piece["ports"] if found["name"] == name]
        for endpoint in piece["endpoints"]:
            if endpoint["conditions"]["ready"]:
                return f"http://{endpoint['addresses'][0]}:{number}"
    raise AssertionError(f"{service} has no ready endpoint")


def test_a_cluster_is_installed_asked_upgraded_and_cleared(release: Release) -> None:
    api = release.api
    release.apply("install")
    ready = api.kubectl("get", "deployments,daemonsets", "-n", NAMESPACE, "-o", "jsonpath={range .items[*]}"
                        "{.metadata.name}:{.status.readyReplicas}{.status.numberReady} {end}")  # fmt: skip
    assert ready.split() == ["greenthread-apiserver:2", "greenthread-controller:2", "greenthread-agent:1"]
    assert api.kubectl("get", "gpus", "-n", NAMESPACE, "-o", "name").split() == [f"gpu.greenthread.ai/{NODE}-0"]

    assert "Phase:          Succeeded" in release.helm("test", "greenthread", "--timeout", "60s")

    assert httpx.get(f"{backend(api, NAMESPACE, 'greenthread-apiserver', 80)}/metrics").status_code == 404
    for service, prefix in METRICS.items():
        assert f"\n{prefix}_" in httpx.get(f"{backend(api, NAMESPACE, service, 9090)}/metrics").text

    api.kubectl("apply", "-f", "-", stdin=json.dumps(MODEL))
    release.wait("--for=condition=Ready", "model/llama")
    url = api.kubectl("get", "model", "llama", "-n", NAMESPACE, "-o", "jsonpath={.status.url}")
    assert url == f"http://greenthread-apiserver.{NAMESPACE}.svc/llama/v1"
    assert _says(release, url)
    release.wait("--for=create", "httproute/llama")
    route = json.loads(api.kubectl("get", "httproute", "llama", "-n", NAMESPACE, "-o", "json"))["spec"]
    assert [(ref["kind"], ref["name"]) for ref in route["parentRefs"]] == [("Gateway", "greenthread")]
    paths = [match["path"]["value"] for rule in route["rules"] for match in rule["matches"]]
    assert paths == [f"/{NAMESPACE}/llama/v1", f"/{NAMESPACE}/llama/v2", "/llama/v1", "/llama/v2"]

    # the API server would reach a pod at its container port, which on one machine it does not listen on
    address = backend(api, NAMESPACE, "greenthread-apiserver", 80)
    doctor = [sys.executable, "-m", "kubectl_greenthread.main", "doctor", "-n", NAMESPACE, "--url", address]
    told = subprocess.run(doctor, env={**os.environ, "KUBECONFIG": str(api.kubeconfig)}, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr

    api.kubectl("scale", "deployment/greenthread-apiserver", "-n", NAMESPACE, "--replicas=0")
    gone = "app.kubernetes.io/component=gateway"
    release.wait("--for=delete", "pods", "-l", gone)
    release.helm("test", "greenthread", "--timeout", "60s", fails=True)

    before = _pods(api)
    release.apply("upgrade", "apiserver.holdTimeout=60s", "sidecar.heartbeat=5s")
    assert not {name for name in before if "apiserver" in name} & _pods(api), "new gateways"
    release.helm("test", "greenthread", "--timeout", "60s")
    assert {name for name in before if "agent" in name} <= _pods(api), "the agent's pod is as it was"
    assert _says(release, url)

    api.kubectl("delete", "models", "--all", "-A", "--timeout=60s")
    release.helm("uninstall", "greenthread", "--wait", "--timeout", "60s")
    release.wait("--for=delete", "pods", "--all")


def _says(release: Release, url: str) -> str:
    body = {"model": "llama", "messages": [{"role": "user", "content": "Hello!"}]}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60, proxy=release.proxy)
    assert answer.status_code == 200, answer.text + release.picture()
    return str(answer.json()["choices"][0]["message"]["content"])


def _pods(api: RealApi) -> set[str]:
    return set(api.kubectl("get", "pods", "-n", NAMESPACE, "-o", "name").split())
