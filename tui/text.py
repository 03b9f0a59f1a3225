"""A page of text: it scrolls, keeps the lines that match a filter, and wraps what is too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from textual.widget import Widget

from tui.cells import Line
from tui.page import Page
from tui.view import View
from tui.widgets import Lines, Panel, set_height


class Piece(NamedTuple):
    """Text in one colour."""

    text: str
    ink: str
    bold: bool = False


class TextPage(Page):
    """Subclasses give a title and the text as lines of pieces."""

    FILTER: ClassVar[str] = "the lines"
    INDENT: ClassVar[int] = 2
    """Blanks before what is wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self._title, self._text = Panel("title"), Lines("text")

    def body(self) -> Iterable[Widget]:
        for part in (self._title, self._text):
            part.add_class("body")
        return (self._title, self._text)

    def title_line(self, view: View, width: int) -> Line:
        """What is shown."""
        raise NotImplementedError

    def text_lines(self, view: View) -> Sequence[Sequence[Piece]]:
        """All of it."""
        raise NotImplementedError

    def draw(self, view: View, height: int) -> None:
        width = self.size.width
        gap = int(height > 14)
        set_height(self._title, 1, gap)
        set_height(self._text, max(height - 1 - gap - gap, 1), gap)
        self._title.show([self.title_line(view, width)])
        room = self._text.room
        words = self.words.lower().split()
        lines: list[Line] = []
        for pieces in self.text_lines(view):
            if words and not all(word in "".join(piece.text for piece in pieces).lower() for word in words):
                continue
            lines += flow(pieces, room, self.INDENT)
        self._text.show(len(lines), lines.__getitem__)


def flow(pieces: Sequence[Piece], width: int, indent: int) -> list[Line]:
    """A line of text in as many rows as it needs."""
    line = Line(width)
    lines, x = [line], 1
    for text, ink, bold in pieces:
        rest = text
        while x + len(rest) > width - 1 and width > indent + 8:
            room = width - 1 - x
            at = rest.rfind(" ", 0, room + 1) + 1  # at a blank, if there is one near
            at = at if at > room // 2 else room
            line.put(x, rest[:at], ink, bold)
            rest = rest[at:]
            line = Line(width)
            lines.append(line)
            x = 1 + indent
        x = line.put(x, rest, ink, bold)
    return lines
