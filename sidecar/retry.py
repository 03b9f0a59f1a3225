"""When a client that is refused may well try again. Pure: from what wakes took so far, and who stands before it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from sidecar.metrics import SidecarState
from sidecar.records import Record

_RECENT = 5
"""Records that count: models and links change."""
_UNMEASURED = {"queue": 0.0, "claim": 0.0, "engine": 5.0, "drain": 1.0}
"""Seconds for a step that never happened yet."""
_HOPELESS = 30.0
"""Seconds; nothing measured says when a model that stays in the way goes."""
_BOUNDS = (1.0, 600.0)


@dataclass(frozen=True, slots=True)
class Prospect:
    """What stands between a request and its answer. Seconds."""

    state: SidecarState
    #: Since the state began.
    for_now: float
    #: The engine can be woken; else it must boot, after ``boot_pause``.
    boot_ready: bool = True
    boot_pause: float = 0.0
    #: Other models that are served before this one.
    ahead: int = 0
    #: Left until time alone may change the decision (maxWaitTime, a minRuntime).
    decides_in: float = 0.0
    #: It fits nowhere, whoever may be preempted.
    cannot_fit: bool = False


def retry_after(prospect: Prospect, records: Iterable[Record]) -> float:
    """Seconds from now, 1 to 600. ``records``: oldest first."""
    kept = [record for record in records if not record.error]
    starts = [record for record in kept if record.kind == ("wake" if prospect.boot_ready else "boot")][-_RECENT:]
    sleeps = [record for record in kept if record.kind == "sleep"][-_RECENT:]
    engine = _typical(starts, "claim") + _typical(starts, "engine")
    queue = _typical(starts, "queue")
    match prospect.state:
        case SidecarState.SERVING:
            seconds = 0.0
        case SidecarState.WAKING:
            # one that takes longer than usual: nobody knows, but it cannot be far
            seconds = max(engine - prospect.for_now, engine / 4)
        case SidecarState.PENDING:
            seconds = max(queue - prospect.for_now, prospect.decides_in) + (prospect.ahead + 1) * engine
        case SidecarState.DEACTIVATING:
            seconds = max(_typical(sleeps, "drain") - prospect.for_now, 0.0) + queue + engine
        case SidecarState.SLEEPING:
            seconds = prospect.boot_pause + queue + engine
    if prospect.cannot_fit:
        seconds = max(seconds, _HOPELESS)
    return min(max(math.ceil(seconds), _BOUNDS[0]), _BOUNDS[1])


def _typical(records: list[Record], step: str) -> float:
    return median(record.steps.get(step, 0.0) for record in records) if records else _UNMEASURED[step]
