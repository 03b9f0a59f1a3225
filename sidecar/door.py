"""The door between clients and the engine: open while the model serves, else requests wait in line."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from greenthread.clock import Clock
from greenthread.units import short_duration
from proxy.routes import Outcome, Refuse
from proxy.terms import Terms
from sidecar.metrics import Metrics, SidecarState

#: A pod that goes away asks the gateway to send the request elsewhere: it was not run.
NOT_RUN = ("X-GreenThread-Not-Run", "true")

_SUCCESS = Outcome.SUCCESS

#: What every answer says of a request that found the door open.
_FOUND_SERVING = (b"X-GreenThread-State: serving", b"Server-Timing: queue;dur=0, wake;dur=0")


class Visitor(Protocol):
    """What the door knows of a request (a ``proxy.Exchange``)."""

    terms: Terms
    #: Seconds that it has waited at other gates.
    waited: float
    response_lines: Sequence[bytes] | None
    status: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What those who wait ask for: a wake, since when, and whether others may be preempted for it."""

    since: datetime
    preempts: bool


class Door:
    """Counts who is inside and keeps who waits, in order of arrival. The lifecycle alone opens and shuts it."""

    def __init__(self, clock: Clock, metrics: Metrics, limit: int, timeout: float) -> None:
        """``limit``: requests that may wait. ``timeout``: seconds one may wait."""
        self._clock, self._metrics = clock, metrics
        self._limit, self._timeout = limit, timeout
        self._waiting: dict[asyncio.Future[None], datetime] = {}
        #: Of these, the ones that others may be preempted for.
        self._pressing: dict[asyncio.Future[None], datetime] = {}
        self._state = SidecarState.SLEEPING
        self._wake_began = self._wake_ended = math.inf
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
        #: Called when ``asked`` begins or ends or comes to preempt or not, and, while ``watched``, when nothing is in
        #: flight any more.
        self.on_change: Callable[[], None] = lambda: None
        self.watched = False
        #: Whether a wake is under way already, so that one more request is a duplicate of it.
        self.waking: Callable[[], bool] = lambda: False
        #: Called with each request that begins to wait, where there are traces.
        self.on_wait: Callable[[Any], None] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def asked(self) -> Asked | None:
        """What the oldest request asks for that may preempt; the oldest of all if none may; None: nobody waits."""
        for waiting in (self._pressing, self._waiting):
            for since in waiting.values():
                return Asked(since, waiting is self._pressing)
        return None

    # -- the proxy's side -------------------------------------------------------------------------------------------

    def try_enter(self, exchange: Visitor) -> bool:
        if not self._open:
            return False
        self.in_flight += 1
        exchange.response_lines = _FOUND_SERVING
        return True

    async def enter(self, exchange: Visitor) -> None:
        if self.try_enter(exchange):
            return
        found = b"X-GreenThread-State: " + str(self._state).encode("ascii")
        exchange.response_lines = (found,)
        if self._leaving:
            raise self._refusal(self.reason(), leaving=True)
        if len(self._waiting) >= self._limit:
            raise self._refusal(f"{len(self._waiting)} requests wait for this model already")
        terms, loop = exchange.terms, asyncio.get_running_loop()
        arrived = loop.time()
        if self.on_wait is not None:
            self.on_wait(exchange)
        try:
            await self._wait(min(self._timeout, terms.max_wait - exchange.waited), terms)
        finally:
            exchange.response_lines = (found, self._timing(arrived, loop.time()))

    async def _wait(self, seconds: float, terms: Terms) -> None:
        if seconds <= 0:
            raise self._too_late(terms)
        if self._waiting or self.waking():
            self._metrics.wake_deduplications.inc()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        before = self.asked
        self._waiting[turn] = self._clock.now()
        if terms.preempts:
            self._pressing[turn] = self._waiting[turn]
        self._tell(before)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except TimeoutError:
            if not _let_in(turn):
                raise self._too_late(terms) from None
        except asyncio.CancelledError:
            if _let_in(turn):
                self._one_out()  # let in and gone in the same moment
            raise
        finally:
            before = self.asked
            self._pressing.pop(turn, None)
            if self._waiting.pop(turn, None) is not None:
                self._tell(before)

    def _tell(self, before: Asked | None) -> None:
        now = self.asked
        if (before and before.preempts) != (now and now.preempts):
            self.on_change()

    def _too_late(self, terms: Terms) -> Refuse:
        if terms.max_wait < self._timeout:
            longest = f"X-GreenThread-Max-Wait allows {short_duration(terms.max_wait)}"
        else:
            longest = f"waited {self._timeout:.0f} s"
        return self._refusal(f"{longest}; {self.reason()}")

    def _timing(self, arrived: float, now: float) -> bytes:
        """How long a request waited for its turn, and for the wake itself (the W3C's Server Timing)."""
        wake = max(min(now, self._wake_ended) - max(arrived, self._wake_began), 0.0)
        queue = max(now - arrived - wake, 0.0)
        return f"Server-Timing: queue;dur={queue * 1000:.1f}, wake;dur={wake * 1000:.1f}".encode("ascii")

    def leave(self, exchange: Visitor, outcome: Outcome) -> None:
        self._one_out()
        self.finished += 1
        if outcome is _SUCCESS and exchange.status < 500:
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

    def entered(self, state: SidecarState) -> None:
        """The state that requests find from now on."""
        now = asyncio.get_running_loop().time()
        if state is SidecarState.WAKING:
            self._wake_began, self._wake_ended = now, math.inf
        elif self._state is SidecarState.WAKING:
            self._wake_ended = now
        self._state = state

    def open(self) -> None:
        """Lets everybody in, in order of arrival. Idleness counts from now."""
        self.last_accessed = self._clock.now()
        self.idle_since = asyncio.get_running_loop().time()
        self.reopen()

    def reopen(self) -> None:
        """Takes a shutting back: as before, it is as long idle as it was."""
        self._open = True
        waiting, self._waiting, self._pressing = self._waiting, {}, {}
        for turn in waiting:
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def shut(self) -> None:
        """From now on requests wait. What is in flight goes on."""
        self._open = False

    def turn_away(self, reason: str) -> None:
        """Everybody who waits is told why; whoever comes later waits again."""
        waiting, self._waiting, self._pressing = self._waiting, {}, {}
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
