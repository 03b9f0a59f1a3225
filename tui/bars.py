"""GPUs as memory bars: who holds how much, what is free, who waits for it and how much is short."""

from __future__ import annotations

from dataclasses import dataclass

from greenthread.fairness import protected_for
from greenthread.gpu import Gpu, Intent, Occupant, State
from greenthread.snapshot import GpuRow, Shown
from greenthread.units import short_bytes, short_duration
from tui.cells import Line, cut, spark
from tui.theme import GLYPHS, PINNED, blend
from tui.view import NONE, View

WIDE = 104
"""Columns from which on a GPU also shows product, power and the sparkline."""
TWO_COLUMNS = 130
"""Columns from which on eight GPUs and more stand in two columns."""
SPARK = 12


@dataclass(frozen=True)
class Form:
    """Where things stand in a GPU's block. `tall`: two rows of bar."""

    width: int
    left: int
    bar_end: int
    wide: bool
    tall: bool

    @property
    def cells(self) -> int:
        """Width of the bar."""
        return self.bar_end - self.left

    @property
    def rows(self) -> int:
        return 3 if self.tall else 2


@dataclass(frozen=True)
class _Part:
    """Cells of a bar from `start` to before `stop`."""

    start: int
    stop: int
    occupant: Occupant | None = None


