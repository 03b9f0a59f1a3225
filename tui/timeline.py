"""Memory of each GPU over time, around a moment that is over: who held how much, before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from greenthread.snapshot import GpuRow
from greenthread.units import short_bytes
from tui import bars
from tui.cells import BLOCKS, Line, cut
from tui.layout import Plan
from tui.theme import blend
from tui.tracks import Held, Tracks
from tui.view import View
from tui.wakes import Key

PALE = 0.45
"""How far what came later is moved towards the background."""
Band = tuple[Key | None, int, int]
"""Who (None: other programs) is from where to where in a column, in eighths of a row from the bottom."""


def rows(plan: Plan, deep: int) -> int:
    """How many rows a GPU may have, with `deep` of them one below the other; 0 if there is no room for this at all."""
    usual = 3 if plan.tall else 2
    if plan.gpu_rows < deep * usual:  # they scroll
        return usual
    return min(usual + max(_spare(plan) - 1, 0) // deep, 6)


def plan(plan: Plan, deep: int, high: int) -> Plan:
    """The zones with `high` rows for each GPU and one for the times."""
    usual = 3 if plan.tall else 2
    if plan.gpu_rows < deep * usual:
        return replace(plan, wake_gap=False, gpu_rows=plan.gpu_rows + 1 + plan.wake_gap)
    more = (high - usual) * deep + 1
    # the wake's row and the blank line above it, then events, then blank lines
    rest = more - 1 - plan.wake_gap
    events = max(plan.events - max(rest, 0), min(plan.events, 2))
    short = rest - (plan.events - events)
    return replace(
        plan, gpu_rows=plan.gpu_rows + more - max(short, 0), wake_gap=False, events=events + max(-rest, 0)
    )  # fmt: skip


def _spare(plan: Plan) -> int:
    return 1 + plan.wake_gap + max(plan.events - 3, 0)


def heading(line: Line, x: int, shape: bars.Form, seen: Tracks, view: View) -> None:
    """From when to when, in the heading of the GPUs that begins at column `x`."""
    since, until = (view.time(datetime.fromtimestamp(at, UTC)) for at in (seen.since, seen.until))
    line.put(x + shape.left, f"MEMORY, {since} – {until}", view.palette.dim)


def block(row: GpuRow, shape: bars.Form, rows: int, seen: Tracks, view: View) -> list[Line]:
    """The rows of one GPU: what is beside the bar as ever, and in its place its memory over time."""
    usual = bars.block(row, shape, view)
    lines = [Line(shape.width) for _ in range(rows)]
    for line, before in zip(lines, usual, strict=False):
        line.copy(0, shape.left - 1, before)
        line.copy(shape.bar_end, shape.width, before)
    _area(lines, row, shape, seen, view)
    return lines


def axis(shape: bars.Form, seen: Tracks, view: View) -> Line:
    """The times under the areas; the moment stands out."""
    line, cells = Line(shape.width), shape.bar_end - shape.left
    ends = [(shape.left, seen.since), (shape.bar_end - 8, seen.until)]
    at = min(max(shape.left + _column(seen.moment, seen, cells) - 4, shape.left), shape.bar_end - 8)
    for x, moment in ends:
        if abs(x - at) > 9:
            line.put(x, view.time(datetime.fromtimestamp(moment, UTC)), view.palette.dim)
    line.put(at, view.time(view.now), view.palette.pending, bold=True)
    return line


def _column(moment: float, seen: Tracks, cells: int) -> int:
    span = max(seen.until - seen.since, 0.001)
    return min(max(int((moment - seen.since) / span * cells), 0), cells - 1)


def _area(lines: list[Line], row: GpuRow, shape: bars.Form, seen: Tracks, view: View) -> None:
    palette, cells, rows = view.palette, shape.bar_end - shape.left, len(lines)
    cursor = _column(seen.moment, seen, cells)
    step = (seen.until - seen.since) / cells
    columns: list[list[Band]] = []
    for x in range(cells):
        # the column of the moment shows the moment
        moment = seen.moment if x == cursor else seen.since + (x + 0.5) * step
        columns.append(_bands(seen.at(row.gpu.name, moment), rows * 8))
    for x, bands in enumerate(columns):
        pale = PALE if x > cursor else 0.0
        for y in range(rows):
            sign, ink, back = _cell(bands, (rows - 1 - y) * 8, pale, view)
            lines[y].put(shape.left + x, sign, ink or palette.text, back=back)
    _names(lines, columns, cursor, row, shape, seen, view)
    for line in lines:
        line.put(shape.left + cursor, "│", palette.past)


def _bands(held: Held | None, height: int) -> list[Band]:
    """(model, or None for other programs; from; to), in eighths of a row from the bottom."""
    if held is None or held.total <= 0:
        return []
    found: list[Band] = []
    low = upto = 0
    for key, amount in held.models:
        upto += amount
        high = min(max(round(upto / held.total * height), low + 1), height)
        if high > low:
            found.append((key, low, high))
        low = high
    if held.foreign > 0:
        low = min(max(low, height - max(round(held.foreign / held.total * height), 1)), height - 1)
        found.append((None, low, height))
    return found


def _cell(bands: Sequence[Band], bottom: int, pale: float, view: View) -> tuple[str, str, str]:
    """Sign, colour, colour behind of a cell whose lowest eighth is number `bottom`. Of three colours the top edge
    wins, so that the whole is right."""
    palette = view.palette

    def colour(key: Key | None) -> str:
        base = palette.faint if key is None else view.occupant_colours(key)[0]
        return blend(base, palette.back, pale) if pale else base

    track = blend(palette.track, palette.back, pale) if pale else palette.track
    inside = [(key, max(low - bottom, 0), min(high - bottom, 8)) for key, low, high in bands
              if low < bottom + 8 and high > bottom]  # fmt: skip
    if not inside:
        return " ", "", track
    key, low, high = inside[-1]
    if high < 8:
        return BLOCKS[high - 1], colour(key), track
    if low <= 0:
        return " ", "", colour(key)
    under = colour(inside[-2][0]) if len(inside) > 1 else track
    return BLOCKS[low - 1], under, colour(key)


def _names(
    lines: list[Line],
    columns: Sequence[Sequence[Band]],
    cursor: int,
    row: GpuRow,
    shape: bars.Form,
    seen: Tracks,
    view: View,
) -> None:
    """Each stay that is wide enough is named where it begins, with its memory below where there is room."""
    palette, rows = view.palette, len(lines)
    x = 0
    while x < len(columns):
        for key, low, high in columns[x]:
            if key is None or (x and any(other[0] == key for other in columns[x - 1])):
                continue
            end = next((n for n in range(x, len(columns)) if not any(b[0] == key for b in columns[n])), len(columns))
            width = end - x
            # the rows that are wholly within the band all along
            rows_in = [y for y in range(rows) if low <= (rows - 1 - y) * 8 and (rows - y) * 8 <= high]
            name = view.name(key)
            if not rows_in or width < min(len(name), 8) + 2:
                continue
            ink = palette.on_segment if x <= cursor else blend(palette.on_segment, palette.back, PALE)
            start = shape.left + x + 1
            if x <= cursor <= x + len(name) + 1:  # the cursor does not cut it
                start = shape.left + cursor + 2
                width -= cursor + 1 - x
                if width < min(len(name), 8) + 2:
                    continue
            y = rows_in[0] if len(rows_in) < 3 else rows_in[-2]
            lines[y].put(start, cut(name, width - 2), ink, bold=True)
            amount = short_bytes(next((b for k, b in _models(seen, row, x, len(columns)) if k == key), 0))
            if y + 1 in rows_in and width > len(amount) + 1:
                lines[y + 1].put(start, amount, ink)
        x += 1


def _models(seen: Tracks, row: GpuRow, x: int, cells: int) -> tuple[tuple[Key, int], ...]:
    held = seen.at(row.gpu.name, seen.since + (x + 0.5) * (seen.until - seen.since) / cells)
    return held.models if held is not None else ()
