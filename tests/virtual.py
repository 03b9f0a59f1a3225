"""A virtual event loop and wall clock: waiting costs nothing, and a run is the same every time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")
START = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


class Stuck(Exception):
    """Every task waits and no timer is set: nothing would ever happen again."""


class _Selector(selectors.SelectSelector):
    """Instead of waiting, moves the loop's time to its next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        self.loop.elapsed += self.loop.turn
        if not ready and timeout is None:
            raise Stuck("all tasks wait for each other")
        if not ready and timeout:
            self.loop.elapsed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, turn: float = 0.0) -> None:
        """``turn``: seconds that a turn of the loop takes; above 0, nobody waits for ever for what is almost due."""
        self.turn = turn
        selector = _Selector()
        selector.loop = self
        self.elapsed = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.elapsed

    def next_event(self) -> float:
        """Seconds until something happens: 0 while something is to be run now, a little when nothing is due at all."""
        if self._ready:  # type: ignore[attr-defined]
            return 0.0
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return max(timers[0].when() - self.elapsed, 0.0) if timers else 0.05


class VirtualClock:
    """The wall clock of the running virtual loop."""

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time())


def run(main: Coroutine[Any, Any, T], turn: float = 0.0) -> T:
    """Runs to the end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(turn)) as runner:
        return runner.run(main)