def form(width: int, tall: bool, gpus: tuple[GpuRow, ...]) -> Form:
    """Fits the block to `width` columns; long names of nodes take from the bar."""
    wide = width >= WIDE
    longest = max((len(place(row.gpu)) for row in gpus), default=0)
    if wide or tall:
        left = min(max(24, longest + 2), width // 3)
    else:
        left = min(max(22, longest + 13), max(22, width * 2 // 5))
    return Form(width, left, width - (26 if wide else 16), wide, tall)


def place(gpu: Gpu) -> str:
    return f"{gpu.node}/{gpu.index}"


def heading(shape: Form, view: View) -> Line:
    line = Line(shape.width)
    dim = view.palette.dim
    line.put(1, "GPU", dim)
    line.put(shape.left, "MEMORY", dim)
    ends = _numbers_at(shape)
    for end, title in zip(ends, ("UTIL", "TEMP", "POWER"), strict=False):
        line.end(end, title, dim)
    return line


def block(row: GpuRow, shape: Form, view: View) -> list[Line]:
    """The rows of one GPU."""
    lines = [Line(shape.width) for _ in range(shape.rows)]
    _identity(lines, row, shape, view)
    told = bar(lines, row.gpu, shape, view)
    _numbers(lines, row.gpu, shape, view)
    _demand(lines[-1], row, shape, view, told)
    return lines


def _numbers_at(shape: Form) -> tuple[int, ...]:
    end = shape.width - 1
    return (end - 17, end - 9, end) if shape.wide else (end - 8, end)


def _identity(lines: list[Line], row: GpuRow, shape: Form, view: View) -> None:
    palette, gpu = view.palette, row.gpu
    used = f"{short_bytes(gpu.total - row.free)[:-1]}/{short_bytes(gpu.total)}"
    if shape.tall:
        lines[0].put(1, cut(place(gpu), shape.left - 2), palette.strong, bold=True)
        room = shape.left - 4 - len(used)
        text = product(gpu.product, room) if shape.wide else ""
        x = lines[1].put(1, text, palette.dim)
        lines[1].put(x + 2 if text else 1, used, palette.dim)
    else:
        lines[0].put(1, cut(place(gpu), shape.left - 3 - len(used)), palette.strong, bold=True)
        lines[0].end(shape.left - 1, used, palette.dim)


def product(name: str, room: int) -> str:
    """`NVIDIA H100 80GB HBM3` as people say it: the first words, as far as there is room."""
    text = ""
    for word in name.removeprefix("NVIDIA ").split():
        if len(text) + 1 + len(word) > room or (text and word.endswith("GB")):
            break
        text = f"{text} {word}".strip()
    return text


def parts(gpu: Gpu, cells: int) -> tuple[list[_Part], _Part, _Part]:
    """Occupants, free and foreign memory as cells of a bar; what is there has a cell at least."""
    total = max(gpu.total, 1)
    foreign = _cells(gpu.foreign, total, cells)
    end = cells - foreign
    found, start, upto = [], 0, 0
    for occupant in gpu.occupants:
        if occupant.reserved <= 0:
            continue
        upto += occupant.reserved
        stop = min(max(round(upto / total * cells), start + 1), end)
        if stop > start:
            found.append(_Part(start, stop, occupant))
        start = stop
    return found, _Part(start, end), _Part(end, cells)


def _cells(amount: int, total: int, cells: int) -> int:
    return min(max(round(amount / max(total, 1) * cells), 1), cells) if amount > 0 else 0


def bar(lines: list[Line], gpu: Gpu, shape: Form, view: View) -> bool:
    """A GPU's memory in the first rows; returns whether there was room to say how much is free."""
    palette = view.palette
    bar_rows = lines[: 2 if shape.tall else 1]
    held, free, foreign = parts(gpu, shape.cells)
    for line in bar_rows:
        line.fill(shape.left, shape.bar_end, palette.track)
        line.put(shape.left + foreign.start, "░" * (foreign.stop - foreign.start), palette.dim)
    amount = short_bytes(max(gpu.room, 0))
    taken = free.start
    for number, part in enumerate(held):
        room_behind = free.stop - free.start if number == len(held) - 1 else 0
        taken = max(taken, _segment(bar_rows, part, room_behind, shape, view))
    if free.stop - taken >= len(amount) + 3:
        end = shape.left + free.stop - 1
        if shape.tall:
            lines[0].end(end, "free", palette.dim)
            lines[1].end(end, amount, palette.text)
        else:
            lines[0].end(end, amount, palette.dim)
        return True
    return False


def _segment(rows: list[Line], part: _Part, behind: int, shape: Form, view: View) -> int:
    """Paints an occupant; `behind`: free cells that its name may run into. Returns the bar's cell after its text."""
    occupant = part.occupant
    assert occupant is not None
    palette = view.palette
    key = (occupant.pod.namespace, occupant.model)
    segment, edge = view.occupant_colours(key)
    width, start = part.stop - part.start, shape.left + part.start
    filled = width
    pale = blend(segment, palette.back, 0.5)
    if occupant.state in (State.WAKING, State.CONVERTING):
        row = view.snapshot.model(*key)
        share = view.fill(row) if row is not None else None
        filled = round(width * share) if share is not None else 0
    for line in rows:
        line.fill(start, start + filled, segment)
        line.fill(start + filled, start + width, pale)
        line.put(start, "▎", edge)
    glyph = GLYPHS[Shown(str(occupant.state))]
    name, amount = view.name(key), short_bytes(occupant.reserved)
    at, ends = start + 2, part.start + 2
    if width >= 3:
        rows[0].put(at, glyph, palette.on_segment)
        ends += 1
    # the last one's name may run into free space, as long as the free amount can be told too
    over = max(behind - (7 if len(rows) == 1 else 6), 0)
    room = width - 5 if len(name) > width - 5 + over else len(name)
    shown = cut(name, room) if room >= min(len(name), 8) else ""
    if shown:
        rows[0].put(at + 2, shown, palette.on_segment, bold=True)
        ends = part.start + 4 + len(shown)
    if len(rows) > 1:
        if width - 3 + over >= len(amount):
            rows[1].put(at, amount, palette.number_on_segment)
            ends = max(ends, part.start + 2 + len(amount))
    elif part.start + width - 1 - len(amount) > ends:
        rows[0].end(start + width - 1, amount, palette.number_on_segment)
    return ends


def _numbers(lines: list[Line], gpu: Gpu, shape: Form, view: View) -> None:
    stats, text = gpu.stats, view.palette.text
    values = (f"{stats.utilization}%", f"{stats.temperature}°C", f"{stats.power}W") if stats else (NONE,) * 3
    for end, value in zip(_numbers_at(shape), values, strict=False):
        lines[0].end(end, value, text)
    if shape.wide and shape.tall:
        history = view.data.utilization(gpu.name)
        if history:
            end = lines[1].end(shape.width - 1, "util 1m", view.palette.dim)
            lines[1].end(end - 1, spark(history, SPARK, 100), view.palette.spark)


def _demand(line: Line, row: GpuRow, shape: Form, view: View, told: bool) -> None:
    if row.waiting:
        _waited_for(line, row, row.waiting[0], shape, view)
        return
    gpu, palette = row.gpu, view.palette
    stuck = view.stuck.get((gpu.node, gpu.index))
    if stuck is not None:
        need = stuck.model.status.serving_memory_per_gpu or 0
        line.put(1, cut(f"{GLYPHS[Shown.CANNOT_FIT]} {stuck.name}", shape.left - 2), palette.failed)
        line.end(shape.width - 1, "cannot fit", palette.failed)
        _scale(line, gpu, need, palette.failed, shape)
    else:
        line.put(1, "nobody waits", palette.dim)
        end = shape.bar_end
        if gpu.foreign and shape.wide:
            end = line.end(end, f"░ {short_bytes(gpu.foreign)} other programs", palette.dim) - 3
        if gpu.room > 0 and not told:
            line.end(end, f"{short_bytes(gpu.room)} free", palette.dim)
    _stays(line, gpu, shape, view)


def _waited_for(line: Line, row: GpuRow, intent: Intent, shape: Form, view: View) -> None:
    gpu, palette = row.gpu, view.palette
    amber = palette.pending
    waiter = view.name((intent.pod.namespace, intent.model))
    more = f" +{len(row.waiting) - 1}" if len(row.waiting) > 1 else ""
    line.put(1, cut(f"{GLYPHS[Shown.PENDING]} {waiter}", shape.left - 2 - len(more)) + more, amber, bold=True)
    waited = short_duration((view.now - intent.since).total_seconds())
    model = view.row_of_pod(intent.pod, intent.model)
    barrier = model.model.spec.fairness.max_wait_time if model else None
    if barrier is None or (view.now - intent.since).total_seconds() > barrier:
        text = f"waits {waited}"
    elif shape.wide:
        text = f"waits {waited} of {short_duration(barrier)}"
    else:
        text = f"{waited.removesuffix('s')}/{short_duration(barrier)}"
    line.end(shape.width - 1, text, amber)
    _scale(line, gpu, intent.requested, amber, shape)
    _stays(line, gpu, shape, view)


def _scale(line: Line, gpu: Gpu, need: int, colour: str, shape: Form) -> None:
    """What is needed, on the bar's own scale, right-aligned on the end of the free memory: ━ is there, ╌ is short."""
    _, free, _ = parts(gpu, shape.cells)
    room = max(gpu.room, 0)
    short = max(need - room, 0)
    end = shape.left + free.stop
    there = _cells(min(room, need), gpu.total, shape.cells)
    start = max(end - there - _cells(short, gpu.total, shape.cells), shape.left) if short else end - there
    line.put(start, "├", colour)
    line.put(start + 1, "╌" * (end - there - start - 1), colour)
    if there:
        line.put(end - there, ("┼" if short else "├") + "━" * (there - 1), colour)
    line.put(end - 1, "┤", colour)
    texts = [f" {short_bytes(need)}: there is room ", f" {short_bytes(need)} "]
    at, width = end - there, there
    if short:
        texts = [f" {short_bytes(short)} short of {short_bytes(need)} ", f" {short_bytes(short)} short "]
        at, width = start, end - there - start
    text = next((text for text in texts if len(text) + 2 <= width), "")
    if text:
        line.put(at + 1 + (width - len(text)) // 2, text, colour, bold=True)
    elif short and start - shape.left > len(texts[1]):
        line.end(start, texts[1], colour, bold=True)


def _stays(line: Line, gpu: Gpu, shape: Form, view: View) -> None:
    """Under each segment, why that occupant stays or that it leaves; as far as there is room."""
    held, _, _ = parts(gpu, shape.cells)
    for number, part in enumerate(held):
        assert part.occupant is not None
        text = stays(part.occupant, gpu, view)
        start = shape.left + part.start
        end = shape.left + held[number + 1].start if number + 1 < len(held) else shape.bar_end
        if text and start + len(text) + 1 <= end and line.is_free(start, start + len(text) + 1):
            line.put(start, text, view.palette.dim)


def stays(occupant: Occupant, gpu: Gpu, view: View) -> str:
    """Why an occupant stays, in a few words."""
    if occupant.sidecar_down:
        return "its sidecar is down"
    if occupant.state is State.DEACTIVATING:
        return "makes room"
    if occupant.popular:
        return f"{PINNED} pinned, never preempted"
    if any(occupant.pod in intent.victims for intent in gpu.intents):
        return "asked to make room"
    if occupant.state is State.WAKING:
        return "wakes"
    if occupant.state is State.CONVERTING:
        return "boots"
    left = protected_for(occupant, view.now)
    return f"protected {short_duration(left)} more" if left > 0 else ""
