"""A sidecar may change only its own entries of a GPU, an agent only its node's: by the API server's own word."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.conftest import NAMESPACE, account, make_gpu, patch_gpu
from tests.testbeds.admin import Admin
from tests.testbeds.kube import RealApi

pytestmark = pytest.mark.real

ME, OTHER = "llama-0-11111111", "qwen-0-22222222"
MINE = {"namespace": "team-a", "podName": ME, "modelName": "llama", "state": "sleeping"}
THEIRS = {
    "namespace": "team-b",
    "podName": OTHER,
    "modelName": "qwen",
    "state": "serving",
    "reservedMemoryBytes": 30 << 30,
}
INTENT = {
    "namespace": "team-b",
    "podName": "kimi-0-33333333",
    "modelName": "kimi",
    "requestedMemoryBytes": 9 << 30,
    "since": "2026-11-22T10:00:00Z",
    "victims": [f"team-a/{ME}", f"team-b/{OTHER}"],
}
MY_INTENT = {**INTENT, "namespace": "team-a", "podName": ME, "modelName": "llama", "victims": []}
LOCK = {"acquiredAt": "2026-11-22T10:00:00Z"}

Patch = Any


def op(kind: str, path: str, value: Any = None) -> dict[str, Any]:
    return {"op": kind, "path": f"/status{path}", **({} if kind == "remove" else {"value": value})}


@pytest.fixture(scope="module")
def sidecar(installed: RealApi) -> Admin:
    return account(installed, "team-a", "greenthread-sidecar", ME, "node-a")


@pytest.fixture
def gpu(installed: RealApi) -> str:
    """Occupants: me, asleep, and another, serving; a third pod waits and names both."""
    # a new occupant may not serve at once: the CRD wants it to claim first
    name = make_gpu(
        installed, "node-a", 0, occupants=[MINE, {**THEIRS, "state": "converting"}], preemptionIntents=[INTENT]
    )
    status, answer = patch_gpu(installed, name, [op("replace", "/occupants/1/state", "serving")])
    assert status == 200, answer
    return name


HONEST: dict[str, Patch] = {
    "claims and takes the lock in one write": [
        op("replace", "/occupants/0", {**MINE, "state": "waking", "reservedMemoryBytes": 9 << 30}),
        op("add", "/wakeLock", {**LOCK, "holder": f"team-a/{ME}"}),
    ],
    "boots": [op("replace", "/occupants/0", {**MINE, "state": "converting", "reservedMemoryBytes": 9 << 30})],
    "waits, with a victim": [op("add", "/preemptionIntents/-", {**MY_INTENT, "victims": [f"team-b/{OTHER}"]})],
    "strikes itself from another's victims": [
        op("test", "/preemptionIntents/0/podName", "kimi-0-33333333"),
        op("replace", "/preemptionIntents/0/victims", [f"team-b/{OTHER}"]),
    ],
    "leaves": [op("remove", "/occupants/0")],
    "writes when it was used": [op("add", "/occupants/0/lastAccessed", "2026-11-22T10:00:00Z")],
}

HOSTILE: dict[str, Patch] = {
    "puts another to sleep": [
        op("replace", "/occupants/1/state", "sleeping"),
        op("replace", "/occupants/1/reservedMemoryBytes", 0),
    ],
    "shrinks another's memory": [op("replace", "/occupants/1/reservedMemoryBytes", 1)],
    "unpins another": [op("add", "/occupants/1/popular", True)],
    "makes another look unused": [op("add", "/occupants/1/lastAccessed", "1999-01-01T00:00:00Z")],
    "removes another": [op("remove", "/occupants/1")],
    "replaces the list by its own entry": {"status": {"occupants": [MINE]}},
    "sets the list to null": {"status": {"occupants": None}},
    "adds an entry under another pod's name": [op("add", "/occupants/-", {**MINE, "podName": "ghost-0-44444444"})],
    "adds an entry of its name in another namespace": [op("add", "/occupants/-", {**MINE, "namespace": "team-b"})],
    "calls itself another Model": [op("replace", "/occupants/0/modelName", "qwen")],
    "removes another's intent": [op("remove", "/preemptionIntents/0")],
    "makes another's intent younger": [op("replace", "/preemptionIntents/0/since", "2026-11-22T11:00:00Z")],
    "makes another ask for more": [op("replace", "/preemptionIntents/0/requestedMemoryBytes", 80 << 30)],
    "strikes a fellow victim": [op("replace", "/preemptionIntents/0/victims", [f"team-a/{ME}"])],
    "adds a victim to another's intent": [op("add", "/preemptionIntents/0/victims/-", "team-b/innocent-0-55555555")],
    "sets another's intent behind real requests": [op("add", "/preemptionIntents/0/boot", True)],
    "forbids another to preempt": [op("add", "/preemptionIntents/0/preempts", False)],
    "forbids another to preempt while it strikes itself": [
        op("replace", "/preemptionIntents/0/victims", [f"team-b/{OTHER}"]),
        op("add", "/preemptionIntents/0/preempts", False),
    ],
    "replaces the whole status": [op("replace", "", {"node": "node-a", "index": 0, "occupants": [MINE]})],
    "removes the whole status": [op("remove", "")],
    "adds an intent of another": [op("add", "/preemptionIntents/-", {**MY_INTENT, "podName": "ghost-0-44444444"})],
    "sets all intents to null": {"status": {"preemptionIntents": None}},
    "takes the lock for another": [op("add", "/wakeLock", {**LOCK, "holder": f"team-b/{OTHER}"})],
    "takes the lock for its name in another namespace": [op("add", "/wakeLock", {**LOCK, "holder": f"team-b/{ME}"})],
    "grows the device": [op("replace", "/totalMemoryBytes", 800 << 30)],
    "hides foreign memory": [op("replace", "/foreignMemoryBytes", 5)],
    "says what is available": [op("add", "/availableMemoryBytes", 80 << 30)],
    "writes stats": [op("replace", "/stats/powerWatts", 1)],
    "removes stats": [op("remove", "/stats")],
    "adds a device field": [op("add", "/uuid", "GPU-0")],
    "moves the device to another node": [op("replace", "/node", "node-b")],
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_sidecar_may(gpu: str, sidecar: Admin, name: str) -> None:
    status, answer = patch_gpu(sidecar, gpu, HONEST[name])
    assert status == 200, answer


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sidecar_may_not(gpu: str, installed: RealApi, sidecar: Admin, name: str) -> None:
    before = installed.request("GET", f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/gpus/{gpu}")[1]["status"]
    status, answer = patch_gpu(sidecar, gpu, HOSTILE[name])
    # what the CRD forbids to everybody is 422
    assert status in (403, 422), answer
    after = installed.request("GET", f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/gpus/{gpu}")[1]["status"]
    assert after == before


def test_a_sidecar_may_not_pass_for_a_model_whose_name_begins_its_own(gpu: str, installed: RealApi) -> None:
    longer = "llama-big-0-77777777"
    them = account(installed, "team-a", "greenthread-sidecar", longer, "node-a")
    for model, expected in (("llama", 403), ("llama-big-0", 403), ("llama-big", 200)):
        entry = {"namespace": "team-a", "podName": longer, "modelName": model, "state": "sleeping"}
        assert patch_gpu(them, gpu, [op("add", "/occupants/-", entry)])[0] == expected, model


def test_the_policy_says_what_is_allowed(gpu: str, sidecar: Admin) -> None:
    _, answer = patch_gpu(sidecar, gpu, HOSTILE["shrinks another's memory"])
    assert f"team-a/{ME} may change only its own occupant" in answer["message"]


def test_a_lock_that_another_holds_may_not_be_broken(gpu: str, installed: RealApi, sidecar: Admin) -> None:
    patch_gpu(installed, gpu, [op("add", "/wakeLock", {**LOCK, "holder": f"team-b/{OTHER}"})])
    assert patch_gpu(sidecar, gpu, [op("remove", "/wakeLock")])[0] == 403
    stolen = [op("replace", "/wakeLock", {**LOCK, "holder": f"team-a/{ME}"})]
    assert patch_gpu(sidecar, gpu, stolen)[0] in (403, 422)
    refreshed = [op("replace", "/wakeLock/acquiredAt", "2026-11-22T12:00:00Z")]
    assert patch_gpu(sidecar, gpu, refreshed)[0] == 403


def test_it_may_release_its_own_lock(gpu: str, sidecar: Admin) -> None:
    assert patch_gpu(sidecar, gpu, HONEST["claims and takes the lock in one write"])[0] == 200
    done = [op("replace", "/occupants/0/state", "serving"), op("remove", "/wakeLock")]
    assert patch_gpu(sidecar, gpu, done)[0] == 200


def test_a_sidecar_writes_to_no_gpu_of_another_node(installed: RealApi, sidecar: Admin) -> None:
    far = make_gpu(installed, "node-b", 0)
    status, answer = patch_gpu(sidecar, far, [op("add", "/occupants/-", MINE)])
    assert status == 403
    assert "not on node node-a" in answer["message"]


def test_a_token_that_no_pod_mounted_writes_nothing(gpu: str, installed: RealApi) -> None:
    unbound = account(installed, "team-a", "greenthread-sidecar")
    status, answer = patch_gpu(unbound, gpu, [op("add", "/occupants/0/lastAccessed", "2026-11-22T10:00:00Z")])
    assert status == 403
    assert "only a pod may write here" in answer["message"]


def test_a_pod_of_the_same_name_in_another_namespace_is_another(gpu: str, installed: RealApi) -> None:
    twin = account(installed, "team-b", "greenthread-sidecar", ME, "node-a")
    assert patch_gpu(twin, gpu, [op("add", "/occupants/0/popular", True)])[0] == 403


def test_server_side_apply_gives_no_share_in_anothers_entry(gpu: str, sidecar: Admin) -> None:
    # identical values would pass every comparison and make it a co-owner
    head = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU", "metadata": {"name": gpu}}
    body = {**head, "status": {"occupants": [THEIRS]}}
    path = f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/gpus/{gpu}/status?fieldManager=evil"
    status, answer = sidecar.request("PATCH", path, body, content_type="application/apply-patch+yaml")
    assert status in (403, 422), answer


def test_a_sidecar_may_not_touch_the_object_beside_its_status(gpu: str, sidecar: Admin) -> None:
    assert patch_gpu(sidecar, gpu, {"metadata": {"labels": {"a": "b"}}}, subresource="")[0] == 403


@pytest.mark.parametrize(
    ("pod", "patch", "allowed"),
    [
        (ME, {"metadata": {"annotations": {"greenthread.ai/report": "{}"}}}, True),
        (ME, {"metadata": {"annotations": {"greenthread.ai/serving-memory-per-gpu": "12"}}}, True),
        (ME, {"metadata": {"annotations": {"greenthread.ai/gpus": "0,1"}}}, False),
        (ME, {"metadata": {"labels": {"app": "x"}}}, False),
        (ME, {"metadata": {"finalizers": ["greenthread.ai/x"]}}, False),
        (ME, {"metadata": {"ownerReferences": []}}, True),  # there is none: no change
        (ME, {"spec": {"containers": [{"name": "sidecar", "image": "evil"}]}}, False),
        ("other-0-66666666", {"metadata": {"annotations": {"greenthread.ai/report": "{}"}}}, False),
    ],
)
def test_of_pods_it_may_change_its_own_ones_report(
    installed: RealApi, sidecar: Admin, pod: str, patch: dict[str, Any], allowed: bool
) -> None:
    account(installed, "team-a", "greenthread-sidecar", "other-0-66666666", "node-a")
    path = f"/api/v1/namespaces/team-a/pods/{pod}"
    status, answer = sidecar.request("PATCH", path, patch, content_type="application/merge-patch+json")
    assert status == (200 if allowed else 403), answer


@pytest.fixture(scope="module")
def agent(installed: RealApi) -> Admin:
    return account(installed, NAMESPACE, "greenthread-agent", "greenthread-agent-x", "node-a")


AGENT_MAY: dict[str, Patch] = {
    "write the device and its stats": [
        op("replace", "/stats", {"usedMemoryBytes": 4, "freeMemoryBytes": 5}),
        op("add", "/availableMemoryBytes", 4),
        op("replace", "/foreignMemoryBytes", 4),
    ],
    "free what a pod that is gone holds": [
        op("replace", "/occupants/1/state", "sleeping"),
        op("add", "/occupants/1/reservedMemoryBytes", 0),
    ],
    "say that a sidecar is down": [op("add", "/occupants/1/sidecarDown", True)],
    "remove an entry that holds nothing": [op("remove", "/occupants/0")],
    "remove an intent": [op("remove", "/preemptionIntents/0")],
    "free the lock of a pod that is gone": [op("remove", "/wakeLock")],
}
AGENT_MAY_NOT: dict[str, Patch] = {
    "add an occupant": [op("add", "/occupants/-", {**MINE, "podName": "ghost-0-44444444"})],
    "wake one": [op("replace", "/occupants/0/state", "converting")],
    "take less than all of its memory": [op("replace", "/occupants/1/reservedMemoryBytes", 1)],
    "free one and pin it": [*AGENT_MAY["free what a pod that is gone holds"], op("add", "/occupants/1/popular", True)],
    "free one and name another Model": [
        *AGENT_MAY["free what a pod that is gone holds"],
        op("replace", "/occupants/1/modelName", "llama"),
    ],
    "pin one": [op("add", "/occupants/1/popular", True)],
    "pin one and call its sidecar down": [
        op("add", "/occupants/1/popular", True),
        op("add", "/occupants/1/sidecarDown", True),
    ],
    "add an intent": [op("add", "/preemptionIntents/-", MY_INTENT)],
    "change an intent": [op("replace", "/preemptionIntents/0/victims", [])],
    "take the wake lock": [op("add", "/wakeLock", {**LOCK, "holder": f"team-b/{OTHER}"})],
    "move the device": [op("replace", "/node", "node-b")],
}


@pytest.mark.parametrize("name", AGENT_MAY)
def test_an_agent_may(gpu: str, installed: RealApi, agent: Admin, name: str) -> None:
    if name == "free the lock of a pod that is gone":
        patch_gpu(installed, gpu, [op("add", "/wakeLock", {**LOCK, "holder": f"team-b/{OTHER}"})])
    status, answer = patch_gpu(agent, gpu, AGENT_MAY[name])
    assert status == 200, answer


@pytest.mark.parametrize("name", AGENT_MAY_NOT)
def test_an_agent_may_not(gpu: str, agent: Admin, name: str) -> None:
    status, answer = patch_gpu(agent, gpu, AGENT_MAY_NOT[name])
    assert status in (403, 422), answer


def test_an_agent_makes_gpus_of_its_own_node_only(installed: RealApi, agent: Admin) -> None:
    path = f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/gpus"
    kind = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU"}
    for name, expected in (("node-a-7", 201), ("node-b-7", 403), ("node-a-b-7", 403), ("node-a", 403)):
        status, answer = agent.request("POST", path, {**kind, "metadata": {"name": name}})
        assert status == expected, (name, answer)
    far = make_gpu(installed, "node-b", 1)
    assert patch_gpu(agent, far, [op("replace", "/foreignMemoryBytes", 4)])[0] == 403


def test_an_administrator_may_repair_anything(gpu: str, installed: RealApi) -> None:
    assert patch_gpu(installed, gpu, HOSTILE["puts another to sleep"])[0] == 200
