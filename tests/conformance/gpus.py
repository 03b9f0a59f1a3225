"""GPU objects as tests write them: one way to say a status, three ways to send it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

from tests.conformance.crd_api import GIB, JSON_PATCH, MERGE_PATCH, Answer, Api, Object, path, prune, send

NAMESPACE = "greenthread-system"
NOW = "2026-11-22T14:03:22.123456Z"
TOTAL = 80 * GIB

_numbers = itertools.count()

#: The shortest honest way into each state.
WAY = {
    "sleeping": ["sleeping"],
    "waking": ["waking"],
    "converting": ["converting"],
    "serving": ["converting", "serving"],
    "deactivating": ["converting", "serving", "deactivating"],
}


def occupant(name: str, state: str = "sleeping", gib: int = 0, **more: Any) -> Object:
    """An occupant as its sidecar writes it."""
    entry = {
        "namespace": "default",
        "podName": name,
        "modelName": name,
        "state": state,
        "reservedMemoryBytes": gib * GIB,
    }
    return {**entry, "popular": False, "sidecarDown": False, **more}


def intent(name: str, gib: int, *victims: str) -> Object:
    entry = {"namespace": "default", "podName": name, "modelName": name, "requestedMemoryBytes": gib * GIB}
    named = [f"default/{victim}" for victim in victims]
    return {**entry, "since": NOW, "boot": False, "preempts": True, "victims": named}


def lock(name: str) -> Object:
    return {"holder": f"default/{name}", "acquiredAt": NOW}


def device(*occupants: Object, **more: Any) -> Object:
    """A whole status, as the agent makes it, and who is on it."""
    status = {"node": "node-a", "index": 0, "uuid": "GPU-0", "product": "Simulated 80 GB", "totalMemoryBytes": TOTAL}
    empty = {"foreignMemoryBytes": 0, "availableMemoryBytes": TOTAL, "preemptionIntents": []}
    return {**status, **empty, "occupants": list(occupants), **more}


class Gpu:
    """One GPU object of an API server."""

    def __init__(self, api: Api, status: Object | None = None) -> None:
        """Makes it; with `status` by honest steps only: the device, then each occupant on its way, then the rest."""
        self.api = api
        self.name = f"node-a-{next(_numbers)}"
        self.path = path("gpus", NAMESPACE, self.name)
        manifest = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU", "metadata": {"name": self.name}}
        send(api, "POST", path("gpus", NAMESPACE), manifest).ok()
        if status is None:
            return
        wanted = sorted(status["occupants"], key=lambda entry: entry["state"] == "waking")
        settled: list[Object] = []
        # Foreign memory comes last: a device whose foreign memory grew may hold more than it has room for.
        before = {**status, "foreignMemoryBytes": 0, "totalMemoryBytes": 2**50, "occupants": []}
        before.pop("wakeLock", None)
        self.merge(before).ok()
        for entry in wanted:
            for state in WAY[entry["state"]]:
                held = {"wakeLock": status["wakeLock"]} if state == "waking" else {}
                self.merge({"occupants": [*settled, {**entry, "state": state}], **held}).ok()
            settled.append(entry)
        self.merge(status).ok()

    def read(self) -> Object:
        return send(self.api, "GET", self.path).ok()

    @property
    def status(self) -> Object:
        status: Object = self.read()["status"]
        return status

    def occupant(self, name: str) -> Object:
        found: Object = self.status["occupants"][self.index(name)]
        return found

    def replace(self, status: Object) -> Answer:
        """PUT of the whole object."""
        return send(self.api, "PUT", self.path + "/status", {**self.read(), "status": status})

    def merge(self, status: Object | None) -> Answer:
        """A merge patch; None removes a key."""
        return send(self.api, "PATCH", self.path + "/status", {"status": status}, MERGE_PATCH)

    def patch(self, *operations: Object) -> Answer:
        """A JSON patch with paths below `/status`."""
        whole = [{**operation, "path": "/status" + operation["path"]} for operation in operations]
        return send(self.api, "PATCH", self.path + "/status", whole, JSON_PATCH)

    def index(self, name: str) -> int:
        return [entry["podName"] for entry in self.status["occupants"]].index(name)


def by_put(gpu: Gpu, before: Object, after: Object) -> Answer:
    return gpu.replace(prune(after))


def by_merge_patch(gpu: Gpu, before: Object, after: Object) -> Answer:
    return gpu.merge({key: value for key, value in after.items() if before.get(key) != value})


def by_json_patch(gpu: Gpu, before: Object, after: Object) -> Answer:
    operations: list[Object] = [{"op": "test", "path": "/node", "value": before["node"]}]
    for key, value in after.items():
        if value is None:
            operations.append({"op": "remove", "path": f"/{key}"})
        elif before.get(key) != value:
            operations.append({"op": "add", "path": f"/{key}", "value": value})
    return gpu.patch(*operations)


WAYS: list[Callable[[Gpu, Object, Object], Answer]] = [by_put, by_merge_patch, by_json_patch]


def changed(status: Object, **changes: Any) -> Object:
    """The status with some keys changed; None removes a key."""
    return {**copy.deepcopy(status), **changes}
