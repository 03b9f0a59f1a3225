"""Why wakes waited, who made room by which rule, and what a request would meet: from records and GPU objects."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greenthread.clock import format_time
from greenthread.explain import accounts, if_asked, wakes
from greenthread.fairness import CannotFit, Fits, Preempt, Wait
from greenthread.snapshot import ModelRow, Snapshot, build

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
GIB = 2**30


def model(name: str, memory: int | None = 50, **spec: Any) -> dict[str, Any]:
    status = {"phase": "Ready", "servingMemoryPerGPU": memory * GIB} if memory else {"phase": "Staging"}
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"modelName": name, **spec}, "status": status}


def pod(name: str, **report: Any) -> dict[str, Any]:
    annotations = {"greenthread.ai/gpus": "0", "greenthread.ai/report": json.dumps({"state": "sleeping"} | report)}
    labels = {"greenthread.ai/model": name}
    return {"metadata": {"name": f"{name}-0", "namespace": "ns", "labels": labels, "annotations": annotations}}


def gpu(*occupants: dict[str, Any], **status: Any) -> dict[str, Any]:
    whole = {"node": "n", "index": 0, "totalMemoryBytes": 96 * GIB, "occupants": list(occupants), **status}
    return {"metadata": {"name": "n-0", "namespace": "s"}, "status": whole}


def on(name: str, state: str = "sleeping", gib: int = 0, **fields: Any) -> dict[str, Any]:
    return {"namespace": "ns", "podName": f"{name}-0", "modelName": name, "state": state,
            "reservedMemoryBytes": gib * GIB, **fields}  # fmt: skip


def at(seconds: float) -> str:
    return format_time(NOW + timedelta(seconds=seconds))


def snapshot(models: list[dict[str, Any]], pods: list[dict[str, Any]], *gpus: dict[str, Any]) -> Snapshot:
    return build(models, gpus, pods, NOW)


def row(found: Snapshot, name: str) -> ModelRow:
    row = found.model("ns", name)
    assert row is not None
    return row


def test_a_request_for_a_model_that_fits_wakes_it_at_once() -> None:
    found = snapshot([model("a")], [pod("a", lastWakeSeconds=0.54)], gpu(on("a")))
    asked = if_asked(row(found, "a"), found)
    assert isinstance(asked.decision, Fits)
    assert asked.text == "it would wake at once on n/0 (the last wake took 540ms): it needs 50.0G, 96.0G is free"


def test_a_request_that_must_preempt_says_whom_and_when() -> None:
    busy = on("b", "serving", 60, becameServingAt=at(-60), lastAccessed=at(-1))
    found = snapshot(
        [model("a"), model("b", 60)], [pod("a"), pod("b", state="serving", inFlight=2)], gpu(on("a"), busy)
    )
    asked = if_asked(row(found, "a"), found)
    assert isinstance(asked.decision, Wait)
    assert isinstance(asked.then, Preempt)
    assert asked.at == NOW + timedelta(seconds=5)
    assert asked.text.startswith("it would wait: it needs 50.0G on n/0, where 36.0G is free: 14.0G short; b (60.0G)")
    gives_way, preempts = asked.more
    assert gives_way == "b would give way by itself when it has been idle for 1s (2 in flight now)"
    assert preempts.startswith("after 5.0s, unless there is room before, b would be asked to make room")


def test_protection_puts_the_preemption_off() -> None:
    busy = on("b", "serving", 60, becameServingAt=at(-1), lastAccessed=at(-1), protectedUntil=at(9))
    rows = [model("a"), model("b", 60, fairness={"yieldAfter": "0s"})]
    found = snapshot(rows, [pod("a"), pod("b", state="serving")], gpu(on("a"), busy))
    asked = if_asked(row(found, "a"), found)
    assert isinstance(asked.then, Preempt)
    assert asked.at == NOW + timedelta(seconds=9)
    assert len(asked.more) == 1  # it never gives way by itself


def test_a_request_that_can_not_be_served_says_who_stays() -> None:
    pinned = on("b", "serving", 60, popular=True)
    rows = [model("a"), model("b", 60, fairness={"popular": True})]
    found = snapshot(rows, [pod("a"), pod("b", state="serving")], gpu(on("a"), pinned))
    asked = if_asked(row(found, "a"), found)
    assert isinstance(asked.decision, CannotFit)
    assert asked.text.startswith("it would not be served: it cannot fit:")
    assert "b (60.0G) is pinned" in asked.text


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        ((model("a", replicas=0), pod("a"), on("a")), "it would be refused (503): the Model has replicas: 0"),
        ((model("a", None), pod("a"), on("a")), "it would wait for the engine's first boot on n/0"),
        ((model("a"), pod("a"), on("a", "serving", 50)), "it would be answered at once: a serves on n/0"),
        ((model("a"), pod("a", state="waking", queued=3), on("a", "waking", 50)), "queued, behind 3 that wait already"),
        ((model("a"), pod("a"), on("a", "deactivating", 50)), "until a has slept, and then wake it again"),
    ],
)
def test_in_every_other_state(objects: tuple[dict[str, Any], ...], text: str) -> None:
    of_model, of_pod, occupant = objects
    found = snapshot([of_model], [of_pod], gpu(occupant))
    assert text in if_asked(row(found, "a"), found).text


def event(name: str, what: str, **record: Any) -> dict[str, Any]:
    whole = {"kind": "sleep", "at": at(0), "reason": "", "gpus": "n/0", "steps": {}, "total": 0.0} | record
    return {
        "metadata": {"namespace": "ns", "annotations": {"greenthread.ai/record": json.dumps(whole)}},
        "involvedObject": {"kind": "Model", "name": name, "namespace": "ns"}, "reason": what,
    }  # fmt: skip


def test_a_wake_is_told_with_those_that_made_room_and_their_rules() -> None:
    told = accounts(
        [
            event("a", "Woke", kind="wake", at=at(-20), total=12.0, steps={"queue": 10.0, "engine": 2.0},
                  victims=["v", "w"]),
            event("v", "Preempted", at=at(-15), total=0.2, reason="preempted for a", forModel="a", memory=30 * GIB,
                  steps={"drain": 0.1, "engine": 0.1}),
            event("y", "GaveWay", at=at(-18), total=0.1, reason="idle and gave way to a", forModel="a"),
            event("v", "Slept", at=at(-20), total=0.1, reason="asked to"),
            event("x", "Slept", at=at(-17), total=0.1, reason="idle"),
            event("z", "Preempted", at=at(-900), total=0.1, reason="preempted for a", forModel="a"),
            {"metadata": {}, "reason": "Waiting"},
            {"metadata": {"annotations": {"greenthread.ai/record": "no json"}}, "reason": "Woke"},
        ]
    )  # fmt: skip
    found = snapshot([model("a")], [pod("a")], gpu(on("a")))
    [wake] = wakes(row(found, "a"), told)
    assert wake.slowest == "queue"
    rules = {made.model: made.rule for made in wake.made_room}
    assert list(rules) == ["y", "v", "w"]  # by time; w's own account is missing; x, and z long ago, left for others
    assert rules["y"].startswith("gave way by itself: past its minRuntime and idle for its yieldAfter")
    assert rules["v"].startswith("was preempted: after this model had waited its maxWaitTime (5s)")
    assert rules["w"].startswith("was asked to make room")
    assert wake.made_room[1].text().endswith("it left in 200ms (drain 100ms, engine 100ms) and freed 30.0G")
