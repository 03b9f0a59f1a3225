"""The models as a table: what is in a row, and which columns fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greenthread.fairness import CannotFit, Wait
from greenthread.outlook import next_step, why
from greenthread.snapshot import ModelRow, Shown
from greenthread.units import short_bytes, short_duration
from tui.cells import Line, cut, spark
from tui.theme import PINNED
from tui.view import NONE, View, ago, key_of_row, put_state

SPARK = 8
SENTENCE = 56
"""Cells from which on NOTE says why a model is as it is, or what a request would meet."""
_ACTIVE = (Shown.SERVING, Shown.WAKING, Shown.DEACTIVATING, Shown.PENDING, Shown.CANNOT_FIT, Shown.CONVERTING)
#: The first two columns: marker and colour.
_MARGIN = 5
#: Name → width; a gap before each. They are dropped from the left of this when there is no room.
_DROPPED = ("NOTE", "LAST WAKE", "SPARK", "INFL")
_NAMES = (12, 19)
"""Width of a model's name: at least, and before columns are dropped for it."""


@dataclass(frozen=True)
class Column:
    """Cells from `start` to before `end`."""

    title: str
    start: int
    end: int


def columns(width: int, rows: Sequence[ModelRow], view: View) -> dict[str, Column]:
    """Which columns fit `width`, by title; NOTE goes first, then LAST WAKE, the sparkline, INFL."""
    prefix = 1 if view.several_namespaces else 0  # a slash
    longest = max((len(row.model.name) + prefix * (len(row.model.namespace) + 1) for row in rows), default=0)
    places = max((len(_places(row)) for row in rows), default=0)
    sizes = {
        "STATE": (14, 2), "FOR": (6, 0), "GPU": (min(max(places, 5), 20), 2), "VRAM": (6, 1), "INFL": (4, 2),
        "QUEUE": (5, 2), "SPARK": (SPARK, 2), "REQ/S": (5, 0), "LAST WAKE": (9, 2), "NOTE": (10, 2),
    }  # fmt: skip
    dropped = list(_DROPPED)
    want = max(min(longest, 32), _NAMES[1])
    while True:
        sizes["REQ/S"] = (5, 0 if "SPARK" in sizes else 2)
        rest = width - 1 - _MARGIN - sum(size + gap for size, gap in sizes.values())
        if rest >= (want if "NOTE" in sizes else _NAMES[1]) or not dropped:
            break
        del sizes[dropped.pop(0)]
    name = max(min(rest, max(longest, _NAMES[1])), _NAMES[0])
    if "NOTE" in sizes:
        sizes["NOTE"] = (sizes["NOTE"][0] + rest - name, 2)
    found = {"MODEL": Column("MODEL", _MARGIN, _MARGIN + name)}
    x = _MARGIN + name
    for title, (size, gap) in sizes.items():
        found[title] = Column(title, x + gap, x + gap + size)
        x += gap + size
    return found


def heading(
    width: int, fields: dict[str, Column], view: View, note: str = "", arrow: tuple[str, str] = ("", "")
) -> Line:
    """The titles; `arrow`: the column that the rows are sorted by, and its sign."""
    line, palette = Line(width), view.palette
    for title, column in fields.items():
        if title == "SPARK":
            continue
        text, ink = (f"{title} {arrow[1]}", palette.text) if title == arrow[0] else (title, palette.dim)
        if title in ("MODEL", "STATE", "GPU", "NOTE"):
            line.put(column.start, text, ink)
        else:
            room = column.end - column.start + 1
            line.end(column.end, text if len(text) <= room else text.replace(" ↓", "↓").replace(" ↑", "↑"), ink)
    if note:
        at = fields["MODEL"].start + 6 + 2 * (arrow[0] == "MODEL")
        line.put(at, cut(note, fields["STATE"].start - at - 1), palette.strong, bold=True)
    return line


SORTABLE = ("MODEL", "STATE", "FOR", "GPU", "VRAM", "INFL", "QUEUE", "REQ/S", "LAST WAKE")


def spots(fields: dict[str, Column], action: str) -> list[tuple[int, int, str]]:
    """Where a click on a heading sorts; `action` gets the title."""
    return [(column.start, column.end, f"{action}('{title}')") for title, column in fields.items() if title in SORTABLE]


