"""Every write of the claim protocol is admitted, crash repair included: no honest way out of any state is refused.

The writes are the JSON patches that sidecars and agents send: each tests what it decided on, then changes its own.
"""

from __future__ import annotations

import pytest

from tests.conformance.crd_api import GIB, Answer, Api, Object
from tests.conformance.gpus import NOW, Gpu, device, intent, lock, occupant

STATES = ("sleeping", "waking", "converting", "serving", "deactivating")


def own(gpu: Gpu, pod: str, state: str, gib: int = 0, **more: object) -> list[Object]:
    """Operations that test and rewrite one's own occupant."""
    at = f"/occupants/{gpu.index(pod)}"
    test = {"op": "test", "path": f"{at}/podName", "value": pod}
    return [test, {"op": "replace", "path": at, "value": occupant(pod, state, gib, **more)}]


def drop_intent(gpu: Gpu, pod: str) -> list[Object]:
    at = f"/preemptionIntents/{[entry['podName'] for entry in gpu.status['preemptionIntents']].index(pod)}"
    return [{"op": "test", "path": f"{at}/podName", "value": pod}, {"op": "remove", "path": at}]


def take_lock(pod: str) -> list[Object]:
    free = {"op": "test", "path": "/wakeLock", "value": None}
    return [free, {"op": "add", "path": "/wakeLock", "value": lock(pod)}]


def release_lock(pod: str) -> list[Object]:
    mine = {"op": "test", "path": "/wakeLock/holder", "value": f"default/{pod}"}
    return [mine, {"op": "remove", "path": "/wakeLock"}]


def add(to: str, entry: Object) -> Object:
    return {"op": "add", "path": f"/{to}/-", "value": entry}


def test_the_life_of_two_models_on_one_gpu(crd_api: Api) -> None:
    gpu = Gpu(crd_api)
    # The agent makes the device; status whole, since nothing can be added below an absent one.
    gpu.merge(device()).ok()
    # The sidecars of a and b come; a boots under a claim, is measured, and sleeps.
    gpu.patch(add("occupants", occupant("a"))).ok()
    gpu.patch(add("occupants", occupant("b"))).ok()
    gpu.patch(add("preemptionIntents", {**intent("a", 72), "boot": True})).ok()
    gpu.patch(*own(gpu, "a", "converting", 72), *drop_intent(gpu, "a")).ok()
    gpu.patch(*own(gpu, "a", "serving", 73, becameServingAt=NOW)).ok()
    gpu.patch(*own(gpu, "a", "deactivating", 73)).ok()
    gpu.patch(*own(gpu, "a", "sleeping")).ok()
    # A request wakes a: two writes.
    gpu.patch(*own(gpu, "a", "waking", 73), *take_lock("a")).ok()
    gpu.patch(*own(gpu, "a", "serving", 73, becameServingAt=NOW, protectedUntil=NOW), *release_lock("a")).ok()
    # b waits, names a, gets the room that a leaves; a strikes its name from the intent in the write that frees it.
    assert gpu.patch(*own(gpu, "b", "waking", 60), *take_lock("b")).status == 422
    gpu.patch(add("preemptionIntents", intent("b", 60))).ok()
    gpu.patch({"op": "replace", "path": "/preemptionIntents/0/victims", "value": ["default/a"]}).ok()
    gpu.patch(*own(gpu, "a", "deactivating", 73)).ok()
    struck = {"op": "replace", "path": "/preemptionIntents/0/victims", "value": []}
    gpu.patch(*own(gpu, "a", "sleeping"), struck).ok()
    gpu.patch(*own(gpu, "b", "waking", 60), *drop_intent(gpu, "b"), *take_lock("b")).ok()
    gpu.patch(*own(gpu, "b", "serving", 60, becameServingAt=NOW), *release_lock("b")).ok()
    assert [(entry["state"], entry["reservedMemoryBytes"]) for entry in gpu.status["occupants"]] == [
        ("sleeping", 0),
        ("serving", 60 * GIB),
    ]
    assert "wakeLock" not in gpu.status
    assert gpu.status["preemptionIntents"] == []


def test_a_gang_turns_its_claims_back_into_intents(crd_api: Api) -> None:
    first = Gpu(crd_api, device(occupant("a")))
    second = Gpu(crd_api, device(occupant("a"), occupant("x", "serving", 50)))
    for gpu in (first, second):
        gpu.patch(add("preemptionIntents", intent("a", 40))).ok()
    first.patch(*own(first, "a", "waking", 40), *drop_intent(first, "a"), *take_lock("a")).ok()
    refused = second.patch(*own(second, "a", "waking", 40), *drop_intent(second, "a"), *take_lock("a"))
    assert refused.status == 422
    first.patch(*own(first, "a", "sleeping"), add("preemptionIntents", intent("a", 40)), *release_lock("a")).ok()
    assert [entry["since"] for gpu in (first, second) for entry in gpu.status["preemptionIntents"]] == [NOW, NOW]


