"""A queue of keys: each key once, never two workers on one key, failed ones again after a growing pause."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Seconds before a failed key's next turn: the first pause, doubled for each failure in a row, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 60.0


class KeyedQueue(Generic[K]):
    """As client-go's work queue. One event loop; nothing here blocks but ``get``."""

    def __init__(self) -> None:
        self._waiting: deque[K] = deque()
        self._queued: set[K] = set()
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._active)

    def add(self, key: K) -> None:
        """Asks for a turn of ``key``, after the one under way if there is one."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._waiting.append(key)
            self._news.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Asks for a turn in ``seconds``, unless one is asked for sooner."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    async def get(self) -> K:
        """The next key; whoever gets it calls ``done`` with it.

        This turn is also the one that was asked for later: who has it asks again for what is still to come.
        """
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        key = self._waiting.popleft()
        self._queued.discard(key)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        self._active.add(key)
        return key

    def done(self, key: K) -> None:
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def failed(self, key: K) -> float:
        """``key`` gets another turn after a pause, which is returned (seconds)."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause = min(FIRST_PAUSE * 2.0 ** min(count, 20), LONGEST_PAUSE)
        self.add_after(key, pause)
        return pause

    def succeeded(self, key: K) -> None:
        """The next failure starts with the first pause again."""
        self._failures.pop(key, None)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
