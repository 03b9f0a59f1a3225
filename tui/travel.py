"""Where in time the dashboard looks: now, or a moment of its history, standing or going on by itself."""

from __future__ import annotations

import time

from tui.data import ClusterData
from tui.past import Past

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
KEYS = (
    ("[ ]", "back and forth in time, to where something happened"),
    ("{ }", "back and forth by a minute"),
    ("( )", "to the wake before, the wake after"),
    ("space", "let the past go on, or stop; - and + go slower, faster"),
    ("end", "back to now"),
)


class Travel:
    """`past` is None while the dashboard shows now. With `only_past` (a recording) there is no now."""

    def __init__(self, data: ClusterData, only_past: bool = False) -> None:
        self.past: Past | None = None
        self.only_past = only_past
        #: How many seconds go by in one; while `going`.
        self.speed = 1.0
        self.going = False
        self._data = data
        self._ticked = 0.0
        if only_past:
            self._at(data.history.began)

    @property
    def now(self) -> float:
        """Seconds since 1970; with a recording, its end."""
        return self._data.history.ended if self.only_past else self._data.clock.now().timestamp()

    def step(self, by: int, to: str = "change") -> str:
        """To the next (1) or last (-1) change, wake or minute; returns what is in the way, for people."""
        history = self._data.history
        if not history.segments:
            return "there is no past yet"
        moment = self.past.moment if self.past is not None else self.now
        self.going = False
        if to == "minute":
            if self.past is None and by > 0:
                return ""
            if moment + by * 60 > self.now and not self.only_past:
                self.leave()
                return ""
            at: float | None = min(max(moment + by * 60, history.began), self.now)
            at = None if at == moment else at
        else:
            at = history.stop(moment, by, wakes=to == "wake")
        if at is None:
            if by < 0:
                return f"no {'wake' if to == 'wake' else 'change'} is known before this moment"
            if self.past is not None and not self.only_past:
                self.leave()
                return ""
            return f"no {'wake' if to == 'wake' else 'change'} is known after this moment"
        self._at(at)
        return ""

    def leave(self) -> None:
        """Back to now; in a recording, to its end."""
        self.going = False
        if self.only_past:
            self._at(self.now)
        else:
            self.past = None
            self._data.history.close()

    def first(self) -> None:
        """To the oldest moment that is known."""
        self._at(self._data.history.began)

    def toggle(self) -> None:
        """Lets the past go on, or stops it; at the end of a recording it begins anew."""
        if self.past is None:
            return
        self.going = not self.going
        self._ticked = time.monotonic()
        if self.going and self.only_past and self.past.moment >= self.now:
            self.first()

    def faster(self, by: int) -> None:
        """The next of `SPEEDS`, or the one before."""
        self.speed = SPEEDS[min(max(SPEEDS.index(self.speed) + by, 0), len(SPEEDS) - 1)]

    def tick(self) -> bool:
        """Lets time go by; True if the moment is another now."""
        if self.past is None or not self.going:
            return False
        now = time.monotonic()
        at = self.past.moment + (now - self._ticked) * self.speed
        self._ticked = now
        if at >= self.now:
            self.leave()
        else:
            self.past.seek(at)
        return True

    def _at(self, at: float) -> None:
        if self.past is None:
            self.past = Past(self._data.history, self._data.namespace)
        self.past.seek(at)
