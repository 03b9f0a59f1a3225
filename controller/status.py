"""What a Model's status says, from the Model, its pods and the GPUs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controller.pod_view import PodView
from greenthread.clock import format_time
from greenthread.gpu import Gpu, Occupant, PodRef, State
from greenthread.model import Model
from greenthread.units import human_bytes, short_bytes

Object = dict[str, Any]

#: How far a replica is; the Model shows the best of them.
FAILED, PENDING, CONVERTING, STAGING, READY = "Failed", "Pending", "Converting", "Staging", "Ready"
_ORDER = (FAILED, PENDING, CONVERTING, STAGING, READY)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the controller knows of a Model besides the Model itself.

    ``hash8``: of the wanted template, "" when there is none. ``problems``: why replicas have no pod.
    ``address_problem``: why its Service or URL is not what one expects. ``waits_for``: what a deletion waits for.
    """

    hash8: str
    pods: Sequence[PodView] = ()
    gpus: Sequence[Gpu] = ()
    known_memory: int | None = None
    url: str = ""
    problems: Sequence[str] = ()
    address_problem: tuple[str, str] = ("", "")
    waits_for: str = ""
    #: The spec itself is at fault.
    spec_problem: str = ""


@dataclass(frozen=True, slots=True)
class _Replica:
    pod: PodView
    stage: str
    #: For people: "x-0-abc converts on node-a/0".
    text: str
    states: frozenset[State] = field(default_factory=frozenset)


def model_status(model: Model, situation: Situation, previous: Mapping[str, Any], now: datetime) -> Object:
    """The whole status. Times of ``previous`` are kept where nothing changed."""
    spec = model.spec
    alive = [pod for pod in situation.pods if not pod.deleting]
    in_order = sorted(alive, key=lambda pod: (pod.ordinal, pod.ref.name))
    booted = _has_just_booted(previous.get("phase"), [pod.ref for pod in alive], situation.gpus)
    replicas = [_replica(pod, situation.gpus, booted) for pod in in_order]
    ready = [replica for replica in replicas if replica.stage == READY]
    # while a pod is being replaced two of them stand for one replica
    ready_ordinals = {replica.pod.ordinal for replica in ready}
    serving = [replica for replica in replicas if State.SERVING in replica.states]
    sleeping = [replica for replica in replicas if replica.states == {State.SLEEPING}]
    shown = next(iter(serving or ready or replicas), None)

    phase, reason, message = _ready(spec.replicas, replicas, len(ready_ordinals), situation, model.deleting)
    status: Object = {
        "phase": phase,
        "replicas": len(replicas),
        "readyReplicas": len(ready_ordinals),
        "servingReplicas": len(serving),
        "sleepingReplicas": len(sleeping),
        "observedGeneration": model.generation,
        "conversion": {"status": _conversion(phase)},
        "distribution": {
            "availableOnNodes": sorted({replica.pod.node for replica in ready}),
            "stagingTier": "system" if spec.staging.pinned else "disk",
        },
    }
    if situation.url:
        status["url"] = situation.url
    if shown:
        status["node"] = shown.pod.node
        status["gpus"] = ",".join(map(str, shown.pod.gpus))
    if situation.known_memory is not None:
        status["servingMemoryPerGPU"] = situation.known_memory
        status["memory"] = {"servingHuman": human_bytes(situation.known_memory)}
    moved = previous.get("phase") != phase or not previous.get("lastTransition")
    status["lastTransition"] = format_time(now) if moved else previous["lastTransition"]

    before = {condition["type"]: condition for condition in previous.get("conditions") or ()}
    first = _condition("Ready", phase == READY and not model.deleting, reason, message, before, model.generation, now)
    if not situation.hash8:  # of a Model that goes, or cannot be understood, the rest stays as it was
        status["conditions"] = [first, *(old for kind, old in before.items() if kind != "Ready")]
        return status | {key: previous[key] for key in ("url", "servingMemoryPerGPU", "memory") if key in previous}
    current = {replica.pod.ordinal for replica in ready if replica.pod.hash8 == situation.hash8}
    outdated = [replica for replica in replicas if replica.pod.hash8 != situation.hash8]
    others = [
        ("UpToDate", *_up_to_date(spec.replicas, len(current), outdated)),
        (
            "Addressed",
            not situation.address_problem[0],
            situation.address_problem[0] or "Addressed",
            situation.address_problem[1] or f"answers at {situation.url}",
        ),
    ]
    limits = [f"{pod.ref.name}: {text}" for pod in in_order for text in pod.report.shortfalls]
    if limits or "SleepsAsAsked" in before:  # nobody needs to read it of a Model that never fell short
        text = "; ".join(limits[:5]) or "sleeping, it keeps and leaves what was asked for"
        others.append(("SleepsAsAsked", not limits, "Limited" if limits else "AsAsked", text))
    status["conditions"] = [first, *(_condition(*entry, before, model.generation, now) for entry in others)]
    return status


