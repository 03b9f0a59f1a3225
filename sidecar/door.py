"""The door between clients and the engine: open while the model serves, else requests wait in line."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from greenthread.clock import Clock
from proxy.routes import Outcome, Refuse
from sidecar.metrics import Metrics

#: A pod that goes away asks the gateway to send the request elsewhere: it was not run.
NOT_RUN = ("X-GreenThread-Not-Run", "true")


class Door:
    """Counts who is inside and keeps who waits, in order of arrival. The lifecycle alone opens and shuts it."""

    def __init__(self, clock: Clock, metrics: Metrics, limit: int, timeout: float) -> None:
        """``limit``: requests that may wait. ``timeout``: seconds one may wait."""
        self._clock, self._metrics = clock, metrics
        self._limit, self._timeout = limit, timeout
        self._waiting: dict[asyncio.Future[None], datetime] = {}
        self._open = False
        self._leaving = False
        self.in_flight = 0
        #: Requests that went in and out.
        self.finished = 0
        #: When the last request came in or went out, wall clock and event loop's time.
        self.last_accessed: datetime | None = None
        self.idle_since = 0.0
        #: Why nobody gets in now, for a person; None: nothing stands in the way but the wake itself.
        self.reason: Callable[[], str] = lambda: "the model is waking"
        #: Seconds after which a client may well try again.
        self.retry_after: Callable[[], float] = lambda: 1.0
        #: Called when the first request begins to wait, when the last one leaves the line, and, while
        #: ``watched``, when nothing is in flight any more.
        self.on_change: Callable[[], None] = lambda: None
        self.watched = False
        #: Whether a wake is under way already, so that one more request is a duplicate of it.
        self.waking: Callable[[], bool] = lambda: False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_since(self) -> datetime | None:
        """When the longest waiting request arrived."""
        return next(iter(self._waiting.values()), None)

    # -- the proxy's side -------------------------------------------------------------------------------------------

    def try_enter(self, _exchange: Any) -> bool:
        if not self._open:
            return False
        self.in_flight += 1
        return True

    async def enter(self, _exchange: Any) -> None:
        if self._open:
            self.in_flight += 1
            return
        if self._leaving:
            raise self._refusal(self.reason(), leaving=True)
        if len(self._waiting) >= self._limit:
            raise self._refusal(f"{len(self._waiting)} requests wait for this model already")
        if self._waiting or self.waking():
            self._metrics.wake_deduplications.inc()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = self._clock.now()
        if len(self._waiting) == 1:
            self.on_change()
        try:
            async with asyncio.timeout(self._timeout):
                await turn
        except TimeoutError:
            if not _let_in(turn):
                raise self._refusal(f"waited {self._timeout:.0f} s; {self.reason()}") from None
        except asyncio.CancelledError:
            if _let_in(turn):
                self._one_out()  # let in and gone in the same moment
            raise
        finally:
            if self._waiting.pop(turn, None) is not None and not self._waiting:
                self.on_change()

    def leave(self, exchange: Any, outcome: Outcome) -> None:
        self._one_out()
        self.finished += 1
        if outcome is Outcome.SUCCESS and exchange.status < 500:
            self._metrics.success.inc()
        elif outcome is not Outcome.CLIENT_GONE:
            self._metrics.error.inc()

    def _one_out(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self.last_accessed = self._clock.now()
            self.idle_since = asyncio.get_running_loop().time()
            if self.watched:
                self.on_change()

    def _refusal(self, reason: str, leaving: bool = False) -> Refuse:
        self._metrics.error.inc()
        headers = [NOT_RUN] if leaving else []
        return Refuse(503, reason, max(1, math.ceil(self.retry_after())), code="model_not_ready", headers=headers)

    # -- the lifecycle's side ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lets everybody in, in order of arrival. Idleness counts from now."""
        self.last_accessed = self._clock.now()
        self.idle_since = asyncio.get_running_loop().time()
        self.reopen()

    def reopen(self) -> None:
        """Takes a shutting back: as before, it is as long idle as it was."""
        self._open = True
        waiting, self._waiting = self._waiting, {}
        for turn in waiting:
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def shut(self) -> None:
        """From now on requests wait. What is in flight goes on."""
        self._open = False

    def turn_away(self, reason: str) -> None:
        """Everybody who waits is told why; whoever comes later waits again."""
        waiting, self._waiting = self._waiting, {}
        for turn in waiting:
            if not turn.done():
                turn.set_exception(self._refusal(reason, leaving=self._leaving))

    def close_for_good(self, reason: str) -> None:
        """The pod goes away: nobody waits here any more."""
        self._open, self._leaving = False, True
        self.reason = lambda: reason
        self.turn_away(reason)

    @property
    def last_used(self) -> datetime:
        """When the model was last used, for ``lastAccessed``; now while something is in flight."""
        if self.in_flight or self.last_accessed is None:
            return self._clock.now()
        return self.last_accessed


def _let_in(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None
