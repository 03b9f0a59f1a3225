"""What a Model's state means and what comes next, in words with numbers: from the functions that decide, never made up
beside them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from greenthread import fairness
from greenthread.fairness import CannotFit, Decision, Fits, Preempt, Wait, Want
from greenthread.snapshot import ModelRow, Replica, Shown, Snapshot
from greenthread.units import format_duration, short_bytes, short_duration


def why(row: ModelRow, snapshot: Snapshot) -> str:
    """Why the Model is in its state now, with numbers: from the functions that decide, never made up beside them."""
    now = snapshot.at
    held_for = short_duration((now - row.since).total_seconds()) if row.since else ""
    if row.error and row.state in (Shown.FAILED, Shown.SLEEPING):
        return f"{row.name}: {row.error}"
    match row.state:
        case Shown.PENDING | Shown.CANNOT_FIT:
            waiting = next((r for r in row.replicas if r.decision is not None), None)
            if waiting is not None and waiting.decision is not None:
                return f"{row.name} {fairness.explain(_without_time(waiting.decision), now)}"
            return f"{row.name} waits for memory"
        case Shown.SERVING:
            return (
                f"{row.name} serves on {', '.join(row.places)}{' for ' + held_for if held_for else ''}{_kept(row, now)}"
            )
        case Shown.WAKING:
            return f"{row.name} wakes on {', '.join(row.places)}: its memory is claimed, the engine takes it now"
        case Shown.CONVERTING:
            return f"{row.name} boots its engine on {', '.join(row.places)} to measure what it needs, then sleeps"
        case Shown.DEACTIVATING:
            return f"{row.name} finishes its requests and goes to sleep on {', '.join(row.places)}"
        case Shown.SLEEPING:
            return f"{row.name} {'has slept for ' + held_for if held_for else 'sleeps'}: it holds no GPU memory"
    ready = next((c for c in row.model.status.conditions if c.type == "Ready"), None)
    return f"{row.name}: {ready.message}" if ready and ready.message else f"{row.name} is {row.state}"


def next_step(row: ModelRow, snapshot: Snapshot) -> tuple[datetime | None, str]:
    """When and what happens next, if that is known."""
    now = snapshot.at
    fairness_of, sleep = row.model.spec.fairness, row.model.spec.sleep
    match row.state:
        case Shown.PENDING:
            for replica in row.replicas:
                moment, decision = foreseen(replica, snapshot)
                match decision:
                    case Wait(coming=coming) if _enough_comes(decision, replica):
                        return None, f"wakes as soon as {', '.join(coming)} has made room"
                    case Preempt(victims=victims) if moment > now:
                        who = ", ".join(v.model for v in victims)
                        return moment, f"asks {who} to make room, unless there is room before"
                    case Preempt(victims=victims):
                        return now, f"asks {', '.join(v.model for v in victims)} to make room"
                    case Fits():
                        return now, "claims the memory and wakes"
            return None, "waits for the next change on its GPU"
        case Shown.CANNOT_FIT:
            return None, "waits until a pinned model or another program leaves"
        case Shown.WAKING:
            return None, f"answers {_requests(row.queued)} as soon as it serves" if row.queued else "serves"
        case Shown.CONVERTING:
            return (
                None,
                f"answers {_requests(row.queued)} when it has booted" if row.queued else "sleeps until it is asked",
            )
        case Shown.DEACTIVATING:
            rest = f"{_requests(row.in_flight)} in flight get" if row.in_flight else "requests in flight get"
            return None, f"sleeps; {rest} {format_duration(sleep.drain_timeout)} at most, new ones are queued"
        case Shown.SERVING:
            if fairness_of.popular:
                return None, "stays: pinned models are never preempted"
            waiting = waiters(row, snapshot)
            kept = row.since + timedelta(seconds=fairness_of.min_runtime) if row.since else now
            if waiting:
                then = f"gives way to {waiting[0]} when idle, or is preempted"
                return (kept, then) if kept > now else (None, then)
            if sleep.idle_timeout and not row.in_flight:
                return None, f"sleeps when idle for {format_duration(sleep.idle_timeout)}, or gives way to a waiter"
            return None, "serves on: nobody waits for its memory"
        case Shown.SLEEPING:
            return None, _if_asked(row, snapshot)
    return None, ""


def foreseen(replica: Replica, snapshot: Snapshot) -> tuple[datetime, Decision | None]:
    """What will be decided if nothing but time changes, and when."""
    moment, decision = snapshot.at, replica.decision
    devices = [device.gpu for device in snapshot.on(replica)]
    for _ in range(8):  # each time is the end of a barrier or of somebody's minRuntime
        if replica.want is None or not isinstance(decision, Wait) or _enough_comes(decision, replica):
            break
        if decision.until is None or decision.until <= moment:
            break
        moment = decision.until
        decision = fairness.decide(replica.want, devices, moment)
    return moment, decision


def _enough_comes(decision: Wait, replica: Replica) -> bool:
    """Whether what is on its way is enough for it, and for those who asked before it."""
    return bool(decision.coming) and all(
        obstacle.free + fairness.coming(obstacle.gpu, waiter=replica.pod) >= obstacle.need + obstacle.older
        for obstacle in decision.obstacles
    )


def waiters(row: ModelRow, snapshot: Snapshot) -> list[str]:
    """Other models that wait for memory on one of its GPUs, oldest first."""
    intents = [intent for replica in row.replicas for device in snapshot.on(replica) for intent in device.waiting]
    own = {replica.pod for replica in row.replicas}
    return list(dict.fromkeys(i.model for i in sorted(intents, key=lambda intent: intent.age) if i.pod not in own))


def _requests(count: int | None) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _if_asked(row: ModelRow, snapshot: Snapshot) -> str:
    """What a request would meet now."""
    memory = row.model.status.serving_memory_per_gpu
    replica = next((r for r in row.replicas if r.gpus), None)
    if memory is None or replica is None:
        return "a request makes it boot"
    devices = [device.gpu for device in snapshot.on(replica)]
    if len(devices) != len(replica.gpus):
        return ""
    want = Want(replica.pod, row.name, memory, snapshot.at, row.model.spec.fairness.max_wait_time)
    decision = fairness.decide(want, devices, snapshot.at)
    took = f" in ~{short_duration(row.last_wake)}" if row.last_wake else ""
    if isinstance(decision, Fits):
        return f"a request wakes it{took}: {short_bytes(memory)} is free for it"
    if isinstance(decision, CannotFit):
        return f"a request could not be served: it {fairness.explain(decision, snapshot.at)}"
    waits = format_duration(row.model.spec.fairness.max_wait_time)
    return f"a request waits for room, {waits} at most before others are asked to leave"


def _kept(row: ModelRow, now: datetime) -> str:
    """Why a serving model stays, as the end of a sentence."""
    if row.pinned:
        return "; it is pinned and never preempted"
    start = row.since
    if start is not None:
        left = start + timedelta(seconds=row.model.spec.fairness.min_runtime) - now
        if left.total_seconds() > 0:
            return f"; protected {short_duration(left.total_seconds())} more (minRuntime)"
    return ""


def _without_time(decision: Decision) -> Decision:
    """The moment of the next decision is told by ``next_step``."""
    return Wait(decision.obstacles, None, decision.coming) if isinstance(decision, Wait) else decision
