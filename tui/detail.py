"""One model: its state and why, its last wakes step by step, conditions, spec and events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from textual.widget import Widget

from greenthread.clock import parse_time
from greenthread.model import ModelSpec
from greenthread.snapshot import ModelRow, place
from greenthread.units import format_duration, short_bytes, short_duration
from tui import facts
from tui.cells import Line, cut
from tui.data import Told
from tui.facts import KeyHint
from tui.page import Page
from tui.view import NONE, View, put_state
from tui.wakes import Key
from tui.widgets import Lines

WAKES = 6
EVENTS = 12
STEPS = ("queue", "claim", "drain", "engine")


class Detail(Page):
    """Everything that is known of one model."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (("j k g G", "scroll"),)

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.identity = ("model", key)
        self._key = key
        self._body = Lines("all")

    def body(self) -> Iterable[Widget]:
        self._body.add_class("body")
        return (self._body,)

    @property
    def selected(self) -> Key | None:
        return self._key

    def draw(self, view: View, height: int) -> None:
        row = view.snapshot.model(*self._key)
        lines = lines_of(row, view, self._body.room) if row is not None else _gone(self._key, view, self._body.room)
        self._body.show(len(lines), lines.__getitem__)

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [
            KeyHint("esc", "back", True, "screen.back"),
            *self.model_hints(row)[1:],
            KeyHint("y", "yaml", True, "app.yaml"),
        ]


def _gone(key: Key, view: View, width: int) -> list[Line]:
    lines = [Line(width), Line(width)]
    lines[1].put(1, f"{key[1]} is not there any more", view.palette.dim)
    return lines


def lines_of(row: ModelRow, view: View, width: int) -> list[Line]:
    """The whole page."""
    lines = [Line(width), facts.summary(row, view, width), _now(row, view, width), Line(width)]
    lines += facts.reasons(width, 3 if width >= 100 else 4, row, view)
    lines += _wakes(row, view, width)
    if len(row.replicas) > 1:
        lines += _replicas(row, view, width)
    lines += _conditions_and_spec(row, view, width)
    told = [event for event in view.data.events if event.key == (row.namespace, row.name)]
    lines += _heading("EVENTS", view, width)
    lines += facts.events(width, min(len(told), EVENTS), view, row, title=False)
    if not told:
        lines[-1].put(9, "none yet", view.palette.dim)
    return lines


def _heading(title: str, view: View, width: int) -> list[Line]:
    lines = [Line(width), Line(width)]
    lines[1].put(1, title, view.palette.dim, bold=True)
    return lines


def _now(row: ModelRow, view: View, width: int) -> Line:
    line, palette = Line(width), view.palette
    memory = row.model.status.serving_memory_per_gpu
    x = 1
    for word, value in (
        ("", facts.where(row) or "on no GPU"),
        ("holds", short_bytes(row.vram)),
        ("needs", short_bytes(memory) if memory else NONE),
        ("in flight", NONE if row.in_flight is None else str(row.in_flight)),
        ("queue", NONE if row.queued is None else str(row.queued)),
        ("last wake", NONE if row.last_wake is None else short_duration(row.last_wake)),
        ("requests", NONE if row.requests is None else str(row.requests)),
        ("", "★ pinned" if row.pinned else ""),
    ):
        if not value or x + len(word) + len(value) + 1 > width:
            continue
        if word:
            x = line.put(x, f"{word} ", palette.dim)
        x = line.put(x, value, palette.text) + 3
    return line


def _wakes(row: ModelRow, view: View, width: int) -> list[Line]:
    palette = view.palette
    wakes = [told for told in view.data.records((row.namespace, row.name)) if _kind(told) in ("wake", "boot")][:WAKES]
    lines = _heading("LAST WAKES", view, width)
    if not wakes:
        lines[1].put(13, "none told yet", palette.dim)
        return lines
    colours = dict(zip(STEPS, (palette.occupants[5][1], *(palette.occupants[n][1] for n in (2, 1, 0))), strict=True))
    used = [step for step in STEPS if any(step in _steps(told) for told in wakes)]
    first = max(min(42, width - 10 * len(used) - 11), 20)
    ends, x = {}, first
    for step in used:
        ends[step] = x = x + 10
        lines[1].put(x - len(step) - 2, "■", colours[step])
        lines[1].end(x, step.upper(), palette.dim)
    total_end = x + 9
    lines[1].end(total_end, "TOTAL", palette.dim)
    longest = max(sum(_steps(told).values()) for told in wakes) or 1.0
    for told in wakes:
        line, steps = Line(width), _steps(told)
        at = _moment(told)
        x = line.put(1, view.time(at), palette.dim) + 2
        line.put(x, cut(_how(told), first - 2 - x), palette.failed if told.warning else palette.text)
        for step in used:
            value = steps.get(step)
            line.end(
                ends[step], NONE if value is None else short_duration(value), palette.text if value else palette.faint
            )
        line.end(total_end, short_duration(sum(steps.values())), palette.strong, bold=True)
        room = width - total_end - 4
        if room >= 10:
            x = total_end + 2
            for step in used:
                cells = round(steps.get(step, 0.0) / longest * room) or int(steps.get(step, 0.0) >= 0.04)
                line.put(x, "█" * cells, colours[step])
                x += cells
        lines.append(line)
    return lines


