"""What is left on a GPU by pods that are gone, and what of it may be taken away now. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from controller.agent.memory import unchanged_since
from greenthread.gpu import Gpu, Occupant, PodRef, State
from greenthread.names import ANNOTATION_GPUS

Object = dict[str, Any]


class Life(Enum):
    """Of a pod: its sidecar works, it does not just now, or there is no such pod any more."""

    UP = "up"
    DOWN = "down"
    GONE = "gone"


def sidecar_life(pod: Mapping[str, Any] | None, sidecar: str, node: str, index: int) -> Life:
    """From the API's object, of the pod on one GPU; None is a pod that does not exist.

    A pod of the same name that was made again elsewhere is gone from here: it clears up its own GPUs only.
    """
    if pod is None or _elsewhere(pod, node, index):
        return Life.GONE
    status = pod.get("status") or {}
    running = any(
        container.get("name") == sidecar and (container.get("state") or {}).get("running") is not None
        for container in status.get("containerStatuses") or ()
    )
    return Life.UP if status.get("phase") == "Running" and running else Life.DOWN


def _elsewhere(pod: Mapping[str, Any], node: str, index: int) -> bool:
    bound = (pod.get("spec") or {}).get("nodeName")
    gpus = ((pod.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION_GPUS)
    return bool(bound and bound != node) or (gpus is not None and str(index) not in gpus.split(","))


@dataclass(frozen=True, slots=True)
class Cleaning:
    """One write: a JSON patch on the condition of what was read, and what it does, for the log."""

    patch: list[Object]
    what: str


def clean(gpu: Gpu, lives: Mapping[PodRef, Life], holders: Collection[PodRef]) -> Cleaning | None:
    """What may be taken away now; None when there is nothing.

    `lives`: of the pods that the GPU names; one that is missing counts as up. `holders`: pods with a process that
    holds memory of this device. An entry is freed first and removed by a later write, as the GPU's own rules want it. A
    sidecar that is down loses its intents and nothing else, since its engine may be awake; where it holds memory, its
    entry says that it is down, so that nobody waits for it to make room.
    """
    changes: list[Object] = []
    done: list[str] = []

    def gone(pod: PodRef) -> bool:
        return lives.get(pod) is Life.GONE and pod not in holders

    for index in reversed(range(len(gpu.intents))):
        intent = gpu.intents[index]
        if lives.get(intent.pod, Life.UP) is not Life.UP:
            changes.append({"op": "remove", "path": f"/status/preemptionIntents/{index}"})
            done.append(f"removed the intent of {intent.pod} ({_why(lives[intent.pod])})")
    if gpu.wake_lock is not None and gone(gpu.wake_lock.holder):
        changes.append({"op": "remove", "path": "/status/wakeLock"})
        done.append(f"freed the wake lock of {gpu.wake_lock.holder} (its pod is gone)")
    for index in reversed(range(len(gpu.occupants))):
        occupant = gpu.occupants[index]
        path = f"/status/occupants/{index}"
        if lives.get(occupant.pod) is Life.DOWN and stands_in_the_way(occupant):
            changes.append({"op": "add", "path": f"{path}/sidecarDown", "value": True})
            done.append(f"said that {occupant.pod} cannot make room (its sidecar is down)")
        if not gone(occupant.pod):
            continue
        if occupant.state == State.SLEEPING and not occupant.reserved:
            changes.append({"op": "remove", "path": path})
            done.append(f"removed the entry of {occupant.pod} (its pod is gone)")
        else:
            changes.append({"op": "replace", "path": f"{path}/state", "value": str(State.SLEEPING)})
            changes.append({"op": "add", "path": f"{path}/reservedMemoryBytes", "value": 0})
            done.append(
                f"freed {occupant.reserved} bytes of {occupant.pod} (its pod is gone, no process of it is left)"
            )
    if not changes:
        return None
    return Cleaning([unchanged_since(gpu.resource_version), *changes], "; ".join(done))


def stands_in_the_way(occupant: Occupant | None) -> bool:
    """Whether it holds memory, and does not say yet that its sidecar is down."""
    return occupant is not None and occupant.reserved > 0 and not occupant.sidecar_down


def _why(life: Life) -> str:
    return "its pod is gone" if life is Life.GONE else "its sidecar is down"
