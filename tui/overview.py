"""The first page: who is on the GPUs, who waits, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.widget import Widget

from greenthread.snapshot import ModelRow
from tui import bars, facts, layout, table, timeline
from tui.cells import Line
from tui.page import Page
from tui.view import View, key_of_row
from tui.wakes import Key
from tui.widgets import Lines, Panel, Table, set_height


class Overview(Page):
    """GPUs, models, why and next of the selected one, the wake that goes on, events."""

    FILTER: ClassVar[str] = "name, state, GPU"

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[ModelRow] = []
        self._why_rows = 3
        self._over_time = 0  # rows of a GPU's memory over time, 0: it is shown as a bar
        self._gpu_heading, self._gpus = Panel("gpu-heading"), Lines("gpus")
        self._table_heading, self._models = Panel("table-heading"), Table("models")
        self._why, self._wake, self._events = Panel("why"), Panel("wake"), Panel("events")

    def body(self) -> Iterable[Widget]:
        parts = (
            self._gpu_heading, self._gpus, self._table_heading, self._models, self._why, self._wake, self._events,
        )  # fmt: skip
        for part in parts:
            part.add_class("body")
        return parts

    def focus_body(self) -> None:
        self.set_focus(self._models)

    @property
    def selected(self) -> Key | None:
        key: Key | None = self._models.selected
        return key

    def draw(self, view: View, height: int) -> None:
        width = self.size.width
        rows = table.in_order(self.model_rows(view))
        self._rows = [row for row in rows if table.matches(row, self.words)] if self.words else rows
        plan = layout.plan(width, height + 2, len(view.snapshot.gpus), len(self._rows))
        wakes = 3 if plan.events >= 10 else 1
        deep = -(-max(len(view.snapshot.gpus), 1) // plan.gpu_columns)
        self._over_time = timeline.rows(plan, deep) if view.then is not None and view.snapshot.gpus else 0
        if self._over_time:  # it takes the place of the wake and of older events
            plan = timeline.plan(plan, deep, self._over_time)
            wakes = 0
        for widget, lines, gap in (
            (self._gpu_heading, 1, plan.top_gap),
            (self._gpus, plan.gpu_rows, False),
            (self._table_heading, 1, True),
            (self._models, plan.table_rows, False),
            (self._why, plan.why_rows, True),
            (self._wake, wakes, plan.wake_gap and wakes > 0),
            (self._events, plan.events - max(wakes - 1, 0), plan.events_gap),
        ):
            set_height(widget, lines, int(gap))
        self._show_gpus(plan, view)
        self._show_models(view, len(rows))
        self._why_rows = plan.why_rows
        self._show_why(view)
        self._wake.show(facts.wake_lines(width, wakes, view) if wakes else ())
        rows_left = plan.events - max(wakes - 1, 0)
        self._events.show(facts.events(width, rows_left, view, namespace=self.dashboard.namespace))

    def draw_selected(self) -> None:
        if self._view is not None:
            self._show_why(self._view)
            self.show_keys()

    def _show_why(self, view: View) -> None:
        row = view.snapshot.model(*self.selected) if self.selected is not None else None
        self._why.show(facts.reasons(self.size.width, self._why_rows, row, view))

    def _show_gpus(self, plan: layout.Plan, view: View) -> None:
        panel = self._gpus
        rows, columns = view.snapshot.gpus, plan.gpu_columns
        width = panel.room // columns
        shape = bars.form(width, plan.tall, rows)
        head = Line(self.size.width)
        for column in range(columns):
            head.paste(column * width, bars.heading(shape, view))
            if self._over_time and view.then is not None:
                timeline.heading(head, column * width, shape, view.then.past.tracks(), view)
        self._gpu_heading.show([head])
        if not rows:
            line = Line(panel.room)
            text = "no GPUs yet: the node agent makes one object for each device"
            line.put(1, text if view.link.state == "live" else "", view.palette.dim)
            panel.show(1, lambda _: line)
            return
        high = self._over_time or shape.rows
        deep, step = -(-len(rows) // columns), high + plan.gpu_gap
        seen = view.then.past.tracks() if view.then is not None and self._over_time else None
        blocks: dict[int, list[Line]] = {}

        def paint(y: int) -> Line:
            line, part = Line(panel.room), y % step
            for number in range(y // step, len(rows), deep):
                if part < high:
                    if number not in blocks:
                        blocks[number] = (
                            bars.block(rows[number], shape, view)
                            if seen is None
                            else timeline.block(rows[number], shape, high, seen, view)
                        )
                    line.paste(number // deep * width, blocks[number][part])
            return line

        count = deep * step - plan.gpu_gap
        if seen is None:
            panel.show(count, paint)
            return
        times = Line(panel.room)
        for column in range(columns):
            times.paste(column * width, timeline.axis(shape, seen, view))
        panel.show(count + 1, lambda y: paint(y) if y < count else times)

    def _show_models(self, view: View, count: int) -> None:
        models = self._models
        rows, width = self._rows, models.room
        fields = table.columns(width, rows, view)
        note = f"{len(rows)} of {count}" if self.words else ""
        spots = table.spots(fields, "app.sort_models")
        self._table_heading.show([table.heading(width, fields, view, note)], spots)
        models.show_rows(
            [key_of_row(row) for row in rows],
            lambda at, selected, focused: table.draw(rows[at], width, fields, view, selected, focused),
        )
