"""Which Pod Security level each pod meets, by the API server's own admission."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.pods import make_pod
from controller.settings import PodSettings
from greenthread.model import Model
from greenthread.placement import Placement
from tests.chart.conftest import render
from tests.testbeds.kube import RealApi
from tests.testbeds.programs import Missing, need, skip_or_fail

pytestmark = pytest.mark.real

LEVELS = ("restricted", "baseline", "privileged")
#: Pod → the strictest level that it meets.
MEETS = {
    "greenthread-controller": "restricted",
    "greenthread-apiserver": "restricted",
    "greenthread-test": "restricted",
    "greenthread-agent": "privileged",  # the host's process numbers
    "model": "privileged",  # the host path of the model store
    "model-without-a-store": "baseline",  # what the engine's image wants to be and to do
    "sidecar": "restricted",  # of a model pod the containers that are ours
    "plugin": "restricted",
}
MODEL = Model.from_object({"metadata": {"name": "m", "namespace": "team-a"}, "spec": {"modelName": "org/m"}})


def pods() -> dict[str, Any]:
    """The spec of every pod that the chart and the controller make."""
    found = {}
    for doc in yaml.safe_load_all(render()):
        if doc and doc["kind"] in ("Deployment", "DaemonSet", "Pod"):
            found[doc["metadata"]["name"]] = doc["spec"] if doc["kind"] == "Pod" else doc["spec"]["template"]["spec"]
    for name, store in (("model", "/mnt/models"), ("model-without-a-store", "")):
        settings = PodSettings(models_path=store, runtime_class="nvidia", service_account="greenthread-sidecar")
        found[name] = make_pod(MODEL, settings, 0, Placement("node-a", (0,)))["spec"]
    settings = PodSettings(sleep_backend="greenthread", checkpoint=True)
    [plugin] = make_pod(MODEL, settings, 0, Placement("node-a", (0,)))["spec"]["initContainers"]
    volumes = [{"name": mount["name"], "emptyDir": {}} for mount in plugin["volumeMounts"]]
    found["plugin"] = {"containers": [plugin], "volumes": volumes}
    model = found["model"]
    run = [volume for volume in model["volumes"] if volume["name"] == "run"]
    found["sidecar"] = {
        **model,
        "containers": [c for c in model["containers"] if c["name"] == "sidecar"],
        "volumes": run,
    }
    return found


@pytest.fixture(scope="module")
def levels(real_api: RealApi) -> RealApi:
    try:
        need("helm")
    except Missing as missing:
        skip_or_fail(missing)
    for level in LEVELS:
        labels = {"pod-security.kubernetes.io/enforce": level}
        real_api.request("POST", "/api/v1/namespaces", {"metadata": {"name": f"level-{level}", "labels": labels}})
    nvidia = {"metadata": {"name": "nvidia"}, "handler": "nvidia"}
    real_api.request("POST", "/apis/node.k8s.io/v1/runtimeclasses", nvidia)
    return real_api


def test_every_pod_is_known_here() -> None:
    assert pods().keys() == MEETS.keys()


@pytest.mark.parametrize("name", MEETS)
def test_a_pod_meets_its_level_and_none_that_is_stricter(levels: RealApi, name: str) -> None:
    spec, admitted = pods()[name], []
    for level in LEVELS:
        path = f"/api/v1/namespaces/level-{level}/pods?dryRun=All"
        status, answer = levels.request("POST", path, {"metadata": {"name": "x"}, "spec": spec})
        if status == 201:
            admitted.append(level)
        else:
            assert f'violates PodSecurity "{level}:latest"' in answer["message"]
    assert admitted == list(LEVELS[LEVELS.index(MEETS[name]) :])
