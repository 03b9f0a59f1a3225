"""Charts: wake latency, requests, queue, preemptions, GPU use and memory, over five minutes to a day."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from greenthread.kube.errors import KubeError
from greenthread.snapshot import ModelRow
from greenthread.units import short_duration
from tui import measures
from tui.cells import Line, cut
from tui.facts import KeyHint
from tui.measures import RANGES, Chart
from tui.page import Page
from tui.view import View
from tui.widgets import Lines, Panel, set_height

LABELS = 7
"""Columns for the numbers beside a chart."""
TWO_COLUMNS = 100
LEAST, MOST = 4, 14
"""Rows of a curve."""
ASK_AGAIN = 10.0
"""Seconds between two questions to Prometheus."""


class Charts(Page):
    """Says where its numbers are from: Prometheus, or what this dashboard saw itself."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (("← →", "a longer, a shorter time"),)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "longer(1)", show=False),
        Binding("right", "longer(-1)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._range = "5m"
        self._heading, self._lines = Panel("table-heading"), Lines("all")
        self._painted: tuple[object, ...] = ()
        self._blocks: list[list[Line]] = []
        self._asked: list[Chart] = []
        self._asked_for = ""
        self._trouble_there = ""

    def body(self) -> Iterable[Widget]:
        for part in (self._heading, self._lines):
            part.add_class("body")
        return (self._heading, self._lines)

    def on_mount(self) -> None:
        super().on_mount()
        if self.dashboard.measured is not None:
            self.run_worker(self._ask(), exclusive=True, group="prometheus")

    def action_longer(self, by: int) -> None:
        names = list(RANGES)
        self._range = names[min(max(names.index(self._range) + by, 0), len(names) - 1)]
        if self.dashboard.measured is not None:
            self.run_worker(self._ask(), exclusive=True, group="prometheus")
        self.again()

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [KeyHint("←", "longer", True, "screen.longer(1)"), KeyHint("→", "shorter", True, "screen.longer(-1)")]

    async def _ask(self) -> None:
        """Asks Prometheus, in a thread, as long as this page is open."""
        measured = self.dashboard.measured
        assert measured is not None
        while True:
            wanted = self._range
            memory = float(sum(row.gpu.total for row in self.dashboard.data.snapshot().gpus))
            until = datetime.now(UTC).timestamp()
            try:
                found = await asyncio.to_thread(measured, until - RANGES[wanted], until, memory)
                self._asked, self._trouble_there = list(found), ""
                self._asked_for = wanted
            except KubeError as error:
                self._asked, self._trouble_there = [], str(error)
            self.again()
            await asyncio.sleep(ASK_AGAIN)

    def draw(self, view: View, height: int) -> None:
        set_height(self._heading, 1, 1)
        set_height(self._lines, max(height - 2, 1))
        room, until = self._lines.room, view.now.timestamp()
        since = until - RANGES[self._range]
        seen = self.dashboard.data.seen
        source = view.then is None and self._asked_for == self._range and bool(self._asked)
        # measured every 5 s: in between there is nothing new to draw
        state = (self._range, room, height, until // 5, seen.latest, id(self._asked), source, view.palette.name)
        if state != self._painted:
            self._painted = state
            found = measures.charts(seen, since, until)
            if source:
                asked = {chart.title: chart for chart in self._asked}
                found = [asked.get(chart.title, chart) for chart in found]
            columns = 2 if room >= TWO_COLUMNS else 1
            deep = -(-len(found) // columns)
            rows = min(max((height - 2 - deep + 1) // deep - 3, LEAST), MOST)
            width = room // columns
            self._blocks = [block(chart, width - 1, rows, since, until, view) for chart in found]
            self._deep, self._step, self._width = deep, rows + 3, width
        self._heading.show([self._head(view, source)])
        self._lines.show(self._deep * self._step - 1, self._row)

    def _row(self, y: int) -> Line:
        line = Line(self._lines.room)
        row, part = divmod(y, self._step)
        columns = -(-len(self._blocks) // self._deep)
        for column in range(columns):
            number = row * columns + column
            if number < len(self._blocks) and part < len(self._blocks[number]):
                line.paste(column * self._width, self._blocks[number][part])
        return line

    def _head(self, view: View, source: bool) -> Line:
        """The ranges, and where the numbers are from."""
        palette, line = view.palette, Line(self.size.width)
        x = 1
        for name in RANGES:
            chosen = name == self._range
            x = line.put(x, name, palette.strong if chosen else palette.dim, bold=chosen) + 2
        seen = self.dashboard.data.seen
        own = "nothing seen yet: the first numbers come after 5s"
        if seen.began is not None:
            began = datetime.fromtimestamp(seen.began, UTC)
            own = f"seen by this dashboard since {view.time(began)}"
        text = f"from Prometheus; GPU USE {own}" if source else own
        if self._trouble_there and view.then is None:
            text = f"{own}; {self._trouble_there}"
        line.put(x + 2, cut(text, line.width - x - 3), palette.dim)
        return line


def block(chart: Chart, width: int, rows: int, since: float, until: float, view: View) -> list[Line]:
    """A chart: title and legend with the newest numbers, curves with the scale beside them, times below."""
    from tui.plot import curve

    palette = view.palette
    cells = width - LABELS - 1
    top = max(chart.top, measures.ceiling(max((value for c in chart.curves for _, value in c.points), default=0.0)))
    lines = [Line(width) for _ in range(rows + 2)]
    x = lines[0].put(1, chart.title, palette.strong, bold=True) + 2
    for each in chart.curves:
        if each.points:
            newest = measure(each.points[-1][1], chart.unit)
            if x + len(each.name) + len(newest) + 3 <= width:
                x = lines[0].put(x, "━", _colour(each.colour, view))
                x = lines[0].put(x + 1, each.name, palette.dim)
                x = lines[0].put(x + 1, newest, palette.text) + 3
    for y, value in ((0, top), (rows // 2, top * (1 - (rows // 2) / max(rows - 1, 1))), (rows - 1, 0.0)):
        lines[1 + y].end(LABELS, measure(value, chart.unit), palette.dim)
    for line in lines[1 : rows + 1]:
        line.put(LABELS, "│", palette.faint)
    if not any(each.points for each in chart.curves):
        lines[1 + rows // 2].put(LABELS + 2, "nothing yet", palette.faint)
    signs: dict[tuple[int, int], tuple[int, str]] = {}
    for each in chart.curves:
        drawn = curve(measures.pieces(each.points, chart.gap), cells, rows, (since, until), (0.0, top))
        for y, row in enumerate(drawn):
            for x, sign in enumerate(row):
                if sign != " ":  # two curves may cross in one cell
                    signs[x, y] = (signs.get((x, y), (0x2800, ""))[0] | ord(sign), _colour(each.colour, view))
    for (x, y), (dots, colour) in signs.items():
        lines[1 + y].put(LABELS + 1 + x, chr(dots), colour)
    _times(lines[-1], cells, since, until, view)
    return lines


def _times(line: Line, cells: int, since: float, until: float, view: View) -> None:
    """Where in time the curves are: four moments, or two where there is no room."""
    count = 4 if cells >= 44 else 2
    span = timedelta(seconds=until - since)
    end = datetime.fromtimestamp(until, UTC)
    for number in range(count):
        moment = end - span * (1 - number / (count - 1))
        text = view.time(moment)[: 8 if span < timedelta(hours=1) else 5]
        at = LABELS + 1 + round(number / (count - 1) * (cells - len(text)))
        line.put(at, text, view.palette.dim)


def measure(value: float, unit: str) -> str:
    """A number with its unit, short."""
    if unit == "s":
        return short_duration(value) if value else "0"
    if unit == "%":
        return f"{value:.0f}%"
    text = f"{value:.1f}" if value < 9.95 and value != int(value) else f"{value:.0f}"
    return f"{text}{unit}"


def _colour(name: str, view: View) -> str:
    return str(getattr(view.palette, name))
