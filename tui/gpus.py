"""Every GPU by node, and one GPU in detail: who holds its memory, who waits for it, what it measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.widget import Widget

from greenthread.fairness import coming
from greenthread.gpu import Gpu, Occupant, PodRef
from greenthread.snapshot import GpuRow, ModelRow, Shown
from greenthread.units import short_bytes, short_duration
from tui import bars, facts
from tui.bars import Form
from tui.cells import Line, cut, spark
from tui.columns import Column, Field, fit, heading
from tui.facts import KeyHint
from tui.page import Page
from tui.theme import GLYPHS, PINNED
from tui.view import NONE, View, put_state
from tui.waiting import leaves_in_order
from tui.waits import way_out
from tui.wakes import Key
from tui.widgets import Lines, Panel, Table, set_height

_GAP = 3
"""Blank cells between a sparkline and what stands before it."""
RowKey = tuple[str, str]
"""("node", its name) or ("gpu", name of its object)."""


class Gpus(Page):
    """A line for each GPU under its node; the selected one is told below."""

    FILTER: ClassVar[str] = "node, product, models on it"
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (("j k g G", "select a node or a GPU"), ("y", "its GPU object"))

    def __init__(self) -> None:
        super().__init__()
        self._heading, self._rows, self._detail = Panel("table-heading"), Table("gpu-rows"), Lines("gpu-detail")

    def body(self) -> Iterable[Widget]:
        for part in (self._heading, self._rows, self._detail):
            part.add_class("body")
        return (self._heading, self._rows, self._detail)

    @property
    def selected_gpu(self) -> str | None:
        kind, name = self._rows.selected or ("", "")
        return name if kind == "gpu" else None

    def draw(self, view: View, height: int) -> None:
        gpus = [row for row in view.snapshot.gpus if matches(row, self.words)]
        keys = keys_of(gpus)
        if self._rows.selected is None and len(keys) > 1:
            self._rows.selected = keys[1]  # the first GPU, not its node
        gap = int(height > 14)
        shown = min(len(keys), max((height - 2) // 2, 3))
        set_height(self._heading, 1, gap)
        set_height(self._rows, max(shown, 1))
        set_height(self._detail, max(height - 2 - gap - max(shown, 1), 1), 1)
        room = self._rows.room
        fields = _fields(room, gpus)
        head = heading(room, fields, view, silent=("WAKES",))
        if self.words or not gpus:
            text = f"{len(gpus)} of {len(view.snapshot.gpus)}" if self.words else "none yet"
            head.put(fields["GPU"].start + 4, text, view.palette.strong, bold=True)
        self._heading.show([head])
        by_name = {row.gpu.name: row for row in gpus}

        def paint(at: int, selected: bool, focused: bool) -> Line:
            kind, name = keys[at]
            if kind == "node":
                line = _node(name, [row for row in gpus if row.gpu.node == name], room, fields, view, selected)
            else:
                line = _gpu(by_name[name], room, fields, view, selected)
            if selected:
                line.put(1, "▸", view.palette.strong if focused else view.palette.faint)
            return line

        self._rows.show_rows(keys, paint)
        lines = self._told(view, self._detail.room)
        self._detail.show(len(lines), lines.__getitem__)

    def _told(self, view: View, width: int) -> list[Line]:
        kind, name = self._rows.selected or ("", "")
        if kind == "node":
            return node_lines(name, [row for row in view.snapshot.gpus if row.gpu.node == name], view, width)
        row = next((row for row in view.snapshot.gpus if row.gpu.name == name), None)
        return gpu_lines(row, view, width) if row is not None else []

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        one = self.selected_gpu is not None
        return [
            KeyHint("enter", "detail", one, "screen.open"),
            KeyHint("j k", "select"),
            KeyHint("y", "yaml", one, "app.yaml"),
            KeyHint("c", "copy", one, "app.copy"),
        ]

    def action_open(self) -> None:
        if self.selected_gpu is not None:
            self.dashboard.open_gpu(self.selected_gpu)


def keys_of(gpus: Sequence[GpuRow]) -> list[RowKey]:
    """Nodes with their GPUs."""
    keys: list[RowKey] = []
    seen: set[str] = set()
    for row in gpus:
        if row.gpu.node not in seen:
            seen.add(row.gpu.node)
            keys.append(("node", row.gpu.node))
        keys.append(("gpu", row.gpu.name))
    return keys


def matches(row: GpuRow, words: str) -> bool:
    """Whether every word is somewhere in the GPU's place, product, occupants or waiters."""
    models = " ".join([*(o.model for o in row.gpu.occupants), *(intent.model for intent in row.waiting)])
    text = f"{bars.place(row.gpu)} {row.gpu.name} {row.gpu.product} {models}".lower()
    return all(word in text for word in words.lower().split())


