from __future__ import annotations

import time

import pytest

from tests.conformance.crd_api import Api, manifests, send

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def crd_api(api: Api) -> Api:
    """The API server, as administrator, with our CRDs and the namespace `greenthread-system`."""
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
