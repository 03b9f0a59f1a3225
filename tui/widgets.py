"""Widgets that show painted lines and redraw only those that changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollBarRender
from textual.strip import Strip
from textual.widget import Widget

from tui.cells import Line


def set_height(widget: Widget, height: int, gap: int = 0) -> None:
    """Gives a widget its rows and a gap above; Textual lays out again only when one of them is another."""
    shown = height > 0
    if widget.display != shown:
        widget.display = shown
    if not shown:
        return
    if widget.styles.height is None or widget.styles.height.value != height:
        widget.styles.height = height
    if widget.styles.margin.top != gap:
        widget.styles.margin = (gap, 0, 0, 0)


def _glyphs(widget: Widget) -> Mapping[int, str] | None:
    """What replaces signs that the terminal lacks."""
    found: Mapping[int, str] | None = getattr(widget.app, "glyphs", None)
    return found


class PlainBar(ScrollBarRender):
    """A scroll bar of blanks, for terminals without blocks."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "] * 8
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "] * 8


class Panel(Widget):
    """A few lines; its height is set by whoever lays it out."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._strips: list[Strip] = []
        self._spots: list[tuple[int, int, str]] = []

    def show(self, lines: Sequence[Line], spots: Sequence[tuple[int, int, str]] = ()) -> None:
        """`spots`: (from column, before column, action of the app) that can be clicked on the first line."""
        style, glyphs = self.rich_style, _glyphs(self)
        old, self._strips = self._strips, [line.strip(glyphs).apply_style(style) for line in lines]
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
    """Lines that scroll. Only those in sight are painted, and only what changed is drawn."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", show=False),
        Binding("k", "scroll_up", show=False),
        Binding("g", "scroll_home", show=False),
        Binding("G", "scroll_end", show=False),
    ]

    class Resized(Message):
        """Lines have another width now."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._count = 0
        self._paint: Callable[[int], Line] | None = None
        self._strips: dict[int, Strip] = {}

    def on_mount(self) -> None:
        if _glyphs(self) is not None:
            self.vertical_scrollbar.renderer = PlainBar  # type: ignore[misc]

    @property
    def room(self) -> int:
        """Columns for a line."""
        return self.scrollable_content_region.width

    @property
    def at_end(self) -> bool:
        """Whether the last line is in sight."""
        return self.scroll_offset.y + self.size.height >= self._count

    def show(self, count: int, paint: Callable[[int], Line]) -> None:
        """`count` lines, and how to paint the one of a number."""
        old_strips, old_count = self._strips, self._count
        self._count, self._paint, self._strips = count, paint, {}
        size = Size(self.room, count)
        if size != self.virtual_size:
            self.virtual_size = size
        if count != old_count:
            self.refresh()
            return
        style = self.rich_style  # the same for all lines, and dear
        for y in range(self.scroll_offset.y, min(self.scroll_offset.y + self.size.height, count)):
            if self._painted(y, style) != old_strips.get(y):
                self.refresh_line(y)

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= self._count or self._paint is None:
            return Strip.blank(self.size.width, self.rich_style)
        return self._strip(at).crop_extend(0, self.size.width, self.rich_style)

    def repaint(self, at: int) -> None:
        """Paints one line anew."""
        self._strips.pop(at, None)
        self.refresh_line(at)

    def _strip(self, at: int) -> Strip:
        return self._strips[at] if at in self._strips else self._painted(at, self.rich_style)

    def _painted(self, at: int, style: Style) -> Strip:
        assert self._paint is not None
        strip = self._strips[at] = self._paint(at).strip(_glyphs(self)).apply_style(style)
        return strip

    def on_resize(self, event: Resize) -> None:
        self._strips = {}
        self.post_message(self.Resized())


class Table(Lines):
    """A line for each key, with a selected one, which stays selected wherever it moves to."""

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

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.selected: Any = None
        self._keys: list[Hashable] = []

    def show_rows(self, keys: Sequence[Hashable], paint: Callable[[int, bool, bool], Line]) -> None:
        """The rows by key, in order; `paint` gets (number, whether it is selected, whether the table has the focus)."""
        at = self.cursor
        self._keys = list(keys)
        if self.selected not in self._keys:
            # it is gone: its neighbour takes its place
            self.selected = self._keys[min(at, len(self._keys) - 1)] if self._keys else None
        self.show(len(self._keys), lambda at: paint(at, self._keys[at] == self.selected, self.has_focus))
        if self.cursor != at:
            self._follow()

    @property
    def cursor(self) -> int:
        """Number of the selected row."""
        return self._keys.index(self.selected) if self.selected in self._keys else 0

    def select(self, at: int) -> None:
        """Selects a row by its number, the nearest there is."""
        if not self._keys:
            return
        at = min(max(at, 0), len(self._keys) - 1)
        if self._keys[at] != self.selected:
            before, self.selected = self.cursor, self._keys[at]
            self.repaint(before)
            self.repaint(at)
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
        self.call_after_refresh(self._follow)

    def on_focus(self) -> None:
        self.repaint(self.cursor)

    def on_blur(self) -> None:
        self.repaint(self.cursor)
