"""Who waits for what, oldest first; behind whom, and who must leave; locks; why, and what comes next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.widget import Widget

from greenthread.fairness import Wait, coming, protected_for
from greenthread.gpu import Gpu, Occupant, PodRef, State
from greenthread.outlook import why
from greenthread.snapshot import ModelRow, Shown, place
from greenthread.units import format_duration, short_bytes, short_duration
from tui import facts
from tui.bars import stays
from tui.cells import Line, cut, wrap
from tui.columns import Column, Field, fit, heading
from tui.facts import KeyHint
from tui.page import Page
from tui.theme import GLYPHS, PINNED
from tui.view import NONE, View
from tui.waiting import Link, Waiter, before, chain, leaves_in_order, queue, wanted_gpus
from tui.wakes import Key
from tui.widgets import Lines, Panel, Table, set_height

BAR = 10
"""Cells of a barrier's bar."""


class Waits(Page):
    """The queue, the chain of the selected waiter, and the locks of the GPUs."""

    FILTER: ClassVar[str] = "model, GPU, victim"
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("j k g G", "select who waits; CHAIN, WHY and NEXT follow"),
        ("x", "preempt the model that stands in the selected one's way first"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._queue: list[Waiter] = []
        self._title, self._heading, self._rows = Panel("title"), Panel("table-heading"), Table("waits")
        self._chain, self._why = Panel("chain"), Panel("why")
        self._lock_heading, self._locks = Panel("lock-heading"), Lines("locks")

    def body(self) -> Iterable[Widget]:
        parts = (
            self._title, self._heading, self._rows, self._chain, self._why, self._lock_heading, self._locks,
        )  # fmt: skip
        for part in parts:
            part.add_class("body")
        return parts

    @property
    def _waiter(self) -> Waiter | None:
        return next((waiter for waiter in self._queue if waiter.pod == self._rows.selected), None)

    @property
    def selected(self) -> Key | None:
        waiter = self._waiter
        return waiter.key if waiter is not None else None

    def draw(self, view: View, height: int) -> None:
        width = self.size.width
        every = [waiter for waiter in queue(view.snapshot) if self.dashboard.namespace in (None, waiter.pod.namespace)]
        numbers = {waiter.pod: number for number, waiter in enumerate(every, 1) if not waiter.fits_never}
        self._queue = [waiter for waiter in every if matches(waiter, self.words)]
        tall, wide = height >= 28, width >= 100
        gap = int(tall)
        rows = min(len(self._queue), max(height // 4, 3))
        set_height(self._title, 1, gap)
        set_height(self._heading, int(bool(self._queue)), gap)
        set_height(self._rows, rows)
        self._title.show([_title(width, len(self._queue), len(every) if self.words else 0, view)])
        room = self._rows.room
        fields = _fields(room, self._queue, view)
        self._heading.show([heading(room, fields, view)])
        self._rows.show_rows(
            [waiter.pod for waiter in self._queue],
            lambda at, selected, focused: _row(
                self._queue[at], numbers.get(self._queue[at].pod), room, fields, view, selected, focused
            ),
        )
        waiter = self._waiter
        why_rows = (3 if wide else 4) + (height >= 24) if waiter is not None else 0
        left = height - 1 - gap - bool(self._queue) * (1 + gap) - rows - why_rows - (1 if why_rows else 0)
        lines = _chain(waiter, every, width, view, tall) if waiter is not None else []
        most = max(left // 2, min(left - 3, 4))
        lines = lines[: most - 1]
        set_height(self._chain, len(lines), 1)
        self._chain.show(lines)
        set_height(self._why, why_rows, 1)
        if waiter is not None:
            self._why.show(facts.reasons(width, why_rows, waiter.row, view))
        left -= len(lines) + bool(lines)
        self._show_locks(view, left, every)

    def _show_locks(self, view: View, height: int, every: Sequence[Waiter]) -> None:
        set_height(self._lock_heading, int(height >= 3), 1)
        set_height(self._locks, max(height - 2, 1))
        room = self._locks.room
        fields = _lock_fields(room, view)
        self._lock_heading.show([heading(room, fields, view)])
        first = wanted_gpus(every)
        gpus = sorted((row.gpu for row in view.snapshot.gpus), key=lambda gpu: gpu.name not in first)
        lines: list[Line] = []
        for gpu in gpus:
            lines += _lock(gpu, room, fields, view)
        for waiter in every:
            if waiter.fits_never and waiter.row is not None:
                lines += [Line(room), *_never(waiter.row, room, view)]
        if not every:
            lines += _last_waits(room, view)
        self._locks.show(len(lines), lines.__getitem__)

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        target = self._in_the_way()
        hints = [KeyHint("enter", "detail", row is not None, "screen.open")]
        if self.dashboard.acts:
            hints.append(
                KeyHint("x", f"preempt {target[1]}" if target else "preempt", bool(target), "app.act('preempt')")
            )
            hints.append(
                KeyHint("p", "unpin" if row is not None and row.pinned else "pin", row is not None, "app.act('pin')")
            )
        return [*hints, KeyHint("j k", "select", bool(self._queue))]

    def acted_on(self, verb: str) -> Key | None:
        """`x` is for who stands in the way, all other keys for who waits."""
        return self._in_the_way() if verb == "preempt" else self.selected

    def _in_the_way(self) -> Key | None:
        waiter, view = self._waiter, self._view
        if waiter is None or view is None:
            return None
        for link in chain(waiter, view.now):
            occupant = link.occupant
            if occupant.state is State.SERVING and not occupant.popular:
                return (occupant.pod.namespace, occupant.model)
        return None


def matches(waiter: Waiter, words: str) -> bool:
    """Whether every word is somewhere in the row."""
    places = " ".join(f"{gpu.node}/{gpu.index}" for gpu in waiter.places)
    victims = " ".join(str(victim) for victim in waiter.victims)
    text = f"{waiter.pod.namespace}/{waiter.model} {places} {victims}".lower()
    return all(word in text for word in words.lower().split())


def _title(width: int, shown: int, of: int, view: View) -> Line:
    line, palette = Line(width), view.palette
    x = line.put(1, "WAITS", palette.strong, bold=True) + 3
    if of:
        x = line.put(x, f"{shown} of {of}", palette.strong, bold=True) + 3
    text = "who waits for what, oldest first; a younger, smaller model passes only where it delays nobody"
    if not shown and not of:
        text = "nobody waits for memory"
    line.put(x, cut(text, width - x - 1), palette.dim)
    return line


def _fields(width: int, waiters: Sequence[Waiter], view: View) -> dict[str, Column]:
    names = max((len(view.name(waiter.key)) for waiter in waiters), default=0)
    places = max((len(_place(waiter)) for waiter in waiters), default=0)
    return fit(
        width,
        (
            Field("#", 2, right=True),
            Field("WAITER", min(max(names + 2, 20), 34 if width >= 100 else 24)),
            Field("NEEDS", 6, right=True, drop=3),
            Field("SHORT", 6, right=True),
            Field("ON", min(max(places, 5), 20)),
            Field("SINCE", 8, right=True, drop=1),
            Field("WAITED", 7, right=True),
            Field("BARRIER", BAR + 11, drop=2, gap=3),
            Field("VICTIM", 14, grow=True),
        ),
        start=3,
    )


def _place(waiter: Waiter) -> str:
    if not waiter.places:
        return ""
    return place(waiter.places[0].node, tuple(sorted(gpu.index for gpu in waiter.places)))


def _row(
    waiter: Waiter, number: int | None, width: int, fields: dict[str, Column], view: View, selected: bool, focused: bool
) -> Line:
    palette = view.palette
    line = Line(width, palette.selected if selected else "")
    state = Shown.CANNOT_FIT if waiter.fits_never else Shown.PENDING
    colour, ink = palette.state(state), palette.text
    if selected:
        line.put(1, "▸", palette.strong if focused else palette.faint)
    fields["#"].put(line, str(number) if number is not None else NONE, palette.dim)
    name = fields["WAITER"]
    line.put(name.start, GLYPHS[state], colour)
    named = Column("", name.start + 2, name.end)
    named.put(line, view.name(waiter.key), palette.strong if selected else ink, selected)
    if needs := fields.get("NEEDS"):
        needs.put(line, short_bytes(waiter.need), ink)
    fields["SHORT"].put(
        line, short_bytes(waiter.short) if waiter.short else NONE, ink if waiter.short else palette.faint
    )
    fields["ON"].put(line, _place(waiter), ink)
    waited = (view.now - waiter.since).total_seconds() if waiter.since is not None else None
    if since := fields.get("SINCE"):
        since.put(line, view.time(waiter.since) if waiter.since else NONE, palette.dim)
    fields["WAITED"].put(line, short_duration(waited) if waited is not None else NONE, colour)
    if barrier := fields.get("BARRIER"):
        _barrier(line, barrier, waiter, waited, view)
    _victims(line, fields["VICTIM"], waiter, view)
    return line


def _barrier(line: Line, column: Column, waiter: Waiter, waited: float | None, view: View) -> None:
    """━━━━━━──── 1.8s left: until it may ask others to leave."""
    palette, limit = view.palette, waiter.max_wait
    if waiter.fits_never:
        column.put(line, "no intent written", palette.dim)
    elif limit is None or waited is None:
        column.put(line, "not known", palette.dim)
    else:
        done = BAR if waited >= limit or not limit else int(waited / limit * BAR)
        x = line.put(column.start, "━" * done, palette.pending)
        x = line.put(x, "─" * (BAR - done), palette.faint)
        line.put(x + 1, "over" if waited >= limit else f"{short_duration(limit - waited)} left", palette.text)


def _victims(line: Line, column: Column, waiter: Waiter, view: View) -> None:
    palette = view.palette
    named = [view.name((victim.pod.namespace, victim.model)) for victim in waiter.named()]
    if named:
        x = line.put(column.start, f"{GLYPHS[Shown.DEACTIVATING]} ", palette.deactivating)
        line.put(x, cut(", ".join(named), column.end - x), palette.deactivating, bold=True)
    elif (
        isinstance(waiter.decision, Wait)
        and waiter.decision.coming
        and not any(o.older for o in waiter.decision.obstacles)
    ):
        column.put(line, f"{', '.join(waiter.decision.coming)} gives way", palette.text)
    else:
        column.put(line, "none possible" if waiter.fits_never else "none named yet", palette.dim)


def _chain(waiter: Waiter, waiters: Sequence[Waiter], width: int, view: View, tall: bool) -> list[Line]:
    """The selected waiter, who must leave for it, and whom it is behind."""
    palette = view.palette
    lines = [Line(width)]
    x = lines[0].put(1, "CHAIN", palette.dim, bold=True)
    lines[0].put(x + 3, cut("of the selected waiter and of whoever is before it", width - x - 4), palette.dim)
    wide = width >= 100
    state = Shown.CANNOT_FIT if waiter.fits_never else Shown.PENDING
    amber = palette.state(state)
    left = [Line(width), Line(width), Line(width)]
    name = cut(view.name(waiter.key), 30 if wide else 22)
    x = left[0].put(1, f"{GLYPHS[state]} ", amber)
    x = left[0].put(x, name, palette.strong, bold=True) + 2
    at = max(48 if wide else 31, x + (16 if wide else 6))
    left[1].put(3, cut(f"needs {short_bytes(waiter.need)} on {_place(waiter)}", at - 4), palette.dim)
    obstacle = waiter.obstacle
    if obstacle is not None and obstacle.short:
        behind = " when those before it have theirs" if obstacle.older else ""
        left[2].put(3, cut(f"{short_bytes(waiter.short)} short{behind}", at - 4), palette.dim)
    elif obstacle is not None and obstacle.lock_holder:
        left[2].put(3, "there is room", palette.dim)
    links = chain(waiter, view.now)
    rows: list[Line] = []
    if links:
        for number, link in enumerate(links):
            pair = [left[0], left[1]] if number == 0 else [Line(width), Line(width)]
            if number == 1:
                pair[0] = left[2]
            _link(pair, at, link, waiter, view)
            rows += pair
        if len(links) == 1:
            rows.append(left[2])
    else:
        rows = left
        if obstacle is not None and obstacle.older:
            left[0].put(at, "those before it", palette.strong, bold=True)
            left[1].put(at, "what is on its way is enough for them and for it", palette.dim)
        elif obstacle is not None and obstacle.lock_holder:
            x2 = left[0].put(at, f"{GLYPHS[Shown.WAKING]} ", palette.waking)
            left[0].put(x2, obstacle.lock_holder, palette.strong, bold=True)
            left[1].put(at, "holds the wake lock: one wakes at a time on a GPU", palette.dim)
    if tall:
        lines.append(Line(width))
    text = " waits for "
    dashes = max(at - 2 - x - len(text) - 2, 1)
    if wide:
        x = left[0].put(x, "──", amber)
        x = left[0].put(x, text, amber)
        left[0].put(x, "─" * dashes + "▸", amber)
    else:
        left[0].put(x, "─" * max(at - 2 - x, 1) + "▸", amber)
    lines += rows
    for other in before(waiter, waiters)[:3]:
        if tall:
            lines.append(Line(width))
            lines[-1].put(3, "│", palette.dim)
        lines += _behind(other, width, view)
    return lines


def _link(lines: list[Line], x: int, link: Link, waiter: Waiter, view: View) -> None:
    """● kimi-vl-a3b   minRuntime 8.0s left    then 34.0G ≥ 30.0G: room"""
    palette, occupant = view.palette, link.occupant
    width = lines[0].width
    state = Shown(str(occupant.state))
    key = (occupant.pod.namespace, occupant.model)
    at = lines[0].put(x, f"{PINNED if occupant.popular else GLYPHS[state]} ", palette.state(state))
    at = lines[0].put(at, cut(view.name(key), 26), palette.strong, bold=True) + 3
    text, ink = way_out(occupant, waiter.obstacle.gpu if waiter.obstacle else waiter.places[0], view)
    at = lines[0].put(at, cut(text, width - at - 1), ink, bold=ink != palette.dim) + 3
    then = ""
    if link.enough:
        then = f"then {short_bytes(link.room)} ≥ {short_bytes(waiter.need)}: room"
    elif not occupant.popular and not occupant.sidecar_down:
        then = f"then {short_bytes(max(link.room, 0))} of {short_bytes(waiter.need)}"
    end = min(width - 1, x + 76)  # below each other, and near on a wide terminal
    if at + len(then) <= end:
        lines[0].end(end, then, palette.serving if link.enough else palette.dim)
    lines[1].put(x + 2, cut(holds(occupant, view), width - x - 3), palette.dim)


def way_out(occupant: Occupant, gpu: Gpu, view: View) -> tuple[str, str]:
    """How an occupant leaves, or why it does not."""
    palette = view.palette
    row = view.row_of_pod(occupant.pod, occupant.model)
    if occupant.sidecar_down:
        return "cannot make room: its sidecar is down", palette.text
    if occupant.state is State.DEACTIVATING:
        drain = format_duration(row.model.spec.sleep.drain_timeout) if row is not None else ""
        return (f"makes room now, {drain} at most" if drain else "makes room now"), palette.deactivating
    left = protected_for(occupant, view.now)
    if left > 0 and not occupant.popular:
        return f"minRuntime {short_duration(left)} left", palette.pending
    return stays(occupant, gpu, view).removeprefix(f"{PINNED} ") or "may be asked to leave", palette.text


def holds(occupant: Occupant, view: View) -> str:
    """holds 9.2G, 0 in flight, served 7.0s of minRuntime 15s"""
    row = view.row_of_pod(occupant.pod, occupant.model)
    text = f"holds {short_bytes(occupant.reserved)}"
    if row is None:
        return text
    replica = next((replica for replica in row.replicas if replica.pod == occupant.pod), None)
    if replica is not None and replica.in_flight is not None:
        text += f", {replica.in_flight} in flight"
    if occupant.state is State.SERVING and occupant.became_serving_at is not None:
        served = short_duration((view.now - occupant.became_serving_at).total_seconds())
        text += f", served {served} of minRuntime {format_duration(row.model.spec.fairness.min_runtime)}"
    return text


def _behind(other: Waiter, width: int, view: View) -> list[Line]:
    """╰─ behind (older) ─▸ ◌ qwen  ─▸ ▼ llama  named victim"""
    palette = view.palette
    lines = [Line(width), Line(width)]
    x = lines[0].put(3, "╰─", palette.dim)
    x = lines[0].put(x + 1, "behind (older)" if width >= 100 else "behind", palette.dim)
    x = lines[0].put(x + 1, "─▸ ", palette.dim)
    lines[1].put(x + 2, f"needs {short_bytes(other.need)} on {_place(other)}", palette.dim)
    x = lines[0].put(x, f"{GLYPHS[Shown.PENDING]} ", palette.pending)
    x = lines[0].put(x, cut(view.name(other.key), 26), palette.strong, bold=True) + 2
    links = chain(other, view.now)
    if not links:
        return lines
    x = lines[0].put(x, "─▸ ", palette.pending)
    occupant, obstacle = links[0].occupant, other.obstacle
    state = Shown(str(occupant.state))
    below = max(x, lines[1].text.rstrip().__len__() + 2)
    lines[1].put(below, cut(holds(occupant, view).partition(", served")[0], width - below - 1), palette.dim)
    x = lines[0].put(x, f"{GLYPHS[state]} ", palette.state(state))
    x = lines[0].put(x, cut(view.name((occupant.pod.namespace, occupant.model)), 26), palette.strong, bold=True) + 2
    if obstacle is not None and x < width - 8:
        text, ink = way_out(occupant, obstacle.gpu, view)
        lines[0].put(x, cut(text, width - x - 1), ink)
    return lines


def _lock_fields(width: int, view: View) -> dict[str, Column]:
    places = max((len(place(row.gpu.node, (row.gpu.index,))) for row in view.snapshot.gpus), default=0)
    names = max(
        (len(view.name((o.pod.namespace, o.model))) for r in view.snapshot.gpus for o in r.gpu.occupants if o.reserved),
        default=0,
    )
    return fit(
        width,
        (
            Field("GPU", min(max(places, 6), 20)),
            Field("WAKE LOCK", 26 if width >= 100 else 18, gap=3),
            Field("ROOM", 6, right=True),
            Field("COMING", 6, right=True),
            Field("WHO GOES FIRST", min(max(names + 2, 14), 28), gap=3),
            Field("HOLDS", 6, right=True, drop=2),
            Field("HOW", 12, grow=True, gap=3, drop=1),
        ),
    )


def _lock(gpu: Gpu, width: int, fields: dict[str, Column], view: View) -> list[Line]:
    """One GPU: its lock, room, what is on its way, and its occupants by who goes first."""
    palette = view.palette
    occupants = leaves_in_order(gpu, view.now)
    lines = [Line(width) for _ in range(max(len(occupants), 1))]
    fields["GPU"].put(lines[0], place(gpu.node, (gpu.index,)), palette.strong, bold=True)
    column = fields["WAKE LOCK"]
    if gpu.wake_lock is None:
        column.put(lines[0], "free", palette.dim)
    else:
        holder = gpu.occupant(gpu.wake_lock.holder)
        x = lines[0].put(column.start, f"{GLYPHS[Shown.WAKING]} ", palette.waking)
        held = short_duration((view.now - gpu.wake_lock.acquired_at).total_seconds())
        name = view.name((holder.pod.namespace, holder.model)) if holder else gpu.wake_lock.holder.name
        x = lines[0].put(x, cut(name, column.end - x - len(held) - 1), palette.text)
        lines[0].put(x + 1, held, palette.dim)
    fields["ROOM"].put(lines[0], short_bytes(max(gpu.room, 0)), palette.text)
    on_its_way = coming(gpu)
    fields["COMING"].put(
        lines[0], short_bytes(on_its_way) if on_its_way else NONE, palette.deactivating if on_its_way else palette.faint
    )
    named_by = _named_by(gpu, view)
    for line, occupant in zip(lines, occupants, strict=False):
        state = Shown(str(occupant.state))
        who = fields["WHO GOES FIRST"]
        x = line.put(
            who.start,
            f"{PINNED if occupant.popular else GLYPHS[state]} ",
            palette.state(state) if not occupant.popular else palette.text,
        )
        line.put(x, cut(view.name((occupant.pod.namespace, occupant.model)), who.end - x), palette.text)
        if holds := fields.get("HOLDS"):
            holds.put(line, short_bytes(occupant.reserved), palette.text)
        if how := fields.get("HOW"):
            text, ink = way_out(occupant, gpu, view)
            if occupant.pod in named_by:
                text = f"for {named_by[occupant.pod]}: {text}"
            how.put(line, text, palette.dim if ink != palette.deactivating else ink)
    if not occupants:
        fields["WHO GOES FIRST"].put(lines[0], "nobody holds memory", palette.dim)
    return lines


def _named_by(gpu: Gpu, view: View) -> dict[PodRef, str]:
    return {
        victim: view.name((intent.pod.namespace, intent.model)) for intent in gpu.intents for victim in intent.victims
    }


def _never(row: ModelRow, width: int, view: View) -> list[Line]:
    """⊘ llama-3-1-70b cannot fit: …"""
    palette = view.palette
    lines = []
    for number, part in enumerate(wrap(why(row, view.snapshot), width - 4, 3)):
        line = Line(width)
        if number == 0:
            line.put(1, GLYPHS[Shown.CANNOT_FIT], palette.failed)
        line.put(3, part, palette.dim)
        if number == 0 and part.startswith(row.name):
            line.put(3, row.name, palette.failed, bold=True)
        lines.append(line)
    return lines


def _last_waits(width: int, view: View) -> list[Line]:
    """Wakes that had to wait, newest first, when nobody waits now."""
    palette = view.palette
    told = [told for told in reversed(view.data.events) if told.record and told.record.get("waitedFor")][:12]
    if not told:
        return []
    lines = [Line(width), Line(width)]
    lines[1].put(1, "LAST WAITS", palette.dim, bold=True)
    for item in told:
        line = Line(width)
        x = line.put(1, view.time(item.at), palette.dim) + 2
        x = line.put(x, view.name(item.key), palette.text) + 2
        line.put(x, cut(item.message, width - x - 1), palette.dim)
        lines.append(line)
    return lines
