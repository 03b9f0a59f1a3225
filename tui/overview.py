"""The first screen: who is on the GPUs, who waits, and why."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input

from greenthread.snapshot import ModelRow
from tui import bars, facts, layout, table
from tui.cells import Line, wrap
from tui.detail import Detail
from tui.facts import KeyHint
from tui.view import View, key_of_row
from tui.wakes import Key
from tui.widgets import Lines, ModelTable, Panel


class Overview(Screen[None]):
    """GPUs, models, why and next of the selected one, the wake that goes on, events."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "app.act('wake')", show=False),
        Binding("s", "app.act('sleep')", show=False),
        Binding("p", "app.act('pin')", show=False),
        Binding("x", "app.act('preempt')", show=False),
        Binding("slash", "filter", show=False),
        Binding("escape", "clear_filter", show=False),
    ]

    def __init__(self, readonly: bool) -> None:
        super().__init__()
        self._readonly = readonly
        self._words = ""
        self._view: View | None = None
        self._rows: list[ModelRow] = []
        self._why_rows = 3
        self._header, self._trouble = Panel("header"), Panel("trouble")
        self._gpu_heading, self._gpus = Panel("gpu-heading"), Lines("gpus")
        self._table_heading, self._models = Panel("table-heading"), ModelTable("models")
        self._why, self._wake, self._events = Panel("why"), Panel("wake"), Panel("events")
        self._filter = Input(
            placeholder="words in name, state, GPU; enter keeps, esc clears", id="filter", compact=True
        )
        self._footer = Panel("footer")

    def compose(self) -> ComposeResult:
        yield from (self._header, self._trouble, *self._body, self._filter, self._footer)

    @property
    def _body(self) -> tuple[Widget, ...]:
        """What is greyed when it may be old."""
        return (
            self._gpu_heading, self._gpus, self._table_heading, self._models, self._why, self._wake, self._events,
        )  # fmt: skip

    def on_mount(self) -> None:
        self._filter.display = False
        self._models.focus()

    @property
    def selected(self) -> Key | None:
        return self._models.selected

    def show(self, view: View) -> None:
        """Paints what changed."""
        self._view = view
        width, height = self.size
        if not width or not self._footer.is_attached:
            return
        rows = table.in_order(view.snapshot.models)
        self._rows = [row for row in rows if table.matches(row, self._words)] if self._words else rows
        trouble = _trouble(width, view)
        taken = len(trouble) + self._filter.display
        plan = layout.plan(width, height, len(view.snapshot.gpus), len(self._rows), taken)
        self._arrange(plan, len(trouble))
        self._header.show([facts.header(width, view, self._readonly)])
        self._trouble.show(trouble)
        self._show_gpus(plan, view)
        self._show_models(view)
        self._why_rows = plan.why_rows
        self._show_selected(view)
        self._wake.show(facts.wake_line(width, view))
        self._events.show(facts.events(width, plan.events, view))
        for widget in self._body:
            widget.set_class(view.link.state == "lost", "-stale")

    def _arrange(self, plan: layout.Plan, trouble: int) -> None:
        """Heights and blank lines; Textual lays out again only when one of them is another."""
        for widget, height, gap in (
            (self._trouble, trouble, 0),
            (self._gpu_heading, 1, plan.top_gap),
            (self._gpus, plan.gpu_rows, 0),
            (self._table_heading, 1, 1),
            (self._models, plan.table_rows, 0),
            (self._why, plan.why_rows, 1),
            (self._wake, 1, plan.wake_gap),
            (self._events, plan.events, plan.events_gap),
        ):
            shown = height > 0
            if widget.display != shown:
                widget.display = shown
            if not shown:
                continue
            if widget.styles.height is None or widget.styles.height.value != height:
                widget.styles.height = height
            if widget.styles.margin.top != int(gap):
                widget.styles.margin = (int(gap), 0, 0, 0)

    def _show_gpus(self, plan: layout.Plan, view: View) -> None:
        panel = self._gpus
        rows, columns = view.snapshot.gpus, plan.gpu_columns
        width = panel.room // columns
        shape = bars.form(width, plan.tall, rows)
        head = Line(self.size.width)
        for column in range(columns):
            head.paste(column * width, bars.heading(shape, view))
        self._gpu_heading.show([head])
        if not rows:
            line = Line(panel.room)
            text = "no GPUs yet: the node agent makes one object for each device"
            line.put(1, text if view.link.state == "live" else "", view.palette.dim)
            panel.show(1, lambda _: line)
            return
        deep, step = -(-len(rows) // columns), shape.rows + plan.gpu_gap
        blocks: dict[int, list[Line]] = {}

        def paint(y: int) -> Line:
            line, part = Line(panel.room), y % step
            for number in range(y // step, len(rows), deep):
                if part < shape.rows:
                    if number not in blocks:
                        blocks[number] = bars.block(rows[number], shape, view)
                    line.paste(number // deep * width, blocks[number][part])
            return line

        panel.show(deep * step - plan.gpu_gap, paint)

    def _show_models(self, view: View) -> None:
        models = self._models
        rows, width = self._rows, models.room
        fields = table.columns(width, rows, view)
        note = f"{len(rows)} of {len(view.snapshot.models)}" if self._words else ""
        self._table_heading.show([table.heading(width, fields, view, note)])
        models.show_models(
            [key_of_row(row) for row in rows],
            lambda at, selected, focused: table.draw(rows[at], width, fields, view, selected, focused),
        )

    def _show_selected(self, view: View) -> None:
        """What depends on the selected model."""
        key = self.selected
        row = view.snapshot.model(*key) if key is not None else None
        self._why.show(facts.reasons(self.size.width, self._why_rows, row, view))
        line, spots = facts.footer(self.size.width, self._hints(row), view)
        self._footer.show([line], spots)

    def _hints(self, row: ModelRow | None) -> list[KeyHint]:
        hints = [KeyHint("enter", "detail", row is not None, "screen.open")]
        if not self._readonly:
            hints += facts.action_hints(row)
        return [
            *hints,
            KeyHint("/", "filter", True, "screen.filter"),
            KeyHint("?", "help", True, "app.help"),
            KeyHint("q", "quit", True, "app.quit"),
        ]

    def _again(self) -> None:
        if self._view is not None:
            self.show(self._view)

    @on(ModelTable.Moved)
    def _moved(self) -> None:
        if self._view is not None:
            self._show_selected(self._view)

    @on(ModelTable.Resized)
    def _resized(self) -> None:
        self._again()

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._again)

    @on(ModelTable.Opened)
    def action_open(self) -> None:
        key = self.selected
        if key is not None and self._view is not None:
            self.app.push_screen(Detail(key, self._view, self._readonly))

    def action_filter(self) -> None:
        self._filter.display = True
        self._filter.focus()
        self._again()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._words = event.value.strip()
        self._again()

    @on(Input.Submitted)
    def _typed_out(self) -> None:
        self._filter.display = bool(self._words)
        self._models.focus()
        self._again()

    def action_clear_filter(self) -> None:
        self._filter.value, self._words = "", ""
        self._filter.display = False
        self._models.focus()
        self._again()


def _trouble(width: int, view: View) -> list[Line]:
    """What went wrong with the connection, and what may not be read."""
    palette, link = view.palette, view.link
    lines: list[Line] = []
    if link.state == "lost":
        trouble = link.trouble if link.trouble.endswith(("?", "!", ".")) else f"{link.trouble}."
        text = f"✕ no connection: {trouble} Trying again."
        if link.age is not None:
            then = view.time(view.now - timedelta(seconds=link.age))
            text = f"✕ connection lost: {trouble} Trying again; this is the cluster of {then}."
        for part in wrap(text, width - 2, 3):
            lines.append(Line(width))
            lines[-1].put(1, part, palette.failed)
    for text in link.missing[:2]:
        lines.append(Line(width))
        lines[-1].put(1, f"not shown: {text}", palette.dim)
    return lines
