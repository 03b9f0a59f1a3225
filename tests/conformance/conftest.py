from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conformance.crd_api import Api, manifests, send
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.kube import RealApi
from tests.testbeds.programs import Missing, skip_or_fail

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session", params=["embedded", pytest.param("real", marks=pytest.mark.real)])
def crd_api(request: pytest.FixtureRequest) -> Iterator[Api]:
    """An API server, as administrator, that has our CRDs and the namespace `greenthread-system`."""
    try:
        api = RealApi() if request.param == "real" else EmbeddedApi()
    except Missing as missing:
        skip_or_fail(missing)
    with api:
        prepare(api)
        yield api


def prepare(api: Api) -> None:
    """Installs the CRDs and waits until they are served."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "greenthread-system"}}
    send(api, "POST", "/api/v1/namespaces", namespace).ok()
    for _, crd in manifests("crds"):
        send(api, "POST", CRDS, crd).ok()
    for plural in ("models", "gpus"):
        deadline = time.monotonic() + 20
        while send(api, "GET", f"/apis/greenthread.ai/v1alpha1/{plural}").status != 200:
            assert time.monotonic() < deadline, f"{plural} are not served"
            time.sleep(0.05)
