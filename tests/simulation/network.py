"""The way from one part to the API server: slow, cut, refusing, forgetful, and dead when its part is dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

from greenthread.kube.core import Response
from greenthread.kube.errors import Unreachable
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess


@dataclass
class Weather:
    """Probabilities of each request, event or connection; seconds."""

    slow: float = 0.0
    slowness: float = 2.0
    #: The request is lost before, or the answer after, the server worked on it.
    lost_before: float = 0.0
    lost_after: float = 0.0
    #: Of what is lost: so much is not broken off but swallowed, and only the client's own time limit ends it.
    swallowed: float = 0.2
    conflict: float = 0.0
    #: 429, 500 and 503.
    error: float = 0.0
    #: A watch ends, begins as too old, or says in its middle that it is too old.
    gap: float = 0.0
    gone: float = 0.0
    #: A watch says nothing any more, and its connection stays: the client's limit of silence ends it.
    silent: float = 0.0
    #: Longest lag of a watch behind the server (seconds). Each watch has its own: objects are seen out of order.
    lag: float = 0.2
    #: A connection between gateway and sidecar breaks.
    broken_connection: float = 0.0
    #: Nobody reaches the server.
    down: bool = False


def _status(code: int, reason: str) -> bytes:
    text = '{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"%s","code":%d,"message":"simulated"}'
    return (text % (reason, code)).encode()


CONFLICT = Response(409, {}, _status(409, "Conflict"))
GONE = Response(410, {}, _status(410, "Expired"))
TOO_OLD = b'{"type":"ERROR","object":' + _status(410, "Expired") + b"}"
ERRORS = (
    Response(429, {"retry-after": "1"}, _status(429, "TooManyRequests")),
    Response(500, {}, _status(500, "InternalError")),
    Response(503, {}, _status(503, "ServiceUnavailable")),
)


class Network(InProcess):
    """One part's connection. `kill()` freezes whatever it still asks: nothing of a dead process reaches anybody."""

    def __init__(self, api: Api, rng: random.Random, weather: Weather) -> None:
        super().__init__(api)
        self._rng, self._weather = rng, weather
        self._dead = False
        #: Die before or after that many more requests were carried out; None: live.
        self.fuse: int | None = None
        self.on_fuse: Callable[[], None] = lambda: None

    def kill(self) -> None:
        self._dead = True

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Response:
        await self._travel()
        weather, rng = self._weather, self._rng
        if weather.down or rng.random() < weather.lost_before:
            raise await self._lost("the request was lost", timeout)
        if method in ("PATCH", "PUT") and rng.random() < weather.conflict:
            return CONFLICT
        if rng.random() < weather.error:
            return rng.choice(ERRORS)
        self._burn()
        await self._alive()
        answer = await super().request(method, path, params, headers, body, timeout)
        self._burn()
        await self._travel()
        if rng.random() < weather.lost_after:
            raise await self._lost("the answer was lost", timeout)
        return answer

    async def _lost(self, why: str, timeout: float) -> Unreachable:
        swallowed = self._rng.random() < self._weather.swallowed
        await asyncio.sleep(timeout if swallowed else self._rng.uniform(0.0, 1.0))
        await self._alive()
        return Unreachable(f"simulated: {why}")

    async def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        await self._travel()
        weather, rng = self._weather, self._rng
        if weather.down:
            raise Unreachable("simulated: no connection")
        if rng.random() < weather.gone:
            yield GONE
            return
        lags = rng.choice([0.0, 0.0, 0.05, 1.0])
        source = super().stream(method, path, params, headers, timeout)
        try:
            async for line in source:
                await asyncio.sleep(rng.uniform(0.0, 0.003) + lags * weather.lag * rng.random())
                await self._alive()
                if weather.down:
                    raise Unreachable("simulated: the watch broke off")
                if rng.random() < weather.silent:
                    await asyncio.sleep(timeout)
                    raise Unreachable("simulated: silence")
                if rng.random() < weather.gap:
                    if rng.random() < 0.3:
                        yield TOO_OLD
                    return
                yield line
        finally:
            await source.aclose()

    async def _travel(self) -> None:
        slow = self._rng.random() < self._weather.slow
        await asyncio.sleep(
            self._rng.uniform(0.0, self._weather.slowness) if slow else self._rng.uniform(0.0002, 0.004)
        )
        await self._alive()

    async def _alive(self) -> None:
        if self._dead:
            await asyncio.get_running_loop().create_future()

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                self._dead = True
                self.on_fuse()
