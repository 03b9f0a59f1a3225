"""Why a serving model goes to sleep. Pure: the lifecycle asks, this answers with the reason or when to ask again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from greenthread import fairness
from greenthread.gpu import Gpu, Intent, PodRef, State
from greenthread.model import ModelSpec

#: Of several idle models the least recently used goes first: the others wait this much longer (seconds) each.
_AFTER_YOU = 0.1


class Why(Enum):
    """What made it sleep; the value is how it is told."""

    IDLE = "idle"
    YIELDED = "gave way"
    PREEMPTED = "preempted"
    ASKED = "asked to"
    BOOTED = "booted, nobody asked for it yet"
    STOPPED = "the pod goes away"
    CRASHED = "the engine died"
    BEGUN = "had begun to leave when the API server gave no answer"


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason to sleep, and who needs the memory."""

    why: Why
    intent: Intent | None = None

    @property
    def text(self) -> str:
        if self.why is Why.YIELDED and self.intent:
            return f"idle and gave way to {self.intent.model}"
        if self.why is Why.PREEMPTED and self.intent:
            return f"preempted for {self.intent.model}"
        return self.why.value


@dataclass(frozen=True, slots=True)
class Serving:
    """What a serving model knows about itself. Seconds."""

    pod: PodRef
    spec: ModelSpec
    in_flight: int
    #: Since nothing is in flight any more; meaningless while something is.
    idle_for: float
    #: Left of its minRuntime.
    protected_for: float
    last_used: datetime
    #: What a person asked for.
    wished: Why | None = None
    engine_died: bool = False


def reason_to_sleep(me: Serving, gpus: Sequence[Gpu], now: datetime) -> Reason | float:
    """The reason to sleep now, or the seconds until the answer may change by itself (inf: only by an event)."""
    if me.engine_died:
        return Reason(Why.CRASHED)
    if me.wished is not None:
        return Reason(me.wished)
    if any((mine := gpu.occupant(me.pod)) is not None and mine.state is State.DEACTIVATING for gpu in gpus):
        return Reason(Why.BEGUN)  # others count on it, and there is no way back
    if me.spec.fairness.popular:
        return math.inf
    named = fairness.named_by(me.pod, gpus)
    if named is not None:
        return me.protected_for or Reason(Why.PREEMPTED, named)
    idle_timeout = me.spec.sleep.idle_timeout or math.inf
    if me.in_flight:
        return max(idle_timeout, 1.0)  # the door tells when it becomes idle, if somebody waits
    left = max(idle_timeout - me.idle_for, me.protected_for)
    reason = Reason(Why.IDLE)
    waiter = fairness.gives_way(me.pod, gpus)
    if waiter is not None and me.spec.fairness.yield_after > 0:
        waited = (now - waiter.since).total_seconds()
        turn = _AFTER_YOU * _less_recently_used(me, gpus, now) - waited
        gives_way_in = max(me.spec.fairness.yield_after - me.idle_for, me.protected_for, turn)
        if gives_way_in <= left:
            left, reason = gives_way_in, Reason(Why.YIELDED, waiter)
    return reason if left <= 0 else left


def _less_recently_used(me: Serving, gpus: Sequence[Gpu], now: datetime) -> int:
    """Occupants of the same GPUs that could give way as well, and should before this one."""
    older = {
        occupant.pod
        for gpu in gpus
        for occupant in gpu.occupants
        if occupant.pod != me.pod
        and occupant.state is State.SERVING
        and not occupant.popular
        and not occupant.sidecar_down
        and not fairness.protected_for(occupant, now)
        and occupant.last_accessed is not None
        and occupant.last_accessed < me.last_used
    }
    return len(older)