def _fields(width: int, gpus: Sequence[GpuRow]) -> dict[str, Column]:
    places = max((len(bars.place(row.gpu)) for row in gpus), default=0)
    nodes = max((len(row.gpu.node) for row in gpus), default=0)
    return fit(
        width,
        (
            Field("GPU", min(max(places + 1, nodes, 8), 26)),
            Field("PRODUCT", 9, drop=1),
            Field("MEMORY", 20, grow=True),
            Field("HELD", 12, right=True, drop=3),
            Field("FREE", 6, right=True),
            Field("UTIL", 5, right=True),
            Field("TEMP", 5, right=True, gap=1),
            Field("POWER", 6, right=True, gap=1, drop=2),
            Field("WAKES", 2, drop=4),
            Field("WAITS", 9),
        ),
        start=3,
    )


def _node(name: str, gpus: Sequence[GpuRow], width: int, fields: dict[str, Column], view: View, selected: bool) -> Line:
    palette = view.palette
    line = Line(width, palette.selected if selected else "")
    total, free = sum(row.gpu.total for row in gpus), sum(row.free for row in gpus)
    fields["GPU"].put(line, name, palette.strong, bold=True)
    several = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    awake = sum(bool(o.reserved) for row in gpus for o in row.gpu.occupants)
    fields["MEMORY"].put(line, f"{several}, {awake} {'model' if awake == 1 else 'models'} awake", palette.dim)
    if held := fields.get("HELD"):
        held.put(line, f"{short_bytes(total - free)[:-1]}/{short_bytes(total)}", palette.dim)
    fields["FREE"].put(line, short_bytes(free), palette.dim)
    stats = [row.gpu.stats for row in gpus if row.gpu.stats is not None]
    if stats:
        fields["UTIL"].put(line, f"{round(sum(s.utilization for s in stats) / len(stats))}%", palette.dim)
        if power := fields.get("POWER"):
            power.put(line, f"{sum(s.power for s in stats)}W", palette.dim)
    return line


def _gpu(row: GpuRow, width: int, fields: dict[str, Column], view: View, selected: bool) -> Line:
    palette, gpu = view.palette, row.gpu
    line = Line(width, palette.selected if selected else "")
    where = fields["GPU"]
    line.put(where.start + 1, cut(bars.place(gpu), where.width - 1), palette.text, bold=selected)
    if product := fields.get("PRODUCT"):
        product.put(line, bars.product(gpu.product, product.width), palette.dim)
    memory = fields["MEMORY"]
    bars.bar([line], gpu, Form(width, memory.start, memory.end, wide=False, tall=False), view)
    if held := fields.get("HELD"):
        held.put(line, f"{short_bytes(gpu.total - row.free)[:-1]}/{short_bytes(gpu.total)}", palette.text)
    fields["FREE"].put(line, short_bytes(row.free), palette.text if row.free else palette.faint)
    stats = gpu.stats
    for title, value in (
        ("UTIL", f"{stats.utilization}%" if stats else NONE),
        ("TEMP", f"{stats.temperature}°C" if stats else NONE),
        ("POWER", f"{stats.power}W" if stats else NONE),
    ):
        if column := fields.get(title):
            column.put(line, value, palette.text)
    if (wakes := fields.get("WAKES")) and gpu.wake_lock is not None:
        wakes.put(line, GLYPHS[Shown.WAKING], palette.waking)
    waits = fields["WAITS"]
    if row.waiting:
        waited = short_duration((view.now - row.waiting[0].since).total_seconds())
        waits.put(line, f"{GLYPHS[Shown.PENDING]} {len(row.waiting)} {waited}", palette.pending, bold=True)
    return line


