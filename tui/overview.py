"""The first screen: who is on the GPUs, who waits, and why."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Input

from greenthread.snapshot import ModelRow
from tui import bars, facts, layout, table
from tui.cells import Line, wrap
from tui.detail import Detail
from tui.facts import KeyHint
from tui.view import View, key_of_row
from tui.wakes import Key
from tui.widgets import Lines, ModelTable, Panel

_BODY = ("#gpu-heading", "#gpus", "#table-heading", "#models", "#why", "#wake", "#events")


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

    def compose(self) -> ComposeResult:
        yield Panel("header")
        yield Panel("trouble")
        yield Panel("gpu-heading")
        yield Lines("gpus")
        yield Panel("table-heading")
        yield ModelTable("models")
        yield Panel("why")
        yield Panel("wake")
        yield Panel("events")
        yield Input(placeholder="words in name, state, GPU; enter keeps, esc clears", id="filter", compact=True)
        yield Panel("footer")

    def on_mount(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(ModelTable).focus()

    @property
    def selected(self) -> Key | None:
        return self.query_one(ModelTable).selected

    def show(self, view: View) -> None:
        """Paints what changed."""
        self._view = view
        width, height = self.size
        if not width or not self.is_mounted:
            return
        rows = table.in_order(view.snapshot.models)
        self._rows = [row for row in rows if table.matches(row, self._words)] if self._words else rows
        trouble = _trouble(width, view)
        filtering = self.query_one("#filter").display
        plan = layout.plan(width, height, len(view.snapshot.gpus), len(self._rows), len(trouble) + filtering)
        self._arrange(plan, len(trouble))
        self._panel("header").show([facts.header(width, view, self._readonly)])
        self._panel("trouble").show(trouble)
        self._show_gpus(plan, view)
        self._show_models(view)
        row = self._selected_row()
        self._panel("why").show(facts.reasons(width, plan.why_rows, row, view))
        self._panel("wake").show(facts.wake_line(width, view))
        self._panel("events").show(facts.events(width, plan.events, view))
        line, spots = facts.footer(width, self._hints(row), view)
        self._panel("footer").show([line], spots)
        for name in _BODY:
            self.query_one(name).set_class(view.link.state == "lost", "-stale")

    def _panel(self, name: str) -> Panel:
        return self.query_one(f"#{name}", Panel)

    def _arrange(self, plan: layout.Plan, trouble: int) -> None:
        """Heights and blank lines; Textual lays out again only when one of them is another."""
        wide_gap = 1
        for name, height, gap in (
            ("trouble", trouble, 0),
            ("gpu-heading", 1, plan.top_gap),
            ("gpus", plan.gpu_rows, 0),
            ("table-heading", 1, wide_gap),
            ("models", plan.table_rows, 0),
            ("why", plan.why_rows, wide_gap),
            ("wake", 1, plan.wake_gap),
            ("events", plan.events, plan.events_gap),
        ):
            widget = self.query_one(f"#{name}")
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
        panel = self.query_one("#gpus", Lines)
        rows, columns = view.snapshot.gpus, plan.gpu_columns
        width = panel.room // columns
        shape = bars.form(width, plan.tall, rows)
        head = Line(self.size.width)
        for column in range(columns):
            head.paste(column * width, bars.heading(shape, view))
        self._panel("gpu-heading").show([head])
        deep = -(-len(rows) // columns)
        lines: list[Line] = []
        for at in range(deep):
            if at and plan.gpu_gap:
                lines.append(Line(panel.room))
            here = [Line(panel.room) for _ in range(shape.rows)]
            for column in range(columns):
                number = at + column * deep
                if number < len(rows):
                    for line, part in zip(here, bars.block(rows[number], shape, view), strict=True):
                        line.paste(column * width, part)
            lines += here
        if not rows:
            text = "no GPUs yet: the node agent makes one object for each device"
            lines = [Line(panel.room)]
            lines[0].put(1, text if view.link.state == "live" else "", view.palette.dim)
        panel.show(lines)

    def _show_models(self, view: View) -> None:
        models = self.query_one(ModelTable)
        rows, width = self._rows, models.room
        fields = table.columns(width, rows, view)
        note = f"{len(rows)} of {len(view.snapshot.models)}" if self._words else ""
        self._panel("table-heading").show([table.heading(width, fields, view, note)])
        models.show(
            [key_of_row(row) for row in rows],
            lambda at, selected, focused: table.draw(rows[at], width, fields, view, selected, focused),
        )

    def _selected_row(self) -> ModelRow | None:
        key = self.selected
        return self._view.snapshot.model(*key) if self._view is not None and key is not None else None

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
    @on(ModelTable.Resized)
    def _moved(self) -> None:
        self._again()

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._again)

    @on(ModelTable.Opened)
    def action_open(self) -> None:
        key = self.selected
        if key is not None and self._view is not None:
            self.app.push_screen(Detail(key, self._view, self._readonly))

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()
        self._again()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._words = event.value.strip()
        self._again()

    @on(Input.Submitted)
    def _typed_out(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = bool(self._words)
        self.query_one(ModelTable).focus()
        self._again()

    def action_clear_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.value, self._words = "", ""
        box.display = False
        self.query_one(ModelTable).focus()
        self._again()


def _trouble(width: int, view: View) -> list[Line]:
    """What went wrong with the connection, and what may not be read."""
    palette, link = view.palette, view.link
    lines: list[Line] = []
    if link.state == "lost":
        head = "connection lost" if link.age is not None else "no connection"
        text = f"✕ {head}: {link.trouble}. It is tried again; nothing here is newer."
        for part in wrap(text, width - 2, 3):
            lines.append(Line(width))
            lines[-1].put(1, part, palette.failed)
    for text in link.missing[:2]:
        lines.append(Line(width))
        lines[-1].put(1, f"not shown: {text}", palette.dim)
    return lines