def in_state(api: Api, state: str) -> Gpu:
    """A GPU on which pod a was in `state` when somebody died; b is beside it and waits."""
    held = 0 if state == "sleeping" else 40
    more = {"wakeLock": lock("a")} if state == "waking" else {}
    waiting = [intent("b", 60, "a"), intent("a", 40)]
    return Gpu(
        api, device(occupant("a", state, held, becameServingAt=NOW), occupant("b"), preemptionIntents=waiting, **more)
    )


def repair(gpu: Gpu, state: str, gib: int) -> Answer:
    """What a restarted sidecar writes, once its engine has come to rest: its occupant, and the lock if it held it."""
    lock_too = release_lock("a") if "wakeLock" in gpu.status else []
    return gpu.patch(*own(gpu, "a", state, gib, becameServingAt=NOW), *lock_too)


@pytest.mark.parametrize("state", STATES)
def test_a_restarted_sidecar_whose_engine_rests_asleep_repairs_in_one_write(crd_api: Api, state: str) -> None:
    gpu = in_state(crd_api, state)
    gpu.patch(*drop_intent(gpu, "a")).ok()
    repair(gpu, "sleeping", 0).ok()
    assert "wakeLock" not in gpu.status
    assert gpu.occupant("a")["becameServingAt"] == NOW


@pytest.mark.parametrize("state", ["waking", "converting", "serving"])
def test_a_restarted_sidecar_whose_engine_rests_awake_repairs_in_one_write(crd_api: Api, state: str) -> None:
    gpu = in_state(crd_api, state)
    gpu.patch(*drop_intent(gpu, "a")).ok()
    repair(gpu, "serving", 40).ok()
    assert "wakeLock" not in gpu.status


@pytest.mark.parametrize("state", ["waking", "converting", "serving", "deactivating"])
def test_who_gives_up_keeps_its_reservation_until_the_memory_is_free(crd_api: Api, state: str) -> None:
    gpu = in_state(crd_api, state)
    repair(gpu, "deactivating", 40).ok()
    assert gpu.occupant("a")["reservedMemoryBytes"] == 40 * GIB
    assert "wakeLock" not in gpu.status
    repair(gpu, "sleeping", 0).ok()


@pytest.mark.parametrize("state", ["waking", "converting", "serving", "deactivating"])
def test_a_crashed_engine_restarts_under_a_claim(crd_api: Api, state: str) -> None:
    gpu = in_state(crd_api, state)
    repair(gpu, "sleeping", 0).ok()
    gpu.patch(*own(gpu, "a", "converting", 40)).ok()


@pytest.mark.parametrize("state", STATES)
def test_the_agent_cleans_after_a_dead_pod_free_first_then_gone(crd_api: Api, state: str) -> None:
    gpu = in_state(crd_api, state)
    version = gpu.read()["metadata"]["resourceVersion"]
    lock_too = release_lock("a") if state == "waking" else []
    condition = {"op": "test", "path": "/node", "value": "node-a"}
    gpu.patch(condition, *own(gpu, "a", "sleeping"), *drop_intent(gpu, "a"), *lock_too).ok()
    assert gpu.read()["metadata"]["resourceVersion"] != version
    gpu.patch({"op": "remove", "path": f"/occupants/{gpu.index('a')}"}).ok()
    struck = {"op": "replace", "path": "/preemptionIntents/0/victims", "value": []}
    gpu.patch(struck).ok()
    left = gpu.status
    assert [entry["podName"] for entry in left["occupants"]] == ["b"]
    assert [entry["podName"] for entry in left["preemptionIntents"]] == ["b"]
    assert "wakeLock" not in left


@pytest.mark.parametrize("state", STATES)
def test_every_step_is_still_possible_when_other_programs_took_what_is_reserved(crd_api: Api, state: str) -> None:
    gpu = in_state(crd_api, state)
    gpu.merge({"foreignMemoryBytes": 70 * GIB, "availableMemoryBytes": 0}).ok()
    repair(gpu, "sleeping", 0).ok()
    gpu.patch(*drop_intent(gpu, "a")).ok()
    gpu.merge({"foreignMemoryBytes": 0}).ok()
    gpu.patch(*own(gpu, "a", "converting", 40)).ok()
