"""A model's last wakes, each broken into the steps that it took, its victims' included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from greenthread.clock import parse_time
from greenthread.snapshot import ModelRow
from greenthread.units import short_duration
from tui.cells import Line, cut
from tui.known import Told
from tui.view import NONE, View

SHOWN = 6
STEPS = ("queue", "drain", "sleep", "claim", "engine")
"""In the order in which they happen; drain and sleep are the victim's."""
_TITLES = {"engine": "COPY"}
_COLOURS = {"queue": 5, "drain": 1, "sleep": 3, "claim": 2, "engine": 0}
"""Numbers of the occupants' colours."""
_SLACK = timedelta(seconds=1.0)
"""Clocks of two nodes may differ by as much."""


def wakes_of(view: View, row: ModelRow) -> list[Told]:
    """The last wakes and boots, newest first."""
    told = view.data.records((row.namespace, row.name))
    return [item for item in told if (item.record or {}).get("kind") in ("wake", "boot")][:SHOWN]


def steps_of(told: Told, events: Sequence[Told]) -> dict[str, float]:
    """Seconds of each step. What its victims needed is taken from the queue, in which it was told."""
    record: Mapping[str, Any] = told.record or {}
    given = record.get("steps")
    if not isinstance(given, Mapping):
        return {}
    steps = {str(name): float(value) for name, value in given.items() if isinstance(value, int | float)}
    began = moment(told)
    claimed = began + timedelta(seconds=steps.get("queue", 0.0))
    drain = sleep = 0.0
    for other in events:
        sleeps: Mapping[str, Any] = other.record or {}
        if sleeps.get("kind") != "sleep" or sleeps.get("forModel") != told.key[1] or other.key == told.key:
            continue
        at, took = moment(other), sleeps.get("steps")
        if not isinstance(took, Mapping) or not began - _SLACK <= at <= claimed + _SLACK:
            continue
        # of several victims the slowest is what was waited for
        drain = max(drain, float(took.get("drain") or 0.0))
        sleep = max(sleep, float(took.get("engine") or 0.0))
    if drain or sleep:
        steps["queue"] = max(steps.get("queue", 0.0) - drain - sleep, 0.0)
        steps |= {"drain": drain, "sleep": sleep}
    return steps


def moment(told: Told) -> datetime:
    """When what was told began."""
    try:
        return parse_time(str((told.record or {}).get("at")))
    except ValueError:
        return told.at


def how(told: Told) -> str:
    """Why it took as long as it did, in a few words."""
    record: Mapping[str, Any] = told.record or {}
    victims = record.get("victims")
    if record.get("error"):
        return str(record["error"])
    if isinstance(victims, list) and victims:
        return f"preempted {', '.join(map(str, victims))}"
    if record.get("waitedFor"):
        return "waited for room"
    return "first boot" if record.get("kind") == "boot" else f"room, {record.get('reason') or 'woke'}"


def lines(row: ModelRow, view: View, width: int) -> list[Line]:
    """The section LAST WAKES: the heads of its columns are the legend of the bars."""
    palette = view.palette
    found = [Line(width), Line(width)]
    found[1].put(1, "LAST WAKES", palette.dim, bold=True)
    wakes = wakes_of(view, row)
    if not wakes:
        found[1].put(13, "none told yet", palette.dim)
        return found
    steps = [steps_of(told, view.data.events) for told in wakes]
    used = [step for step in STEPS if any(step in one for one in steps)]
    colours = {step: palette.occupants[number][1] for step, number in _COLOURS.items()}
    column = 10 if width >= 100 else 9
    first = max(min(38, width - column * len(used) - 10), 20)
    ends, x = {}, first
    for step in used:
        title = _TITLES.get(step, step.upper())
        ends[step] = x = x + column
        found[1].put(x - len(title) - 2, "■", colours[step])
        found[1].end(x, title, palette.dim)
    total_end = x + 9
    found[1].end(total_end, "TOTAL", palette.dim)
    room = width - total_end - 4
    if room >= 24 and "drain" in used:
        found[1].put(total_end + 2, cut("drain, sleep: of victims", room), palette.faint)
    longest = max(sum(one.values()) for one in steps) or 1.0
    for told, one in zip(wakes, steps, strict=True):
        line = Line(width)
        x = line.put(1, view.time(moment(told)), palette.dim) + 2
        line.put(x, cut(how(told), first - 2 - x), palette.failed if told.warning else palette.text)
        for step in used:
            value = one.get(step)
            text = NONE if value is None else short_duration(value)
            line.end(ends[step], text, palette.text if value else palette.faint)
        line.end(total_end, short_duration(sum(one.values())), palette.strong, bold=True)
        if room >= 10:
            x = total_end + 2
            for step in used:
                seconds = one.get(step, 0.0)
                cells = round(seconds / longest * room) or int(seconds >= 0.04)
                line.put(x, "█" * min(cells, width - 1 - x), colours[step])
                x += cells
        found.append(line)
    return found
