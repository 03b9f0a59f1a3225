"""Columns of a table: which fit a width, where each stands, what its heading says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tui.cells import Line, cut
from tui.view import View


@dataclass(frozen=True)
class Field:
    """A column that is wanted: `size` cells after `gap` blanks.

    `drop`: the lowest goes first when width lacks, 0 stays; `grow`: it takes what width is left.
    """

    title: str
    size: int
    right: bool = False
    drop: int = 0
    gap: int = 2
    grow: bool = False


@dataclass(frozen=True)
class Column:
    """Cells from `start` to before `end`."""

    title: str
    start: int
    end: int
    right: bool = False

    @property
    def width(self) -> int:
        return self.end - self.start

    def put(self, line: Line, text: str, ink: str, bold: bool = False) -> None:
        """Text in this column, on the side where it belongs, cut where it does not fit."""
        text = cut(text, self.width)
        if self.right:
            line.end(self.end, text, ink, bold)
        else:
            line.put(self.start, text, ink, bold)


def fit(width: int, fields: Iterable[Field], start: int = 1) -> dict[str, Column]:
    """The fields that fit before the last cell of `width`, by title, left to right; the first has no gap."""
    wanted = list(fields)

    def needed() -> int:
        return start + sum(field.size + field.gap for field in wanted) - wanted[0].gap + 1

    while needed() > width and any(field.drop for field in wanted):
        wanted.remove(min((field for field in wanted if field.drop), key=lambda field: field.drop))
    rest = width - needed()
    found: dict[str, Column] = {}
    x = start
    for number, field in enumerate(wanted):
        x += field.gap if number else 0
        size = max(field.size + (rest if field.grow else 0), 1)
        found[field.title] = Column(field.title, x, x + size, field.right)
        x += size
    return found


def heading(width: int, fields: Mapping[str, Column], view: View, silent: Sequence[str] = ()) -> Line:
    """The titles, dim; `silent` ones are not written."""
    line = Line(width)
    for title, column in fields.items():
        if title not in silent:
            column.put(line, title, view.palette.dim)
    return line
