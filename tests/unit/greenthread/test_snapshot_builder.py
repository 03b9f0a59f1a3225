"""Snapshots one after the other are those that would be built from nothing; no object makes one impossible."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from greenthread import snapshot
from greenthread.clock import format_time
from greenthread.outlook import next_step, waiters, why
from greenthread.snapshot import Builder, Snapshot, build

NOW = datetime(2026, 11, 22, 14, 3, 22, tzinfo=UTC)
GIB = 2**30
Object = dict[str, Any]


def ago(seconds: float) -> str:
    return format_time(NOW - timedelta(seconds=seconds))


def model(name: str, **spec: Any) -> Object:
    status = {"phase": "Ready", "servingMemoryPerGPU": 40 * GIB, "lastTransition": ago(50), "conditions": [
        {"type": "Ready", "status": "True", "reason": "Ready", "message": "all well"}]}  # fmt: skip
    return {
        "metadata": {"name": name, "namespace": "prod"},
        "spec": {"modelName": f"x/{name}", **spec},
        "status": status,
    }


def pod(name: str, gpus: str = "0", **report: Any) -> Object:
    told = {"state": "serving", "since": ago(9), "inFlight": 1, "queued": 0, "requests": 8, **report}
    annotations = {"greenthread.ai/gpus": gpus, "greenthread.ai/report": json.dumps(told)}
    labels = {"greenthread.ai/model": name}
    meta = {"name": f"{name}-0", "namespace": "prod", "labels": labels, "annotations": annotations}
    return {"metadata": meta, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}


def gpu(index: int, occupants: list[Object], **status: Any) -> Object:
    full = {"node": "n", "index": index, "totalMemoryBytes": 96 * GIB, "foreignMemoryBytes": GIB,
            "occupants": occupants, "stats": {"usedMemoryBytes": GIB, "utilizationPercent": 3}, **status}  # fmt: skip
    return {"metadata": {"name": f"n-{index}", "namespace": "gt"}, "status": full}


def occupant(name: str, state: str, gib: int = 0, **fields: Any) -> Object:
    return {"namespace": "prod", "podName": f"{name}-0", "modelName": name, "state": state,
            "reservedMemoryBytes": gib * GIB, "becameServingAt": ago(9),
            "protectedUntil": ago(-3), **fields}  # fmt: skip


def intent(name: str, gib: int, *victims: str) -> Object:
    return {"namespace": "prod", "podName": f"{name}-0", "modelName": name, "requestedMemoryBytes": gib * GIB,
            "since": ago(2), "victims": [f"prod/{victim}-0" for victim in victims]}  # fmt: skip


def cluster() -> tuple[list[Object], list[Object], list[Object]]:
    """One of everything."""
    models = [model("a", fairness={"popular": True}), model("b"), model("c", replicas=2), model("d")]
    lock = {"holder": "prod/b-0", "acquiredAt": ago(1)}
    gpus = [
        gpu(0, [occupant("a", "serving", 60), occupant("c", "sleeping")], preemptionIntents=[intent("c", 50, "a")]),
        gpu(1, [occupant("b", "waking", 30), occupant("d", "sleeping")], wakeLock=lock),
    ]
    return models, gpus, [pod("a"), pod("b", "1"), pod("c"), pod("d", "1", state="pending")]


def _leaves(item: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from _leaves(value, (*path, key))


def _remove(item: Any, path: tuple[Any, ...]) -> None:
    for key in path[:-1]:
        item = item[key]
    del item[path[-1]]


def tell(found: Snapshot) -> None:
    """All that people are told of a snapshot."""
    assert found.waiting >= 0
    for device in found.gpus:
        assert device.free >= 0
        assert device.short >= 0
    for row in found.models:
        why(row, found), next_step(row, found), waiters(row, found)
        assert row.places is not None
        assert row.vram >= 0
        assert isinstance(row.error, str)
        assert all(number is None or number >= 0 for number in (row.in_flight, row.queued, row.requests, row.last_wake))


@given(st.data())
def test_whatever_is_missing_the_rest_is_shown(data: st.DataObject) -> None:
    models, gpus, pods = cluster()
    objects = [*models, *gpus, *pods]
    for _ in range(data.draw(st.integers(1, 6))):
        broken = data.draw(st.sampled_from(objects))
        if places := list(_leaves(broken)):
            _remove(broken, data.draw(st.sampled_from(places)))
    tell(build(models, gpus, pods, NOW))


def test_an_object_that_cannot_be_read_hides_no_other() -> None:
    models, gpus, pods = cluster()
    del models[1]["spec"], gpus[1]["metadata"]["name"], pods[2]["metadata"]
    found = build([*models, {}], [*gpus, {}], [*pods, {}], NOW)
    assert [row.name for row in found.models] == ["a", "c", "d"]
    assert [row.gpu.name for row in found.gpus] == ["n-0"]


@given(st.data())
def test_a_snapshot_after_others_is_the_one_from_nothing(data: st.DataObject) -> None:
    builder = Builder()
    kinds = cluster()
    everything = cluster()
    now = NOW
    for _ in range(data.draw(st.integers(1, 8))):
        now += timedelta(seconds=data.draw(st.sampled_from([0.5, 0.5, 0.5, 4, 40, -6])))
        for _ in range(data.draw(st.integers(0, 3))):
            kind = data.draw(st.integers(0, 2))
            what = data.draw(st.sampled_from(["remove", "restore", "break", "state", "intents", "popular", "move"]))
            objects = kinds[kind]
            if what == "restore":
                objects[:] = copy.deepcopy(everything[kind])
            elif not objects:
                continue
            else:
                at = data.draw(st.integers(0, len(objects) - 1))
                objects[at] = fresh = copy.deepcopy(objects[at])
                status = fresh.get("status") or {}
                occupants = status.get("occupants") or []
                if what == "remove":
                    del objects[at]
                elif what == "break" and (places := list(_leaves(fresh))):
                    _remove(fresh, data.draw(st.sampled_from(places)))
                elif what == "state" and occupants:
                    occupants[0]["state"] = data.draw(st.sampled_from(["sleeping", "serving", "deactivating"]))
                elif what == "popular" and occupants:
                    occupants[0]["popular"] = data.draw(st.booleans())
                elif what == "intents" and "occupants" in status:
                    names = data.draw(st.lists(st.sampled_from("abcd"), unique=True))
                    status["preemptionIntents"] = [intent(name, 90, "b") for name in names]
                elif what == "move" and "index" in status:
                    status["index"] = data.draw(st.integers(0, 2))
        assert builder.build(*kinds, now) == build(*kinds, now)


def test_only_what_changed_is_read_again(monkeypatch: Any) -> None:
    models, gpus, pods = cluster()
    builder = Builder()
    before = builder.build(models, gpus, pods, NOW)
    joined: list[str] = []
    join = snapshot._replica
    monkeypatch.setattr(snapshot, "_replica", lambda model, *rest: joined.append(model.name) or join(model, *rest))
    hot = copy.deepcopy(gpus[0])
    hot["status"]["stats"]["utilizationPercent"] = 99
    after = builder.build(models, [hot, gpus[1]], pods, NOW)
    assert joined == ["c"]  # it waits: what is decided for it hangs on its GPU
    assert after.gpus[0].gpu.stats != before.gpus[0].gpu.stats
    assert after.gpus[1] is before.gpus[1]
    assert after.models[0] is before.models[0]
    joined.clear()
    calm = copy.deepcopy(hot)
    calm["status"]["occupants"][0]["state"] = "deactivating"
    assert builder.build(models, [calm, gpus[1]], pods, NOW).models[0].state == "deactivating"
    assert sorted(joined) == ["a", "c"]
    joined.clear()
    builder.build(models, [calm, gpus[1]], pods, NOW + timedelta(seconds=1))
    assert joined == []


def test_who_does_not_say_since_when_it_waits_waits_from_now_on() -> None:
    builder = Builder()
    big = model("b") | {"status": {"servingMemoryPerGPU": 90 * GIB}}
    kinds = [model("a"), big], [gpu(0, [occupant("a", "serving", 60, popular=True), occupant("b", "sleeping")])]
    pods = [pod("a"), pod("b", state="pending", since=None)]
    assert builder.build(*kinds, pods, NOW).model("prod", "b").state == "cannot fit"  # type: ignore[union-attr]
    later = NOW + timedelta(seconds=1)
    assert builder.build(*kinds, pods, later) == build(*kinds, pods, later)