def _kind(told: Told) -> str:
    return str((told.record or {}).get("kind", ""))


def _steps(told: Told) -> dict[str, float]:
    steps = (told.record or {}).get("steps")
    if not isinstance(steps, Mapping):
        return {}
    return {str(name): float(value) for name, value in steps.items() if isinstance(value, int | float)}


def _moment(told: Told) -> datetime:
    """When it began."""
    try:
        return parse_time(str((told.record or {}).get("at")))
    except ValueError:
        return told.at


def _how(told: Told) -> str:
    record: Mapping[str, Any] = told.record or {}
    victims = record.get("victims")
    if record.get("error"):
        return str(record["error"])
    if isinstance(victims, list) and victims:
        return f"after {', '.join(map(str, victims))} made room"
    if record.get("waitedFor"):
        return "waited for room"
    return f"{_kind(told)}, {record.get('reason') or 'there was room'}"


def _replicas(row: ModelRow, view: View, width: int) -> list[Line]:
    lines = _heading("REPLICAS", view, width)
    for replica in row.replicas:
        line = Line(width)
        line.put(1, cut(replica.pod.name, 34), view.palette.text)
        put_state(line, 37, row.__class__(row.model, replica.state, replica.since, (replica,)), view)
        line.put(54, place(replica.node, replica.gpus) or NONE, view.palette.text)
        line.end(74, short_bytes(replica.vram) if replica.vram else NONE, view.palette.text)
        lines.append(line)
    return lines


def _conditions_and_spec(row: ModelRow, view: View, width: int) -> list[Line]:
    """Side by side where there is room."""
    palette = view.palette
    side = width >= 100
    left = width // 2 if side else width
    conditions = _heading("CONDITIONS", view, left)
    for condition in row.model.status.conditions:
        line = Line(left)
        true = condition.status == "True"
        line.put(
            1, "✓" if true else "–" if condition.status == "Unknown" else "✕", palette.serving if true else palette.dim
        )
        line.put(3, cut(condition.type, 16), palette.text)
        line.put(20, cut(condition.message or condition.reason, left - 22), palette.dim)
        conditions.append(line)
    spec = _heading("SPEC", view, width - left if side else width)
    spec[1].put(7, "defaults are dim", palette.faint)
    facts_of = spec_facts(row.model.spec)
    half = -(-len(facts_of) // 2)
    room = (width - left if side else width) // 2
    for at in range(half):
        line = Line(room * 2)
        for column, number in ((0, at), (1, at + half)):
            if number < len(facts_of):
                name, value, default = facts_of[number]
                line.put(column * room + 1, name, palette.dim)
                line.end(
                    (column + 1) * room - 2,
                    cut(value, room - len(name) - 5),
                    palette.dim if default else palette.strong,
                    not default,
                )
        spec.append(line)
    if not side:
        return conditions + spec
    joined = []
    for at in range(max(len(conditions), len(spec))):
        line = Line(width)
        for x, part in ((0, conditions), (left, spec)):
            if at < len(part):
                line.paste(x, part[at])
        joined.append(line)
    return joined


def spec_facts(spec: ModelSpec) -> list[tuple[str, str, bool]]:
    """(field, value, whether it is the default) of what matters at run time."""
    plain = ModelSpec(spec.model_name)

    def duration(seconds: float) -> str:
        return format_duration(seconds) if seconds else "never"

    fairness, sleep = spec.fairness, spec.sleep
    pairs: list[tuple[str, Any, Any, str]] = [
        ("gpuMemoryUtilization", spec.gpu_memory_utilization, 0.9, f"{spec.gpu_memory_utilization:g}"),
        ("dtype", spec.dtype, plain.dtype, spec.dtype),
        ("quantization", spec.quantization, "", spec.quantization or "none"),
        ("tensorParallelSize", spec.tensor_parallel_size, 1, str(spec.tensor_parallel_size)),
        ("replicas", spec.replicas, 1, str(spec.replicas)),
        ("staging.pinned", spec.staging.pinned, False, str(spec.staging.pinned).lower()),
        ("popular", fairness.popular, False, str(fairness.popular).lower()),
        ("minRuntime", fairness.min_runtime, plain.fairness.min_runtime, format_duration(fairness.min_runtime)),
        ("maxWaitTime", fairness.max_wait_time, plain.fairness.max_wait_time, format_duration(fairness.max_wait_time)),
        ("yieldAfter", fairness.yield_after, plain.fairness.yield_after, duration(fairness.yield_after)),
        ("idleTimeout", sleep.idle_timeout, plain.sleep.idle_timeout, duration(sleep.idle_timeout)),
        ("drainTimeout", sleep.drain_timeout, plain.sleep.drain_timeout, format_duration(sleep.drain_timeout)),
    ]
    return [(name, text, value == default) for name, value, default, text in pairs]
