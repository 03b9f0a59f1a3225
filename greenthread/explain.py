"""Why wakes waited, what each step took, who made room by which rule, and what a request would meet now.

The past comes from the records that sidecars put on their Events; the future from the functions that decide. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from greenthread import fairness
from greenthread.clock import parse_time
from greenthread.fairness import CannotFit, Decision, Fits, Preempt, Wait, Want
from greenthread.gpu import PodRef
from greenthread.model import Fairness
from greenthread.names import ANNOTATION_RECORD
from greenthread.outlook import foreseen
from greenthread.snapshot import ModelRow, Replica, Shown, Snapshot
from greenthread.units import format_duration, short_bytes, short_duration
from greenthread.values import dataclass, replace

#: Somebody who makes room ends about when the waiter begins to claim; clocks of two nodes differ a little. Seconds.
_SLACK = 2.0


@dataclass(frozen=True, slots=True)
class Account:
    """What a sidecar told of one wake, boot or sleep when it was over."""

    namespace: str
    model: str
    #: ``Woke``, ``Preempted``, ``GaveWay``, ``WakeFailed``, …
    event: str
    #: ``wake``, ``boot``, ``sleep`` or ``crash``.
    kind: str
    began: datetime
    #: ``request``, ``asked to``, ``preempted for other``, …
    reason: str
    gpus: str
    #: Seconds of each step, in order.
    steps: Mapping[str, float]
    #: Seconds.
    total: float
    #: What stood in the way at first; "" when nothing did.
    waited_for: str = ""
    victims: tuple[str, ...] = ()
    #: For a sleep: who needed the memory.
    for_model: str = ""
    #: Bytes taken or freed on each GPU.
    memory: int = 0
    #: For a sleep: bytes that its engine still held on a GPU, by NVML; None when that could not be seen.
    left: int | None = None
    error: str = ""

    @property
    def ended(self) -> datetime:
        return self.began + timedelta(seconds=self.total)

    @property
    def is_wake(self) -> bool:
        """A wake, or a boot that somebody waited for."""
        return self.kind == "wake" or (self.kind == "boot" and self.event != "Booted")

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Account | None:
        """None for an Event that carries no record, or none that can be read."""
        try:
            item = json.loads((event["metadata"].get("annotations") or {})[ANNOTATION_RECORD])
            involved = event.get("involvedObject") or {}
            return cls(
                namespace=str(involved.get("namespace") or event["metadata"].get("namespace", "")),
                model=str(involved.get("name", "")),
                event=str(event.get("reason", "")),
                kind=str(item["kind"]),
                began=parse_time(item["at"]),
                reason=str(item.get("reason", "")),
                gpus=str(item.get("gpus", "")),
                steps={str(name): float(took) for name, took in (item.get("steps") or {}).items()},
                total=float(item.get("total") or 0.0),
                waited_for=str(item.get("waitedFor") or ""),
                victims=tuple(str(victim) for victim in item.get("victims") or ()),
                for_model=str(item.get("forModel") or ""),
                memory=int(item.get("memory") or 0),
                left=None if item.get("left") is None else int(item["left"]),
                error=str(item.get("error") or ""),
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class MadeRoom:
    """Somebody who left so that a model could wake: by which rule, and its own account if that is known."""

    model: str
    rule: str
    account: Account | None = None

    def text(self) -> str:
        """One sentence for people."""
        if self.account is None:
            return f"{self.model} {self.rule}"
        steps = ", ".join(f"{name} {short_duration(took)}" for name, took in self.account.steps.items())
        took = f" in {short_duration(self.account.total)}" + (f" ({steps})" if steps else "")
        return f"{self.model} {self.rule}; it left{took} and freed {short_bytes(self.account.memory)}"


@dataclass(frozen=True, slots=True)
class Wake:
    """One wake of a model and who made room for it."""

    account: Account
    made_room: tuple[MadeRoom, ...] = ()

    @property
    def slowest(self) -> str:
        """The step that took longest, "" when there is none."""
        return max(self.account.steps, key=lambda name: self.account.steps[name], default="")


@dataclass(frozen=True, slots=True)
class IfAsked:
    """What a request would meet if it came now.

    ``decision`` is that of this moment (None when nothing needs to be decided), ``then`` what time alone turns it into.
    """

    text: str
    decision: Decision | None = None
    at: datetime | None = None
    then: Decision | None = None
    #: What else would happen, one sentence each.
    more: tuple[str, ...] = ()


def accounts(events: Iterable[Mapping[str, Any]]) -> list[Account]:
    """The records on Events, oldest first; Events without one are left out."""
    found = (account for event in events if (account := Account.from_event(event)) is not None)
    return sorted(found, key=lambda account: account.began)


def wakes(row: ModelRow, told: Sequence[Account]) -> list[Wake]:
    """The wakes of a model that were told, oldest first; ``told`` is of all models that may have made room."""
    own = [a for a in told if (a.namespace, a.model) == (row.namespace, row.name) and a.is_wake]
    return [Wake(account, _made_room(row, account, told)) for account in own]


def _made_room(row: ModelRow, wake: Account, told: Sequence[Account]) -> tuple[MadeRoom, ...]:
    """Those that left for it meanwhile, and victims that it named and whose own account is not there."""
    slack = timedelta(seconds=_SLACK)
    rules = row.model.spec.fairness
    left: dict[tuple[str, str], Account] = {}
    for account in told:
        if account.kind != "sleep" or account.model == row.name:
            continue
        if not wake.began - slack <= account.ended <= wake.ended + slack:
            continue
        ours = account.for_model == row.name
        if not ours and account.model not in wake.victims:
            continue
        # one that slept twice meanwhile left for us the last time, if not for somebody else
        key = (account.namespace, account.model)
        if ours or key not in left or left[key].for_model != row.name:
            left[key] = account
    gone = sorted(left.values(), key=lambda account: account.ended)
    found = [MadeRoom(each.model, _rule(each, each.model in wake.victims, rules), each) for each in gone]
    known = {each.model for each in found}
    asked = "was asked to make room: " + _preempted(rules)
    return (*found, *(MadeRoom(name, asked) for name in dict.fromkeys(wake.victims) if name not in known))


def _rule(account: Account, named: bool, waiter: Fairness) -> str:
    if account.event == "GaveWay":
        return "gave way by itself: past its minRuntime and idle for its yieldAfter while this model waited"
    if account.event == "Preempted" or (named and account.reason.startswith("preempted")):
        return f"was preempted: {_preempted(waiter)}"
    if account.reason == "asked to":
        return "was put to sleep by a person"
    return f"went to sleep ({account.reason})"


def _preempted(waiter: Fairness) -> str:
    return (
        f"after this model had waited its maxWaitTime ({format_duration(waiter.max_wait_time)}), the least "
        "recently used of those that are neither pinned nor within their minRuntime"
    )


def if_asked(row: ModelRow, snapshot: Snapshot) -> IfAsked:
    """What would happen if a request came now, from the functions that decide."""
    if row.model.spec.replicas == 0:
        return IfAsked("it would be refused (503): the Model has replicas: 0")
    queued = f", behind {row.queued} that wait already" if row.queued else ""
    match row.state:
        case Shown.SERVING:
            return IfAsked(f"it would be answered at once: {row.name} serves on {', '.join(row.places)}")
        case Shown.WAKING | Shown.CONVERTING:
            return IfAsked(f"it would be queued{queued}, and answered as soon as {row.name} serves")
        case Shown.DEACTIVATING:
            return IfAsked(f"it would be queued{queued} until {row.name} has slept, and then wake it again")
        case Shown.FAILED:
            return IfAsked(f"it would be refused (503): {row.error or 'the Model has failed'}")
        case Shown.PENDING | Shown.CANNOT_FIT:
            waiting = next((replica for replica in row.replicas if replica.want is not None), None)
            if waiting is None:
                return IfAsked(f"it would be queued{queued}")
            moment, then = foreseen(waiting, snapshot)
            return IfAsked(
                f"it would be queued{queued}: {_now(waiting.decision, snapshot)}",
                waiting.decision, moment, then, _more(waiting, waiting.decision, moment, then, snapshot),
            )  # fmt: skip
    replica = next((each for each in row.replicas if each.gpus), None)
    if replica is None:
        return IfAsked("it would be held by the gateway until the model has a pod that is ready")
    need = row.model.status.serving_memory_per_gpu
    if need is None:
        return IfAsked(
            f"it would wait for the engine's first boot on {', '.join(row.places)}, which measures what it needs"
        )
    return _of_sleeping(row, replica, need, snapshot)


def _of_sleeping(row: ModelRow, replica: Replica, need: int, snapshot: Snapshot) -> IfAsked:
    devices = [each.gpu for each in snapshot.gpus if each.gpu.node == replica.node and each.gpu.index in replica.gpus]
    if len(devices) != len(replica.gpus):
        return IfAsked(f"it would wait: not all of its GPUs ({', '.join(row.places)}) are registered")
    want = Want(replica.pod, row.name, need, snapshot.at, row.model.spec.fairness.max_wait_time)
    decision = fairness.decide(want, devices, snapshot.at)
    took = f" (the last wake took {short_duration(row.last_wake)})" if row.last_wake else ""
    if isinstance(decision, Fits):
        room = min(gpu.room for gpu in devices)
        return IfAsked(
            f"it would wake at once on {', '.join(row.places)}{took}: it needs {short_bytes(need)}, "
            f"{short_bytes(room)} is free",
            decision,
        )  # fmt: skip
    asking = replace(replica, want=want, decision=decision)
    moment, then = foreseen(asking, snapshot)
    verdict = "it would not be served: it" if isinstance(decision, CannotFit) else "it would wait: it"
    return IfAsked(
        f"{verdict} {_now(decision, snapshot)}", decision, moment, then, _more(asking, decision, moment, then, snapshot)
    )


def _now(decision: Decision | None, snapshot: Snapshot) -> str:
    if decision is None:
        return "waits for memory"
    if isinstance(decision, Wait):
        decision = Wait(decision.obstacles, None, decision.coming)
    return fairness.explain(decision, snapshot.at)


def _more(
    replica: Replica, now: Decision | None, moment: datetime, then: Decision | None, snapshot: Snapshot
) -> tuple[str, ...]:
    """Who would give way by itself, who would be asked and when."""
    lines = []
    if isinstance(now, Wait):
        blockers = dict.fromkeys(blocker.pod for obstacle in now.obstacles for blocker in obstacle.blockers)
        lines += [text for blocker in blockers if (text := _gives_way(blocker, snapshot))]
    max_wait = format_duration(replica.want.max_wait) if replica.want else ""
    left = short_duration((moment - snapshot.at).total_seconds())
    if isinstance(then, Preempt):
        who = ", ".join(victim.model for victim in then.victims)
        when = f"after {left}" if moment > snapshot.at else "at once"
        lines.append(
            f"{when}, unless there is room before, {who} would be asked to make room: past its minRuntime, not pinned, "
            f"least recently used (maxWaitTime is {max_wait})"
        )
    elif isinstance(then, Fits) and moment > snapshot.at:
        lines.append(f"after {left} there would be room")
    elif isinstance(then, CannotFit):
        lines.append("it has to wait until a pinned model or another program leaves")
    elif isinstance(then, Wait) and then.coming:
        lines.append(f"it would wake as soon as {', '.join(then.coming)} has made room")
    elif isinstance(then, Wait):
        lines.append("nobody who may be preempted has enough memory: it would wait for the next change on its GPU")
    return tuple(lines)


def _gives_way(pod: PodRef, snapshot: Snapshot) -> str:
    """When an occupant would leave by itself, "" if it would not."""
    row = next((row for row in snapshot.models for replica in row.replicas if replica.pod == pod), None)
    if row is None or row.pinned or row.state is not Shown.SERVING:
        return ""
    rules = row.model.spec.fairness
    if not rules.yield_after:
        return ""
    gpu = next((g.gpu for g in snapshot.gpus if g.gpu.occupant(pod) is not None), None)
    occupant = gpu.occupant(pod) if gpu else None
    if occupant and occupant.sidecar_down:
        return ""
    protected = fairness.protected_for(occupant, snapshot.at) if occupant else 0.0
    after = f"when it has been idle for {format_duration(rules.yield_after)}"
    if protected:
        after += f" and has served its minRuntime ({short_duration(protected)} left)"
    busy = f" ({row.in_flight} in flight now)" if row.in_flight else ""
    return f"{row.name} would give way by itself {after}{busy}"
