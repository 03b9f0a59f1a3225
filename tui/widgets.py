"""Widgets that show painted lines and redraw only those that changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from tui.cells import Line
from tui.wakes import Key


class Panel(Widget):
    """A few lines; its height is set by whoever lays it out."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._strips: list[Strip] = []
        self._spots: list[tuple[int, int, str]] = []

    def show(self, lines: Sequence[Line], spots: Sequence[tuple[int, int, str]] = ()) -> None:
        """`spots`: (from column, before column, action of the app) that can be clicked on the first line."""
        old, self._strips = self._strips, [line.strip().apply_style(self.rich_style) for line in lines]
        self._spots = list(spots)
        if len(old) != len(self._strips):
            self.refresh()
            return
        for y, (before, now) in enumerate(zip(old, self._strips, strict=True)):
            if before != now:
                self.refresh(Region(0, y, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    async def on_click(self, event: Click) -> None:
        for start, stop, action in self._spots:
            if event.y == 0 and start <= event.x < stop and action:
                await self.app.run_action(action, default_namespace=self.screen)


class Lines(ScrollView, can_focus=True):
    """Lines that scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", show=False),
        Binding("k", "scroll_up", show=False),
        Binding("g", "scroll_home", show=False),
        Binding("G", "scroll_end", show=False),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._strips: list[Strip] = []

    @property
    def room(self) -> int:
        """Columns for a line."""
        return self.scrollable_content_region.width

    def show(self, lines: Sequence[Line]) -> None:
        old, self._strips = self._strips, [line.strip().apply_style(self.rich_style) for line in lines]
        size = Size(max((line.width for line in lines), default=0), len(lines))
        if size != self.virtual_size:
            self.virtual_size = size
        if len(old) != len(self._strips):
            self.refresh()
            return
        for y, (before, now) in enumerate(zip(old, self._strips, strict=True)):
            if before != now:
                self.refresh_line(y)

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= len(self._strips):
            return Strip.blank(self.size.width, self.rich_style)
        return self._strips[at].crop_extend(0, self.size.width, self.rich_style)


Painter = Callable[[int, bool, bool], Line]
"""Paints the row of a number: (number, whether it is selected, whether the table has the focus)."""


class ModelTable(ScrollView, can_focus=True):
    """Rows with a selected one, which stays selected wherever it moves to. Only rows in sight are painted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", show=False),
        Binding("k,up", "move(-1)", show=False),
        Binding("g,home", "move_to(0)", show=False),
        Binding("G,end", "move_to(-1)", show=False),
        Binding("pagedown,ctrl+f", "page(1)", show=False),
        Binding("pageup,ctrl+b", "page(-1)", show=False),
        Binding("enter", "open", show=False),
    ]

    class Moved(Message):
        """Another row is selected."""

    class Opened(Message):
        """The selected row is to be shown in detail."""

    class Resized(Message):
        """Rows have another width now."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.selected: Key | None = None
        self._keys: list[Key] = []
        self._paint: Painter | None = None
        self._strips: dict[int, Strip] = {}

    @property
    def room(self) -> int:
        """Columns for a row."""
        return self.scrollable_content_region.width

    def show(self, keys: Sequence[Key], paint: Painter) -> None:
        """The rows, by key in order, and how to paint them."""
        old_strips, old_count = self._strips, len(self._keys)
        at = self.cursor
        self._keys, self._paint, self._strips = list(keys), paint, {}
        if self.selected not in self._keys:
            # it is gone: its neighbour takes its place
            self.selected = self._keys[min(at, len(self._keys) - 1)] if self._keys else None
        size = Size(self.room, len(self._keys))
        if size != self.virtual_size:
            self.virtual_size = size
        if self.cursor != at:
            self._follow()
        if len(self._keys) != old_count:
            self.refresh()
            return
        for y in range(self.scroll_offset.y, min(self.scroll_offset.y + self.size.height, len(self._keys))):
            if self._strip(y) != old_strips.get(y):
                self.refresh_line(y)

    @property
    def cursor(self) -> int:
        """Number of the selected row."""
        return self._keys.index(self.selected) if self.selected in self._keys else 0

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= len(self._keys) or self._paint is None:
            return Strip.blank(self.size.width, self.rich_style)
        return self._strip(at).crop_extend(0, self.size.width, self.rich_style)

    def _strip(self, at: int) -> Strip:
        if at not in self._strips:
            assert self._paint is not None
            line = self._paint(at, self._keys[at] == self.selected, self.has_focus)
            self._strips[at] = line.strip().apply_style(self.rich_style)
        return self._strips[at]

    def select(self, at: int) -> None:
        """Selects a row by its number, the nearest there is."""
        if not self._keys:
            return
        at = min(max(at, 0), len(self._keys) - 1)
        if self._keys[at] != self.selected:
            for row in (self.cursor, at):
                self._strips.pop(row, None)
                self.refresh_line(row)
            self.selected = self._keys[at]
            self.post_message(self.Moved())
        self._follow()

    def _follow(self) -> None:
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False)

    def action_move(self, by: int) -> None:
        self.select(self.cursor + by)

    def action_move_to(self, at: int) -> None:
        self.select(at if at >= 0 else len(self._keys) - 1)

    def action_page(self, by: int) -> None:
        self.select(self.cursor + by * max(self.size.height - 1, 1))

    def action_open(self) -> None:
        if self.selected is not None:
            self.post_message(self.Opened())

    def on_click(self, event: Click) -> None:
        at = event.y + self.scroll_offset.y
        if at < len(self._keys):
            self.select(at)
            if event.chain == 2:
                self.action_open()

    def on_resize(self, event: Resize) -> None:
        self._strips = {}
        self.call_after_refresh(self._follow)
        self.post_message(self.Resized())

    def on_focus(self) -> None:
        self._repaint_cursor()

    def on_blur(self) -> None:
        self._repaint_cursor()

    def _repaint_cursor(self) -> None:
        self._strips.pop(self.cursor, None)
        self.refresh_line(self.cursor)
