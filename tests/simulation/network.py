"""The way from one part to the API server: slow, cut, refusing, forgetful, and dead when its part is dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from greenthread.kube.core import Response
from greenthread.kube.errors import Unreachable
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess


@dataclass
class Weather:
    """Probabilities of each request or event; seconds."""

    slow: float = 0.0
    slowness: float = 2.0
    #: The request is lost before, or the answer after, the server worked on it.
    lost_before: float = 0.0
    lost_after: float = 0.0
    conflict: float = 0.0
    #: A watch ends, or ends as too old, after any of its events.
    gap: float = 0.0
    gone: float = 0.0
    #: Nobody reaches the server.
    down: bool = False


CONFLICT = (
    b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Conflict","code":409,"message":"simulated"}'
)
GONE = b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"message":"simulated"}'


class Network(InProcess):
    """One part's connection. `kill()` freezes whatever it still asks: nothing of a dead process reaches anybody."""

    def __init__(self, api: Api, rng: random.Random, weather: Weather) -> None:
        super().__init__(api)
        self._rng, self._weather = rng, weather
        self._dead = False
        #: Die before or after that many more requests were carried out; None: live.
        self.fuse: int | None = None
        self.on_fuse = lambda: None

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
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            raise Unreachable("simulated: the request was lost")
        if method in ("PATCH", "PUT") and rng.random() < weather.conflict:
            return Response(409, {}, CONFLICT)
        self._burn()
        await self._alive()
        answer = await super().request(method, path, params, headers, body, timeout)
        self._burn()
        await self._travel()
        if rng.random() < weather.lost_after:
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            raise Unreachable("simulated: the answer was lost")
        return answer

    async def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        await self._travel()
        weather, rng = self._weather, self._rng
        if weather.down:
            raise Unreachable("simulated: no connection")
        if rng.random() < weather.gone:
            yield Response(410, {}, GONE)
            return
        lag = rng.choice([0.0, 0.0, 0.01, 0.2, weather.slowness if weather.slow else 0.0])
        source = super().stream(method, path, params, headers, timeout)
        try:
            async for line in source:
                await asyncio.sleep(rng.uniform(0.0, 0.003) + lag * rng.random())
                await self._alive()
                if weather.down:
                    raise Unreachable("simulated: the watch broke off")
                if rng.random() < weather.gap:
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
