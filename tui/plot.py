"""Curves as rows of Braille signs, drawn by plotext. Importing this takes 100 ms: import it when a chart is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import plotext

Point = tuple[float, float]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def curve(points: Sequence[Sequence[Point]], width: int, height: int, x: Point, y: Point) -> list[str]:
    """`height` rows of `width` signs; `x` and `y`: first and last value in sight. Each piece is a line of its own."""
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.axes(False)
    figure.canvas("default")
    for axis, (first, last) in (("x", x), ("y", y)):
        ruler = figure.ruler(axis)
        ruler.frequency(0)
        ruler.lim(first, last)
    for piece in points:
        if piece:
            signal = figure.signal([at for at, _ in piece], [value for _, value in piece], marker="braille")
            signal.lines(True)
            figure.draw(signal)
    rows = _ANSI.sub("", str(figure.build())).split("\n")
    return [row[:width].ljust(width) for row in (*rows, *[""] * height)][:height]
