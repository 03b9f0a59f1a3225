"""Lines of terminal cells: text is put at a column, with a colour; what is behind it shows through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from rich.cells import get_character_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

Ink = tuple[str, str, bool]
"""Colour of the text, colour behind it ("" = the widget's), bold."""

BLOCKS = "▁▂▃▄▅▆▇█"


@lru_cache(maxsize=4096)
def style_of(ink: Ink) -> Style:
    fore, back, bold = ink
    return Style(color=fore or None, bgcolor=back or None, bold=bold or None)


class Line:
    """One row of `width` cells. Text beyond the edges is cut; control characters become blanks."""

    __slots__ = ("_chars", "_inks", "width")

    def __init__(self, width: int, back: str = "") -> None:
        self.width = max(width, 0)
        self._chars = [" "] * self.width
        self._inks: list[Ink] = [("", back, False)] * self.width

    def put(self, x: int, text: str, ink: str, bold: bool = False, back: str = "") -> int:
        """Text from column `x` on; without `back` the cells keep what is behind them. Returns the column after it."""
        chars, inks, width = self._chars, self._inks, self.width
        for char in text:
            if char == " ":
                cells = 1
            elif not char.isprintable():
                char, cells = " ", 1
            else:
                cells = 1 if char < "\u0300" else get_character_cell_size(char)
            if cells and x >= 0 and x + cells <= width:
                chars[x] = char
                inks[x] = (ink, back or inks[x][1], bold)
                if cells == 2:
                    chars[x + 1] = ""
                    inks[x + 1] = inks[x]
            x += cells
        return x

    def end(self, x: int, text: str, ink: str, bold: bool = False, back: str = "") -> int:
        """Text that ends before column `x`. Returns the column it begins at."""
        start = x - len(text)
        self.put(start, text, ink, bold, back)
        return start

    def fill(self, start: int, stop: int, back: str) -> None:
        """Colours what is behind the cells from `start` to before `stop`."""
        for x in range(max(start, 0), min(stop, self.width)):
            fore, _, bold = self._inks[x]
            self._inks[x] = (fore, back, bold)

    def is_free(self, start: int, stop: int) -> bool:
        """Whether these cells are blank."""
        return all(char == " " for char in self._chars[max(start, 0) : max(stop, 0)])

    @property
    def text(self) -> str:
        return "".join(self._chars)

    def paste(self, x: int, other: Line) -> None:
        """Copies another line's cells from column `x` on."""
        stop = min(x + other.width, self.width)
        self._chars[x:stop] = other._chars[: stop - x]
        self._inks[x:stop] = other._inks[: stop - x]

    def copy(self, start: int, stop: int, other: Line) -> None:
        """Copies the cells from column `start` to before `stop` of another line to the same columns."""
        self._chars[start:stop] = other._chars[start:stop]
        self._inks[start:stop] = other._inks[start:stop]

    def strip(self, glyphs: Mapping[int, str] | None = None) -> Strip:
        """As Textual paints it; `glyphs` replaces what the terminal lacks, one cell by one cell."""
        if glyphs is not None:
            self._chars = [_plain(char, glyphs) for char in self._chars]
        segments: list[Segment] = []
        start = 0
        for x in range(1, self.width + 1):
            if x < self.width and self._chars[x] == " " and self._inks[x][1] == self._inks[start][1]:
                continue  # a blank shows only what is behind it
            if x == self.width or self._inks[x] != self._inks[start]:
                segments.append(Segment("".join(self._chars[start:x]), style_of(self._inks[start])))
                start = x
        return Strip(segments, self.width)


def _plain(char: str, glyphs: Mapping[int, str]) -> str:
    if char.isascii():
        return char or " "  # the second cell of a wide character
    return glyphs.get(ord(char), "." if "\u2800" < char <= "\u28ff" else "?")  # the dots of a curve


def cut(text: str, width: int) -> str:
    """Text in at most `width` cells, with … where it was cut."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 0 else ""


def wrap(text: str, width: int, most: int) -> list[str]:
    """Words in lines of at most `width`; what does not fit `most` lines ends in …"""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = cut(word, width)
    lines.append(line)
    if len(lines) > most:
        rest = " ".join(lines[most - 1 :])
        return [*lines[: most - 1], cut(rest, width)]
    return lines


def spark(values: Sequence[float | None], width: int, top: float) -> str:
    """The last `width` values as a row of blocks up to `top`; unknown ones are blank, zero is the lowest line."""
    shown: Iterable[float | None] = values[-width:]
    text = "".join(
        " " if value is None else BLOCKS[min(int(value / top * 7.999), 7)] if top > 0 else BLOCKS[0] for value in shown
    )
    return text.rjust(width)
