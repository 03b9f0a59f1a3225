"""The snapshot joins objects that were written at different moments, and shows what is true now."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greenthread.clock import format_time
from greenthread.outlook import next_step, why
from greenthread.snapshot import ModelRow, Shown, build

NOW = datetime(2026, 11, 22, 14, 3, 22, tzinfo=UTC)
GIB = 2**30


def ago(seconds: float) -> str:
    return format_time(NOW - timedelta(seconds=seconds))


def row(occupants: list[dict[str, Any]], report: dict[str, Any], need: int = 40, **status: Any) -> ModelRow:
    """The row of Model m, whose pod m-0 is on a GPU of 96 GiB."""
    model = {
        "metadata": {"name": "m", "namespace": "default"},
        "spec": {"modelName": "x"},
        "status": {"phase": "Ready", "servingMemoryPerGPU": need * GIB, "lastTransition": ago(9999)},
    }
    gpu = {
        "metadata": {"name": "n-0"},
        "status": {"node": "n", "index": 0, "totalMemoryBytes": 96 * GIB, "occupants": occupants, **status},
    }
    annotations = {"greenthread.ai/gpus": "0", "greenthread.ai/report": json.dumps(report)}
    pod = {
        "metadata": {"name": "m-0", "namespace": "default", "labels": {"greenthread.ai/model": "m"},
                     "annotations": annotations},
        "spec": {},
    }  # fmt: skip
    found = build([model], [gpu], [pod], NOW).model("default", "m")
    assert found is not None
    return found


def occupant(name: str, state: str, gib: int = 0, **fields: Any) -> dict[str, Any]:
    return {"namespace": "default", "podName": f"{name}-0", "modelName": name, "state": state,
            "reservedMemoryBytes": gib * GIB, **fields}  # fmt: skip


def test_who_wants_memory_but_has_no_intent_cannot_fit() -> None:
    pinned = occupant("p", "serving", 80, popular=True)
    found = row([occupant("m", "sleeping"), pinned], {"state": "pending", "since": ago(5)})
    assert (found.state, found.since) == (Shown.CANNOT_FIT, NOW - timedelta(seconds=5))


def test_an_old_report_of_waiting_is_not_believed_against_the_gpus() -> None:
    found = row([occupant("m", "sleeping")], {"state": "pending", "since": ago(5)})
    assert (found.state, found.since) == (Shown.SLEEPING, None)


@pytest.mark.parametrize(
    ("state", "reported", "since"),
    [
        ("waking", "sleeping", 2),
        ("waking", "waking", 7),
        ("converting", "waking", 7),
        ("deactivating", "serving", None),
    ],
)
def test_the_age_of_a_state_is_never_that_of_another(state: str, reported: str, since: float | None) -> None:
    lock = {"holder": "default/m-0", "acquiredAt": ago(2)}
    found = row([occupant("m", state, 40)], {"state": reported, "since": ago(7)}, wakeLock=lock)
    assert found.state == state
    assert found.since == (None if since is None else NOW - timedelta(seconds=since))


def test_sleep_is_told_with_its_length() -> None:
    found = row([occupant("m", "sleeping")], {"state": "sleeping", "since": ago(90)})
    snapshot = build([], [], [], NOW)
    assert why(found, snapshot) == "m has slept for 1m30s: it holds no GPU memory"


@pytest.mark.parametrize(
    ("state", "reported", "in_flight", "queued"),
    [
        ("serving", {"state": "serving", "inFlight": 3}, 3, 0),
        ("serving", {"state": "pending", "queued": 2}, None, 0),
        ("deactivating", {"state": "serving", "inFlight": 3}, 3, 0),
        ("waking", {"state": "pending", "queued": 2}, 0, 2),
        ("sleeping", {"state": "serving", "inFlight": 3}, 0, 0),
    ],
)
def test_a_report_older_than_the_state_makes_up_no_requests(
    state: str, reported: dict[str, Any], in_flight: int | None, queued: int
) -> None:
    found = row([occupant("m", state, 0 if state == "sleeping" else 40)], reported)
    assert (found.in_flight, found.queued) == (in_flight, queued)


def serving_beside(intents: list[dict[str, Any]]) -> tuple[datetime | None, str]:
    """What comes next for Model m, which has served for 4 s of its minRuntime of 10 s."""
    model = {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x"}}
    status = {
        "node": "n", "index": 0, "totalMemoryBytes": 96 * GIB, "preemptionIntents": intents,
        "occupants": [occupant("m", "serving", 80, becameServingAt=ago(4))],
    }  # fmt: skip
    pod = {
        "metadata": {"name": "m-0", "namespace": "default", "labels": {"greenthread.ai/model": "m"},
                     "annotations": {"greenthread.ai/gpus": "0"}},
    }  # fmt: skip
    snapshot = build([model], [{"metadata": {"name": "n-0"}, "status": status}], [pod], NOW)
    found = snapshot.model("default", "m")
    assert found is not None
    return next_step(found, snapshot)


def test_who_serves_while_another_waits_is_told_when_it_has_to_go() -> None:
    waiter = {"namespace": "default", "podName": "w-0", "modelName": "w", "requestedMemoryBytes": GIB, "since": ago(1)}
    assert serving_beside([waiter]) == (NOW + timedelta(seconds=6), "gives way to w when idle, or is preempted")


def test_who_serves_while_nobody_waits_is_not_told_to_go() -> None:
    moment, text = serving_beside([])
    assert moment is None
    assert text.startswith("sleeps when idle for 5m")


def waiting_beside(*others: dict[str, Any], since: float = 1) -> tuple[datetime | None, str]:
    """What comes next for Model m, which waits for 40 GiB."""
    model = {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x"}}
    intent = {"namespace": "default", "podName": "m-0", "modelName": "m", "requestedMemoryBytes": 40 * GIB}
    status = {
        "node": "n", "index": 0, "totalMemoryBytes": 96 * GIB, "preemptionIntents": [intent | {"since": ago(since)}],
        "occupants": [occupant("m", "sleeping"), *others],
    }  # fmt: skip
    pod = {
        "metadata": {"name": "m-0", "namespace": "default", "labels": {"greenthread.ai/model": "m"},
                     "annotations": {"greenthread.ai/gpus": "0"}},
    }  # fmt: skip
    snapshot = build([model], [{"metadata": {"name": "n-0"}, "status": status}], [pod], NOW)
    found = snapshot.model("default", "m")
    assert found is not None
    return next_step(found, snapshot)


@pytest.mark.parametrize(("protected", "asked_in"), [(0, 4), (3, 4), (8, 8)])
def test_who_waits_is_told_when_it_asks_whom_to_make_room(protected: float, asked_in: float) -> None:
    """The later of the end of its maxWaitTime (5 s) and of the victim's minRuntime."""
    busy = occupant("v", "serving", 80, becameServingAt=ago(2), protectedUntil=ago(-protected))
    moment, text = waiting_beside(busy)
    assert moment == NOW + timedelta(seconds=asked_in)
    assert text == "asks v to make room, unless there is room before"


def test_who_waits_for_memory_on_its_way_is_told_so() -> None:
    assert waiting_beside(occupant("v", "deactivating", 80)) == (None, "wakes as soon as v has made room")


def test_who_waits_for_a_boot_can_only_wait() -> None:
    assert waiting_beside(occupant("v", "converting", 80), since=20) == (None, "waits for the next change on its GPU")
