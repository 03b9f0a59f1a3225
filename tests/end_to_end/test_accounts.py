"""On a real API server each part speaks as the account that the chart gives it, and its rights end there.

That no part lacks a right is checked after each scenario: none of its requests was forbidden.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.errors import Forbidden, Unauthorized
from greenthread.kube.resources import GPUS, MODELS, PODS, Resource
from greenthread.names import LABEL_MODEL
from greenthread.values import replace
from localcluster.parts import LABEL_PART
from tests.end_to_end.cluster import ACCOUNT_OF, ACCOUNTS, NAMESPACE, ONE, Cluster, Object

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

REVIEWS = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False)
EXTRA = "authentication.kubernetes.io"


@pytest.fixture
def real(cluster: Cluster) -> Cluster:
    if not cluster.real:
        pytest.skip("the embedded API has no accounts")
    return cluster


def speaks_as(cluster: Cluster, pod: Object) -> Client:
    """A client with the pod's own credentials."""
    return Client(load_config(cluster.kubeconfig_of(pod)))


def test_every_part_is_its_own_account_bound_to_its_pod(real: Cluster) -> None:
    pods = real.view.objects(PODS)
    assert len(pods) >= 10
    for pod in pods:
        labels = pod["metadata"]["labels"]
        name = "greenthread-sidecar" if LABEL_MODEL in labels else ACCOUNT_OF[labels[LABEL_PART]]
        who = speaks_as(real, pod).create(REVIEWS, {})["status"]["userInfo"]
        assert who["username"] == f"{ACCOUNTS}{NAMESPACE}:{name}"
        assert who["extra"][f"{EXTRA}/pod-name"] == [pod["metadata"]["name"]]
        assert who["extra"][f"{EXTRA}/node-name"] == [pod["spec"]["nodeName"]]


#: Program → account.
PROGRAMS = {
    "controller": "greenthread-controller",
    "controller.agent": "greenthread-agent",
    "sidecar": "greenthread-sidecar",
    "gateway": "greenthread-apiserver",
}


def test_parts_ask_as_their_accounts_only(real: Cluster) -> None:
    def users() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for event in real.audited():
            program = event["userAgent"].removeprefix("greenthread (").removesuffix(")")
            if program in PROGRAMS:
                found.setdefault(program, set()).add(event["user"]["username"])
        return found

    real.wake("ada")
    real.until(lambda: users().keys() >= {"controller", "controller.agent", "sidecar"}, "the parts ask for something")
    seen = users()
    assert seen == {program: {f"{ACCOUNTS}{NAMESPACE}:{PROGRAMS[program]}"} for program in seen}


def test_a_sidecar_cannot_put_another_model_to_sleep_by_its_entry(real: Cluster) -> None:
    real.wake("ada")
    [bob] = real.pods_of("bob")
    [gpu] = real.gpus(ONE)
    number = next(n for n, occupant in enumerate(gpu.occupants) if occupant.model == "ada")
    patch = [{"op": "replace", "path": f"/status/occupants/{number}/state", "value": "deactivating"}]
    hostile = speaks_as(real, bob)
    with pytest.raises(Forbidden, match="may change only its own occupant"):
        hostile.patch(GPUS, gpu.name, patch, NAMESPACE, subresource="status")
    with pytest.raises(Forbidden):
        hostile.patch(MODELS, "ada", {"spec": {"replicas": 0}}, NAMESPACE)
    real.begin()  # these were no part's requests


def test_a_pods_token_ends_with_the_pod(real: Cluster) -> None:
    real.apply("brief", gpuMemoryUtilization="0.10")
    real.ready("brief")
    [pod] = real.pods_of("brief")
    config = load_config(real.kubeconfig_of(pod))
    stolen = Client(replace(config, token_file="", token=Path(config.token_file).read_text()))
    assert stolen.list(MODELS, NAMESPACE).items
    real.delete("brief")
    real.until(lambda: not Path(config.token_file).exists(), "its token is removed")

    def refused() -> bool:
        try:
            stolen.list(MODELS, NAMESPACE)
        except Unauthorized:
            return True
        return False

    real.until(refused, "the token is worth nothing, once the API server's memory of 10 s is over")
