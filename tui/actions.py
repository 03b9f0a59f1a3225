"""What a person may do to a model: a patch of the Model, the same as a command, and what it disturbs. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from greenthread.clock import format_time
from greenthread.names import ANNOTATION_PREEMPT, ANNOTATION_SLEEP, ANNOTATION_WAKE
from greenthread.outlook import waiters
from greenthread.snapshot import ModelRow, Shown
from greenthread.units import format_duration, short_bytes, short_duration
from tui.facts import where
from tui.view import View

BUSY = (Shown.SERVING, Shown.WAKING, Shown.DEACTIVATING, Shown.CONVERTING)
ACTION_KEYS = {"w": "wake", "s": "sleep", "p": "pin", "x": "preempt"}
_WISHES = {"wake": ANNOTATION_WAKE, "sleep": ANNOTATION_SLEEP, "preempt": ANNOTATION_PREEMPT}
_DONE = {
    "wake": "asked {} to wake",
    "sleep": "asked {} to sleep",
    "preempt": "asked {} to make room",
    "pin": "pinned {}: once awake it stays on its GPU",
    "unpin": "unpinned {}: it gives way again",
}


@dataclass(frozen=True)
class Action:
    """`facts`: (title, text) of what it means, to be confirmed; empty when nothing that runs is disturbed."""

    verb: str
    row: ModelRow
    body: dict[str, Any]
    command: str
    done: str
    question: str = ""
    facts: tuple[tuple[str, str], ...] = ()


def why_not(verb: str, row: ModelRow) -> str:
    """Why an action does not apply to a model; "" when it does."""
    asleep = row.vram == 0 and row.state in (Shown.SLEEPING, Shown.STAGING, Shown.FAILED)
    match verb:
        case "wake" if row.model.spec.replicas == 0:
            return f"{row.name} has replicas: 0, so nothing can wake: set spec.replicas to 1 or more"
        case "wake" if row.state in (Shown.SERVING, Shown.WAKING):
            return f"{row.name} is {row.state} already"
        case "wake" if row.state is Shown.PENDING and not _boots(row):
            return f"{row.name} waits for memory already"
        case "sleep" | "preempt" if asleep:
            return f"{row.name} sleeps already: it holds no GPU memory"
        case "sleep" if row.vram == 0 and row.state in (Shown.PENDING, Shown.CANNOT_FIT) and row.queued:
            several = "requests wait" if row.queued > 1 else "request waits"
            return f"{row.name} holds no GPU memory: {row.queued} {several} for it, and only their clients can end that"
        case "preempt" if row.pinned:
            return f"{row.name} is pinned and never preempted: unpin it first (p)"
        case "preempt" if row.state is not Shown.SERVING:
            return f"{row.name} is {row.state}: only a serving model can be preempted"
    return ""


def action(verb: str, row: ModelRow, view: View, kubectl_flags: Sequence[str] = ()) -> Action:
    """What `verb` (wake, sleep, pin, unpin, preempt) does to a model."""
    if verb in _WISHES:
        body: dict[str, Any] = {"metadata": {"annotations": {_WISHES[verb]: format_time(view.now)}}}
    else:
        body = {"spec": {"fairness": {"popular": verb == "pin"}}}
    command = shlex.join(["kubectl", "greenthread", verb, row.name, "-n", row.namespace, *kubectl_flags])
    done = _DONE[verb].format(row.name)
    if verb not in ("sleep", "preempt") or row.state not in BUSY:
        return Action(verb, row, body, command, done)
    question = f"Put {row.name} to sleep?" if verb == "sleep" else f"Preempt {row.name}?"
    return Action(verb, row, body, command, done, question, _disturbed(verb, row, view))


def _disturbed(verb: str, row: ModelRow, view: View) -> tuple[tuple[str, str], ...]:
    drain = format_duration(row.model.spec.sleep.drain_timeout)
    if row.in_flight is None:
        flying = f"not reported; requests get {drain} (drainTimeout) to finish"
    elif row.in_flight:
        several = "requests get" if row.in_flight > 1 else "request gets"
        flying = f"{row.in_flight} {several} {drain} (drainTimeout) to finish, then they are cut off"
    else:
        flying = "nothing just now"
    took = f"a wake took {short_duration(row.last_wake)}" if row.last_wake is not None else ""
    rate = view.data.rate((row.namespace, row.name))
    often = f", and it gets {rate:.1f}/s" if rate and rate >= 0.05 else ""
    comes = f"with the next request{often}{': ' + took if took else ''}"
    facts = [
        ("In flight", flying),
        ("Meanwhile", "requests that arrive while it drains are queued, not refused"),
        ("Comes back", comes),
    ]
    waiting = waiters(row, view.snapshot)
    who = f"{', '.join(waiting)} waits" if len(waiting) == 1 else f"{', '.join(waiting)} wait" if waiting else ""
    facts.append(("Frees", f"{short_bytes(row.vram)} on {where(row)}, where {who or 'nobody waits'}"))
    if row.pinned:
        facts.append(("Pinned", "protects it from other models, not from you; it stays pinned"))
    if verb == "preempt" and row.since is not None:
        left = row.model.spec.fairness.min_runtime - (view.now - row.since).total_seconds()
        if left > 0:
            facts.append(("Protected", f"{short_duration(left)} more (minRuntime); this does not count here"))
    return tuple(facts)


def _boots(row: ModelRow) -> bool:
    """Whether it waits to boot, with nobody who wants it to serve."""
    return any(replica.intent is not None and replica.intent.boot for replica in row.replicas)
