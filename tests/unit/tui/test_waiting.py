"""Who waits for memory, in the order of service, and who must leave for whom."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from greenthread.clock import format_time
from greenthread.gpu import PodRef
from greenthread.outlook import next_step
from greenthread.snapshot import Snapshot, build
from tui.waiting import before, chain, leaves_in_order, queue, wanted_gpus

GIB = 2**30
NOW = datetime(2026, 11, 22, 14, 3, 22, tzinfo=UTC)


def ago(seconds: float) -> str:
    return format_time(NOW - timedelta(seconds=seconds))


def model(name: str, need: float, **fairness: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "prod"},
        "spec": {"modelName": f"test/{name}", "fairness": fairness},
        "status": {"servingMemoryPerGPU": int(need * GIB)},
    }


def pod(name: str, gpus: str, state: str, since: float) -> dict[str, Any]:
    report = json.dumps({"state": state, "since": ago(since), "bootReady": True})
    annotations = {"greenthread.ai/gpus": gpus, "greenthread.ai/report": report}
    labels = {"greenthread.ai/model": name}
    return {
        "metadata": {"name": f"{name}-0", "namespace": "prod", "labels": labels, "annotations": annotations},
        "spec": {"nodeName": "node-a"},
    }


def occupant(name: str, state: str, gib: float = 0, **fields: Any) -> dict[str, Any]:
    return {"namespace": "prod", "podName": f"{name}-0", "modelName": name, "state": state,
            "reservedMemoryBytes": int(gib * GIB), **fields}  # fmt: skip


def intent(name: str, gib: float, since: float, *victims: str) -> dict[str, Any]:
    return {"namespace": "prod", "podName": f"{name}-0", "modelName": name, "requestedMemoryBytes": int(gib * GIB),
            "since": ago(since), "victims": [f"prod/{victim}-0" for victim in victims]}  # fmt: skip


def gpu(index: int, occupants: list[dict[str, Any]], intents: list[dict[str, Any]]) -> dict[str, Any]:
    status = {"node": "node-a", "index": index, "totalMemoryBytes": 96 * GIB, "occupants": occupants,
              "preemptionIntents": intents}  # fmt: skip
    return {"metadata": {"name": f"node-a-{index}", "namespace": "system"}, "status": status}


def scene(**llama: Any) -> Snapshot:
    """qwen asked first and named llama, which drains; mistral asked later; the 70b cannot fit beside a pinned one."""
    first = [
        occupant("llama", "deactivating", 62, becameServingAt=ago(20), **llama),
        occupant("kimi", "serving", 9.2, becameServingAt=ago(7), protectedUntil=ago(-8)),
        occupant("old", "serving", 5, becameServingAt=ago(300), lastAccessed=ago(200)),
        *(occupant(name, "sleeping") for name in ("qwen", "mistral", "big")),
    ]
    second = [occupant("pinned", "serving", 88, popular=True), occupant("big", "sleeping")]
    waits = [intent("mistral", 30, 3.2), intent("qwen", 62, 9.9, "llama")]
    models = [
        model("llama", 62), model("kimi", 9.2), model("old", 5), model("qwen", 62), model("mistral", 30),
        model("pinned", 88, popular=True), model("big", 60),
    ]  # fmt: skip
    pods = [
        pod("llama", "0", "deactivating", 0.1), pod("kimi", "0", "serving", 7), pod("old", "0", "serving", 300),
        pod("qwen", "0", "pending", 9.9), pod("mistral", "0", "pending", 3.2), pod("pinned", "1", "serving", 500),
        pod("big", "0,1", "pending", 4.3),
    ]  # fmt: skip
    return build(models, [gpu(0, first, waits), gpu(1, second, [])], pods, NOW)


def test_who_waits_comes_in_the_order_of_service_and_who_cannot_fit_last() -> None:
    waiters = queue(scene())
    assert [waiter.model for waiter in waiters] == ["qwen", "mistral", "big"]
    assert [waiter.fits_never for waiter in waiters] == [False, False, True]
    assert [occupant.model for occupant in waiters[0].named()] == ["llama"]
    assert before(waiters[1], waiters) == [waiters[0]]
    assert before(waiters[0], waiters) == []
    assert wanted_gpus(waiters) == {"node-a-0", "node-a-1"}


def test_what_is_on_its_way_is_for_who_asked_before() -> None:
    qwen, mistral, _ = queue(scene())
    free = 96 - 62 - 9.2 - 5  # 19.8
    assert round(qwen.short / GIB, 1) == round(62 - free, 1)
    # once qwen has llama's 62G, 19.8G are left of the 30 that mistral needs
    assert round(mistral.room / GIB, 1) == round(free, 1)
    assert round(mistral.short / GIB, 1) == round(30 - free, 1)


def test_the_chain_ends_where_there_is_room() -> None:
    qwen, mistral, big = queue(scene())
    assert [(link.occupant.model, link.enough) for link in chain(qwen, NOW)] == [("llama", True)]
    # not llama, which leaves for qwen; the least used first, and kimi when its minRuntime is over
    assert [(link.occupant.model, link.enough) for link in chain(mistral, NOW)] == [("old", False), ("kimi", True)]
    assert round(chain(mistral, NOW)[-1].room / GIB, 1) == round(96 - 62 - 0.0, 1)
    assert not any(link.enough for link in chain(big, NOW))


def test_who_goes_first() -> None:
    snapshot = scene()
    order = [occupant.model for occupant in leaves_in_order(snapshot.gpus[0].gpu, NOW)]
    assert order == ["llama", "old", "kimi"]
    assert [occupant.model for occupant in leaves_in_order(snapshot.gpus[1].gpu, NOW)] == ["pinned"]


def test_who_has_no_sidecar_makes_no_room() -> None:
    snapshot = scene(sidecarDown=True)
    assert [occupant.model for occupant in leaves_in_order(snapshot.gpus[0].gpu, NOW)] == ["old", "kimi", "llama"]
    links = chain(queue(snapshot)[0], NOW)
    assert [(link.occupant.model, link.enough) for link in links] == [("old", False), ("kimi", False), ("llama", False)]


def test_a_waiter_whose_model_may_not_be_read_is_still_in_the_queue() -> None:
    snapshot = build([], [gpu(0, [occupant("llama", "serving", 90)], [intent("secret", 40, 2)])], [], NOW)
    (waiter,) = queue(snapshot)
    assert waiter.pod == PodRef("prod", "secret-0")
    assert waiter.max_wait is None
    assert round(waiter.short / GIB) == 34
    assert chain(waiter, NOW) == []


def test_what_comes_next_counts_what_is_on_its_way_only_for_whom_it_is() -> None:
    snapshot = scene()
    qwen, mistral = snapshot.model("prod", "qwen"), snapshot.model("prod", "mistral")
    assert qwen is not None
    assert mistral is not None
    assert next_step(qwen, snapshot) == (None, "wakes as soon as llama has made room")
    # at the end of kimi's minRuntime, since llama's memory is for qwen
    moment, text = next_step(mistral, snapshot)
    assert moment == NOW + timedelta(seconds=8)
    assert text == "asks old, kimi to make room, unless there is room before"
