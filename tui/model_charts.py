"""A model's own charts: how long its wakes took, and how often it was asked."""

from __future__ import annotations

from greenthread.snapshot import ModelRow
from tui.cells import Line
from tui.charts import block
from tui.known import SAMPLE
from tui.last_wakes import moment
from tui.measures import Chart, Curve
from tui.view import View

ROWS = 4
"""Of each curve."""
HOUR = 3600.0


class ModelCharts:
    """Drawn anew only when there is something new to draw."""

    def __init__(self) -> None:
        self._drawn: list[Line] = []
        self._of: object = None

    def lines(self, row: ModelRow, view: View, width: int) -> list[Line]:
        """Side by side, or below each other where there is no room."""
        key = (row.namespace, row.name)
        now = view.now.timestamp()
        took = sorted(
            (moment(told).timestamp(), float(told.record["total"]))
            for told in view.data.records(key)
            if told.record and told.record.get("kind") == "wake" and isinstance(told.record.get("total"), int | float)
        )
        asked = view.data.rates(key)
        until = now - now % SAMPLE
        known = (width, view.palette.name, tuple(took), tuple(asked), until)
        if known == self._of:
            return self._drawn
        self._of = known
        side = width >= 100
        each = width // 2 if side else width
        rates = [(until - SAMPLE * (len(asked) - 1 - n), value) for n, value in enumerate(asked) if value is not None]
        wakes = Chart("WAKE LATENCY, 1 HOUR", "s", [Curve("each wake", "waking", took)], gap=HOUR)
        requests = Chart("REQUESTS, 2 MINUTES", "/s", [Curve("now", "serving", rates)], top=1, gap=3 * SAMPLE)
        first = block(wakes, each - 2 if side else each, ROWS, now - HOUR, now, view)
        second = block(requests, each, ROWS, until - 120, until, view)
        if not side:
            self._drawn = [Line(width), *first, Line(width), *second]
            return self._drawn
        self._drawn = [Line(width)]
        for left, right in zip(first, second, strict=True):
            line = Line(width)
            line.paste(0, left)
            line.paste(width - each, right)
            self._drawn.append(line)
        return self._drawn
