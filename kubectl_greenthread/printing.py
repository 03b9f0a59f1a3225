"""Durations, sizes, states and rows as people and programs read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from greenthread.clock import format_time
from greenthread.fairness import CannotFit, Obstacle, Preempt, Wait, why_it_stays
from greenthread.outlook import next_step, why
from greenthread.snapshot import GpuRow, ModelRow, Shown, Snapshot
from greenthread.units import short_bytes, short_duration
from kubectl_greenthread.output import tell
from kubectl_greenthread.terminal import Cell, Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kubectl_greenthread.options import Session


def warn(session: Session, texts: Sequence[str]) -> None:
    """What could not be read, on stderr."""
    for text in texts:
        tell(f"warning: {session.terminal.clean(text)}")


def state_cell(session: Session, state: Shown) -> Cell:
    return state_cell_of(session.terminal, state)


def state_cell_of(terminal: Terminal, state: Shown) -> Cell:
    return Cell(f"{terminal.glyph(state)} {state}", str(state))


def for_cell(since: datetime | None, now: datetime) -> Cell:
    return Cell(short_duration((now - since).total_seconds()) if since else "-")


def number_cell(number: int | None) -> Cell:
    return Cell("-" if number is None else str(number), "dim" if not number else "")


def bytes_cell(count: int) -> Cell:
    return Cell(short_bytes(count) if count else "0", "" if count else "dim")


def wake_cell(seconds: float | None) -> Cell:
    return Cell("-" if seconds is None else short_duration(seconds))


def note(row: ModelRow, now: datetime) -> str:
    """The few words beside a row: pinned, what it waits for, what went wrong."""
    notes = ["pinned"] if row.pinned else []
    if row.state in (Shown.PENDING, Shown.CANNOT_FIT):
        notes.append(_waits_for(row, now))
    elif row.error:
        notes.append(row.error)
    if len(row.replicas) > 1:
        serving = sum(replica.state is Shown.SERVING for replica in row.replicas)
        notes.append(f"{len(row.replicas)} replicas, {serving} serving")
    return ", ".join(notes)


def _waits_for(row: ModelRow, now: datetime) -> str:
    decision = next((replica.decision for replica in row.replicas if replica.decision is not None), None)
    if not isinstance(decision, Wait | Preempt | CannotFit):
        return "waits for memory"
    if isinstance(decision, CannotFit):
        gpus = [obstacle.gpu for obstacle in decision.obstacles]
        stay = [
            f"{other.model} is pinned" for gpu in gpus for other in gpu.occupants if other.popular and other.reserved
        ]
        stay += [f"other programs use {short_bytes(gpu.foreign)}" for gpu in gpus if gpu.foreign]
        return f"cannot fit: {', '.join(dict.fromkeys(stay)) or 'it needs more than the GPU has'}"
    blockers = [_blockers(obstacle, now) for obstacle in decision.obstacles]
    return f"waits for {', '.join(dict.fromkeys(text for text in blockers if text)) or 'memory'}"


def _blockers(obstacle: Obstacle, now: datetime) -> str:
    if not obstacle.short and obstacle.lock_holder:
        return f"{obstacle.lock_holder} (is waking)"
    names = [f"{blocker.model} ({why_it_stays(blocker, obstacle.gpu, now)})" for blocker in obstacle.blockers]
    return ", ".join([*obstacle.older_models, *names])


def next_text(row: ModelRow, snapshot: Snapshot) -> str:
    """What happens next and when, as one clause; may be empty."""
    moment, text = next_step(row, snapshot)
    if moment is None or not text:
        return text
    left = (moment - snapshot.at).total_seconds()
    return f"in {short_duration(left)} {text}" if left > 0 else f"now {text}"


def model_data(row: ModelRow, snapshot: Snapshot) -> dict[str, Any]:
    """A row for programs; bytes, seconds, RFC 3339 times; null: nobody reported it."""
    return {
        "namespace": row.namespace,
        "name": row.name,
        "state": str(row.state),
        "since": format_time(row.since) if row.since else None,
        "gpus": list(row.places),
        "memoryBytes": row.vram,
        "inFlight": row.in_flight,
        "queued": row.queued,
        "lastWakeSeconds": row.last_wake,
        "pinned": row.pinned,
        "why": why(row, snapshot),
        "next": next_text(row, snapshot),
    }


def gpu_data(row: GpuRow) -> dict[str, Any]:
    """A GPU for programs; bytes."""
    gpu = row.gpu
    return {
        "name": gpu.name,
        "node": gpu.node,
        "index": gpu.index,
        "product": gpu.product,
        "totalMemoryBytes": gpu.total,
        "foreignMemoryBytes": gpu.foreign,
        "freeMemoryBytes": row.free,
        "utilizationPercent": gpu.stats.utilization if gpu.stats else None,
        "temperatureCelsius": gpu.stats.temperature if gpu.stats else None,
        "powerWatts": gpu.stats.power if gpu.stats else None,
        "occupants": [occupant.to_object() for occupant in gpu.occupants],
        "waiting": [intent.to_object() for intent in row.waiting],
    }
