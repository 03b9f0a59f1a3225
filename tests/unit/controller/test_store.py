"""The copy of the cluster: nothing older replaces anything newer, and the Models concerned are told."""

from __future__ import annotations

import json
from typing import Any

from controller.store import Store
from greenthread.kube.core import ObjectList
from greenthread.kube.resources import GPUS, MODELS, PODS

from .builders import GIB, model_object


def versioned(obj: dict[str, Any], version: int) -> dict[str, Any]:
    return obj | {"metadata": obj["metadata"] | {"resourceVersion": str(version)}}


def pod_object(uid: str = "p1", version: int = 1, name: str = "m-0-abc") -> dict[str, Any]:
    labels = {"greenthread.ai/model": "m", "greenthread.ai/ordinal": "0"}
    return {
        "metadata": {"name": name, "namespace": "team", "uid": uid, "labels": labels, "resourceVersion": str(version)}
    }


def gpu_object(version: int, state: str = "serving", used: int = 0, model: str = "m") -> dict[str, Any]:
    occupant = {"namespace": "team", "podName": f"{model}-0-abc", "modelName": model, "state": state}
    status = {"node": "n", "index": 0, "totalMemoryBytes": 96 * GIB, "stats": {"usedMemoryBytes": used}}
    meta = {"name": "n-0", "namespace": "greenthread-system", "uid": "g1", "resourceVersion": str(version)}
    return {"metadata": meta, "status": status | {"occupants": [occupant]}}


def stores() -> tuple[Store, list[tuple[str, str]]]:
    """A store, and whom it tells of anything."""
    told: list[tuple[str, str]] = []
    return Store(told.append, told.append), told


def told_apart() -> tuple[Store, list[tuple[str, str]], list[tuple[str, str]]]:
    """A store, whom it tells of what may need doing, and whom of what was done."""
    change: list[tuple[str, str]] = []
    state: list[tuple[str, str]] = []
    return Store(change.append, state.append), change, state


def test_an_older_version_changes_nothing() -> None:
    store, told = stores()
    assert store.put(PODS, pod_object(version=9))
    told.clear()
    assert not store.put(PODS, pod_object(version=8))
    assert not store.put(PODS, pod_object(version=9))
    assert told == []


def test_a_deleted_object_does_not_come_back_with_an_older_list() -> None:
    store, _ = stores()
    store.put(PODS, pod_object(version=5))
    store.remove(PODS, pod_object(version=7))
    store.replace_all(PODS, ObjectList([pod_object(version=5)], "6"))  # was under way when it was deleted
    assert store.pods_of(("team", "m")) == []
    store.put(PODS, pod_object(uid="p2", version=8))  # another of that name
    assert [pod.uid for pod in store.pods_of(("team", "m"))] == ["p2"]
    store.remove(PODS, pod_object(version=7))  # the late word of the first one's end
    assert [pod.uid for pod in store.pods_of(("team", "m"))] == ["p2"]


def test_a_full_list_finds_what_vanished_and_spares_what_is_newer() -> None:
    store, told = stores()
    store.put(PODS, pod_object("p1", 5, "m-0-abc"))
    store.put(PODS, pod_object("p2", 9, "m-1-abc"))  # made by ourselves after the list
    told.clear()
    store.replace_all(PODS, ObjectList([], "7"))
    assert [pod.uid for pod in store.pods_of(("team", "m"))] == ["p2"]
    assert told == [("team", "m")]


def test_stats_of_a_gpu_concern_no_model_and_states_do() -> None:
    store, told = stores()
    store.put(GPUS, gpu_object(1))
    told.clear()
    store.put(GPUS, gpu_object(2, used=5 * GIB))
    assert told == []
    store.put(GPUS, gpu_object(3, state="deactivating"))
    assert set(told) == {("team", "m")}
    told.clear()
    store.put(GPUS, gpu_object(4, model="n"))
    assert set(told) == {("team", "m"), ("team", "n")}


def test_an_engines_state_is_news_of_another_kind_than_what_may_need_doing() -> None:
    store, change, state = told_apart()
    store.put(GPUS, gpu_object(1))
    change.clear(), state.clear()
    store.put(GPUS, gpu_object(2, state="deactivating"))
    assert (change, set(state)) == ([], {("team", "m")})
    faulty = gpu_object(3, state="deactivating")
    faulty["metadata"]["annotations"] = {"greenthread.ai/fault": "it fell off the bus"}
    store.unplaced.add(("team", "waits"))
    store.put(GPUS, faulty)
    assert change == [("team", "waits")]