def node_lines(name: str, gpus: Sequence[GpuRow], view: View, width: int) -> list[Line]:
    """A node in sum, and its models."""
    palette = view.palette
    lines = [Line(width)]
    x = lines[0].put(1, name, palette.strong, bold=True) + 3
    free, total = sum(row.free for row in gpus), sum(row.gpu.total for row in gpus)
    foreign = sum(row.gpu.foreign for row in gpus)
    text = f"{short_bytes(free)} of {short_bytes(total)} free, {short_bytes(foreign)} of other programs"
    lines[0].put(x, cut(text, width - x - 1), palette.dim)
    rows = [row for row in view.snapshot.models if any(replica.node == name for replica in row.replicas)]
    rows.sort(key=lambda row: (row.vram == 0, row.namespace, row.name))
    for model in rows:
        line = Line(width)
        x = put_state(line, 1, model, view)
        x = line.put(max(x + 2, 18), cut(view.name((model.namespace, model.name)), 34), palette.text)
        x = line.put(max(x + 2, 44), ", ".join(model.places), palette.dim)
        if model.vram:
            line.end(max(x + 10, 66), short_bytes(model.vram), palette.text)
        lines.append(line)
    return lines


def gpu_lines(row: GpuRow, view: View, width: int) -> list[Line]:
    """One GPU: occupants, the rest of its memory, who waits, utilization."""
    gpu, palette = row.gpu, view.palette
    lines = [_identity(gpu, view, width), Line(width)]
    fields = occupant_fields(width, [gpu], view)
    lines.append(heading(width, fields, view))
    lines += [occupant_line(occupant, gpu, width, fields, view) for occupant in leaves_in_order(gpu, view.now)]
    lines += _rest(row, width, fields, view)
    sleeping = [view.name((o.pod.namespace, o.model)) for o in gpu.occupants if not o.reserved]
    if sleeping:
        line = Line(width)
        x = line.put(1, f"{GLYPHS[Shown.SLEEPING]} sleep here", palette.sleeping) + 2
        line.put(x, cut(", ".join(sleeping), width - x - 1), palette.dim)
        lines.append(line)
    lines += [Line(width), *waiting_lines(row, view, width), *_measured(gpu, view, width)]
    return lines


def _identity(gpu: Gpu, view: View, width: int) -> Line:
    line, palette = Line(width), view.palette
    x = line.put(1, bars.place(gpu), palette.strong, bold=True) + 3
    x = line.put(x, cut(gpu.product, width - x - 1), palette.text) + 3
    line.put(x, cut(gpu.uuid, width - x - 1), palette.dim)
    return line


def occupant_fields(width: int, gpus: Sequence[Gpu], view: View) -> dict[str, Column]:
    """The columns of occupants."""
    names = max((len(view.name((o.pod.namespace, o.model))) for gpu in gpus for o in gpu.occupants), default=0)
    return fit(
        width,
        (
            Field("OCCUPANT", min(max(names + 2, 16), 34)),
            Field("STATE", 14),
            Field("FOR", 6, right=True),
            Field("HOLDS", 6, right=True),
            Field("INFL", 4, right=True, drop=2),
            Field("LAST USED", 9, right=True, drop=1),
            Field("LEAVES", 10, grow=True, gap=3),
        ),
        start=3,
    )


