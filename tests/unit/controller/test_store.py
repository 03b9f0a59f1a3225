"""The copy of the cluster: nothing older replaces anything newer, and the Models concerned are told."""

from __future__ import annotations

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
    told: list[tuple[str, str]] = []
    return Store(told.append), told


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
