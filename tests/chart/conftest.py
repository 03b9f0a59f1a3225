"""The chart, rendered by the real Helm and applied to a real kube-apiserver, and who speaks to it."""

from __future__ import annotations

import copy
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbeds.admin import Admin
from tests.testbeds.kube import RealApi
from tests.testbeds.programs import Missing, kubernetes_version, need, need_crds, skip_or_fail

CHART = Path(__file__).parents[2] / "manifests" / "charts" / "greenthread"
NAMESPACE = "greenthread-system"
GATEWAY_API = "gateway.networking.k8s.io/v1"
#: Of the controller manager: collects roles into Kubernetes' view, edit and admin.
AGGREGATION = "clusterrole-aggregation-controller"


def render(*values: str, namespace: str = NAMESPACE, apis: tuple[str, ...] = ()) -> str:
    """The chart's objects as YAML; `values`: as of `helm --set`. CalledProcessError, with `stderr`, when it refuses."""
    command = [str(need("helm")), "template", "greenthread", str(CHART), "--namespace", namespace]
    command += ["--kube-version", kubernetes_version()]
    command += [word for value in values for word in ("--set", value)]
    command += [word for api in apis for word in ("--api-versions", api)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="package")
def real_api() -> Iterator[RealApi]:
    try:
        bed = RealApi(AGGREGATION)
    except Missing as missing:
        skip_or_fail(missing)
    with bed as api:
        yield api


@pytest.fixture(scope="package")
def installed(real_api: RealApi) -> RealApi:
    """An API server with the chart's objects, for the namespaces greenthread-system, team-a and team-b."""
    try:
        objects = render("modelNamespaces={team-a,team-b}", "gateway.enabled=true", apis=(GATEWAY_API,))
        gateway_api = need_crds("gateway-api")
    except Missing as missing:
        skip_or_fail(missing)
    for file in gateway_api:
        real_api.kubectl("apply", "--server-side", "-f", str(file))
    for namespace in (NAMESPACE, "team-a", "team-b"):
        real_api.kubectl("create", "namespace", namespace)
    apply(real_api, objects)
    for node in ("node-a", "node-b"):
        real_api.request("POST", "/api/v1/nodes", {"metadata": {"name": node}})
    _until_policies_work(real_api)
    return real_api


def apply(api: Admin, objects: str) -> None:
    """As an administrator would; CRDs first, since what is of their kinds needs them."""
    api.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=objects)


def _until_policies_work(api: RealApi) -> None:
    """A new policy works after about a second: a write that it must deny tells."""
    probe = account(api, NAMESPACE, "greenthread-sidecar")
    make_gpu(api, "node-a", 9)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status, _ = patch_gpu(probe, "node-a-9", [{"op": "add", "path": "/status/index", "value": 3}])
        if status == 403:
            return
        time.sleep(0.1)
    raise AssertionError("the policies do not work 20 s after they were made")


def account(api: RealApi, namespace: str, name: str, pod: str = "", node: str = "") -> Admin:
    """Speaks as a ServiceAccount; with `pod` and `node`: with the token that this pod's kubelet would mount."""
    request: dict[str, Any] = {"spec": {}}
    if pod:
        path = f"/api/v1/namespaces/{namespace}/pods"
        containers = [{"name": "sidecar", "image": "sidecar"}]
        spec = {"serviceAccountName": name, "nodeName": node, "containers": containers}
        status, made = api.request("POST", path, {"metadata": {"name": pod}, "spec": spec})
        if status == 409:
            status, made = api.request("GET", f"{path}/{pod}")
        assert status in (200, 201), made
        request["spec"]["boundObjectRef"] = {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": pod,
            "uid": made["metadata"]["uid"],
        }
    status, answer = api.request(
        "POST",
        f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", **request},
    )
    assert status == 201, answer
    them = copy.copy(api)
    them.token = answer["status"]["token"]
    return them


def make_gpu(api: Admin, node: str, index: int, **status: Any) -> str:
    """A GPU object of 80 GiB as the agent makes it; its name."""
    path = f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/gpus"
    name = f"{node}-{index}"
    meta = {"name": name, "namespace": NAMESPACE}
    head = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU", "metadata": meta}
    api.request("DELETE", f"{path}/{name}")
    code, answer = api.request("POST", path, head)
    assert code == 201, answer
    head["status"] = {"node": node, "index": index, "totalMemoryBytes": 80 << 30, "stats": {"powerWatts": 90}, **status}
    head["metadata"]["resourceVersion"] = answer["metadata"]["resourceVersion"]
    code, answer = api.request("PUT", f"{path}/{name}/status", head)
    assert code == 200, answer
    return name


def patch_gpu(who: Admin, name: str, patch: Any, subresource: str = "/status") -> tuple[int, Any]:
    """A JSON patch when it is a list, else a merge patch: status and answer."""
    kind = "json-patch" if isinstance(patch, list) else "merge-patch"
    path = f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/gpus/{name}{subresource}"
    return who.request("PATCH", path, patch, content_type=f"application/{kind}+json")