def occupant_line(
    occupant: Occupant, gpu: Gpu, width: int, fields: dict[str, Column], view: View, selected: bool = False
) -> Line:
    """One who is bound to this GPU."""
    palette = view.palette
    line = Line(width, palette.selected if selected else "")
    key = (occupant.pod.namespace, occupant.model)
    row = view.row_of_pod(occupant.pod, occupant.model)
    asleep = not occupant.reserved
    ink = palette.dim if asleep and not selected else palette.text
    name = fields["OCCUPANT"]
    if not asleep:
        line.put(name.start, "▍", view.occupant_colours(key)[1])
    shown = Column("", name.start + 2, name.end)
    shown.put(line, view.name(key), palette.strong if selected else ink, selected)
    state = Shown(str(occupant.state))
    if row is not None and asleep:
        state = row.state  # it may wait
    text = view.state_text(row) if row is not None and row.state is state else str(state)
    if occupant.popular:
        line.put(fields["STATE"].start - 2, PINNED, palette.text)
    fields["STATE"].put(line, f"{GLYPHS[state]} {text}", palette.state(state))
    replica = next((r for r in row.replicas if r.pod == occupant.pod), None) if row is not None else None
    since = replica.since if replica is not None else occupant.became_serving_at
    fields["FOR"].put(line, short_duration((view.now - since).total_seconds()) if since else NONE, ink)
    fields["HOLDS"].put(
        line, short_bytes(occupant.reserved) if not asleep else NONE, ink if not asleep else palette.faint
    )
    if flying := fields.get("INFL"):
        count = replica.in_flight if replica is not None else None
        flying.put(line, NONE if count is None else str(count), ink if count else palette.faint)
    if used := fields.get("LAST USED"):
        at = occupant.last_accessed or occupant.became_serving_at
        told = f"{short_duration((view.now - at).total_seconds())} ago" if at is not None else NONE
        used.put(line, told, palette.dim)
    if not asleep:
        how, colour = way_out(occupant, gpu, view)
        fields["LEAVES"].put(line, how, palette.dim if colour != palette.deactivating else colour)
    return line


def _rest(row: GpuRow, width: int, fields: dict[str, Column], view: View) -> list[Line]:
    palette, gpu = view.palette, row.gpu
    lines = []
    for glyph, word, amount in (("░", "other programs", gpu.foreign), (" ", "free", row.free)):
        line = Line(width)
        line.put(fields["OCCUPANT"].start, glyph, palette.dim)
        line.put(fields["OCCUPANT"].start + 2, word, palette.dim)
        fields["HOLDS"].put(line, short_bytes(amount), palette.text if amount else palette.faint)
        if word == "free" and (more := coming(gpu)):
            fields["LEAVES"].put(line, f"{short_bytes(more)} more is on its way", palette.deactivating)
        lines.append(line)
    return lines


def waiting_lines(row: GpuRow, view: View, width: int) -> list[Line]:
    """Who waits for this GPU, oldest first; and who wakes on it."""
    palette, gpu = view.palette, row.gpu
    lines = []
    if not row.waiting:
        lines.append(Line(width))
        lines[0].put(1, "WAITS", palette.dim, bold=True)
        lines[0].put(9, "nobody waits", palette.dim)
    for number, intent in enumerate(row.waiting):
        line = Line(width)
        line.put(1, "WAITS" if number == 0 else "", palette.pending, bold=True)
        x = line.put(9, f"{GLYPHS[Shown.PENDING]} ", palette.pending)
        x = line.put(x, cut(view.name((intent.pod.namespace, intent.model)), 30), palette.strong, bold=True) + 2
        waited = short_duration((view.now - intent.since).total_seconds())
        model = view.row_of_pod(intent.pod, intent.model)
        limit = model.model.spec.fairness.max_wait_time if model is not None else 0.0
        of = f" of {short_duration(limit)}" if (view.now - intent.since).total_seconds() < limit else ""
        x = line.put(x, f"{waited}{of}", palette.pending) + 2
        text = f"needs {short_bytes(intent.requested)}"
        if intent.requested > row.free:
            text += f", {short_bytes(intent.requested - row.free)} short"
        named = [occupant.model for pod in intent.victims if (occupant := gpu.occupant(pod))]
        text += f"; asked {', '.join(named)} to make room" if named else ""
        line.put(x, cut(text, width - x - 1), palette.text)
        lines.append(line)
    lock = Line(width)
    lock.put(1, "LOCK", palette.dim, bold=True)
    if gpu.wake_lock is None:
        lock.put(9, "free: nobody wakes here", palette.dim)
    else:
        holder = gpu.occupant(gpu.wake_lock.holder)
        name = view.name((holder.pod.namespace, holder.model)) if holder else str(gpu.wake_lock.holder)
        x = lock.put(9, f"{GLYPHS[Shown.WAKING]} ", palette.waking)
        x = lock.put(x, name, palette.text)
        held = short_duration((view.now - gpu.wake_lock.acquired_at).total_seconds())
        lock.put(x + 2, f"wakes since {held}", palette.dim)
    return [*lines, lock]