def in_order(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """What holds or wants memory, then what does not; by name, so that rows move only when a model sleeps or wakes."""
    return sorted(rows, key=lambda row: (row.state not in _ACTIVE, row.namespace, row.name))


def matches(row: ModelRow, words: str) -> bool:
    """Whether every word is somewhere in the row's name, namespace, state, place or model name."""
    text = " ".join(
        (
            row.namespace,
            row.name,
            str(row.state),
            *row.places,
            row.model.spec.model_name,
            "pinned" if row.pinned else "",
        )
    ).lower()
    return all(word in text for word in words.lower().split())


def draw(row: ModelRow, width: int, fields: dict[str, Column], view: View, selected: bool, focused: bool) -> Line:
    """One model."""
    palette, key = view.palette, key_of_row(row)
    line = Line(width, palette.selected if selected else "")
    ink = palette.dim if row.state is Shown.SLEEPING and not selected else palette.text
    if selected:
        line.put(1, "▸", palette.strong if focused else palette.faint)
    if row.vram:
        line.put(3, "▍", view.occupant_colours(key)[1])
    name = fields["MODEL"]
    line.put(name.start, cut(view.name(key), name.end - name.start), palette.strong if selected else ink, bold=selected)
    state = fields["STATE"]
    if row.pinned:
        line.put(state.start - 2, PINNED, palette.text)
    put_state(line, state.start, row, view)
    _end(line, fields, "FOR", ago(view, row.since), ink)
    if where := fields.get("GPU"):
        line.put(where.start, cut(_places(row) or NONE, where.end - where.start), ink)
    _end(line, fields, "VRAM", short_bytes(row.vram) if row.vram else NONE, ink if row.vram else palette.faint)
    _end(line, fields, "INFL", _count(row.in_flight), ink if row.in_flight else palette.faint)
    if row.queued and row.queued > 0:
        queue = fields["QUEUE"]
        line.end(queue.end, str(row.queued), palette.pending, bold=True)
    else:
        _end(line, fields, "QUEUE", _count(row.queued), palette.faint)
    if column := fields.get("SPARK"):
        rates = view.data.rates(key)
        top = max([1.0, *(rate for rate in rates if rate is not None)])  # a request a minute is no peak
        line.put(column.start, spark(rates, SPARK, top), palette.spark)
    rate = view.data.rate(key)
    _end(line, fields, "REQ/S", NONE if rate is None else f"{rate:.1f}", ink if rate else palette.faint)
    _end(line, fields, "LAST WAKE", NONE if row.last_wake is None else short_duration(row.last_wake), ink)
    if column := fields.get("NOTE"):
        line.put(column.start, note(row, view, column.end - column.start), palette.dim)
    return line


def note(row: ModelRow, view: View, room: int) -> str:
    """The few words beside a row, the longest that fit; where there is much room, a sentence."""
    if room >= SENTENCE:
        told = next_step(row, view.snapshot)[1] if row.state is Shown.SLEEPING else why(row, view.snapshot)
        return cut(told.removeprefix(row.name).lstrip(": "), room)
    return next((text for text in _notes(row, view) if len(text) <= room), cut(_notes(row, view)[-1], room))


def _notes(row: ModelRow, view: View) -> tuple[str, ...]:
    decision = next((replica.decision for replica in row.replicas if replica.decision is not None), None)
    if row.state is Shown.PENDING:
        waited = (view.now - row.since).total_seconds() if row.since is not None else 0.0
        barrier = row.model.spec.fairness.max_wait_time
        older = [model for o in getattr(decision, "obstacles", ()) for model in o.older_models]
        if isinstance(decision, Wait) and decision.coming and not older:
            return (f"after {decision.coming[0]}", "room comes")
        if waited < barrier:
            times = f"{short_duration(waited).removesuffix('s')}/{short_duration(barrier)}"
            return (f"wait {times}", times)
        if older:
            return (f"behind {older[0]}", "behind others")
        holders = [obstacle.lock_holder for obstacle in getattr(decision, "obstacles", ()) if obstacle.lock_holder]
        return (f"after {holders[0]}", "wakes next") if holders else ("waits for room", "no room")
    if row.state is Shown.CANNOT_FIT and isinstance(decision, CannotFit) and decision.obstacles:
        return (f"{short_bytes(decision.obstacles[0].short)} short",)
    if row.error:
        return (row.error,)
    if len(row.replicas) > 1:
        serving = sum(replica.state is Shown.SERVING for replica in row.replicas)
        return (f"{serving}/{len(row.replicas)} serving", f"{serving}/{len(row.replicas)}")
    if row.state is Shown.STAGING:
        return (row.model.status.phase.lower(),)
    return ("pinned" if row.pinned else "",)


def _places(row: ModelRow) -> str:
    return ",".join(row.places)


def _count(number: int | None) -> str:
    return NONE if number is None else str(number)


def _end(line: Line, fields: dict[str, Column], title: str, text: str, ink: str) -> None:
    if column := fields.get(title):
        line.end(column.end, text, ink)