def _condition(
    kind: str, good: bool, reason: str, message: str, before: Mapping[str, Object], generation: int, now: datetime
) -> Object:
    value = "True" if good else "False"
    old = before.get(kind, {})
    since = old["lastTransitionTime"] if old.get("status") == value else now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message[:32768],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


def _ready(
    wanted: int, replicas: Sequence[_Replica], ready: int, situation: Situation, deleting: bool
) -> tuple[str, str, str]:
    """Phase, and reason and message of the condition Ready."""
    best = max((_ORDER.index(replica.stage) for replica in replicas), default=_ORDER.index(PENDING))
    phase = _ORDER[best]
    if deleting:
        return phase, "Deleting", f"it is being deleted: {situation.waits_for or 'its pods are gone'}"
    if situation.spec_problem:
        return (phase if phase == READY else FAILED), "InvalidSpec", situation.spec_problem
    if wanted == 0 and not replicas:
        return PENDING, "NoReplicas", "spec.replicas is 0: nobody serves this model"
    others = [replica.text for replica in replicas if replica.stage != READY]
    rest = [*situation.problems, *others][:5]
    if phase == READY:
        text = "a request is answered, after a wake if it sleeps"
        if wanted != 1:
            text = f"{ready} of {wanted} replicas can answer"
        return phase, "Ready", "; ".join([text, *rest])
    if not replicas:
        reason = "Unschedulable" if situation.problems else "Starting"
        return PENDING, reason, "; ".join(situation.problems) or "its pods are being made"
    return phase, {PENDING: "Starting"}.get(phase, phase), "; ".join(rest)


def _up_to_date(wanted: int, current: int, outdated: Sequence[_Replica]) -> tuple[bool, str, str]:
    if outdated:
        names = ", ".join(replica.pod.ref.name for replica in outdated[:5])
        return False, "Replacing", f"pods of an earlier spec stay until their successors are ready: {names}"
    if current < wanted:
        return False, "Scaling", f"{current} of {wanted} replicas are ready"
    return True, "UpToDate", "every replica runs the present spec"


def _conversion(phase: str) -> str:
    return {FAILED: "Failed", PENDING: "Pending", CONVERTING: "Running"}.get(phase, "Complete")


def _has_just_booted(before: str | None, pods: Sequence[PodRef], gpus: Sequence[Gpu]) -> bool:
    """An engine booted until now. Its GPU entry says so before its pod does: phases do not go back meanwhile."""
    states = {occupant.state for gpu in gpus for occupant in gpu.occupants if occupant.pod in pods}
    return before in (CONVERTING, STAGING) and State.CONVERTING not in states


def _replica(pod: PodView, gpus: Sequence[Gpu], booted: bool) -> _Replica:
    entries = [(gpu, occupant) for gpu in gpus if (occupant := gpu.occupant(pod.ref)) is not None]
    states = frozenset(occupant.state for _, occupant in entries)
    where = f"{pod.node}/{','.join(map(str, pod.gpus))}"
    name = pod.ref.name
    if pod.ready:
        return _Replica(pod, READY, "", states)
    if pod.trouble:
        return _Replica(pod, FAILED, f"{name}: {pod.trouble}", states)
    if pod.report.boot_ready:
        return _Replica(pod, STAGING, f"{name} has booted and is not ready yet", states)
    if State.CONVERTING in states:
        return _Replica(pod, CONVERTING, f"{name} boots its engine on {where}{_holding(entries)}", states)
    if pod.report.error:
        return _Replica(pod, FAILED, f"{name}: {pod.report.error}", states)
    if states & {State.DEACTIVATING, State.SERVING}:
        return _Replica(pod, STAGING, f"{name} has booted its engine on {where} and puts it to sleep", states)
    waits = [gpu for gpu in gpus if gpu.intent(pod.ref) is not None]
    if waits:
        intent = waits[0].intent(pod.ref)
        needs = short_bytes(intent.requested) if intent else "memory"
        return _Replica(pod, PENDING, f"{name} waits for {needs} on {where} to boot its engine", states)
    if booted and states == {State.SLEEPING}:
        return _Replica(pod, STAGING, f"{name} has booted its engine on {where} and is not ready yet", states)
    return _Replica(pod, PENDING, f"{name} starts on {where}", states)


def _holding(entries: Sequence[tuple[Gpu, Occupant]]) -> str:
    held = max((occupant.reserved for _, occupant in entries), default=0)
    return f", with {short_bytes(held)} of each GPU" if held else ""


def merge_patch(previous: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
    """The merge patch that makes ``previous`` into ``status``; empty when they are equal."""
    patch: Object = {}
    for key, value in status.items():
        old = previous.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = merge_patch(old, value)
            if inner:
                patch[key] = inner
        elif old != value:
            patch[key] = value
    patch |= {key: None for key in previous if key not in status}
    return patch
