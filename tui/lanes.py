"""The states that a model was in, from what its sidecar told of each wake and sleep, and from what is now. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from greenthread.clock import parse_time
from greenthread.snapshot import ModelRow, Shown
from tui.known import RECORDS_KEPT, Told

_BEFORE = {"wake": Shown.SLEEPING, "sleep": Shown.SERVING}
"""What a model was before it did this."""
SHORTEST = timedelta(milliseconds=20)
"""What took less is not drawn: a queue of 2 ms is none."""


@dataclass(frozen=True)
class Span:
    """A state and when it began and ended."""

    state: Shown
    began: datetime
    ended: datetime

    @property
    def seconds(self) -> float:
        return (self.ended - self.began).total_seconds()


def spans(records: Sequence[Told], row: ModelRow, start: datetime, now: datetime) -> list[Span]:
    """From `start` to `now`, oldest first. `records`: of the model, in any order.

    What it was before the oldest record follows from that one, if no record can be missing.
    """
    points: list[tuple[datetime, Shown]] = []
    ordered = sorted(records, key=lambda told: told.order)
    for told in ordered:
        points += _points(told)
    if points and len(ordered) < RECORDS_KEPT:
        made = max(start, row.model.created_at or start)
        kind = (ordered[0].record or {}).get("kind")
        if made < points[0][0] and kind in _BEFORE:
            points.insert(0, (made, _BEFORE[str(kind)]))
    if row.since is not None and row.state is not Shown.STAGING:
        points = [point for point in points if point[0] < row.since]
        points.append((row.since, row.state))
    points.sort(key=lambda point: point[0])
    found: list[Span] = []
    for number, (began, state) in enumerate(points):
        ended = points[number + 1][0] if number + 1 < len(points) else now
        began, ended = max(began, start), min(ended, now)
        if ended - began < SHORTEST:
            continue
        if found and found[-1].state is state and began - found[-1].ended < SHORTEST:
            found[-1] = Span(state, found[-1].began, ended)
        else:
            found.append(Span(state, began, ended))
    return found


def _points(told: Told) -> list[tuple[datetime, Shown]]:
    """When which state began, as one record tells."""
    record = told.record or {}
    try:
        at = parse_time(str(record["at"]))
        steps = {str(name): timedelta(seconds=float(value)) for name, value in record["steps"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    none = timedelta()
    match record.get("kind"):
        case "wake" | "boot":
            boots = record["kind"] == "boot"
            claimed = at + steps.get("queue", none)
            ended = claimed + steps.get("claim", none) + steps.get("engine", none)
            after = Shown.SLEEPING if record.get("error") or (boots and told.reason != "Woke") else Shown.SERVING
            before = [] if boots and told.reason != "Woke" else [(at, Shown.PENDING)]
            return [*before, (claimed, Shown.CONVERTING if boots else Shown.WAKING), (ended, after)]
        case "sleep" | "crash":
            return [
                (at, Shown.DEACTIVATING),
                (at + steps.get("drain", none) + steps.get("engine", none), Shown.SLEEPING),
            ]
    return []


def cells(found: Sequence[Span], state: Shown, start: datetime, now: datetime, width: int) -> list[tuple[int, int]]:
    """The cells (from, before) of a lane of `width` cells that a state fills; a mark has a cell at least."""
    whole = (now - start).total_seconds()
    marks: list[tuple[int, int]] = []
    for span in found:
        if span.state is not state or whole <= 0:
            continue
        first = min(int((span.began - start).total_seconds() / whole * width), width - 1)
        last = min(max(round((span.ended - start).total_seconds() / whole * width), first + 1), width)
        marks.append((first, last))
    return marks
