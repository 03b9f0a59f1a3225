"""What happened to models, newest first; the selected event in whole words, with the steps it took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.widget import Widget

from greenthread.snapshot import ModelRow, Shown
from greenthread.units import short_duration
from tui import facts
from tui.cells import Line, wrap
from tui.columns import Column, Field, fit, heading
from tui.data import Told
from tui.facts import KeyHint
from tui.page import Page
from tui.theme import GLYPHS
from tui.view import View, put_with_names
from tui.wakes import Key
from tui.widgets import Panel, Table, set_height

WORDS = 5
"""Rows for the selected event."""


class Events(Page):
    """A row an event; new ones come in above, and the selected one stays selected."""

    FILTER: ClassVar[str] = "model, reason, message"

    def __init__(self) -> None:
        super().__init__()
        self._told: list[Told] = []
        self._heading, self._rows, self._words = Panel("table-heading"), Table("events"), Panel("words")

    def body(self) -> Iterable[Widget]:
        for part in (self._heading, self._rows, self._words):
            part.add_class("body")
        return (self._heading, self._rows, self._words)

    @property
    def _selected(self) -> Told | None:
        return next((told for told in self._told if told.uid == self._rows.selected), None)

    @property
    def selected(self) -> Key | None:
        told = self._selected
        return told.key if told is not None else None

    def copied(self) -> str:
        told = self._selected
        return told.message if told is not None else ""

    def draw(self, view: View, height: int) -> None:
        width = self.size.width
        namespace = self.dashboard.namespace
        every = [told for told in reversed(view.data.events) if namespace in (None, told.key[0])]
        self._told = [told for told in every if matches(told, self.words)]
        gap = int(height > 14)
        set_height(self._heading, 1, gap)
        set_height(self._rows, max(height - 1 - gap - WORDS - 1, 1))
        set_height(self._words, WORDS, 1)
        room = self._rows.room
        names = max((len(view.name(told.key)) for told in self._told), default=0)
        reasons = max((len(told.reason) for told in self._told), default=0)
        fields = fit(
            room,
            (
                Field("TIME", 8),
                Field("MODEL", min(max(names + 2, 8), 34 if width >= 100 else 22)),
                Field("WHAT", min(max(reasons, 4), 14), drop=1 if width < 100 else 0),
                Field("MESSAGE", 20, grow=True),
            ),
            start=3,
        )
        head = heading(room, fields, view)
        text = f"{len(self._told)} of {len(every)}" if self.words else "" if every else "nothing happened yet"
        head.put(fields["MODEL"].start + 7, text, view.palette.strong, bold=True)
        self._heading.show([head])
        self._rows.show_rows(
            [told.uid for told in self._told],
            lambda at, selected, focused: row_of(self._told[at], room, fields, view, selected, focused),
        )
        self._words.show(words_of(self._selected, width, view))

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [
            KeyHint("enter", "model", row is not None, "screen.open"),
            KeyHint("l", "logs", row is not None, "app.logs"),
            KeyHint("y", "yaml", row is not None, "app.yaml"),
            KeyHint("c", "copy", bool(self._told), "app.copy"),
        ]


def matches(told: Told, words: str) -> bool:
    """Whether every word is somewhere in it."""
    text = f"{told.key[0]}/{told.key[1]} {told.reason} {told.message}".lower()
    return all(word in text for word in words.lower().split())


def row_of(told: Told, width: int, fields: dict[str, Column], view: View, selected: bool, focused: bool) -> Line:
    palette = view.palette
    line = Line(width, palette.selected if selected else "")
    if selected:
        line.put(1, "▸", palette.strong if focused else palette.faint)
    state = Shown.FAILED if told.warning else facts.STATE_OF.get(told.reason)
    fields["TIME"].put(line, view.time(told.at), palette.dim)
    model = fields["MODEL"]
    line.put(model.start, GLYPHS[state] if state else "·", palette.state(state) if state else palette.dim)
    named = Column("", model.start + 2, model.end)
    named.put(line, view.name(told.key), palette.strong if selected else palette.text, selected)
    if what := fields.get("WHAT"):
        what.put(line, told.reason, palette.failed if told.warning else palette.text)
    fields["MESSAGE"].put(line, told.message, palette.text if selected else palette.dim)
    return line


def words_of(told: Told | None, width: int, view: View) -> list[Line]:
    """The whole message of an event."""
    palette = view.palette
    lines = [Line(width) for _ in range(WORDS)]
    if told is None:
        return lines
    state = Shown.FAILED if told.warning else facts.STATE_OF.get(told.reason)
    colour = palette.state(state) if state else palette.dim
    for line in lines:
        line.put(1, "▎", colour)
    x = lines[0].put(3, told.reason or "Event", colour, bold=True)
    x = lines[0].put(x + 2, view.name(told.key), palette.strong, bold=True)
    ago = max((view.now - told.at).total_seconds(), 0.0)
    lines[0].put(x + 2, f"{view.time(told.at)}, {short_duration(ago)} ago", palette.dim)
    names = {row.name for row in view.snapshot.models}
    for line, text in zip(lines[1:], wrap(told.message, width - 4, WORDS - 1), strict=False):
        put_with_names(line, 3, text, names, view)
    return lines
