"""Every model in one table, sorted by any column."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from greenthread.snapshot import ModelRow, Shown
from tui import facts, table
from tui.facts import KeyHint
from tui.page import Page
from tui.view import View, key_of_row
from tui.wakes import Key
from tui.widgets import Panel, Table, set_height

SORT_KEYS = {"N": "MODEL", "T": "STATE", "F": "FOR", "P": "GPU", "V": "VRAM", "I": "INFL", "Q": "QUEUE",
             "R": "REQ/S", "L": "LAST WAKE"}  # fmt: skip
_BIGGEST_FIRST = ("VRAM", "INFL", "QUEUE", "REQ/S", "LAST WAKE")
_STATES = {state: rank for rank, state in enumerate(Shown)}


class Models(Page):
    """Keys sort: the same one again turns the order around; so does a click on a heading."""

    FILTER: ClassVar[str] = "name, state, GPU"
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("N T F P", "sort by name, state, for how long, place"),
        ("V I Q R L", "sort by memory, requests in flight, queue, requests a second, last wake"),
        ("A", "the usual order: who holds or wants memory first"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"sort('{title}')", show=False) for key, title in SORT_KEYS.items()),
        Binding("A", "sort('')", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._sorted_by, self._turned = "", False
        self._heading, self._models, self._why = Panel("table-heading"), Table("models"), Panel("why")

    def body(self) -> Iterable[Widget]:
        for part in (self._heading, self._models, self._why):
            part.add_class("body")
        return (self._heading, self._models, self._why)

    @property
    def selected(self) -> Key | None:
        key: Key | None = self._models.selected
        return key

    def draw(self, view: View, height: int) -> None:
        width = self.size.width
        why_rows = 3 if width >= 100 else 4
        every = self.model_rows(view)
        rows = [row for row in table.in_order(every) if table.matches(row, self.words)]
        if self._sorted_by:
            rows = in_order_of(rows, self._sorted_by, self._turned, view)
        set_height(self._heading, 1, int(height > 12))
        set_height(self._models, max(height - 1 - (height > 12) - why_rows - 1, 1))
        set_height(self._why, why_rows, 1)
        room = self._models.room
        fields = table.columns(room, rows, view)
        note = f"{len(rows)} of {len(every)}" if self.words else ""
        arrow = (self._sorted_by, "↓" if self._turned == (self._sorted_by not in _BIGGEST_FIRST) else "↑")
        self._heading.show([table.heading(room, fields, view, note, arrow)], table.spots(fields, "screen.sort"))
        self._models.show_rows(
            [key_of_row(row) for row in rows],
            lambda at, selected, focused: table.draw(rows[at], room, fields, view, selected, focused),
        )
        row = view.snapshot.model(*self.selected) if self.selected is not None else None
        self._why.show(facts.reasons(width, why_rows, row, view))

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [*self.model_hints(row), KeyHint("N…L", "sort", True, "app.help")]

    def action_sort(self, title: str) -> None:
        self._turned = not self._turned if title == self._sorted_by else False
        self._sorted_by = title
        self.again()


def in_order_of(rows: list[ModelRow], title: str, turned: bool, view: View) -> list[ModelRow]:
    """By a column; numbers begin with the largest; what is unknown comes last."""

    def since(row: ModelRow) -> float | None:
        return (view.now - row.since).total_seconds() if row.since else None

    values: dict[str, Callable[[ModelRow], Any]] = {
        "MODEL": lambda row: (row.namespace, row.name),
        "STATE": lambda row: _STATES[row.state],
        "FOR": since,
        "GPU": lambda row: row.places or None,
        "VRAM": lambda row: row.vram,
        "INFL": lambda row: row.in_flight,
        "QUEUE": lambda row: row.queued,
        "REQ/S": lambda row: view.data.rate(key_of_row(row)),
        "LAST WAKE": lambda row: row.last_wake,
    }
    value = values[title]
    known = [row for row in rows if value(row) is not None]
    known.sort(key=value, reverse=(title in _BIGGEST_FIRST) != turned)
    return [*known, *(row for row in rows if value(row) is None)]
