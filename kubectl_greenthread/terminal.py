"""What the terminal can show: colours, characters, width; and tables that fit it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from greenthread.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple, TextIO

    class _Cell(NamedTuple):
        text: str
        style: str = ""
else:  # `typing` takes longer to import than this module
    from collections import namedtuple

    _Cell = namedtuple("_Cell", ["text", "style"], defaults=[""])

# the terminal's own sixteen colours, so that every theme, dark or light, keeps its contrast
_CODES = {
    "bold": "1", "dim": "2", "serving": "32", "waking": "94", "pending": "33", "deactivating": "35",
    "sleeping": "2", "converting": "36", "staging": "36", "failed": "31", "cannot fit": "31", "other": "2",
}  # fmt: skip

GLYPHS = {
    "serving": "●", "waking": "◐", "pending": "◌", "deactivating": "▼", "sleeping": "○", "converting": "◇",
    "staging": "◇",     "failed": "✕", "cannot fit": "⊘",
}  # fmt: skip
ASCII_GLYPHS = {
    "serving": "*", "waking": "+", "pending": "?", "deactivating": "v", "sleeping": "o", "converting": "~",
    "staging": "~",     "failed": "x", "cannot fit": "!",
}  # fmt: skip

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"


class Cell(_Cell):
    """Text of a table's cell and the name of its style."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """`drop`: columns go in ascending order of it when the table is too wide; 0 stays. `flexible`: it is cut first."""

    title: str
    right: bool = False
    drop: int = 0
    flexible: int = 0


@dataclass(frozen=True)
class Terminal:
    """`width` and `height` in cells, None: without end (a pipe or file)."""

    color: bool = False
    unicode: bool = True
    width: int | None = None
    height: int | None = None

    @classmethod
    def of_stdout(
        cls, color: str = "auto", stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
    ) -> Terminal:
        """What stdout can show; `color` is auto, always or never."""
        stream = stream or sys.stdout
        tty = stream.isatty()
        auto = tty and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        encoding = (getattr(stream, "encoding", "") or "").lower().replace("-", "")
        columns = environ.get("COLUMNS", "")
        width: int | None = int(columns) if columns.isdecimal() else None
        height: int | None = None
        if tty:
            size = _size(stream)
            width, height = width or size[0], size[1]
        return cls(color == "always" or (color == "auto" and auto), encoding.startswith("utf"), width or None, height)

    def measured(self) -> Terminal:
        """The same with the size that stdout has now."""
        if self.height is None:
            return self
        width, height = _size(sys.stdout)
        return Terminal(self.color, self.unicode, width, height)

    def paint(self, text: str, style: str) -> str:
        """Text in a style, if there are colours."""
        code = _CODES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and code and text else text

    def glyph(self, state: str) -> str:
        """The sign of a state; every state has its own shape, so that colour alone carries nothing."""
        return (GLYPHS if self.unicode else ASCII_GLYPHS).get(state, "?")

    def clean(self, text: str) -> str:
        """Text from the cluster without what could move the cursor, in characters the terminal has."""
        if not text.isprintable():  # which nearly all is
            text = re.sub(_CONTROL, " ", text)
        return text if self.unicode else text.encode("ascii", "replace").decode()

    def cut(self, text: str, width: int) -> str:
        """Text in at most `width` cells."""
        if len(text) <= width:
            return text
        mark = "…" if self.unicode else "~"
        return text[: max(width - 1, 0)] + mark if width > 0 else ""

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], headers: bool = True) -> list[str]:
        """The table's lines, fitted to the width."""
        return self.lines(columns, rows, self.fit(columns, rows, headers), headers)

    def lines(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[Cell]],
        layout: tuple[Sequence[int], Sequence[int]],
        headers: bool = True,
    ) -> list[str]:
        """The table's lines in a layout that `fit` has made, maybe for other rows."""
        shown, widths = layout
        lines: list[Sequence[Cell]] = [[Cell(column.title, "bold") for column in columns]] if headers else []
        return [self._line(columns, line, shown, widths) for line in (*lines, *rows)]

    def fit(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], headers: bool = True
    ) -> tuple[list[int], list[int]]:
        """Which columns are shown, and their widths: first flexible columns are cut, then columns are dropped."""
        shown = [at for at, _ in enumerate(columns)]
        widths = self._widths(columns, rows, shown, headers)
        while widths is None:
            droppable = [at for at in shown if columns[at].drop]
            if not droppable:
                return shown, [self._natural(columns, rows, at, headers) for at in shown]
            shown.remove(min(droppable, key=lambda at: columns[at].drop))
            widths = self._widths(columns, rows, shown, headers)
        return shown, widths

    def wrap(self, text: str, indent: str = "") -> list[str]:
        """Text in lines of the terminal's width; all but the first begin with `indent`."""
        text = self.clean(text)
        if self.width is None or len(text) <= self.width:
            return [text]
        import textwrap

        return textwrap.wrap(text, max(self.width, 20), subsequent_indent=indent)

    def _natural(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], at: int, headers: bool) -> int:
        cells = [len(row[at].text) for row in rows] + ([len(columns[at].title)] if headers else [])
        return max(cells, default=0)

    def _widths(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], shown: Sequence[int], headers: bool
    ) -> list[int] | None:
        """Width of each shown column, or None if they do not fit even with the flexible ones cut."""
        widths = [self._natural(columns, rows, at, headers) for at in shown]
        if self.width is None:
            return widths
        over = sum(widths) + 2 * (len(widths) - 1) - self.width
        for position in reversed(range(len(shown))):
            least = columns[shown[position]].flexible
            if over > 0 and least and widths[position] > least:
                taken = min(over, widths[position] - least)
                widths[position] -= taken
                over -= taken
        return widths if over <= 0 else None

    def _line(self, columns: Sequence[Column], row: Sequence[Cell], shown: Sequence[int], widths: Sequence[int]) -> str:
        parts = []
        for at, width in zip(shown, widths, strict=True):
            text = self.clean(row[at].text)
            if self.width is not None and columns[at].flexible:
                text = self.cut(text, width)
            room = " " * (width - len(text))
            painted = self.paint(text, row[at].style)
            parts.append(room + painted if columns[at].right else painted + room)
        return "  ".join(parts).rstrip()

    def bar(self, parts: Sequence[tuple[float, str, str]], width: int) -> str:
        """A bar of `width` cells; `parts` are (share of 1, character kind, style), the rest is free.

        Kinds: full, coming, other. A part above 0 has at least one cell, as long as there are cells.
        """
        kinds = {"full": "█", "coming": "▒", "other": "▓", "free": "░"}
        edge = "▊"  # the last cell of a part, so that neighbours can be told apart
        if not self.unicode:
            kinds, edge = {"full": "#", "coming": "=", "other": "%", "free": "."}, "|"
        out, used, end = [], 0, 0.0
        for share, kind, style in parts:
            end += max(share, 0.0)
            upto = min(round(end * width), width)
            cells = max(upto - used, 1 if share > 0 and used < width else 0)
            text = kinds[kind] * cells
            out.append(self.paint(text[:-1] + edge if kind == "full" and cells > 1 else text, style))
            used += cells
        return "".join(out) + self.paint(kinds["free"] * (width - used), "dim")


def _size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of the terminal that a stream is."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24
