"""One gate for each Model: chooses the endpoint of a request, and holds the request while there is none."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from gateway.directory import Directory, Endpoint
from gateway.settings import Settings
from greenthread.kube.resources import Key
from greenthread.units import short_duration
from proxy.exchange import Exchange
from proxy.routes import Forward, Outcome, Refuse, Upstream

logger = logging.getLogger(__name__)

UNMEASURED = 5.0
"""Seconds until a client may well try again, when no request has waited for a pod of its model yet."""
_RECENT = 5  # waits that count


def retry_after(waits: Sequence[float]) -> float:
    """Seconds until a client may well try again, from how long the last requests waited for a pod: 1 to 600."""
    return min(max(median(waits), 1.0), 600.0) if waits else UNMEASURED


def restarting() -> Refuse:
    """What is said to everybody when the gateway stops."""
    return Refuse(503, "The gateway is restarting; try again.", 1.0, "restarting")


class Hold:
    """A Model's gate."""

    def __init__(self, key: Key, holds: Holds) -> None:
        self.key = key
        self.waiting: dict[asyncio.Future[None], Exchange] = {}
        self.in_flight: dict[Upstream, int] = {}
        self._holds = holds
        self._avoid: dict[Upstream, float] = {}  # until this loop time
        self._forwards: dict[str, Forward] = {}  # by path, of the few that are routed
        self._why: str = ""  # the last trouble with an endpoint
        self._alarm: asyncio.TimerHandle | None = None
        self._waits: deque[float] = deque(maxlen=_RECENT)  # seconds that requests waited which then had an endpoint

    def forward(self, path: str) -> Forward:
        """The route to this Model for a path of the API."""
        found = self._forwards.get(path)
        if found is None:
            found = self._forwards[path] = Forward(path, gate=self, retry=True, tag=self.key, keep_ends=True)
        return found

    def try_enter(self, exchange: Exchange) -> bool:
        """Choose an endpoint; False when there is none now."""
        endpoint = self._choose()
        if endpoint is None:
            return False
        address = endpoint.address
        exchange.upstream = address
        self.in_flight[address] = self.in_flight.get(address, 0) + 1
        return True

    async def enter(self, exchange: Exchange) -> None:
        """Wait for an endpoint. Raises Refuse when none comes in time, or none can come."""
        holds = self._holds
        loop = asyncio.get_running_loop()
        self._raise_if_hopeless()
        holds.raise_if_full(retry_after(self._waits))
        longest = exchange.terms.max_wait - exchange.waited
        if longest <= 0:
            raise self._refusal(exchange)
        turn: asyncio.Future[None] = loop.create_future()
        self.waiting[turn] = exchange
        holds.held += 1
        self._watch_avoided()
        began = loop.time()
        try:
            async with asyncio.timeout_at(min(exchange.started + holds.settings.hold_timeout, began + longest)):
                await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                pass  # let in as the time ran out
            else:
                raise self._refusal(exchange) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._count_out(exchange)  # let in and gone in the same moment
            raise
        finally:
            holds.held -= 1
            self.waiting.pop(turn, None)
        waited = loop.time() - began
        self._waits.append(waited)
        exchange.add_response_header("Server-Timing", f"hold;dur={waited * 1000:.1f}")

    def leave(self, exchange: Exchange, outcome: Outcome) -> None:
        """The request is over, or goes elsewhere."""
        address = exchange.upstream
        self._count_out(exchange)
        if outcome is Outcome.UNREACHABLE and address is not None:
            self._shun(address, self._holds.settings.avoid_unreachable, "its pod cannot be connected to")
        elif outcome is Outcome.NOT_RUN and address is not None:
            self._shun(address, self._holds.settings.avoid_leaving, "its pod is being replaced")

    def _count_out(self, exchange: Exchange) -> None:
        address = exchange.upstream
        if address is None:
            return
        left = self.in_flight.get(address, 0) - 1
        if left > 0:
            self.in_flight[address] = left
        else:
            self.in_flight.pop(address, None)

    def _shun(self, address: Upstream, seconds: float, why: str) -> None:
        if address not in self._avoid:
            logger.info("model %s/%s: no requests to %s:%d for %g s: %s", *self.key, *address, seconds, why)
        self._why = why
        self._avoid[address] = asyncio.get_running_loop().time() + seconds

    def _choose(self) -> Endpoint | None:
        """The endpoint for one more request: one that serves, else any; of these the least busy."""
        directory = self._holds.directory
        found = directory.endpoints(self.key)
        if self._avoid:
            now = asyncio.get_running_loop().time()
            self._avoid = {address: until for address, until in self._avoid.items() if until > now}
            found = [endpoint for endpoint in found if endpoint.address not in self._avoid]
        if len(found) > 1:
            return min(found, key=lambda e: (not directory.serves(e), self.in_flight.get(e.address, 0)))
        return found[0] if found else None

    def poke(self) -> None:
        """Something changed: let in, in order, who has an endpoint now."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for turn, exchange in list(self.waiting.items()):
            if turn.done():
                continue
            if self.try_enter(exchange):
                turn.set_result(None)
                continue
            try:
                self._raise_if_hopeless()
            except Refuse as refusal:
                turn.set_exception(refusal)
        self._watch_avoided()

    def _watch_avoided(self) -> None:
        """When all that is missing is that an endpoint is tried again, an alarm does that."""
        if self._avoid and self.waiting and self._alarm is None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_at(min(self._avoid.values()) + 0.001, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.poke()

    def stop(self) -> None:
        """The gateway goes away: who waits is told."""
        for turn in self.waiting:
            if not turn.done():
                turn.set_exception(restarting())

    def _raise_if_hopeless(self) -> None:
        """Raises Refuse when waiting would be in vain."""
        namespace, name = self.key
        model = self._holds.directory.model(namespace, name)
        if self._holds.stopping:
            raise restarting()
        if model is None or model.deleting:
            raise Refuse(404, f"The model '{name}' has been deleted.", None, "model_not_found")
        if model.spec.replicas == 0:
            raise Refuse(503, f"The model '{name}' has replicas: 0; scale it up to use it.", None, "model_not_ready")
        if model.status.phase == "Failed":
            raise Refuse(
                503, f"The model '{name}' has failed{self._status()}.", retry_after(self._waits), "model_failed"
            )

    def _refusal(self, exchange: Exchange) -> Refuse:
        why = self._why if self._avoid else "it has no pod that is ready"
        if exchange.terms.max_wait < self._holds.settings.hold_timeout:
            longest = f"X-GreenThread-Max-Wait allows {short_duration(exchange.terms.max_wait)}"
        else:
            longest = f"waited {asyncio.get_running_loop().time() - exchange.started:.0f} s"
        message = f"The model '{self.key[1]}' is not ready: {why}{self._status()}; {longest}."
        return Refuse(503, message, retry_after(self._waits), "model_not_ready")

    def _status(self) -> str:
        """What the Model itself says, for a message."""
        model = self._holds.directory.model(*self.key)
        if model is None:
            return ""
        ready = next((c for c in model.status.conditions if c.type == "Ready" and c.status != "True"), None)
        return f" (phase {model.status.phase}{': ' + ready.message if ready and ready.message else ''})"


class Starting:
    """Holds every request until the gateway knows the cluster, by the rules of any other hold."""

    def __init__(self, holds: Holds) -> None:
        self.over = asyncio.Event()
        self.why: Callable[[], str] = str
        """What is missing still, for people."""
        self._holds = holds

    async def wait(self, exchange: Exchange) -> None:
        """Raises Refuse when it takes too long."""
        holds, loop = self._holds, asyncio.get_running_loop()
        holds.raise_if_full(UNMEASURED)
        began = loop.time()
        holds.held += 1
        try:
            async with asyncio.timeout(min(holds.settings.hold_timeout, exchange.terms.max_wait)):
                await self.over.wait()
        except TimeoutError:
            raise Refuse(503, f"The gateway is starting: {self.why()}.", 1.0, "starting") from None
        finally:
            holds.held -= 1
        if holds.stopping:
            raise restarting()
        exchange.add_response_header("Server-Timing", f"start;dur={(loop.time() - began) * 1000:.1f}")


class Holds:
    """All gates, and how many requests they hold."""

    def __init__(self, directory: Directory, settings: Settings) -> None:
        self.directory = directory
        self.settings = settings
        self.held = 0
        self.stopping = False
        self.starting = Starting(self)
        self._gates: dict[Key, Hold] = {}

    def of(self, key: Key) -> Hold:
        """The gate of a Model."""
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Hold(key, self)
        return gate

    def changed(self, key: Key) -> None:
        """A Model or its endpoints changed."""
        gate = self._gates.get(key)
        if gate is None:
            return
        gate.poke()
        if not gate.waiting and not gate.in_flight and self.directory.model(*key) is None:
            del self._gates[key]

    def raise_if_full(self, retry_after: float) -> None:
        """Raises Refuse when no more requests may be held."""
        if self.held >= self.settings.max_held:
            raise Refuse(503, f"{self.held} requests wait for models to start already.", retry_after, "overloaded")

    def stop(self) -> None:
        """Tell everybody who waits that the gateway goes away."""
        self.stopping = True
        self.starting.over.set()
        for gate in self._gates.values():
            gate.stop()
