from __future__ import annotations

import itertools
import time

import pytest

from tests.conformance import widgets
from tests.conformance.client import Client, Object
from tests.conformance.crd_api import manifests, send
from tests.testbeds.admin import Admin

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def crd_api(api: Admin) -> Admin:
    """An API server, as administrator, that has our CRDs and the namespace `greenthread-system`."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "greenthread-system"}}
    assert send(api, "POST", "/api/v1/namespaces", namespace).status in (201, 409)
    for _, crd in manifests("crds"):
        assert send(api, "POST", CRDS, crd).status in (201, 409)
    for plural in ("models", "gpus"):
        deadline = time.monotonic() + 20
        while send(api, "GET", f"/apis/greenthread.ai/v1alpha1/{plural}").status != 200:
            assert time.monotonic() < deadline, f"{plural} are not served"
            time.sleep(0.05)
    return api


@pytest.fixture(scope="session")
def client(api: Admin) -> Client:
    """Requests as administrator, to a server that has the CRD of the Widgets."""
    client = Client(api)
    install(client, widgets.CRD)
    return client


def install(client: Client, crd: Object) -> None:
    """Creates a CRD and waits until its objects can be listed and created."""
    client.post(CRDS, crd).ok()
    group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
    for version in crd["spec"]["versions"]:
        if version["served"]:
            where = f"/apis/{group}/{version['name']}/{plural}"
            client.eventually(lambda where=where: client.get(where).status == 200, f"{where} is served")


@pytest.fixture
def ns(client: Client) -> str:
    """A namespace of its own for each test."""
    name = f"test-{next(_numbers)}"
    client.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).ok()
    return name


@pytest.fixture
def widgets_path(ns: str) -> str:
    """Where the Widgets of this test's namespace are."""
    return f"{widgets.BASE}/namespaces/{ns}/widgets"