def _measured(gpu: Gpu, view: View, width: int) -> list[Line]:
    """UTIL ▁▂▃ 83%   64°C   412W"""
    line, palette, stats = Line(width), view.palette, gpu.stats
    line.put(1, "UTIL", palette.dim, bold=True)
    if stats is None:
        line.put(9, "not measured: the node agent does not report", palette.dim)
        return [line]
    x = line.put(9, f"{stats.utilization}%", palette.text) + _GAP
    x = line.put(x, f"{stats.temperature}°C", palette.text) + _GAP
    x = line.put(x, f"{stats.power}W", palette.text) + _GAP
    x = line.put(x, f"{short_bytes(stats.used)} in use", palette.text) + _GAP
    history = view.data.utilization(gpu.name)
    room = min(width - x - 10, 60, len(history))
    if room >= 8:
        line.put(x, spark(history, room, 100), palette.spark)
        line.put(x + room + 1, "util, 5s each", palette.dim)
    return [line]


class OneGpu(Page):
    """One GPU; its occupants can be selected, so that every key of a model works on them."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (("j k g G", "select who is bound to this GPU"),)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.identity = ("gpu", name)
        self._name = name
        self._bar, self._heading, self._rows = Panel("bar"), Panel("table-heading"), Table("occupants")
        self._rest, self._why = Lines("gpu-rest"), Panel("why")

    def body(self) -> Iterable[Widget]:
        parts = (self._bar, self._heading, self._rows, self._why, self._rest)
        for part in parts:
            part.add_class("body")
        return parts

    @property
    def selected(self) -> Key | None:
        pod, model = self._rows.selected or (PodRef("", ""), "")
        return (pod.namespace, model) if model else None

    @property
    def selected_gpu(self) -> str | None:
        return self._name

    def draw(self, view: View, height: int) -> None:
        width = self.size.width
        row = next((row for row in view.snapshot.gpus if row.gpu.name == self._name), None)
        if row is None:
            gone = Line(width)
            gone.put(1, f"{self._name} is not there any more", view.palette.dim)
            set_height(self._bar, 1, 1)
            self._bar.show([gone])
            for part in (self._heading, self._rows, self._why, self._rest):
                part.display = False
            return
        gpu = row.gpu
        shape = bars.form(width, width >= bars.WIDE, (row,))
        top = [_identity(gpu, view, width), Line(width), bars.heading(shape, view), *bars.block(row, shape, view)]
        occupants = leaves_in_order(gpu, view.now) + [o for o in gpu.occupants if not o.reserved]
        why_rows = 3 if width >= 100 else 4
        gap = int(height > 24)
        rows = min(len(occupants), max(height - len(top) - why_rows - 9, 3))
        set_height(self._bar, len(top), gap)
        set_height(self._heading, 1, 1)
        set_height(self._rows, max(rows, 1))
        set_height(self._why, why_rows, gap)
        left = height - len(top) - 2 - 2 * gap - max(rows, 1) - why_rows - 1
        set_height(self._rest, max(left, 1), 1)
        self._bar.show(top)
        room = self._rows.room
        fields = occupant_fields(room, [gpu], view)
        self._heading.show([heading(room, fields, view)])

        def paint(at: int, selected: bool, focused: bool) -> Line:
            line = occupant_line(occupants[at], gpu, room, fields, view, selected)
            if selected:
                line.put(1, "▸", view.palette.strong if focused else view.palette.faint)
            return line

        self._rows.show_rows([(occupant.pod, occupant.model) for occupant in occupants], paint)
        model = view.snapshot.model(*self.selected) if self.selected is not None else None
        self._why.show(facts.reasons(width, why_rows, model, view))
        lines = [*waiting_lines(row, view, room), *_measured(gpu, view, room)]
        self._rest.show(len(lines), lines.__getitem__)

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [KeyHint("esc", "back", True, "screen.back"), *self.model_hints(row)]