def test_of_a_report_only_what_the_status_says_is_news() -> None:
    store, change, state = told_apart()

    def report(version: int, **said: Any) -> None:
        pod = pod_object(version=version)
        pod["metadata"]["annotations"] = {"greenthread.ai/report": json.dumps({"state": "serving", **said})}
        store.put(PODS, pod)

    report(1, requests=1, bootReady=True)
    change.clear()
    report(2, requests=2, inFlight=1, bootReady=True)
    assert (change, state) == ([], [])
    report(3, bootReady=True, error="out of memory")
    assert change == [("team", "m")]
    change.clear()
    foreign = pod_object(version=4)  # nothing of its own changed, but whose it is
    foreign["metadata"]["annotations"] = {
        "greenthread.ai/report": json.dumps({"bootReady": True, "error": "out of memory"})
    }
    foreign["metadata"]["ownerReferences"] = [{"uid": "else"}]
    store.put(PODS, foreign)
    assert change == [("team", "m")]


def test_a_models_status_and_wishes_are_no_reason_to_act_at_once() -> None:
    store, change, state = told_apart()

    def put(version: int, changed: dict[str, Any] | None = None, **annotations: str) -> None:
        names = {f"greenthread.ai/{name}": text for name, text in annotations.items()}
        store.put(MODELS, versioned(model_object(annotations=names), version) | (changed or {}))

    put(1)
    change.clear()
    put(2, {"status": {"phase": "Ready"}})
    put(3, wake="2026-11-22T14:03:22Z")
    put(4, sleep="2026-11-22T14:03:22Z", preempt="2026-11-22T14:03:22Z")
    assert (change, state) == ([], [("team", "m")] * 3)
    put(5, engine="command")
    assert change == [("team", "m")]
    put(6, {"spec": {"modelName": "org/m", "replicas": 2}}, engine="command")
    assert change == [("team", "m")] * 2
    gone = versioned(model_object(), 7)
    gone["metadata"] |= {"deletionTimestamp": "2026-11-22T14:04:00Z"}
    store.put(MODELS, gone)
    assert change == [("team", "m")] * 3


def test_models_of_one_name_are_told_of_each_other() -> None:
    store, told = stores()
    store.put(MODELS, versioned(model_object("m", "team"), 1))
    store.put(MODELS, versioned(model_object("m", "other"), 2))
    assert ("team", "m") in told[1:]
    assert {model.namespace for model in store.models_named("m")} == {"team", "other"}
    told.clear()
    store.put(MODELS, versioned(model_object("m", "team", replicas=2), 3))
    assert told == [("team", "m")]  # addresses stay as they are


def test_a_model_that_its_crd_would_refuse_stops_nobody() -> None:
    store, _ = stores()
    broken = model_object()
    del broken["spec"]["modelName"]
    store.put(MODELS, versioned(broken, 1))
    assert store.model(("team", "m")) is None


def test_the_gpus_that_name_a_model_are_found_without_asking_all() -> None:
    store, _ = stores()
    m, other = ("team", "m"), ("team", "other")
    store.put(GPUS, gpu_object(1))
    assert [gpu.name for gpu in store.gpus_of(m)] == ["n-0"]
    assert store.gpus_of(other) == []
    store.put(GPUS, gpu_object(2, model="other"))
    assert store.gpus_of(m) == []
    assert [gpu.name for gpu in store.gpus_of(other)] == ["n-0"]
    waiting = gpu_object(3, model="other")
    intent = {"namespace": "team", "podName": "m-0-abc", "modelName": "m", "requestedMemoryBytes": GIB}
    waiting["status"]["preemptionIntents"] = [intent | {"since": "2026-11-22T14:00:00Z"}]
    store.put(GPUS, waiting)
    assert [gpu.name for gpu in store.gpus_of(m)] == ["n-0"]
    assert store.has_gpus("n")
    store.remove(GPUS, waiting)
    assert store.gpus_of(other) == []
    assert not store.has_gpus("n")


def test_of_a_pod_only_what_is_asked_for_is_kept() -> None:
    store, _ = stores()
    pod = pod_object(version=1) | {"spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}
    store.put(PODS, pod)
    assert store.object(PODS, ("team", "m-0-abc")) == {"metadata": pod["metadata"]}
    [seen] = store.pods_of(("team", "m"))
    assert (seen.node, seen.phase) == ("n", "Running")
