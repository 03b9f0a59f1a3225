"""One model: its state and why, its last wakes step by step, conditions, spec and events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from textual.widget import Widget

from greenthread.model import ModelSpec
from greenthread.snapshot import ModelRow, Shown, place
from greenthread.units import format_duration, short_bytes, short_duration
from tui import facts, lanes, last_wakes
from tui.cells import Line, cut
from tui.facts import KeyHint
from tui.page import Page
from tui.theme import GLYPHS
from tui.view import NONE, View, put_state
from tui.wakes import Key
from tui.widgets import Lines

if TYPE_CHECKING:
    from tui.model_charts import ModelCharts

CHART_ROWS = 7
"""Blank while the charts cannot be drawn yet."""
WINDOW = timedelta(minutes=15)
ALWAYS = (Shown.SERVING, Shown.WAKING, Shown.PENDING, Shown.SLEEPING)
LANES = (Shown.SERVING, Shown.DEACTIVATING, Shown.WAKING, Shown.CONVERTING, Shown.PENDING, Shown.CANNOT_FIT,
         Shown.FAILED, Shown.SLEEPING)  # fmt: skip
EVENTS = 12


class Detail(Page):
    """Everything that is known of one model."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (("j k g G", "scroll"),)

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.identity = ("model", key)
        self._key = key
        self._body = Lines("all")
        self._charts: ModelCharts | None = None

    def on_mount(self) -> None:
        super().on_mount()
        self.run_worker(self._prepare, thread=True)

    def _prepare(self) -> None:
        """In a thread: what draws curves takes its time to be imported."""
        from tui import plot  # noqa: F401
        from tui.model_charts import ModelCharts

        self._charts = ModelCharts()

    def body(self) -> Iterable[Widget]:
        self._body.add_class("body")
        return (self._body,)

    @property
    def selected(self) -> Key | None:
        return self._key

    def draw(self, view: View, height: int) -> None:
        row = view.snapshot.model(*self._key)
        room = self._body.room
        lines = lines_of(row, view, room, self._charts) if row is not None else _gone(self._key, view, room)
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


def lines_of(row: ModelRow, view: View, width: int, charts: ModelCharts | None) -> list[Line]:
    """The whole page; `charts`: None while they cannot be drawn yet."""
    lines = [Line(width), facts.summary(row, view, width), _now(row, view, width), Line(width)]
    lines += facts.reasons(width, 3 if width >= 100 else 4, row, view)
    lines += _lanes(row, view, width)
    lines += last_wakes.lines(row, view, width)
    if len(row.replicas) > 1:
        lines += _replicas(row, view, width)
    lines += _conditions_and_spec(row, view, width)
    lines += charts.lines(row, view, width) if charts is not None else [Line(width) for _ in range(CHART_ROWS)]
    told = [event for event in view.data.events if event.key == (row.namespace, row.name)]
    lines += _heading("EVENTS", view, width)
    lines += facts.events(width, min(len(told), EVENTS), view, row, title=False)
    if not told:
        lines[-1].put(9, "none yet", view.palette.dim)
    return lines


def _lanes(row: ModelRow, view: View, width: int) -> list[Line]:
    """One lane a state: when the model was in it, for how long in all."""
    palette, now = view.palette, view.now
    start = now - WINDOW
    found = lanes.spans(view.data.records((row.namespace, row.name)), row, start, now)
    lines = _heading("STATE, LAST 15 MINUTES", view, width)
    lines[1].end(width - 10, "TIME", palette.dim)
    lines[1].end(width - 1, "SHARE", palette.dim)
    left = 16 if width >= 100 else 15
    room = width - 18 - left
    whole = sum(span.seconds for span in found) or 1.0
    for state in LANES:
        seconds = sum(span.seconds for span in found if span.state is state)
        if state not in ALWAYS and seconds < 1:
            continue
        line, colour = Line(width), palette.state(state)
        line.put(1, f"{GLYPHS[state]} {state}", colour)
        for first, last in lanes.cells(found, state, start, now, room):
            # sleeping is no more than a ground line: what takes memory stands out
            line.put(left + first, ("▁" if state is Shown.SLEEPING else "█") * (last - first), colour)
        share = seconds / whole * 100
        ink = palette.text if seconds else palette.faint
        line.end(width - 10, short_duration(seconds) if seconds else NONE, ink)
        line.end(
            width - 1, "<0.1%" if 0 < share < 0.05 else f"{share:.1f}%" if 0 < share < 9.95 else f"{share:.0f}%", ink
        )
        lines.append(line)
    axis = Line(width)
    for minutes in (15, 12, 9, 6, 3):
        x = left + round((15 - minutes) / 15 * room)
        axis.put(x if minutes == 15 else x - 2, f"-{minutes}m", palette.dim)
    axis.end(left + room, "now", palette.dim)
    return [*lines, axis]


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
