"""What a Pod's status says, from what its containers do. No effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


def kube_time(moment: datetime) -> str:
    """A time as the API server writes it into core objects: whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Waiting:
    reason: str
    message: str = ""

    def to_object(self) -> Object:
        return {"waiting": {"reason": self.reason} | ({"message": self.message} if self.message else {})}


@dataclass(frozen=True, slots=True)
class Running:
    since: datetime
    pid: int

    def to_object(self) -> Object:
        return {"running": {"startedAt": kube_time(self.since)}}


@dataclass(frozen=True, slots=True)
class Terminated:
    """`code` is the exit status, 128 + number for a signal."""

    code: int
    since: datetime
    until: datetime
    pid: int = 0
    message: str = ""

    def to_object(self) -> Object:
        state: Object = {
            "exitCode": self.code,
            "reason": "Completed" if self.code == 0 else "Error",
            "startedAt": kube_time(self.since),
            "finishedAt": kube_time(self.until),
        }
        if self.pid:
            state["containerID"] = container_id(self.pid)
        if self.message:
            state["message"] = self.message
        return {"terminated": state}


State = Waiting | Running | Terminated


def container_id(pid: int) -> str:
    """The containerID of a process: its runtime is this machine."""
    return f"process://{pid}"


@dataclass(slots=True)
class ContainerView:
    """What is known of one container, written by the task that runs it."""

    spec: Object
    state: State
    last: Terminated | None = None
    restarts: int = 0
    started: bool = False
    ready: bool = False

    def to_object(self) -> Object:
        pid = getattr(self.state, "pid", 0) or (self.last.pid if self.last else 0)
        image = self.spec.get("image", "")
        return {
            "name": self.spec["name"],
            "image": image,
            "imageID": image,
            "containerID": container_id(pid) if pid else "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state.to_object(),
            "lastState": self.last.to_object() if self.last else {},
        }


@dataclass(slots=True)
class PodView:
    """What is known of one pod."""

    policy: str
    init: Sequence[ContainerView]
    main: Sequence[ContainerView]
    started_at: datetime
    address: str
    #: Everything was told to end; nothing will be started again.
    stopping: bool = False
    #: Why the pod as a whole cannot run.
    message: str = ""


def will_restart(policy: str, code: int) -> bool:
    """Whether a container that ended with `code` is started again."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def phase(view: PodView) -> str:
    """Pending, Running, Succeeded or Failed, by Kubernetes' rules."""
    init_ends = [c.state.code for c in view.init if isinstance(c.state, Terminated)]
    if view.policy == "Never" and any(init_ends):
        return "Failed"
    if len(init_ends) < len(view.init) or any(init_ends):
        return "Failed" if view.stopping else "Pending"
    ended = [c.state for c in view.main if isinstance(c.state, Terminated)]
    final = [state for state in ended if view.stopping or not will_restart(view.policy, state.code)]
    if len(final) == len(view.main):
        return "Succeeded" if all(state.code == 0 for state in final) else "Failed"
    begun = all(not isinstance(c.state, Waiting) or c.last is not None for c in view.main)
    return "Running" if begun or ended else "Pending"


def pod_status(view: PodView, previous: Mapping[str, Any], now: datetime) -> Object:
    """The whole status; `previous` is the one before, whose times stay where nothing changed."""
    current = phase(view)
    initialized = all(isinstance(c.state, Terminated) and c.state.code == 0 for c in view.init)
    unready = [c.spec["name"] for c in view.main if not c.ready]
    unready_message = f"containers with unready status: [{' '.join(unready)}]"
    ends = {"Succeeded": ("PodCompleted", ""), "Failed": ("PodFailed", "")}
    not_ready = ends.get(current, ("ContainersNotReady", unready_message))
    unfinished = [c.spec["name"] for c in view.init if not (isinstance(c.state, Terminated) and c.state.code == 0)]
    init_message = f"containers with incomplete status: [{' '.join(unfinished)}]"
    facts = [
        ("PodScheduled", True, "", ""),
        ("Initialized", initialized, "ContainersNotInitialized", init_message),
        ("ContainersReady", not unready, *not_ready),
        ("Ready", not unready, *not_ready),
    ]
    before = {condition["type"]: condition for condition in previous.get("conditions") or []}
    status: Object = {
        "phase": current,
        "conditions": [
            _condition(before.get(kind), kind, true, reason, message, now) for kind, true, reason, message in facts
        ],
        "hostIP": view.address,
        "podIP": view.address,
        "podIPs": [{"ip": view.address}],
        "startTime": kube_time(view.started_at),
        "containerStatuses": [container.to_object() for container in view.main],
    }
    if view.init:
        status["initContainerStatuses"] = [container.to_object() for container in view.init]
    # a merge patch removes only what it names
    status["message"] = view.message or None
    return status


def _condition(
    before: Mapping[str, Any] | None, kind: str, true: bool, reason: str, message: str, now: datetime
) -> Object:
    condition: Object = {"type": kind, "status": "True" if true else "False"}
    if not true:
        condition |= {"reason": reason} | ({"message": message} if message else {})
    same = before is not None and before.get("status") == condition["status"]
    condition["lastTransitionTime"] = before["lastTransitionTime"] if same and before is not None else kube_time(now)
    return condition
