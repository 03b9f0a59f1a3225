"""What the screen says when it shows a moment that is over: which one, what came then, what the keys do."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from greenthread.units import short_duration
from tui.cells import Line, cut

if TYPE_CHECKING:
    from tui.known import Told
    from tui.past import Past
    from tui.view import View


class Moment(NamedTuple):
    """`now`: seconds since 1970; `replay`: it is a recording; `speed`: at which it goes on, 0: it stands."""

    past: Past
    now: float
    replay: bool
    speed: float

    @property
    def age(self) -> float:
        """Seconds."""
        return max(self.now - self.past.moment, 0.0)


def header(width: int, view: View, moment: Moment, where: str) -> Line:
    """◂ 14:02:40.2, 42s ago   actions are off   end: back to now, in amber"""
    palette = view.palette
    line, ink = Line(width, palette.past), palette.on_past
    x = line.put(1, "GreenThread", ink, bold=True)
    right = width - 1
    history = moment.past.history
    if moment.replay:
        total = short_duration(max(history.ended - history.began, 0.0))
        texts = [f"recording, {total}   space: {'stop' if moment.speed else 'play'}", f"recording, {total}", ""]
    else:
        texts = ["actions are off   end: back to now", "end: back to now", ""]
    sign = f"▸ {moment.speed:g}×" if moment.speed else "◂"
    when = f"{sign} {clock(view, moment)}"
    if not moment.replay:
        when += f", {short_duration(moment.age)} ago"
    else:
        when += f", {short_duration(max(moment.past.moment - history.began, 0.0))} in"
    rest = next(text for text in texts if x + len(when) + len(text) + 6 <= right)
    if rest:
        right = line.end(right, rest, ink) - 3
    at = line.end(right, when, ink, bold=True)
    context = cut(view.context, max(width // 4, 12))
    if x + 2 + len(context) + 2 <= at:
        x = line.put(x + 2, context, ink)
    if x + 2 + len(where) + 2 <= at:
        line.put(x + 2, where, ink)
    return line


def clock(view: View, moment: Moment) -> str:
    """Time of day with tenths; with the date if it is not today's, or of a recording, which may be of any day."""
    local, today = view.now.astimezone(view.zone), datetime.fromtimestamp(moment.now, view.zone)
    date = "" if today.date() == local.date() and not moment.replay else local.strftime("%Y-%m-%d ")
    return f"{date}{local:%H:%M:%S}.{local.microsecond // 100_000}"


def happened(told: Told, view: View) -> str:
    """What was told after the moment that is shown: `3.7s later: woke in …`."""
    return f"{short_duration(max((told.at - view.now).total_seconds(), 0.0))} later: {told.message}"
